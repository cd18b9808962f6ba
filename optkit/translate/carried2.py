"""tf_keras objects that carry a Keras 3 loss, metric, optimizer, … and run it as it is.

Each holds the original as ``carried`` and its Keras 3 serialization in its configuration.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from optkit.translate.revive import revive, serialized

__all__ = [
    "Keras3Callback",
    "Keras3Constraint",
    "Keras3Initializer",
    "Keras3LearningRateSchedule",
    "Keras3Loss",
    "Keras3Metric",
    "Keras3Optimizer",
    "Keras3Regularizer",
]

_register = tf_keras.saving.register_keras_serializable(package="optkit")


def _alive(carried: Any) -> Any:
    return revive(carried) if isinstance(carried, dict) else carried


class _Carrier:
    """What the plain ones have in common."""

    def __init__(self, carried: Any):
        self.carried = _alive(carried)

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as Keras 3 serializes it."""
        return {"carried": serialized(self.carried)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The object of a configuration."""
        return cls(**config)


@_register
class Keras3Initializer(_Carrier, tf_keras.initializers.Initializer):  # type: ignore[misc]
    """Draws initial values as a Keras 3 initializer does."""

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """The initial values."""
        name = tf.as_dtype(dtype).name if dtype is not None else None
        return tf.convert_to_tensor(self.carried(tuple(shape), dtype=name))


@_register
class Keras3Regularizer(_Carrier, tf_keras.regularizers.Regularizer):  # type: ignore[misc]
    """Penalizes weights as a Keras 3 regularizer does."""

    def __call__(self, x: Any) -> Any:
        """The penalty."""
        return self.carried(tf.convert_to_tensor(x))


@_register
class Keras3Constraint(_Carrier, tf_keras.constraints.Constraint):  # type: ignore[misc]
    """Holds weights where a Keras 3 constraint wants them."""

    def __call__(self, w: Any) -> Any:
        """The weights as they may be."""
        return self.carried(tf.convert_to_tensor(w))


@_register
class Keras3LearningRateSchedule(
    _Carrier,
    tf_keras.optimizers.schedules.LearningRateSchedule,  # type: ignore[misc]
):
    """A learning rate that follows a Keras 3 schedule."""

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step."""
        return tf.convert_to_tensor(self.carried(step))


@_register
class Keras3Loss(tf_keras.losses.Loss):  # type: ignore[misc]
    """A Keras 3 loss, its reduction included."""

    def __init__(self, carried: Any, name: str | None = None):
        self.carried = _alive(carried)
        reduction = self.carried.reduction
        known = reduction if reduction in ("sum", "none") else "sum_over_batch_size"
        super().__init__("none" if reduction is None else known, name or self.carried.name)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of a batch."""
        return self.carried(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The losses of the samples."""
        return self.carried.call(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as Keras 3 serializes it."""
        return {"name": self.name, "carried": serialized(self.carried)}


@_register
class Keras3Metric(tf_keras.metrics.Metric):  # type: ignore[misc]
    """A Keras 3 metric."""

    def __init__(self, carried: Any, name: str | None = None, dtype: Any = None):
        alive = _alive(carried)
        super().__init__(name=name or alive.name, dtype=dtype)
        object.__setattr__(self, "carried", _Hidden(alive))

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value.value if isinstance(value, _Hidden) else value

    @property
    def weights(self) -> list[Any]:
        """The variables of the metric."""
        return [variable.value for variable in self.carried.variables]

    @property
    def variables(self) -> list[Any]:
        """The variables of the metric."""
        return self.weights

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch."""
        if sample_weight is None:
            self.carried.update_state(y_true, y_pred)
        else:
            self.carried.update_state(y_true, y_pred, sample_weight=sample_weight)

    def result(self) -> Any:
        """The figure so far."""
        return self.carried.result()

    def reset_state(self) -> None:
        """Starts anew."""
        self.carried.reset_state()

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as Keras 3 serializes it."""
        return {**super().get_config(), "carried": serialized(self.carried)}


class _Hidden:
    """Keeps a Keras 3 object out of sight of tf_keras, which would track it."""

    def __init__(self, value: Any):
        self.value = value


@_register
class Keras3Optimizer(tf_keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras 3 optimizer. The learning rate is that of this object, so callbacks can set it."""

    def __init__(
        self, carried: Any, learning_rate: Any = None, name: str | None = None, **kwargs: Any
    ):
        import keras

        from optkit.translate.objects import convert_object

        stored = carried if isinstance(carried, dict) else serialized(carried)
        alive = revive(stored)
        super().__init__(name=name or alive.name, jit_compile=False)
        if learning_rate is None:
            learning_rate = convert_object(
                alive._learning_rate, forward=True, layer=lambda layer: layer
            )
            if isinstance(learning_rate, keras.Variable):
                learning_rate = float(str(learning_rate.numpy()))
        if isinstance(learning_rate, dict):
            learning_rate = tf_keras.optimizers.schedules.deserialize(learning_rate)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._hidden = _Hidden((alive, stored))
        self._wrapped: dict[str, Any] = {}
        alive.learning_rate = lambda *_: tf.cast(
            tf.convert_to_tensor(self.learning_rate), tf.float32
        )

    @property
    def carried(self) -> Any:
        """The Keras 3 optimizer with the learning rate of this one, and no slots."""
        import keras

        from optkit.translate.objects import convert_object

        stored = self._hidden.value[1]
        rate = self._learning_rate
        if isinstance(rate, tf.Variable):
            value: Any = float(str(rate.numpy()))
        else:
            schedule = convert_object(rate, forward=False, layer=lambda layer: layer)
            value = keras.saving.serialize_keras_object(schedule)
        if "learning_rate" in stored["config"]:
            stored = {**stored, "config": {**stored["config"], "learning_rate": value}}
        return revive(stored)

    def _variables_of(self, variables: Any) -> list[Any]:
        import keras

        found = []
        for variable in variables:
            key = self._var_key(variable)
            if key not in self._wrapped:
                name = variable.name.partition(":")[0].replace("/", "_")
                wrapped = keras.Variable(
                    variable, trainable=True, dtype=variable.dtype.name, name=name
                )
                self._wrapped[key] = wrapped
            found.append(self._wrapped[key])
        return found

    def build(self, var_list: Any) -> None:
        """Makes the slots."""
        alive = self._hidden.value[0]
        if not alive.built:
            alive.build(self._variables_of(var_list))
            alive.built = True
            for variable in alive.variables:
                if variable is not alive._iterations and isinstance(variable.value, tf.Variable):
                    self._variables.append(variable.value)
        self._built = True

    def apply_gradients(self, grads_and_vars: Any, name: Any = None, **kwargs: Any) -> Any:
        """One step."""
        self._compute_current_learning_rate()
        pairs = list(grads_and_vars)
        if not pairs:
            return self._iterations
        with tf.init_scope():
            self.build([variable for _, variable in pairs])
        alive = self._hidden.value[0]
        alive.apply([grad for grad, _ in pairs], self._variables_of(v for _, v in pairs))
        for _, variable in pairs:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        return self.iterations.assign_add(1)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Puts the averages into the weights, where the optimizer keeps any."""
        self._hidden.value[0].finalize_variable_values(self._variables_of(var_list))

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as Keras 3 serializes it."""
        return {
            "name": self.name,
            "carried": self._hidden.value[1],
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
        }


class Keras3Callback(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Calls a Keras 3 callback; the model that it sees is the tf_keras model."""

    def __init__(self, carried: Any):
        super().__init__()
        self.carried = carried

    def set_model(self, model: Any) -> None:
        """Tells the model that trains."""
        self.model = model
        self.carried.set_model(model)

    def set_params(self, params: Any) -> None:
        """Tells the parameters of the training."""
        self.params = params
        self.carried.set_params(params)


def _forwarded(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.carried, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"Calls the callback's own `{name}`."
    return method


for _name in dir(tf_keras.callbacks.Callback):
    if _name.startswith("on_"):
        setattr(Keras3Callback, _name, _forwarded(_name))
