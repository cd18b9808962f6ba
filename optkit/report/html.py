"""The report as HTML: a page that stands by itself, and a fragment for notebooks."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from optkit.measuring import Interval, Measurement
from optkit.report.report import Report, Row
from optkit.report.text import (
    HEADINGS,
    cells,
    footnotes,
    heading,
    headline,
    is_share,
    metric_value,
    milliseconds,
)

__all__ = ["to_html"]

_CLASSES = 20  # rows of the table of classes at most


def to_html(report: Report, *, page: bool) -> str:
    """The report as HTML, without scripts and without anything to fetch.

    Whatever comes from the report is escaped: names of passes, classes and metrics come from
    users, and a report may have been read from a file.

    Args:
        report: The report.
        page: Whether to give a whole document, with the plot in it, or a fragment that a notebook
            shows, which takes its colours from the notebook.

    Returns:
        The HTML.
    """
    return _template().render(
        page=page,
        headline=headline(report) or "Nothing was measured.",
        headings=[title.replace(" ±", " [").replace("95 %", "95 %]") for title in heading(report)],
        stages=[_stage(report, None), *(_stage(report, row) for row in report.rows)],
        notes=footnotes(report),
        plot=_svg(report) if page else None,
        classes=_classes(report),
        rows=report.rows,
        environment=report.environment,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("optkit.report").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def _stage(report: Report, row: Row | None) -> dict[str, Any]:
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
    return {
        "index": "" if row is None else row.index,
        "name": "baseline" if row is None else row.name,
        # What went as it should needs no mark.
        "mark": "" if row is None or row.status == "ok" else row.status,
        "style": _style(row),
        "figures": figures,
    }


def _style(row: Row | None) -> str:
    if row is None:
        return "baseline"
    return {"ok": "", "recipe": "recipe"}.get(row.status, "lost")


def _interval(interval: Interval | None, form: Callable[[float], str]) -> str:
    return "" if interval is None else f"[{form(interval[0])}, {form(interval[1])}]"


def _classes(report: Report) -> dict[str, Any] | None:
    """The classes with their figures before and after, the worst changes where there are many."""
    measured = any(row.after is not None for row in report.rows)
    first = report.baseline.per_class or {}
    last = (report.final.per_class or {}) if measured else {}
    names = list(dict.fromkeys([*first, *last]))
    if not names:
        return None
    changes = {name: last[name] - first[name] for name in names if name in first and name in last}
    caption = ""
    if len(names) > _CLASSES:
        sign = 1 if report.higher_is_better else -1
        # Classes without a change come last; sorting keeps the order of equal ones.
        names.sort(key=lambda name: (name not in changes, sign * changes.get(name, 0.0)))
        which = "that changed most for the worse" if changes else "that come first"
        caption = f"The {_CLASSES} of {len(names)} classes {which}."
        names = names[:_CLASSES]
    factor, digits = (100, ".1f") if is_share(report) else (1, ".3g")
    return {
        "caption": caption,
        "rows": [
            (
                name,
                metric_value(report, first.get(name)),
                metric_value(report, last.get(name)),
                f"{factor * changes[name]:+{digits}}" if name in changes else "–",
            )
            for name in names
        ],
    }


def _svg(report: Report) -> Markup:
    """The plot as an SVG element that takes the page's text colour.

    matplotlib escapes the text it writes, so the element is safe as it is.
    """
    from optkit.report.plot import INK, plot

    buffer = io.StringIO()
    # Without metadata no prose and no addresses get into the page.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    plot(report).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]  # what stands before it belongs to a file of its own
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    # A style sheet inside an inlined picture would hold for the whole page.
    picture = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", picture, flags=re.DOTALL)
    return Markup(re.sub(rf"\b(fill|stroke): {INK}\b", r"\1: currentColor", picture))
