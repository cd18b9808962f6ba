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
from optkit.training.checkpoint import Checkpoint, Place, begin_anew, signature_of
from optkit.training.optimizers import final_learning_rate, make_optimizer, peak_learning_rate
from optkit.training.plan import METRIC, compile_arguments, plan_training
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
    split = data.train
    if split is None:
        raise DataError("Training needs a `train` split.")
    if recipe.loss is not None:
        loss = replaced_loss(recipe.loss, task, loss, "recipe")
    split = sampled(split, recipe, seed)
    if split.weighted and recipe.mix is not None and not recipe.mixes_weights:
        raise PipelineError(
            "The training data have weights (sample or class weights), and the function that mixes "
            "samples takes none: it must take `(x, y, seed, weights)` and give `(x, y, weights)`."
        )
    with crew.scope():  # in which metrics must be made, too
        plan = plan_training(task, metric, loss, soft=recipe.softens_targets)
    compiled = source.optimizer if is_compiled(source) else None
    optimizers = (optimizer, recipe.optimizer, compiled)
    steps = steps_of(split, recipe)

    hindered = hindrance(model) if recipe.jit else None
    jit = bool(recipe.jit) and hindered is None
    known = None
    if place is not None:
        known = signature_of(model, (epochs, learning_rate, weight_decay, patience, settled_after))
    twin = working_twin(model, precision=recipe.precision, strategy=crew.strategy)
    with twin as working, crew.scope():

        def fed(batches: Any) -> Any:
            return spread(batches, crew, trains=True)

        def trainer_at(rate: Any) -> Any:
            # Keras resets no metrics before the first batch: each trainer has its own.
            own = plan_training(task, metric, loss, soft=recipe.softens_targets)
            trainer = make_trainer(
                working,
                constraints,
                rate_factors or {},
                by_name=bool(task.parts),
                accumulate=steps.accumulate,
                replicas=crew.replicas,
            )
            trainer.compile(
                optimizer=with_loss_scaling(
                    make_optimizer(optimizers, rate, weight_decay), working
                ),
                loss=own.loss.function,
                jit_compile=jit,
                **compile_arguments(own, metric, source if split.weighted else None),
            )
            return trainer

        search = peak = None
        if not isinstance(learning_rate, str):
            peak = learning_rate
        else:
            # XLA would draw from no seed at all.
            with seeded_layers(working, derive_seed(seed, "layers")):
                search = range_test(
                    working,
                    trainer_at,
                    fed(training_batches(split, recipe, plan, derive_seed(seed, "rates"))),
                    accumulate=steps.accumulate,
                    seed=derive_seed(seed, "range test"),
                    tried=rates or RateRange(),
                )
            if not epochs:
                return History({}, 0, 0, False, search)
            peak = search.suggestion
        rate: Any = peak
        if recipe.schedule is not None:
            peak = peak_learning_rate(optimizers, peak)
            rate = recipe.schedule.rate(peak, epochs * steps.updates, steps.updates)
        trainer = trainer_at(rate)
        # Where several outputs count alike, the loss of all weighs them against each other.
        watched = (METRIC, metric.sign())
        if len(metric.judged) == 1:
            watched = (f"{metric.judged[0]}_{METRIC}", metric.parts[metric.judged[0]].sign())
        watch = Watch(watched, patience, settled_after, on_epoch)
        # The pass's own callbacks first: pruning must mask the weights before they are kept.
        own = [*callbacks, *(make() for make in recipe.callbacks)]
        keeping = [_telling_rates(), *own, watch.callback()]
        checkpoint, first, last = None, 0, epochs
        if place is not None and known is not None:
            checkpoint = Checkpoint(place, known, trainer=trainer, watch=watch, callbacks=own)
            keeping.append(checkpoint.callback())
            first, last = checkpoint.first_epoch, checkpoint.last_epoch(epochs)
        validation = passes = None
        if patience is not None:
            if data.validation is None:
                raise DataError("Early stopping needs a `validation` split.")
            validation = data.validation.batches(weighted=True)
            if plan.rows:
                validation = validation.map(lambda x, y, *weights: (x, plan.dense(y), *weights))
            validation = spread(validation, crew, trains=False)
            passes = None if crew.replicas == 1 else data.validation.steps  # Keras cannot tell
        with seeded_layers(trainer, derive_seed(seed, "layers")) as seeding:
            history = trainer.fit(
                fed(training_batches(split, recipe, plan, seed, first_epoch=first)),
                initial_epoch=first,
                epochs=last,
                steps_per_epoch=split.steps,
                validation_data=validation,
                validation_steps=passes,
                verbose=0,
                callbacks=[seeding, *keeping],
            )
        trained = first + len(history.epoch)
        if checkpoint is not None and not watch.diverged:
            checkpoint.finish(trained)
    # Tracing has drawn from the global generators, as a training that was finished before has not.
    tf_keras().utils.set_random_seed(derive_seed(seed, "behind"))
    hindered = hindered or trainer.not_compiled
    if watch.diverged:
        raise OptkitError(
            f"Training diverged: the loss was {watch.diverged[1]} in epoch {watch.diverged[0]}. "
            "Lower the learning rate, or look for extreme values in the data."
        )
    curves = {name: [float(v) for v in values] for name, values in history.history.items()}
    notes = [*split.notes, *([f"trained without XLA: {hindered}"] if hindered else [])]
    resumed: tuple[int, ...] = ()
    if checkpoint is not None:
        curves, resumed = checkpoint.curves, checkpoint.resumed
        if first and history.epoch:
            notes += _differing(first, own, recipe, trainer)
    return History(
        curves,
        trained,
        watch.best_epoch or trained,
        watch.stopped,
        search,
        tuple(notes),
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
