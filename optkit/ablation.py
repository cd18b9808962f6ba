"""What each pass of a pipeline contributes, by running it without each of them in turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.base import InspectPass, RecipePass
from optkit.errors import PassError
from optkit.measuring import Interval, Measured, Meter, compare_scores
from optkit.measuring.statistics import verdict
from optkit.prepare import Options, Prepared, Step
from optkit.progress import Progress, ProgressEvent
from optkit.report import Report
from optkit.run import Runner
from optkit.workdir import Workdir

if TYPE_CHECKING:
    import pandas

__all__ = ["Ablation", "Contribution", "ablate"]


@dataclass(frozen=True)
class Contribution:
    """What changed when one pass was there, all else being equal.

    Attributes:
        name: Name of the pass.
        how: ``"without"``: the whole pipeline against the same without the pass; ``"alone"``: the
            pass by itself against nothing.
        accuracy: Change of the metric that the pass brought, on the same samples.
        accuracy_ci: Its 95 % interval. It speaks of the samples, not of other seeds.
        speedup: How many times faster the result is with the pass.
        speedup_ci: Its interval, from the speedups of both against the model that came in.
        size_ratio: Size of the result with the pass, over that without.
        compressed_ratio: The same of the gzipped files.
        note: Why there is no figure, or what else to know.
    """

    name: str
    how: str
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    speedup: float | None = None
    speedup_ci: Interval | None = None
    size_ratio: float | None = None
    compressed_ratio: float | None = None
    note: str = ""

    @property
    def speed_verdict(self) -> str | None:
        """``"faster"``, ``"slower"`` or ``"no measurable change"``; ``None`` if not measured."""
        return verdict(self.speedup_ci)


@dataclass(frozen=True)
class Ablation:
    """What every pass contributed.

    Attributes:
        report: The report of the whole pipeline.
        contributions: One a pass, in order; two where each was run alone, too. Passes that only
            look have none.
        reports: The report of every further run, by what it was: ``"without Prune"``,
            ``"Prune alone"``.
    """

    report: Report
    contributions: tuple[Contribution, ...]
    reports: dict[str, Report]

    def __getitem__(self, name: str) -> Contribution:
        """The contribution of a pass, from the run without it."""
        for item in self.contributions:
            if item.name == name and item.how == "without":
                return item
        known = ", ".join(dict.fromkeys(item.name for item in self.contributions))
        raise KeyError(f"{name!r}; there are: {known}")

    def _cells(self) -> list[tuple[str, ...]]:
        share = "accuracy" in self.report.metric
        factor, digits = (100, "+.2f") if share else (1, "+.3g")
        unit = ", points" if share else ""
        table: list[tuple[str, ...]] = [
            ("pass", "how", f"{self.report.metric}{unit}", "speedup", "size", "gzip")
        ]
        for item in self.contributions:
            accuracy = speed = "–"
            if item.accuracy is not None:
                accuracy = f"{factor * item.accuracy:{digits}}"
                if item.accuracy_ci is not None:
                    low, high = (factor * end for end in item.accuracy_ci)
                    accuracy += f" [{low:{digits}}, {high:{digits}}]"
            if item.speedup is not None:
                speed = f"{item.speedup:.2f}"
                if item.speedup_ci is not None:
                    speed += f" [{item.speedup_ci[0]:.2f}, {item.speedup_ci[1]:.2f}]"
                    if item.speed_verdict == "no measurable change":
                        speed += " ="
            size, compressed = (
                "–" if ratio is None else f"× {ratio:.2f}"
                for ratio in (item.size_ratio, item.compressed_ratio)
            )
            table.append((item.name, item.how, accuracy, speed, size, compressed))
        return table

    def __str__(self) -> str:
        table = self._cells()
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        lines.insert(1, "─" * max(len(line) for line in lines))
        lines.append("")
        lines.append(
            "with the pass against without it, all else equal; 95 % intervals over samples, "
            "'=' where no change is measurable"
        )
        lines += [f"- {item.name}: {item.note}" for item in self.contributions if item.note]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html())

    def to_frame(self) -> pandas.DataFrame:
        """A tidy ``pandas.DataFrame``, a row a contribution."""
        import pandas

        records = []
        for item in self.contributions:
            values = dataclasses.asdict(item)
            for name in ("accuracy_ci", "speedup_ci"):
                low, high = values.pop(name) or (None, None)
                values |= {f"{name}_low": low, f"{name}_high": high}
            records.append(values)
        return pandas.DataFrame.from_records(records)


@dataclass(frozen=True)
class _Outcome:
    """The end of one run; without figures where it failed or was ended."""

    report: Report | None
    measured: Measured | None = None
    why: str = ""


class _Runs:
    """The runs of an ablation, each made once."""

    def __init__(
        self,
        prepared: Prepared,
        meter: Meter,
        options: Options,
        workdir: Workdir,
        progress: Progress,
    ):
        self.prepared, self.meter = prepared, meter
        self.options, self.workdir, self.progress = options, workdir, progress
        self.ended = False
        self._done: dict[tuple[int, ...], _Outcome] = {}

    def outcome(self, name: str, steps: Sequence[Step]) -> _Outcome:
        """Runs the steps, unless they were run, or the whole thing was ended."""
        numbers = tuple(number for number, _, _ in steps)
        if numbers not in self._done:
            if self.ended:
                return _Outcome(None, why="the run was ended before this was known")
            self._done[numbers] = self._run(name, steps)
        return self._done[numbers]

    def _run(self, name: str, steps: Sequence[Step]) -> _Outcome:
        whole = len(steps) == len(self.prepared.steps)
        self.progress.begin(name, len(self._done) * len(self.prepared.steps))
        first = next(iter(self._done.values()), None)
        runner = Runner(
            dataclasses.replace(self.prepared, steps=tuple(steps)),
            meter=self.meter,
            progress=self.progress,
            options=dataclasses.replace(self.options, record=whole),
            workdir=self.workdir,
            baseline=first.measured if first is not None else None,
        )
        try:
            report = runner.run().report
        except PassError as error:
            if whole:
                raise
            return _Outcome(error.report, why=f"the run {name} failed: {error}")
        if runner.cancelled:
            self.ended = True
            return _Outcome(report, why="the run was ended before this was known")
        return _Outcome(report, runner.latest)


def ablate(
    prepared: Prepared,
    *,
    meter: Meter,
    progress: bool | Callable[[ProgressEvent], Any] | None,
    options: Options,
    workdir: Workdir,
    alone: bool,
) -> Ablation:
    """Runs all variants; see `Pipeline.ablate`."""
    # Passes that only look contribute nothing, and need to look but once.
    acting = tuple(step for step in prepared.steps if not isinstance(step[2], InspectPass))
    variants = [(f"without {name}", _without(acting, n)) for n, name, _ in acting]
    if alone:
        variants += [variant for step in acting for variant in _alone(acting, step)]
    every = {tuple(n for n, _, _ in steps) for _, steps in variants} | {()}
    every.add(tuple(n for n, _, _ in prepared.steps))
    with Progress(progress, len(every) * len(prepared.steps)) as shown:
        runs = _Runs(prepared, meter, options, workdir, shown)
        # The model that came in, whose figures all runs share, and the whole pipeline.
        nothing = runs.outcome("nothing", ())
        full = runs.outcome("everything", prepared.steps)
        reports = {
            name: found.report
            for name, steps in variants
            if (found := runs.outcome(name, steps)).report is not None
        }
        contributions = []
        for number, name, item in acting:
            rest = runs.outcome(f"without {name}", _without(acting, number))
            contributions.append(_contribution(name, "without", full, rest, meter))
            if alone:
                own, *control = _alone(acting, (number, name, item))
                against = runs.outcome(*control[0]) if control else nothing
                contributions.append(
                    _contribution(name, "alone", runs.outcome(*own), against, meter)
                )
    if full.report is None:
        raise AssertionError("a whole run has a report")
    return Ablation(full.report, tuple(contributions), reports)


def _without(steps: Sequence[Step], number: int) -> tuple[Step, ...]:
    return tuple(step for step in steps if step[0] != number)


def _alone(steps: Sequence[Step], step: Step) -> list[tuple[str, tuple[Step, ...]]]:
    """The runs that show a pass by itself: its own, and the one to hold it against."""
    number, name, item = step
    if not isinstance(item, RecipePass):
        return [(f"{name} alone", (step,))]
    training = next(s for s in steps if s[0] > number and s[2].trains)
    return [
        (f"{name} alone, with {training[1]}", (step, training)),
        (f"{training[1]} alone", (training,)),
    ]


def _contribution(
    name: str, how: str, with_it: _Outcome, without: _Outcome, meter: Meter
) -> Contribution:
    for found in (without, with_it):
        if found.measured is None:
            return Contribution(name, how, note=found.why)
    one, other = without.measured, with_it.measured
    if one is None or other is None or without.report is None:
        raise AssertionError("looked at above")
    skipped = [
        f"{row.name} could not run: {row.notes[0]}"
        for row in without.report.rows
        if row.status == "skipped"
    ]
    change, interval = None, None
    if one.scores is not None and other.scores is not None:
        change, interval = compare_scores(one.scores, other.scores, meter.metric)
    speed, speed_ci = _quotient(other, one)
    sizes = [
        (getattr(other.figures, field), getattr(one.figures, field))
        for field in ("size_bytes", "compressed_bytes")
    ]
    ratios = [a / b if a and b else None for a, b in sizes]
    return Contribution(
        name, how, change, interval, speed, speed_ci, ratios[0], ratios[1], "; ".join(skipped)
    )


def _quotient(one: Measured, other: Measured) -> tuple[float | None, Interval | None]:
    """Speedup of one over another, from those of both over the baseline, on a logarithmic scale."""
    (a, a_ci), (b, b_ci) = (_speedup(measured) for measured in (one, other))
    if a is None or b is None or a_ci is None or b_ci is None:
        return None, None
    if one is other:
        return 1.0, (1.0, 1.0)
    # Errors of independent measurements add up in squares.
    below = math.hypot(math.log(a / a_ci[0]), math.log(b_ci[1] / b))
    above = math.hypot(math.log(a_ci[1] / a), math.log(b / b_ci[0]))
    ratio = a / b
    return ratio, (ratio * math.exp(-below), ratio * math.exp(above))


def _speedup(measured: Measured) -> tuple[float | None, Interval | None]:
    comparison = measured.comparison
    if comparison.speedup is None and measured.figures.latency_ms is not None:
        return 1.0, (1.0, 1.0)  # the model that came in, which the others were timed against
    return comparison.speedup, comparison.speedup_ci
