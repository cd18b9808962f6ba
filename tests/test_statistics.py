"""Intervals against independent formulas and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from optkit.measuring import statistics


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 20), (20, 20), (973, 1000)])
def test_wilson_solves_its_defining_equation(successes, n):
    """The ends are the proportions at which the score test is just significant."""
    low, high = statistics.wilson(successes, n)
    z = stats.norm.ppf(0.975)

    def distance(p):
        return (successes / n - p) ** 2 - z**2 * p * (1 - p) / n

    if successes > 0:
        assert low == pytest.approx(
            optimize.brentq(distance, 1e-12, successes / n - 1e-6), abs=1e-9
        )
    else:
        assert low == 0
    if successes < n:
        assert high == pytest.approx(
            optimize.brentq(distance, successes / n + 1e-6, 1 - 1e-12), abs=1e-9
        )
    else:
        assert high == 1


def test_wilson_agrees_with_scipy():
    expected = stats.binomtest(45, 60).proportion_ci(method="wilson")
    assert statistics.wilson(45, 60) == pytest.approx((expected.low, expected.high))


def test_paired_change_is_the_adjusted_wald_interval():
    before = np.array([1] * 70 + [1] * 8 + [0] * 15 + [0] * 7, float)
    after = np.array([1] * 70 + [0] * 8 + [1] * 15 + [0] * 7, float)
    change, (low, high) = statistics.paired_change(before, after)
    assert change == pytest.approx(0.07)
    n, gained, lost = 102, 15.5, 8.5
    centre = (gained - lost) / n
    half = 1.959964 * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert (low, high) == pytest.approx((centre - half, centre + half), rel=1e-6)


def test_paired_change_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        before = rng.random(200) < 0.9
        after = np.where(rng.random(200) < 0.05, ~before, before)
        truth = 0.05 * 0.1 - 0.05 * 0.9
        _, (low, high) = statistics.paired_change(before, after)
        covered += low <= truth <= high
    assert covered >= 0.92 * 300


def test_no_change_at_all_still_has_a_width():
    same = np.ones(50)
    change, (low, high) = statistics.paired_change(same, same)
    assert change == 0
    assert low < 0 < high


def test_bootstrap_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=200)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000
    ).confidence_interval
    assert statistics.bootstrap_mean(values) == pytest.approx(tuple(expected), rel=0.03)


def test_intervals_are_the_same_for_the_same_figures():
    values = np.random.default_rng(1).random(100)
    assert statistics.bootstrap_median(values) == statistics.bootstrap_median(values)


def test_the_mean_of_ratios_is_students_interval_and_covers_the_truth():
    ratios = np.array([1.02, 0.98, 1.05, 1.01, 0.99])
    expected = stats.ttest_1samp(np.log(ratios), 0).confidence_interval()
    ratio, interval = statistics.mean_ratio(ratios)
    assert ratio == pytest.approx(stats.gmean(ratios))
    assert interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(500):
        _, (low, high) = statistics.mean_ratio(1.1 * rng.lognormal(0, 0.03, 5))
        covered += low <= 1.1 <= high
    assert 0.92 * 500 <= covered <= 0.98 * 500
