"""Intervals: of a proportion, of a mean, of a paired change, of a median and of a ratio."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import numpy as np

__all__ = [
    "Interval",
    "bootstrap_mean",
    "bootstrap_median",
    "bootstrap_whole",
    "is_binary",
    "mean_interval",
    "mean_ratio",
    "paired_change",
    "unpaired_change",
    "verdict",
    "weighted_interval",
    "whole_change",
    "wilson",
]

#: Lower and upper end of a 95 % interval.
Interval = tuple[float, float]

_Z = 1.959963984540054  # the 97.5 % point of the normal distribution
_RESAMPLES = 2000
# A figure of the whole set is computed anew for every resample, by a function that may be slow.
_WHOLE_RESAMPLES = 500
_WHOLE_SECONDS = 3.0
_WHOLE_MINIMUM = 50
_SEED = 20140131  # intervals of the same figures are the same


def wilson(successes: float, n: int) -> Interval:
    """Score interval of a proportion (Wilson, 1927).

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    share, z2 = successes / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _resampled(values: np.ndarray, reduce: object) -> Interval:
    rng = np.random.default_rng(_SEED)
    size = len(values)
    rows = max(1, 2**21 // size)  # bounds the memory of one round of resampling
    figures: list[np.ndarray] = []
    done = 0
    while done < _RESAMPLES:
        count = min(rows, _RESAMPLES - done)
        drawn = values[rng.integers(0, size, (count, size))]
        figures.append(reduce(drawn, axis=1))  # type: ignore[operator]
        done += count
    low, high = np.nanpercentile(np.concatenate(figures), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray) -> Interval:
    """Percentile bootstrap interval of a mean (Efron, 1979)."""
    if len(values) > 10_000:  # the bootstrap has converged to the normal interval by then
        half = _Z * float(np.std(values)) / math.sqrt(len(values))
        mean = float(np.mean(values))
        return mean - half, mean + half
    return _resampled(np.asarray(values, dtype=np.float64), np.mean)


def bootstrap_median(values: np.ndarray) -> Interval:
    """Percentile bootstrap interval of a median."""
    return _resampled(np.asarray(values, dtype=np.float64), np.median)


def mean_ratio(ratios: np.ndarray) -> tuple[float, Interval]:
    """Geometric mean of a few independent ratios, and its interval by Student's t.

    Args:
        ratios: Positive ratios, at least two, such as one for each time that things were set up.
    """
    from scipy import stats

    logs = np.log(ratios)
    centre = float(logs.mean())
    reach = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(centre), (math.exp(centre - reach), math.exp(centre + reach))


def is_binary(values: np.ndarray) -> bool:
    """Whether all values are zero or one, so that their mean is a proportion."""
    return bool(np.all((values == 0) | (values == 1)))


def mean_interval(values: np.ndarray) -> Interval:
    """Wilson interval of zeros and ones, else the bootstrap interval of the mean."""
    if is_binary(values):
        return wilson(float(np.sum(values)), len(values))
    return bootstrap_mean(values)


def weighted_interval(values: np.ndarray, weights: np.ndarray) -> Interval:
    """Percentile bootstrap interval of a weighted mean; samples are drawn with their weights.

    Args:
        values: One value a sample, shape ``(n,)``.
        weights: How much each counts, at least 0.
    """
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if len(values) > 10_000:  # as in `bootstrap_mean`: the linearized mean is normal by then
        mean = float(np.average(values, weights=weights))
        influence = weights * (values - mean) / weights.mean()
        half = _Z * float(np.std(influence)) / math.sqrt(len(values))
        return mean - half, mean + half
    pairs = np.stack([weights * values, weights], axis=1)

    def ratio(drawn: np.ndarray, axis: int) -> np.ndarray:
        sums = drawn.sum(axis=axis)
        # A resample of samples without weight has no mean; it says as little as all of them do.
        held = np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
        return np.asarray(sums[:, 0] / held)

    return _resampled(pairs, ratio)


def unpaired_change(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """Change of a mean between samples that do not belong together one by one (normal interval)."""
    change = float(np.mean(after, dtype=np.float64) - np.mean(before, dtype=np.float64))
    half = _Z * math.sqrt(np.var(before) / len(before) + np.var(after) / len(after))
    return change, (change - half, change + half)


def paired_change(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """Change of a mean over the same samples, and its interval.

    For zeros and ones the adjusted Wald interval of paired proportions (Agresti and Min, 2005),
    which does not collapse where few samples changed; otherwise the bootstrap over the differences.

    Args:
        before: One value a sample, shape ``(n,)``.
        after: Values of the same samples in the same order.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    change = float(differences.mean())
    if not (is_binary(before) and is_binary(after)):
        return change, bootstrap_mean(differences)
    n = len(differences) + 2
    gained = float(np.sum(differences > 0)) + 0.5
    lost = float(np.sum(differences < 0)) + 0.5
    centre = (gained - lost) / n
    half = _Z * math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0)) / n
    return change, (max(-1.0, centre - half), min(1.0, centre + half))


#: A figure of ``(y_true, y_pred)`` that is no mean over samples, such as F1.
Whole = Callable[[np.ndarray, np.ndarray], float]


def bootstrap_whole(whole: Whole, targets: np.ndarray, outputs: np.ndarray) -> Interval | None:
    """Percentile bootstrap interval of a figure of the whole set.

    Resamples for which the figure is not defined (of one class alone, say) are left out.

    Args:
        whole: Function of ``(y_true, y_pred)`` to one figure.
        targets: Shape ``(n, …)``.
        outputs: Of the same samples in the same order.

    Returns:
        The interval; ``None`` where fewer than 50 resamples have the figure.
    """
    n = len(targets)

    def draw(rng: np.random.Generator) -> float:
        rows = rng.integers(0, n, n)
        return whole(targets[rows], outputs[rows])

    return _percentiles(draw)


def whole_change(
    whole: Whole,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    *,
    paired: bool,
) -> Interval | None:
    """Percentile bootstrap interval of the change of a figure of the whole set.

    Args:
        whole: Function of ``(y_true, y_pred)`` to one figure.
        before: Targets and outputs.
        after: Targets and outputs; the same samples in the same order where ``paired``.
        paired: Whether each resample draws the same samples on both sides.

    Returns:
        The interval; ``None`` where fewer than 50 resamples have the figure.
    """

    def draw(rng: np.random.Generator) -> float:
        rows = rng.integers(0, len(before[0]), len(before[0]))
        others = rows if paired else rng.integers(0, len(after[0]), len(after[0]))
        return whole(after[0][others], after[1][others]) - whole(before[0][rows], before[1][rows])

    return _percentiles(draw)


def _percentiles(draw: Callable[[np.random.Generator], float]) -> Interval | None:
    rng = np.random.default_rng(_SEED)
    end = time.monotonic() + _WHOLE_SECONDS
    figures: list[float] = []
    for done in range(_WHOLE_RESAMPLES):
        if done >= _WHOLE_MINIMUM and time.monotonic() > end:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of resamples that lack a class
                figure = float(draw(rng))
        except Exception:
            continue  # it was computed for the split itself; this resample does not allow it
        if math.isfinite(figure):
            figures.append(figure)
    if len(figures) < _WHOLE_MINIMUM:
        return None
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)


def verdict(speedup_ci: Interval | None) -> str | None:
    """What the interval of a speedup says; ``None`` where it was not measured.

    >>> verdict((1.2, 1.4)), verdict((0.7, 0.9)), verdict((0.9, 1.1))
    ('faster', 'slower', 'no measurable change')
    """
    if speedup_ci is None:
        return None
    low, high = speedup_ci
    return "faster" if low > 1 else "slower" if high < 1 else "no measurable change"
