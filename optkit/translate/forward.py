"""A Keras 3 model as a tf_keras model: the same graph, layer by layer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from optkit.errors import ModelError
from optkit.runtime import keras as keras3
from optkit.runtime import tensorflow, tf_keras
from optkit.translate.forms import UnknownValueError, fill, form_of
from optkit.translate.native import NATIVE, arguments, policy_name
from optkit.translate.objects import convert_object
from optkit.translate.registry import pair_of
from optkit.translate.weights import nodes_of, settle

__all__ = ["Forward"]


_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.>-]*")
_OTHER_NAME = (
    "TensorFlow takes names that start with a letter or digit and go on with letters, digits and "
    "`_.-`; rename it (`layer.name = …`)"
)


def _needs_other_name(operation: Any) -> bool:
    return _SCOPE_NAME.fullmatch(operation.name) is None


class _NotNativeError(Exception):
    """The tf_keras class would not do the same."""


class Forward:
    """One translation from Keras 3 to tf_keras. What is shared stays shared within it."""

    def __init__(self) -> None:
        keras = keras3()
        backend = keras.backend.backend()
        if backend != "tensorflow":
            raise ModelError(
                f"Keras runs on {backend!r} in this process, and optkit works on TensorFlow. Set "
                "the environment variable KERAS_BACKEND=tensorflow before Keras is imported; a "
                "model that was made with another backend can be saved as a `.keras` file there "
                "and loaded in a process with this one."
            )
        self.problems: list[str] = []
        self._done: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no identity is given out twice
        self._pending: list[tuple[Any, Any, Any, bool]] = []

    # -- what a model consists of --------------------------------------------------------------

    def model(self, model: Any, place: str = "") -> Any:
        """Translates a Sequential or functional model, without its compile state."""
        if id(model) in self._done:
            return self._done[id(model)]
        keras, legacy = keras3(), tf_keras()
        graph = graph_of(model)
        nodes = nodes_of(graph)
        self._prepare(nodes, place)
        if self.problems:
            return None
        sequential = isinstance(model, keras.Sequential) and _is_plain_chain(model)
        with _wiring(place or model.name):
            if sequential:
                result = self._sequential(model, legacy)
            else:
                result = self._functional(model, graph, nodes, legacy)
        self._keep(model, result)
        return result

    def _keep(self, source: Any, result: Any) -> Any:
        self._done[id(source)] = result
        self._kept.append(source)
        return result

    def _prepare(self, nodes: list[Any], place: str) -> None:
        """Translates every operation, so that all that cannot be is found at once."""
        calls: dict[int, list[Any]] = {}
        for node in nodes:
            calls.setdefault(id(node.operation), []).append(node)
        for group in calls.values():
            operation = group[0].operation
            if id(operation) in self._done or _is_input(operation):
                if _needs_other_name(operation):
                    self._problem(place, operation, _OTHER_NAME)
                if _is_input(operation) and getattr(operation, "optional", False):
                    self._problem(
                        place,
                        operation,
                        "tf_keras has no optional inputs; build the model with an input for every "
                        "tensor that it takes",
                    )
                continue
            result = self.operation(operation, group, place)
            if _needs_other_name(operation) and type(result).__name__ != "KerasOperation":
                self._problem(place, operation, _OTHER_NAME)

    def _problem(self, place: str, operation: Any, reason: str) -> None:
        self.problems.append(f"{place}{operation.name} ({type(operation).__name__}): {reason}")

    # -- one operation -------------------------------------------------------------------------

    def operation(self, operation: Any, nodes: list[Any], place: str) -> Any:
        """Translates a layer, a model within the model or an operation of ``keras.ops``."""
        if id(operation) in self._done:
            return self._done[id(operation)]
        keras = keras3()
        result = None
        if isinstance(operation, keras.Model) and has_graph(operation):
            result = self.model(operation, f"{place}{operation.name}/")
        elif isinstance(operation, keras.layers.Layer):
            result = self._layer(operation, nodes, place)
        else:
            result = self._carry(operation, nodes, place)
        return self._keep(operation, result)

    def _layer(self, layer: Any, nodes: list[Any], place: str) -> Any:
        pair = pair_of(type(layer))
        if pair is not None:
            return self._registered(layer, pair, place)
        carried = self._unwrapped(layer)
        if carried is not None:
            return carried
        try:
            return self._native(layer, nodes, place)
        except _NotNativeError:
            return self._carry(layer, nodes, place)

    def _registered(self, layer: Any, pair: Any, place: str) -> Any:
        config = dict(layer.get_config())
        if "dtype" in config:
            config["dtype"] = policy_name(config["dtype"])
        if pair.to_tf_keras is not None:
            config = pair.to_tf_keras(config)
        try:
            result = pair.tf_keras.from_config(config)
        except Exception as error:
            self._problem(
                place,
                layer,
                f"{pair.tf_keras.__name__}.from_config() failed on its configuration ({error}); "
                "give `register_layer` a `to_tf_keras` that translates the configuration",
            )
            return None
        return self._later(layer, result, pair.weights_to_tf_keras)

    def _later(
        self, source: Any, result: Any, translate: Any = None, *, models: bool = True
    ) -> Any:
        """Notes that the weights are to be copied once the layer is built."""
        self._pending.append((source, result, translate, models))
        return result

    def _unwrapped(self, layer: Any) -> Any:
        """The tf_keras layer that a Keras 3 layer of optkit's carries, if it is one."""
        if not _is_carrier3(layer):
            return None
        if type(layer).__name__ == "TensorFlowFunction":
            from tf_keras.src.layers.core import tf_op_layer

            slicing = layer.symbol == "__operators__.getitem"
            kind = tf_op_layer.SlicingOpLambda if slicing else tf_op_layer.TFOpLambda
            return kind(layer.function, name=layer.name)
        from optkit.translate.revive import revive_tf_keras, serialized_tf_keras

        return self._later(layer, revive_tf_keras(serialized_tf_keras(layer.layer)))

    def _native(self, layer: Any, nodes: list[Any], place: str) -> Any:
        keras, legacy = keras3(), tf_keras()
        name = type(layer).__name__
        if name not in NATIVE or getattr(keras.layers, name, None) is not type(layer):
            if type(layer) is keras.layers.Lambda:
                return self._lambda(layer)
            raise _NotNativeError
        target = getattr(legacy.layers, name)
        from optkit.translate import special

        special.check(layer, nodes, forward=True, refuse=_NotNativeError)
        if not all(_understands(target, _call(node)[1]) for node in nodes):
            raise _NotNativeError
        config = special.config(layer, forward=True)
        inner = special.inner_layers(layer)

        def convert(key: str, value: Any) -> Any:
            if key in inner:
                parts = inner[key]
                made = [
                    self._inner(part, place)
                    for part in (parts if isinstance(parts, list) else [parts])
                ]
                return made if isinstance(parts, list) else made[0]
            return self._value(layer, key, value)

        given = arguments(name, config, target, forward=True, convert=convert)
        if given is None:
            raise _NotNativeError
        result = target(**special.amend(target, given))
        return self._later(layer, result, models=False)

    def _inner(self, layer: Any, place: str) -> Any:
        """A layer that another one wraps."""
        keras = keras3()
        if isinstance(layer, keras.Model) and has_graph(layer):
            result = self.model(layer, f"{place}{layer.name}/")
            if result is None:
                raise _NotNativeError
            return result
        if _is_cell(layer) and pair_of(type(layer)) is None:
            result = self._native(layer, [], place)  # a cell cannot be carried, so its RNN is
        else:
            result = self._layer(layer, [], place)
        if result is None or (hasattr(layer, "go_backwards") and hasattr(result, "operation")):
            raise _NotNativeError  # a bidirectional layer asks its layers for more than to run
        return result

    def _value(self, layer: Any, key: str, value: Any) -> Any:
        """A value of a configuration, as the object that it stands for."""
        if key.endswith("activation"):
            alive = getattr(layer, key, None)
            function = alive if callable(alive) else keras3().activations.get(value)
            return convert_object(function, forward=True, layer=self._activation_layer)
        kinds = {"initializer": "initializers", "regularizer": "regularizers"}
        kinds["constraint"] = "constraints"
        for ending, module in kinds.items():
            if key.endswith(ending) and value is not None:
                found = getattr(keras3(), module).get(value)
                return convert_object(found, forward=True, layer=self._activation_layer)
        if isinstance(value, dict) and "class_name" in value:
            raise _NotNativeError
        return value

    def _activation_layer(self, layer: Any) -> Any:
        raise _NotNativeError  # a layer as an activation has weights that tf_keras would not track

    def _lambda(self, layer: Any) -> Any:
        config = layer.get_config()
        given = {
            "name": config["name"],
            "trainable": config.get("trainable", True),
            "dtype": policy_name(config.get("dtype")),
            "function": layer.function,
            "arguments": dict(layer.arguments),
            "mask": layer.mask,
        }
        return tf_keras().layers.Lambda(**given)

    def _carry(self, operation: Any, nodes: list[Any], place: str) -> Any:
        from optkit.translate.carrier2 import KerasOperation
        from optkit.translate.revive import revive, serialized

        keras = keras3()
        try:
            copy = revive(serialized(operation))
        except ModelError as error:
            self._problem(place, operation, str(error))
            return None
        except Exception as error:
            self._problem(place, operation, _carry_reason(operation, error))
            return None
        forms: list[dict[str, Any]] = []
        for node in nodes:
            try:
                form, _ = self._form(node)
            except UnknownValueError as error:
                self._problem(
                    place,
                    operation,
                    f"it is called with a value of type {error}, which cannot be kept; pass "
                    "arrays and plain values",
                )
                return None
            if form not in forms:
                forms.append(form)
        settings: dict[str, Any] = {"name": operation.name}
        if isinstance(operation, keras.layers.Layer):
            settings["dtype"] = policy_name(operation.dtype_policy) or operation.compute_dtype
        result = KerasOperation(copy, forms or None, **settings)
        if isinstance(operation, keras.layers.Layer):
            self._later(operation, result)
        return result

    def _form(self, node: Any) -> tuple[dict[str, Any], list[Any]]:
        args, kwargs = _call(node)
        return form_of(args, kwargs, _is_symbolic)

    def lone_layer(self, layer: Any) -> Any:
        """Translates a layer that stands in no model; where it is built, its weights, too."""
        result = self.operation(layer, [], "")
        if result is None or not layer.built or not layer.weights:
            return result
        if hasattr(result, "operation"):
            result.operation.build_from_config(layer.get_build_config())
            result._adopt()
        else:
            stored = layer.get_build_config() or {}
            shape = stored.get("input_shape") or stored.get("shapes_dict")
            result.build(tuple(shape) if isinstance(shape, list | tuple) else shape)
        settle(self._pending)
        return result

    # -- wiring --------------------------------------------------------------------------------

    def _sequential(self, model: Any, legacy: Any) -> Any:
        first = model._layers[0]
        layers = [self._done[id(layer)] for layer in model.layers]
        result = legacy.Sequential([_input_layer(first, legacy), *layers], name=model.name)
        settle(self._pending)
        _flag(model, result)
        return result

    def _functional(self, model: Any, graph: Any, nodes: list[Any], legacy: Any) -> Any:
        values: dict[int, Any] = {}
        inputs = _map(graph._inputs_struct, lambda tensor: _input(tensor, legacy, values))

        def value_of(tensor: Any) -> Any:
            if id(tensor) not in values:
                history = tensor._keras_history
                self._call_node(
                    history.operation._inbound_nodes[history.node_index], value_of, values
                )
            return values[id(tensor)]

        for node in nodes:
            if not node.is_input and any(id(tensor) not in values for tensor in node.outputs):
                self._call_node(node, value_of, values)
        outputs = _map(graph._outputs_struct, value_of)
        result = legacy.Model(inputs, outputs, name=model.name)
        settle(self._pending)
        _flag(model, result)
        return result

    def _call_node(self, node: Any, value_of: Any, values: dict[int, Any]) -> None:
        from optkit.translate.carrier2 import KerasOperation

        operation = node.operation
        layer = self._done[id(operation)]
        if isinstance(layer, KerasOperation):
            form, tensors = self._form(node)
            given = [value_of(tensor) for tensor in tensors]
            number = layer.forms.index(form)
            extra = {"form": number} if number else {}
            result = layer(given[0] if len(given) == 1 else given, **extra)
        elif _is_carrier3(operation):
            tensors = [value_of(tensor) for tensor in node.input_tensors]
            number = node.arguments.kwargs.get("form", 0)
            filled, kwargs = fill(operation.forms[number], tensors)
            if type(layer).__name__ == "SlicingOpLambda":
                filled = [_without_slices(value) for value in filled]
            result = layer(*filled, **kwargs)
        else:
            args, kwargs = _call(node)

            def swap(item: Any) -> Any:
                return value_of(item) if _is_symbolic(item) else item

            args, kwargs = _map(list(args), swap), _map(dict(kwargs), swap)
            result = layer(*args, **_known(layer, kwargs))
        flat = tensorflow().nest.flatten(result)
        for old, new in zip(node.outputs, flat, strict=True):
            values[id(old)] = new
            self._kept.append(old)


