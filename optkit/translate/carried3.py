"""Keras 3 objects that carry a tf_keras loss, metric, optimizer, … and run it as it is."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optkit.translate.revive import revive_tf_keras, serialized_tf_keras

__all__ = [
    "TfKerasCallback",
    "TfKerasConstraint",
    "TfKerasInitializer",
    "TfKerasLearningRateSchedule",
    "TfKerasLoss",
    "TfKerasMetric",
    "TfKerasOptimizer",
    "TfKerasRegularizer",
]

_register = keras.saving.register_keras_serializable(package="optkit")


def _alive(carried: Any) -> Any:
    return revive_tf_keras(carried) if isinstance(carried, dict) else carried


class _Carrier:
    """What the plain ones have in common."""

    def __init__(self, carried: Any):
        self.carried = _alive(carried)

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as tf_keras serializes it."""
        return {"carried": serialized_tf_keras(self.carried)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The object of a configuration."""
        return cls(**config)


@_register
class TfKerasInitializer(_Carrier, keras.initializers.Initializer):  # type: ignore[misc]
    """Draws initial values as a tf_keras initializer does."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """The initial values."""
        return self.carried(shape, dtype=dtype)


@_register
class TfKerasRegularizer(_Carrier, keras.regularizers.Regularizer):  # type: ignore[misc]
    """Penalizes weights as a tf_keras regularizer does."""

    def __call__(self, x: Any) -> Any:
        """The penalty."""
        return self.carried(tf.convert_to_tensor(x))


@_register
class TfKerasConstraint(_Carrier, keras.constraints.Constraint):  # type: ignore[misc]
    """Holds weights where a tf_keras constraint wants them."""

    def __call__(self, value: Any) -> Any:
        """The weights as they may be."""
        return self.carried(tf.convert_to_tensor(value))


@_register
class TfKerasLearningRateSchedule(
    _Carrier,
    keras.optimizers.schedules.LearningRateSchedule,  # type: ignore[misc]
):
    """A learning rate that follows a tf_keras schedule."""

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step."""
        return self.carried(tf.convert_to_tensor(step))


@_register
class TfKerasLoss(keras.losses.Loss):  # type: ignore[misc]
    """A tf_keras loss, its reduction included."""

    def __init__(self, carried: Any, name: str | None = None):
        self.carried = _alive(carried)
        reduction = self.carried.reduction
        known = reduction if reduction in ("sum", "none") else "sum_over_batch_size"
        super().__init__(name=name or self.carried.name, reduction=known)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of a batch."""
        return self.carried(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The losses of the samples."""
        return self.carried.call(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as tf_keras serializes it."""
        return {"name": self.name, "carried": serialized_tf_keras(self.carried)}


@_register
class TfKerasMetric(keras.metrics.Metric):  # type: ignore[misc]
    """A tf_keras metric."""

    def __init__(self, carried: Any, name: str | None = None, dtype: Any = None):
        alive = _alive(carried)
        super().__init__(name=name or alive.name)
        self._hidden = (alive,)
        for variable in alive.weights:
            self._variables.append(
                keras.Variable(
                    variable,
                    trainable=False,
                    dtype=variable.dtype.name,
                    name=variable.name.partition(":")[0].replace("/", "_"),
                )
            )

    @property
    def carried(self) -> Any:
        """What is carried."""
        return self._hidden[0]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch."""
        self.carried.update_state(y_true, y_pred, sample_weight=sample_weight)

    def result(self) -> Any:
        """The figure so far."""
        return self.carried.result()

    def reset_state(self) -> None:
        """Starts anew."""
        self.carried.reset_state()

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as tf_keras serializes it."""
        return {"name": self.name, "carried": serialized_tf_keras(self.carried)}


@_register
class TfKerasOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A tf_keras optimizer. The learning rate is that of the optimizer that it carries."""

    def __init__(self, carried: Any, name: str | None = None, **kwargs: Any):
        alive = _alive(carried)
        rate = alive.learning_rate
        super().__init__(learning_rate=float(rate), name=name or "tf_keras_optimizer")
        self._hidden = (alive,)

    @property
    def carried(self) -> Any:
        """What is carried."""
        return self._hidden[0]

    def build(self, variables: Any) -> None:
        """Makes the slots."""
        if not self.built:
            super().build(variables)
            with tf.init_scope():
                self.carried.build([variable.value for variable in variables])

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step."""
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if not self.built:
            with tf.init_scope():
                self.build(variables)
        if isinstance(self.carried._learning_rate, tf.Variable):
            self.carried._learning_rate.assign(self._get_current_learning_rate())
        values = [getattr(variable, "value", variable) for variable in variables]
        self.carried.apply_gradients(zip(grads, values, strict=True))
        self._iterations.assign_add(1)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Not used: the optimizer that is carried steps by itself."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as tf_keras serializes it."""
        return {"name": self.name, "carried": serialized_tf_keras(self.carried)}


class TfKerasCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls a tf_keras callback; the model that it sees is the Keras 3 model."""

    def __init__(self, carried: Any):
        super().__init__()
        self.carried = carried

    def set_model(self, model: Any) -> None:
        """Tells the model that trains."""
        super().set_model(model)
        self.carried.set_model(model)

    def set_params(self, params: Any) -> None:
        """Tells the parameters of the training."""
        super().set_params(params)
        self.carried.set_params(params)


def _forwarded(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.carried, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"Calls the callback's own `{name}`."
    return method


for _name in dir(keras.callbacks.Callback):
    if _name.startswith("on_"):
        setattr(TfKerasCallback, _name, _forwarded(_name))
