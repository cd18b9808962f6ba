"""The report as HTML: a page that stands by itself, and a fragment for notebooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from optkit.looks import blank, svg, without_glyph_warnings
from optkit.measuring import Interval, Layer, Measurement
from optkit.report.classes import ClassFigures, class_figures
from optkit.report.outputs import each_output
from optkit.report.report import Report, Row
from optkit.report.text import (
    HEADINGS,
    cells,
    footnotes,
    gains,
    goal_text,
    heading,
    headline,
    in_words,
    is_share,
    metric_value,
    milliseconds,
    output_tables,
    share,
    size,
    stages,
    studies,
)
from optkit.study import Study, cell_text, draw_study, height_of_study

__all__ = ["comparison_html", "to_html"]

_CLASSES = 20  # rows of the table of classes at most
_LAYERS = 400  # rows of a table of layers at most
_ROWS = 400  # rows of a study at most
_LONG = 24  # characters up to which a text stands on one line
_OPEN = 12  # rows of a study up to which it is unfolded


def to_html(report: Report, *, page: bool) -> str:
    """The report as HTML, without scripts and without anything to fetch.

    Whatever comes from the report is escaped: names of passes, classes and metrics come from
    users, and a report may have been read from a file.

    Args:
        report: The report.
        page: Whether to give a whole document, with the plots in it, or a fragment that a notebook
            shows, which takes its colours from the notebook.

    Returns:
        The HTML.
    """
    with without_glyph_warnings():
        return _render(report, page=page)


def _render(report: Report, *, page: bool) -> str:
    further = _further(report) if page else []
    return _template("template.html").render(
        page=page,
        words=in_words(report),
        headline=headline(report) or "Nothing was measured.",
        gains=gains(report),
        goals=[(goal.met, goal_text(report, goal)) for goal in report.goals],
        headings=[
            *(title.replace(" ±", " [").replace("95 %", "95 %]") for title in heading(report)),
            *(title for title, _ in further),
        ],
        stages=[_stage(report, row, further) for row in stages(report)],
        notes=footnotes(report),
        outputs=output_tables(report),
        plots=_pareto(report) if page else [],
        classes=_classes(report),
        classes_plot=_classes_plot(report) if page else None,
        layers=_layers(report) if page else [],
        curves=_curves(report) if page else [],
        studies=_studies(report, page=page),
        rows=report.rows,
        pipeline=_pipeline(report),
        environment={key: value for key, value in report.environment.items() if key != "pipeline"},
    )


def comparison_html(
    settings: list[tuple[str, ...]], figures: list[tuple[str, ...]], remarks: list[str]
) -> str:
    """Two tables of text, each with its heading first, as a fragment for a notebook."""
    return _template("comparison.html").render(tables=(settings, figures), remarks=remarks)


@functools.cache
def _template(name: str) -> jinja2.Template:
    folder = resources.files("optkit.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: folder.joinpath(file).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


#: Columns that only the page has room for, where they were measured.
_FURTHER: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("p90 ms", lambda figures: milliseconds(figures.latency_p90_ms)),
    ("p99 ms", lambda figures: milliseconds(figures.latency_p99_ms)),
    ("peak memory", lambda figures: size(figures.peak_memory_bytes)),
    (
        "requests/s",
        lambda figures: (
            f"{figures.throughput.requests_per_second:.4g}" if figures.throughput else "–"
        ),
    ),
)


def _further(report: Report) -> list[tuple[str, Callable[[Measurement], str]]]:
    measured = [report.baseline, *(row.after for row in stages(report) if row and row.after)]
    return [
        (title, form) for title, form in _FURTHER if any(form(item) != "–" for item in measured)
    ]


def _stage(
    report: Report, row: Row | None, further: list[tuple[str, Callable[[Measurement], str]]]
) -> dict[str, Any]:
    """A line of the table: each figure with the interval that goes below it."""
    measured = (report.baseline if row is None else row.after) or Measurement()
    texts = dict(zip(HEADINGS, cells(report, row), strict=True))
    intervals = {
        "{metric}": _interval(
            measured.accuracy_ci, lambda value: metric_value(report, value).removesuffix(" %")
        ),
        "ms": _interval(measured.latency_ci, milliseconds),
    }
    if row is not None:
        factor, digits = (100, "+.1f") if is_share(report) else (1, "+.3g")
        intervals["change ±95 %"] = _interval(
            row.accuracy_change_ci, lambda value: f"{factor * value:{digits}}"
        )
        intervals["speedup ±95 %"] = _interval(row.speedup_ci, lambda value: f"{value:.2f}")
    figures = []
    for title in HEADINGS[2:]:
        # There is room for both ends of an interval here, below the figure.
        value, _, margin = texts[title].partition(" ± ")
        unclear = " =" if margin.endswith("=") else ""
        figures.append((value + unclear, intervals.get(title, "")))
    figures += [(form(measured), "") for _, form in further]
    return {
        "index": texts["#"],
        "name": "baseline" if row is None else row.name,
        # What went as it should needs no mark.
        "mark": "" if row is None or row.status == "ok" else row.status,
        "style": _style(report, row),
        "figures": figures,
    }


def _style(report: Report, row: Row | None) -> str:
    if row is None or row is report.runtime_baseline:
        return "baseline"
    if row.family == "inspect" and row.status == "ok":
        return "recipe"  # without figures, either
    return {"ok": "", "recipe": "recipe", "skipped": "recipe"}.get(row.status, "lost")


def _interval(interval: Interval | None, form: Callable[[float], str]) -> str:
    return "" if interval is None else f"[{form(interval[0])}, {form(interval[1])}]"


def _classes(report: Report) -> dict[str, Any] | None:
    """The classes with their figures before and after, the worst changes where there are many."""
    classes = class_figures(report)
    if not classes:
        return None
    caption, total = "", len(classes)
    if total > _CLASSES:
        changed = any(item.change is not None for item in classes)
        # Classes without a change come last; sorting keeps the order of equal ones.
        classes.sort(key=lambda item: (item.change is None, item.change or 0.0))
        which = "that changed most for the worse" if changed else "that come first"
        caption = f"The {_CLASSES} of {total} classes {which}."
    return {
        "caption": caption,
        "numbered": any(item.samples for item in classes),
        "rows": [_class_row(item) for item in classes[:_CLASSES]],
    }


def _class_row(item: ClassFigures) -> dict[str, Any]:
    ends = item.change_ci
    return {
        "name": item.name,
        "samples": item.samples or "–",
        "before": share(item.before),
        "after": share(item.after),
        "change": "–" if item.change is None else f"{100 * item.change:+.1f}",
        "interval": _interval(ends, lambda value: f"{100 * value:+.1f}"),
        "lost": ends is not None and ends[1] < 0,
    }


def _layers(report: Report) -> list[dict[str, Any]]:
    """A table of layers for the baseline, and one for what is to be deployed."""
    sides = [("baseline", report.baseline.layers)]
    if report.final_row is not None:
        sides.insert(0, ("final", report.final.layers))
    tables = []
    for title, layers in sides:
        if not layers:
            continue
        largest = max(layer.bytes for layer in layers) or 1
        tables.append(
            {
                "title": title,
                "caption": f"The first {_LAYERS} of {len(layers)}." * (len(layers) > _LAYERS),
                "count": len(layers),
                "total": size(sum(layer.bytes for layer in layers)),
                "rows": [_layer_row(layer, largest) for layer in layers[:_LAYERS]],
            }
        )
    return tables


def _layer_row(layer: Layer, largest: int) -> dict[str, Any]:
    return {
        # An operator is called by all layers that were fused into it.
        "names": layer.name.split(";"),
        "kind": layer.kind,
        "parameters": f"{layer.parameters:,}" if layer.parameters else "–",
        "bytes": size(layer.bytes) if layer.bytes else "–",
        "share": round(100 * layer.bytes / largest, 1),
        "sparsity": "–" if layer.sparsity is None else f"{100 * layer.sparsity:.1f} %",
        "dtype": layer.dtype or "–",
    }


def _studies(report: Report, *, page: bool) -> list[dict[str, Any]]:
    """The studies of the passes, those with a long table folded, on a page with their charts."""
    return [
        _study(title, study, f"study{number}" if page else "")
        for number, (title, study) in enumerate(studies(report), 1)
    ]


def _study(title: str, study: Study, picture: str) -> dict[str, Any]:
    plot = None
    if study.chart is not None and picture:
        figure = blank(4.6, height_of_study(study))
        draw_study(study, figure.subplots())
        plot = svg(figure, picture)
    rows, more = study.telling(_ROWS)
    sides = [_side(study, i) for i in range(len(study.columns))]
    return {
        "title": title,
        "count": len(study.rows),
        "open": len(study.rows) <= _OPEN,
        "plot": plot,
        "columns": list(zip(study.columns, sides, strict=True)),
        "rows": [
            {
                "marked": study.marked(row),
                "cells": list(zip(map(cell_text, row), sides, strict=True)),
            }
            for row in rows
        ],
        "caption": f"{more} more rows are not shown." if more else "",
        "notes": study.notes,
    }


def _side(study: Study, column: int) -> str:
    """The class of a cell: figures stand to the right, below each other; sentences get room."""
    if study.of_figures(column):
        return ""
    longest = max((len(cell_text(row[column])) for row in study.rows), default=0)
    return "text long" if longest > _LONG else "text"


def _pipeline(report: Report) -> str | None:
    """The pipeline as the call that makes it."""
    source = report.environment.get("pipeline")
    return source if isinstance(source, str) else None


def _pareto(report: Report) -> list[Markup]:
    """Each side as a picture of its own: below one another where the screen is narrow."""
    from optkit.report.pareto import SIDES, draw_pareto
    from optkit.report.style import entitled

    pictures = []
    for number, (output, alone) in enumerate(each_output(report)):
        for side in SIDES:
            figure = blank(4.6, 3.6)
            axes = figure.subplots()
            draw_pareto(alone, [(axes, side)])
            entitled(axes, output)
            pictures.append(svg(figure, f"{side}{number or ''}"))
    return pictures


def _classes_plot(report: Report) -> Markup | None:
    from optkit.report.pictures import draw_classes, height_of_classes

    if report.final_row is None or not class_figures(report):
        return None
    figure = blank(4.6, height_of_classes(report))
    draw_classes(report, figure.subplots())
    return svg(figure, "classes")


def _curves(report: Report) -> list[tuple[str, Markup]]:
    from optkit.report.pictures import draw_training, trainings

    pictures = []
    for number, training in enumerate(trainings(report), 1):
        count = len(training.groups)
        figure = blank(3.2, 0.6 + 1.6 * count + 0.15 * len(training.said))
        draw_training(training, figure.subplots(count, 1, squeeze=False)[:, 0])
        pictures.append(
            (", ".join([training.name, *training.said]), svg(figure, f"training{number}"))
        )
    return pictures
