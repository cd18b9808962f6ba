"""What training for quantization learned, put to use on a float file: by tensor and by operator."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from optkit.learned import LearnedRanges
from optkit.quantize.calibrate import Ranges
from optkit.quantize.floatfile import FloatFile, Operation

__all__ = ["learned_bits", "with_learned"]

#: Operators whose outputs have a scale that is fixed by the kernel.
_FIXED = frozenset({"LOGISTIC", "SOFTMAX", "TANH"})
#: Operators whose outputs are on the scale of their inputs.
_CARRYING = frozenset(
    {
        *("BATCH_TO_SPACE_ND", "EXPAND_DIMS", "GATHER", "MAX_POOL_2D", "PAD", "RESHAPE"),
        *("SPACE_TO_BATCH_ND", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"),
    }
)


def with_learned(file: FloatFile, ranges: Ranges, learned: LearnedRanges) -> Ranges:
    """Ranges with those that were learned in the place of those that were measured.

    The range of a layer is that of the last tensor within it that has a scale to choose: of a dense
    layer with a softmax, of what goes into the softmax.

    Args:
        file: The float file of the model that learned them.
        ranges: What was measured, by name of the tensor.
        learned: What was learned, by path of the layer; inputs go by their names.

    Returns:
        The ranges by name of the tensor; tensors without one in ``ranges`` are left without.
    """
    changed = dict(ranges)
    for name, info in zip(file.inputs, file.signature.inputs, strict=True):
        if info.name in learned.activations and name in ranges:
            changed[name] = learned.activations[info.name]
    for path, operation in _last_ones(file, learned.activations):
        if operation.outputs[0] in ranges:
            changed[operation.outputs[0]] = learned.activations[path]
    return changed


def learned_bits(file: FloatFile, learned: LearnedRanges) -> dict[int, int]:
    """The bits of weights of single operators, by index, where training rounded to fewer than 8."""
    found = {}
    for operation in file.operations:
        bits = [
            learned.weight_bits[path] for path in operation.layers if path in learned.weight_bits
        ]
        if operation.weights and bits and min(bits) < 8:
            found[operation.index] = min(bits)
    return found


def _last_ones(file: FloatFile, paths: Collection[str]) -> Iterator[tuple[str, Operation]]:
    """The operators behind which no other computes anything of the same layer, with its path.

    Args:
        file: The float file.
        paths: The layers to look for; of several that are fused it is the one among these.
    """
    takers: dict[str, list[Operation]] = {}
    for operation in file.operations:
        for name in operation.inputs:
            takers.setdefault(name, []).append(operation)

    def goes_on(path: str, operation: Operation) -> bool:
        return any(
            goes_on(path, taker) if _passes_on(taker) else True
            for name in operation.outputs
            for taker in takers.get(name, ())
            if path in taker.layers
        )

    for operation in file.operations:
        found = [path for path in operation.layers if path in paths]
        if len(found) > 1:  # fused further than training took it to be: the last one says
            found = [path for path in found if path == operation.layers[0]]
        for path in found:
            if operation.outputs and not _passes_on(operation) and not goes_on(path, operation):
                yield path, operation


def _passes_on(operation: Operation) -> bool:
    return operation.kind in _FIXED or operation.kind in _CARRYING
