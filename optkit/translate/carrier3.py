"""Keras 3 layers that carry a tf_keras layer or a TensorFlow function and run it as it is."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from optkit.errors import ModelError
from optkit.runtime import tf_keras
from optkit.safety import is_plain_function
from optkit.translate.forms import fill
from optkit.translate.revive import revive_tf_keras, serialized_tf_keras
from optkit.translate.weights import ordered, parts

__all__ = ["TensorFlowFunction", "TfKerasLayer"]

_ONE_TENSOR = {"args": [{"tensor": 0}], "kwargs": {}}


@keras.saving.register_keras_serializable(package="optkit")
class TensorFlowFunction(keras.layers.Layer):  # type: ignore[misc]
    """Runs a function of TensorFlow's public interface inside a Keras 3 model.

    Args:
        symbol: Its name without the leading ``tf.``, such as ``"math.cumsum"``.
        forms: How it is called, one form for each way (see `optkit.translate.forms`).
        **kwargs: As for every layer.
    """

    def __init__(self, symbol: str, forms: list[dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.symbol = symbol
        self._plain_forms = _Plain(list(forms))
        self._function = _Plain(tensorflow_function(symbol))
        self._convert_input_args = False
        self.supports_masking = True  # masks end here without a warning, as in tf_keras

    @property
    def forms(self) -> list[dict[str, Any]]:
        """How it is called."""
        return list(self._plain_forms.value)

    @property
    def function(self) -> Any:
        """The function."""
        return self._function.value

    def build(self, *_: Any) -> None:
        """Nothing to build."""
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The configuration."""
        return {**super().get_config(), "symbol": self.symbol, "forms": self.forms}

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """No mask: a function of TensorFlow knows none."""
        return

    def call(self, inputs: Any, form: int = 0) -> Any:
        """Calls the function."""
        tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        args, kwargs = fill(self.forms[form], tensors)
        return self._function.value(*args, **kwargs)


class _Plain:
    """Keeps a value out of sight of Keras, which would wrap or track it."""

    def __init__(self, value: Any):
        self.value = value


#: Where functions of tensors live. What reads files or runs Python code is not among them.
_NAMESPACES = (
    "__operators__",
    "bitwise",
    "image",
    "linalg",
    "math",
    "nn",
    "random",
    "signal",
    "strings",
)
_FUNCTIONS = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_n",
        "argmax",
        "argmin",
        "argsort",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "batch_to_space",
        "bitcast",
        "boolean_mask",
        "broadcast_to",
        "cast",
        "clip_by_norm",
        "clip_by_value",
        "complex",
        "concat",
        "convert_to_tensor",
        "cos",
        "cosh",
        "cumsum",
        "depth_to_space",
        "divide",
        "einsum",
        "ensure_shape",
        "equal",
        "exp",
        "expand_dims",
        "extract_volume_patches",
        "eye",
        "fill",
        "floor",
        "gather",
        "gather_nd",
        "greater",
        "greater_equal",
        "identity",
        "is_nan",
        "less",
        "less_equal",
        "linspace",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "matmul",
        "maximum",
        "meshgrid",
        "minimum",
        "multiply",
        "negative",
        "norm",
        "not_equal",
        "one_hot",
        "ones",
        "ones_like",
        "pad",
        "pow",
        "range",
        "rank",
        "realdiv",
        "reduce_all",
        "reduce_any",
        "reduce_logsumexp",
        "reduce_max",
        "reduce_mean",
        "reduce_min",
        "reduce_prod",
        "reduce_sum",
        "repeat",
        "reshape",
        "reverse",
        "reverse_sequence",
        "roll",
        "round",
        "saturate_cast",
        "scatter_nd",
        "searchsorted",
        "sequence_mask",
        "shape",
        "sigmoid",
        "sign",
        "sin",
        "sinh",
        "size",
        "slice",
        "sort",
        "space_to_batch",
        "space_to_depth",
        "split",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "stop_gradient",
        "strided_slice",
        "subtract",
        "tan",
        "tanh",
        "tensordot",
        "tile",
        "transpose",
        "truediv",
        "unique",
        "unstack",
        "where",
        "zeros",
        "zeros_like",
    ]
)


def tensorflow_function(symbol: str) -> Any:
    """A function of TensorFlow by its public name.

    Raises:
        ModelError: If the name is not one of a function that computes tensors from tensors.
    """
    plain = symbol.removeprefix("tf.").removeprefix("compat.v1.").removeprefix("compat.v2.")
    space, _, leaf = plain.rpartition(".")
    if not (space in _NAMESPACES or (not space and leaf in _FUNCTIONS)):
        raise _not_among(symbol)
    if space == "__operators__":
        return _operator(leaf)
    found: Any = tf
    for part in plain.split("."):
        found = getattr(found, part, None)
    if not callable(found) or inspect.isclass(found):
        raise ModelError(f"TensorFlow {tf.__version__} has no function `tf.{plain}`.")
    # The namespaces hold more than that: seeds, generators, a sampler that reads a file.
    if not is_plain_function(plain):
        raise _not_among(symbol)
    return found


def _not_among(symbol: str) -> ModelError:
    return ModelError(
        f"`tf.{symbol}` is not among the functions of tensors that optkit runs by name."
    )


def _operator(leaf: str) -> Any:
    found = getattr(tf.__operators__, leaf, None)
    if found is None:
        raise ModelError(f"TensorFlow {tf.__version__} has no operator {leaf!r}.")
    return found


