"""Weights and `trainable` flags from a layer of one Keras to its translation in the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.errors import ModelError

__all__ = ["copy_flags", "copy_weights", "ordered", "parts_fit"]


def copy_weights(source: Any, target: Any, *, forward: bool, translate: Any = None) -> None:
    """Copies the weights of a built layer to its built translation.

    Raises:
        ModelError: If the translation has other weights.
    """
    old, new = ordered(source), ordered(target)
    values = [np.asarray(_array(variable)) for variable in old]
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


def _array(variable: Any) -> Any:
    return variable.numpy()


def ordered(layer: Any) -> list[Any]:
    """The weights of a layer, each once, part by part, whatever is frozen.

    The seeds of random generators and the counters of lookup tables are not among them.
    """
    if hasattr(layer, "operation"):
        from optkit.translate.carrier2 import sorted_by_layer

        return [variable.value for variable in sorted_by_layer(layer.operation)]
    seen: set[int] = set()
    found = []
    for part in layer._flatten_layers():
        trained = getattr(part, "_trainable_variables", None)
        if trained is None:
            own = [*part._trainable_weights, *part._non_trainable_weights]
        else:
            own = [*trained, *part._non_trainable_variables]
        for variable in own:
            if id(variable) not in seen and not variable.name.startswith("seed_generator_state"):
                seen.add(id(variable))
                found.append(variable)
    return found


def parts_fit(source: Any, target: Any) -> bool:
    """Whether both have weights of the same shapes in the same order."""
    shapes = [[tuple(v.shape) for v in ordered(layer)] for layer in (source, target)]
    return shapes[0] == shapes[1]


def copy_flags(source: Any, target: Any, *, forward: bool) -> None:
    """Freezes in the translation what is frozen in the layer."""
    if hasattr(target, "operation"):
        if not source.trainable:
            target.trainable = False
        for old, new in zip(_inside(source), _inside(target.operation), strict=True):
            if not old.trainable and new.trainable:
                new.trainable = False
        return
    parts, others = [source, *_inside(source)], [target, *_inside(target)]
    if len(parts) != len(others):
        target.trainable = source.trainable
        return
    for old, new in zip(parts, others, strict=True):
        new.trainable = old.trainable


def _inside(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(include_self=False))
