"""Whether calibration looks like other data: what would be clipped, what range is wasted."""

from __future__ import annotations

import numpy as np

from optkit.convert import Samples
from optkit.quantize.calibrate import Ranges, calibrate, histograms
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.ranges import clip_aware

__all__ = ["mismatch"]

_NARROW = 2.0  # how many times as wide as seen ranges may be before that is said
_CLIPPED = 0.001  # share of the activations out of range from which on that is said
_FEW = 8  # samples that do not reach far by themselves


def mismatch(file: FloatFile, ranges: Ranges, samples: Samples, *, clips: bool) -> list[str]:
    """How samples differ from those that ranges were measured on, in words; nothing if they agree.

    Args:
        file: The float file.
        ranges: Its calibrated ranges, from the lowest to the highest value.
        samples: Inputs of the file, such as those of the validation split.
        clips: Whether values that no operator tells apart were left out of the ranges.
    """
    every = list(samples())
    others = calibrate(file, lambda: iter(every))
    seen = histograms(file, lambda: iter(every), others)
    if clips:
        others = clip_aware(file, others)
    values = outside = 0
    worst: tuple[float, str] = (0.0, "")
    widths = []
    for name, counted in seen.items():
        if name not in ranges:
            continue
        low, high = _with_zero(*ranges[name])
        centers = np.clip(counted.centers, *others[name])
        edge = (centers < low) | (centers > high)
        out, total = int(counted.counts[edge].sum()), int(counted.counts.sum())
        values, outside = values + total, outside + out
        worst = max(worst, (out / total, name))
        seen_low, seen_high = _with_zero(*others[name])
        widths.append((high - low) / (seen_high - seen_low))
    said = []
    if values and outside / values > _CLIPPED:
        said.append(
            f"calibration does not cover validation: {_percent(outside / values)} of its "
            f"activations are clipped, {_percent(worst[0])} of those of "
            f"{file.readable(worst[1]).partition(';')[0]!r}"
        )
    wide = float(np.median(widths)) if widths else 1.0
    if wide > _NARROW and len(every) >= _FEW:
        said.append(
            f"calibrated ranges are {wide:.3g} times as wide as validation needs, so that most of "
            "the 8 bits are never used: are calibration and validation scaled alike?"
        )
    return said


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """A range as it is stored: 0 is in it, as it must have a number of its own."""
    return min(low, 0.0), max(high, 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
