"""Weights and `trainable` flags from a layer of one Keras to its translation in the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.errors import ModelError

__all__ = [
    "children",
    "copy_flags",
    "copy_weights",
    "nodes_of",
    "ordered",
    "own_variables",
    "parts",
    "settle",
]


def nodes_of(graph: Any) -> list[Any]:
    """The nodes of a functional graph of either Keras, from the inputs on."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def settle(pending: list[Any]) -> None:
    """Copies weights and flags of the layers that are built by now, and takes them off the list.

    Args:
        pending: A layer, its translation, what translates its arrays, and whether models within it
            count, of each that waits. Changed in place.
    """
    for entry in list(pending):
        source, target, translate, models = entry
        if target.built and source.built:
            copy_weights(source, target, translate, models=models)
            copy_flags(source, target, models=models)
            pending.remove(entry)


def copy_weights(source: Any, target: Any, translate: Any = None, *, models: bool = True) -> None:
    """Copies the weights of a built layer to its built translation.

    Args:
        source: The layer.
        target: Its translation.
        translate: From the arrays of the one to those of the other, where they differ.
        models: Whether those of models within the layer, too; not, if these were translated by
            themselves.

    Raises:
        ModelError: If the translation has other weights.
    """
    old, new = ordered(source, models=models), ordered(target, models=models)
    values = [np.asarray(variable.numpy()) for variable in old]
    if translate is not None:
        values = [np.asarray(value) for value in translate(values)]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in new]:
        raise ModelError(
            f"Layer {source.name!r} ({type(source).__name__}) has weights of the shapes "
            f"{[value.shape for value in values]}; its translation {type(target).__name__} has "
            f"{[tuple(variable.shape) for variable in new]}. For layers of your own give "
            "`register_layer` functions that translate the weights."
        )
    for value, variable in zip(values, new, strict=True):
        variable.assign(value)
    if hasattr(target, "finalize_state") and values:
        target.finalize_state()


def ordered(layer: Any, *, models: bool = True) -> list[Any]:
    """The weights of a layer, each once, part by part, whatever is frozen.

    The seeds of random generators are not among them, nor, without ``models``, the weights of
    models within the layer.
    """
    carried = _carried(layer)
    if carried is not layer:
        return ordered(carried, models=models)
    seen: set[int] = set()
    found = []
    for part in parts(layer, models=models):
        for variable in own_variables(part):
            if id(variable) not in seen and not _is_bookkeeping(variable):
                seen.add(id(variable))
                found.append(variable)
    return found


def own_variables(part: Any) -> list[Any]:
    """The variables of a layer itself, those of layers inside it not."""
    trained = getattr(part, "_trainable_variables", None)
    if trained is None:
        return [*part._trainable_weights, *part._non_trainable_weights]
    return [*trained, *part._non_trainable_variables]


def _carried(layer: Any) -> Any:
    """What one of optkit's carriers carries; any other layer itself."""
    kind = type(layer)
    if kind.__module__ in ("optkit.translate.carrier2", "optkit.translate.carrier3"):
        return getattr(layer, "operation", None) or getattr(layer, "layer", layer)
    return layer


def _is_bookkeeping(variable: Any) -> bool:
    """Seeds of random generators, and the weights of words, which come with the vocabulary."""
    shape = variable.shape
    unknown = None in shape if isinstance(shape, tuple) else not shape.is_fully_defined()
    return unknown or variable.name.startswith("seed_generator_state")


def parts(layer: Any, *, models: bool = True) -> list[Any]:
    """The layer, and the layers inside it in the order in which it got them."""
    found: list[Any] = []

    def visit(part: Any) -> None:
        if any(part is known for known in found):
            return
        found.append(part)
        for child in children(part):
            if models or not _has_graph(child):
                visit(child)

    visit(layer)
    return found


def children(layer: Any) -> list[Any]:
    """The layers directly inside a layer."""
    if hasattr(layer, "_layers"):  # Keras 3
        return list(layer._layers)
    return list(layer._flatten_layers(recursive=False, include_self=False))


def _has_graph(layer: Any) -> bool:
    return any(base.__name__ in ("Functional", "Sequential") for base in type(layer).__mro__)


def copy_flags(source: Any, target: Any, *, models: bool = True) -> None:
    """Freezes in the translation what is frozen in the layer."""
    if _carried(target) is not target and not source.trainable:
        target.trainable = False
    inside, others = parts(_carried(source), models=models), parts(_carried(target), models=models)
    if len(inside) != len(others):
        target.trainable = source.trainable
        return
    for old, new in zip(inside, others, strict=True):
        if new.trainable != old.trainable:  # setting it goes down to all inside
            new.trainable = old.trainable
    if hasattr(target, "follow_flags"):
        target.follow_flags()