def _with_policy(config: dict[str, Any]) -> dict[str, Any]:
    policy = config.get("dtype")
    if isinstance(policy, dict):
        return {**config, "dtype": keras.dtype_policies.deserialize(policy)}
    return config


@keras.saving.register_keras_serializable(package="optkit")
class TfKerasLayer(keras.layers.Layer):  # type: ignore[misc]
    """Runs a tf_keras layer inside a Keras 3 model.

    Its weights are those of the layer that it carries.

    Args:
        layer: The tf_keras layer, or its serialized form.
        forms: How it is called, one form for each way (see `optkit.translate.forms`).
        frozen: Which of the layers inside it are not trained while the others are, by number.
        **kwargs: As for every layer.
    """

    def __init__(
        self,
        layer: Any,
        forms: list[dict[str, Any]] | None = None,
        frozen: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(layer, dict):
            layer = revive_tf_keras(layer)
        kwargs.setdefault("autocast", False)
        trainable = kwargs.pop("trainable", None)
        super().__init__(**kwargs)
        self._box = _Plain(layer)
        self._plain_forms = _Plain(list(forms or [_ONE_TENSOR]))
        self._frozen = _Plain(list(frozen or ()))
        self._adopted = False
        self.supports_masking = True
        parameters = inspect.signature(layer.call).parameters
        self._takes_training = "training" in parameters
        self.trainable = layer.trainable if trainable is None else trainable

    @property
    def layer(self) -> Any:
        """What is carried."""
        return self._box.value

    @property
    def forms(self) -> list[dict[str, Any]]:
        """How it is called."""
        return list(self._plain_forms.value)

    def get_config(self) -> dict[str, Any]:
        """The configuration; what is carried is in it as tf_keras serializes it."""
        return {
            **super().get_config(),
            "layer": serialized_tf_keras(self.layer),
            "forms": self.forms,
            "frozen": self._frozen_parts(),
        }

    def _frozen_parts(self) -> list[int]:
        if not (self._adopted and self.trainable):
            return list(self._frozen.value)
        return [n for n, part in enumerate(parts(self.layer)) if not part.trainable]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer of a configuration."""
        return cls(**_with_policy(config))

    def build(self, *_: Any) -> None:
        """Nothing: what is carried is built at its first call."""

    def _settle(self, tensors: list[Any], form: int) -> None:
        """Builds what is carried by a symbolic call, and tracks its variables."""
        if not self.layer.built or not self.layer._inbound_nodes:
            with tf.init_scope():
                specs = [
                    tf_keras().Input(
                        batch_shape=tuple(t.shape),
                        dtype=t.dtype.name if hasattr(t.dtype, "name") else t.dtype,
                    )
                    for t in tensors
                ]
                args, kwargs = fill(self.forms[form], specs)
                self.layer(*args, **kwargs)
        self._adopt()

    def _adopt(self) -> None:
        if self._adopted:
            return
        locked = self._tracker.locked
        if locked:  # the first call comes after `build`, which knows no dtypes
            self._tracker.unlock()
        inside = parts(self.layer)
        learned = {id(variable) for part in inside for variable in part._trainable_weights}
        for variable in ordered(self.layer):
            wrapped = keras.Variable(
                variable,
                trainable=id(variable) in learned,
                dtype=variable.dtype.name,
                name=variable.name.partition(":")[0].rpartition("/")[2],
            )
            self._track_variable(wrapped)
        if locked:
            self._tracker.lock()
        self._adopted = True
        if self.trainable:
            for number in self._frozen.value:
                if inside[number].trainable:
                    inside[number].trainable = False
        self.follow_flags()

    def follow_flags(self) -> None:
        """Trains what the layer inside would train: parts of it may be frozen by themselves."""
        trained = {id(variable) for variable in self.layer.trainable_weights}
        for wrapped in self._trainable_variables:
            wrapped.trainable = id(wrapped.value) in trained

    @property
    def trainable(self) -> bool:
        """Whether its weights are trained."""
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        box = getattr(self, "_box", None)  # set by the base class before there is one
        if box is not None:
            # Set again, as copying does, it must not touch what inside is frozen by itself.
            if box.value.trainable != value:
                box.value.trainable = value
            self.follow_flags()

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables in an order that does not depend on what is frozen."""
        for number, variable in enumerate(ordered(self.layer)):
            store[str(number)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote."""
        for number, variable in enumerate(ordered(self.layer)):
            variable.assign(store[str(number)][()])

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask that the layer hands on, if it does."""
        if not self.layer.supports_masking:
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, inputs: Any, form: int = 0, training: Any = None) -> Any:
        """The shapes and dtypes of the outputs."""
        tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        self._settle(tensors, form)
        specs = [
            tf_keras().Input(
                batch_shape=tuple(t.shape), dtype=keras.backend.standardize_dtype(t.dtype)
            )
            for t in tensors
        ]
        args, kwargs = fill(self.forms[form], specs)
        result = self.layer(*args, **kwargs)
        return tf.nest.map_structure(
            lambda t: keras.KerasTensor(tuple(t.shape), dtype=t.dtype.name), result
        )

    def call(self, inputs: Any, form: int = 0, training: Any = None) -> Any:
        """Runs what is carried."""
        tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if not self._adopted:
            self._settle(tensors, form)
        args, kwargs = fill(self.forms[form], tensors)
        if self._takes_training and "training" not in kwargs:
            kwargs["training"] = training
        result = self.layer(*args, **kwargs)
        for loss in self.layer.losses:
            self.add_loss(loss)
        return result