def has_graph(model: Any) -> bool:
    """Whether a Keras 3 model is Sequential or functional, with no Python code of its own."""
    keras = keras3()
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    from keras.src.models.functional import Functional

    return isinstance(model, Functional) and type(model).call is Functional.call


def graph_of(model: Any) -> Any:
    """The functional graph of a Keras 3 model.

    Raises:
        ModelError: If it has none.
    """
    keras = keras3()
    if not has_graph(model):
        raise ModelError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): what it computes stands "
            "in Python code of its own. Build it with the functional API "
            "(`keras.Model(inputs, outputs)`) or as `Sequential`."
        )
    if not isinstance(model, keras.Sequential):
        return model
    if model._functional is None:
        raise ModelError(
            f"Sequential model {model.name!r} is not built, so its shapes are unknown. Give it a "
            "`keras.Input(shape=…)` as its first layer, or call "
            "`model.build(input_shape=(None, …))`."
        )
    return model._functional


def _is_plain_chain(model: Any) -> bool:
    """Whether a Sequential model passes one tensor from layer to layer."""
    tensors = [*model._functional.inputs, *model._functional.outputs]
    return len(tensors) == 2 and all(
        len(node.outputs) == 1 and len(node.input_tensors) == len(set(map(id, node.input_tensors)))
        for node in nodes_of(model._functional)
    )


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras3().layers.InputLayer)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras3().KerasTensor)


