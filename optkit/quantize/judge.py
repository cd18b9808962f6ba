"""What a quantized file is worth: how far its outputs are from the float model's, and its score."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import TFLiteArtifact
from optkit.errors import OptkitError
from optkit.metric import Metric
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.sources import leaves_of

__all__ = ["Judge", "Judgement", "relative_error"]


@dataclass(frozen=True)
class Judgement:
    """What a file is worth on the samples of a `Judge`.

    Attributes:
        error: Root of the mean squared difference to the float outputs, relative to their spread;
            of several outputs the mean.
        score: The metric; ``None`` where the samples have no targets.
        values: The metric of each sample, where it has one; for paired comparisons.
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


class Judge:
    """Runs variants of a file on samples that were set aside for choosing among them.

    Args:
        file: The float file; its outputs are what others are compared with.
        x: Inputs of the model, with its lookups: an array, or a dict by name.
        y: Targets; ``None`` where there are none.
        metric: The metric of the run.
    """

    def __init__(self, file: FloatFile, x: Any, y: Any, metric: Metric):
        self.metric, self.y = metric, y
        leaves = leaves_of(x, file.source.whole)
        samples = [[leaf[i : i + 1] for leaf in leaves] for i in range(len(leaves[0]))]
        behind = list(file.behind(lambda: iter(samples))())
        stacked = [np.concatenate(parts) for parts in zip(*behind, strict=True)]
        self._inputs = {
            info.name: leaf for info, leaf in zip(file.signature.inputs, stacked, strict=True)
        }
        self.samples = len(samples)
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
        if self.y is not None:
            score, values = self._score(outputs)
        return Judgement(float(np.mean(errors)), score, values)

    def _score(self, outputs: dict[str, np.ndarray]) -> tuple[float, np.ndarray | None]:
        metric, y = self.metric, self.y
        if metric.parts:
            name = metric.output
            metric, y, found = metric.parts[name], y[name], outputs[name]
        else:
            found = next(iter(outputs.values()))
        if metric.per_sample is not None:
            values = np.asarray(metric.per_sample(y, found), np.float64)
            return float(values.mean()), values
        if metric.whole is None:
            raise OptkitError(f"Metric {metric.name!r} cannot be computed on samples.")
        return float(metric.whole(y, found)), None

    def drop(self, judged: Judgement) -> float:
        """By how much a file is worse than the float one, in the metric's own unit."""
        if judged.score is None or self.float.score is None:
            return 0.0
        return self.metric.sign() * (self.float.score - judged.score)


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 1
