"""Two reports side by side: which settings differ, and what that did to the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.errors import ArgumentTypeError
from optkit.looks import shortened
from optkit.measuring import Interval, Measurement
from optkit.report.report import Report, Row
from optkit.report.text import is_share, metric_value, milliseconds, share, size

if TYPE_CHECKING:
    import pandas

__all__ = ["FigureDifference", "ReportComparison", "SettingDifference", "compare"]

_WIDTH = 100
_ABSENT = "–"
_SAME = "no measurable difference"
_SIZE_NOISE = 0.001  # names and the like take up a few bytes more or less


@dataclass(frozen=True)
class SettingDifference:
    """A setting that is not the same in two reports.

    Attributes:
        name: Its name with those of what holds it, such as ``"versions.numpy"``.
        this: Its value in the first report; ``None`` where it has none.
        other: Its value in the second one.
    """

    name: str
    this: Any
    other: Any


@dataclass(frozen=True)
class FigureDifference:
    """A figure of a stage in two reports.

    Attributes:
        stage: ``"baseline"``, ``"final"``, or the name of a pass.
        figure: Such as ``"accuracy"`` or ``"latency"``; of several outputs also
            ``"accuracy of digit"``.
        this: Its value in the first report; ``None`` where it was not measured.
        other: Its value in the second one.
        this_ci: The 95 % interval of the first, where there is one.
        other_ci: That of the second.
        difference: The second less the first; ``None`` where one of them is missing.
        verdict: ``"other is better"``, ``"other is worse"``, ``"no measurable difference"`` where
            the intervals overlap, ``"equal"`` (of a size: within 0.1 %); ``None`` where one of them is missing. Where two
            intervals exclude each other the difference is there; where they overlap a little it may
            still be: each run can be compared with its own baseline more sharply than two runs.
    """

    stage: str
    figure: str
    this: float | None
    other: float | None
    this_ci: Interval | None
    other_ci: Interval | None
    difference: float | None
    verdict: str | None


@dataclass(frozen=True)
class ReportComparison:
    """Two reports side by side. Printed it is a table; in a notebook it shows as HTML.

    Attributes:
        settings: What differs in pipeline, seed, versions, processor, data and passes.
        figures: The figures of the baselines, of what is to be deployed, and of the passes that
            both have, matched by name.
        only_this: Names of the passes that only the first report has.
        only_other: Names of the passes that only the second one has.
        notes: What to mind when comparing.
        metric: Name of the metric that ``"accuracy"`` stands for.
    """

    settings: tuple[SettingDifference, ...]
    figures: tuple[FigureDifference, ...]
    only_this: tuple[str, ...]
    only_other: tuple[str, ...]
    notes: tuple[str, ...]
    metric: str

    def to_frame(self) -> pandas.DataFrame:
        """A tidy ``pandas.DataFrame``: one row a figure of a stage."""
        import pandas

        records = []
        for item in self.figures:
            record: dict[str, Any] = {"stage": item.stage, "figure": item.figure}
            for side in ("this", "other"):
                low, high = getattr(item, f"{side}_ci") or (None, None)
                record |= {
                    side: getattr(item, side),
                    f"{side}_ci_low": low,
                    f"{side}_ci_high": high,
                }
            records.append(record | {"difference": item.difference, "verdict": item.verdict})
        columns = ["stage", "figure", "this", "this_ci_low", "this_ci_high", "other"]
        columns += ["other_ci_low", "other_ci_high", "difference", "verdict"]
        frame = pandas.DataFrame.from_records(records, columns=columns)
        texts = ("stage", "figure", "verdict")
        return frame.astype({name: float for name in columns if name not in texts})

    def _tables(self) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Both tables as text, each with its heading."""
        settings: list[tuple[str, ...]] = [("setting", "this", "other")]
        settings += [
            (item.name, _text_of(item.this), _text_of(item.other)) for item in self.settings
        ]
        figures: list[tuple[str, ...]] = [
            ("stage", "figure", "this", "other", "difference", "verdict")
        ]
        for item in self.figures:
            form = _form(self.metric, item.figure)
            figures.append(
                (
                    item.stage,
                    self.metric if item.figure == "accuracy" else item.figure,
                    form(item.this),
                    form(item.other),
                    _difference_text(self.metric, item),
                    item.verdict or _ABSENT,
                )
            )
        return settings, figures

    def _remarks(self) -> list[str]:
        remarks = []
        for names, which in ((self.only_this, "this"), (self.only_other, "the other")):
            if names:
                remarks.append(f"only in {which} report: {', '.join(names)}")
        return remarks + list(self.notes)

    def __str__(self) -> str:
        settings, figures = self._tables()
        lines = []
        if self.settings:
            lines += [*_aligned(settings), ""]
        else:
            lines += ["The settings are the same.", ""]
        if self.figures:
            lines += _aligned(figures)
        lines += [f"- {shortened(remark, _WIDTH - 2)}" for remark in self._remarks()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from optkit.report.html import comparison_html

        return comparison_html(*self._tables(), self._remarks())


def compare(this: Report, other: Report) -> ReportComparison:
    """Puts two reports side by side; see `Report.compare`."""
    if not isinstance(other, Report):
        raise ArgumentTypeError(
            "`other` must be an `optkit.Report`, such as `result.report` or what "
            f"`Report.from_json(path)` reads. Received: {other!r} (of type {type(other).__name__})."
        )
    rows, others = ({row.name: row for row in report.rows} for report in (this, other))
    same_metric = this.metric == other.metric and this.split == other.split
    figures = [*_compared("baseline", this.baseline, other.baseline, this, same_metric)]
    for name, row in rows.items():
        if name in others:
            sides = (row.after or Measurement(), others[name].after or Measurement())
            figures += _compared(name, *sides, this, same_metric)
    figures += _compared("final", this.final, other.final, this, same_metric)
    final = (this.final_row, other.final_row)
    if None not in final:
        figures += _gains(this, final, same_metric)
    return ReportComparison(
        settings=tuple(_settings(this, other)),
        figures=tuple(figures),
        only_this=tuple(name for name in rows if name not in others),
        only_other=tuple(name for name in others if name not in rows),
        notes=tuple(_cautions(this, other, figures, same_metric)),
        metric=this.metric,
    )


def _compared(
    stage: str, this: Measurement, other: Measurement, report: Report, same_metric: bool
) -> Iterator[FigureDifference]:
    """The figures of one stage that at least one side has."""
    sides = (this, other)
    if same_metric:
        intervals = [item.accuracy_ci for item in sides]
        values = [item.accuracy for item in sides]
        yield from _difference(
            stage, "accuracy", values, intervals, 1 if report.higher_is_better else -1
        )
        yield from _compared_outputs(stage, this, other)
    intervals = [item.latency_ci for item in sides]
    yield from _difference(stage, "latency", [item.latency_ms for item in sides], intervals, -1)
    exact: list[Interval | None] = [None, None]
    for figure, attribute in (("size", "size_bytes"), ("gzip", "compressed_bytes")):
        yield from _difference(stage, figure, [getattr(s, attribute) for s in sides], exact, -1)
    yield from _difference(stage, "zeros", [item.sparsity for item in sides], exact, 0)
    memory: list[float | None] = [item.peak_memory_bytes for item in sides]
    yield from _difference(stage, "peak memory", memory, exact, 0)
    answered = [s.throughput.requests_per_second if s.throughput else None for s in sides]
    yield from _difference(stage, "requests/s", answered, exact, 0)


def _compared_outputs(
    stage: str, this: Measurement, other: Measurement
) -> Iterator[FigureDifference]:
    """The metric of each output that both sides measured alike."""
    others = other.outputs or {}
    for name, one in (this.outputs or {}).items():
        if name in others and others[name].metric == one.metric:
            sides = (one, others[name])
            yield from _difference(
                stage,
                f"{one.metric} of {name}",
                [side.accuracy for side in sides],
                [side.accuracy_ci for side in sides],
                1 if one.higher_is_better else -1,
            )


def _gains(
    report: Report, rows: tuple[Row | None, Row | None], same_metric: bool
) -> Iterator[FigureDifference]:
    """What each run gained over its own baseline, taken in turns or sample by sample."""
    sides = [row for row in rows if row is not None]
    if same_metric:
        yield from _difference(
            "final",
            "change",
            [row.accuracy_change for row in sides],
            [row.accuracy_change_ci for row in sides],
            1 if report.higher_is_better else -1,
        )
    intervals = [row.speedup_ci for row in sides]
    yield from _difference("final", "speedup", [row.speedup for row in sides], intervals, 1)


def _difference(
    stage: str,
    figure: str,
    values: list[Any],
    intervals: list[Interval | None],
    sign: int,
) -> Iterator[FigureDifference]:
    """Yields nothing where neither side has the figure; ``sign`` is 1 where more is better."""
    (this, other), (this_ci, other_ci) = values, intervals
    if this is None and other is None:
        return
    difference = verdict = None
    if this is not None and other is not None:
        difference = other - this
        if figure in ("size", "gzip") and abs(difference) <= _SIZE_NOISE * this:
            verdict = "equal"
        else:
            verdict = _verdict(difference, this_ci, other_ci, sign)
    yield FigureDifference(stage, figure, this, other, this_ci, other_ci, difference, verdict)


def _verdict(difference: float, one: Interval | None, two: Interval | None, sign: int) -> str:
    if one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]:
        return _SAME
    if difference == 0:
        return "equal"
    if sign == 0:  # measured without an interval: nothing says how much of it is noise
        return "more" if difference > 0 else "less"
    return "other is better" if sign * difference > 0 else "other is worse"


