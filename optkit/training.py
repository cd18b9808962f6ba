"""The one way in which every pass trains: by the recipe, seeded, with constraints kept.

`fit` is what `Context.fit` calls. It trains a proxy model over the same layers, so that the model
itself stays uncompiled and carries no optimizer state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.constraint import Constraint
from optkit.data import BoundData, map_leaves
from optkit.errors import DataError, OptkitError, PipelineError
from optkit.metric import Metric
from optkit.models import compiled_metrics, is_compiled, output_names, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, tensorflow, tf_keras
from optkit.task import Loss, Task, dense_targets, replaced_loss
from optkit.translate import object_to_tf_keras

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "History",
    "check_compiled_optimizer",
    "check_optimizer",
    "fit",
    "initial_learning_rate",
]

DEFAULT_LEARNING_RATE = 1e-3
_METRIC = "metric"


@dataclass(frozen=True)
class History:
    """How a training went.

    Attributes:
        curves: Figures by name (``"loss"``, ``"val_loss"``, ``"metric"``, ``"val_metric"``), one
            value an epoch.
        epochs: Epochs trained.
        best_epoch: Epoch whose weights were kept, from 1; the last one without early stopping.
        stopped_early: Whether patience ran out.
    """

    curves: dict[str, list[float]]
    epochs: int
    best_epoch: int
    stopped_early: bool


def check_optimizer(name: str, value: Any) -> None:
    """Checks an optimizer argument: ``None``, a name that Keras knows, or an object of Keras 2 or 3.

    Raises:
        PipelineError: If it is anything else.
    """
    if value is None:
        return
    keras = tf_keras()
    if isinstance(value, str):
        try:
            keras.optimizers.get(value)
        except ValueError as error:
            raise PipelineError(
                f"`{name}` must be a name that tf_keras.optimizers knows, such as 'adamw', 'adam' "
                f"or 'sgd'. Received: {value!r}."
            ) from error
    elif not isinstance(object_to_tf_keras(value), _optimizer_bases()):
        raise PipelineError(
            f"`{name}` must be None, a name, or a Keras optimizer. Received: {value!r} (of "
            f"type {type(value).__module__}.{type(value).__qualname__})."
        )


def _optimizer_bases() -> tuple[type, ...]:
    keras = tf_keras()
    return (keras.optimizers.Optimizer, keras.optimizers.legacy.Optimizer)


def _make_optimizer(
    choices: Iterable[Any], learning_rate: float | None, weight_decay: float | None
) -> Any:
    """A fresh optimizer of the first kind given, with the settings that it came with."""
    keras = tf_keras()
    chosen: Any = next((choice for choice in choices if choice is not None), "adamw")
    named = isinstance(chosen, str)
    template: Any = keras.optimizers.get(chosen) if named else object_to_tf_keras(chosen)
    template = getattr(template, "inner_optimizer", template)  # inside a loss-scaling one
    try:
        config = template.get_config()
    except NotImplementedError as error:
        raise PipelineError(
            f"The optimizer {type(template).__name__} cannot be copied: its learning-rate schedule "
            "has no `get_config()`. Add one, or compile the model with a number."
        ) from error
    if learning_rate is not None:
        config["learning_rate"] = learning_rate
    elif named:
        config["learning_rate"] = DEFAULT_LEARNING_RATE
    if weight_decay is not None:
        if "weight_decay" not in config:
            raise PipelineError(
                f"{type(template).__name__} takes no `weight_decay`. Use optimizer='adamw'."
            )
        config["weight_decay"] = weight_decay or None
        if type(template) is keras.optimizers.AdamW:
            config["weight_decay"] = weight_decay
    optimizer = type(template).from_config(config)
    if config.get("weight_decay") and hasattr(optimizer, "exclude_from_weight_decay"):
        # Decay is for kernels; shrinking biases and scales only hurts.
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def check_compiled_optimizer(model: Any) -> None:
    """Refuses a compiled optimizer that could not be copied for training.

    Raises:
        PipelineError: With what to do.
    """
    if is_compiled(model):
        _make_optimizer((model.optimizer,), None, None)


def initial_learning_rate(optimizer: Any) -> float:
    """The learning rate of an optimizer; of a schedule, the one it begins with."""
    plain = getattr(optimizer, "inner_optimizer", optimizer)  # inside a loss-scaling one
    rate = getattr(plain, "_learning_rate", None)
    if rate is None:  # a legacy optimizer
        rate = plain.learning_rate
    if isinstance(rate, tf_keras().optimizers.schedules.LearningRateSchedule):
        rate = rate(0)
    return float(rate)


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
    learning_rate: float | None = None,
    optimizer: Any = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    settled_after: int = 0,
    callbacks: Sequence[Any] = (),
    on_epoch: Callable[[int, int, dict[str, float]], None] | None = None,
) -> History:
    """Trains a model in place. See `Context.fit` for the arguments that passes give."""
    split = data.train
    if split is None:
        raise DataError("Training needs a `train` split.")
    if recipe.loss is not None:
        loss = replaced_loss(recipe.loss, task, loss, "recipe")
    if recipe.sample is not None:
        split = recipe.sample(split, derive_seed(seed, "sample"))
    if recipe.mix is not None and split.weighted:
        raise PipelineError(
            "Samples that are mixed have no weights of their own, and the training data have "
            "weights (sample or class weights). Leave out one of them."
        )
    plan = _plan(task, metric, loss, soft=recipe.softens_targets)
    batches = _training_batches(split, recipe, plan, seed)
    compiled = source.optimizer if is_compiled(source) else None
    trainer = _trainer(model, constraints, by_name=bool(task.parts))
    trainer.compile(
        optimizer=_make_optimizer(
            (optimizer, recipe.optimizer, compiled), learning_rate, weight_decay
        ),
        loss=plan.loss.function,
        **_compile_arguments(plan, metric, source if split.weighted else None),
    )
    # Where several outputs count alike, the loss of all weighs them against each other.
    watched = (_METRIC, metric.sign())
    if len(metric.judged) == 1:
        watched = (f"{metric.judged[0]}_{_METRIC}", metric.parts[metric.judged[0]].sign())
    watch = _Watch(watched, patience, settled_after, on_epoch)
    validation = None
    if patience is not None:
        if data.validation is None:
            raise DataError("Early stopping needs a `validation` split.")
        validation = data.validation.batches(weighted=True)
        if plan.rows:
            validation = validation.map(lambda x, y, *weights: (x, plan.dense(y), *weights))
    history = trainer.fit(
        batches,
        epochs=epochs,
        steps_per_epoch=split.steps,
        validation_data=validation,
        verbose=0,
        # The pass's own callbacks first: pruning must mask the weights before they are kept.
        callbacks=[*callbacks, *(make() for make in recipe.callbacks), watch.callback()],
    )
    if watch.diverged:
        raise OptkitError(
            f"Training diverged: the loss was {watch.diverged[1]} in epoch {watch.diverged[0]}. "
            "Lower the learning rate, or look for extreme values in the data."
        )
    curves = {name: [float(v) for v in values] for name, values in history.history.items()}
    trained = len(history.epoch)
    return History(curves, trained, watch.best_epoch or trained, watch.stopped)


def _trainer(model: Any, constraints: Mapping[Any, Constraint], *, by_name: bool) -> Any:
    """A model over the same layers, which projects constrained weights after every batch.

    Args:
        model: The model.
        constraints: What must be kept.
        by_name: Whether it gives a dict by output name, as the targets are one.
    """
    keras = tf_keras()
    variables = variables_by_path(model)
    held = [(variables[item.path], item) for item in constraints.values() if item.path in variables]

    class Trainer(keras.Model):  # type: ignore[misc, name-defined]
        def train_step(self, batch: Any) -> Any:
            logs = super().train_step(batch)
            for variable, constraint in held:
                variable.assign(constraint.project(variable))
            return logs

    kind = Trainer if held else keras.Model
    outputs = model.outputs
    if by_name:
        outputs = dict(zip(output_names(model), outputs, strict=True))
    trainer = kind(model.inputs, outputs, name=model.name)
    if by_name:
        # Keras names losses and metrics by the layers otherwise, which may be other names.
        trainer.output_names = sorted(outputs)
    return trainer


@dataclass(frozen=True)
class _Plan:
    """What a training trains on: task and loss as the recipe makes them.

    Attributes:
        task: What the model is for, with the targets that are trained on.
        loss: The loss for them.
        watched: The Keras metrics to watch, by output (``""`` for the only one).
        rows: Number of classes of the outputs whose class numbers become one-hot rows.
    """

    task: Task
    loss: Loss
    watched: dict[str, list[Any]]
    rows: dict[str, int]

    def dense(self, y: Any) -> Any:
        """Targets with one-hot rows where the recipe needs rows and the data have numbers."""
        if isinstance(y, dict):
            return {name: _dense(part, self.rows.get(name)) for name, part in y.items()}
        return _dense(y, self.rows.get(""))


def _plan(task: Task, metric: Metric, loss: Loss, *, soft: bool) -> _Plan:
    """What a training trains on.

    Args:
        task: What the model is for.
        metric: The metric of the run.
        loss: The loss of the run.
        soft: Whether the recipe softens the targets.
    """
    wide, loss = dense_targets(task, loss) if soft else (task, loss)
    watched, rows = {}, {}
    for name, part in wide.each.items():
        before, own = task.each[name], metric.each[name]
        if part is not before:
            rows[name] = part.classes
        # A metric of the user's own may not take one-hot rows; then the loss alone is watched.
        unfit = own.keras is not None and part is not before
        watched[name] = [] if unfit else _training_metric(part, own)
    return _Plan(wide, loss, watched, rows)


def _compile_arguments(plan: _Plan, metric: Metric, source: Any) -> dict[str, Any]:
    """What the trainer is compiled with, besides optimizer and loss.

    Args:
        plan: What is trained on.
        metric: The metric of the run.
        source: The model that came in, where there are weights for its ``weighted_metrics``.
    """
    arguments: dict[str, Any] = {}
    by_name = bool(plan.task.parts)
    weights = {name: part.weight for name, part in plan.loss.each.items()}
    if any(weight != 1.0 for weight in weights.values()):
        arguments["loss_weights"] = weights if by_name else [weights[""]]
    watched = plan.watched
    weighted: dict[str, list[Any]] = {}
    if source is not None and is_compiled(source):
        for name in watched:
            if name not in plan.rows:
                given = compiled_metrics(source, name or None, weighted=True)
                weighted[name] = [_fresh(item) for item in given]
    if metric.weighted:
        weighted = {name: [*items, *weighted.get(name, ())] for name, items in watched.items()}
        watched = {}
    for argument, metrics in (("metrics", watched), ("weighted_metrics", weighted)):
        if any(metrics.values()) or argument == "metrics":
            arguments[argument] = metrics if by_name else metrics.get("", [])
    return arguments


def _fresh(item: Any) -> Any:
    """A metric without what it has counted."""
    if isinstance(item, tf_keras().metrics.Metric):
        return type(item).from_config(item.get_config())
    return item


def _training_metric(task: Task, metric: Metric) -> list[Any]:
    """The Keras counterpart of the metric, to watch while training."""
    metrics = tf_keras().metrics
    if metric.custom:
        return []  # a function of NumPy arrays; training watches the loss alone
    if metric.keras is not None:
        return [metric.keras(_METRIC)]
    if metric.name == "mean_squared_error":
        return [metrics.MeanSquaredError(name=_METRIC)]
    if metric.name == "mean_absolute_error":
        return [metrics.MeanAbsoluteError(name=_METRIC)]
    if task.kind == "multiclass":
        kind = "SparseCategoricalAccuracy" if task.sparse else "CategoricalAccuracy"
        return [getattr(metrics, kind)(name=_METRIC)]
    threshold = 0.0 if task.from_logits else 0.5

    def hits(targets: Any, outputs: Any) -> Any:
        """Accuracy against the hard labels, which smoothed ones round to."""
        return metrics.binary_accuracy(tensorflow().round(targets), outputs, threshold)

    return [metrics.MeanMetricWrapper(hits, name=_METRIC)]


def _dense(y: Any, rows: int | None) -> Any:
    """Class numbers as one-hot rows."""
    tf = tensorflow()
    if rows is None:
        return y
    if y.shape.rank is not None and y.shape.rank > 1 and y.shape[-1] == 1:
        y = tf.squeeze(y, axis=-1)
    return tf.one_hot(tf.cast(y, tf.int32), rows)


def _training_batches(split: Any, recipe: Recipe, plan: _Plan, seed: int) -> Any:
    """The training stream: augment, mix, smooth, in this order whatever the order of passes."""
    tf = tensorflow()
    batches = split.training_batches(derive_seed(seed, "order"), weighted=True)
    augment = [
        item.prepare(split, derive_seed(seed, "augment", i))
        for i, item in enumerate(recipe.augment)
    ]
    smooth = recipe.smooth.prepare(plan.task) if recipe.smooth is not None else None
    if not augment and recipe.mix is None and smooth is None:
        return batches.prefetch(tf.data.AUTOTUNE)
    seeds = [derive_seed(seed, "stream", i) for i in range(len(augment) + 1)]

    def transform(number: Any, batch: Any) -> Any:
        x, y, *weights = batch
        shapes = tf.nest.map_structure(lambda leaf: leaf.shape, x)
        for augmentation, base in zip(augment, seeds[:-1], strict=True):
            x = augmentation(x, tf.stack([tf.constant(base, tf.int64), number]))
        if recipe.softens_targets:
            y = map_leaves(lambda leaf: tf.cast(leaf, tf.float32), plan.dense(y))
        if recipe.mix is not None:
            dense_shapes = tf.nest.map_structure(lambda leaf: leaf.shape, y)
            x, y = recipe.mix(x, y, tf.stack([tf.constant(seeds[-1], tf.int64), number]))
            y = tf.nest.map_structure(tf.ensure_shape, y, dense_shapes)
        if smooth is not None:
            y = smooth(y)
        # Functions of the user's may lose the shapes, which layers need.
        return tf.nest.map_structure(tf.ensure_shape, x, shapes), y, *weights

    # What draws from seeds of its own must be called in one order to be repeatable.
    stateless = all(getattr(item, "stateless", True) for item in recipe.augment)
    return (
        batches.enumerate()
        .map(
            transform,
            num_parallel_calls=tf.data.AUTOTUNE if stateless else None,
            deterministic=True if stateless else None,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


class _Watch:
    """Keeps the best weights, stops when patience runs out, notices divergence, tells progress."""

    def __init__(
        self,
        watched: tuple[str, int],
        patience: int | None,
        settled_after: int,
        on_epoch: Callable[[int, int, dict[str, float]], None] | None,
    ):
        (self.name, self.sign), self.patience, self.settled_after = watched, patience, settled_after
        self.on_epoch = on_epoch
        self.best: tuple[float, float] | None = None
        self.best_epoch = 0
        self.best_weights: list[np.ndarray] | None = None
        self.stopped = False
        self.diverged: tuple[int, float] | None = None

    def callback(self) -> Any:
        watch = self

        class Watching(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                watch.epoch_ended(self.model, epoch + 1, self.params["epochs"], dict(logs or {}))

            def on_train_end(self, logs: dict[str, float] | None = None) -> None:
                if watch.best_weights is not None:
                    self.model.set_weights(watch.best_weights)

        return Watching()

    def epoch_ended(self, model: Any, epoch: int, epochs: int, logs: dict[str, float]) -> None:
        if self.on_epoch is not None:
            self.on_epoch(epoch, epochs, {k: float(v) for k, v in logs.items()})
        if not math.isfinite(logs.get("loss", 0.0)):
            self.diverged = (epoch, float(logs["loss"]))
            model.stop_training = True
            return
        if self.patience is None or epoch <= self.settled_after:
            return
        # The metric decides; on a small split it often ties, and then the loss does.
        score = (self.sign * logs.get(f"val_{self.name}", 0.0), -logs["val_loss"])
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, epoch
            self.best_weights = model.get_weights()
        elif epoch - self.best_epoch >= self.patience:
            self.stopped = True
            model.stop_training = True
