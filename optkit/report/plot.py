"""The report as a picture: the metric against size and against latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from optkit.measuring import Interval, Measurement
from optkit.report.report import Report
from optkit.report.text import is_share, shortened

__all__ = ["INK", "plot"]

#: Colour of all text and axes; the HTML page puts its own text colour in its place.
INK = "#24292f"

# From the palette of Okabe and Ito, which colour-blind readers can tell apart; the markers differ
# in shape as well.
_BASELINE = "#d55e00"
_STAGE = "#0072b2"
_PATH = "#8c959f"

_LOG_FROM = 4  # ratio of the largest to the smallest figure from which an axis is logarithmic
_LABEL = 8  # size of the labels, in points
_MARKER = 6  # size of the markers, in points
_REACHES = (4.0, 14.0, 26.0, 40.0)  # how far from its point a label may stand, in points
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class _Point:
    name: str
    baseline: bool
    x: float
    y: float
    x_ci: Interval | None
    y_ci: Interval | None


def plot(report: Report) -> Figure:
    """The metric against size and against latency, a labelled point a stage.

    The figure is built without pyplot: no backend is chosen, no setting is changed, and the
    figure is freed like any other object.

    Args:
        report: The report; a stage without figures has no point.

    Returns:
        The figure, with two axes: size on the left, latency on the right.
    """
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    stages = [("baseline", report.baseline)]
    stages += [(row.name, row.after) for row in report.rows if row.after is not None]
    sizes = [figures.size_bytes for _, figures in stages if figures.size_bytes is not None]
    unit, factor = ("MB", 1e6) if max(sizes, default=0) >= 999_500 else ("kB", 1e3)
    panels = (
        (left, f"file size ({unit})", _points(report, stages, size_unit=factor)),
        (right, "median latency of one sample (ms)", _points(report, stages, size_unit=None)),
    )
    for axes, label, points in panels:
        _draw(axes, points, label, _metric_label(report))
        if points and is_share(report):
            _end_at_100(axes)
    # Labels are placed in pixels, so the layout has to be settled first.
    figure.draw_without_rendering()
    for axes, _, points in panels:
        _label(axes, points)
    return figure


def _points(
    report: Report, stages: Sequence[tuple[str, Measurement]], *, size_unit: float | None
) -> list[_Point]:
    """The stages that have both figures; against latency where there is no unit of size."""
    factor = 100.0 if is_share(report) else 1.0
    points = []
    for i, (name, figures) in enumerate(stages):
        if size_unit is None:
            x, x_ci = figures.latency_ms, figures.latency_ci
        else:
            x = None if figures.size_bytes is None else figures.size_bytes / size_unit
            x_ci = None
        y, y_ci = figures.accuracy, figures.accuracy_ci
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        if y_ci is not None:
            y_ci = (factor * y_ci[0], factor * y_ci[1])
        name = shortened(" ".join(name.split()), 28)
        points.append(_Point(name, i == 0, x, factor * y, x_ci, y_ci))
    return points


def _metric_label(report: Report) -> str:
    label = shortened(report.metric, 40)
    if report.split is not None:
        label += f" on {report.split}"
    if is_share(report):
        label += " (%)"
    return label if report.higher_is_better else f"{label}, lower is better"


def _draw(axes: Axes, points: Sequence[_Point], x_label: str, y_label: str) -> None:
    axes.set_facecolor("white")
    axes.grid(False)
    # Names come from users: they are neither mathtext nor TeX.
    axes.set_xlabel(x_label, fontsize=9, color=INK, parse_math=False, usetex=False)
    axes.set_ylabel(y_label, fontsize=9, color=INK, parse_math=False, usetex=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)
    if not points:
        axes.text(
            0.5, 0.5, "not measured", color=INK, ha="center", va="center", transform=axes.transAxes
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return
    xs, ys = [point.x for point in points], [point.y for point in points]
    axes.plot(xs, ys, color=_PATH, linewidth=0.8, linestyle="-", marker="", zorder=1)
    for point in points:
        colour = _BASELINE if point.baseline else _STAGE
        axes.errorbar(
            point.x,
            point.y,
            xerr=_reach(point.x, point.x_ci),
            yerr=_reach(point.y, point.y_ci),
            linestyle="",
            marker="D" if point.baseline else "o",
            markersize=_MARKER,
            color=colour,
            ecolor=colour,
            elinewidth=0.9,
            capsize=2,
            zorder=3,
        )
    axes.margins(x=0.14, y=0.16)
    axes.ticklabel_format(style="plain", useOffset=False)
    ratio = max(xs) / min(xs) if min(xs) > 0 else 1
    if ratio > _LOG_FROM:
        axes.set_xscale("log")
        # Powers of ten alone would leave a short axis with one label or none.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 30 else (1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())


def _reach(value: float, interval: Interval | None) -> list[list[float]] | None:
    """An interval as lengths below and above its figure, which is how error bars are drawn."""
    if interval is None:
        return None
    low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _end_at_100(axes: Axes) -> None:
    """Leaves no more room above 100 % than a marker needs."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 100 + 0.03 * (high - low)))


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Puts each label at the free place nearest to its point."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    scale = figure.dpi / 72  # pixels in a point
    taken = [box for point in points for box in _boxes(axes, point, scale)]
    taken += [box for ends in pairwise(points) for box in _beads(axes, ends, scale)]
    inside = axes.get_window_extent()
    for point in points:
        probe = axes.text(0, 0, point.name, fontsize=_LABEL, parse_math=False, usetex=False)
        extent = probe.get_window_extent()
        probe.remove()
        x, y = axes.transData.transform((point.x, point.y))
        best: tuple[float, float, float, float, Bbox] | None = None
        for reach in _REACHES:
            for right, up in _DIRECTIONS:
                # The corners of a label are far from its point: diagonal ones may stand closer.
                away = reach * scale * (0.8 if right and up else 1.2)
                dx = right * (away + extent.width / 2)
                dy = up * (away + extent.height / 2)
                box = _around(x + dx, y + dy, extent.width / 2, extent.height / 2)
                outside = extent.width * extent.height - _overlap(box, inside)
                cost = sum(_overlap(box, other) for other in taken) + 5 * outside + reach
                if best is None or cost < best[0]:
                    best = (cost, reach, dx, dy, box)
        if best is None:
            continue
        _, reach, dx, dy, box = best
        taken.append(box)
        annotation = axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(dx / scale, dy / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LABEL,
            color=INK,
            parse_math=False,
            usetex=False,
            # A label that had to step aside says whose it is.
            arrowprops={"arrowstyle": "-", "color": _PATH, "linewidth": 0.6, "shrinkB": 4}
            if reach > _REACHES[0]
            else None,
        )
        annotation.set_in_layout(False)


