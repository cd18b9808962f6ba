"""Measuring: accuracy, latency, throughput, memory, size and sparsity of any artifact."""

from optkit.measuring.accuracy import Scores, compare_scores
from optkit.measuring.alone import Finding, measure
from optkit.measuring.measurement import (
    ClassChange,
    Comparison,
    Layer,
    Measurement,
    OutputChange,
    OutputFigures,
    Throughput,
    worst_classes,
)
from optkit.measuring.memory import check_device
from optkit.measuring.meter import Measured, Meter
from optkit.measuring.settings import Device, Measure
from optkit.measuring.statistics import Interval, verdict

__all__ = [
    "ClassChange",
    "Comparison",
    "Device",
    "Finding",
    "Interval",
    "Layer",
    "Measure",
    "Measured",
    "Measurement",
    "Meter",
    "OutputChange",
    "OutputFigures",
    "Scores",
    "Throughput",
    "check_device",
    "compare_scores",
    "measure",
    "verdict",
    "worst_classes",
]
