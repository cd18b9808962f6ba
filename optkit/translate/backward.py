"""A tf_keras model as a Keras 3 model: the same graph, layer by layer."""

from __future__ import annotations

import inspect
from typing import Any

from optkit.errors import ModelError
from optkit.runtime import keras as keras3
from optkit.runtime import tensorflow, tf_keras
from optkit.translate.forms import UnknownValueError, fill, form_of
from optkit.translate.native import NATIVE, arguments, policy_name
from optkit.translate.objects import convert_object
from optkit.translate.registry import pair_of
from optkit.translate.weights import nodes_of, settle

__all__ = ["Backward"]


class _NotNativeError(Exception):
    """The Keras 3 class would not do the same."""


class Backward:
    """One translation from tf_keras to Keras 3. What is shared stays shared within it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._done: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._pending: list[tuple[Any, Any, Any, bool]] = []

    def model(self, model: Any, place: str = "") -> Any:
        """Translates a Sequential or functional model, without its compile state."""
        if id(model) in self._done:
            return self._done[id(model)]
        _check_graph(model)
        nodes = nodes_of(model)
        self._prepare(nodes, place)
        if self.problems:
            return None
        try:
            if isinstance(model, tf_keras().Sequential) and _is_plain_chain(model, nodes):
                result = self._sequential(model)
            else:
                result = self._functional(model, nodes)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"Model {(place or model.name).rstrip('/')!r} cannot be translated to Keras 3: "
                f"{type(error).__name__}: {error}"
            ) from error
        return self._keep(model, result)

    def _keep(self, source: Any, result: Any) -> Any:
        self._done[id(source)] = result
        self._kept.append(source)
        return result

    def _problem(self, place: str, layer: Any, reason: str) -> None:
        self.problems.append(f"{place}{layer.name} ({type(layer).__name__}): {reason}")

    def _prepare(self, nodes: list[Any], place: str) -> None:
        calls: dict[int, list[Any]] = {}
        for node in nodes:
            calls.setdefault(id(node.layer), []).append(node)
        for group in calls.values():
            layer = group[0].layer
            if id(layer) not in self._done and not _is_input(layer):
                self.operation(layer, group, place)

    def lone_layer(self, layer: Any) -> Any:
        """Translates a layer that stands in no model; where it is built, its weights, too."""
        result = self.operation(layer, [], "")
        if result is None or not layer.built or not layer.weights:
            return result
        shape = getattr(layer, "_build_input_shape", None)
        if shape is not None and not result.built:
            result.build(tuple(shape))
        settle(self._pending)
        return result

    def operation(self, layer: Any, nodes: list[Any], place: str) -> Any:
        """Translates a layer or a model within the model."""
        if id(layer) in self._done:
            return self._done[id(layer)]
        if isinstance(layer, tf_keras().Model) and getattr(layer, "_is_graph_network", False):
            result = self.model(layer, f"{place}{layer.name}/")
        else:
            result = self._layer(layer, nodes, place)
        return self._keep(layer, result)

    def _layer(self, layer: Any, nodes: list[Any], place: str) -> Any:
        kind = type(layer).__name__
        if kind == "KerasOperation" and type(layer).__module__ == "optkit.translate.carrier2":
            return self._unwrapped(layer)
        if kind in (
            "TFOpLambda",
            "SlicingOpLambda",
            "ClassMethod",
            "InstanceMethod",
            "InstanceProperty",
        ):
            return self._function(layer, nodes, place)
        pair = pair_of(type(layer))
        if pair is not None:
            return self._registered(layer, pair, place)
        try:
            return self._native(layer, nodes, place)
        except _NotNativeError:
            return self._carry(layer, nodes, place)

    def _unwrapped(self, layer: Any) -> Any:
        from optkit.translate.revive import revive, serialized

        copy = revive(serialized(layer.operation))
        if hasattr(copy, "trainable"):
            self._pending.append((layer, copy, None, True))
        return copy

    def _registered(self, layer: Any, pair: Any, place: str) -> Any:
        config = dict(layer.get_config())
        if "dtype" in config:
            config["dtype"] = policy_name(config["dtype"])
        if "name" in config:
            config["name"] = _plain_name(config["name"])
        config.pop("batch_input_shape", None)
        if pair.to_keras3 is not None:
            config = pair.to_keras3(config)
        try:
            result = pair.keras3.from_config(config)
        except Exception as error:
            self._problem(
                place,
                layer,
                f"{pair.keras3.__name__}.from_config() failed on its configuration ({error}); "
                "give `register_layer` a `to_keras3` that translates the configuration",
            )
            return None
        self._pending.append((layer, result, pair.weights_to_keras3, True))
        return result

    def _native(self, layer: Any, nodes: list[Any], place: str) -> Any:
        keras, legacy = keras3(), tf_keras()
        name = type(layer).__name__
        if name not in NATIVE or getattr(legacy.layers, name, None) is not type(layer):
            if type(layer) is legacy.layers.Lambda:
                return self._lambda(layer)
            raise _NotNativeError
        from optkit.translate import special

        special.check(layer, nodes, forward=False, refuse=_NotNativeError)
        config = special.config(layer, forward=False)
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

        target = getattr(keras.layers, name)
        given = arguments(name, config, target, forward=False, convert=convert)
        if given is None:
            raise _NotNativeError
        if "name" in given:
            given["name"] = _plain_name(given["name"])
        result = target(**given)
        self._pending.append((layer, result, None, False))
        return result

    def _inner(self, layer: Any, place: str) -> Any:
        if isinstance(layer, tf_keras().Model) and getattr(layer, "_is_graph_network", False):
            result = self.model(layer, f"{place}{layer.name}/")
        elif hasattr(layer, "state_size") and not isinstance(layer, tf_keras().layers.RNN):
            pair = pair_of(type(layer))
            result = (
                self._registered(layer, pair, place) if pair else self._native(layer, [], place)
            )
        else:
            result = self._layer(layer, [], place)
        if result is None or (hasattr(layer, "go_backwards") and hasattr(result, "forms")):
            raise _NotNativeError  # a bidirectional layer asks its layers for more than to run
        return result

    def _value(self, layer: Any, key: str, value: Any) -> Any:
        legacy = tf_keras()

        def refuse(_: Any) -> Any:
            raise _NotNativeError

        if key.endswith("activation"):
            alive = getattr(layer, key, None)
            function = alive if callable(alive) else legacy.activations.get(value)
            return convert_object(function, forward=False, layer=refuse)
        for ending in ("initializer", "regularizer", "constraint"):
            if key.endswith(ending) and value is not None:
                found = getattr(legacy, f"{ending}s").get(value)
                return convert_object(found, forward=False, layer=refuse)
        if isinstance(value, dict) and "class_name" in value:
            raise _NotNativeError
        return value

    def _lambda(self, layer: Any) -> Any:
        return keras3().layers.Lambda(
            layer.function,
            name=_plain_name(layer.name),
            mask=layer.mask,
            arguments=dict(layer.arguments),
            dtype=policy_name(layer.dtype_policy),
        )

    def _forms(self, layer: Any, nodes: list[Any], place: str) -> list[dict[str, Any]] | None:
        forms: list[dict[str, Any]] = []
        for node in nodes:
            try:
                form, _ = _form(node)
            except UnknownValueError as error:
                self._problem(
                    place,
                    layer,
                    f"it is called with a value of type {error}, which cannot be kept; pass "
                    "arrays and plain values",
                )
                return None
            if form not in forms:
                forms.append(form)
        return forms

    def _function(self, layer: Any, nodes: list[Any], place: str) -> Any:
        from optkit.translate.carrier3 import TensorFlowFunction

        forms = self._forms(layer, nodes, place)
        if forms is None:
            return None
        slicing = type(layer).__name__ == "SlicingOpLambda"
        symbol = "__operators__.getitem" if slicing else getattr(layer, "symbol", None)
        if symbol is None:
            self._problem(
                place,
                layer,
                "it is a method or property of a tensor; use a function of TensorFlow, or put it "
                "into a layer of your own",
            )
            return None
        try:
            return TensorFlowFunction(symbol, forms, name=_plain_name(layer.name))
        except ModelError as error:
            self._problem(place, layer, f"{error} Put it into a layer of your own")
            return None

    def _carry(self, layer: Any, nodes: list[Any], place: str) -> Any:
        from optkit.translate.carrier3 import TfKerasLayer
        from optkit.translate.revive import revive_tf_keras, serialized_tf_keras

        try:
            copy = revive_tf_keras(serialized_tf_keras(layer))
        except Exception as error:
            words = " ".join(str(error).split()) or repr(error)
            self._problem(
                place,
                layer,
                f"its configuration cannot be read back ({words[:200]}); implement "
                "`get_config()` so that `from_config()` rebuilds it, or pair it with a Keras 3 "
                "layer by `optkit.register_layer`",
            )
            return None
        forms = self._forms(layer, nodes, place)
        if forms is None:
            return None
        result = TfKerasLayer(copy, forms or None, name=_plain_name(layer.name))
        self._pending.append((layer, result, None, True))
        return result

    # -- wiring --------------------------------------------------------------------------------

    def _sequential(self, model: Any) -> Any:
        keras = keras3()
        layers = [self._done[id(layer)] for layer in model.layers]
        tensor = model.inputs[0]
        first = keras.Input(
            batch_shape=tuple(tensor.shape),
            dtype=tensor.dtype.name,
            name=_plain_name(model.input_names[0]),
            sparse=_is_sparse(tensor),
        )
        result = keras.Sequential([first, *layers], name=_plain_name(model.name))
        settle(self._pending)
        _flag(model, result)
        return result

    def _functional(self, model: Any, nodes: list[Any]) -> Any:
        keras = keras3()
        values: dict[int, Any] = {}

        def entry(tensor: Any) -> Any:
            values[id(tensor)] = keras.Input(
                batch_shape=tuple(tensor.shape),
                dtype=tensor.dtype.name,
                name=_plain_name(tensor.node.layer.name),
                sparse=_is_sparse(tensor),
            )
            return values[id(tensor)]

        inputs = _map(model._nested_inputs, entry)
        for node in nodes:
            if not node.is_input:
                self._call_node(node, values)
        outputs = _map(model._nested_outputs, lambda tensor: values[id(tensor)])
        result = keras.Model(inputs, outputs, name=_plain_name(model.name))
        settle(self._pending)
        _flag(model, result)
        return result

    def _call_node(self, node: Any, values: dict[int, Any]) -> None:
        layer = self._done[id(node.layer)]
        old = node.layer
        carrier = type(layer).__module__ == "optkit.translate.carrier3"
        if type(old).__name__ == "KerasOperation" and hasattr(old, "operation"):
            number = node.call_kwargs.get("form", 0)
            given = [values[id(tensor)] for tensor in _leaves(node.call_args[0])]
            args, kwargs = fill(old.forms[number], given)
            result = layer(*args, **kwargs)
        elif carrier:
            form, tensors = _form(node)
            given = [values[id(tensor)] for tensor in tensors]
            number = layer.forms.index(form)
            extra = {"form": number} if number else {}
            result = layer(given[0] if len(given) == 1 else given, **extra)
        else:

            def swap(item: Any) -> Any:
                return values[id(item)] if _is_symbolic(item) else item

            args = _map(list(node.call_args), swap)
            kwargs = {
                key: value
                for key, value in _map(dict(node.call_kwargs), swap).items()
                if not (key in ("training", "mask") and value is None)
            }
            if hasattr(old, "_num_constants") and args and isinstance(args[0], list | tuple):
                args, kwargs = _split_states(args, kwargs, old._num_constants or 0)
            result = layer(*args, **_known(layer, kwargs))
        flat = keras3().tree.flatten(result)
        for one, new in zip(tensorflow().nest.flatten(node.outputs), flat, strict=True):
            values[id(one)] = new
            self._kept.append(one)


def _check_graph(model: Any) -> None:
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"Model {model.name!r} ({type(model).__name__}) has no graph: it is subclassed or not "
            "built. Build it with the functional API (`tf_keras.Model(inputs, outputs)`), or give "
            "a Sequential model an `Input`."
        )


def _is_plain_chain(model: Any, nodes: list[Any]) -> bool:
    if len(model.inputs) != 1 or len(model.outputs) != 1 or not model.layers:
        return False
    return not any(
        type(node.layer).__name__ == "KerasOperation"
        and (node.layer.forms != [{"args": [{"tensor": 0}], "kwargs": {}}])
        for node in nodes
    ) and all(
        isinstance(layer, tf_keras().layers.Layer) and layer.name == _plain_name(layer.name)
        for layer in model.layers
    )


def _is_input(layer: Any) -> bool:
    return isinstance(layer, tf_keras().layers.InputLayer)


def _is_symbolic(value: Any) -> bool:
    return (
        bool(tf_keras().backend.is_keras_tensor(value))
        if tensorflow().is_tensor(value) or hasattr(value, "_keras_history")
        else False
    )


def _is_sparse(tensor: Any) -> bool:
    return "Sparse" in type(tensor).__name__


def _form(node: Any) -> tuple[dict[str, Any], list[Any]]:
    kwargs = {
        key: value
        for key, value in node.call_kwargs.items()
        if not (key in ("training", "mask") and value is None)
    }
    if type(node.layer).__name__ in ("TFOpLambda", "SlicingOpLambda", "ClassMethod"):
        kwargs.pop("name", None)
    args = list(node.call_args)
    if type(node.layer).__name__ == "SlicingOpLambda":
        args = [_slices(value) for value in args]
    return form_of(args, kwargs, _is_symbolic)


def _slices(value: Any) -> Any:
    """tf_keras notes a slice as a dict."""
    if isinstance(value, dict) and set(value) == {"start", "stop", "step"}:
        return slice(value["start"], value["stop"], value["step"])
    if isinstance(value, list | tuple):
        return type(value)(_slices(item) for item in value)
    return value


def _split_states(args: Any, kwargs: Any, constants: int) -> tuple[Any, Any]:
    """A recurrent layer of tf_keras notes its initial states behind its input, in one list."""
    first, *states = args[0]
    if constants:
        kwargs["constants"] = states[-constants:]
        states = states[:-constants]
    if states:
        kwargs["initial_state"] = states if len(states) > 1 else states[0]
    return [first, *args[1:]], kwargs


def _plain_name(name: str) -> str:
    """A name as Keras 3 takes it: a slash stands for a path there, and cannot be in a name."""
    return name.replace("/", "_")


def _map(value: Any, function: Any) -> Any:
    return tensorflow().nest.map_structure(function, value)


def _leaves(value: Any) -> list[Any]:
    return list(tensorflow().nest.flatten(value))


def _known(layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(layer.call).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in names.values())
    return {
        key: value
        for key, value in kwargs.items()
        if key in names or open_ended or not (value is None or value is False)
    }


def _flag(source: Any, target: Any) -> None:
    if not source.trainable and not any(layer.trainable for layer in source.layers):
        target.trainable = False
