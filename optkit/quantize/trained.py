"""What training for quantization learned, put to use on a float file: by tensor and by operator."""

from __future__ import annotations

from collections.abc import Iterator

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
    for path, operation in _last_ones(file):
        if path in learned.activations and operation.outputs[0] in ranges:
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


def _last_ones(file: FloatFile) -> Iterator[tuple[str, Operation]]:
    """The operators behind which no other of the same layer computes anything, with its path."""
    takers: dict[str, list[Operation]] = {}
    for operation in file.operations:
        for name in operation.inputs:
            takers.setdefault(name, []).append(operation)

    def goes_on(path: str, operation: Operation) -> bool:
        return any(
            goes_on(path, taker) if _passes_on(taker) else True
            for name in operation.outputs
            for taker in takers.get(name, ())
            if taker.layers and taker.layers[0] == path
        )

    for operation in file.operations:
        if operation.layers and operation.outputs and not _passes_on(operation):
            path = operation.layers[0]
            if not goes_on(path, operation):
                yield path, operation


def _passes_on(operation: Operation) -> bool:
    return operation.kind in _FIXED or operation.kind in _CARRYING
