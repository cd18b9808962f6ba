"""What measuring gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from optkit import _validate
from optkit.artifact import Layer
from optkit.measuring.statistics import Interval, verdict

__all__ = [
    "ClassChange",
    "Comparison",
    "Layer",
    "Measurement",
    "OutputChange",
    "OutputFigures",
    "Throughput",
    "worst_classes",
]


@dataclass(frozen=True)
class Throughput:
    """What parallel callers got out of an artifact, each waiting for its answer before it asks again.

    Attributes:
        callers: Callers in parallel.
        batch_size: Samples a request.
        requests_per_second: Requests answered, all callers together.
        p50_ms: Time of a request that half of them stay under, in milliseconds.
        p95_ms: The time that 95 in 100 stay under.
        p99_ms: The time that 99 in 100 stay under.
        error_rate: Share of requests that failed.
    """

    callers: int
    batch_size: int
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_rate: float


@dataclass(frozen=True)
class OutputFigures:
    """How good one output of several is.

    Attributes:
        metric: Name of its metric.
        higher_is_better: Whether more of it is better.
        accuracy: The metric, on the split that is reported.
        accuracy_ci: Its 95 % interval; ``None`` where it has none on so few samples.
        per_class: Classification accuracy by true class, or by label.
        class_samples: Number of samples of each class.
    """

    metric: str
    higher_is_better: bool
    accuracy: float
    accuracy_ci: Interval | None = None
    per_class: dict[str, float] | None = None
    class_samples: dict[str, int] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OutputFigures:
        """What ``dataclasses.asdict`` gave, also after a round trip through JSON."""
        return cls(**{**values, "accuracy_ci": _pair(values["accuracy_ci"])})


@dataclass(frozen=True)
class OutputChange:
    """What became of the metric of one output of several, against the baseline.

    Attributes:
        change: Change of the metric on the same samples.
        change_ci: Its 95 % interval, paired by sample; ``None`` where it has none.
    """

    change: float
    change_ci: Interval | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OutputChange:
        """What ``dataclasses.asdict`` gave, also after a round trip through JSON."""
        return cls(float(values["change"]), _pair(values["change_ci"]))


def _pair(values: Any) -> Interval | None:
    return None if values is None else (float(values[0]), float(values[1]))


@dataclass(frozen=True)
class Measurement:
    """Figures of one artifact. A figure that was not measured is ``None``, never 0.

    Intervals are 95 % intervals.

    Attributes:
        accuracy: The metric, on the split that is reported; classification accuracy in ``[0, 1]``
            unless the report names another metric.
        accuracy_ci: Its interval; ``None`` also where the metric has none on so few samples.
        samples: Number of samples it was measured on.
        per_class: Classification accuracy by true class (by label, for several labels), whatever
            the metric is.
        class_samples: Number of samples of each class.
        latency_ms: Median time of one call, in milliseconds: of one sample, unless the run was
            asked to measure larger batches.
        latency_p90_ms: The time that nine in ten stay under.
        latency_p99_ms: The time that 99 in 100 stay under.
        latency_ci: Interval of the median.
        size_bytes: Bytes of the file.
        compressed_bytes: Bytes of the file gzipped.
        parameters: Number of weight values.
        sparsity: Share of zeros in the weights of rank two and above.
        peak_memory_bytes: Peak resident memory of a process that loads and runs it, the runtime
            included.
        runtime_memory_bytes: Resident memory of that process before it loaded the artifact.
        throughput: What parallel callers got out of it.
        layers: What each of its layers takes up.
        outputs: Of a model with several outputs, how good each is, by name; `accuracy` and
            `per_class` are those of the one that the run is judged by, else of the first. ``None``
            for one output.
    """

    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    samples: int | None = None
    per_class: dict[str, float] | None = None
    class_samples: dict[str, int] | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_ci: Interval | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    parameters: int | None = None
    sparsity: float | None = None
    peak_memory_bytes: int | None = None
    runtime_memory_bytes: int | None = None
    throughput: Throughput | None = None
    layers: tuple[Layer, ...] | None = None
    outputs: dict[str, OutputFigures] | None = None

    def of_output(self, name: str) -> Measurement:
        """The figures as if one output of several were the only one; itself where there is none."""
        own = (self.outputs or {}).get(name)
        if own is None:
            return self
        return dataclasses.replace(
            self,
            accuracy=own.accuracy,
            accuracy_ci=own.accuracy_ci,
            per_class=own.per_class,
            class_samples=own.class_samples,
            outputs=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        values = dataclasses.asdict(self)
        if self.outputs is None:
            del values["outputs"]  # most models have one
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """What `to_dict` gave."""
        values = dict(values)
        for name in ("accuracy_ci", "latency_ci"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        if values.get("throughput") is not None:
            values["throughput"] = Throughput(**values["throughput"])
        if values.get("layers") is not None:
            values["layers"] = tuple(Layer(**layer) for layer in values["layers"])
        if values.get("outputs") is not None:
            values["outputs"] = {
                name: OutputFigures.from_dict(item) for name, item in values["outputs"].items()
            }
        return cls(**values)


@dataclass(frozen=True)
class Comparison:
    """An artifact against the baseline, on the same samples and taken in turns.

    Attributes:
        speedup: Median of the ratios of the baseline's time to the artifact's.
        speedup_ci: Its interval; where it spans 1 there is no measurable change.
        accuracy_change: Change of the metric.
        accuracy_change_ci: Its interval, paired by sample.
        output_changes: Of a model with several outputs, the change of each, by name.
    """

    speedup: float | None = None
    speedup_ci: Interval | None = None
    accuracy_change: float | None = None
    accuracy_change_ci: Interval | None = None
    output_changes: dict[str, OutputChange] | None = None

    @property
    def verdict(self) -> str | None:
        """``"faster"``, ``"slower"`` or ``"no measurable change"``; ``None`` if not measured."""
        return verdict(self.speedup_ci)


class ClassChange(NamedTuple):
    """What became of one class.

    Attributes:
        name: Its name, or its number.
        before: Its accuracy in the baseline; ``None`` if not measured.
        after: Its accuracy.
        change: The difference; ``None`` if not known.
        samples: Samples it was measured on; ``None`` if not known.
    """

    name: str
    before: float | None
    after: float
    change: float | None
    samples: int | None


def worst_classes(
    baseline: Measurement | None, after: Measurement, count: int = 5
) -> list[ClassChange]:
    """The long tail: the classes that a mean hides.

    Half of them are those that lost most, the rest those with the lowest accuracy, each once;
    the lowest accuracy comes first, and of equal ones the greater loss.

    Args:
        baseline: Figures to compare with; ``None`` for none.
        after: Figures with `Measurement.per_class`; without them the list is empty.
        count: How many at most, at least 1.

    Example:
        >>> from optkit.measuring import Measurement, worst_classes
        >>> before = Measurement(per_class={"cat": 0.9, "dog": 0.9, "eel": 0.6})
        >>> after = Measurement(per_class={"cat": 0.9, "dog": 0.7, "eel": 0.6})
        >>> [(worst.name, round(worst.change, 2)) for worst in worst_classes(before, after, 2)]
        [('eel', 0.0), ('dog', -0.2)]
    """
    _validate.integer("count", count, minimum=1)
    known = (baseline.per_class or {}) if baseline is not None else {}
    numbers = after.class_samples or {}
    classes = [
        ClassChange(
            name,
            known.get(name),
            value,
            value - known[name] if name in known else None,
            numbers.get(name),
        )
        for name, value in (after.per_class or {}).items()
    ]
    lost = sorted(
        (item for item in classes if item.change is not None and item.change < 0),
        key=lambda item: item.change or 0.0,
    )
    chosen = lost[: (count + 1) // 2]
    for item in sorted(classes, key=_lowest_first):
        if len(chosen) >= count:
            break
        if item not in chosen:
            chosen.append(item)
    return sorted(chosen, key=_lowest_first)


def _lowest_first(item: ClassChange) -> tuple[float, float]:
    return item.after, item.change or 0.0
