"""Quantizing float files: made once, calibrated once, quantized in many ways in little time."""

from optkit.quantize.calibrate import Ranges, calibrate, histograms
from optkit.quantize.floatfile import FloatFile, Operation, float_file
from optkit.quantize.ranges import ESTIMATORS, clip_aware, estimate
from optkit.quantize.variant import Scheme, float_operations, quantize

__all__ = [
    "ESTIMATORS",
    "FloatFile",
    "Operation",
    "Ranges",
    "Scheme",
    "calibrate",
    "clip_aware",
    "estimate",
    "float_file",
    "float_operations",
    "histograms",
    "quantize",
]
