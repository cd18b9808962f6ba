"""What a training trains on: task, loss and metrics as the recipe makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.errors import PipelineError
from optkit.metric import Metric
from optkit.models import compiled_metrics, is_compiled
from optkit.runtime import tensorflow, tf_keras
from optkit.task import Loss, Task, dense_targets

__all__ = ["METRIC", "Plan", "compile_arguments", "plan_training", "require_means"]

_MEANS = ("auto", "sum_over_batch_size")  # reductions of losses that are a mean over the batch
METRIC = "metric"  #: Name of what is watched, in logs and curves.


@dataclass(frozen=True)
class Plan:
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


def require_means(loss: Loss, who: str) -> None:
    """Refuses losses that are no mean over the batch, where gradients of parts of it are averaged.

    Args:
        loss: The loss to train by.
        who: What averages, with its verb.

    Raises:
        PipelineError: With what to do.
    """
    for name, part in loss.each.items():
        reduction = getattr(part.function, "reduction", _MEANS[0])
        if reduction not in _MEANS:
            of = f" of output {name!r}" if name else ""
            raise PipelineError(
                f"The loss {part.name!r}{of} has the reduction {reduction!r}, so that its gradient "
                f"grows with the batch, and {who} over parts of it. Take a loss of the reduction "
                "'sum_over_batch_size', the default."
            )


def plan_training(task: Task, metric: Metric, loss: Loss, *, soft: bool) -> Plan:
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
        unfit = own.keras is not None and not own.takes_rows and part is not before
        watched[name] = [] if unfit else _training_metric(part, own)
    return Plan(wide, loss, watched, rows)


def compile_arguments(plan: Plan, metric: Metric, source: Any) -> dict[str, Any]:
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
        return [metric.keras(METRIC)]
    if metric.name == "mean_squared_error":
        return [metrics.MeanSquaredError(name=METRIC)]
    if metric.name == "mean_absolute_error":
        return [metrics.MeanAbsoluteError(name=METRIC)]
    if task.kind == "multiclass":
        kind = "SparseCategoricalAccuracy" if task.sparse else "CategoricalAccuracy"
        return [getattr(metrics, kind)(name=METRIC)]
    threshold = 0.0 if task.from_logits else 0.5

    def hits(targets: Any, outputs: Any) -> Any:
        """Accuracy against the hard labels, which smoothed ones round to."""
        return metrics.binary_accuracy(tensorflow().round(targets), outputs, threshold)

    return [metrics.MeanMetricWrapper(hits, name=METRIC)]


def _dense(y: Any, rows: int | None) -> Any:
    """Class numbers as one-hot rows."""
    tf = tensorflow()
    if rows is None:
        return y
    if y.shape.rank is not None and y.shape.rank > 1 and y.shape[-1] == 1:
        y = tf.squeeze(y, axis=-1)
    return tf.one_hot(tf.cast(y, tf.int32), rows)
