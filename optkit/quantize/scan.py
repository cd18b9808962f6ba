"""Which layers to keep in float: each is tried by itself, then the best are taken together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from optkit.quantize.judge import Judge, Judgement

__all__ = ["Found", "Make", "Scanned", "scan", "search"]

#: Makes a file in which the operators of these indices stay float.
Make = Callable[[frozenset[int]], bytes]

_TRIED_AGAIN = 8  # candidates that are looked at again after each choice


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
    *,
    told: Callable[[int, int], None] | None = None,
) -> tuple[Scanned, ...]:
    """Returns each layer to float by itself.

    Args:
        make: Makes the files.
        judge: Says what they are worth.
        layers: Operators by layer.
        kept: Operators that are in float besides.
        told: Is told after each layer how many of how many are done.

    Returns:
        The layers, the one that helps most first.
    """
    found = []
    for number, (layer, operations) in enumerate(layers.items(), start=1):
        found.append(Scanned(layer, operations, judge(make(kept | operations))))
        if told is not None:
            told(number, len(layers))
    return _ranked(judge, found)


def _ranked(judge: Judge, found: Iterable[Scanned]) -> tuple[Scanned, ...]:
    # The metric moves in steps of one sample, so the error decides among equals.
    return tuple(sorted(found, key=lambda item: (judge.drop(item.judged), item.judged.error)))


def search(
    make: Make, judge: Judge, layers: Mapping[str, frozenset[int]], max_drop: float
) -> Found:
    """Returns layers to float, the one that helps most first, until the drop is within a budget.

    After each choice the best of the others are ranked anew, together with what was chosen.

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
    if not met:
        kept = kept[: best[2]]
        operations = frozenset().union(*(item.operations for item in kept))
        judged = steps[best[2] - 1] if best[2] else start
    return Found(
        kept=tuple(item.layer for item in kept),
        operations=operations,
        judged=judged,
        met=met,
        steps=tuple(steps),
        scanned=scanned,
        start=start,
    )
