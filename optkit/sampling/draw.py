"""The training split as it will be trained on: weighed, drawn, or with rows that were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from optkit.data import ArraySplit, Split, StreamSplit, map_leaves, weigh_by_table
from optkit.errors import DataError, OptkitError, first_line
from optkit.runtime import derive_seed, tensorflow
from optkit.sampling.classes import class_numbers, class_tensors, targets_of
from optkit.sampling.features import Features, rows_of
from optkit.sampling.samplers import draws_at_random, makes_rows, seeded

__all__ = ["Drawn", "draw_rows", "draw_stream", "weigh"]


@dataclass(frozen=True)
class Drawn:
    """What is trained on in place of a training split.

    Attributes:
        split: The split.
        before: Samples a class before, by class number.
        after: Samples a class of an epoch; of a stream, those that are to be expected.
        made: Of these, the ones that were not there before.
        weights: How much a sample of a class counts, where classes are weighed.
    """

    split: Split
    before: Mapping[int, int]
    after: Mapping[int, int]
    made: Mapping[int, int]
    weights: Mapping[int, float] | None = None

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return sum(self.after.values())


def weigh(
    split: Split, counts: Mapping[int, int], weights: Mapping[int, float], output: str
) -> Drawn:
    """Multiplies the weights of samples with those of their classes.

    Args:
        split: The training split.
        counts: Samples a class.
        weights: Weights of the classes that there are.
        output: The output whose classes they are; ``""`` for the only one.
    """
    highest = max(weights)
    if isinstance(split, ArraySplit):  # what was cut from it may be of further classes
        highest = max(highest, int(class_numbers(targets_of(split.y, output)).max()))
    table = np.ones(highest + 1, np.float32)
    for number, weight in weights.items():
        table[number] = weight
    weighed = weigh_by_table(
        split,
        {output: table},
        lambda _, y: class_numbers(y),
        lambda _, y: class_tensors(y),
        f"weights by class {sorted(weights.items())}",
    )
    return Drawn(weighed, counts, counts, {}, weights)


def draw_rows(
    split: ArraySplit, samplers: Sequence[Any], features: Features, seed: int, output: str = ""
) -> Drawn:
    """A split as samplers make it, one behind the other. Samples that stay are not copied.

    Rows that were made get the targets of their class, and the mean weight of its samples.

    Args:
        split: The training split, in memory.
        samplers: Objects with ``fit_resample``; used are seeded copies of them.
        features: What they compare.
        seed: Seed of all that is random.
        output: The output whose classes count; ``""`` for the only one.

    Raises:
        DataError: If a sampler fails, leaves out a class, or makes rows that are no samples.
    """
    labels = class_numbers(_own(split, targets_of(split.y, output)))
    if all(map(draws_at_random, samplers)):
        rows, values = None, np.arange(len(labels))[:, None]
    else:
        rows = features.rows(rows_of(split), make=any(map(makes_rows, samplers)))
        values = rows.values
    drawn, drawn_labels = values, labels
    for place, sampler in enumerate(samplers):
        try:
            copy = seeded(sampler, derive_seed(seed, place))
            drawn, drawn_labels, *_ = copy.fit_resample(drawn, drawn_labels)
        except OptkitError:
            raise
        except Exception as error:
            raise DataError(_failure(sampler, error)) from error
        # Of the same dtype, or no row would be known again.
        drawn = np.asarray(drawn, values.dtype)
        drawn_labels = np.asarray(drawn_labels)
    before, after = _counts(labels), _counts(drawn_labels)
    _require_same_classes(before, after, samplers)
    if rows is None:
        return Drawn(split.drawn(drawn[:, 0].astype(np.int64)), before, after, {})
    origin = _origins(values, labels, drawn, drawn_labels)
    new = np.flatnonzero(origin < 0)
    kept = origin[origin >= 0]
    if not len(new):
        return Drawn(split.drawn(kept), before, after, {})
    inputs = rows.samples(drawn[new])
    extra = _made(split, inputs, drawn_labels[new], labels=labels, output=output)
    return Drawn(split.drawn(kept, extra), before, after, _counts(drawn_labels[new]))


def _own(split: ArraySplit, leaf: np.ndarray) -> np.ndarray:
    return leaf if split.index is None else leaf[split.index]


def _counts(labels: np.ndarray) -> dict[int, int]:
    numbers, counts = np.unique(labels, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _failure(sampler: Any, error: Exception) -> str:
    said = first_line(error).rstrip(".")
    advice = "Change the sampler, or use one that needs less of the data: 'over' or 'class_weight'."
    if "neighbor" in said:
        advice = (
            "Lower `k_neighbors`, or use a strategy that needs less of the data: 'smote', 'over' or "
            "'class_weight'."
        )
    return f"{type(sampler).__name__} cannot resample `train`: {said}. {advice}"


def _require_same_classes(
    before: Mapping[int, int], after: Mapping[int, int], samplers: Sequence[Any]
) -> None:
    if before.keys() == after.keys():
        return
    names = ", ".join(type(sampler).__name__ for sampler in samplers)
    if lost := sorted(before.keys() - after.keys()):
        raise DataError(
            f"{names} leaves no sample of the classes {lost}, of which `train` has "
            f"{[before[number] for number in lost]}. Use a strategy that removes less, such as "
            "'smote' or 'over'."
        )
    raise DataError(
        f"{names} gives samples of classes that `train` has not: "
        f"{sorted(after.keys() - before.keys())}. A sampler keeps the class numbers that it gets."
    )


def _origins(
    values: np.ndarray, labels: np.ndarray, drawn: np.ndarray, drawn_labels: np.ndarray
) -> np.ndarray:
    """Which row each drawn row was, by content and class; -1 for one that was made."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(_keys(values, labels)):
        places.setdefault(key, []).append(place)
    times: dict[bytes, int] = {}
    found = np.full(len(drawn), -1, np.int64)
    for place, key in enumerate(_keys(drawn, drawn_labels)):
        if key in places:
            # Equal rows take turns, so that each is there as often as the others.
            turn = times[key] = times.get(key, -1) + 1
            found[place] = places[key][turn % len(places[key])]
    return found


