"""The report as text: a table that fits a terminal, and Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from optkit.goals import Goal
from optkit.looks import one_line, shortened
from optkit.measuring import Interval, Measurement
from optkit.report.classes import lost_classes
from optkit.report.outputs import each_output, outputs_of, report_of
from optkit.report.report import Report, Row
from optkit.study import Study, cell_text

__all__ = [
    "HEADINGS",
    "Gain",
    "GoalText",
    "cells",
    "footnotes",
    "gains",
    "goal_text",
    "heading",
    "headline",
    "in_words",
    "is_share",
    "metric_value",
    "milliseconds",
    "output_tables",
    "share",
    "size",
    "stages",
    "studies",
    "to_markdown",
    "to_text",
]

_WIDTH = 100
_TELLING = 6  # rows of a study in a terminal at most
_MARKDOWN = 20  # rows of a study in Markdown at most
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


def size(count: float | None) -> str:
    """Bytes in readable form, in powers of 1000.

    >>> size(950), size(94_500), size(13_921_920), size(None)
    ('950 B', '94.5 kB', '13.9 MB', '–')
    """
    if count is None or not math.isfinite(count):
        return _ABSENT
    if count < 1000:
        return f"{count:.0f} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def milliseconds(value: float | None) -> str:
    """A latency with three significant digits."""
    if value is None or not math.isfinite(value):
        return _ABSENT
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A duration in seconds, or in minutes above 100 s."""
    if seconds is None or not math.isfinite(seconds):
        return _ABSENT
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def is_share(report: Report) -> bool:
    """Whether the metric is a share, to be shown in per cent."""
    return "accuracy" in report.metric


def metric_value(report: Report, value: float | None) -> str:
    """The metric: in per cent for accuracies, with four significant digits otherwise."""
    if is_share(report):
        return share(value)
    return _ABSENT if value is None or not math.isfinite(value) else f"{value:.4g}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return _ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


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


def stages(report: Report) -> list[Row | None]:
    """What the table has a line for: the baseline (``None``), the runtime alone, the passes."""
    reference = [] if report.runtime_baseline is None else [report.runtime_baseline]
    return [None, *reference, *report.rows]


def _marked(row: Row) -> str:
    """The name of a row, with what became of it where that is worth saying."""
    return row.name if row.status in ("ok", "recipe") else f"{row.name} ({row.status})"


def cells(report: Report, row: Row | None) -> tuple[str, ...]:
    """The cells of a row, or of the baseline for ``None``."""
    figures = (report.baseline if row is None else row.after) or Measurement()
    sparsity = figures.sparsity
    return (
        "" if row is None or row is report.runtime_baseline else str(row.index),
        "baseline" if row is None else _marked(row),
        metric_value(report, figures.accuracy),
        _ABSENT if row is None else _change(report, row),
        milliseconds(figures.latency_ms),
        _ABSENT if row is None else _speedup(row),
        size(figures.size_bytes),
        size(figures.compressed_bytes),
        _ABSENT if sparsity is None else f"{100 * sparsity:.0f} %",
        _ABSENT if row is None else duration(row.seconds),
    )


class Gain(NamedTuple):
    """What the whole pipeline did to one figure.

    Attributes:
        name: What the figure is of, such as ``"size"``.
        words: What was gained, such as ``"4.0 times smaller"``.
        figures: Before and after.
        detail: The interval and what else belongs to it; may be empty.
    """

    name: str
    words: str
    figures: str
    detail: str


