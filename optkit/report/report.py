"""`Row` and `Report`: the figures of a run, one row a pass."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact.base import write_atomically
from optkit.errors import OptkitError
from optkit.goals import Goal
from optkit.looks import shown
from optkit.measuring import Interval, Measurement, OutputChange, Throughput, verdict
from optkit.study import Study

if TYPE_CHECKING:
    import pandas

    from optkit.report.compare import ReportComparison

__all__ = ["Report", "Row"]

_FORMAT = 1
_THROUGHPUT = tuple(field.name for field in dataclasses.fields(Throughput))
#: Figures of a row that are not its measurement's.
_FIGURES = (
    "validation_before",
    "validation_after",
    "accuracy_change",
    "accuracy_change_ci",
    "speedup",
    "speedup_ci",
    "seconds",
)


@dataclass(frozen=True)
class Row:
    """What one pass gave and cost. Comparisons are against the baseline.

    Attributes:
        index: Position in the pipeline, from 1.
        name: Name of the pass; a second one of a kind is called ``"Prune-2"``.
        family: ``"recipe"``, ``"train"``, ``"rewrite"``, ``"convert"`` or ``"inspect"``.
        config: The pass's arguments in readable form.
        status: ``"ok"``, ``"recipe"`` (it only changed how later passes train), ``"rolled back"``
            (it broke a goal and was undone), ``"skipped"`` (what it takes was undone, or the run
            had ended), ``"cancelled"`` or ``"failed"``.
        before: Figures of what came in; ``None`` for passes that make nothing, which are those of
            the families ``"recipe"`` and ``"inspect"``.
        after: Figures of what came out; ``None`` where nothing did.
        validation_before: The metric on the split that decisions are made on, of what came in.
        validation_after: The same of what came out.
        speedup: How many times faster than the baseline, taken in turns with it.
        speedup_ci: Its interval; where it spans 1 there is no measurable change.
        accuracy_change: Change of the metric on the same samples.
        accuracy_change_ci: Its paired interval.
        output_changes: Of a model with several outputs, the change of each, by name.
        seconds: Duration of the pass's own work; measuring and reading back are not counted.
        notes: What the pass has to say of this run.
        curves: For each training of the pass its figures by name (``"loss"``, ``"val_metric"``, …),
            one value an epoch.
        trainings: For each training of the pass, in the order of ``curves``: ``"epochs"`` that it
            took, the epoch that was ``"kept"``, from 1, whether it ``"stopped_early"``, and a list
            of the epochs behind which it was ``"resumed"`` after its process had been killed.
        studies: What the pass has looked into, as tables with charts.
    """

    index: int
    name: str
    family: str
    config: dict[str, Any]
    status: str
    before: Measurement | None = None
    after: Measurement | None = None
    validation_before: float | None = None
    validation_after: float | None = None
    speedup: float | None = None
    speedup_ci: Interval | None = None
    accuracy_change: float | None = None
    accuracy_change_ci: Interval | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    curves: tuple[dict[str, list[float]], ...] = ()
    trainings: tuple[dict[str, Any], ...] = ()
    output_changes: dict[str, OutputChange] | None = None
    studies: tuple[Study, ...] = ()

    @property
    def speed_verdict(self) -> str | None:
        """``"faster"``, ``"slower"`` or ``"no measurable change"``; ``None`` if not measured."""
        return verdict(self.speedup_ci)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for side in ("before", "after"):
            values[side] = values[side].to_dict() if values[side] is not None else None
        values["curves"] = [
            {name: list(figures) for name, figures in curves.items()} for curves in self.curves
        ]
        values["trainings"] = [dict(item) for item in self.trainings]
        if not self.trainings:
            del values["trainings"]  # most passes train nothing
        if self.studies:
            values["studies"] = [study.to_dict() for study in self.studies]
        else:
            del values["studies"]  # most passes have none
        if self.output_changes is None:
            del values["output_changes"]  # most models have one output
        else:
            values["output_changes"] = {
                name: dataclasses.asdict(item) for name, item in self.output_changes.items()
            }
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """What `to_dict` gave, also after a round trip through JSON."""
        values = dict(values)
        for side in ("before", "after"):
            if values[side] is not None:
                values[side] = Measurement.from_dict(values[side])
        for name in ("speedup_ci", "accuracy_change_ci"):
            if values[name] is not None:
                values[name] = tuple(values[name])
        values["notes"] = tuple(values["notes"])
        if values.get("output_changes") is not None:
            values["output_changes"] = {
                name: OutputChange.from_dict(item)
                for name, item in values["output_changes"].items()
            }
        values["studies"] = tuple(map(Study.from_dict, values.get("studies", ())))
        values["trainings"] = tuple(values.get("trainings", ()))
        # A loss that was not finite is null in JSON, which knows no other numbers.
        values["curves"] = tuple(
            {
                name: [math.nan if value is None else float(value) for value in figures]
                for name, figures in curves.items()
            }
            for curves in values.get("curves", ())
        )
        return cls(**values)


@dataclass(frozen=True)
class Report:
    """The figures of a run.

    Printed it is a table; in a notebook it shows as HTML.

    Attributes:
        rows: One row a pass, in order.
        baseline: Figures of the model that came in.
        metric: Name of the metric that "accuracy" stands for.
        higher_is_better: Whether more of it is better.
        split: The split that the figures are of: ``"test"``, or ``"validation"`` where there is no
            test, which flatters what was chosen on it; ``None`` where nothing could be scored.
        environment: Everything needed to repeat the run: versions, processor, threads, seed,
            task, loss, optimizer, sizes and fingerprints of the data.
        notes: What holds for the whole run.
        goals: What was asked for, each with what was reached.
        runtime_baseline: The model that came in, converted as it is to the runtime of the final
            artifact and measured like a pass: what the runtime alone gives. ``None`` unless asked
            for. Its index is 0.
    """

    rows: tuple[Row, ...]
    baseline: Measurement
    metric: str = "accuracy"
    higher_is_better: bool = True
    split: str | None = "test"
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    runtime_baseline: Row | None = None

    @property
    def final_row(self) -> Row | None:
        """The row of what is to be deployed: the last that was kept; ``None`` for the baseline."""
        kept = [row for row in self.rows if row.status == "ok" and row.after is not None]
        return kept[-1] if kept else None

    @property
    def final(self) -> Measurement:
        """Figures of what is to be deployed: of the last row that was kept, else the baseline."""
        row = self.final_row
        return self.baseline if row is None or row.after is None else row.after

    @property
    def met(self) -> bool:
        """Whether every goal was met; true where none was set."""
        return all(goal.met for goal in self.goals)

    def __str__(self) -> str:
        from optkit.report.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        return f"Report({len(self.rows)} rows, {self.metric} on {self.split})"

    def _repr_html_(self) -> str:
        from optkit.report.html import to_html

        return to_html(self, page=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "format": _FORMAT,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "split": self.split,
            "baseline": self.baseline.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "environment": self.environment,
            "notes": list(self.notes),
            "goals": [goal.to_dict() for goal in self.goals],
            "runtime_baseline": (
                None if self.runtime_baseline is None else self.runtime_baseline.to_dict()
            ),
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON; also written to ``path`` where one is given.

        JSON has no NaN and no infinity: they are written as ``null``.
        """
        values = _finite(self.to_dict())
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        _write(path, text)
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Reads the file that `to_json` wrote.

        Raises:
            OptkitError: If the file is no report of this version of the format.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise OptkitError(
                    f"{str(path)!r} is a report in format {values['format']}; this version of "
                    f"optkit reads format {_FORMAT}."
                )
            return cls(
                rows=tuple(Row.from_dict(row) for row in values["rows"]),
                baseline=Measurement.from_dict(values["baseline"]),
                metric=values["metric"],
                higher_is_better=values["higher_is_better"],
                split=values["split"],
                environment=values["environment"],
                notes=tuple(values["notes"]),
                goals=tuple(Goal.from_dict(goal) for goal in values.get("goals", ())),
                runtime_baseline=(
                    Row.from_dict(reference)
                    if (reference := values.get("runtime_baseline")) is not None
                    else None
                ),
            )
        except OSError as error:
            raise OptkitError(f"The report {str(path)!r} cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OptkitError(f"{str(path)!r} is no report of optkit's: {error!r}") from error

    def to_frame(self) -> pandas.DataFrame:
        """A tidy ``pandas.DataFrame``: one row a stage, one plain figure a column.

        The index is that of the rows; the baseline is 0, and `runtime_baseline`, where there is
        one, is -1. A figure that was not measured is missing (NaN). Figures of classes and layers
        are no figures of a stage: they stand in `Measurement.per_class` and `Measurement.layers`.
        Of a model with several outputs each has columns of its own: ``output_<name>`` and
        ``output_<name>_change``.

        Example:
            >>> import optkit as ok
            >>> from optkit.measuring import Measurement
            >>> report = ok.Report(rows=(), baseline=Measurement(accuracy=0.9, size_bytes=1000))
            >>> report.to_frame()[["name", "accuracy", "size_bytes"]]
                       name  accuracy  size_bytes
            index
            0      baseline       0.9      1000.0
        """
        import pandas

        records = [_record(0, Row(0, "baseline", "", {}, "baseline", after=self.baseline))]
        if self.runtime_baseline is not None:
            records.append(_record(-1, self.runtime_baseline))
        records += [_record(row.index, row) for row in self.rows]
        frame = pandas.DataFrame.from_records(records).set_index("index")
        figures = [name for name in frame.columns if name not in ("name", "status", "family")]
        return frame.astype(dict.fromkeys(figures, float))

    def compare(self, other: Report) -> ReportComparison:
        """This report beside another one: other settings, and what they did to the figures.

        Args:
            other: The report to compare with.

        Returns:
            What differs; printed it is a table, in a notebook it shows as HTML.

        Raises:
            ArgumentTypeError: If ``other`` is no report.

        Example:
            >>> import optkit as ok
            >>> from optkit.measuring import Measurement
            >>> one = ok.Report((), Measurement(size_bytes=2000), environment={"seed": 0})
            >>> two = ok.Report((), Measurement(size_bytes=1000), environment={"seed": 1})
            >>> print(one.compare(two))
            setting  this  other
            ────────────────────
            seed     0     1
            <BLANKLINE>
            stage     figure  this  other  difference  verdict
            ──────────────────────────────────────────────────────────
            baseline  size    2 kB  1 kB   -50%        other is better
            final     size    2 kB  1 kB   -50%        other is better
        """
        from optkit.report.compare import compare

        return compare(self, other)

    def to_markdown(self) -> str:
        """The table as Markdown, with the notes below it."""
        from optkit.report.text import to_markdown

        return to_markdown(self)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained HTML page; also written to ``path`` where one is given."""
        from optkit.report.html import to_html

        page = to_html(self, page=True)
        _write(path, page)
        return page

    def plot(self, path: str | os.PathLike[str] | None = None, *, kind: str = "pareto") -> Any:
        """The report as a picture.

        In a notebook the picture shows by itself, unless it is saved. Elsewhere it belongs to no
        backend and is not shown: ``axes.figure`` is an ordinary matplotlib figure.

        Args:
            path: Where to save the picture; the suffix (``.png``, ``.svg``, ``.pdf``) says how.
            kind: ``"pareto"``: the metric against size and against latency, a point a stage (a row
                of panels for each output, where there are several).
                ``"bars"``: metric, size and latency of each stage. ``"classes"``: the accuracy in
                each class before and after, worst first. ``"layers"``: the bytes of each layer
                before and after, and its zeros. ``"curves"``: losses and metrics of each training,
                epoch by epoch. ``"studies"``: what the passes have looked into, a panel each.

        Returns:
            The matplotlib ``Axes``; an array of them for the kinds with several panels, which are
            ``"pareto"``, ``"bars"``, ``"curves"`` and ``"studies"``.

        Raises:
            PipelineError: For an unknown kind.

        Example:
            >>> import optkit as ok
            >>> from optkit.measuring import Measurement
            >>> report = ok.Report(rows=(), baseline=Measurement(accuracy=0.9, size_bytes=1000))
            >>> by_size, by_latency = report.plot()
            >>> by_size.get_ylabel()
            'accuracy on test (%)'
        """
        from optkit.report.plot import plot

        return shown(lambda make: plot(self, kind, make=make), path)


def _finite(value: Any) -> Any:
    """The same plain values with ``None`` for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(index: int, row: Row) -> dict[str, Any]:
    """The plain figures of a stage."""
    record: dict[str, Any] = {
        "index": index,
        "name": row.name,
        "status": row.status,
        "family": row.family,
    }
    measured = row.after or Measurement()
    figures = measured.to_dict()
    for nested in ("per_class", "class_samples", "layers", "outputs"):
        figures.pop(nested, None)
    throughput = figures.pop("throughput") or dict.fromkeys(_THROUGHPUT)
    for name in _FIGURES:
        figures[name] = getattr(row, name)
    for name, value in figures.items():
        if name.endswith("_ci"):
            low, high = value or (None, None)
            record |= {f"{name}_low": low, f"{name}_high": high}
        else:
            record[name] = value
    record |= {f"throughput_{name}": throughput[name] for name in _THROUGHPUT}
    for output, found in (measured.outputs or {}).items():
        change = (row.output_changes or {}).get(output)
        for name, value, interval in (
            (f"output_{output}", found.accuracy, found.accuracy_ci),
            (f"output_{output}_change", change and change.change, change and change.change_ci),
        ):
            low, high = interval or (None, None)
            record |= {name: value, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return record


def _write(path: str | os.PathLike[str] | None, text: str) -> None:
    if path is not None:
        write_atomically(Path(path), lambda temporary: temporary.write_text(text, "utf-8"))
