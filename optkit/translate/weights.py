"""Weights and `trainable` flags from a layer of one Keras to its translation in the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.errors import ModelError

__all__ = ["copy_flags", "copy_weights", "ordered"]


def copy_weights(source: Any, target: Any, translate: Any = None) -> None:
    """Copies the weights of a built layer to its built translation.

    Raises:
        ModelError: If the translation has other weights.
    """
    old, new = ordered(source), ordered(target)
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


def ordered(layer: Any) -> list[Any]:
    """The weights of a layer, each once, part by part, whatever is frozen.

    The seeds of random generators are not among them, nor are the weights of models within the
    layer: those have their own graph, and are copied with it.
    """
    carried = _carried(layer)
    if carried is not layer:
        return ordered(carried)
    seen: set[int] = set()
    found = []
    for part in _parts(layer):
        trained = getattr(part, "_trainable_variables", None)
        if trained is None:
            own = [*part._trainable_weights, *part._non_trainable_weights]
        else:
            own = [*trained, *part._non_trainable_variables]
        for variable in own:
            if id(variable) not in seen and not _is_bookkeeping(variable):
                seen.add(id(variable))
                found.append(variable)
    return found


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


def _parts(layer: Any) -> list[Any]:
    """The layer, and the layers inside it in the order in which it got them."""
    found: list[Any] = []

    def visit(part: Any) -> None:
        if any(part is known for known in found):
            return
        found.append(part)
        for child in children(part):
            if not _has_graph(child):
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


def copy_flags(source: Any, target: Any) -> None:
    """Freezes in the translation what is frozen in the layer."""
    if _carried(target) is not target and not source.trainable:
        target.trainable = False
    parts, others = _parts(_carried(source)), _parts(_carried(target))
    if len(parts) != len(others):
        target.trainable = source.trainable
        return
    for old, new in zip(parts, others, strict=True):
        if new.trainable != old.trainable:  # setting it goes down to all inside
            new.trainable = old.trainable
