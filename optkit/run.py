"""One run of a pipeline: `Runner` does the passes, measures them, and watches the goals."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit import tensorboard
from optkit.artifact import Artifact, KerasArtifact
from optkit.base import Pass, RecipePass
from optkit.bundle import Bundle
from optkit.context import Context, Setting, State
from optkit.convert import convert
from optkit.data import Split
from optkit.environment import describe_run
from optkit.errors import ModelError, OptkitError, PassError, Stopped
from optkit.fingerprint import Unfingerprintable, artifact_fingerprint
from optkit.goals import Goal, Goals
from optkit.keep import BASELINE, Keeper
from optkit.learned import LearnedRanges
from optkit.measuring import Comparison, Interval, Measured, Meter
from optkit.metric import Metric
from optkit.prepare import Options, Prepared, shown_data
from optkit.progress import Kind, Progress
from optkit.recipe import Recipe
from optkit.report import Report, Row
from optkit.result import Result
from optkit.runtime import derive_seed, isolated, tf_keras
from optkit.serialize import readable
from optkit.study import Study
from optkit.trial import Judge, Verdict
from optkit.workdir import StoredStage, Workdir

__all__ = ["Runner"]

_LOG = logging.getLogger("optkit")


@dataclass(frozen=True)
class _Point:
    """A place to go back to: what there was, and how many rows."""

    state: State
    fingerprint: str
    latest: Measured
    stages: dict[str, Artifact]
    rows: int
    recipes: int
    amending: tuple[Pass, ...]


class Runner:
    """One run under way: the state that passes hand on, and the rows so far.

    Args:
        prepared: What was prepared.
        meter: Measures the stages.
        progress: Is told what happens.
        options: What else was asked for.
        workdir: Where finished stages are kept, or ``None``.
        baseline: Figures of the model that came in, where the meter has them already.

    Attributes:
        cancelled: Whether the run was ended before its end.
        latest: Figures of what is to be deployed so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        meter: Meter,
        progress: Progress,
        options: Options,
        workdir: Workdir | None = None,
        baseline: Measured | None = None,
    ):
        self.prepared, self.admitted = prepared, prepared.admitted
        self.model = self.admitted.model
        self.meter, self.progress, self.options = meter, progress, options
        self.crew = options.crew
        self.kept = Keeper(prepared, options, workdir)
        self.state = State(self.admitted.copy())
        self._came_in = self.state.artifact
        self.trial = Judge(
            prepared.data,
            prepared.task,
            prepared.metric,
            options.measure,
            lambda: self._came_in,
        )
        self.fingerprint = ""  # of the artifact of the state, where there is a workdir
        self.rows: list[Row] = []
        self.stages: dict[str, Artifact] = {}
        self.notes: list[str] = []
        self.runtime_baseline: Row | None = None
        self._known_baseline = baseline
        self._recipe_passes: list[RecipePass] = []
        self._amending: tuple[Pass, ...] = ()  # others that have amended the recipe besides
        self._undone: list[str] = []  # names of passes that were rolled back
        self._ended = ""  # why no further pass runs
        self.cancelled = False
        self._pending: _Point | None = None  # before passes that wait for training to recover

    # ------------------------------------------------------------------------------- the course

    def run(self) -> Result:
        """Measures the baseline, then runs and measures pass by pass."""
        with self.trial:
            return self._run()

    def _run(self) -> Result:
        # Built from other random numbers in each process, say; the chief's counts.
        self.state = self._in_step(self.state)
        self._came_in = self.state.artifact
        self._measure_baseline()
        if self._known_baseline is None:
            self._tell_figures(0, BASELINE, self.latest)
        try:
            wanted = self.options.record and self.options.measure.baseline_runtime is not None
            if wanted and self.crew.chief:
                self._measure_runtime_baseline()
        except KeyboardInterrupt as interrupt:
            self._end(interrupt, f"while {BASELINE} was measured as tflite")
        points = [self._point()]
        for number, name, item in self.prepared.steps:
            before = self._point()
            try:
                self._step(number, name, item, before)
            except KeyboardInterrupt as interrupt:
                self._cancel(number, name, item, before, interrupt)
            points.append(self._point())
        if self._pending is not None:
            self._tell_undone(self._judge(self._pending))
        if self.options.guard == "end":
            self._guard_at_the_end(points)
        finished, stages = self._handed_out(self.state.artifact)
        result = Result(finished, self._shared_report(), stages, self.admitted.given)
        self.kept.record(result.report)
        return result

    def _shared_report(self) -> Report:
        """The chief's report, in all processes."""
        if self.crew.alone:
            return self.report()
        mine: list[Report] = []

        def text() -> Bundle:
            mine.append(self.report())
            return Bundle({"report": mine[0].to_json()})

        sent = self.crew.share(text)
        if mine or sent is None:
            return mine[0]
        with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
            path = Path(folder) / "report.json"
            path.write_text(sent.values["report"], encoding="utf-8")
            return Report.from_json(path)

    def _handed_out(self, artifact: Artifact) -> tuple[Artifact, dict[str, Artifact]]:
        """What was made, as the user shall have it: an artifact, and the stages."""
        finish = self.admitted.finished
        stages = {name: (stage, finish(stage)) for name, stage in self.stages.items()}
        for stage, finished in stages.values():
            if stage is artifact:  # one object, as long as it is one
                return finished, {name: pair[1] for name, pair in stages.items()}
        return finish(artifact), {name: pair[1] for name, pair in stages.items()}

    def _step(self, number: int, name: str, item: Pass, before: _Point) -> None:
        row = self._new_row(number, name, item)
        reason = self._ended or self._why_not(item)
        if reason:
            self.rows.append(dataclasses.replace(row, status="skipped", notes=(reason,)))
            self._send("skipped", number, name)
            return
        self._ask_whether_to_stop()
        self._send("started", number, name)
        context = self._context(number, name, item)
        if item.makes_artifact:
            row = dataclasses.replace(
                row, before=self.latest.figures, validation_before=self.latest.validation
            )
        try:
            if isinstance(item, RecipePass):
                row = self._amend(number, name, item, row, context)
            elif not item.makes_artifact:
                row = self._look(number, name, item, row, context)
            else:
                row = self._work(number, name, item, row, context)
                row = self._measured(name, row, self.state.artifact)
        except Exception as error:
            self.rows.append(_told(row, context, f"failed: {error}"))
            raise self._failure(number, name, error, before) from error
        self.rows.append(_told(row, context, *row.notes))
        if not item.makes_artifact:
            return
        # Judged before anybody is told, who might end the run there.
        measured, undone = self.latest, self._guard(number, item, before)
        self._tell_figures(number, name, measured)
        self._tell_undone(undone)

    def _new_row(self, number: int, name: str, item: Pass) -> Row:
        return Row(number, name, item.family, readable(item.get_config()), "failed")

    def _amend(self, number: int, name: str, item: RecipePass, row: Row, context: Context) -> Row:
        began = time.perf_counter()
        with isolated(context.seed):
            self.state = self._checked(item, item.apply(self.state, context))
        self._recipe_passes.append(item)
        seconds = time.perf_counter() - began
        self._send("finished", number, name)
        return dataclasses.replace(row, status="recipe", seconds=seconds)

    def _look(self, number: int, name: str, item: Pass, row: Row, context: Context) -> Row:
        """Lets a pass look, which costs no measuring: there is nothing new to measure."""
        began = time.perf_counter()
        with isolated(context.seed):
            item.apply(self.state, context)
        seconds = time.perf_counter() - began - context.seconds_aside
        self._send("finished", number, name)
        return dataclasses.replace(row, status="ok", seconds=seconds)

    def _work(self, number: int, name: str, item: Pass, row: Row, context: Context) -> Row:
        """Does the work of a pass, unless an earlier run in the same folder has done it."""
        recipe_passes = (*self._recipe_passes, *self._amending)
        key = self.kept.key(item, context, self.fingerprint, self.state, recipe_passes)
        stored = self._found(name, key)
        if stored is not None:
            context.notes[:] = stored.facts["notes"]
            context.curves[:] = stored.facts["curves"]
            context.trainings[:] = stored.facts.get("trainings", ())
            context.studies[:] = map(Study.from_dict, stored.facts["studies"])
            self.state = _restored(stored, self.state.recipe)
            self.fingerprint = stored.fingerprint
            self.stages[name] = stored.artifact
            self._send("reused", number, name)
            return dataclasses.replace(row, seconds=stored.facts["seconds"])
        context.places = self.kept.places(key)
        began = time.perf_counter()
        with isolated(context.seed):
            state = self._checked(item, item.apply(self.state, context))
        seconds = time.perf_counter() - began - context.seconds_aside
        state = self._in_step(state)
        came_in, recipe = self.state.artifact, self.state.recipe
        self.state = state
        self.stages[name] = state.artifact  # finished, whatever happens from here on
        item.review(came_in, state.artifact, context)
        facts: dict[str, Any] = {"notes": context.notes, "curves": context.curves}
        facts["trainings"] = context.trainings
        facts["studies"] = [study.to_dict() for study in context.studies]
        facts |= {"seconds": seconds, "goals": None, "timing": None}
        if context.goals_seen:
            facts["goals"] = self.options.goals.to_dict()
        if context.timing_seen:
            facts["timing"] = self.kept.timing_key
        # A pass that amends the recipe besides is not one that could be skipped the next time.
        known = key if state.recipe is recipe else None
        self.fingerprint = self._by_chief(lambda: self.kept.keep(name, state, facts, known))
        if state.recipe is not recipe:
            self._amending += (item,)
        self._send("finished", number, name)
        return dataclasses.replace(row, seconds=seconds)

    def _found(self, name: str, key: str | None) -> StoredStage | None:
        """What an earlier run has done, where the chief has it."""

        def look() -> StoredStage | None:
            stored = self.kept.find(name, key)
            return stored if stored is not None and self._still_holds(stored) else None

        if self.crew.alone:
            return look()
        mine: list[StoredStage] = []

        def packed() -> Bundle | None:
            mine.extend(filter(None, [look()]))
            return mine[0].pack() if mine else None

        sent = self.crew.share(packed)
        if sent is None or mine:
            return mine[0] if mine else None
        return StoredStage.unpack(sent, self.kept.own_parts)

    def _by_chief(self, keep: Callable[[], str]) -> str:
        """What the chief writes, and gives for it; where it cannot, the others fail with it."""
        if self.crew.alone:
            return keep()
        kept: list[str] = []
        self.crew.share(lambda: kept.append(keep()))
        return kept[0] if kept else ""

    def _in_step(self, state: State) -> State:
        """The state that the chief has: another machine may compute other last digits.

        It is sent only where there is a difference. What cannot be sent, each keeps as it has it.
        """
        if self.crew.alone:
            return state
        try:
            mine = artifact_fingerprint(state.artifact)
        except Unfingerprintable:
            mine = ""
        chief = self.crew.share(lambda: Bundle({"fingerprint": mine}))
        if not self.crew.any_of(chief is not None and chief.values["fingerprint"] != mine):
            return state
        learned = None if state.learned is None else state.learned.to_dict()
        own = StoredStage(
            state.artifact, dict(state.constraints), mine, {"learned": learned}, Path()
        )
        sent = self.crew.share(own.pack)
        if self.crew.chief or sent is None:
            return state
        return _restored(StoredStage.unpack(sent, self.kept.own_parts), state.recipe)

    def _still_holds(self, stored: StoredStage) -> bool:
        """Whether what an earlier run decided by goals and by figures is what this one would."""
        goals, timing = stored.facts["goals"], stored.facts["timing"]
        return goals in (None, self.options.goals.to_dict()) and (
            timing is None or timing == self.kept.timing_key
        )

    # ---------------------------------------------------------------------------- what is measured

    def _measure_baseline(self) -> None:
        self.fingerprint = self._by_chief(lambda: self.kept.keep_baseline(self.state))
        try:
            if self._known_baseline is not None:
                self.latest = self._known_baseline
            else:
                self.latest = self._figures(BASELINE, self.state.artifact)
        except (OptkitError, OSError):
            raise
        except Exception as error:
            raise ModelError(
                f"Model {_name(self.model)!r} could not be run on the data it came with: {error}"
            ) from error
        self.baseline = self.latest

    def _measured(self, name: str, row: Row, artifact: Artifact) -> Row:
        measured = self._figures(name, artifact)
        self.latest = measured
        return dataclasses.replace(
            row,
            status="ok",
            after=measured.figures,
            validation_after=measured.validation,
            notes=measured.notes,
            **_comparison(measured.comparison),
        )

    def _figures(self, name: str, artifact: Artifact) -> Measured:
        """Figures of an artifact, taken by the chief."""
        if self.crew.alone:
            return self._own_figures(name, artifact)
        mine: list[Measured] = []

        def plain() -> Bundle:
            mine.append(self._own_figures(name, artifact))
            return Bundle(*mine[0].to_plain())

        sent = self.crew.share(plain)
        assert sent is not None  # figures there always are
        return mine[0] if mine else Measured.from_plain(sent.values, dict(sent.arrays))

    def _own_figures(self, name: str, artifact: Artifact) -> Measured:
        """Measures an artifact, unless an earlier run has measured it in the same way."""
        measured = self.kept.figures(name)
        if measured is None:
            measured = self.meter.measure(artifact)
            self.kept.keep_figures(name, measured)
        elif name == BASELINE:
            self.meter.restore_baseline(artifact, measured)
        return measured

    def _measure_runtime_baseline(self) -> None:
        """What the runtime gives by itself: the model that came in, converted as it is."""
        row = Row(0, f"{BASELINE} as tflite", "runtime", {}, "failed")
        began = time.perf_counter()
        try:
            artifact = self.state.artifact
            source = artifact.model if isinstance(artifact, KerasArtifact) else artifact
            key = self.kept.plain_key(row.name)
            stored = self.kept.find(row.name, key)
            if stored is None:
                state = State(convert(source).artifact)
                seconds = time.perf_counter() - began
                self.kept.keep(row.name, state, {"seconds": seconds}, key)
            else:
                state, seconds = State(stored.artifact), stored.facts["seconds"]
            measured = self._own_figures(row.name, state.artifact)
        except Exception as error:
            _LOG.warning("the baseline was not measured as tflite: %s", error)
            self.notes.append(f"the baseline could not be measured as tflite: {error}")
            return
        self.runtime_baseline = dataclasses.replace(
            row,
            status="ok",
            after=measured.figures,
            validation_after=measured.validation,
            notes=measured.notes,
            seconds=seconds,
            **_comparison(measured.comparison),
        )

    # -------------------------------------------------------------------------- goals on the way

    def _guard(self, number: int, item: Pass, before: _Point) -> list[Row]:
        """Judges the state, unless training is still to come that a pass counts on.

        Returns:
            The rows that were undone.
        """
        if self.options.guard != "pass":
            return []
        if item.expects_recovery and self._training_follows(number):
            self._pending = self._pending or before
            return []
        if self._pending is not None and not item.trains:
            return []
        back, self._pending = self._pending or before, None
        return self._judge(back)

    def _training_follows(self, number: int) -> bool:
        return any(n > number and item.trains for n, _, item in self.prepared.steps)

    def _violation(self, measured: Measured) -> str:
        """In words, how the goal was broken; empty where it was not."""
        metric = self.prepared.metric
        if not metric.parts:
            change, interval = measured.validation_change, measured.validation_change_ci
            return self._broken(metric, change, interval, "")
        found = []
        for name in metric.judged:
            moved = measured.validation_outputs.get(name)
            if moved is not None:
                of = f" of {name}"
                found.append(self._broken(metric.parts[name], moved.change, moved.change_ci, of))
        return "; ".join(filter(None, found))

    def _broken(
        self, metric: Metric, change: float | None, interval: Interval | None, of: str
    ) -> str:
        """In words, how an output broke the goal; empty where it did not."""
        goals, better = self.options.goals, metric.higher_is_better
        if not goals.violated(change, interval, higher_is_better=better):
            return ""
        factor, unit = (100, " points") if metric.is_share else (1, "")
        text = f"{metric.name}{of} changed by {factor * (change or 0):+.3g}{unit} on validation"
        if interval is not None:
            low, high = factor * interval[0], factor * interval[1]
            text += f" (95 % interval {low:+.3g} to {high:+.3g})"
        allowed = factor * (goals.max_accuracy_drop or 0)
        return f"{text}; a loss of {allowed:.3g}{unit} is allowed"

    def _judge(self, back: _Point) -> list[Row]:
        """Does what was asked for where the state breaks the goal; gives the rows it undid."""
        violation = self._violation(self.latest)
        if not violation:
            return []
        last = max(i for i, row in enumerate(self.rows) if _kept(row))
        if self.options.on_violation == "keep":
            self.rows[last] = _noted(self.rows[last], f"kept although {violation}")
            return []
        if self.options.on_violation == "stop":
            row = self.rows[last]
            self._ended = f"the run stopped at step {row.index}, {row.name}, which broke the goal"
        return self._undo(back, violation)

    def _undo(self, back: _Point, reason: str) -> list[Row]:
        undone = []
        for i in range(back.rows, len(self.rows)):
            row = self.rows[i]
            if not _kept(row):
                continue
            self.rows[i] = _noted(
                dataclasses.replace(row, status="rolled back"), f"undone: {reason}"
            )
            self._undone.append(row.name)
            undone.append(self.rows[i])
            _LOG.warning("step %d, %s, was undone: %s", row.index, row.name, reason)
        self._restore(back)
        return undone

    def _tell_undone(self, rows: list[Row]) -> None:
        for row in rows:
            self._send("rolled back", row.index, row.name)

    def _guard_at_the_end(self, points: list[_Point]) -> None:
        """Goes back, stage by stage, to the last one that keeps the goal."""
        if self.options.on_violation == "keep":
            self._judge(points[-1])
            return
        while len(points) > 1 and (violation := self._violation(self.latest)):
            back = points.pop(-2)
            self._tell_undone(self._undo(back, violation))

    def _point(self) -> _Point:
        return _Point(
            self.state,
            self.fingerprint,
            self.latest,
            dict(self.stages),
            len(self.rows),
            len(self._recipe_passes),
            self._amending,
        )

    def _restore(self, point: _Point) -> None:
        # Recipe passes in between were not at fault.
        recipe = point.state.recipe
        for item in self._recipe_passes[point.recipes :]:
            recipe = item.amend(recipe)
        self.state = dataclasses.replace(point.state, recipe=recipe)
        self.fingerprint, self.latest = point.fingerprint, point.latest
        self.stages, self._amending = dict(point.stages), point.amending

    def _why_not(self, item: Pass) -> str:
        """Why a pass cannot run on what there is now; empty where it can."""
        artifact = self.state.artifact
        if isinstance(item, RecipePass):
            return ""
        undone = f" after {', '.join(self._undone)} was undone" if self._undone else ""
        if not isinstance(artifact, item.accepts):
            wanted = getattr(item.accepts, "kind", item.accepts.__name__)
            return f"it takes a {wanted} artifact, and there is a {artifact.kind} one{undone}"
        if not self._undone and self.options.record:
            return ""  # it was checked on the model that an earlier pass made
        prepared = self.prepared
        model = artifact.model if isinstance(artifact, KerasArtifact) else None
        data = shown_data(prepared.data, item)
        try:
            recipe, goals = self.state.recipe, self.options.goals
            task, loss = prepared.task, prepared.loss
            item.check(Setting(model, data, task, loss, recipe, goals, self.model))
        except Exception as error:
            return f"not possible{undone or ' without what was left out'}: {error}"
        return ""

    def _checked(self, item: Pass, state: State) -> State:
        """Holds a pass to what it declares."""
        wanted = item.produces
        if not isinstance(state, State) or not isinstance(state.artifact, wanted):
            got = state.artifact if isinstance(state, State) else state
            raise OptkitError(f"{type(item).__name__} declares {wanted.__name__} and gave {got!r}.")
        return dataclasses.replace(state, artifact=self.admitted.hold(state.artifact))

    # ------------------------------------------------------------------------------ ending early

    def _ask_whether_to_stop(self) -> None:
        if self.options.stop is None:
            return
        ask, reason = self.options.stop, ""
        if self.crew.chief:
            try:
                reason = "stopped on request" if ask() else ""
            except Exception as error:
                _LOG.exception("the `stop` function raised")
                reason = f"ended, as the `stop` function raised {error!r}"
        if not self.crew.alone:  # all of them stop in the same place
            sent = self.crew.share(lambda: Bundle({"reason": reason}))
            reason = "" if sent is None else sent.values["reason"]
        if reason:
            raise Stopped(reason)

    def _cancel(
        self, number: int, name: str, item: Pass, before: _Point, interrupt: KeyboardInterrupt
    ) -> None:
        how = self._end(interrupt, f"in step {number}, {name}")
        if len(self.rows) == before.rows:
            notes = [how]
            finished = self.stages.get(name)
            self._restore(before)
            if finished is not None:
                # Not measured, so not what the report is of; but nobody should have to redo it.
                self.stages[name] = finished
                notes.append("its work was done, but not measured: it is among the stages")
            row = self._new_row(number, name, item)
            self.rows.append(dataclasses.replace(row, status="cancelled", notes=tuple(notes)))
        self._send("cancelled", number, name)

    def _end(self, interrupt: KeyboardInterrupt, where: str) -> str:
        """No further pass runs; says why."""
        how = str(interrupt) if isinstance(interrupt, Stopped) else "interrupted"
        if not isinstance(interrupt, Stopped):
            self.crew.leave()  # the others have not heard of it
        self.cancelled = True
        self._ended = f"the run was {how}{',' if ', ' in how else ''} {where}"
        self.notes.append(f"{self._ended}; what was finished before is kept")
        _LOG.warning("%s; what was finished is kept", self._ended)
        return how

    def _failure(self, number: int, name: str, error: Exception, before: _Point) -> PassError:
        """What failed and where, with everything that was finished."""
        self.crew.leave()  # where others go on, what they wait for would never come
        reason = (
            str(error) if isinstance(error, OptkitError) else f"{type(error).__name__}: {error}"
        )
        reason += self.crew.explain(error)
        failure = PassError(f"Step {number}, {name}, failed: {reason}", step=number, pass_name=name)
        failure.report = self.report()
        # An artifact that gives no sound outputs is among the stages, but not the last good one.
        unsound = isinstance(error, ModelError)
        good = (before.state if unsound else self.state).artifact
        failure.artifact, failure.stages = self._handed_out(good)
        self._send("failed", number, name)
        try:
            self.kept.record(failure.report)
        except OptkitError as trouble:  # a full disk, say, which may be what failed
            _LOG.warning("the workdir does not know of the failure: %s", trouble)
        return failure

    # ------------------------------------------------------------------------------------- telling

    def _context(self, number: int, name: str, item: Pass) -> Context:
        def on_epoch(epoch: int, epochs: int, figures: dict[str, float]) -> None:
            self._send("epoch", number, name, epoch=epoch, epochs=epochs, figures=figures)

        def watchers(training: int) -> list[Any]:
            found = []
            if self.options.stop is not None:
                found.append(_stopping(self._ask_whether_to_stop))
            folder = self.options.tensorboard if self.crew.chief else None
            if folder is not None:
                found.append(tensorboard.callback(folder, number, name, training))
            return found

        return Context(
            data=shown_data(self.prepared.data, item),
            task=self.prepared.task,
            metric=self.prepared.metric,
            loss=self.prepared.loss,
            seed=derive_seed(self.options.seed, self.prepared.places[number]),
            model=self.model,
            constraints=self.state.constraints,
            learned=self.state.learned,
            goals=self.options.goals,
            on_epoch=on_epoch,
            watchers=watchers,
            judge=self._verdict,
            crew=self.crew,
        )

    def _verdict(self, artifact: Artifact, goals: Goals) -> Verdict:
        """What the chief finds of an artifact that a pass might keep."""
        if self.crew.alone:
            return self.trial(self.admitted.hold(artifact), goals)
        sent = self.crew.share(
            lambda: Bundle(self.trial(self.admitted.hold(artifact), goals).to_dict())
        )
        assert sent is not None  # a verdict there always is
        return Verdict.from_dict(sent.values)

    def _send(self, kind: Kind, number: int, name: str, **more: Any) -> None:
        _LOG.debug("%s: step %d, %s", kind, number, name)
        self.progress.send(kind, number, name, **more)

    def _tell_figures(self, number: int, name: str, measured: Measured) -> None:
        figures = {
            key: float(value)
            for key, value in measured.figures.to_dict().items()
            if isinstance(value, int | float)
        }
        for output, found in (measured.figures.outputs or {}).items():
            figures[f"{output}_accuracy"] = found.accuracy
        _LOG.info("step %d, %s: %s", number, name, figures)
        if self.options.tensorboard is not None and self.crew.chief:
            tensorboard.write_figures(self.options.tensorboard, number, figures)
        self._send("measured", number, name, figures=figures)

    def report(self) -> Report:
        """The report so far."""
        prepared, options = self.prepared, self.options
        split = prepared.data.report_split
        notes = [
            *self.admitted.notes,
            *prepared.data.notes,
            *self.meter.notes,
            *self.kept.notes,
            *self.notes,
        ]
        notes += self._classes_unseen(split)
        for name, metric in prepared.metric.each.items():
            if metric.note:
                notes.append(f"metric{f' of {name}' if name else ''}: {metric.note}")
        if split is not None and split.name != "test":
            notes.append(
                "figures are of validation, which early stopping chooses on, and so optimistic: "
                "no test split was given"
            )
        report = Report(
            rows=tuple(self.rows),
            baseline=self.baseline.figures,
            metric=prepared.metric.name,
            higher_is_better=prepared.metric.higher_is_better,
            split=split.name if split is not None else None,
            environment=describe_run(
                model=self.model,
                data=prepared.data,
                task=prepared.task,
                metric=prepared.metric,
                loss=prepared.loss,
                seed=options.seed,
                measure=options.measure,
                goals=options.goals,
                pipeline=options.pipeline,
            )
            | self.crew.describe(),
            notes=tuple(notes),
            runtime_baseline=self.runtime_baseline,
        )
        return dataclasses.replace(report, goals=self._reached(report))

    def _classes_unseen(self, split: Split | None) -> list[str]:
        """Says where the goal for every class cannot be judged for every class."""
        prepared, figures = self.prepared, self.baseline.figures
        notes = []
        for name in prepared.metric.judged or ("",):
            own = figures.outputs[name].per_class if figures.outputs else figures.per_class
            classes = prepared.task.each[name].classes
            if self.options.goals.min_class_accuracy is not None and len(own or {}) < classes:
                notes.append(
                    f"the goal for every class{f' of {name}' if name else ''} is judged on "
                    f"{len(own or {})} of {classes} classes: the others have no sample in "
                    f"{split.name if split else 'any split'}"
                )
        return notes

    def _reached(self, report: Report) -> tuple[Goal, ...]:
        row = report.final_row
        against = Comparison()
        if row is not None:
            against = Comparison(
                speedup=row.speedup,
                speedup_ci=row.speedup_ci,
                accuracy_change=row.accuracy_change,
                accuracy_change_ci=row.accuracy_change_ci,
                output_changes=row.output_changes,
            )
        return self.options.goals.judge(
            report.baseline,
            report.final,
            against,
            higher_is_better=report.higher_is_better,
            outputs=self.prepared.metric.judged,
        )


def _name(model: Any) -> str:
    return "saved_model" if model is None else str(model.name)


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}


def _restored(stored: StoredStage, recipe: Recipe) -> State:
    """The state behind a pass that an earlier run has done."""
    learned = stored.facts["learned"]
    return State(
        stored.artifact,
        recipe,
        stored.constraints,
        None if learned is None else LearnedRanges.from_dict(learned),
    )


def _told(row: Row, context: Context, *notes: str) -> Row:
    """A row with everything that its pass had to say."""
    return dataclasses.replace(
        row,
        notes=(*context.notes, *notes),
        curves=tuple(context.curves),
        trainings=tuple(context.trainings),
        studies=tuple(context.studies),
    )


def _kept(row: Row) -> bool:
    """Whether the row is of a pass that made something, which was kept."""
    return row.status == "ok" and row.after is not None


def _noted(row: Row, note: str) -> Row:
    return dataclasses.replace(row, notes=(*row.notes, note))


def _stopping(ask: Callable[[], None]) -> Any:
    """A callback that ends a training where it stands."""

    class Stopping(tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            ask()

    return Stopping()
