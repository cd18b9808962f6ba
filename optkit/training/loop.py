"""`fit`, which every pass trains by.

It trains a proxy model over the same layers, so that the model itself stays uncompiled and carries
no optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.constraint import Constraint
from optkit.data import BoundData
from optkit.distribute import ALONE, Crew
from optkit.errors import DataError, OptkitError, PipelineError
from optkit.metric import Metric
from optkit.models import is_compiled
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, tf_keras
from optkit.task import Loss, Task, replaced_loss
from optkit.training.checkpoint import Checkpoint, Kept, Place, begin_anew, signature_of
from optkit.training.optimizers import final_learning_rate, make_optimizer, peak_learning_rate
from optkit.training.plan import METRIC, Plan, compile_arguments, plan_training
from optkit.training.precision import with_loss_scaling
from optkit.training.randomness import seeded_layers, unrepeatable_operations
from optkit.training.range_test import LearningRateSearch, RateRange, range_test
from optkit.training.steps import sampled, steps_of
from optkit.training.stream import spread, training_batches
from optkit.training.trainer import make_trainer
from optkit.training.twin import working_twin
from optkit.training.watch import Watch
from optkit.training.xla import hindrance

__all__ = ["History", "fit"]


@dataclass(frozen=True)
class History:
    """How a training went.

    Attributes:
        curves: Figures by name (``"loss"``, ``"val_loss"``, ``"metric"``, ``"val_metric"``), one
            value an epoch; ``"learning_rate"`` is that of the epoch's last update.
        epochs: Epochs trained.
        best_epoch: Epoch whose weights were kept, from 1; the last one without early stopping.
        stopped_early: Whether patience ran out.
        search: How the learning rate was found; ``None`` where it was given.
        notes: What the reader of a report should know.
        resumed: Epochs behind which it went on in another process, as the one before was killed.
    """

    curves: dict[str, list[float]]
    epochs: int
    best_epoch: int
    stopped_early: bool
    search: LearningRateSearch | None = None
    notes: tuple[str, ...] = ()
    resumed: tuple[int, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What a reader of the curves should know besides, as plain values."""
        return {
            "epochs": self.epochs,
            "kept": self.best_epoch,
            "stopped_early": self.stopped_early,
            "resumed": list(self.resumed),
        }


def fit(
    model: Any,
    recipe: Recipe,
    *,
    data: BoundData,
    task: Task,
    metric: Metric,
    loss: Loss,
    source: Any,
    constraints: Mapping[Any, Constraint],
    seed: int,
    epochs: int,
    learning_rate: float | str | None = None,
    optimizer: Any = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    settled_after: int = 0,
    rate_factors: Mapping[str, float] | None = None,
    callbacks: Sequence[Any] = (),
    rates: RateRange | None = None,
    place: Place | None = None,
    crew: Crew = ALONE,
    on_epoch: Callable[[int, int, dict[str, float]], None] | None = None,
) -> History:
    """Trains a model in place. See `Context.fit` for the arguments that passes give.

    With ``learning_rate="auto"``, ``rates`` are those that are tried, and with no ``epochs``
    nothing else is done. What a killed process has left in ``place`` is gone on from. All of the
    ``crew`` train together.
    """
    compiled = source.optimizer if is_compiled(source) else None
    training = _Training(
        recipe,
        split=_training_split(data, recipe, seed),
        validation=_looked_at(data, patience),
        task=task,
        metric=metric,
        loss=replaced_loss(recipe.loss, task, loss, "recipe"),
        source=source,
        constraints=constraints,
        rate_factors=rate_factors or {},
        optimizers=(optimizer, recipe.optimizer, compiled),
        weight_decay=weight_decay,
        hindered=hindrance(model, crew.strategy) if recipe.jit else None,
        seed=seed,
        crew=crew,
    )
    own = [*callbacks, *(make() for make in recipe.callbacks)]
    kept = None
    if place is not None:
        settings = (epochs, learning_rate, weight_decay, patience, settled_after)
        kept = Kept(place, signature_of(model, settings), own)
    twin = working_twin(model, precision=recipe.precision, strategy=crew.strategy)
    with twin as working, crew.scope():
        search = None
        if isinstance(learning_rate, str):
            search = kept.search if kept is not None else None
            if search is None:
                search = training.search(working, rates or RateRange())
            if not epochs:
                return History({}, 0, 0, False, search)
            peak = crew.same(search.suggestion)  # other machines, other last digits
        else:
            peak = learning_rate
        trainer = training.trainer(working, training.rate(peak, epochs))
        watch = Watch(_watched(metric), patience, settled_after, on_epoch)
        checkpoint = None
        if kept is not None:
            checkpoint = Checkpoint(kept, trainer=trainer, watch=watch, search=search)
        history = training.run(trainer, epochs, own, watch, checkpoint)
    # Tracing has drawn from the global generators, as a training that was finished before has not.
    tf_keras().utils.set_random_seed(derive_seed(seed, "behind"))
    if watch.diverged:
        raise OptkitError(
            f"Training diverged: the loss was {watch.diverged[1]} in epoch {watch.diverged[0]}. "
            "Lower the learning rate, or look for extreme values in the data."
        )
    return _told(
        training,
        trainer,
        history,
        watch=watch,
        checkpoint=checkpoint,
        callbacks=own,
        search=search,
    )


