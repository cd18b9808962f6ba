"""The metric against size and against latency: what was paid for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from optkit.looks import BASELINE, PATH, STAGE, absent, plain, prepared, text_options
from optkit.measuring import Interval, Measurement
from optkit.report.report import Report
from optkit.report.style import arms, metric_label, size_unit
from optkit.report.text import batch_size, is_share

__all__ = ["SIDES", "draw_pareto"]

#: What the metric may be drawn against.
SIDES = ("size", "latency")

_LOG_FROM = 4  # ratio of the largest to the smallest figure from which an axis is logarithmic
_MARKER = 6  # size of the markers, in points
_REACHES = (4.0, 14.0, 26.0, 40.0)  # how far from its point a label may stand, in points
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class _Point:
    name: str
    baseline: bool
    on_path: bool  # of the runtime alone no stage was made
    x: float
    y: float
    x_ci: Interval | None
    y_ci: Interval | None


def draw_pareto(report: Report, panels: Sequence[tuple[Axes, str]]) -> None:
    """Draws the metric against size or latency, a labelled point a stage.

    Args:
        report: The report; a stage without figures has no point.
        panels: All axes of one figure, each with one of the `SIDES`.
    """
    stages = [("baseline", report.baseline)]
    # What was undone is no step on the way.
    stages += [
        (row.name, row.after) for row in report.rows if row.after is not None and row.status == "ok"
    ]
    if report.runtime_baseline is not None and report.runtime_baseline.after is not None:
        stages.append((report.runtime_baseline.name, report.runtime_baseline.after))
    unit, factor = size_unit([figures.size_bytes for _, figures in stages])
    batch = batch_size(report)
    of = "one sample" if batch == 1 else f"{batch} samples"
    drawn = []
    for axes, side in panels:
        if side == "size":
            points, label = _points(report, stages, size_factor=factor), f"file size ({unit})"
        else:
            points = _points(report, stages, size_factor=None)
            label = f"median latency of {of} (ms)"
        _draw(axes, points, label, metric_label(report))
        if points and is_share(report):
            _end_at_100(axes)
        drawn.append((axes, points))
    # Labels are placed in pixels, so the layout has to be settled first.
    figure = panels[0][0].get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()
    for axes, points in drawn:
        _label(axes, points)


def _points(
    report: Report, stages: Sequence[tuple[str, Measurement]], *, size_factor: float | None
) -> list[_Point]:
    """The stages that have both figures; against latency where there is no unit of size."""
    factor = 100.0 if is_share(report) else 1.0
    points = []
    for i, (name, figures) in enumerate(stages):
        if size_factor is None:
            x, x_ci = figures.latency_ms, figures.latency_ci
        else:
            x = None if figures.size_bytes is None else figures.size_bytes / size_factor
            x_ci = None
        y, y_ci = figures.accuracy, figures.accuracy_ci
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        if y_ci is not None:
            y_ci = (factor * y_ci[0], factor * y_ci[1])
        reference = report.runtime_baseline is not None and figures is report.runtime_baseline.after
        points.append(
            _Point(plain(name, 28), i == 0 or reference, not reference, x, factor * y, x_ci, y_ci)
        )
    return points


def _draw(axes: Axes, points: Sequence[_Point], x_label: str, y_label: str) -> None:
    prepared(axes, x_label, y_label)
    if not points:
        absent(axes)
        return
    xs = [point.x for point in points]
    path = [(point.x, point.y) for point in points if point.on_path]
    if path:
        axes.plot(*zip(*path, strict=True), color=PATH, linewidth=0.8, linestyle="-", zorder=1)
    for point in points:
        colour = BASELINE if point.baseline else STAGE
        axes.errorbar(
            point.x,
            point.y,
            xerr=arms(point.x, point.x_ci),
            yerr=arms(point.y, point.y_ci),
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
    path = [point for point in points if point.on_path]
    taken += [box for ends in pairwise(path) for box in _beads(axes, ends, scale)]
    inside = axes.get_window_extent()
    for point in points:
        probe = axes.text(0, 0, point.name, **text_options())
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
            **text_options(),
            # A label that had to step aside says whose it is.
            arrowprops={"arrowstyle": "-", "color": PATH, "linewidth": 0.6, "shrinkB": 4}
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