def _is_carrier3(layer: Any) -> bool:
    return type(layer).__module__ == "optkit.translate.carrier3"


def _without_slices(value: Any) -> Any:
    """A slice as tf_keras notes it in a graph: as a dict, which JSON can hold."""
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    if isinstance(value, list | tuple):
        return type(value)(_without_slices(item) for item in value)
    return value


def _is_cell(layer: Any) -> bool:
    return hasattr(layer, "state_size") and not isinstance(layer, keras3().layers.RNN)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_map(item, function) for item in value)
    return function(value)


def _call(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the caller gave; those that Keras 3 filled in by itself are left out."""
    operation = node.operation
    args, kwargs = tuple(node.arguments.args), dict(node.arguments.kwargs)
    if not isinstance(operation, keras3().layers.Layer):
        return args, kwargs
    parameters = inspect.signature(operation.call).parameters
    if "training" in kwargs:
        # Keras 3 notes the default, and lets the model's own `training` win over any value; only a
        # given False says what its guides promise: that the layer is not to be trained.
        default = parameters["training"].default if "training" in parameters else None
        if kwargs["training"] is not False or default is False:
            del kwargs["training"]
    implied = _implied_masks(args, kwargs, parameters)
    for name in [key for key in kwargs if key in implied and _same(kwargs[key], implied[key])]:
        del kwargs[name]
    return args, kwargs


def _implied_masks(args: Any, kwargs: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """The masks that Keras 3 takes from the tensors where none are given."""
    from keras.src.backend import get_keras_mask

    names = list(parameters)
    tensors = dict(zip(names, args, strict=False))
    tensors.update({key: value for key, value in kwargs.items() if not key.endswith("mask")})
    implied: dict[str, Any] = {}
    for key, value in tensors.items():
        if not any(_is_symbolic(item) for item in _leaves(value)):
            continue
        masks = _map(value, lambda item: get_keras_mask(item) if _is_symbolic(item) else None)
        implied.setdefault("mask", masks)
        implied[f"{key}_mask"] = masks
    return implied


def _same(one: Any, other: Any) -> bool:
    first, second = list(_leaves(one)), list(_leaves(other))
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _understands(target: type, kwargs: dict[str, Any]) -> bool:
    """Whether a tf_keras class takes what a Keras 3 layer is called with."""
    names = inspect.signature(target.call).parameters  # type: ignore[attr-defined]
    return all(
        key in names or key == "initial_state" or value is None or value is False
        for key, value in kwargs.items()
    )


def _known(layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without the arguments that say nothing and that a tf_keras layer may not have."""
    names = inspect.signature(layer.call).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in names.values())
    return {
        key: value
        for key, value in kwargs.items()
        if key in names
        or open_ended
        or key == "initial_state"
        or not (value is None or value is False)
    }