def _boxes(axes: Axes, point: _Point, scale: float) -> list[Bbox]:
    """What a point covers: its marker and its error bars, in pixels."""
    x, y = axes.transData.transform((point.x, point.y))
    thin = 1.5 * scale
    boxes = [_around(x, y, _MARKER * scale / 2, _MARKER * scale / 2)]
    if point.y_ci is not None:
        ends = axes.transData.transform([(point.x, value) for value in point.y_ci])
        boxes.append(Bbox([(x - thin, ends[0][1]), (x + thin, ends[1][1])]))
    if point.x_ci is not None:
        ends = axes.transData.transform([(value, point.y) for value in point.x_ci])
        boxes.append(Bbox([(ends[0][0], y - thin), (ends[1][0], y + thin)]))
    return boxes


def _beads(axes: Axes, ends: tuple[_Point, _Point], scale: float) -> list[Bbox]:
    """What the line between two points covers, as a row of small boxes, in pixels."""
    (x0, y0), (x1, y1) = axes.transData.transform([(end.x, end.y) for end in ends])
    half = 1.5 * scale
    count = 1 + int(math.hypot(x1 - x0, y1 - y0) / (2 * half))
    steps = [(i + 0.5) / count for i in range(count)]
    return [_around(x0 + t * (x1 - x0), y0 + t * (y1 - y0), half, half) for t in steps]


def _around(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox([(x - half_width, y - half_height), (x + half_width, y + half_height)])


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)
