"""Measuring: accuracy, latency, size, parameters and sparsity of any artifact."""

from optkit.measure.measurement import Comparison, Measurement
from optkit.measure.meter import Measured, Meter
from optkit.measure.statistics import Interval

__all__ = ["Comparison", "Interval", "Measured", "Measurement", "Meter"]
