"""The accuracy of an artifact on a split, through the runtime that will run it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from optkit.artifact import Artifact
from optkit.data import Split, first_leaf
from optkit.errors import DataError, ModelError
from optkit.metric import Metric, true_classes
from optkit.task import Task

__all__ = ["Scores", "score"]


@dataclass(frozen=True)
class Scores:
    """The metric of every sample, and by class.

    Attributes:
        values: One value a sample in the order of the split, shape ``(n,)``.
        per_class: Mean by true class, or by label; ``None`` where there are no classes.
        order: Hash of the samples in the order in which they came.
    """

    values: np.ndarray
    per_class: dict[int, float] | None
    order: str

    @property
    def mean(self) -> float:
        """The metric of the split."""
        return float(self.values.mean(dtype=np.float64))


def score(artifact: Artifact, split: Split, task: Task, metric: Metric) -> Scores:
    """Predicts the split batch by batch; in memory stays one value a sample.

    Raises:
        ModelError: If the artifact gives outputs that are not finite.
    """
    values: list[np.ndarray] = []
    by_class = task.is_classification and metric.name == "accuracy"
    sums, counts = np.zeros(task.classes), np.zeros(task.classes)
    order = hashlib.blake2b(digest_size=8)
    for x, y in split.iterate():
        order.update(np.ascontiguousarray(y).tobytes())
        order.update(np.ascontiguousarray(first_leaf(x)).tobytes())
        outputs = artifact.predict(x, batch_size=max(1, len(y)))
        if not np.all(np.isfinite(outputs)):
            raise ModelError(
                f"The {artifact.kind} artifact gives NaN or infinite outputs on `{split.name}`."
            )
        batch = metric.per_sample(y, outputs)
        values.append(batch.astype(np.float32))
        if not by_class:
            continue
        if task.kind == "multilabel":
            threshold = 0.0 if task.from_logits else 0.5
            right = (outputs > threshold) == (y >= 0.5)
            sums += right.reshape(-1, task.classes).sum(axis=0)
            counts += right.size // task.classes
        elif outputs.ndim <= 2:
            classes = true_classes(task, y).ravel()
            if classes.min() < 0 or classes.max() >= task.classes:
                raise DataError(
                    f"`{split.name}` holds the class {classes.max()}, and the model tells "
                    f"{task.classes} classes apart, from 0 to {task.classes - 1}."
                )
            np.add.at(sums, classes, batch)
            np.add.at(counts, classes, 1)
    per_class = {int(c): float(sums[c] / counts[c]) for c in np.flatnonzero(counts)}
    return Scores(np.concatenate(values), per_class or None, order.hexdigest())
