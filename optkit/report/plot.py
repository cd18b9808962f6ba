"""The report as pictures: one function, several kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from optkit.errors import PipelineError
from optkit.looks import (
    FigureMaker,
    absent,
    blank,
    plain,
    prepared,
    text_options,
    without_glyph_warnings,
)
from optkit.report.outputs import each_output
from optkit.report.pareto import SIDES, draw_pareto
from optkit.report.pictures import (
    FIGURES,
    PANELS,
    draw_bar_panel,
    draw_classes,
    draw_layers,
    draw_training,
    height_of_classes,
    height_of_layers,
    trainings,
)
from optkit.report.report import Report
from optkit.report.style import entitled
from optkit.report.text import studies
from optkit.study import draw_study, height_of_study

__all__ = ["KINDS", "plot"]


def plot(report: Report, kind: str = "pareto", *, make: FigureMaker | None = None) -> Any:
    """Draws the report.

    Args:
        report: The report; figures that were not measured give a panel that says so.
        kind: One of `KINDS`.
        make: Makes the figure; ``None`` for a plain one, as `blank` says.

    Returns:
        The axes: one, or an array of them where the kind has several panels.

    Raises:
        PipelineError: For an unknown kind.
    """
    if kind not in KINDS:
        known = ", ".join(repr(name) for name in KINDS)
        raise PipelineError(f"`kind` must be one of {known}. Received: {kind!r}.")
    with without_glyph_warnings():
        return KINDS[kind](report, make)


def _pareto(report: Report, make: FigureMaker | None) -> Any:
    views = each_output(report)
    grid = blank(10, 4 * len(views), make).subplots(len(views), len(SIDES), squeeze=False)
    for (output, alone), panels in zip(views, grid, strict=True):
        entitled(panels[0], output)
        draw_pareto(alone, list(zip(panels, SIDES, strict=True)))
    return grid[0] if len(views) == 1 else grid


def _bars(report: Report, make: FigureMaker | None) -> Any:
    lines = 2 + len(report.rows)
    drawn = [(output, alone, "accuracy") for output, alone in each_output(report)]
    drawn += [("", report, figure) for figure in FIGURES if figure != "accuracy"]
    width = 10 / len(FIGURES) * len(drawn)
    panels = blank(width, 1.2 + 0.3 * lines, make).subplots(1, len(drawn), sharey=True)
    for axes, (output, alone, figure) in zip(panels, drawn, strict=True):
        draw_bar_panel(alone, axes, figure)
        entitled(axes, output)
    return panels


def _classes(report: Report, make: FigureMaker | None) -> Axes:
    axes: Axes = blank(7, height_of_classes(report), make).subplots()
    draw_classes(report, axes)
    return axes


def _layers(report: Report, make: FigureMaker | None) -> Axes:
    axes: Axes = blank(8, height_of_layers(report), make).subplots()
    draw_layers(report, axes)
    return axes


def _curves(report: Report, make: FigureMaker | None) -> Any:
    found = trainings(report)
    if not found:
        axes = blank(5, 3, make).subplots()
        prepared(axes)
        absent(axes, "no training")
        return np.array([[axes]])
    rows = max(PANELS, *(len(training.groups) for training in found))
    panels = blank(3.4 * len(found), 2.3 * rows, make).subplots(rows, len(found), squeeze=False)
    for column, training in enumerate(found):
        draw_training(training, panels[:, column])
    return panels


def _studies(report: Report, make: FigureMaker | None) -> Any:
    """The charts of the studies, one below the other: names need the width."""
    found = [(title, study) for title, study in studies(report) if study.chart is not None]
    if not found:
        axes = blank(5, 3, make).subplots()
        prepared(axes)
        absent(axes, "no study")
        return np.array([axes])
    heights = [height_of_study(study) for _, study in found]
    figures = blank(7, sum(heights), make).subfigures(
        len(found), 1, height_ratios=heights, squeeze=False
    )
    panels = []
    for part, (title, study) in zip(figures[:, 0], found, strict=True):
        axes = part.subplots()
        draw_study(study, axes)
        axes.set_title(plain(title, 70), **text_options(9))
        panels.append(axes)
    return np.array(panels)


#: The kinds of pictures by name.
KINDS: dict[str, Callable[[Report, FigureMaker | None], Any]] = {
    "pareto": _pareto,
    "bars": _bars,
    "classes": _classes,
    "layers": _layers,
    "curves": _curves,
    "studies": _studies,
}