def gains(report: Report) -> list[Gain]:
    """What was gained from the baseline to what is to be deployed, as far as it was measured."""
    first, last = report.baseline, report.final
    row = report.final_row or Row(0, "", "", {}, "")
    found = _metric_gains(report)
    if first.size_bytes and last.size_bytes:
        found.append(
            Gain(
                "size",
                _ratio_in_words(first.size_bytes / last.size_bytes, "smaller", "larger"),
                f"{size(first.size_bytes)} → {size(last.size_bytes)} "
                f"({last.size_bytes / first.size_bytes:.0%})",
                "",
            )
        )
    if first.latency_ms is not None and last.latency_ms is not None:
        clear = row.speed_verdict in ("faster", "slower") and row.speedup
        words = _ratio_in_words(row.speedup, "faster", "slower") if clear and row.speedup else ""
        found.append(
            Gain(
                "latency",
                words or row.speed_verdict or "",
                f"{milliseconds(first.latency_ms)} → {milliseconds(last.latency_ms)} ms",
                "" if row.speedup_ci is None else f"interval {_ends(row.speedup_ci, '.2f')}",
            )
        )
    if first.peak_memory_bytes and last.peak_memory_bytes:
        ratio = first.peak_memory_bytes / last.peak_memory_bytes
        found.append(
            Gain(
                "peak memory",
                _ratio_in_words(ratio, "less", "more"),
                f"{size(first.peak_memory_bytes)} → {size(last.peak_memory_bytes)}",
                "runtime included"
                if first.runtime_memory_bytes is None or last.runtime_memory_bytes is None
                else f"of which runtime {size(first.runtime_memory_bytes)} → "
                f"{size(last.runtime_memory_bytes)}",
            )
        )
    if first.throughput and last.throughput and first.throughput.requests_per_second:
        before, after = (t.requests_per_second for t in (first.throughput, last.throughput))
        found.append(
            Gain(
                "throughput",
                _ratio_in_words(after / before, "more", "less") if after else "",
                f"{before:.4g} → {after:.4g} requests/s",
                f"{last.throughput.callers} caller{'s' * (last.throughput.callers != 1)}",
            )
        )
    return found


def _metric_gains(report: Report) -> list[Gain]:
    """What became of the metric; of several outputs, of the metric of each."""
    found = []
    for output, alone in each_output(report):
        first, last = alone.baseline, alone.final
        row = alone.final_row or Row(0, "", "", {}, "")
        if first.accuracy is None or last.accuracy is None:
            continue
        samples = f" (n = {last.samples})" if last.samples else ""
        found.append(
            Gain(
                f"{alone.metric} of {output}" if output else alone.metric,
                _change_in_words(alone, row),
                f"{metric_value(alone, first.accuracy)} → {metric_value(alone, last.accuracy)}"
                f" on {report.split}{samples}",
                _change_interval(alone, row),
            )
        )
    return found


def _ends(interval: Interval, form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _ratio_in_words(ratio: float, more: str, less: str) -> str:
    """A ratio in words, from the larger side: nobody thinks in "0.25 times larger"."""
    word, factor = (more, ratio) if ratio >= 1 else (less, 1 / ratio)
    if factor < 1.005:
        return "unchanged"
    return f"{factor:.2f} times {word}" if factor < 9.95 else f"{factor:.1f} times {word}"


def _change_interval(report: Report, row: Row) -> str:
    interval = row.accuracy_change_ci
    if interval is None:
        return ""
    if is_share(report):
        return f"interval {_ends((100 * interval[0], 100 * interval[1]), '+.1f')} points"
    return f"interval {_ends(interval, '+.3g')}"


def _change_in_words(report: Report, row: Row) -> str:
    change, interval = row.accuracy_change, row.accuracy_change_ci
    if change is None:
        return ""
    if change == 0 or (interval is not None and interval[0] <= 0 <= interval[1]):
        return "no measurable change"
    figure = f"{100 * abs(change):.1f} points" if is_share(report) else f"{abs(change):.3g}"
    if report.higher_is_better:
        return f"{figure} {'gained' if change > 0 else 'lost'}"
    return f"{figure} {'more' if change > 0 else 'less'}"


def in_words(report: Report) -> str:
    """What the whole pipeline gave, without figures that need a second look; may be empty.

    Example:
        ``"4.00 times smaller, 22.70 times faster; accuracy: no measurable change"``
    """
    known = {gain.name: gain.words for gain in gains(report) if gain.words}
    parts = []
    if report.final_row is None:
        if any(row.status not in ("ok", "recipe") for row in report.rows):
            parts.append("no pass was kept: the result is the model that came in")
    else:
        clear = [
            f"{name} unchanged" if known[name] == "unchanged" else known[name]
            for name in ("size", "latency")
            if name in known and known[name] != "no measurable change"
        ]
        if clear:
            parts.append(", ".join(clear))
        if known.get("latency") == "no measurable change":
            parts.append("latency: no measurable change")
        parts += [
            f"{gain.name}: {known[gain.name]}"
            for gain in _metric_gains(report)
            if gain.name in known
        ]
    if report.goals:
        parts.append(f"{sum(goal.met for goal in report.goals)} of {len(report.goals)} goals met")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def headline(report: Report) -> str:
    """What the whole pipeline gave, in one sentence with figures and intervals."""
    parts = []
    shown = {gain.name for gain in _metric_gains(report)} | {"size", "latency"}
    for gain in gains(report):
        if gain.name in shown:
            # Of a size the share says all; what was measured says how sure it is.
            words = "" if gain.name == "size" else f", {gain.words}" if gain.words else ""
            detail = f", {gain.detail}" if gain.detail else ""
            parts.append(f"{gain.name} {gain.figures}{words}{detail}")
    return "; ".join(parts)


class GoalText(NamedTuple):
    """A goal in words.

    Attributes:
        wanted: What was asked for, such as ``"accuracy drop at most 1.5 points"``.
        reached: What was reached, with its interval.
        verdict: Whether it was met, and by how much.
    """

    wanted: str
    reached: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.wanted}: {self.reached}, {self.verdict}"


