"""Which layers to keep in float: each is tried by itself, then the best are taken together.

Each can also be looked at the other way round: quantized by itself, with all the others in float.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.flatbuffer import buffer_of, floats_of, packed, unpacked
from optkit.quantize.calibrate import Ranges
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.judge import Judge, Judgement
from optkit.quantize.variant import engine_of, quantize
from optkit.quantize.weights import ALWAYS_8, KERNELS, quantize_symmetric

__all__ = [
    "Found",
    "Make",
    "Rounded",
    "Scanned",
    "quantize_alone",
    "round_alone",
    "scan",
    "search",
]

#: Makes a file in which the operators of these indices stay float.
Make = Callable[[frozenset[int]], bytes]

_TRIED_AGAIN = 8  # candidates that are looked at again after each choice

#: Kernels by operator: where they stand among the inputs, and their axis of channels.
_PLACES = {**KERNELS, "GATHER": (0, 0)}


@dataclass(frozen=True)
class Scanned:
    """What it gives to treat one layer other than the rest.

    Attributes:
        layer: Path of the layer.
        operations: Indices of its operators.
        judged: What the file is worth so.
    """

    layer: str
    operations: frozenset[int]
    judged: Judgement


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        kept: Layers that stay in float, in the order in which they were chosen.
        operations: Their operators.
        judged: What the file is worth with them in float.
        met: Whether the drop is within the budget.
        steps: What the file was worth after each choice.
        scanned: Each layer in float by itself, the one that helps most first.
        start: What the file was worth with all layers quantized.
    """

    kept: tuple[str, ...]
    operations: frozenset[int]
    judged: Judgement
    met: bool
    steps: tuple[Judgement, ...]
    scanned: tuple[Scanned, ...]
    start: Judgement


def scan(
    make: Make,
    judge: Judge,
    layers: Mapping[str, frozenset[int]],
    kept: frozenset[int] = frozenset(),
) -> tuple[Scanned, ...]:
    """Returns each layer to float by itself.

    Args:
        make: Makes the files.
        judge: Says what they are worth.
        layers: Operators by layer.
        kept: Operators that are in float besides.

    Returns:
        The layers, the one that helps most first.
    """
    found = [
        Scanned(layer, operations, judge(make(kept | operations)))
        for layer, operations in layers.items()
    ]
    # The metric moves in steps of one sample, so the error decides among equals.
    return tuple(sorted(found, key=lambda item: (judge.drop(item.judged), item.judged.error)))


def search(
    make: Make, judge: Judge, layers: Mapping[str, frozenset[int]], max_drop: float
) -> Found:
    """Returns layers to float, the one that helps most first, until the drop is within a budget.

    After each choice the best of the others are ranked anew, together with what was chosen. In the
    end those go back that later choices made needless.

    Args:
        make: Makes the files.
        judge: Says what they are worth.
        layers: Operators by layer.
        max_drop: The budget, in the metric's own unit.

    Returns:
        The first file within the budget; where none is, the best that was seen.
    """
    start = judge(make(frozenset()))
    scanned = scan(make, judge, layers)
    kept: list[Scanned] = []
    operations: frozenset[int] = frozenset()
    judged, steps, waiting = start, [], list(scanned)
    best = (judge.drop(start), start.error, 0)
    while judge.drop(judged) > max_drop and waiting:
        chosen = waiting.pop(0)
        kept.append(chosen)
        operations |= chosen.operations
        # The first was made in the scan; ranked again, so was each that follows.
        judged = chosen.judged
        steps.append(judged)
        best = min(best, (judge.drop(judged), judged.error, len(kept)))
        if judge.drop(judged) > max_drop and waiting:
            first, rest = waiting[:_TRIED_AGAIN], waiting[_TRIED_AGAIN:]
            again = scan(make, judge, {x.layer: x.operations for x in first}, operations)
            waiting = [*again, *rest]
    met = judge.drop(judged) <= max_drop
    if met:
        kept, judged = _needed(make, judge, kept, judged, max_drop)
    else:
        kept = kept[: best[2]]
        judged = steps[best[2] - 1] if best[2] else start
    operations = frozenset().union(*(item.operations for item in kept))
    return Found(
        kept=tuple(item.layer for item in kept),
        operations=operations,
        judged=judged,
        met=met,
        steps=tuple(steps),
        scanned=scanned,
        start=start,
    )


