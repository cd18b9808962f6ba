"""Measuring: accuracy, latency, size, parameters and sparsity of any artifact."""

from optkit.measuring.measurement import Comparison, Layer, Measurement, Throughput
from optkit.measuring.meter import Measured, Meter
from optkit.measuring.statistics import Interval

__all__ = [
    "Comparison",
    "Interval",
    "Layer",
    "Measured",
    "Measurement",
    "Meter",
    "Throughput",
]
