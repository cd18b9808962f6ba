"""Reports of models with several outputs: each output by itself, and all of them in a table."""

from __future__ import annotations

import dataclasses

from optkit.report.report import Report, Row

__all__ = ["each_output", "outputs_of", "report_of"]


def outputs_of(report: Report) -> tuple[str, ...]:
    """The names of the outputs that were measured; ``()`` for a model with one."""
    return tuple(report.baseline.outputs or ())


def report_of(report: Report, output: str) -> Report:
    """The report as if one output were the only one; as it is for a name that it does not know.

    Example:
        >>> import optkit as ok
        >>> from optkit.measuring import Measurement, OutputFigures
        >>> outputs = {"age": OutputFigures("mean_absolute_error", False, 4.5)}
        >>> report = ok.Report((), Measurement(accuracy=0.9, outputs=outputs))
        >>> report_of(report, "age").metric, report_of(report, "age").baseline.accuracy
        ('mean_absolute_error', 4.5)
    """
    known = (report.baseline.outputs or {}).get(output)
    if known is None:
        return report
    reference = report.runtime_baseline
    return dataclasses.replace(
        report,
        metric=known.metric,
        higher_is_better=known.higher_is_better,
        baseline=report.baseline.of_output(output),
        rows=tuple(_row(row, output) for row in report.rows),
        runtime_baseline=None if reference is None else _row(reference, output),
    )


def each_output(report: Report) -> list[tuple[str, Report]]:
    """Each output with the report of it alone; for one output the report under ``""``."""
    return [(name, report_of(report, name)) for name in outputs_of(report)] or [("", report)]


def _row(row: Row, output: str) -> Row:
    change = (row.output_changes or {}).get(output)
    return dataclasses.replace(
        row,
        before=None if row.before is None else row.before.of_output(output),
        after=None if row.after is None else row.after.of_output(output),
        accuracy_change=None if change is None else change.change,
        accuracy_change_ci=None if change is None else change.change_ci,
        output_changes=None,
    )
