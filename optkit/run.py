"""One run of a pipeline: `prepare` refuses what cannot work, `Run` does and measures the rest."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import Artifact, KerasArtifact
from optkit.base import Pass, RecipePass, TrainPass
from optkit.context import Context, Setting, State
from optkit.data import ArraySplit, BoundData, Data, Split
from optkit.environment import describe_run
from optkit.errors import ModelError, OptkitError, PassError, PipelineError
from optkit.measuring import Meter
from optkit.metric import Metric, infer_metric
from optkit.models import clone, signature
from optkit.progress import Progress
from optkit.recipe import Recipe
from optkit.report import Report, Row
from optkit.result import Result
from optkit.runtime import derive_seed, isolated
from optkit.serialize import readable
from optkit.task import Loss, Task, check_targets, infer_loss, infer_task
from optkit.training import check_compiled_optimizer

__all__ = ["Prepared", "Run", "Steps", "prepare"]

_TARGETS_LOOKED_AT = 1024


#: Name and pass of each step, in order.
Steps = tuple[tuple[str, Pass], ...]


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be able to start.

    Attributes:
        steps: Name and pass of each step.
        data: The splits, bound to the model's inputs.
        task: What the model is for.
        metric: The metric that "accuracy" stands for.
        loss: The loss to train with.
    """

    steps: Steps
    data: BoundData
    task: Task
    metric: Metric
    loss: Loss


def prepare(steps: Steps, model: Any, data: Data, loss: Any) -> Prepared:
    """Binds the data to the model, infers what is for what, lets every pass check itself.

    Raises:
        PipelineError, ModelError, DataError: For what cannot work.
    """
    described = signature(model)
    bound = data.bind(described)
    needs = {split for _, item in steps for split in item.needs}
    if "train" in needs and bound.train is None:
        wanting = ", ".join(name for name, item in steps if "train" in item.needs)
        raise PipelineError(f"{wanting} cannot do without a `train` split, and data has none.")
    if "calibration" in needs:
        bound.calibration_split()
    labelled = bound.train or bound.validation or bound.test
    if labelled is None:
        raise PipelineError(
            "Data has no split with targets. Give `test` (or `validation`), on which the figures "
            "of the report are measured."
        )
    task = infer_task(model, _targets(labelled), loss)
    if "validation" in needs or bound.report_split is None:
        bound.require_validation(stratify=task.kind in ("multiclass", "binary"))
    for split in (bound.train, bound.validation, bound.test):
        if split is not None:
            check_targets(task, _targets(split), split.name)
    prepared = Prepared(
        steps,
        bound,
        task,
        infer_metric(model, task),
        infer_loss(model, task, loss),
    )
    if any(isinstance(item, TrainPass) for _, item in steps):
        check_compiled_optimizer(model)
    _check_passes(prepared, model)
    return prepared


def _targets(split: Split) -> np.ndarray:
    """All targets of arrays; of a stream the first ones, as reading it whole may take long."""
    return split.y if isinstance(split, ArraySplit) else split.targets(_TARGETS_LOOKED_AT)


def _check_passes(prepared: Prepared, model: Any) -> None:
    recipe = Recipe()
    for i, (name, item) in enumerate(prepared.steps, 1):
        try:
            seen = item.check(Setting(model, prepared.data, prepared.task, prepared.loss, recipe))
        except OptkitError as error:
            raise type(error)(f"Step {i}, {name}: {error}") from error
        except Exception as error:
            raise PipelineError(f"Step {i}, {name}: {type(error).__name__}: {error}") from error
        if isinstance(item, RecipePass):
            recipe = item.amend(recipe)
        if seen is not None or item.replaces_model:
            model = seen  # None where what later passes will see is not known yet