# ------------------------------------------------------------------------------- one layer by itself


def quantize_alone(file: FloatFile, ranges: Ranges, operations: Collection[int]) -> bytes:
    """A file in which some operators are quantized to 8 bits, and all others stay float.

    Args:
        file: The float file.
        ranges: Ranges of its activations.
        operations: Indices of the operators to quantize, weights and activations.

    Returns:
        The bytes of a file that takes and gives floats, the operators between a `QUANTIZE` and a
        `DEQUANTIZE`.
    """
    chosen = tuple(file.operations[index] for index in sorted(operations))
    # Of other ranges, TensorFlow's quantizer would have the inputs of the file rounded as well.
    known = {name for item in chosen for name in (*item.inputs, *item.outputs)}
    return quantize(
        file,
        {name: ends for name, ends in ranges.items() if name in known},
        keep_float={item.index for item in file.operations} - set(operations),
        io="float32",
        engine=engine_of(dataclasses.replace(file, operations=chosen)),
    )


@dataclass(frozen=True)
class Rounded:
    """A file in which the weights of some operators were rounded.

    Attributes:
        content: The bytes of the file, its weights stored as floats.
        bits: The fewest bits that weights were rounded to.
        saved: Bytes that these weights would need less, stored as whole numbers.
    """

    content: bytes
    bits: int
    saved: int


def round_alone(file: FloatFile, operations: Collection[int], bits: int) -> Rounded | None:
    """Rounds the weights of some operators to the values that fewer bits hold.

    Kernels have a symmetric scale a channel, tables of embeddings one a row. Those of depthwise
    convolutions are rounded to 8 bits, as the quantizers of weights do.

    Args:
        file: The float file.
        operations: Indices of the operators.
        bits: 8 or 4.

    Returns:
        The file; ``None`` where the operators have no kernels.
    """
    model = unpacked(file.content)
    graph = model.subgraphs[0]
    fresh: dict[int, int] = {}  # an unrolled loop has many operators of one kernel
    fewest, saved = 8, 0
    for index in sorted(operations):
        operator, kind = graph.operators[index], file.operations[index].kind
        if (found := _kernel_of(operator, kind)) is None:
            continue
        place, axis = found
        given = int(operator.inputs[place])
        if given not in fresh:
            values = floats_of(model, graph.tensors[given])
            if values is None or values.ndim < 2 or not np.isfinite(values).all():
                continue
            own = 8 if kind in ALWAYS_8 else bits
            numbers, scale = quantize_symmetric(values, own, axis % values.ndim)
            along = [1] * values.ndim
            along[axis] = -1
            rounded = (numbers * scale.reshape(along)).astype(np.float32)
            # Others may read the same constant, so it is not changed in place.
            tensor = copy.copy(graph.tensors[given])
            tensor.name = tensor.name + b"/rounded"
            tensor.buffer = buffer_of(model, rounded.tobytes())
            graph.tensors.append(tensor)
            fresh[given] = len(graph.tensors) - 1
            fewest = min(fewest, own)
            saved += 4 * values.size - -(-values.size * own // 8)
        inputs = np.array(operator.inputs, np.int32)
        inputs[place] = fresh[given]
        operator.inputs = inputs
    return Rounded(packed(model, len(file.content)), fewest, saved) if fresh else None


def _kernel_of(operator: Any, kind: str) -> tuple[int, int] | None:
    """Where the kernel of an operator stands, if it may have one, and its axis of channels."""
    if kind == "BATCH_MATMUL":
        return 1, -2 if getattr(operator.builtinOptions, "adjY", False) else -1
    return _PLACES.get(kind)


def _needed(
    make: Make, judge: Judge, kept: list[Scanned], judged: Judgement, max_drop: float
) -> tuple[list[Scanned], Judgement]:
    """The layers without which the drop is beyond the budget, the first chosen tried first."""
    for item in kept[:-1]:
        others = [other for other in kept if other is not item]
        fresh = judge(make(frozenset().union(*(other.operations for other in others))))
        if judge.drop(fresh) <= max_drop:
            kept, judged = others, fresh
    return kept, judged