def _input(tensor: Any, legacy: Any, values: dict[int, Any]) -> Any:
    layer = tensor._keras_history.operation
    values[id(tensor)] = legacy.Input(
        batch_shape=tuple(tensor.shape),
        name=layer.name,
        dtype=tensor.dtype,
        sparse=bool(tensor.sparse),
        ragged=bool(getattr(tensor, "ragged", False)),
    )
    return values[id(tensor)]


def _input_layer(layer: Any, legacy: Any) -> Any:
    return legacy.layers.InputLayer(
        input_shape=tuple(layer.batch_shape[1:]),
        batch_size=layer.batch_shape[0],
        name=layer.name,
        dtype=layer.dtype,
        sparse=bool(layer.sparse),
    )


def _flag(source: Any, target: Any) -> None:
    """Sets the flag of the model alone: that of a model goes down to its layers, which have theirs."""
    if not source.trainable and any(layer.trainable for layer in target.layers):
        target._trainable = False
    elif not source.trainable:
        target.trainable = False


def _carry_reason(operation: Any, error: Exception) -> str:
    if not isinstance(operation, keras3().layers.Layer):
        return (
            "it runs Python code of yours, which no configuration can hold; put it into the "
            "`call()` of a layer of your own with a `get_config()`"
        )
    words = " ".join(str(error).split()) or repr(error)
    return (
        f"its configuration cannot be read back ({words[:200]}); implement `get_config()` "
        "so that `from_config()` rebuilds it, or pair it with a tf_keras layer by "
        "`optkit.register_layer`"
    )


class _wiring:  # noqa: N801
    """Turns what a layer of tf_keras says while the graph is built into an error with its place."""

    def __init__(self, place: str):
        self._place = place.rstrip("/")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or isinstance(error, ModelError) or not isinstance(error, Exception):
            return
        raise ModelError(
            f"Model {self._place!r} cannot be translated to tf_keras: "
            f"{type(error).__name__}: {error}"
        ) from error
