"""The accuracy of an artifact on a split, through the runtime that will run it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optkit.artifact import Artifact
from optkit.data import Split, batch_length, content_of, first_leaf
from optkit.errors import DataError, ModelError, PipelineError
from optkit.measuring.statistics import (
    Interval,
    bootstrap_whole,
    mean_interval,
    paired_change,
    unpaired_change,
    weighted_interval,
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
        weights: How much each sample counts, shape ``(n,)``; ``None`` where each counts once.
        parts: Of a model with several outputs, the scores of each, by name; what stands here
            besides is that of the one that the metric is of.
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
    weights: np.ndarray | None = None
    parts: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def each(self) -> Mapping[str, Scores]:
        """The scores of each output by name; of the only output under ``""``."""
        return self.parts or {"": self}

    @property
    def mean(self) -> float:
        """The metric of the split."""
        if self.figure is not None:
            return self.figure
        if self.weights is not None:
            return float(np.average(self.values.astype(np.float64), weights=self.weights))
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
        for name in ("chance", "figure", "targets", "outputs", "weights"):
            if getattr(self, name) is not None:
                arrays[name] = np.asarray(getattr(self, name))
        if self.parts:
            arrays["names"] = np.array(list(self.parts))
            for place, part in enumerate(self.parts.values()):
                arrays |= {f"part{place}.{key}": value for key, value in part.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Scores:
        """What `to_arrays` gave."""
        per_class = counts = None
        parts = {}
        for place, name in enumerate(arrays.get("names", ())):
            prefix = f"part{place}."
            own = {
                key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)
            }
            parts[str(name)] = cls.from_arrays(own)
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
            weights=arrays.get("weights"),
            parts=parts,
        )


def score(artifact: Artifact, split: Split, task: Task, metric: Metric) -> Scores:
    """Predicts the split batch by batch.

    In memory stays one value a sample and output; for a metric that is a figure of the whole split,
    all targets and outputs.

    Raises:
        ModelError: If the artifact gives outputs that are not finite.
        DataError: If a class number has no output, or samples have no weights and should count by
            them.
        PipelineError: If the user's own metric fails or gives something else than it should.
    """
    takers = {name: _Taker(name, task.each[name], own) for name, own in metric.each.items()}
    order = hashlib.blake2b(digest_size=8)
    for x, y, weights in split.iterate_weighted():
        for leaf in y.values() if isinstance(y, dict) else [y]:
            order.update(content_of(leaf))
        order.update(content_of(np.asarray(first_leaf(x))))
        outputs = artifact.predict(x, batch_size=max(1, batch_length(y)))
        for name, taker in takers.items():
            found = outputs[name] if name else outputs
            if not np.all(np.isfinite(found)):
                of = f" for the output {name!r}" if name else ""
                raise ModelError(
                    f"The {artifact.kind} artifact gives NaN or infinite outputs{of} on "
                    f"`{split.name}`."
                )
            own = weights.get(name) if isinstance(weights, dict) else weights
            taker.add(split.name, y[name] if name else y, found, own)
    parts = {name: taker.scores(split.name, order.hexdigest()) for name, taker in takers.items()}
    if not metric.parts:
        return parts[""]
    return replace(parts[metric.output], parts=parts)


class _Taker:
    """Takes in what an output gives for batch after batch."""

    def __init__(self, name: str, task: Task, metric: Metric):
        self.name, self.metric = name, metric
        self.tally = _Tally(task, metric)
        self.values: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.samples = 0

    def add(self, split: str, targets: np.ndarray, outputs: np.ndarray, weights: Any) -> None:
        metric = self.metric
        if metric.weighted:
            weights = _sample_weights(split, self.name, weights, len(targets))
            self.weights.append(weights)
        self.tally.add(split, targets, outputs, weights if metric.weighted else None)
        self.samples += len(targets)
        if metric.per_sample is not None:
            self.values.append(_checked(metric, split, targets, outputs))
        else:
            self.kept.append((targets, outputs))

    def scores(self, split: str, order: str) -> Scores:
        figure = targets = every = None
        if self.metric.whole is not None:
            try:
                targets, every = (np.concatenate(side) for side in zip(*self.kept, strict=True))
            except ValueError as error:
                raise PipelineError(
                    f"The metric {self.metric.name!r} is a figure of the whole split, and batches "
                    f"of `{split}` differ in shape: {error} Give a function to one value a sample."
                ) from error
            figure = _whole_figure(self.metric, split, targets, every)
        weights = np.concatenate(self.weights) if self.weights else None
        if weights is not None and not weights.any():
            raise DataError(f"All sample weights of `{split}` are 0: no sample would count.")
        return Scores(
            values=np.concatenate(self.values) if self.values else np.zeros(0, np.float32),
            per_class=self.tally.per_class(),
            counts=self.tally.counts(),
            order=order,
            samples=self.samples,
            chance=self.tally.chance(),
            figure=figure,
            targets=targets,
            outputs=every,
            weights=weights,
        )


def _sample_weights(split: str, output: str, weights: Any, count: int) -> np.ndarray:
    of = f" for the output {output!r}" if output else ""
    if weights is None:
        how = f"{{{output!r}: weights, …}}" if output else "(x, y, sample weights)"
        raise DataError(
            f"`Measure(sample_weight=True)`, and `{split}` has no sample weights{of}. Give them, as "
            f"in {how}, or leave the setting out."
        )
    found = np.asarray(weights, np.float64)
    found = found[:, 0] if found.shape == (count, 1) else found
    if found.shape != (count,):
        raise DataError(
            "`Measure(sample_weight=True)` takes one weight a sample. Those of "
            f"`{split}`{of} have shape {found.shape} for {count} samples."
        )
    return found


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
    if metric.whole is not None:
        return bootstrap_whole(metric.whole, *scores.kept())
    if scores.weights is not None:
        return weighted_interval(scores.values, scores.weights)
    return mean_interval(scores.values)


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
    if metric.whole is not None:
        interval = whole_change(metric.whole, before.kept(), after.kept(), paired=paired)
        return after.mean - before.mean, interval
    if before.weights is not None and after.weights is not None:
        if paired:
            differences = after.values.astype(np.float64) - before.values
            return after.mean - before.mean, weighted_interval(differences, after.weights)
        ends = [
            weighted_interval(before.values, before.weights),
            weighted_interval(after.values, after.weights),
        ]
        half = math.hypot(*((high - low) / 2 for low, high in ends))
        change = after.mean - before.mean
        return change, (change - half, change + half)
    compare = paired_change if paired else unpaired_change
    return compare(before.values, after.values)


class _Tally:
    """What is counted by class on the way, and what the best constant answer would have got."""

    def __init__(self, task: Task, metric: Metric):
        self.task, self.metric = task, metric
        self.right = np.zeros(task.classes)
        self.asked = np.zeros(task.classes, np.int64)
        self.weight = np.zeros(task.classes)  # of what was asked; equal to it without weights
        self.frequency = np.zeros(task.classes)  # of each class, or of each label's 1
        self.answers = 0
        self.targets: list[np.ndarray] | None = []

    def add(
        self, split: str, targets: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None
    ) -> None:
        if not self.task.is_classification:
            if targets[:1].size > _TARGET_VALUES_KEPT:
                self.targets = None
            elif self.targets is not None:
                self.targets.append(targets.reshape(len(targets), -1).astype(np.float64))
            return
        right = hits(self.task, targets, outputs)
        if weights is None:
            weights = np.ones(len(targets))
        if self.task.kind == "multilabel":
            rows = right.reshape(-1, self.task.classes)
            of_rows = np.repeat(weights, len(rows) // len(weights))
            self.right += of_rows @ rows
            self.asked += len(rows)
            self.weight += of_rows.sum()
            self.frequency += of_rows @ (targets >= 0.5).reshape(-1, self.task.classes)
            return
        classes = true_classes(self.task, targets).ravel()
        if classes.min() < 0 or classes.max() >= self.task.classes:
            raise DataError(
                f"`{split}` holds the class {classes.max()}, and the model tells "
                f"{self.task.classes} classes apart, from 0 to {self.task.classes - 1}."
            )
        of_each = np.repeat(weights, len(classes) // len(weights))
        self.frequency += np.bincount(classes, of_each, minlength=self.task.classes)
        if outputs.ndim <= 2:
            np.add.at(self.right, classes, of_each * right.ravel())
            np.add.at(self.asked, classes, 1)
            np.add.at(self.weight, classes, of_each)

    def counts(self) -> dict[int, int] | None:
        """Samples by class."""
        return {int(c): int(self.asked[c]) for c in np.flatnonzero(self.weight)} or None

    def per_class(self) -> dict[int, float] | None:
        """Accuracy by class."""
        found = np.flatnonzero(self.weight)
        return {int(c): float(self.right[c] / self.weight[c]) for c in found} or None

    def chance(self) -> float | None:
        """The metric of the best constant answer."""
        name: Any = self.metric.name if not self.metric.custom else None
        if name == "accuracy" and self.task.kind == "multilabel":
            share = self.frequency / self.weight.max()
            return float(np.maximum(share, 1 - share).mean())
        if name == "accuracy":
            return float(self.frequency.max() / self.frequency.sum())
        if name == "balanced_accuracy":
            return 1 / max(1, int(np.count_nonzero(self.frequency)))
        if (
            self.targets
            and not self.metric.weighted
            and name in ("mean_absolute_error", "mean_squared_error")
        ):
            targets = np.concatenate(self.targets)
            if name == "mean_absolute_error":
                return float(np.abs(targets - np.median(targets, axis=0)).mean())
            return float(np.square(targets - targets.mean(axis=0)).mean())
        return None
