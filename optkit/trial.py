"""`Judge`: whether an artifact that a pass might keep meets goals, before anybody else sees it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from optkit.artifact import Artifact
from optkit.data import BoundData
from optkit.goals import Goal, Goals
from optkit.measuring import Interval, Measure, Measured, Measurement, Meter
from optkit.metric import Metric
from optkit.task import Task

__all__ = ["Judge", "Verdict", "needs_timing"]


@dataclass(frozen=True)
class Verdict:
    """What was found of an artifact that a pass might keep.

    Attributes:
        goals: Each goal that was asked for, with what was reached.
        figures: Its figures; what has to do with accuracy is of ``validation``.
        accuracy_change: Change of the metric on ``validation`` against the model that came in.
        accuracy_change_ci: Its paired interval.
        notes: What could not be measured, and why.
    """

    goals: tuple[Goal, ...]
    figures: Measurement
    accuracy_change: float | None = None
    accuracy_change_ci: Interval | None = None
    notes: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every goal was met, by the figure that was measured."""
        return all(goal.met for goal in self.goals)

    @property
    def missed(self) -> tuple[Goal, ...]:
        """The goals that were not met."""
        return tuple(goal for goal in self.goals if not goal.met)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "goals": [goal.to_dict() for goal in self.goals],
            "figures": self.figures.to_dict(),
            "accuracy_change": self.accuracy_change,
            "accuracy_change_ci": self.accuracy_change_ci,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verdict:
        """What `to_dict` gave, also after a round trip through JSON."""
        return cls(
            tuple(map(Goal.from_dict, values["goals"])),
            Measurement.from_dict(values["figures"]),
            values["accuracy_change"],
            _pair(values["accuracy_change_ci"]),
            tuple(values["notes"]),
        )


def _pair(ends: Any) -> Interval | None:
    return None if ends is None else (ends[0], ends[1])


def needs_timing(goals: Goals) -> bool:
    """Whether goals depend on the machine, and not on the artifact and the data alone."""
    timed = (goals.max_latency_ms, goals.min_speedup, goals.min_throughput, goals.max_memory_mb)
    return any(limit is not None for limit in timed)


class Judge:
    """Judges artifacts as the stages of a run are measured, but on ``validation`` alone.

    ``test`` is not looked at: what is chosen on it is no longer what the report says. Latency,
    throughput and memory are measured only for goals that ask for them.

    Args:
        data: The bound data.
        task: What the model is for.
        metric: The metric that "accuracy" stands for.
        measure: How the stages are measured.
        baseline: Gives the model that came in, which changes and speedups are against.
    """

    def __init__(
        self,
        data: BoundData,
        task: Task,
        metric: Metric,
        measure: Measure,
        baseline: Callable[[], Artifact],
    ):
        self.data = dataclasses.replace(data, test=None)
        self.task, self.metric, self.measure, self.baseline = task, metric, measure, baseline
        self._meters: list[tuple[Measure, Meter, Measured]] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._meters.clear()
        self._open.close()

    def __call__(self, artifact: Artifact, goals: Goals) -> Verdict:
        """Measures what the goals ask for.

        Raises:
            ModelError, DataError: If the artifact cannot be run, or gives values not finite.
        """
        meter, first = self._meter(goals)
        found = meter.measure(artifact)
        judged = goals.judge(
            first.figures,
            found.figures,
            found.comparison,
            higher_is_better=self.metric.higher_is_better,
            outputs=self.metric.judged,
        )
        against = found.comparison
        return Verdict(
            judged, found.figures, against.accuracy_change, against.accuracy_change_ci, found.notes
        )

    def _meter(self, goals: Goals) -> tuple[Meter, Measured]:
        """A meter of what the goals ask for, and what it found of the model that came in."""
        settings = self._settings(goals)
        for known, meter, first in self._meters:
            if known == settings:
                return meter, first
        meter = self._open.enter_context(Meter(self.data, self.task, self.metric, settings))
        first = meter.measure(self.baseline())
        self._meters.append((settings, meter, first))
        return meter, first

    def _settings(self, goals: Goals) -> Measure:
        timed = goals.max_latency_ms is not None or goals.min_speedup is not None
        given = self.measure
        limited = given.device is not None and given.device.memory_mb is not None
        return dataclasses.replace(
            given,
            # A pass may have goals of its own that the run does not measure.
            latency_seconds=(given.latency_seconds or Measure.latency_seconds) if timed else 0.0,
            memory=goals.max_memory_mb is not None or limited,
            callers=(given.callers or 1) if goals.min_throughput is not None else None,
            baseline_runtime=None,
        )
