"""What must be known before a run can start: `prepare` refuses what cannot work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.base import InspectPass, Pass, RecipePass
from optkit.context import Setting
from optkit.data import ArraySplit, BoundData, Data, Split, weigh_classes
from optkit.distribute import ALONE, Crew
from optkit.entrance import Admitted
from optkit.errors import OptkitError, PipelineError, first_line
from optkit.goals import Goals
from optkit.measuring import Measure
from optkit.metric import Metric, resolve_metric
from optkit.models import Signature
from optkit.recipe import Recipe
from optkit.task import (
    Loss,
    Task,
    check_targets,
    infer_loss,
    infer_task,
    infer_task_of_outputs,
    loss_of_task,
    one_hot_outputs,
    replaced_loss,
    stratified_by,
)
from optkit.training import check_compiled_optimizer, require_means

__all__ = ["Options", "Prepared", "Step", "prepare", "shown_data"]

_TARGETS_LOOKED_AT = 1024
_EXAMPLES = 16

#: Number, name and pass of a step. The number seeds it, also where steps before it are left out.
Step = tuple[int, str, Pass]


@dataclass(frozen=True)
class Options:
    """What a run is asked for besides passes, model and data; see `Pipeline.run`."""

    seed: int = 0
    pipeline: str = ""
    goals: Goals = field(default_factory=Goals)
    on_violation: str = "rollback"
    guard: str = "pass"
    measure: Measure = field(default_factory=Measure)
    stop: Callable[[], Any] | None = None
    tensorboard: Path | None = None
    #: Whether the run makes itself the one that its workdir shows.
    record: bool = True
    #: Those who do it together.
    crew: Crew = ALONE


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be able to start.

    Attributes:
        steps: Number, name and pass of each step.
        admitted: The model that came in.
        data: The splits, bound to the model's inputs.
        task: What the model is for.
        metric: The metric that "accuracy" stands for.
        loss: The loss to train with.
        places: By number of a step, what its seed is derived from. Passes that only look are not
            counted, so that a run with them gives what it gives without.
    """

    steps: tuple[Step, ...]
    admitted: Admitted
    data: BoundData
    task: Task
    metric: Metric
    loss: Loss
    places: Mapping[int, int | str]


def prepare(
    steps: Sequence[Step], admitted: Admitted, data: Data, loss: Any, options: Options
) -> Prepared:
    """Binds the data to the model, infers what is for what, lets every pass check itself.

    Raises:
        PipelineError, ModelError, DataError: For what cannot work.
    """
    model, described = admitted.model, admitted.signature
    if model is None:
        _require_converting(steps, admitted)
    bound = data.bind(described, frozenset() if model is None else one_hot_outputs(model, loss))
    needs = {split for _, _, item in steps for split in item.needs}
    if "train" in needs and bound.train is None:
        wanting = ", ".join(name for _, name, item in steps if "train" in item.needs)
        raise PipelineError(f"{wanting} cannot do without a `train` split, and data has none.")
    if "calibration" in needs:
        bound.calibration_split()
    labelled = bound.train or bound.validation or bound.test
    if labelled is None:
        raise PipelineError(
            "Data has no split with targets. Give `test` (or `validation`), on which the figures "
            "of the report are measured."
        )
    task = _task(admitted, labelled, loss)
    stratify = stratified_by(task)
    if options.goals.max_accuracy_drop is not None and bound.validation is None:
        if bound.train is None:
            raise PipelineError(
                "The goal `max_accuracy_drop` is checked on the way, and data has no `validation` "
                "split to check it on, nor a `train` split to cut one from. Give one of them: "
                "`test` only ever serves to report."
            )
        bound.require_validation(stratify=stratify)
    if "validation" in needs or bound.report_split is None:
        bound.require_validation(stratify=stratify)
    for split in (bound.train, bound.validation, bound.test):
        if split is not None:
            check_targets(task, _targets(split), split.name)
    metric = resolve_metric(
        options.measure.metric,
        options.measure.higher_is_better,
        model,
        task,
        example=lambda: _example(admitted, labelled),
        output=options.measure.output,
        weighted=options.measure.sample_weight,
    )
    _check_goals(options, task, metric)
    _check_weights(options, bound)
    weigh_classes(bound, task)
    bound.notes += _of_outputs(described, metric)
    trained = loss_of_task(task) if model is None else infer_loss(model, task, loss)
    prepared = Prepared(tuple(steps), admitted, bound, task, metric, trained, _places(steps))
    if any(item.trains for _, _, item in steps):
        check_compiled_optimizer(model)
    _check_passes(prepared, model, options.goals, options.crew)
    return prepared


def _places(steps: Sequence[Step]) -> dict[int, int | str]:
    """What the seed of each step is derived from: its place among those that may change something.

    Of passes that only look, the place among themselves.
    """
    found: dict[int, int | str] = {}
    acting = 0
    for number, _, item in steps:
        if isinstance(item, InspectPass):
            found[number] = f"inspect {number - acting}"
        else:
            acting += 1
            found[number] = acting
    return found


