"""`Meter`: measures every stage of a run the same way, against the same baseline."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np

from optkit.artifact import Artifact
from optkit.data import BoundData, Split, first_leaf
from optkit.measuring.accuracy import Scores, score
from optkit.measuring.latency import LatencyProcess
from optkit.measuring.measurement import Comparison, Measurement
from optkit.measuring.statistics import mean_interval, paired_change, unpaired_change
from optkit.metric import Metric
from optkit.task import Task

__all__ = ["Measured", "Meter"]

_LOG = logging.getLogger("optkit")
_BASELINE = "baseline"


class Measured(NamedTuple):
    """What `Meter.measure` found.

    Attributes:
        figures: The artifact's figures on the split that is reported.
        comparison: Against the baseline; empty for the baseline itself.
        validation: The metric on ``validation``, on which decisions are made; ``None`` without one.
        notes: What could not be measured, and why.
    """

    figures: Measurement
    comparison: Comparison
    validation: float | None
    notes: tuple[str, ...]


class Meter:
    """Measures artifacts on the data of a run, each through its own runtime.

    Args:
        data: The bound data; figures are of `BoundData.report_split`.
        task: What the model is for.
        metric: The metric that "accuracy" stands for.
        threads: Threads for latency.
    """

    def __init__(self, data: BoundData, task: Task, metric: Metric, *, threads: int = 1):
        self.data, self.task, self.metric, self.threads = data, task, metric, threads
        #: What the user should know of the measuring, for the report.
        self.notes: list[str] = []
        self._baseline: Scores | None = None
        self._process: LatencyProcess | None = None
        self._baseline_loaded = False
        self._stages = 0

    def __enter__(self) -> Meter:
        split = self.data.report_split or self.data.train
        if split is None:
            split = self.data.calibration_split()
        sample, _ = split.head(1)
        if np.asarray(first_leaf(sample)).dtype.kind in "OSU":
            self.notes.append("latency: not measured for inputs that are strings")
            return self
        opened = [info for info in split.inputs if None in info.shape[1:]]
        if opened:
            shapes = ", ".join(str(np.shape(leaf)) for leaf in _leaves(sample))
            self.notes.append(
                f"latency: open input shape pinned to {shapes}, that of the first sample"
            )
        self._process = LatencyProcess(self.threads, sample)
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()

    def measure(self, artifact: Artifact) -> Measured:
        """Measures an artifact; the first one becomes the baseline of the others."""
        notes: list[str] = []
        figures: dict[str, Any] = {
            "size_bytes": artifact.size_bytes,
            "compressed_bytes": artifact.compressed_bytes,
            "parameters": artifact.parameters,
            "sparsity": artifact.sparsity,
        }
        against: dict[str, Any] = {}
        split = self.data.report_split
        scores = None
        if split is not None:
            scores = self._score(artifact, split)
            figures |= {
                "accuracy": scores.mean,
                "accuracy_ci": mean_interval(scores.values),
                "samples": len(scores.values),
                "per_class": self._named(scores.per_class),
            }
            if self._baseline is not None:
                paired = self._baseline.order == scores.order
                if not paired:
                    notes.append(
                        f"`{split.name}` came in another order than for the baseline, so the "
                        "change is not taken sample by sample: give it without `.shuffle()`"
                    )
                compare = paired_change if paired else unpaired_change
                change, interval = compare(self._baseline.values, scores.values)
                against |= {"accuracy_change": change, "accuracy_change_ci": interval}
        decisive = self.data.validation
        if decisive is None or decisive is split:
            validation = scores.mean if scores is not None and decisive is split else None
        else:
            validation = self._score(artifact, decisive).mean
        is_baseline = self._stages == 0
        self._stages += 1
        if is_baseline:
            self._baseline = scores
        if self._process is not None:
            try:
                self._time(artifact, is_baseline, figures, against)
            except Exception as error:
                # A figure that could not be had is missing from the report; the run goes on.
                _LOG.warning("latency not measured: %s", error)
                notes.append(f"latency not measured: {error}")
        return Measured(Measurement(**figures), Comparison(**against), validation, tuple(notes))

    def _time(
        self,
        artifact: Artifact,
        is_baseline: bool,
        figures: dict[str, Any],
        against: dict[str, Any],
    ) -> None:
        assert self._process is not None
        key = _BASELINE if is_baseline else f"stage-{self._stages}"
        self._process.load(key, artifact)
        if is_baseline:
            self._baseline_loaded = True
            latency = self._process.time(key)
        else:
            if self._baseline_loaded:
                latency, speedup = self._process.time_against(key, _BASELINE)
                against |= {"speedup": speedup.ratio, "speedup_ci": speedup.ci}
            else:
                latency = self._process.time(key)
            self._process.unload(key)
        figures |= {
            "latency_ms": latency.median_ms,
            "latency_p90_ms": latency.p90_ms,
            "latency_ci": latency.ci,
        }

    def _score(self, artifact: Artifact, split: Split) -> Scores:
        scores = score(artifact, split, self.task, self.metric)
        if split.samples is None:
            split.samples = len(scores.values)
        return scores

    def _named(self, per_class: dict[int, float] | None) -> dict[str, float] | None:
        if per_class is None:
            return None
        names = self.data.class_names
        return {
            names[number] if number < len(names) else str(number): value
            for number, value in per_class.items()
        }


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, dict):
        return list(x.values())
    return list(x) if isinstance(x, list | tuple) else [x]
