"""What became of each class: a mean hides the ones that lost."""

from __future__ import annotations

import math
from typing import NamedTuple

from optkit.measuring.statistics import Interval, wilson
from optkit.report.outputs import each_output
from optkit.report.report import Report

__all__ = ["ClassFigures", "class_figures", "lost_classes"]


class ClassFigures(NamedTuple):
    """The accuracy in one class before and after.

    Attributes:
        name: Its name.
        before: Accuracy of the baseline in it; ``None`` where it was not measured.
        after: The same of what is to be deployed.
        change: The difference; ``None`` where one of them is missing.
        change_ci: Interval of the difference; ``None`` where the number of samples is not known.
        samples: Number of samples of the class.
    """

    name: str
    before: float | None
    after: float | None
    change: float | None
    change_ci: Interval | None
    samples: int | None


def class_figures(report: Report) -> list[ClassFigures]:
    """Every class in the order of the report; empty where there are no figures by class.

    Of a model with several outputs the classes of each, called ``"output: class"``.
    """
    return [
        item._replace(name=f"{output}: {item.name}" if output else item.name)
        for output, alone in each_output(report)
        for item in _class_figures(alone)
    ]


def _class_figures(report: Report) -> list[ClassFigures]:
    first = report.baseline.per_class or {}
    changed = report.final_row is not None
    last = (report.final.per_class or {}) if changed else {}
    numbers = (report.baseline.class_samples or {}) | (report.final.class_samples or {})
    found = []
    for name in dict.fromkeys([*first, *last]):
        before, after, samples = first.get(name), last.get(name), numbers.get(name)
        change = None if before is None or after is None else after - before
        interval = None
        if before is not None and after is not None and samples:
            interval = _difference(before, after, samples)
        found.append(ClassFigures(name, before, after, change, interval, samples))
    return found


def lost_classes(report: Report) -> list[ClassFigures]:
    """The classes that lost more than noise, the greatest loss first."""
    lost = [
        item
        for item in class_figures(report)
        if item.change_ci is not None and item.change_ci[1] < 0
    ]
    return sorted(lost, key=lambda item: item.change or 0.0)


def _difference(before: float, after: float, n: int) -> Interval:
    """Interval of the difference of two proportions (Newcombe, 1998, method 10).

    It takes the samples of both sides to be independent. They are the same ones, so that it is
    wider than need be: what it calls a loss is one.
    """
    low_before, high_before = wilson(before * n, n)
    low_after, high_after = wilson(after * n, n)
    change = after - before
    return (
        change - math.hypot(after - low_after, high_before - before),
        change + math.hypot(high_after - after, before - low_before),
    )
