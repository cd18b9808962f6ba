"""`Study`: a table, with a chart where one helps, that a pass shows in its row of the report."""

from __future__ import annotations

import dataclasses
import html
import math
import numbers
import os
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from optkit import _validate
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.looks import (
    BASELINE,
    INK,
    SHAPES,
    STAGE,
    absent,
    blank,
    label_rows,
    legend_below,
    one_line,
    plain,
    prepared,
    shortened,
    shown,
    svg,
    text_options,
    without_glyph_warnings,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["Chart", "Study", "cell_text", "draw_study", "height_of_study"]

_KINDS = ("bar", "line", "scatter")
_WIDTH = 100  # of text, in characters
_CELL = 40  # characters of a cell at most
_NARROW = 12  # characters to which a name is cut where there is no room
_NAME = 28  # characters of a name in a picture at most
_BARS = 40  # rows drawn as bars at most
_TICKS = 12  # names along an axis up to which they stand beside each other

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Chart:
    """How a study is drawn.

    Args:
        kind: ``"bar"`` (a bar a row, one below the other), ``"line"`` (points in the order of the
            rows, joined) or ``"scatter"`` (points alone).
        x: Column of what the figures are of: names for bars, figures or names otherwise.
        y: Columns of figures, each a series of its own.
        mark: Column of true and false: rows where it is true are set off, and the legend says so
            by the column's name. ``None`` sets off none.
        log: Whether the figures are drawn on a logarithmic scale; those that are not above zero are
            left out there.

    Example:
        >>> Chart("bar", x="layer", y=("output error",)).y
        ('output error',)
    """

    kind: str
    x: str
    y: tuple[str, ...]
    mark: str | None = None
    log: bool = False

    def __post_init__(self) -> None:
        _validate.one_of("kind", self.kind, _KINDS)
        _validate.text("x", self.x)
        object.__setattr__(self, "y", _validate.texts("y", self.y))
        if not self.y:
            raise PipelineError("`y` must name at least one column of figures.")
        _validate.optional(_validate.text, "mark", self.mark)
        _validate.boolean("log", self.log)


@dataclass(frozen=True)
class Study:
    """What a pass has looked into: a table, and how to draw it.

    A pass shows it with `Context.show`; it stands in `Row.studies` and in every form of the report.

    Args:
        title: What it is about, such as ``"Layers one at a time"``.
        columns: Headings, at least one, all different.
        rows: The table, what matters most first, as short forms of the report cut it off; each row
            has a value for each column, which is a string, a number, ``True``, ``False``, or ``None``
            for what is not known. A number that is not finite is ``None`` once it was JSON.
        notes: What the reader should know of it.
        chart: How it is drawn; ``None`` for a table alone.

    Raises:
        PipelineError: If the rows do not fit the columns, or the chart names other columns.

    Example:
        >>> study = Study(
        ...     "Layers one at a time",
        ...     ("layer", "error", "kept in float"),
        ...     (("conv", 0.25, True), ("scores", 0.01, False)),
        ...     chart=Chart("bar", x="layer", y=("error",), mark="kept in float"),
        ... )
        >>> Study.from_dict(study.to_dict()) == study
        True
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    chart: Chart | None = None

    def __post_init__(self) -> None:
        _validate.text("title", self.title)
        object.__setattr__(self, "columns", _validate.texts("columns", self.columns))
        object.__setattr__(self, "notes", _validate.texts("notes", self.notes))
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise PipelineError(
                f"`columns` must be headings that differ, at least one. Received: {self.columns}."
            )
        given: Any = self.rows
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ArgumentTypeError(f"`rows` must be a list of rows. Received: {given!r}.")
        rows = tuple(_row(i, row, len(self.columns)) for i, row in enumerate(given))
        object.__setattr__(self, "rows", rows)
        if self.chart is not None:
            self._check_chart(self.chart)

    def _check_chart(self, chart: Any) -> None:
        if not isinstance(chart, Chart):
            raise ArgumentTypeError(f"`chart` must be a Chart or None. Received: {chart!r}.")
        named = (chart.x, *chart.y, *([chart.mark] if chart.mark is not None else []))
        if unknown := [name for name in named if name not in self.columns]:
            raise PipelineError(
                f"The chart of {self.title!r} names columns {unknown}; those of the table are "
                f"{list(self.columns)}."
            )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return f"Study({self.title!r}, {len(self.rows)} rows)"

    def lines(
        self, limit: int | None = None, *, place: str = "", said: Collection[str] = ()
    ) -> list[str]:
        """The study as lines of text, at most 100 columns wide.

        Where the table is wider than that and ends in a column of text, such as reasons, that text
        stands below its row; names are cut then. Where names cannot be told apart any more, they
        stand below their rows in full.

        Args:
            limit: How many rows to show at most; the last line of the table then says how many more
                there are. ``None`` for all.
            place: Where the others can be seen, for that line.
            said: Notes that the reader knows already.
        """
        rows, more = self.telling(limit)
        cells = [[one_line(cell_text(value)) for value in row] for row in rows]
        headings = [one_line(name) for name in self.columns]
        figures = [self.of_figures(i) for i in range(len(headings))]
        widths = [
            min(_CELL, max(map(len, column))) for column in zip(headings, *cells, strict=True)
        ]
        below = [""] * len(cells)
        text_last = not figures[-1] or all(row[-1] is None for row in rows)
        if _total(widths) > _WIDTH and len(headings) > 1 and text_last:
            last = headings.pop()
            for i, row in enumerate(cells):
                text = row.pop()
                below[i] = "" if rows[i][-1] is None else f"{last}: {text}"
            widths.pop()
        names = [i for i, figure in enumerate(figures[: len(widths)]) if not figure]
        while _total(widths) > _WIDTH and any(widths[i] > _NARROW for i in names):
            widest = max(names, key=widths.__getitem__)
            widths[widest] -= 1

        def line(row: Sequence[str]) -> str:
            aligned = [
                shortened(cell, width).rjust(width)
                if figure
                else shortened(cell, width).ljust(width)
                for cell, width, figure in zip(row, widths, figures, strict=False)
            ]
            return shortened("  ".join(aligned).rstrip(), _WIDTH)

        lines = [
            shortened(one_line(self.title), _WIDTH),
            line(headings),
            "─" * min(_WIDTH, _total(widths)),
        ]
        whole = _told_apart([row[0] for row in cells], widths[0])
        for row, *texts in zip(cells, whole, below, strict=True):
            lines.append(line(row))
            for text in texts:
                lines += textwrap.wrap(
                    text, _WIDTH - 4, initial_indent="    ", subsequent_indent="    "
                )
        if more:
            lines.append(f"… {more} more in {place}" if place else f"… {more} more")
        for note in (note for note in self.notes if note not in said):
            lines += textwrap.wrap(f"- {one_line(note)}", _WIDTH, subsequent_indent="  ")
        return lines

    def telling(self, limit: int | None) -> tuple[list[tuple[Value, ...]], int]:
        """The rows that a short form shows, in their order, and how many it leaves out.

        Rows that the chart marks come before the others, which come in their order.
        """
        if limit is None or len(self.rows) <= limit:
            return list(self.rows), 0
        places = sorted(range(len(self.rows)), key=lambda i: (not self.marked(self.rows[i]), i))
        return [self.rows[i] for i in sorted(places[:limit])], len(self.rows) - limit

    def marked(self, row: tuple[Value, ...]) -> bool:
        """Whether the chart sets this row off."""
        mark = None if self.chart is None else self.chart.mark
        return mark is not None and row[self.columns.index(mark)] is True

    def of_figures(self, column: int) -> bool:
        """Whether a column holds nothing but figures, which stand to the right."""
        return all(row[column] is None or _is_figure(row[column]) for row in self.rows)

    def _repr_html_(self) -> str:
        """The whole table, with the chart above it."""
        picture = ""
        if self.chart is not None:
            with without_glyph_warnings():
                figure = blank(5.6, height_of_study(self))
                draw_study(self, figure.subplots())
                picture = svg(figure, "study")
        header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell_text(value))}</td>" for value in row) + "</tr>"
            for row in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<div><p><b>{html.escape(self.title)}</b></p>{picture}"
            f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<ul>{notes}</ul>" if notes else "")
            + "</div>"
        )

    def to_frame(self) -> pandas.DataFrame:
        """The table as a ``pandas.DataFrame``.

        Example:
            >>> Study("Sizes", ("layer", "bytes"), (("conv", 288), ("scores", 400))).to_frame()
                layer  bytes
            0    conv    288
            1  scores    400
        """
        import pandas

        return pandas.DataFrame.from_records(list(self.rows), columns=list(self.columns))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The chart of the study.

        In a notebook the picture shows by itself, unless it is saved.

        Args:
            path: Where to save the picture; the suffix (``.png``, ``.svg``, ``.pdf``) says how.

        Returns:
            The matplotlib ``Axes``.

        Raises:
            PipelineError: If the study is a table alone.
        """
        if self.chart is None:
            raise PipelineError(
                f"The study {self.title!r} has no chart: it is a table, for `print` and `to_frame`."
            )

        def draw(make: Any) -> Axes:
            with without_glyph_warnings():
                axes: Axes = blank(7, height_of_study(self), make).subplots()
                draw_study(self, axes)
                return axes

        drawn: Axes = shown(draw, path)
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
            "chart": None if self.chart is None else dataclasses.asdict(self.chart),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also after a round trip through JSON."""
        chart = values["chart"]
        return cls(
            values["title"],
            tuple(values["columns"]),
            tuple(tuple(row) for row in values["rows"]),
            tuple(values["notes"]),
            None if chart is None else Chart(**chart),
        )


def _row(number: int, row: Any, width: int) -> tuple[Value, ...]:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != width:
        raise PipelineError(f"`rows[{number}]` must have {width} values. Received: {row!r}.")
    return tuple(_value(f"rows[{number}]", value) for value in row)


def _value(name: str, value: Any) -> Value:
    """A plain value; NumPy's numbers become Python's."""
    if value is None or isinstance(value, bool | str):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _value(name, value.item())
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ArgumentTypeError(
        f"`{name}` must hold strings, numbers, True, False and None. Received: {value!r} (of type "
        f"{type(value).__name__})."
    )


def _told_apart(names: Sequence[str], width: int) -> list[str]:
    """What to say below rows so that cut names can be told apart; empty where they can."""
    cut = Counter(shortened(name, width) for name in set(names))
    return [name if cut[shortened(name, width)] > 1 else "" for name in names]


def _total(widths: Sequence[int]) -> int:
    """Characters of a line: the cells, and two between each."""
    return sum(widths) + 2 * (len(widths) - 1)


def _is_figure(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell_text(value: Value) -> str:
    """A value as the report shows it.

    >>> [cell_text(value) for value in ("conv", 1234567, 0.123456, True, False, None)]
    ['conv', '1234567', '0.1235', 'yes', 'no', '–']
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------- pictures


def height_of_study(study: Study) -> float:
    """Inches that the chart of a study takes."""
    if study.chart is None or study.chart.kind != "bar":
        return 3.6
    return 1.2 + 0.26 * max(4, min(len(study.rows), _BARS))


def draw_study(study: Study, axes: Axes) -> None:
    """Draws the chart of a study that has one."""
    chart = study.chart
    if chart is None:
        raise PipelineError(f"The study {study.title!r} has no chart.")
    label = one_line(", ".join(chart.y))
    if chart.kind == "bar":
        prepared(axes, shortened(label, 60))
        rows, more = study.telling(_BARS)
    else:
        prepared(axes, plain(chart.x, 60), shortened(label, 40))
        rows, more = list(study.rows), 0
    title = plain(study.title, 60)
    axes.set_title(f"{title}, {more} rows not shown" if more else title, **text_options(9))
    series = [_figures(rows, study.columns.index(name), above_zero=chart.log) for name in chart.y]
    if not any(series):
        absent(axes)
        return
    if chart.kind == "bar":
        _draw_bars(study, chart, axes, rows, series)
    else:
        _draw_points(study, chart, axes, rows, series)
    if len(chart.y) > 1 or any(map(study.marked, rows)):
        legend_below(axes)


def _figures(
    rows: Sequence[tuple[Value, ...]], column: int, *, above_zero: bool = False
) -> dict[int, float]:
    """The figures of a column that can be drawn, by place of the row."""
    found = {}
    for i, row in enumerate(rows):
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and (value > 0 or not above_zero):
            found[i] = float(value)
    return found


def _split(study: Study, rows: Sequence[tuple[Value, ...]]) -> list[tuple[bool, set[int]]]:
    """The places of the rows that are set off and of the others, as far as there are any."""
    marked = {i for i, row in enumerate(rows) if study.marked(row)}
    sides = [(False, set(range(len(rows))) - marked), (True, marked)]
    return [(off, places) for off, places in sides if places]


def _draw_bars(
    study: Study,
    chart: Chart,
    axes: Axes,
    rows: Sequence[tuple[Value, ...]],
    series: list[dict[int, float]],
) -> None:
    height = 0.8 / len(series)
    for number, (name, found) in enumerate(zip(chart.y, series, strict=True)):
        offset = (number - (len(series) - 1) / 2) * height
        for off, places in _split(study, rows):
            kept = sorted(places & found.keys())
            axes.barh(
                [i + offset for i in kept],
                [found[i] for i in kept],
                height=0.9 * height,
                label=_label(chart, name, off=off, several=len(series) > 1),
                **_bar_looks(number, off=off, several=len(series) > 1),
            )
    if chart.log:
        axes.set_xscale("log")
    column = study.columns.index(chart.x)
    label_rows(axes, [plain(cell_text(row[column]), _NAME) for row in rows])


def _bar_looks(number: int, *, off: bool, several: bool) -> dict[str, Any]:
    """One series needs no colour of its own, so that colour says what is set off."""
    if not several:
        return {"color": BASELINE if off else STAGE}
    return {"color": SHAPES[number % len(SHAPES)][0], "hatch": "///" if off else ""}


def _draw_points(
    study: Study,
    chart: Chart,
    axes: Axes,
    rows: Sequence[tuple[Value, ...]],
    series: list[dict[int, float]],
) -> None:
    column = study.columns.index(chart.x)
    values = [row[column] for row in rows]
    along = _figures(rows, column) if study.of_figures(column) else None
    places = {i: float(i) for i in range(len(rows))} if along is None else along
    for number, (name, found) in enumerate(zip(chart.y, series, strict=True)):
        colour, marker = SHAPES[number % len(SHAPES)]
        if chart.kind == "line":
            # What is not known leaves a gap: a line over it would be made up.
            drawn = [found.get(i, math.nan) for i in places]
            axes.plot(list(places.values()), drawn, color=colour, linewidth=1)
        for off, some in _split(study, rows):
            kept = sorted(some & found.keys() & places.keys())
            axes.plot(
                [places[i] for i in kept],
                [found[i] for i in kept],
                linestyle="",
                marker="*" if off else marker,
                markersize=10 if off else 5,
                color=BASELINE if off and len(series) == 1 else colour,
                label=_label(chart, name, off=off, several=len(series) > 1),
                zorder=3,
            )
    if chart.log:
        axes.set_yscale("log")
    if along is None:
        turned = 0 if len(rows) <= _TICKS else 90
        labels = [plain(cell_text(value), _NAME) for value in values]
        axes.set_xticks(range(len(rows)), labels=labels, rotation=turned, **text_options())
    axes.tick_params(colors=INK)


def _label(chart: Chart, name: str, *, off: bool, several: bool) -> str:
    if off:
        return plain(f"{name}, {chart.mark}" if several else str(chart.mark), _NAME)
    return plain(name, _NAME)