def goal_text(report: Report, goal: Goal) -> GoalText:
    """A goal in words.

    Example:
        ``"accuracy drop at most 1.5 points: 0.28 points, met with 1.22 to spare"``
    """
    of = f" of {goal.output}" if goal.output else ""
    report = report_of(report, goal.output)
    subjects = {
        "min_accuracy": f"{report.metric}{of}",
        "max_accuracy_drop": (
            f"{report.metric} {'drop' if report.higher_is_better else 'growth'}{of}"
        ),
        "max_size_mb": "size",
        "max_latency_ms": "latency",
        "min_speedup": "speedup",
        "min_throughput": "throughput",
        "max_memory_mb": "peak memory",
        "min_class_accuracy": f"accuracy in every class{of}",
    }
    # In which unit figures are shown, and how many of it make one of the goal's own.
    unit, factor = goal.unit, 1.0
    if goal.name == "min_class_accuracy" or (goal.name == "min_accuracy" and is_share(report)):
        unit, factor = "%", 100.0
    elif goal.name == "max_accuracy_drop" and is_share(report):
        unit, factor = "points", 100.0

    def form(value: float, digits: str) -> str:
        number = f"{factor * value:{digits}}"
        return f"{number} {'point' if unit == 'points' and number == '1' else unit}".rstrip()

    # As many digits as the table has, or three where it is no percentage.
    digits = ".2f" if factor > 1 else ".3g"
    subject = subjects.get(goal.name, goal.name.replace("_", " "))
    wanted = f"{subject} at {'least' if goal.at_least else 'most'} {form(goal.limit, '.4g')}"
    if goal.figure is None or goal.margin is None or not math.isfinite(goal.figure):
        return GoalText(wanted, "not measured", "not met")
    # A drop below zero is a gain, and easier to read as one.
    gained = goal.name == "max_accuracy_drop" and goal.figure < 0
    sign = -1 if gained else 1
    reached = form(sign * goal.figure, digits)
    if gained:
        reached = f"a gain of {reached}" if report.higher_is_better else f"{reached} less"
    if goal.figure_ci is not None:
        low, high = sorted(sign * end for end in goal.figure_ci)
        reached += f" [{factor * low:{digits}}, {factor * high:{digits}}]"
    margin = f"{factor * abs(goal.margin):.3g}"
    verdict = f"met with {margin} to spare" if goal.met else f"missed by {margin}"
    return GoalText(wanted, reached, verdict)


def footnotes(report: Report) -> list[str]:
    """What stands under the table: the notes of the passes, of the run, of the measuring."""
    notes = []
    for row in stages(report):
        if row is not None:
            number = "" if row is report.runtime_baseline else f"{row.index} "
            notes += [f"{number}{_marked(row)}: {note}" for note in row.notes]
    notes += report.notes
    inferred = [
        f"{name} {report.environment[name]}"
        for name in ("task", "loss", "metric")
        if name in report.environment
    ]
    if inferred:
        notes.append("; ".join(inferred).replace("task ", "task: ", 1))
    notes += [*_long_tail(report), *_memory(report), *_throughput(report), *_latency(report)]
    return notes


def studies(report: Report) -> list[tuple[str, Study]]:
    """What the passes have looked into, each with its heading."""
    return [
        (one_line(f"{row.index} {_marked(row)}: {study.title}"), study)
        for row in report.rows
        for study in row.studies
    ]


