"""What each pass of a pipeline contributes, by running it without each of them in turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.base import RecipePass, TrainPass
from optkit.errors import OptkitError
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
        contributions: One a pass, in order; two where each was run alone, too.
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
    """The end of one run."""

    measured: Measured
    artifact: Artifact
    report: Report


def ablate(
    prepared: Prepared,
    model: Any,
    *,
    meter: Meter,
    progress: bool | Callable[[ProgressEvent], Any] | None,
    options: Options,
    workdir: Workdir,
    alone: bool,
) -> Ablation:
    """Runs all variants; see `Pipeline.ablate`."""
    variants = [(f"without {name}", _without(prepared.steps, n)) for n, name, _ in prepared.steps]
    if alone:
        variants += [variant for step in prepared.steps for variant in _alone(prepared.steps, step)]
    total = len(prepared.steps) + sum(len(steps) for _, steps in variants)
    done: dict[tuple[int, ...], _Outcome] = {}
    ended = False

    with Progress(progress, total) as shown:

        def outcome(steps: Sequence[Step]) -> _Outcome | None:
            """Runs a variant, unless it was, or the whole thing was stopped."""
            nonlocal ended
            numbers = tuple(number for number, _, _ in steps)
            if numbers not in done and not ended:
                runner = Runner(
                    dataclasses.replace(prepared, steps=tuple(steps)),
                    model,
                    meter=meter,
                    progress=shown,
                    options=dataclasses.replace(options, record=len(steps) == len(prepared.steps)),
                    workdir=workdir,
                    baseline=next(iter(done.values())).measured if () in done else None,
                )
                result = runner.run()
                ended = any(row.status == "cancelled" for row in result.report.rows)
                if not ended or not done:
                    done[numbers] = _Outcome(runner.latest, result.artifact, result.report)
            return done.get(numbers)

        nothing = outcome(())  # the model that came in, whose figures all runs share
        full = outcome(prepared.steps)
        if nothing is None or full is None:
            raise OptkitError("The run was ended before anything could be compared.")
        reports: dict[str, Report] = {}
        for name, steps in variants:
            if (found := outcome(steps)) is not None:
                reports[name] = found.report
        contributions = []
        for number, name, item in prepared.steps:
            rest = _without(prepared.steps, number)
            contributions.append(_contribution(name, "without", full, outcome(rest), meter))
            if alone:
                (_, steps), *control = _alone(prepared.steps, (number, name, item))
                against = outcome(control[0][1]) if control else nothing
                contributions.append(_contribution(name, "alone", outcome(steps), against, meter))
    return Ablation(full.report, tuple(contributions), reports)


def _without(steps: Sequence[Step], number: int) -> tuple[Step, ...]:
    return tuple(step for step in steps if step[0] != number)


def _alone(steps: Sequence[Step], step: Step) -> list[tuple[str, tuple[Step, ...]]]:
    """The runs that show a pass by itself: its own, and the one to hold it against."""
    number, name, item = step
    if not isinstance(item, RecipePass):
        return [(f"{name} alone", (step,))]
    training = next(s for s in steps if s[0] > number and isinstance(s[2], TrainPass))
    return [
        (f"{name} alone, with {training[1]}", (step, training)),
        (f"{training[1]} alone", (training,)),
    ]


def _contribution(
    name: str, how: str, with_it: _Outcome | None, without: _Outcome | None, meter: Meter
) -> Contribution:
    if with_it is None or without is None:
        return Contribution(name, how, note="the run was ended before this was known")
    skipped = [row.name for row in without.report.rows if row.status == "skipped"]
    note = f"without it, {', '.join(skipped)} could not run" if skipped else ""
    change, interval = None, None
    one, other = without.measured.scores, with_it.measured.scores
    if one is not None and other is not None:
        change, interval = compare_scores(one, other, meter.metric)
    speed, speed_ci = _quotient(with_it.measured, without.measured)
    sizes = [
        (getattr(with_it.measured.figures, field), getattr(without.measured.figures, field))
        for field in ("size_bytes", "compressed_bytes")
    ]
    ratios = [a / b if a and b else None for a, b in sizes]
    return Contribution(name, how, change, interval, speed, speed_ci, ratios[0], ratios[1], note)


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
