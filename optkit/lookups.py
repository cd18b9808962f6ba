"""Splitting a model into its lookups, which TFLite cannot run, and the rest.

Layers that turn strings or categories into numbers (`TextVectorization`, `StringLookup`, `Hashing`,
…) hold hash tables or string operators. What comes before them and they themselves make up the
front of a model, what comes after them its rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.errors import ModelError
from optkit.models import clone, flat_copy, is_graph, signature, walk_layers
from optkit.runtime import tensorflow, tf_keras

__all__ = ["Split", "lookup_layers", "split_lookups"]


@dataclass(frozen=True)
class Split:
    """A model in two parts.

    Attributes:
        front: From the inputs of the model to those of the rest. Inputs that need no lookup go
            through it unchanged.
        rest: From what the front gives to the outputs of the model; its inputs are called as the
            outputs of the front.
        layers: The names of the lookups.
    """

    front: Any
    rest: Any
    layers: tuple[str, ...]


def _is_lookup(layer: Any) -> bool:
    layers = tf_keras().layers
    kinds = (
        layers.TextVectorization,
        layers.StringLookup,
        layers.IntegerLookup,
        layers.Hashing,
        layers.HashedCrossing,
        layers.CategoryEncoding,
    )
    return any(isinstance(part, kinds) for part in layer._flatten_layers())


def lookup_layers(model: Any) -> tuple[str, ...]:
    """The names of the layers of a model that look up, hash or encode categories."""
    return tuple(layer.name for layer in walk_layers(model) if _is_lookup(layer))


def split_lookups(model: Any) -> Split | None:
    """Splits a model behind its lookups; the two parts are copies.

    Args:
        model: A built functional or Sequential tf_keras model.

    Returns:
        ``None`` for a model without lookups.

    Raises:
        ModelError: If nothing comes behind the lookups, or weights that can be trained come
            before them.
    """
    keras = tf_keras()
    names = lookup_layers(model)
    if not names:
        return None
    whole = clone(model)
    if any(_is_lookup(layer) and layer.trainable_weights for layer in _models(whole)):
        # Lookups and what is trained behind them are in one model within the model: open it.
        inputs = [
            keras.Input(info.shape[1:], name=info.name, dtype=info.dtype)
            for info in signature(model).inputs
        ]
        whole = keras.Model(inputs, _named(model, flat_copy(model, inputs)[0]), name=model.name)
    nodes = [
        node
        for depth in sorted(whole._nodes_by_depth, reverse=True)
        for node in whole._nodes_by_depth[depth]
        if not node.is_input
    ]
    makers = {id(tensor): node for node in nodes for tensor in _flat(node.outputs)}
    in_front: set[int] = set()

    def take(node: Any) -> None:
        if id(node) in in_front:
            return
        in_front.add(id(node))
        for tensor in node.keras_inputs:
            if id(tensor) in makers:
                take(makers[id(tensor)])

    for node in nodes:
        if _is_lookup(node.layer):
            take(node)
    trained = [n.layer.name for n in nodes if id(n) in in_front and n.layer.trainable_weights]
    behind = [node for node in nodes if id(node) not in in_front]
    if trained or not behind:
        problem = (
            f"come behind layers with weights ({', '.join(trained)})"
            if trained
            else "are all there is"
        )
        raise ModelError(
            f"Layers {', '.join(names)} of model {model.name!r} look up strings or categories, "
            f"which TFLite cannot, and {problem}: nothing can be split off. Take them out of the "
            "model and feed it their output."
        )
    border: dict[int, Any] = {}
    for tensor in (*(t for node in behind for t in node.keras_inputs), *whole.outputs):
        maker = makers.get(id(tensor))
        if maker is None or id(maker) in in_front:
            border.setdefault(id(tensor), tensor)
    front = keras.Model(whole.inputs, list(border.values()), name=f"{model.name}_front")
    described = signature(front).outputs
    inputs = [keras.Input(i.shape[1:], name=i.name, dtype=i.dtype) for i in described]
    rest = keras.Model(list(border.values()), _named(whole, whole.outputs), name=model.name)
    rest = clone(rest, inputs=inputs)
    return Split(front, rest, names)


def _named(model: Any, outputs: Any) -> Any:
    """Outputs in the form in which a model gives its own: a dict keeps its names."""
    nested = getattr(model, "_nested_outputs", None)
    if not isinstance(nested, dict):
        return outputs
    return tensorflow().nest.pack_sequence_as(nested, _flat(outputs))


def _models(model: Any) -> list[Any]:
    return [layer for layer in model.layers if is_graph(layer)]


def _flat(value: Any) -> list[Any]:
    return list(tensorflow().nest.flatten(value))