class _Training:
    """One training: what goes in, the model that trains, the loop.

    Args:
        recipe: How to train.
        split: The split to draw from.
        validation: The split to look at behind every epoch; ``None`` for none.
        task: What the model is for.
        metric: The metric of the run.
        loss: The loss to train by.
        source: The model that came into the pipeline.
        constraints: What must be kept of weights.
        rate_factors: By path of a variable, what its updates are multiplied by.
        optimizers: Optimizers, of which the first that is not ``None`` counts.
        weight_decay: Decay of kernels; ``None`` for the optimizer's own.
        hindered: Why XLA is not even asked, where it is wanted.
        seed: Seed of the training.
        crew: Those who train together.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        split: Any,
        validation: Any,
        task: Task,
        metric: Metric,
        loss: Loss,
        source: Any,
        constraints: Mapping[Any, Constraint],
        rate_factors: Mapping[str, float],
        optimizers: Sequence[Any],
        weight_decay: float | None,
        hindered: str | None,
        seed: int,
        crew: Crew,
    ):
        self.recipe, self.split, self.validation = recipe, split, validation
        self.task, self.metric, self.loss, self.source = task, metric, loss, source
        self.constraints, self.rate_factors = constraints, rate_factors
        self.optimizers, self.weight_decay = optimizers, weight_decay
        self.hindered, self.seed, self.crew = hindered, seed, crew
        self.steps = steps_of(split, recipe)
        with crew.scope():  # in which metrics must be made, too
            self.plan = self._plan()

    def _plan(self) -> Plan:
        return plan_training(self.task, self.metric, self.loss, soft=self.recipe.softens_targets)

    def batches(self, seed: int, *, first_epoch: int = 0) -> Any:
        """The training stream, in shares for those who train together."""
        stream = training_batches(self.split, self.recipe, self.plan, seed, first_epoch=first_epoch)
        return spread(stream, self.crew, trains=True)

    def validation_batches(self) -> dict[str, Any]:
        """What Keras is given to look at behind every epoch."""
        split, plan = self.validation, self.plan
        if split is None:
            return {}
        batches = split.batches(weighted=True)
        if plan.rows:
            batches = batches.map(lambda x, y, *weights: (x, plan.dense(y), *weights))
        return {
            "validation_data": spread(batches, self.crew, trains=False),
            # Of shares, Keras cannot tell how many there are.
            "validation_steps": None if self.crew.replicas == 1 else split.steps,
        }

    def rate(self, peak: float | None, epochs: int) -> Any:
        """The learning rate: a number, the recipe's course, or ``None`` for the optimizer's own."""
        schedule = self.recipe.schedule
        if schedule is None:
            return peak
        updates = self.steps.updates
        peak = peak_learning_rate(self.optimizers, peak)
        return schedule.rate(peak, epochs * updates, updates)

    def trainer(self, working: Any, rate: Any) -> Any:
        """A compiled model over the layers of the one to train."""
        trainer = make_trainer(
            working,
            self.constraints,
            self.rate_factors,
            by_name=bool(self.task.parts),
            accumulate=self.steps.accumulate,
            replicas=self.crew.replicas,
        )
        optimizer = make_optimizer(self.optimizers, rate, self.weight_decay)
        plan = self._plan()  # Keras resets no metrics before the first batch: each has its own
        trainer.compile(
            optimizer=with_loss_scaling(optimizer, working),
            loss=plan.loss.function,
            jit_compile=bool(self.recipe.jit) and self.hindered is None,
            **compile_arguments(plan, self.metric, self.source if self.split.weighted else None),
        )
        return trainer

    def search(self, working: Any, tried: RateRange) -> LearningRateSearch:
        """Looks for a learning rate, with everything that the training will have."""
        # XLA would draw from no seed at all.
        with seeded_layers(working, derive_seed(self.seed, "layers")):
            return range_test(
                working,
                lambda rate: self.trainer(working, rate),
                self.batches(derive_seed(self.seed, "rates")),
                accumulate=self.steps.accumulate,
                seed=derive_seed(self.seed, "range test"),
                tried=tried,
            )

    def run(
        self,
        trainer: Any,
        epochs: int,
        callbacks: Sequence[Any],
        watch: Watch,
        checkpoint: Checkpoint | None,
    ) -> Any:
        """Trains, from where the checkpoint is.

        Returns:
            The history of Keras, of what this process has trained.
        """
        # The pass's own callbacks first: pruning must mask the weights before they are kept.
        looking = [_telling_rates(), *callbacks, watch.callback()]
        first, last = 0, epochs
        if checkpoint is not None:
            looking.append(checkpoint.callback())
            first, last = checkpoint.first_epoch, checkpoint.last_epoch(epochs)
        with seeded_layers(trainer, derive_seed(self.seed, "layers")) as seeding:
            history = trainer.fit(
                self.batches(self.seed, first_epoch=first),
                initial_epoch=first,
                epochs=last,
                steps_per_epoch=self.split.steps,
                verbose=0,
                callbacks=[seeding, *looking],
                **self.validation_batches(),
            )
        if checkpoint is not None:
            checkpoint.note(*self.notes(trainer, first, callbacks, history))
            if not watch.diverged:
                checkpoint.finish(first + len(history.epoch))
        return history

    def notes(self, trainer: Any, first: int, callbacks: Sequence[Any], history: Any) -> list[str]:
        """What to say of it, once it has trained."""
        notes = []
        if hindered := self.hindered or trainer.not_compiled:
            notes.append(f"trained without XLA: {hindered}")
        if first and history.epoch:
            notes += _differing(first, callbacks, self.recipe, trainer)
        return notes


def _training_split(data: BoundData, recipe: Recipe, seed: int) -> Any:
    """The split to draw from."""
    if data.train is None:
        raise DataError("Training needs a `train` split.")
    split = sampled(data.train, recipe, seed)
    if split.weighted and recipe.mix is not None and not recipe.mixes_weights:
        raise PipelineError(
            "The training data have weights (sample or class weights), and the function that mixes "
            "samples takes none: it must take `(x, y, seed, weights)` and give `(x, y, weights)`."
        )
    return split


def _looked_at(data: BoundData, patience: int | None) -> Any:
    """The split to look at behind every epoch; ``None`` without early stopping."""
    if patience is None:
        return None
    if data.validation is None:
        raise DataError("Early stopping needs a `validation` split.")
    return data.validation


def _watched(metric: Metric) -> tuple[str, int]:
    """The figure that decides on early stopping, and 1 where more of it is better, -1 where less."""
    if len(metric.judged) == 1:
        output = metric.judged[0]
        return f"{output}_{METRIC}", metric.parts[output].sign()
    # Where several outputs count alike, the loss of all weighs them against each other.
    return METRIC, metric.sign()


def _told(
    training: _Training,
    trainer: Any,
    history: Any,
    *,
    watch: Watch,
    checkpoint: Checkpoint | None,
    callbacks: Sequence[Any],
    search: LearningRateSearch | None,
) -> History:
    """What came of a training."""
    first = 0
    resumed: tuple[int, ...] = ()
    curves = {name: [float(v) for v in values] for name, values in history.history.items()}
    if checkpoint is None:
        notes = training.notes(trainer, first, callbacks, history)
    else:
        first, curves, resumed = checkpoint.first_epoch, checkpoint.curves, checkpoint.resumed
        notes = list(checkpoint.notes)
    epochs = first + len(history.epoch)
    return History(
        curves,
        epochs,
        watch.best_epoch or epochs,
        watch.stopped,
        search,
        (*training.split.notes, *notes),
        resumed,
    )


def _differing(first: int, callbacks: Sequence[Any], recipe: Recipe, trainer: Any) -> list[str]:
    """Says where a training that goes on may end otherwise than one that was not interrupted."""
    reasons = []
    if names := begin_anew(callbacks):
        reasons.append(
            f"what {', '.join(names)} held is lost (a callback keeps it that has `state` and "
            "`restore`)"
        )
    if not all(getattr(item, "stateless", True) for item in recipe.augment):
        reasons.append("the augmentation draws from seeds of its own")
    if found := sorted({name for item in trainer.traced for name in unrepeatable_operations(item)}):
        reasons.append(f"layers draw random numbers by {', '.join(found)}")
    if not reasons:
        return []
    return [
        f"went on behind epoch {first}, and may end otherwise than a run that was not interrupted: "
        + "; ".join(reasons)
    ]


def _telling_rates() -> Any:
    """Adds the learning rate of the last update to the figures of every epoch."""

    class Telling(tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            if logs is not None:
                logs["learning_rate"] = final_learning_rate(self.model.optimizer)

    return Telling()
