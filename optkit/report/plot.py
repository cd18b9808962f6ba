"""The report as pictures: one function, several kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optkit.errors import PipelineError
from optkit.report.outputs import each_output
from optkit.report.pareto import SIDES, draw_pareto
from optkit.report.pictures import (
    FIGURES,
    draw_bar_panel,
    draw_classes,
    draw_layers,
    draw_training,
    height_of_classes,
    height_of_layers,
    trainings,
)
from optkit.report.report import Report
from optkit.report.style import absent, entitled, prepared, without_glyph_warnings

__all__ = ["KINDS", "plot"]

#: Makes an empty figure, as `matplotlib.figure.Figure` and `matplotlib.pyplot.figure` do.
FigureMaker = Callable[..., Any]


def plot(report: Report, kind: str = "pareto", *, make: FigureMaker = Figure) -> Any:
    """Draws the report.

    Args:
        report: The report; figures that were not measured give a panel that says so.
        kind: One of `KINDS`.
        make: Makes the figure. The default needs no pyplot: no backend is chosen, no setting is
            changed, and the figure is freed like any other object.

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


def _figure(make: FigureMaker, width: float, height: float) -> Any:
    return make(figsize=(width, height), layout="constrained", facecolor="white")


def _pareto(report: Report, make: FigureMaker) -> Any:
    views = each_output(report)
    grid = _figure(make, 10, 4 * len(views)).subplots(len(views), len(SIDES), squeeze=False)
    for (output, alone), panels in zip(views, grid, strict=True):
        entitled(panels[0], output)
        draw_pareto(alone, list(zip(panels, SIDES, strict=True)))
    return grid[0] if len(views) == 1 else grid


def _bars(report: Report, make: FigureMaker) -> Any:
    lines = 2 + len(report.rows)
    drawn = [(output, alone, "accuracy") for output, alone in each_output(report)]
    drawn += [("", report, figure) for figure in FIGURES if figure != "accuracy"]
    width = 10 / len(FIGURES) * len(drawn)
    panels = _figure(make, width, 1.2 + 0.3 * lines).subplots(1, len(drawn), sharey=True)
    for axes, (output, alone, figure) in zip(panels, drawn, strict=True):
        draw_bar_panel(alone, axes, figure)
        entitled(axes, output)
    return panels


def _classes(report: Report, make: FigureMaker) -> Axes:
    axes: Axes = _figure(make, 7, height_of_classes(report)).subplots()
    draw_classes(report, axes)
    return axes


def _layers(report: Report, make: FigureMaker) -> Axes:
    axes: Axes = _figure(make, 8, height_of_layers(report)).subplots()
    draw_layers(report, axes)
    return axes


def _curves(report: Report, make: FigureMaker) -> Any:
    found = trainings(report)
    if not found:
        axes = _figure(make, 5, 3).subplots()
        prepared(axes)
        absent(axes, "no training")
        return np.array([[axes]])
    panels = _figure(make, 3.4 * len(found), 4.6).subplots(2, len(found), squeeze=False)
    for column, training in enumerate(found):
        draw_training(training, panels[:, column])
    return panels


#: The kinds of pictures by name.
KINDS: dict[str, Callable[[Report, FigureMaker], Any]] = {
    "pareto": _pareto,
    "bars": _bars,
    "classes": _classes,
    "layers": _layers,
    "curves": _curves,
}
