"""What a quantized file is worth: how far its outputs are from the float model's, and its score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import TFLiteArtifact
from optkit.errors import DataError, OptkitError
from optkit.metric import Metric
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.sources import Taken, leaves_of

__all__ = ["Judge", "Judgement", "Scored", "relative_error", "score_of"]


@dataclass(frozen=True)
class Judgement:
    """What a file is worth on the samples of a `Judge`.

    Attributes:
        error: Root of the mean squared difference to the float outputs, relative to their spread;
            of several outputs the mean.
        score: The metric; ``None`` where the samples have no targets.
        values: The metric of each sample, where it has one, times what it counts against the mean
            sample; for paired comparisons.
    """

    error: float
    score: float | None
    values: np.ndarray | None


def relative_error(wanted: np.ndarray, found: np.ndarray) -> float:
    """Root of the mean squared difference, relative to the standard deviation of what is wanted.

    Args:
        wanted: The float outputs, any shape.
        found: Those to compare, of the same shape.

    Example:
        >>> import numpy as np
        >>> relative_error(np.array([0.0, 2.0]), np.array([0.0, 1.0]))
        0.7071067811865476
    """
    spread = float(np.std(wanted, dtype=np.float64)) or 1.0
    difference = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return float(np.sqrt(np.mean(difference**2)) / spread)


@dataclass(frozen=True)
class Scored:
    """The metric of some outputs.

    Attributes:
        figure: The metric.
        values: That of each sample, shape ``(n,)``; ``None`` for a figure of all samples.
        weights: How much each sample counts, shape ``(n,)``; ``None`` where all count alike.
    """

    figure: float
    values: np.ndarray | None = None
    weights: np.ndarray | None = None


def score_of(
    metric: Metric, y: Any, outputs: Mapping[str, np.ndarray], weights: Any = None
) -> Scored:
    """The metric of outputs, and that of each sample.

    Args:
        metric: The metric of a run.
        y: Targets; of a model with several outputs by name.
        outputs: The outputs by name; of a model with one under any.
        weights: Weights of the samples, or by name of the output; they count if the metric says so.

    Raises:
        DataError: If all weights are 0.
        OptkitError: If the metric cannot be computed on samples.
    """
    name = metric.output if metric.parts else ""
    own = metric.each[name]
    y, found = (y[name], outputs[name]) if name else (y, next(iter(outputs.values())))
    if own.per_sample is None:
        if own.whole is None:
            raise OptkitError(f"Metric {own.name!r} cannot be computed on samples.")
        return Scored(float(own.whole(y, found)))
    values = np.asarray(own.per_sample(y, found), np.float64)
    weights = weights.get(name) if isinstance(weights, dict) else weights
    if not own.weighted or weights is None:
        return Scored(float(values.mean()), values)
    shares = np.asarray(weights, np.float64).reshape(-1)
    if not shares.any():
        raise DataError(
            f"All of the {len(shares)} samples to choose on have weight 0: none would count. Give "
            "`validation` more samples that count."
        )
    return Scored(float(np.average(values, weights=shares)), values, shares)


class Judge:
    """Runs variants of a file on samples that were set aside for choosing among them.

    Args:
        file: The float file; its outputs are what others are compared with.
        taken: The samples: inputs of the model, with its lookups, and targets where there are any.
        metric: The metric of the run.

    Attributes:
        samples: How many samples there are.
        labelled: Whether they have targets.
        wanted: The outputs that others are compared with, by name.
        float: What the float file is worth.
    """

    def __init__(self, file: FloatFile, taken: Taken, metric: Metric):
        self.metric, self._taken = metric, taken
        leaves = leaves_of(taken.x, file.source.whole)
        samples = [[leaf[i : i + 1] for leaf in leaves] for i in range(len(leaves[0]))]
        behind = list(file.behind(lambda: iter(samples))())
        stacked = [np.concatenate(parts) for parts in zip(*behind, strict=True)]
        self._inputs = {
            info.name: leaf for info, leaf in zip(file.signature.inputs, stacked, strict=True)
        }
        self.samples, self.labelled = taken.count, taken.y is not None
        self.wanted = self.run(file.content)
        self.float = self._judgement(self.wanted)

    def compare_with(self, file: FloatFile) -> None:
        """Has errors counted from another float file; drops still are from the first one."""
        self.wanted = self.run(file.content)

    def run(self, content: bytes) -> dict[str, np.ndarray]:
        """The outputs of a file by name."""
        found = TFLiteArtifact(content, threads=_threads()).predict(self._inputs, 64)
        return found if isinstance(found, dict) else {"": found}

    def __call__(self, content: bytes) -> Judgement:
        """Runs and compares a file."""
        return self._judgement(self.run(content))

    def _judgement(self, outputs: dict[str, np.ndarray]) -> Judgement:
        errors = [relative_error(self.wanted[name], found) for name, found in outputs.items()]
        score, values = None, None
        if self.labelled:
            found = score_of(self.metric, self._taken.y, outputs, self._taken.weights)
            score, values = found.figure, found.values
            if values is not None and found.weights is not None:
                values = values * found.weights / found.weights.mean()
        return Judgement(float(np.mean(errors)), score, values)

    def drop(self, judged: Judgement) -> float:
        """By how much a file is worse than the float one, in the metric's own unit."""
        if judged.score is None or self.float.score is None:
            return 0.0
        return self.metric.sign() * (self.float.score - judged.score)


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 1