class Run:
    """One run under way: the state that passes hand on, and the rows so far.

    Args:
        prepared: What was prepared.
        model: The model that came in; it is copied.
        meter: Measures the stages.
        progress: Is told what happens.
        seed: Seed of the run.
        pipeline: The pipeline as the call that makes it, for the report.
    """

    def __init__(
        self,
        prepared: Prepared,
        model: Any,
        *,
        meter: Meter,
        progress: Progress,
        seed: int,
        pipeline: str,
    ):
        self.prepared, self.model = prepared, model
        self.meter, self.progress = meter, progress
        self.seed, self.pipeline = seed, pipeline
        self.state = State(KerasArtifact(clone(model)))
        self.rows: list[Row] = []
        self.stages: dict[str, Artifact] = {}

    def run(self) -> Result:
        """Measures the baseline, then runs and measures pass by pass."""
        try:
            self.baseline = self.latest = self.meter.measure(self.state.artifact)
        except OptkitError:
            raise
        except Exception as error:
            raise ModelError(
                f"Model {self.model.name!r} could not be run on the data it came with: {error}"
            ) from error
        self._tell_figures(0, "baseline")
        for step, (name, item) in enumerate(self.prepared.steps, 1):
            self._step(step, name, item)
        return Result(self.state.artifact, self.report(), self.stages, self.model)

    def _step(self, step: int, name: str, item: Pass) -> None:
        self.progress.send("started", step, name)
        context = self._context(step, name)
        row = Row(step, name, item.family, readable(item.get_config()), "failed")
        if not isinstance(item, RecipePass):
            row = dataclasses.replace(
                row, before=self.latest.figures, validation_before=self.latest.validation
            )
        began = time.perf_counter()
        try:
            with isolated(context.seed):
                state = _checked(item, item.apply(self.state, context))
            row = dataclasses.replace(row, seconds=time.perf_counter() - began)
            self.progress.send("finished", step, name)
            came_in, self.state = self.state.artifact, state
            if not isinstance(item, RecipePass):
                self.stages[name] = state.artifact  # finished, whatever happens from here on
            item.review(came_in, state.artifact, context)
            if isinstance(item, RecipePass):
                row = dataclasses.replace(row, status="recipe")
            else:
                row = self._measured(row, state.artifact)
        except Exception as error:
            self.rows.append(dataclasses.replace(row, notes=(*context.notes, f"failed: {error}")))
            raise self._failure(step, name, error) from error
        self.rows.append(dataclasses.replace(row, notes=(*context.notes, *row.notes)))
        if not isinstance(item, RecipePass):
            self._tell_figures(step, name)

    def _measured(self, row: Row, artifact: Artifact) -> Row:
        measured = self.meter.measure(artifact)
        self.latest = measured
        return dataclasses.replace(
            row,
            status="ok",
            after=measured.figures,
            validation_after=measured.validation,
            notes=measured.notes,
            **dataclasses.asdict(measured.comparison),
        )

    def _context(self, step: int, name: str) -> Context:
        def on_epoch(epoch: int, epochs: int, figures: dict[str, float]) -> None:
            self.progress.send("epoch", step, name, epoch=epoch, epochs=epochs, figures=figures)

        return Context(
            data=self.prepared.data,
            task=self.prepared.task,
            metric=self.prepared.metric,
            loss=self.prepared.loss,
            seed=derive_seed(self.seed, step),
            model=self.model,
            constraints=self.state.constraints,
            on_epoch=on_epoch,
        )

    def _tell_figures(self, step: int, name: str) -> None:
        figures = {
            key: float(value)
            for key, value in self.latest.figures.to_dict().items()
            if isinstance(value, int | float)
        }
        self.progress.send("measured", step, name, figures=figures)

    def _failure(self, step: int, name: str, error: Exception) -> PassError:
        """What failed and where, with everything that was finished."""
        reason = (
            str(error) if isinstance(error, OptkitError) else f"{type(error).__name__}: {error}"
        )
        failure = PassError(f"Step {step}, {name}, failed: {reason}", step=step, pass_name=name)
        failure.report, failure.stages = self.report(), dict(self.stages)
        failure.artifact = self.state.artifact
        return failure

    def report(self) -> Report:
        """The report so far."""
        prepared = self.prepared
        split = prepared.data.report_split
        notes = [*prepared.data.notes, *self.meter.notes]
        if prepared.metric.note:
            notes.append(f"metric: {prepared.metric.note}")
        if split is not None and split.name != "test":
            notes.append(
                "figures are of validation, which early stopping chooses on, and so optimistic: "
                "no test split was given"
            )
        return Report(
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
                seed=self.seed,
                latency_threads=self.meter.threads,
                pipeline=self.pipeline,
            ),
            notes=tuple(notes),
        )


def _checked(item: Pass, state: State) -> State:
    """Holds a pass to what it declares."""
    wanted = item.produces
    if not isinstance(state, State) or not isinstance(state.artifact, wanted):
        got = state.artifact if isinstance(state, State) else state
        raise OptkitError(f"{type(item).__name__} declares {wanted.__name__} and gave {got!r}.")
    return state
