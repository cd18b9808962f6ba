"""From what was seen of an activation to the range that 8 bits are spread over."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optkit.quantize.calibrate import Histogram, Ranges
from optkit.quantize.floatfile import FloatFile

__all__ = ["ESTIMATORS", "clip_aware", "estimate", "squared_error"]

#: The ways to choose a range, the plainest first.
ESTIMATORS = ("minmax", "percentile", "mse")

_SHARE = 0.9999  # of the values that a percentile range holds, half of the rest on each side
_STEPS = 256
_TRIED = 40
_NARROWEST = 0.2

#: What an operator tells apart of its input; beyond that, the 8 bits of its output are the same.
_TOLD_APART = {
    "RELU": (0.0, np.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
    "HARD_SWISH": (-3.0, np.inf),
    "LOGISTIC": (-8.0, 8.0),
    "TANH": (-4.0, 4.0),
}


def estimate(kind: str, ranges: Ranges, seen: Mapping[str, Histogram]) -> Ranges:
    """Ranges by one of the ways in `ESTIMATORS`.

    - ``"minmax"``: from the lowest to the highest value.
    - ``"percentile"``: without the outermost 0.01 % of the values.
    - ``"mse"``: with the least squared error, rounding and clipping taken together.

    Args:
        kind: Which way.
        ranges: The extremes, by name.
        seen: What values there were between them; where nothing is known the extremes stay.
    """
    if kind == "minmax":
        return dict(ranges)
    choose = _percentile if kind == "percentile" else _least_error
    return {
        name: choose(seen[name]) if name in seen else extremes for name, extremes in ranges.items()
    }


def _percentile(seen: Histogram) -> tuple[float, float]:
    total = np.cumsum(seen.counts)
    out = (1 - _SHARE) / 2 * total[-1]
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    first = int(np.searchsorted(total, out, side="right"))
    last = int(np.searchsorted(total, total[-1] - out, side="left"))
    return float(edges[first]), float(edges[min(last, len(seen.counts) - 1) + 1])


def _least_error(seen: Histogram) -> tuple[float, float]:
    """The range of the least squared error: each end is drawn in by steps while that helps."""
    centers, counts = seen.centers, seen.counts.astype(np.float64)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    best = squared_error(low, high, centers, counts)
    shares = np.linspace(1.0, _NARROWEST, _TRIED)
    chosen = (low, high)
    for share in shares[1:]:
        for pair in ((low * share, high * share), (low, high * share), (low * share, high)):
            error = squared_error(pair[0], pair[1], centers, counts)
            if error < best:
                best, chosen = error, pair
    return chosen


def squared_error(low: float, high: float, values: np.ndarray, counts: np.ndarray) -> float:
    """The sum of squared differences between values and what 8 bits make of them.

    Args:
        low: Lower end of the range, at most 0.
        high: Upper end of the range, at least 0.
        values: Values.
        counts: How often each occurs.
    """
    scale = (high - low) / (_STEPS - 1)
    if scale <= 0:
        return float(np.sum(counts * values**2))
    zero = np.rint(-low / scale)
    stored = np.clip(np.rint(values / scale) + zero, 0, _STEPS - 1)
    return float(np.sum(counts * ((stored - zero) * scale - values) ** 2))


def clip_aware(file: FloatFile, ranges: Ranges) -> Ranges:
    """Ranges without what no operator that reads the activation tells apart.

    A ReLU tells no negative values apart, so 8 bits need not be spent on them; a sigmoid none
    beyond 8. The outputs of the file are left as they are.
    """
    readers: dict[str, list[str]] = {}
    for operation in file.operations:
        for name in operation.inputs:
            readers.setdefault(name, []).append(operation.kind)
    narrowed = dict(ranges)
    for name, (low, high) in ranges.items():
        limits = [_TOLD_APART.get(kind) for kind in readers.get(name, [])]
        if name in file.outputs or name in file.inputs or not limits or None in limits:
            continue
        known = [limit for limit in limits if limit is not None]
        least, most = min(a for a, _ in known), max(b for _, b in known)
        fresh = (max(low, least), min(high, most))
        if fresh[0] < fresh[1]:
            narrowed[name] = fresh
    return narrowed