def _keys(values: np.ndarray, labels: np.ndarray) -> list[bytes]:
    values = np.ascontiguousarray(values + 0.0)  # where 0 has no sign
    return [
        blake2b(row.tobytes() + int(label).to_bytes(8, "little", signed=True)).digest()[:16]
        for row, label in zip(values, labels, strict=True)
    ]


def _made(
    split: ArraySplit,
    inputs: Any,
    made: np.ndarray,
    *,
    labels: np.ndarray,
    output: str,
) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights of rows that were made.

    Args:
        split: What they were made of.
        inputs: Their inputs.
        made: Their classes.
        labels: The classes of the samples of the split.
        output: The output whose classes they are.
    """
    if isinstance(split.y, dict) and len(split.y) > 1:
        raise DataError(
            f"Rows were made by the classes of {output!r}, and the other outputs have no targets "
            "for them. Use 'class_weight', 'over' or 'under'."
        )

    def targets(leaf: np.ndarray) -> np.ndarray:
        if leaf.ndim > 1 and leaf.shape[-1] > 1:
            found = np.eye(leaf.shape[-1], dtype=leaf.dtype)[made]
        else:
            found = made.reshape(-1, *leaf.shape[1:]).astype(leaf.dtype)
        return np.asarray(found)

    def weights(leaf: np.ndarray) -> np.ndarray:
        own = _own(split, leaf)
        means = {number: own[labels == number].mean(0) for number in np.unique(made)}
        return np.asarray([means[number] for number in made], leaf.dtype)

    y = map_leaves(targets, split.y)
    w = None if split.weights is None else map_leaves(weights, split.weights)
    return inputs, y, w


def draw_stream(
    split: StreamSplit,
    before: Mapping[int, int],
    after: Mapping[int, int],
    seed: int,
    output: str = "",
) -> Drawn:
    """A stream in which each sample comes as often as its class wants, on average.

    Nothing but a few batches is in memory. How often a sample comes is drawn anew each time that
    it passes by.

    Args:
        split: The training split.
        before: Samples a class.
        after: Samples that each class should have.
        seed: Seed of the draws.
        output: The output whose classes count; ``""`` for the only one.
    """
    rates = np.zeros(max(before) + 1, np.float32)
    for number, count in before.items():
        rates[number] = after[number] / count

    def wanted(y: Any) -> Any:
        return tensorflow().gather(rates, class_tensors(targets_of(y, output)))

    drawn = split.drawn(wanted, sum(after.values()), seed, f"drawn {sorted(after.items())} {seed}")
    return Drawn(drawn, before, after, {})
