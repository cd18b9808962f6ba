"""The report as text: a table that fits a terminal, and Markdown."""

from __future__ import annotations

import textwrap

from optkit.measuring import Measurement
from optkit.report.report import Report, Row

__all__ = [
    "HEADINGS",
    "cells",
    "footnotes",
    "heading",
    "headline",
    "is_share",
    "metric_value",
    "milliseconds",
    "shortened",
    "to_markdown",
    "to_text",
]

_WIDTH = 100
_ABSENT = "–"

#: Column headings; the first two columns are text, the others figures.
HEADINGS = (
    "#",
    "pass",
    "{metric}",
    "change ±95 %",
    "ms",
    "speedup ±95 %",
    "size",
    "gzip",
    "zeros",
    "time",
)


def size(count: int | None) -> str:
    """Bytes in readable form, in powers of 1000.

    >>> size(950), size(94_500), size(13_921_920), size(None)
    ('950 B', '94.5 kB', '13.9 MB', '–')
    """
    if count is None:
        return _ABSENT
    if count < 1000:
        return f"{count} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def milliseconds(value: float | None) -> str:
    """A latency with three significant digits."""
    return _ABSENT if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A duration in seconds, or in minutes above 100 s."""
    if seconds is None:
        return _ABSENT
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def is_share(report: Report) -> bool:
    """Whether the metric is a share, to be shown in per cent."""
    return "accuracy" in report.metric


def metric_value(report: Report, value: float | None) -> str:
    """The metric: in per cent for accuracies, with four significant digits otherwise."""
    if value is None:
        return _ABSENT
    return f"{100 * value:.2f} %" if is_share(report) else f"{value:.4g}"


def _margin(value: float, interval: tuple[float, float]) -> float:
    """The longer arm of an interval: narrow columns have no room for both."""
    return max(interval[1] - value, value - interval[0])


def _change(report: Report, row: Row) -> str:
    if row.accuracy_change is None:
        return _ABSENT
    factor, digits = (100, ".1f") if is_share(report) else (1, ".3g")
    text = f"{factor * row.accuracy_change:+{digits}}"
    if row.accuracy_change_ci is not None:
        text += f" ± {factor * _margin(row.accuracy_change, row.accuracy_change_ci):{digits}}"
    return text


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return _ABSENT
    text = f"{row.speedup:.2f}" if row.speedup < 10 else f"{row.speedup:.1f}"
    if row.speedup_ci is not None:
        sign = " =" if row.speed_verdict == "no measurable change" else ""
        text += f" ± {_margin(row.speedup, row.speedup_ci):.2f}{sign}"
    return text


def cells(report: Report, row: Row | None) -> tuple[str, ...]:
    """The cells of a row, or of the baseline for ``None``."""
    figures = (report.baseline if row is None else row.after) or Measurement()
    name = "baseline" if row is None else row.name
    if row is not None and row.status not in ("ok", "recipe"):
        name += f" ({row.status})"
    sparsity = figures.sparsity
    return (
        "" if row is None else str(row.index),
        name,
        metric_value(report, figures.accuracy),
        _ABSENT if row is None else _change(report, row),
        milliseconds(figures.latency_ms),
        _ABSENT if row is None else _speedup(row),
        size(figures.size_bytes),
        size(figures.compressed_bytes),
        _ABSENT if sparsity is None else f"{100 * sparsity:.0f} %",
        _ABSENT if row is None else duration(row.seconds),
    )


def headline(report: Report) -> str:
    """What the whole pipeline gave, in one sentence."""
    first, last = report.baseline, report.final
    parts = []
    if first.accuracy is not None and last.accuracy is not None:
        parts.append(
            f"{report.metric} {metric_value(report, first.accuracy)} → "
            f"{metric_value(report, last.accuracy)} on {report.split}"
            + (f" (n = {last.samples})" if last.samples else "")
        )
    if first.size_bytes and last.size_bytes:
        parts.append(
            f"size {size(first.size_bytes)} → {size(last.size_bytes)} "
            f"({last.size_bytes / first.size_bytes:.0%})"
        )
    if first.latency_ms is not None and last.latency_ms is not None:
        measured = [row for row in report.rows if row.after is not None]
        verdict = measured[-1].speed_verdict if measured else None
        speed = f", {verdict}" if verdict else ""
        parts.append(
            f"latency {milliseconds(first.latency_ms)} → {milliseconds(last.latency_ms)} ms{speed}"
        )
    return "; ".join(parts)


def footnotes(report: Report) -> list[str]:
    """What stands under the table: the notes of the passes, of the run, of the measuring."""
    notes = [f"{row.index} {row.name}: {note}" for row in report.rows for note in row.notes]
    notes += report.notes
    inferred = [
        f"{name} {report.environment[name]}"
        for name in ("task", "loss", "metric")
        if name in report.environment
    ]
    if inferred:
        notes.append("; ".join(inferred).replace("task ", "task: ", 1))
    threads = report.environment.get("latency_threads")
    if report.baseline.latency_ms is not None and threads:
        notes.append(
            f"latency: median of one sample at a time on {threads} thread"
            f"{'s' * (threads != 1)}; speedup against the baseline in turns, '=' where no change "
            "is measurable"
        )
    return notes


def heading(report: Report) -> tuple[str, ...]:
    """The column headings, with the name of the metric."""
    name = {"mean_absolute_error": "MAE", "mean_squared_error": "MSE"}.get(
        report.metric, report.metric
    )
    return tuple(text.format(metric=name[:12]) for text in HEADINGS)


def to_text(report: Report) -> str:
    """The table and its notes, at most 100 columns wide."""
    table = [heading(report), cells(report, None)]
    table += [cells(report, row) for row in report.rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    # Names can be long (users' own passes); every other column has a bounded width.
    spare = _WIDTH - sum(widths) - 2 * (len(widths) - 1)
    if spare < 0:
        widths[1] = max(8, widths[1] + spare)
    lines = []
    for row in table:
        aligned = [
            shortened(cell, width).ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    lines.insert(1, "─" * min(_WIDTH, max(len(line) for line in lines)))
    lines += ["", *textwrap.wrap(headline(report), _WIDTH)]
    for note in footnotes(report):
        lines += textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """A text cut to a width, and marked where it was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def to_markdown(report: Report) -> str:
    """The table as Markdown, with the notes below it."""

    def line(row: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    rule = "| " + " | ".join("---" if i == 1 else "--:" for i in range(len(HEADINGS))) + " |"
    lines = [line(heading(report)), rule, line(cells(report, None))]
    lines += [line(cells(report, row)) for row in report.rows]
    lines += ["", headline(report), ""]
    lines += [f"- {note}" for note in footnotes(report)]
    return "\n".join(lines)
