"""`Study`: a table, with a chart where one helps, that a pass shows in its row of the report."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from optkit import _validate
from optkit.errors import ArgumentTypeError, PipelineError

__all__ = ["Chart", "Study"]

_KINDS = ("bar", "line", "scatter")

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
        rows: The table; each row has a value for each column, which is a string, a number, ``True``,
            ``False``, or ``None`` for what is not known.
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
