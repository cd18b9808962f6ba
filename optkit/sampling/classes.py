"""Which class a sample is of, how many a class has, and how many it should have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from optkit.data import ArraySplit, Split
from optkit.errors import DataError, PipelineError
from optkit.runtime import tensorflow
from optkit.task import Task

__all__ = [
    "balanced_weights",
    "class_numbers",
    "class_tensors",
    "count_classes",
    "over_targets",
    "require_classes",
    "under_targets",
]

_ROUNDING = 1e-9  # 0.7 of 90 is 63, which a product of floats just misses


def class_numbers(targets: np.ndarray) -> np.ndarray:
    """The class number of each sample: of one-hot rows, of numbers, of single probabilities.

    Args:
        targets: Targets that `require_classes` has let through, shape ``(n,)``, ``(n, 1)`` or
            ``(n, classes)``.

    Returns:
        Whole numbers, shape ``(n,)``.

    >>> class_numbers(np.array([[0, 1, 0], [1, 0, 0]])), class_numbers(np.array([[0.2], [0.9]]))
    (array([1, 0]), array([0, 1]))
    """
    if targets.ndim > 1 and targets.shape[-1] > 1:
        return np.asarray(targets.argmax(-1))
    flat = targets[..., 0] if targets.ndim > 1 else targets
    if flat.dtype.kind == "f":
        flat = np.floor(flat + 0.5)
    return np.asarray(flat.astype(np.int64))


def class_tensors(targets: Any) -> Any:
    """`class_numbers` of a batch of tensors."""
    tf = tensorflow()
    if targets.shape.rank is not None and targets.shape.rank > 1:
        if targets.shape[-1] != 1:
            return tf.argmax(targets, -1)
        targets = tf.squeeze(targets, -1)
    if targets.dtype.is_floating:
        targets = tf.floor(targets + 0.5)
    return tf.cast(targets, tf.int64)


def targets_of(y: Any, output: str) -> Any:
    """The targets of an output; of the only one for ``""``."""
    return y[output] if output else y


def require_classes(name: str, task: Task, output: str | None, targets: Any) -> str:
    """The output whose classes are to be balanced, ``""`` for the only one.

    Args:
        name: Name of the pass, for messages.
        task: What the model is for.
        output: The output that the user named.
        targets: Some targets of the training split.

    Raises:
        PipelineError: If there are no classes of which a sample has one.
    """
    if not task.parts:
        if output is not None:
            raise PipelineError(
                f"`{name}(output={output!r})` names an output, and the model has one. Leave it out."
            )
        chosen, part = "", task
    else:
        names = list(task.parts)
        if output is None:
            raise PipelineError(
                f"{name} balances the classes of one output, and the model has {len(names)} with "
                f"targets ({', '.join(names)}). Name one: `{name}(…, output={names[0]!r})`."
            )
        if output not in task.parts:
            raise PipelineError(
                f"`{name}(output={output!r})` names no output that has targets: {names}."
            )
        chosen, part = output, task.parts[output]
    of = f" of {chosen!r}" if chosen else ""
    if part.kind not in ("multiclass", "binary"):
        remedy = (
            "A sample of several labels cannot be drawn for one of them alone: give samples "
            "weights, as in `Data(train=(x, y, weights))`"
            if part.kind == "multilabel"
            else "Give samples weights, as in `Data(train=(x, y, weights))`, where some count more"
        )
        raise PipelineError(
            f"{name} needs classes of which a sample has one, and the task{of} is "
            f"{part.describe()}. {remedy}, or leave the pass out."
        )
    shape = np.shape(targets_of(targets, chosen))
    rank = len(shape) - (len(shape) > 1 and shape[-1] == 1)
    if rank != (2 if part.kind == "multiclass" and not part.sparse else 1):
        raise PipelineError(
            f"{name} needs one class a sample, and the targets{of} have shape {shape}: a class for "
            "each position. Leave it out, and give positions weights, as in "
            "`Data(train=(x, y, weights))`."
        )
    return chosen


def count_classes(split: Split, output: str = "") -> dict[int, int]:
    """How many samples each class has, by class number; a stream is read once, batch by batch.

    Raises:
        DataError: If there is one class alone.
    """
    found: dict[int, int] = {}
    if isinstance(split, ArraySplit):
        y = targets_of(split.y, output)
        batches: Any = [y if split.index is None else y[split.index]]
    else:
        batches = (targets_of(y, output) for _, y in split.iterate())
    for targets in batches:
        numbers, counts = np.unique(class_numbers(targets), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            found[number] = found.get(number, 0) + count
    if len(found) < 2:
        raise DataError(
            f"`{split.name}` has samples of one class alone ({next(iter(found), 'none')}): there is "
            "nothing to balance."
        )
    return dict(sorted(found.items()))


def balanced_weights(counts: Mapping[int, int]) -> dict[int, float]:
    """Weights with which all classes count alike and the mean sample counts 1: ``n / (k n_c)``.

    >>> balanced_weights({0: 6, 1: 2})
    {0: 0.6666666666666666, 1: 2.0}
    """
    total = sum(counts.values())
    return {number: total / (len(counts) * count) for number, count in counts.items()}


def over_targets(counts: Mapping[int, int], ratio: float) -> dict[int, int]:
    """How many samples each class should have at least, as a share of the largest class.

    >>> over_targets({0: 100, 1: 10, 2: 60}, 0.5)
    {0: 100, 1: 50, 2: 60}
    """
    wanted = math.floor(ratio * max(counts.values()) + _ROUNDING)
    return {number: max(count, wanted) for number, count in counts.items()}


def under_targets(counts: Mapping[int, int], ratio: float) -> dict[int, int]:
    """How many samples each class may have at most, so that the smallest is such a share of it.

    >>> under_targets({0: 100, 1: 10, 2: 15}, 0.5)
    {0: 20, 1: 10, 2: 15}
    """
    allowed = math.floor(min(counts.values()) / ratio + _ROUNDING)
    return {number: min(count, allowed) for number, count in counts.items()}
