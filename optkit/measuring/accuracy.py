"""The accuracy of an artifact on a split, through the runtime that will run it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import Artifact
from optkit.data import Split, first_leaf
from optkit.errors import DataError, ModelError, PipelineError
from optkit.measuring.statistics import (
    Interval,
    bootstrap_whole,
    mean_interval,
    paired_change,
    unpaired_change,
    whole_change,
)
from optkit.metric import Metric, hits, true_classes
from optkit.task import Task

__all__ = ["Scores", "compare_scores", "score", "score_interval"]

# Up to so many values a target, the targets of a regression are kept to learn the best constant.
_TARGET_VALUES_KEPT = 64


@dataclass(frozen=True)
class Scores:
    """The metric of every sample, and by class.

    Attributes:
        values: One value a sample in the order of the split, shape ``(n,)``; empty where the
            metric is a figure of the whole split.
        per_class: Classification accuracy by true class, or by label; ``None`` without classes.
        counts: Number of samples of each of them.
        order: Hash of the samples in the order in which they came.
        samples: Number of samples.
        chance: The metric of the best constant answer: always the most frequent class, or the
            median or mean of the targets; ``None`` where that is not known.
        figure: The metric, where it is a figure of the whole split.
        targets: The targets in order, kept only for such a figure.
        outputs: The outputs in order, kept only for such a figure.
    """

    values: np.ndarray
    per_class: dict[int, float] | None
    counts: dict[int, int] | None
    order: str
    samples: int
    chance: float | None = None
    figure: float | None = None
    targets: np.ndarray | None = None
    outputs: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """The metric of the split."""
        if self.figure is not None:
            return self.figure
        return float(self.values.mean(dtype=np.float64))

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets and outputs of a figure of the whole split."""
        if self.targets is None or self.outputs is None:
            raise ValueError("targets and outputs are only kept for a figure of the whole split")
        return self.targets, self.outputs

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, fit for `numpy.savez`."""
        arrays = {
            "values": self.values,
            "order": np.array(self.order),
            "samples": np.array(self.samples),
        }
        if self.per_class is not None and self.counts is not None:
            arrays["classes"] = np.array(list(self.per_class))
            arrays["per_class"] = np.array(list(self.per_class.values()))
            arrays["counts"] = np.array([self.counts[number] for number in self.per_class])
        for name in ("chance", "figure", "targets", "outputs"):
            if getattr(self, name) is not None:
                arrays[name] = np.asarray(getattr(self, name))
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Scores:
        """What `to_arrays` gave."""
        per_class = counts = None
        if "classes" in arrays:
            classes = [int(number) for number in arrays["classes"]]
            per_class = dict(zip(classes, map(float, arrays["per_class"]), strict=True))
            counts = dict(zip(classes, map(int, arrays["counts"]), strict=True))
        return cls(
            values=np.asarray(arrays["values"]),
            per_class=per_class,
            counts=counts,
            order=str(arrays["order"]),
            samples=int(arrays["samples"]),
            chance=float(arrays["chance"]) if "chance" in arrays else None,
            figure=float(arrays["figure"]) if "figure" in arrays else None,
            targets=arrays.get("targets"),
            outputs=arrays.get("outputs"),
        )


def score(artifact: Artifact, split: Split, task: Task, metric: Metric) -> Scores:
    """Predicts the split batch by batch.

    In memory stays one value a sample; for a metric that is a figure of the whole split, all
    targets and outputs.

    Raises:
        ModelError: If the artifact gives outputs that are not finite.
        DataError: If a class number has no output.
        PipelineError: If the user's own metric fails or gives something else than it should.
    """
    values: list[np.ndarray] = []
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    tally = _Tally(task, metric)
    order = hashlib.blake2b(digest_size=8)
    samples = 0
    for x, y in split.iterate():
        order.update(np.ascontiguousarray(y).tobytes())
        order.update(np.ascontiguousarray(first_leaf(x)).tobytes())
        outputs = artifact.predict(x, batch_size=max(1, len(y)))
        if not np.all(np.isfinite(outputs)):
            raise ModelError(
                f"The {artifact.kind} artifact gives NaN or infinite outputs on `{split.name}`."
            )
        tally.add(split.name, y, outputs)
        samples += len(y)
        if metric.per_sample is not None:
            values.append(_checked(metric, split.name, y, outputs))
        else:
            kept.append((y, outputs))
    figure = targets = every = None
    if metric.whole is not None:
        targets, every = (np.concatenate(side) for side in zip(*kept, strict=True))
        figure = _whole_figure(metric, split.name, targets, every)
    return Scores(
        values=np.concatenate(values) if values else np.zeros(0, np.float32),
        per_class=tally.per_class(),
        counts=tally.counts(),
        order=order.hexdigest(),
        samples=samples,
        chance=tally.chance(),
        figure=figure,
        targets=targets,
        outputs=every,
    )


def _checked(metric: Metric, split: str, targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    if metric.per_sample is None:
        raise AssertionError("has no value for each sample")
    if not metric.custom:
        return metric.per_sample(targets, outputs).astype(np.float32)
    try:
        values = metric.per_sample(targets, outputs)
    except Exception as error:
        raise PipelineError(f"The metric {metric.name!r} failed on `{split}`: {error}") from error
    if values.shape != (len(targets),) or not np.all(np.isfinite(values)):
        raise PipelineError(
            f"The metric {metric.name!r} must give one finite value a sample. For {len(targets)} "
            f"samples of `{split}` it gave shape {values.shape}, smallest value "
            f"{values.min() if values.size else None}."
        )
    return values.astype(np.float32)


def _whole_figure(metric: Metric, split: str, targets: np.ndarray, outputs: np.ndarray) -> float:
    if metric.whole is None:
        raise AssertionError("has no figure of the whole split")
    try:
        figure = metric.whole(targets, outputs)
    except Exception as error:
        raise PipelineError(
            f"The metric {metric.name!r} gives no figure for `{split}` as a whole: {error}"
        ) from error
    if not math.isfinite(figure):
        raise PipelineError(f"The metric {metric.name!r} is {figure} on `{split}`.")
    return figure


def score_interval(scores: Scores, metric: Metric) -> Interval | None:
    """The interval of the metric; ``None`` where too few resamples have a figure."""
    if metric.whole is None:
        return mean_interval(scores.values)
    return bootstrap_whole(metric.whole, *scores.kept())


def compare_scores(before: Scores, after: Scores, metric: Metric) -> tuple[float, Interval | None]:
    """Change of the metric and its interval, paired where the samples came in the same order.

    Args:
        before: Scores on a split.
        after: Scores of another artifact on the same split.
        metric: The metric of both.

    Returns:
        The change, and its interval; ``None`` where too few resamples have a figure.
    """
    paired = before.order == after.order
    if metric.whole is None:
        compare = paired_change if paired else unpaired_change
        return compare(before.values, after.values)
    interval = whole_change(metric.whole, before.kept(), after.kept(), paired=paired)
    return after.mean - before.mean, interval


class _Tally:
    """What is counted by class on the way, and what the best constant answer would have got."""

    def __init__(self, task: Task, metric: Metric):
        self.task, self.metric = task, metric
        self.right = np.zeros(task.classes)
        self.asked = np.zeros(task.classes, np.int64)
        self.frequency = np.zeros(task.classes, np.int64)  # of each class, or of each label's 1
        self.answers = 0
        self.targets: list[np.ndarray] | None = []

    def add(self, split: str, targets: np.ndarray, outputs: np.ndarray) -> None:
        if not self.task.is_classification:
            if targets[:1].size > _TARGET_VALUES_KEPT:
                self.targets = None
            elif self.targets is not None:
                self.targets.append(targets.reshape(len(targets), -1).astype(np.float64))
            return
        right = hits(self.task, targets, outputs)
        if self.task.kind == "multilabel":
            rows = right.reshape(-1, self.task.classes)
            self.right += rows.sum(axis=0)
            self.asked += len(rows)
            self.frequency += (targets >= 0.5).reshape(-1, self.task.classes).sum(axis=0)
            return
        classes = true_classes(self.task, targets).ravel()
        if classes.min() < 0 or classes.max() >= self.task.classes:
            raise DataError(
                f"`{split}` holds the class {classes.max()}, and the model tells "
                f"{self.task.classes} classes apart, from 0 to {self.task.classes - 1}."
            )
        self.frequency += np.bincount(classes, minlength=self.task.classes)
        if outputs.ndim <= 2:
            np.add.at(self.right, classes, right.ravel())
            np.add.at(self.asked, classes, 1)

    def counts(self) -> dict[int, int] | None:
        """Samples by class."""
        return {int(c): int(self.asked[c]) for c in np.flatnonzero(self.asked)} or None

    def per_class(self) -> dict[int, float] | None:
        """Accuracy by class."""
        found = np.flatnonzero(self.asked)
        return {int(c): float(self.right[c] / self.asked[c]) for c in found} or None

    def chance(self) -> float | None:
        """The metric of the best constant answer."""
        name: Any = self.metric.name if not self.metric.custom else None
        if name == "accuracy" and self.task.kind == "multilabel":
            share = self.frequency / self.asked.max()
            return float(np.maximum(share, 1 - share).mean())
        if name == "accuracy":
            return float(self.frequency.max() / self.frequency.sum())
        if self.targets and name in ("mean_absolute_error", "mean_squared_error"):
            targets = np.concatenate(self.targets)
            if name == "mean_absolute_error":
                return float(np.abs(targets - np.median(targets, axis=0)).mean())
            return float(np.square(targets - targets.mean(axis=0)).mean())
        return None
