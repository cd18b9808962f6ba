"""How much of a task features already know: a linear model on them, cross-validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.metric import hits, true_classes
from optkit.task import Task

__all__ = ["Probe", "compare", "probe"]

_FOLDS = 5
_PENALTIES = tuple(10.0**power for power in range(-2, 5))


@dataclass(frozen=True)
class Probe:
    """What a linear model made of some features, each sample predicted by one that did not see it.

    Attributes:
        score: Accuracy; for regression the share of the variance that is explained (R²).
        chance: What is reached without the features: the share of the largest class; 0 for
            regression.
        losses: Of each sample, what the linear model leaves of what chance leaves: 1 on the average
            where the features say nothing, 0 where they say all.
    """

    score: float
    chance: float
    losses: np.ndarray

    @property
    def skill(self) -> float:
        """The share of what chance leaves open that the linear model gets right: 0 to 1.

        Accuracies of tasks with few and with many classes can be compared by it (Cohen, 1960).
        """
        return max(0.0, 1.0 - float(self.losses.mean()))


def probe(features: np.ndarray, targets: np.ndarray, task: Task, *, seed: int) -> Probe | None:
    """Fits a ridge regression to class rows (or to the values), five-fold, and scores it.

    Args:
        features: One vector a sample.
        targets: The targets of the samples.
        task: What they mean.
        seed: Seed of the folds.

    Returns:
        The scores; ``None`` where nothing can be told: fewer than two samples a fold, or targets
        that are all the same.

    Example:
        >>> import numpy as np
        >>> from optkit.task import Task
        >>> two = Task("binary", 2, True, False, 1)
        >>> y = np.arange(60) % 2
        >>> found = probe(np.stack([y, 1 - y], 1).astype(float), y, two, seed=0)
        >>> found.score, found.chance, found.skill
        (1.0, 0.5, 1.0)
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples = len(features)
    rows = _rows(task, targets)
    if samples < 2 * _FOLDS or np.all(rows == rows[0]):
        return None
    kind: Any = KFold
    grouped = None
    if task.kind in ("binary", "multiclass"):
        classes = true_classes(task, targets)
        if np.bincount(classes)[np.unique(classes)].min() >= _FOLDS:
            kind, grouped = StratifiedKFold, classes
    folds = kind(_FOLDS, shuffle=True, random_state=seed % 2**32)
    predicted = np.empty_like(rows)
    for train, test in folds.split(features, grouped):
        model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
        predicted[test] = (
            model.fit(features[train], rows[train])
            .predict(features[test])
            .reshape(-1, rows.shape[1])
        )
    if task.kind == "regression":
        spread = np.maximum(rows.var(0), np.finfo(float).tiny)
        losses = ((predicted - rows) ** 2 / spread).mean(1)
        return Probe(1.0 - float(losses.mean()), 0.0, losses)
    # The rows are -1 and 1, so that a score of 0 lies between two classes, as a logit does.
    right = hits(_by_logits(task), targets, predicted).reshape(samples, -1).mean(1)
    chance = _chance(task, targets)
    return Probe(float(right.mean()), chance, (1.0 - right) / (1.0 - chance))


def compare(one: Probe, other: Probe) -> tuple[float, float]:
    """By how much more skilled one is than another on the same samples, and the error of that.

    Args:
        one: A probe of some features.
        other: One of other features of the same samples.

    Returns:
        The difference and its standard error, of paired samples.
    """
    difference = other.losses - one.losses
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def _by_logits(task: Task) -> Task:
    return Task(task.kind, task.classes, task.sparse, True, task.outputs)


def _rows(task: Task, targets: np.ndarray) -> np.ndarray:
    """Targets as rows of numbers: -1 and 1 for classes and labels, the values of a regression."""
    if task.kind == "multiclass":
        return np.asarray(2.0 * np.eye(task.classes)[true_classes(task, targets)] - 1)
    flat = np.asarray(targets, "float64").reshape(len(targets), -1)
    return flat if task.kind == "regression" else np.where(flat >= 0.5, 1.0, -1.0)


def _chance(task: Task, targets: np.ndarray) -> float:
    """The best that always answering the same can reach."""
    if task.kind == "multilabel":
        share = (np.asarray(targets).reshape(len(targets), -1) >= 0.5).mean(0)
        return float(np.maximum(share, 1 - share).mean())
    classes = true_classes(task, targets)
    return float(np.bincount(classes).max() / len(classes))
