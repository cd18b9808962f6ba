"""Which operators of a float file belong to which Keras layers."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from optkit.errors import PipelineError
from optkit.models import is_batch_norm, layers_by_path
from optkit.quantize.floatfile import FloatFile, Operation, layers_before

__all__ = ["MOVES", "groups", "heirs", "operations_of", "primary", "resolve"]

_NEAREST = 3

#: Operators that give the numbers that they get, in 8 bits as in float, or compute with shapes and
#: types alone.
# fmt: off
MOVES = frozenset({
    "CAST", "DEQUANTIZE", "EXPAND_DIMS", "FILL", "MAX_POOL_2D", "PACK", "PAD", "QUANTIZE",
    "RESHAPE", "SHAPE", "SLICE", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE", "UNPACK",
    "ZEROS_LIKE",
})
# fmt: on


def resolve(
    wanted: Iterable[Any],
    kinds: Mapping[str, str],
    nested: Collection[str] = (),
    model: str = "",
    *,
    argument: str = "keep_float",
) -> frozenset[str]:
    """The paths of layers that are meant.

    Args:
        wanted: Names of layers (exact), paths such as ``"backbone/conv"``, names of models within
            the model, or classes of layers and their names (``"Conv2D"``).
        kinds: The class of each layer, by path.
        nested: Names of the models within the model.
        model: Name of the model, for the error.
        argument: What the argument that names layers is called, for the error.

    Raises:
        PipelineError: For what is none of these, with the nearest names.
    """
    found: set[str] = set()
    for item in wanted:
        name = item if isinstance(item, str) else item.__name__
        paths = {path for path in kinds if name in (path, path.rpartition("/")[2])}
        paths |= {path for path, kind in kinds.items() if kind == name}
        paths |= {path for path in kinds if path.startswith(f"{name}/")}
        if not paths and name not in nested:
            known = [*kinds, *sorted(set(kinds.values()))]
            near = difflib.get_close_matches(name, known, _NEAREST, 0.4)
            hint = f"The nearest are {', '.join(near)}." if near else "None is like it."
            raise PipelineError(
                f"`{argument}` names {name!r}, and model {model!r} has no layer and no kind of "
                f"layer of that name. {hint} `[layer.name for layer in model.layers]` lists the "
                "names."
            )
        found |= paths
    return frozenset(found)


def operations_of(file: FloatFile, paths: Collection[str]) -> frozenset[int]:
    """The operators that layers went into, alone or fused with others."""
    wanted = set(paths)
    return frozenset(item.index for item in file.operations if wanted.intersection(item.layers))


def primary(operation: Operation, file: FloatFile) -> str:
    """The layer that an operator is listed under: the one with the weights, else the last one.

    Args:
        operation: The operator.
        file: The float file that it is in.
    """
    if not operation.layers:
        return f"({operation.kind.lower()})"
    if not operation.weights:
        return operation.layers[0]
    # A padding may have gone into what it pads for, a batch norm into the weights before it.
    own = [path for path in operation.layers if path in file.weighted]
    kernels = [path for path in own if file.kinds.get(path) != "BatchNormalization"]
    return (kernels or own or operation.layers)[-1]


def groups(file: FloatFile) -> dict[str, frozenset[int]]:
    """The operators on floats by the layer that they are listed under, in the file's order."""
    floats = file.float_tensors
    found: dict[str, set[int]] = {}
    for item in file.operations:
        if floats.intersection((*item.inputs, *item.outputs)):
            found.setdefault(primary(item, file), set()).add(item.index)
    return {name: frozenset(indices) for name, indices in found.items()}


def heirs(path: str, source: Any, model: Any, renamed: Mapping[str, str]) -> list[str]:
    """The layers that a repair worked a layer into: the nearest ones whose weights it changed.

    Args:
        path: The layer in the model that came in.
        source: The model that came in.
        model: The repaired model.
        renamed: The names in the repaired model of layers that are called otherwise there.
    """
    before = layers_before(source)
    behind: dict[str, list[str]] = {}
    for taker, sources in before.items():
        for name in sources:
            behind.setdefault(name, []).append(taker)
    old, new = layers_by_path(source), layers_by_path(model)
    if path not in before or renamed.get(path, path) in new:
        return []

    def changed(name: str) -> bool:
        fresh = new.get(renamed.get(name, name))
        if fresh is None:
            return False
        pair = old[name].get_weights(), fresh.get_weights()
        return len(pair[0]) != len(pair[1]) or not all(map(np.array_equal, *pair))

    found = []
    for ways in (before, behind):
        waiting, seen = list(ways.get(path, ())), {path}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if old[name].weights and not is_batch_norm(old[name]):
                found += [name] if changed(name) else []
            else:
                waiting += ways.get(name, ())
    return found
