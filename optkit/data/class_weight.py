"""Class weights, as weights of the samples that are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optkit.data.split import BoundData, Split
from optkit.errors import DataError
from optkit.metric import true_classes
from optkit.runtime import tensorflow
from optkit.task import Task

__all__ = ["weigh_by_table", "weigh_classes"]


def weigh_classes(data: BoundData, task: Task) -> None:
    """Multiplies the weights of the training samples with those of their classes.

    The validation split is to be cut before: what is decided on counts each sample once.

    Args:
        data: The bound data, whose ``train`` is replaced.
        task: What the model is for.

    Raises:
        DataError: For weights of what has no classes, or of classes that there are not.
    """
    if not data.class_weight or data.train is None:
        return
    tables = {name: _table(name, task, given) for name, given in data.class_weight.items()}

    data.train = weigh_by_table(
        data.train,
        tables,
        lambda name, targets: true_classes(task.each[name], targets),
        lambda name, targets: _class_numbers(task.each[name], targets),
        f"class weights {sorted(data.class_weight.items())}",
    )
    data.notes.append(f"train: samples count by class weights, {_in_words(data)}")


def weigh_by_table(
    split: Split,
    tables: Mapping[str, np.ndarray],
    of_arrays: Callable[[str, Any], Any],
    of_tensors: Callable[[str, Any], Any],
    reason: str,
) -> Split:
    """A split whose samples count, besides by their own weights, by those of their classes.

    Args:
        split: The split.
        tables: The weight of each class number, by output (``""`` for the only one).
        of_arrays: Function of an output and its targets to their class numbers.
        of_tensors: The same of tensors.
        reason: What the weights depend on besides, for the fingerprint.
    """

    def by_arrays(y: Any, weights: Any) -> Any:
        def weigh(name: str, targets: Any, own: Any) -> Any:
            if name not in tables:
                return np.ones(len(targets), np.float32) if own is None else own
            found = tables[name][of_arrays(name, targets)]
            return found if own is None else found * _aligned(own, found.ndim)

        return _by_output(y, weights, weigh)

    def by_tensors(y: Any, weights: Any) -> Any:
        tf = tensorflow()

        def weigh(name: str, targets: Any, own: Any) -> Any:
            own = None if own is None else tf.cast(own, tf.float32)
            if name not in tables:
                return tf.ones(tf.shape(targets)[:1]) if own is None else own
            found = tf.gather(tf.constant(tables[name]), of_tensors(name, targets))
            return found if own is None else found * _aligned(own, found.shape.rank)

        return _by_output(y, weights, weigh)

    return split.reweighted(by_arrays, by_tensors, reason)


def _table(name: str, task: Task, given: dict[int, float]) -> np.ndarray:
    """The weight of each class."""
    part = task.each.get(name)
    of = f" of {name!r}" if name else ""
    if part is None or part.kind not in ("multiclass", "binary"):
        what = "it has no targets" if part is None else f"the task is {part.describe()}"
        raise DataError(f"`class_weight`{of} needs classes of which a sample has one, and {what}.")
    unknown = [number for number in given if number >= part.classes]
    if unknown:
        raise DataError(
            f"`class_weight`{of} has weights for the classes {unknown}, and there are "
            f"{part.classes}, from 0."
        )
    table = np.ones(part.classes, np.float32)
    for number, weight in given.items():
        table[number] = weight
    if not table.any():
        raise DataError(
            f"The weights of all classes in `class_weight`{of} are 0: no sample would count. Give "
            "at least one above 0."
        )
    return table


def _by_output(y: Any, weights: Any, weigh: Any) -> Any:
    if not isinstance(y, dict):
        return weigh("", y, weights)
    return {
        name: weigh(name, targets, weights.get(name) if isinstance(weights, dict) else weights)
        for name, targets in y.items()
    }


def _aligned(weights: Any, rank: int) -> Any:
    """Weights of samples beside weights of their positions, or in rows of one."""
    if len(weights.shape) == rank + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    while len(weights.shape) < rank:
        weights = weights[..., None]
    return weights


def _class_numbers(task: Task, targets: Any) -> Any:
    """`true_classes` for tensors."""
    tf = tensorflow()
    if task.kind == "multiclass" and not task.sparse:
        return tf.argmax(targets, -1)
    if targets.shape.rank is not None and targets.shape.rank > 1 and targets.shape[-1] == 1:
        targets = tf.squeeze(targets, -1)
    if task.kind == "binary":
        return tf.cast(tf.cast(targets, tf.float32) >= 0.5, tf.int32)
    return tf.cast(targets, tf.int32)


def _in_words(data: BoundData) -> str:
    parts = []
    for name, given in data.class_weight.items():
        known = data.names_of(name)
        shown = ", ".join(
            f"{known[number] if number < len(known) else number}: {weight:g}"
            for number, weight in list(given.items())[:10]
        )
        more = ", …" if len(given) > 10 else ""
        parts.append(f"{name + ': ' if name else ''}{shown}{more}")
    return "; ".join(parts)
