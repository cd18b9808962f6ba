"""tf_keras layers that carry a Keras 3 operation or layer and run it as it is.

Imported where a model needs them, as they import tf_keras; Keras itself first when one is made. A
file that holds one is readable wherever optkit is installed.
"""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf
import tf_keras

from optkit.translate.forms import fill
from optkit.translate.revive import revive, serialized
from optkit.translate.weights import ordered, own_variables, parts

__all__ = ["KerasOperation"]

_ONE_TENSOR = {"args": [{"tensor": 0}], "kwargs": {}}


class _Box:
    """Keeps what it holds out of sight of tf_keras, which would track it as a layer of its own."""

    def __init__(self, operation: Any, forms: list[dict[str, Any]], frozen: list[int]):
        self.operation = operation
        self.forms = forms
        self.frozen = frozen
        self.takes_training = False
        self.is_layer = False
        self.adopted = False


@tf_keras.saving.register_keras_serializable(package="optkit")
class KerasOperation(tf_keras.layers.Layer):  # type: ignore[misc]
    """Runs a Keras 3 operation or layer inside a tf_keras model.

    Its weights are the variables of what it carries; ``trainable``, ``training``, masks, losses and
    updates go through.

    Args:
        operation: The Keras 3 operation, or its serialized form.
        forms: How it is called, one form for each way (see `optkit.translate.forms`). One tensor
            and nothing else by default.
        frozen: Which of the layers inside it are not trained while the others are, by number.
        **kwargs: As for every layer.
    """

    def __init__(
        self,
        operation: Any,
        forms: list[dict[str, Any]] | None = None,
        frozen: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        import keras

        kwargs.pop("autocast", None)
        trainable = kwargs.pop("trainable", None)
        super().__init__(autocast=False, **kwargs)  # what is carried casts by its own policy
        if isinstance(operation, dict):
            operation = revive(operation)
            operation.name = self.name  # a model of the user's own may not take its name
        box = _Box(operation, list(forms or [_ONE_TENSOR]), list(frozen or ()))
        box.is_layer = isinstance(operation, keras.layers.Layer)
        if box.is_layer:
            box.takes_training = bool(operation._call_has_training_arg)
        self._box = box
        self.supports_masking = True
        # What is carried puts masks on its outputs itself.
        self._compute_output_and_mask_jointly = True
        self._trainable = operation.trainable if box.is_layer else True
        if trainable is not None and trainable != self._trainable:
            self.trainable = trainable
        if box.is_layer:
            self.add_loss(self._regularization)
            if operation.built:
                self._adopt()

    @property
    def operation(self) -> Any:
        """What is carried."""
        return self._box.operation

    @property
    def forms(self) -> list[dict[str, Any]]:
        """How it is called."""
        return self._box.forms

    @property
    def trainable(self) -> bool:
        """Whether its weights are trained."""
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        box = getattr(self, "_box", None)  # set by the base class before there is one
        # Set again, as copying does, it must not touch what inside is frozen by itself.
        if box is not None and box.is_layer and box.operation.trainable != value:
            box.operation.trainable = value
        self._trainable = value

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as Keras 3 serializes it."""
        return {
            **super().get_config(),
            "operation": serialized(self.operation),
            "forms": self.forms,
            "frozen": self._frozen(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer of a configuration."""
        return cls(**config)

    def _name_scope(self) -> str:
        # Keras 3 takes any name, TensorFlow's scopes do not.
        return re.sub(r"^[^A-Za-z0-9.]|[^A-Za-z0-9_.>-]", ".", self.name)

    def _frozen(self) -> list[int]:
        box = self._box
        if not (box.adopted and box.is_layer and self.trainable):
            return box.frozen
        return [n for n, part in enumerate(parts(box.operation)) if not part.trainable]

    def _adopt(self) -> None:
        """Gives the variables of what is carried names of this layer, and tracks them."""
        if self._box.adopted:
            return
        variables = []
        for name, variable in _named_variables(self.operation):
            if isinstance(variable.value, tf.Variable):
                # The slash at the end: this name, wherever in other scopes that happens.
                with tf.init_scope(), tf.name_scope(f"{self._name_scope()}/"):
                    fresh = tf.Variable(
                        variable.value,
                        trainable=variable.trainable,
                        name=name,
                        dtype=variable.value.dtype,
                        constraint=variable.constraint,
                    )
                variable._value = fresh
                variables.append(fresh)
        self._carried_variables = variables  # tracked, so checkpoints and SavedModels have them
        self._box.adopted = True
        if self.trainable:
            inside = parts(self.operation)
            for number in self._box.frozen:
                if inside[number].trainable:
                    inside[number].trainable = False

    @property
    def trainable_weights(self) -> list[Any]:
        """The variables that are trained."""
        if not (self._box.is_layer and self.trainable):
            return []
        return [variable.value for variable in self.operation.trainable_weights]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """The other variables; the state of random generators is not counted, as in Keras 3."""
        if not self._box.is_layer:
            return []
        trained = {id(weight) for weight in self.trainable_weights}
        values = [variable.value for variable in self.operation.weights]
        return [value for value in values if id(value) not in trained]

    @property
    def weights(self) -> list[Any]:
        """All variables."""
        return [*self.trainable_weights, *self.non_trainable_weights]

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables in Keras 3's order, whatever is frozen."""
        if self._box.is_layer:
            for number, variable in enumerate(ordered(self.operation)):
                store[str(number)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote."""
        if self._box.is_layer:
            for number, variable in enumerate(ordered(self.operation)):
                variable.assign(store[str(number)][()])

    def build(self, input_shape: Any) -> None:
        """Nothing: what is carried is built at its first call, when the dtypes are known, too."""
        self.built = True

    def call(self, inputs: Any, form: int = 0, training: Any = None, mask: Any = None) -> Any:
        """Runs what is carried on TensorFlow tensors."""
        box = self._box
        tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        masks = list(mask) if isinstance(mask, list | tuple) else [mask]
        for tensor, one in zip(tensors, masks, strict=False):
            if one is not None and getattr(tensor, "_keras_mask", None) is None:
                tensor._keras_mask = one
        if box.is_layer and not (box.operation.built and box.adopted):
            self._settle(tensors, form)
        args, kwargs = fill(box.forms[form], tensors)
        if not box.is_layer:
            return box.operation(*args, **kwargs)
        if box.takes_training and "training" not in kwargs:
            kwargs["training"] = _as_bool(training)
        box.operation._clear_losses()
        result = box.operation(*args, **kwargs)
        for part in box.operation._flatten_layers():
            for loss in part._losses:
                self.add_loss(loss)
        box.operation._clear_losses()
        return result

    def _settle(self, tensors: list[Any], form: int) -> None:
        """Builds what is carried by a symbolic call, as Keras 3 does."""
        import keras

        specs = [
            keras.KerasTensor(
                tuple(tensor.shape), dtype=tensor.dtype.name, sparse=_is_sparse(tensor)
            )
            for tensor in tensors
        ]
        with tf.init_scope():
            if not self.operation.built:
                args, kwargs = fill(self.forms[form], specs)
                self.operation(*args, **kwargs)
        self._adopt()

    def _regularization(self) -> Any:
        """The sum of the penalties on the weights of what is carried."""
        total = tf.constant(0.0)
        for variable in self.operation.trainable_weights:
            regularizer = getattr(variable, "regularizer", None)
            if regularizer is not None:
                total += tf.cast(regularizer(variable), tf.float32)
        return total


def _named_variables(layer: Any) -> list[tuple[str, Any]]:
    """The variables under names that depend on the structure alone, and so survive copying."""
    found = []
    uses: dict[str, int] = {}
    seen: set[int] = set()
    for part in parts(layer):
        prefix = ""
        if part is not layer:
            kind = to_snake_case(type(part).__name__)
            number = uses[kind] = uses.get(kind, -1) + 1
            prefix = f"{kind}_{number}/" if number else f"{kind}/"
        for variable in own_variables(part):
            if id(variable) not in seen:
                seen.add(id(variable))
                found.append((prefix + variable.name, variable))
    return found


def to_snake_case(name: str) -> str:
    """``"LayerNorm"`` to ``"layer_norm"``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _is_sparse(tensor: Any) -> bool:
    return isinstance(tensor, tf.SparseTensor)


def _as_bool(training: Any) -> Any:
    if training is None or isinstance(training, bool):
        return training
    if tf.is_tensor(training):
        return training
    return bool(training)