def _study_lines(report: Report) -> list[str]:
    """The studies in short, and where they are in full."""
    places = [
        f"report.rows[{i}].studies[{j}]"
        for i, row in enumerate(report.rows)
        for j in range(len(row.studies))
    ]
    lines = []
    said: set[str] = set()  # several tables of a pass are read in the same way
    for place, (title, study) in zip(places, studies(report), strict=True):
        table = study.lines(_TELLING, place=place, said=said)
        lines += ["", shortened(title, _WIDTH), *table[1:]]
        said.update(study.notes)
    return lines


def _long_tail(report: Report) -> list[str]:
    """Classes that lost more than noise although the mean did not."""
    return [note for output, alone in each_output(report) for note in _tail_of(output, alone)]


def _tail_of(output: str, report: Report) -> list[str]:
    row = report.final_row
    if row is None:
        return []
    interval = row.accuracy_change_ci
    if interval is not None and (interval[1] < 0 if report.higher_is_better else interval[0] > 0):
        return []  # the mean says it itself
    lost = lost_classes(report)
    if not lost:
        return []
    shown = [
        f"{shortened(item.name, 30)} {100 * (item.change or 0):+.1f} points (n = {item.samples})"
        for item in lost[:3]
    ]
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    of = f" of {output}" if output else ""
    return [
        f"by class{of}: {', '.join(shown)}{more} lost more than noise, unseen in the mean of all"
    ]


def _memory(report: Report) -> list[str]:
    first, last = report.baseline, report.final
    if first.peak_memory_bytes is None and last.peak_memory_bytes is None:
        return []
    text = f"peak memory: {size(first.peak_memory_bytes)} → {size(last.peak_memory_bytes)}"
    alone = [figures.runtime_memory_bytes for figures in (first, last)]
    if any(alone):
        text += f", of which the runtime alone takes {size(alone[0])} → {size(alone[1])}"
    return [text]


def _throughput(report: Report) -> list[str]:
    sides = (report.baseline.throughput, report.final.throughput)
    known = next((side for side in sides if side is not None), None)
    if known is None:
        return []

    def pair(values: list[float | None]) -> str:
        return " → ".join(_ABSENT if value is None else f"{value:.4g}" for value in values)

    callers = f"{known.callers} caller{'s' * (known.callers != 1)}"
    samples = f"{known.batch_size} sample{'s' * (known.batch_size != 1)}"
    answered = pair([side.requests_per_second if side else None for side in sides])
    slow = pair([side.p99_ms if side else None for side in sides])
    text = f"throughput of {callers}, {samples} a request: {answered} requests/s, p99 {slow} ms"
    failed = [side.error_rate for side in sides if side is not None and side.error_rate]
    return [text + (f", up to {max(failed):.1%} of requests failed" if failed else "")]


def _latency(report: Report) -> list[str]:
    environment = report.environment
    threads = environment.get("latency_threads")
    if report.baseline.latency_ms is None or not threads:
        return []
    batch = batch_size(report)
    of = "one sample at a time" if batch == 1 else f"calls of {batch} samples"
    text = f"latency: median of {of} on {threads} thread{'s' * (threads != 1)}"
    limits = _limits(report)
    if limits:
        text += f" of a simulated device ({limits})"
    text += "; speedup against the baseline in turns, '=' where no change is measurable"
    return [text]


def _measure(report: Report) -> Mapping[str, Any]:
    """How figures were taken; empty in reports from before that was kept."""
    values = report.environment.get("measure")
    return values if isinstance(values, Mapping) else {}


def batch_size(report: Report) -> int:
    """Samples of a call that latency is of."""
    value = _measure(report).get("batch_size")
    return value if isinstance(value, int) else 1


def _limits(report: Report) -> str:
    """What the simulated device is limited to, beside its threads; empty for this machine."""
    device = _measure(report).get("device")
    if not isinstance(device, Mapping):
        return ""
    cores, memory = device.get("cpus"), device.get("memory_mb")
    parts = [] if cores is None else [f"{cores} core{'s' * (cores != 1)}"]
    if memory is not None:
        parts.append(f"{memory} MB of memory")
    return ", ".join(parts)


def heading_name(report: Report) -> str:
    """The name of the metric, short enough to head a column."""
    short = {"mean_absolute_error": "MAE", "mean_squared_error": "MSE"}
    return short.get(report.metric, report.metric)[:12]


def heading(report: Report) -> tuple[str, ...]:
    """The column headings, with the name of the metric."""
    return tuple(text.format(metric=heading_name(report)) for text in HEADINGS)


