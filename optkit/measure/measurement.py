"""What measuring gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from optkit.measure.statistics import Interval

__all__ = ["Comparison", "Measurement"]


def _tuples(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        key: tuple(value) if key in names and value is not None else value
        for key, value in values.items()
    }


@dataclass(frozen=True)
class Measurement:
    """Figures of one artifact. A figure that was not measured is ``None``, never 0.

    Intervals are 95 % intervals.

    Attributes:
        accuracy: The metric, on the split that is reported; classification accuracy in ``[0, 1]``
            unless the report names another metric.
        accuracy_ci: Its interval.
        samples: Number of samples it was measured on.
        per_class: Accuracy by class (by label, for several labels).
        latency_ms: Median time of one sample, in milliseconds.
        latency_p90_ms: The time that nine in ten stay under.
        latency_ci: Interval of the median.
        size_bytes: Bytes of the file.
        compressed_bytes: Bytes of the file gzipped.
        parameters: Number of weight values.
        sparsity: Share of zeros in the weights of rank two and above.
        peak_memory_bytes: Peak memory of loading and running it.
    """

    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    samples: int | None = None
    per_class: dict[str, float] | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_ci: Interval | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    parameters: int | None = None
    sparsity: float | None = None
    peak_memory_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """What `to_dict` gave."""
        return cls(**_tuples(values, ("accuracy_ci", "latency_ci")))


@dataclass(frozen=True)
class Comparison:
    """An artifact against the baseline, on the same samples and taken in turns.

    Attributes:
        speedup: Median of the ratios of the baseline's time to the artifact's.
        speedup_ci: Its interval; where it spans 1 there is no measurable change.
        accuracy_change: Change of the metric.
        accuracy_change_ci: Its interval, paired by sample.
    """

    speedup: float | None = None
    speedup_ci: Interval | None = None
    accuracy_change: float | None = None
    accuracy_change_ci: Interval | None = None
