"""`Goals`: what must be reached, checked on the way (accuracy) and at the end (everything)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optkit import _validate
from optkit.measuring import Comparison, Interval, Measurement, OutputChange

__all__ = ["Goal", "Goals"]

_MB = 1e6  # as in the report: powers of 1000


@dataclass(frozen=True)
class Goals:
    """What the result must reach; give any subset.

    All goals are judged at the end, on the split that the report shows, by the figure measured.
    One of them also guards the way there: after each pass `max_accuracy_drop` is checked on
    ``validation``, against the model that came in, and `Pipeline` undoes a pass that breaks it
    (``on_violation="rollback"``), stops there, or goes on.

    Where the metric is an error (less is better), ``min_accuracy`` is the largest error allowed and
    ``max_accuracy_drop`` how much it may grow. Of a model with several outputs, goals of accuracy
    must hold for each that `Measure(output=…)` does not leave out, and show the worst.

    Args:
        min_accuracy: Least accuracy, or whatever the metric of the run is.
        max_accuracy_drop: How much of it may be lost against the model that came in; 0.01 is one
            point of accuracy. At least 0.
        max_size_mb: Largest file, in millions of bytes.
        max_latency_ms: Longest median latency, in milliseconds.
        min_speedup: How many times faster than the model that came in.
        min_throughput: Least requests a second.
        max_memory_mb: Largest peak memory of loading and running, in millions of bytes.
        min_class_accuracy: Least accuracy in every single class.
        judge_by: How the guard judges a drop. ``"interval"``: it is a violation where the whole 95 %
            interval of the paired change lies beyond the limit, so that noise of a small sample
            undoes nothing. ``"figure"``: the figure alone decides.

    Raises:
        PipelineError: For a limit out of its range.

    Example:
        >>> Goals(max_accuracy_drop=0.015, max_size_mb=15)
        Goals(max_accuracy_drop=0.015, max_size_mb=15)
    """

    min_accuracy: float | None = None
    max_accuracy_drop: float | None = None
    max_size_mb: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None
    min_throughput: float | None = None
    max_memory_mb: float | None = None
    min_class_accuracy: float | None = None
    judge_by: str = "interval"

    def __post_init__(self) -> None:
        _validate.optional(_validate.number, "min_accuracy", self.min_accuracy)
        _validate.optional(
            _validate.number, "min_class_accuracy", self.min_class_accuracy, minimum=0, maximum=1
        )
        _validate.optional(_validate.number, "max_accuracy_drop", self.max_accuracy_drop, minimum=0)
        for name in (
            "max_size_mb",
            "max_latency_ms",
            "min_speedup",
            "min_throughput",
            "max_memory_mb",
        ):
            _validate.optional(
                _validate.number, name, getattr(self, name), minimum=0, exclusive="min"
            )
        _validate.one_of("judge_by", self.judge_by, ("interval", "figure"))

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Goals({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """The arguments, fit for JSON."""
        return dataclasses.asdict(self)

    def violated(
        self, change: float | None, interval: Interval | None, *, higher_is_better: bool
    ) -> bool:
        """Whether a change of the metric breaks `max_accuracy_drop`.

        Args:
            change: Change against the model that came in; ``None`` where it was not measured.
            interval: Its 95 % interval.
            higher_is_better: Whether more of the metric is better.
        """
        if self.max_accuracy_drop is None or change is None:
            return False
        sign = 1 if higher_is_better else -1
        gain = sign * change
        if self.judge_by == "interval" and interval is not None:
            gain = max(sign * end for end in interval)
        return gain < -self.max_accuracy_drop - _ROUNDING

    def judge(
        self,
        baseline: Measurement,
        final: Measurement,
        against: Comparison,
        *,
        higher_is_better: bool,
        outputs: Sequence[str] = (),
    ) -> tuple[Goal, ...]:
        """Every goal that was set, with the figure that was reached.

        Args:
            baseline: Figures of the model that came in.
            final: Figures of what is to be deployed.
            against: The latter against the former; empty where nothing changed the model.
            higher_is_better: Whether more of the metric is better.
            outputs: Of a model with several outputs, those that goals of accuracy are judged on.
        """
        if outputs and final.outputs:
            return self._judge_outputs(baseline, final, against, outputs)
        sign = 1 if higher_is_better else -1
        drop: tuple[float | None, Interval | None] = (None, None)
        if against.accuracy_change is not None:
            ends = against.accuracy_change_ci
            swapped = None if ends is None else sorted((-sign * ends[0], -sign * ends[1]))
            drop = (
                -sign * against.accuracy_change,
                None if swapped is None else (swapped[0], swapped[1]),
            )
        elif final is baseline and baseline.accuracy is not None:
            drop = (0.0, None)
        worst = None
        if final.per_class:
            worst = min(final.per_class.values())
        speedup = 1.0 if final is baseline and baseline.latency_ms else against.speedup
        throughput = final.throughput.requests_per_second if final.throughput else None

        def scaled(value: float | None) -> float | None:
            return None if value is None else value / _MB

        figures: dict[str, tuple[float | None, Interval | None, str, bool]] = {
            # name: figure, interval, unit, whether it has to be at least the limit
            "min_accuracy": (final.accuracy, final.accuracy_ci, "", higher_is_better),
            "max_accuracy_drop": (*drop, "", False),
            "max_size_mb": (scaled(final.size_bytes), None, "MB", False),
            "max_latency_ms": (final.latency_ms, final.latency_ci, "ms", False),
            "min_speedup": (speedup, against.speedup_ci, "", True),
            "min_throughput": (throughput, None, "requests/s", True),
            "max_memory_mb": (scaled(final.peak_memory_bytes), None, "MB", False),
            "min_class_accuracy": (worst, None, "", True),
        }
        goals = []
        for name, (figure, interval, unit, at_least) in figures.items():
            limit = getattr(self, name)
            if limit is not None:
                goals.append(Goal(name, float(limit), figure, interval, unit, at_least))
        return tuple(goals)

    def _judge_outputs(
        self,
        baseline: Measurement,
        final: Measurement,
        against: Comparison,
        outputs: Sequence[str],
    ) -> tuple[Goal, ...]:
        """Judges each output as if it were the only one, and gives the worst of each goal."""
        judged: dict[str, list[Goal]] = {}
        for name in outputs:
            first, last = (side.of_output(name) for side in (baseline, final))
            # What holds for the whole model is one object, as `judge` tells the baseline by it.
            last = first if final is baseline else last
            change = (against.output_changes or {}).get(name, OutputChange(0.0))
            own = dataclasses.replace(
                against,
                accuracy_change=change.change if against.output_changes else None,
                accuracy_change_ci=change.change_ci,
            )
            better = (final.outputs or {})[name].higher_is_better
            for goal in self.judge(first, last, own, higher_is_better=better):
                if goal.name == "min_class_accuracy" and last.per_class is None:
                    continue  # an output without classes
                of_output = goal.name in _BY_OUTPUT
                judged.setdefault(goal.name, []).append(
                    dataclasses.replace(goal, output=name if of_output else "")
                )
        return tuple(min(found, key=_margin) for found in judged.values())


_BY_OUTPUT = ("min_accuracy", "max_accuracy_drop", "min_class_accuracy")


def _margin(goal: Goal) -> float:
    return -math.inf if goal.margin is None else goal.margin


_ROUNDING = 1e-9  # a drop of exactly the limit is allowed, whatever the last bit says


@dataclass(frozen=True)
class Goal:
    """A goal and what was reached.

    Attributes:
        name: As in `Goals`.
        limit: What was asked for.
        figure: What was reached; ``None`` where it could not be measured.
        figure_ci: Its 95 % interval, where there is one.
        unit: Unit of limit and figure; empty for shares and ratios.
        at_least: Whether the figure must be at least the limit; otherwise at most.
        output: Of a model with several outputs, the one whose figure this is, the worst of them;
            empty for one output, and where the figure is of the whole model.
    """

    name: str
    limit: float
    figure: float | None
    figure_ci: Interval | None = None
    unit: str = ""
    at_least: bool = False
    output: str = ""

    @property
    def margin(self) -> float | None:
        """By how much it was met; negative by how much it was missed."""
        if self.figure is None:
            return None
        return self.figure - self.limit if self.at_least else self.limit - self.figure

    @property
    def met(self) -> bool:
        """Whether the figure keeps the limit; a figure that was not measured meets nothing."""
        return self.margin is not None and self.margin >= -_ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        values = dataclasses.asdict(self) | {"margin": self.margin, "met": self.met}
        if not self.output:
            del values["output"]  # most models have one
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Goal:
        """What `to_dict` gave."""
        names = (field.name for field in dataclasses.fields(cls) if field.name != "output")
        kept = {name: values[name] for name in names} | {"output": values.get("output", "")}
        if kept["figure_ci"] is not None:
            kept["figure_ci"] = tuple(kept["figure_ci"])
        return cls(**kept)