def _of_outputs(described: Signature, metric: Metric) -> list[str]:
    """What the reader must know of several outputs."""
    if len(described.outputs) < 2:
        return []
    notes = []
    silent = [info.name for info in described.outputs if info.name not in metric.parts]
    if silent:
        notes.append(f"outputs without targets, neither trained nor measured: {', '.join(silent)}")
    if len(metric.parts) > 1:
        notes.append(
            f"{metric.name} in the table is that of the output {metric.output!r}; goals of "
            f"accuracy are judged on {', '.join(metric.judged)} (`Measure(output=…)` names one)"
        )
    return notes


def _check_weights(options: Options, data: BoundData) -> None:
    """Refuses to count samples by weights that there are not."""
    if not options.measure.sample_weight:
        return
    for split in (data.report_split, data.validation):
        if split is not None and not split.weighted:
            raise PipelineError(
                f"`Measure(sample_weight=True)`, and `{split.name}` has no sample weights. Give "
                "them, as in (x, y, sample weights), or leave the setting out."
            )


def _targets(split: Split) -> Any:
    """All targets of arrays; of a stream the first ones, as reading it whole may take long."""
    return split.y if isinstance(split, ArraySplit) else split.targets(_TARGETS_LOOKED_AT)


def _require_converting(steps: Sequence[Step], admitted: Admitted) -> None:
    """Refuses passes that need the layers of what came without any.

    Raises:
        PipelineError: Naming the first such pass.
    """
    kind: type[Artifact] = type(admitted.given)
    for number, name, item in steps:
        if isinstance(item, RecipePass):
            continue
        if not issubclass(kind, item.accepts):
            raise PipelineError(
                f"Step {number}, {name}, takes a {item.accepts.kind} artifact, and there is a "
                f"{kind.kind} one: what came in is a traced graph without layers, which can be "
                "measured and converted, not trained. Load the model from a file that Keras saved."
            )
        if item.makes_artifact:
            kind = item.produces


def _task(admitted: Admitted, split: Split, loss: Any) -> Task:
    if admitted.model is not None:
        return infer_task(admitted.model, _targets(split), loss)
    targets, outputs = _example(admitted, split)
    return infer_task_of_outputs(outputs, targets, loss)


def _example(admitted: Admitted, split: Split) -> tuple[Any, Any]:
    """Targets and outputs of a few samples."""
    x, y = split.head(_EXAMPLES)
    return y, admitted.artifact().predict(x)


def _check_goals(options: Options, task: Task, metric: Metric) -> None:
    """Refuses goals whose figures the run would not measure."""
    goals, measure = options.goals, options.measure
    if options.guard == "none":  # nothing is held to them; a pass that chooses measures by itself
        return
    if goals.max_memory_mb is not None and not measure.memory:
        raise PipelineError(
            "The goal `max_memory_mb` needs peak memory, which `Measure(memory=False)` leaves out."
        )
    timed = [
        name
        for name in ("max_latency_ms", "min_speedup", "min_throughput")
        if getattr(goals, name) is not None
    ]
    if timed and not measure.latency_seconds:
        raise PipelineError(
            f"The goal `{timed[0]}` needs timing, which `Measure(latency_seconds=0)` leaves out."
        )
    judged = [task.each[name] for name in metric.judged or ("",)]
    if goals.min_class_accuracy is not None and not any(t.is_classification for t in judged):
        raise PipelineError(
            "The goal `min_class_accuracy` needs classes, and the task is a "
            f"{task.describe()}. Leave it out."
        )
    are_shares = all(metric.each[name].is_share for name in metric.judged or ("",))
    shares = ("min_accuracy", "max_accuracy_drop") if are_shares else ()
    for name in shares:
        limit = getattr(goals, name)
        if limit is not None and limit > 1:
            raise PipelineError(
                f"The goal `{name}` is {limit}, and {metric.name} lies between 0 and 1: 0.015 is "
                "1.5 points."
            )


def _check_passes(prepared: Prepared, model: Any, goals: Goals, crew: Crew) -> None:
    recipe = Recipe()
    for number, name, item in prepared.steps:
        try:
            data = shown_data(prepared.data, item)
            source = prepared.admitted.model
            setting = Setting(model, data, prepared.task, prepared.loss, recipe, goals, source)
            if item.trains:
                _require_means(setting, crew)
            seen = item.check(setting)
        except OptkitError as error:
            raise type(error)(f"Step {number}, {name}: {error}") from error
        except Exception as error:
            raise PipelineError(f"Step {number}, {name}: {first_line(error)}") from error
        if isinstance(item, RecipePass):
            recipe = item.amend(recipe)
        if seen is not None or item.replaces_model:
            model = seen  # None where what later passes will see is not known yet


def _require_means(setting: Setting, crew: Crew) -> None:
    """Refuses sums as losses, where a training averages over several batches or replicas."""
    recipe = setting.recipe
    loss = replaced_loss(recipe.loss, setting.task, setting.loss, "recipe")
    if (recipe.accumulate or 1) > 1:
        require_means(loss, "GradientAccumulation averages")
    if crew.replicas > 1:
        require_means(loss, "the strategy's replicas average")


def shown_data(data: BoundData, item: Pass) -> BoundData:
    """The splits that a pass may look at: those that its result may depend on, and no other.

    What it cannot see need not be part of its stage's key, so other test or calibration data do
    not make a finished training run again. A pass that only looks has no stage, and sees all.
    """
    if item.sees_every_split:
        return data
    calibration = data.calibration if "calibration" in item.needs else None
    return dataclasses.replace(data, test=None, calibration=calibration)