def output_tables(report: Report, width: int = 3) -> list[list[tuple[str, ...]]]:
    """Tables of the metric of each output at each stage, each with its heading first.

    Args:
        report: The report; of one output there are none.
        width: Outputs beside each other in a table at most.
    """
    names, tables = outputs_of(report), []
    for start in range(0, len(names), width):
        alone = [(name, report_of(report, name)) for name in names[start : start + width]]
        heading = ["#", "pass"]
        lines: list[list[str]] = [
            [first, second] for first, second, *_ in (cells(report, row) for row in stages(report))
        ]
        for name, one in alone:
            heading += [f"{shortened(one_line(name), 16)}: {heading_name(one)}", "change ±95 %"]
            for line, row in zip(lines, stages(one), strict=True):
                line += cells(one, row)[2:4]
        tables.append([tuple(heading), *map(tuple, lines)])
    return tables


def to_text(report: Report) -> str:
    """The table and its notes, at most 100 columns wide."""
    table = [heading(report), *(cells(report, row) for row in stages(report))]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    # Names can be long (users' own passes); every other column has a bounded width.
    spare = _WIDTH - sum(widths) - 2 * (len(widths) - 1)
    if spare < 0:
        widths[1] = max(8, widths[1] + spare)
    lines = []
    for row, source in zip(table, (None, *stages(report)), strict=True):
        name, below = row[1], ""
        if source is not None and len(name) > widths[1] and name != source.name:
            name, below = source.name, f"({source.status})"
        name = one_line(name)  # a line break would break the table
        aligned = [
            shortened(name, width).ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
        if below:
            lines.append(" " * (widths[0] + 2) + shortened(below, widths[1]))
    lines.insert(1, "─" * min(_WIDTH, max(len(line) for line in lines)))
    for table in output_tables(report, width=2):
        lines += ["", *_lined_up(table)]
    lines += ["", *textwrap.wrap(headline(report), _WIDTH)]
    if report.goals:
        missed = sum(not goal.met for goal in report.goals)
        lines += ["", f"goals: {len(report.goals) - missed} of {len(report.goals)} met"]
        for goal in report.goals:
            mark = "  ✓ " if goal.met else "  ✗ MISSED: "
            text = mark + str(goal_text(report, goal))
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent="    ")
        lines.append("")
    for note in footnotes(report):
        lines += textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ")
    lines += _study_lines(report)
    return "\n".join(lines)


def _lined_up(table: list[tuple[str, ...]]) -> list[str]:
    """A table of few columns as lines, names to the left and figures to the right."""
    rows = [tuple(shortened(one_line(cell), 40) for cell in row) for row in table]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        aligned = [
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    lines.insert(1, "─" * min(_WIDTH, max(map(len, lines))))
    return lines


def to_markdown(report: Report) -> str:
    """The table as Markdown, with the goals and the notes below it."""

    def line(row: tuple[str, ...]) -> str:
        escaped = [_escaped(" ".join(cell.split())).replace("|", "\\|") for cell in row]
        return "| " + " | ".join(escaped) + " |"

    rule = "| " + " | ".join("---" if i == 1 else "--:" for i in range(len(HEADINGS))) + " |"
    lines = [line(heading(report)), rule, *(line(cells(report, row)) for row in stages(report))]
    for table in output_tables(report):
        marks = ("---" if i == 1 else "--:" for i in range(len(table[0])))
        lines += ["", line(table[0]), f"| {' | '.join(marks)} |", *map(line, table[1:])]
    lines += ["", _escaped(headline(report)), ""]
    if report.goals:
        lines += [line(("goal", "reached", "")), "| --- | --- | --- |"]
        for goal in report.goals:
            wanted, reached, verdict = goal_text(report, goal)
            lines.append(line((wanted, reached, verdict if goal.met else f"**{verdict}**")))
        lines.append("")
    lines += [f"- {_escaped(note)}" for note in footnotes(report)]
    for title, study in studies(report):
        rows, more = study.telling(_MARKDOWN)
        cut = f", {more} more rows not shown" if more else ""
        lines += [
            "",
            f"**{_escaped(title)}**{cut}",
            "",
            line(study.columns),
            line(("---",) * len(study.columns)),
        ]
        lines += [line(tuple(map(cell_text, row))) for row in rows]
        if study.notes:
            lines += ["", *(f"- {_escaped(one_line(note))}" for note in study.notes)]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text in which names that users chose are neither HTML nor links, for renderers that take both."""
    return text.replace("<", "&lt;").replace("](", "]\\(")
