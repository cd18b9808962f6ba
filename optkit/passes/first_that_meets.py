"""`FirstThatMeets`: tries alternatives in order of harm and keeps the first that meets the goals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optkit.artifact import Artifact, KerasArtifact
from optkit.base import InspectPass, Pass, RecipePass
from optkit.context import Context, Setting, State
from optkit.errors import ArgumentTypeError, OptkitError, PipelineError, first_line
from optkit.goals import Goal, Goals
from optkit.runtime import isolated
from optkit.study import Chart, Study
from optkit.trial import Verdict

__all__ = ["FirstThatMeets"]

#: Goals in the order in which they count where none of the alternatives meets all of them.
_ORDER = (
    "min_accuracy",
    "max_accuracy_drop",
    "min_class_accuracy",
    "max_size_mb",
    "max_memory_mb",
    "max_latency_ms",
    "min_speedup",
    "min_throughput",
)
_OF_ACCURACY = _ORDER[:3]
_STARTED = (
    "each from the model before this pass; accuracy is that on validation, its change, with the ends "
    "of the 95 % interval, against the model that came into the pipeline"
)
_CHANGE = ("change", "from", "to")
_NO_GOALS = (
    "FirstThatMeets needs goals to know when to stop, and there are none. Give "
    "`FirstThatMeets([…], goals=Goals(max_size_mb=…))`, or goals for the whole pipeline."
)


class FirstThatMeets(Pass):
    """Tries alternatives in order of harm and keeps the first whose result meets the goals.

    Each alternative starts from the same model, with a seed of its own, and is judged by what it
    gives: its size, its accuracy on ``validation`` (never on ``test``) against the model that came
    into the pipeline, and latency, speedup, throughput and memory where a goal asks for them. The
    first that meets every goal is kept and those behind it are not tried. Every trial stands in the
    report.

    Where none meets the goals, the one that misses them least is kept, and the row says so: goals of
    accuracy count before size, size before memory, and memory before speed; of equals the earlier
    one is kept. An alternative that fails, or cannot work on the model, is left out with its reason.

    Args:
        passes: At least two passes of one kind, the least harmful first: of the same family, from
            the same kind of artifact to the same kind. Not recipe passes, which give nothing to
            judge before a training.
        goals: What the result must reach, at least one limit. ``None`` for the goals of the
            pipeline.

    Raises:
        PipelineError: For fewer than two passes, passes of several kinds, goals without a limit.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> alternatives = [ok.Prune(0.5, epochs=1), ok.Prune(0.9, epochs=1)]
        >>> pipeline = ok.Pipeline([ok.FirstThatMeets(alternatives, goals=ok.Goals(max_size_mb=1))])
        >>> result = pipeline.run(small_model(), digits(200), progress=False)
        >>> [row[1] for row in result.report.rows[0].studies[0].rows]
        ['met', 'not tried']
    """

    def __init__(self, passes: Sequence[Pass], goals: Goals | None = None):
        self.passes = _alternatives(passes)
        if goals is not None and not isinstance(goals, Goals):
            raise ArgumentTypeError(
                "`goals` must be an `optkit.Goals`, such as `Goals(max_size_mb=1)`. Received: "
                f"{goals!r} (of type {type(goals).__name__})."
            )
        self.goals = goals
        first = self.passes[0]
        self.family, self.accepts, self.produces = first.family, first.accepts, first.produces
        self.expects_recovery = any(item.expects_recovery for item in self.passes)
        if goals is not None:
            self._judged_by(goals)

    @property
    def needs(self) -> tuple[str, ...]:
        """What any of the alternatives needs, and ``validation`` to judge accuracy on."""
        found = dict.fromkeys(split for item in self.passes for split in item.needs)
        if self.goals is None or any(
            getattr(self.goals, name) is not None for name in _OF_ACCURACY
        ):
            found["validation"] = None
        return tuple(found)

    @property
    def trains(self) -> bool:
        """Whether the alternatives do."""
        return self.passes[0].trains

    @property
    def replaces_model(self) -> bool:
        """Whether any of the alternatives does."""
        return any(item.replaces_model for item in self.passes)

    def check(self, setting: Setting) -> Any:
        """Refuses where there are no goals, or no alternative can work."""
        goals = setting.goals if self.goals is None else self.goals
        if goals is not None:
            self._judged_by(goals)
        seen: list[Any] = []
        reasons: list[tuple[Pass, str]] = []
        for item in self.passes:
            reason, model = _checked(item, setting)
            if reason:
                reasons.append((item, reason))
            else:
                seen.append(model)
        if not seen:
            raise PipelineError(f"None of the alternatives can work here. {_told(reasons)}")
        # Which one is kept is not known yet; later passes check themselves against the first.
        return seen[0]

    def apply(self, state: State, context: Context) -> State:
        """Tries the alternatives in turn."""
        given = context.goals if self.goals is None else self.goals
        goals = self._judged_by(given)
        trials: list[_Trial] = []
        for number, item in enumerate(self.passes, 1):
            trials.append(_try(number, item, state, context, goals))
            kept = _least_missed(trials)
            # Of the others nothing but their lines in the table is needed: models may be large.
            trials = [trial if trial is kept else replace(trial, made=None) for trial in trials]
            if trials[-1].met:
                break
        kept = _least_missed(trials)
        context.show(_study(self.passes, trials, kept, context))
        if kept is None or kept.made is None:
            told = _told((trial.item, trial.reason) for trial in trials)
            raise OptkitError(f"None of the alternatives worked. {told}")
        place = f"alternative {kept.number} of {len(self.passes)}"
        if kept.met:
            context.note(f"kept {kept.item!r}, {place}, the first that meets {goals!r}")
        else:
            context.note(
                f"no alternative meets {goals!r}: kept {kept.item!r}, {place}, which misses least "
                f"({kept.reason}), accuracy counted before size, and size before speed"
            )
        if goals != given:
            context.note(
                "goals of accuracy were not looked at here: the alternatives count on training "
                "behind this pass to win it back"
            )
        made, branch = kept.made
        with context.aside():
            kept.item.review(state.artifact, made.artifact, branch)
        context.adopt(branch)
        return made

    def _judged_by(self, goals: Goals) -> Goals:
        """The goals that an alternative can be judged by as soon as it is done.

        Raises:
            PipelineError: If there are none.
        """
        if not _limits(goals):
            raise PipelineError(_NO_GOALS)
        if not self.expects_recovery:
            return goals
        left = replace(goals, min_accuracy=None, max_accuracy_drop=None, min_class_accuracy=None)
        if not _limits(left):
            raise PipelineError(
                f"The goals of FirstThatMeets are of accuracy alone ({goals!r}), and the passes count "
                "on training to come, before which it says nothing. Give a goal of size or speed."
            )
        return left


@dataclass(frozen=True)
class _Trial:
    """An alternative that was looked at.

    Attributes:
        number: Its place, from 1.
        item: The pass.
        outcome: ``"met"``, ``"missed"``, ``"failed"`` or ``"left out"``.
        reason: Why; empty where everything was met.
        verdict: What was measured; ``None`` where nothing was.
        seconds: What its work took.
        made: What it gave, and the context that it worked with; ``None`` where it gave nothing.
    """

    number: int
    item: Pass
    outcome: str
    reason: str = ""
    verdict: Verdict | None = None
    seconds: float | None = None
    made: tuple[State, Context] | None = None

    @property
    def met(self) -> bool:
        return self.outcome == "met"


def _alternatives(passes: Any) -> tuple[Pass, ...]:
    """The passes, known to be alternatives to each other."""
    if not isinstance(passes, Sequence) or isinstance(passes, str):
        raise ArgumentTypeError(
            f"`passes` must be a list of passes, such as [Prune(0.9), Prune(0.5)]. Received: "
            f"{passes!r}."
        )
    for i, item in enumerate(passes, 1):
        if not isinstance(item, Pass):
            raise ArgumentTypeError(
                f"Alternative {i} must be a pass. Received: {item!r} (of type "
                f"{type(item).__name__})."
            )
        if isinstance(item, FirstThatMeets):
            raise PipelineError(
                f"Alternative {i} holds alternatives itself, each of which may have other goals. "
                "Put all of them into one list."
            )
        if isinstance(item, InspectPass):
            raise PipelineError(
                f"Alternative {i}, {item!r}, only looks and gives nothing that could be judged. Put "
                "it into the pipeline by itself."
            )
        if isinstance(item, RecipePass):
            raise PipelineError(
                f"Alternative {i}, {item!r}, changes how later passes train and gives nothing that "
                "could be judged. Run a pipeline for each such setting and compare their reports."
            )
    if len(passes) < 2:
        raise PipelineError(
            f"FirstThatMeets needs at least two alternatives. Received: {list(passes)!r}."
        )
    first = passes[0]
    for i, item in enumerate(passes, 1):
        if _kind(item) != _kind(first):
            raise PipelineError(
                f"Alternatives must be of one kind: {first!r} is {_in_words(first)}, and "
                f"alternative {i}, {item!r}, is {_in_words(item)}."
            )
    return tuple(passes)


def _kind(item: Pass) -> tuple[Any, ...]:
    return item.family, item.accepts, item.produces


def _in_words(item: Pass) -> str:
    ends = (item.accepts.__name__, item.produces.__name__)
    return f"of the family {item.family!r} from {ends[0]} to {ends[1]}"


def _limits(goals: Goals) -> dict[str, float]:
    """The goals that are set, by name, in the order in which they count."""
    values = {name: getattr(goals, name) for name in _ORDER}
    return {name: value for name, value in values.items() if value is not None}


def _checked(item: Pass, setting: Setting) -> tuple[str, Any]:
    """Why a pass cannot work in a setting, empty where it can; and what later passes will see."""
    if "calibration" not in item.needs:  # which is shown to those alone that ask for it
        data = replace(setting.data, calibration=None)
        setting = replace(setting, data=data)
    try:
        return "", item.check(setting)
    except Exception as error:
        return _reason(error), None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, OptkitError) else first_line(error)


def _told(reasons: Iterable[tuple[Pass, str]]) -> str:
    """What is wrong with each, as sentences."""
    return " ".join(f"{item!r}: {reason.rstrip('.')}." for item, reason in reasons)


def _try(number: int, item: Pass, state: State, context: Context, goals: Goals) -> _Trial:
    """Runs an alternative on a state and judges what it gives."""
    branch = context.branch(f"alternative {number}", needs=item.needs, goals=goals)
    model = state.artifact.model if isinstance(state.artifact, KerasArtifact) else None
    setting = Setting(
        *(model, branch.data, context.task, context.loss, state.recipe, goals, context.model)
    )
    reason, _ = _checked(item, setting)
    if reason:
        return _Trial(number, item, "left out", reason)
    context.log.info("alternative %d, %r, is tried", number, item)
    began = time.perf_counter()
    seconds = None
    try:
        try:
            with isolated(branch.seed):
                made = item.apply(state, branch)
        finally:
            seconds = time.perf_counter() - began - branch.seconds_aside
        _require_kind(item, made)
        verdict = context.judge(made.artifact, goals)
    except Exception as error:
        context.log.warning("alternative %d, %r, failed: %s", number, item, error)
        return _Trial(number, item, "failed", _reason(error), seconds=seconds)
    outcome = "met" if verdict.met else "missed"
    reason = "; ".join(map(_missed, verdict.missed))
    return _Trial(number, item, outcome, reason, verdict, seconds, (made, branch))


def _require_kind(item: Pass, made: State) -> None:
    artifact: Artifact = made.artifact
    if not isinstance(artifact, item.produces):
        raise OptkitError(
            f"{type(item).__name__} declares {item.produces.__name__} and gave {artifact!r}."
        )


def _missed(goal: Goal) -> str:
    """In words, by how much a goal was missed."""
    if goal.margin is None:
        return f"{goal.name}={goal.limit:g} not measured"
    unit = f" {goal.unit}" if goal.unit else ""
    of = f" by {goal.output}" if goal.output else ""
    return f"{goal.name}={goal.limit:g} missed{of} by {-goal.margin:.3g}{unit}"


def _shortfall(verdict: Verdict) -> tuple[float, ...]:
    """By how much each goal was missed, as a share of its limit, in the order that counts."""
    by_name = {goal.name: goal for goal in verdict.goals}
    found = []
    for name in _ORDER:
        goal = by_name.get(name)
        if goal is None or goal.met:
            found.append(0.0)
        else:
            margin = -math.inf if goal.margin is None else goal.margin
            found.append(-margin / (abs(goal.limit) or 1.0))
    return tuple(found)


def _least_missed(trials: Sequence[_Trial]) -> _Trial | None:
    """The trial to keep; ``None`` where none gave anything."""
    ranked = [(_shortfall(trial.verdict), trial.number, trial) for trial in trials if trial.verdict]
    return min(ranked, default=(None, None, None))[2]


def _study(
    passes: Sequence[Pass], trials: Sequence[_Trial], kept: _Trial | None, context: Context
) -> Study:
    """Every trial, as a table."""
    figures = _further(trials)
    first, last = (
        ["alternative", "result", "kept", "size kB"],
        [*_CHANGE, *figures, "seconds", "why"],
    )
    metric = context.metric.name
    if metric in (*first, *last):  # a function of the user's may be called anything
        metric = f"{metric} on validation"
    rows = []
    for number, item in enumerate(passes, 1):
        trial = trials[number - 1] if number <= len(trials) else _Trial(number, item, "not tried")
        verdict = trial.verdict
        row: list[Any] = [repr(item), trial.outcome, trial is kept]
        if verdict is None:
            row += [None] * (2 + len(_CHANGE) + len(figures))
        else:
            low, high = verdict.accuracy_change_ci or (None, None)
            size = verdict.figures.size_bytes
            row += [None if size is None else size / 1000, verdict.figures.accuracy]
            row += [verdict.accuracy_change, low, high]
            row += [_figure(verdict, name) for name in figures.values()]
        notes = () if verdict is None else verdict.notes
        row += [trial.seconds, "; ".join(filter(None, (trial.reason, *notes))) or None]
        rows.append(row)
    return Study(
        "Alternatives, the least harmful first",
        (*first, metric, *last),
        tuple(map(tuple, rows)),
        notes=(_STARTED,),
        chart=Chart("scatter", x="size kB", y=(metric,), mark="kept"),
    )


#: Figures that are shown where a goal asked for them: heading, and name of the goal.
_FURTHER = {
    "latency ms": "max_latency_ms",
    "times faster": "min_speedup",
    "requests/s": "min_throughput",
    "memory MB": "max_memory_mb",
}


def _further(trials: Sequence[_Trial]) -> dict[str, str]:
    asked = {goal.name for trial in trials if trial.verdict for goal in trial.verdict.goals}
    return {heading: name for heading, name in _FURTHER.items() if name in asked}


def _figure(verdict: Verdict, name: str) -> float | None:
    return next((goal.figure for goal in verdict.goals if goal.name == name), None)
