"""What all plots of a report have in common beside their looks: units, intervals, titles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from optkit.looks import plain, shortened, text_options
from optkit.measuring import Interval
from optkit.report.report import Report
from optkit.report.text import is_share

__all__ = ["arms", "entitled", "metric_label", "size_unit"]


def arms(value: float, interval: Interval | None) -> list[list[float]] | None:
    """An interval as lengths below and above its figure, which is how error bars are drawn."""
    if interval is None or not all(math.isfinite(end) for end in interval):
        return None
    low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def size_unit(sizes: Sequence[float | None]) -> tuple[str, float]:
    """The unit that suits the largest of some sizes, and its bytes."""
    largest = max((size for size in sizes if size is not None), default=0)
    return ("MB", 1e6) if largest >= 999_500 else ("kB", 1e3)


def metric_label(report: Report) -> str:
    """The metric as the label of an axis."""
    label = shortened(report.metric, 40)
    if report.split is not None:
        label += f" on {report.split}"
    if is_share(report):
        label += " (%)"
    return label if report.higher_is_better else f"{label}, lower is better"


def entitled(axes: Axes, output: str) -> None:
    """Says of which output a picture is, where there are several."""
    if output:
        axes.set_title(plain(output, 40), **text_options(9))