def _settings(this: Report, other: Report) -> Iterator[SettingDifference]:
    sides = [_flat(_described(report)) for report in (this, other)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name) for side in sides]
        if _plain(values[0]) != _plain(values[1]):
            yield SettingDifference(name, *values)


def _described(report: Report) -> dict[str, Any]:
    """All settings of a run; the pipeline by its passes, which says more than its source does."""
    environment = {key: value for key, value in report.environment.items() if key != "pipeline"}
    return {
        "metric": report.metric,
        "split": report.split,
        "passes": ", ".join(row.name for row in report.rows) or None,
        **{row.name: row.config for row in report.rows if row.config},
        **environment,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> str:
    """A value as JSON: what was read from a file equals what was written, tuples and all."""
    return json.dumps(value, sort_keys=True, default=repr)


def _cautions(
    this: Report, other: Report, figures: list[FigureDifference], same_metric: bool
) -> Iterator[str]:
    if not same_metric:
        one, two = (f"{report.metric} on {report.split}" for report in (this, other))
        yield f"{one} cannot be compared with {two}"
    sides = [_flat(report.environment) for report in (this, other)]
    timed = ("processor", "cores", "latency_threads", "measure.batch_size", "measure.device.")
    if _differ(sides, lambda name: name.startswith(timed)):
        yield "latencies were not measured alike: other processor, threads, device or batch size"
    if any(item.figure == "latency" and item.verdict not in (None, _SAME) for item in figures):
        yield (
            "latencies of two runs are not taken in turns: what else the machine did counts too, "
            "and speedups compare better"
        )
    drawn = ("data.seed", "data.batch_size")  # what is done with the data, not what they are
    if _differ(sides, lambda name: name.startswith("data.") and name not in drawn):
        yield "the data are not the same: figures may differ for that alone"


def _differ(sides: list[dict[str, Any]], matters: Callable[[str], bool]) -> bool:
    # What only one of them knows, a report of an older version may merely not have kept.
    both = [name for name in sides[0] if name in sides[1] and matters(name)]
    return any(_plain(sides[0][name]) != _plain(sides[1][name]) for name in both)


def _form(metric: str, figure: str) -> Callable[[Any], str]:
    if figure == "accuracy":
        return lambda value: metric_value(_of(metric), value)
    if figure == "zeros":
        return share
    if figure in ("size", "gzip", "peak memory"):
        return size
    if figure == "latency":
        return lambda value: f"{milliseconds(value)} ms"
    if figure == "change":
        scale = 100 if is_share(_of(metric)) else 1
        return lambda value: _ABSENT if value is None else f"{scale * value:+.3g}"
    return lambda value: _ABSENT if value is None else f"{value:.4g}"


def _of(metric: str) -> Report:
    """A report of a metric, which is what says how figures of it are written."""
    return Report((), Measurement(), metric=metric)


def _difference_text(metric: str, item: FigureDifference) -> str:
    if item.difference is None:
        return _ABSENT
    if item.figure in ("accuracy", "change", "zeros"):
        points = item.figure == "zeros" or is_share(_of(metric))
        return f"{100 * item.difference:+.2f} points" if points else f"{item.difference:+.3g}"
    return f"{item.difference / item.this:+.0%}" if item.this else f"{item.difference:+.3g}"


def _text_of(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or _ABSENT
    return " ".join(str(value).split())


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    """A table as lines, its cells cut so that it fits the terminal."""
    count = len(table[0])
    widths = [max(len(row[i]) for row in table) for i in range(count)]
    while sum(widths) + 2 * (count - 1) > _WIDTH:
        widest = max(range(count), key=lambda i: widths[i])
        widths[widest] -= 1
    lines = [
        "  ".join(
            shortened(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "─" * (sum(widths) + 2 * (count - 1)))
    return lines
