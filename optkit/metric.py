"""The figure that "accuracy" stands for: one value a sample, so that intervals can be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.models import compiled_metrics
from optkit.runtime import tf_keras
from optkit.task import Task

__all__ = ["Metric", "infer_metric", "true_classes"]

_ACCURACIES = {
    "accuracy",
    "acc",
    "binary_accuracy",
    "categorical_accuracy",
    "sparse_categorical_accuracy",
}
_ERRORS = {
    "mae": "mean_absolute_error",
    "mean_absolute_error": "mean_absolute_error",
    "mse": "mean_squared_error",
    "mean_squared_error": "mean_squared_error",
}

_BETTER_HIGHER = ("accuracy", "cosinesimilarity")
_BETTER_LOWER = ("error", "loss", "entropy", "divergence", "hinge", "poisson", "logcosh")


@dataclass(frozen=True)
class Metric:
    """A metric that is the mean of one value a sample.

    Attributes:
        name: The field's name for it, for example ``"accuracy"``.
        higher_is_better: Whether more is better.
        per_sample: Function of ``(y_true, y_pred)``, both with the batch first, to one value a
            sample, shape ``(n,)``.
        source: Where it came from, for the report.
        note: What the user should know of the choice; empty where there is nothing.
        keras: Function of a name to the Keras metric to watch in training; ``None`` where it
            follows from the task.
    """

    name: str
    higher_is_better: bool
    per_sample: Callable[[np.ndarray, np.ndarray], np.ndarray]
    source: str = "inferred"
    note: str = ""
    keras: Callable[[str], Any] | None = None

    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1


def true_classes(task: Task, targets: np.ndarray) -> np.ndarray:
    """The class number of each target of a binary or multi-class task."""
    if task.kind == "multiclass" and not task.sparse:
        return np.asarray(targets.argmax(axis=-1))
    classes = targets
    if classes.ndim > 1 and classes.shape[-1] == 1:
        classes = classes[..., 0]
    return np.asarray(classes >= 0.5 if task.kind == "binary" else classes).astype(np.int64)


def _accuracy(task: Task) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    threshold = 0.0 if task.from_logits else 0.5

    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        if task.kind == "multiclass":
            right = outputs.argmax(axis=-1) == true_classes(task, targets)
        elif task.kind == "binary":
            scores = outputs[..., 0] if outputs.ndim > 1 else outputs
            right = (scores > threshold) == true_classes(task, targets)
        else:
            right = (outputs > threshold) == (targets >= 0.5)
        values = right.astype(np.float64)
        # One value a sample: dense predictions (a class a pixel) and labels count by their mean.
        return np.asarray(values.reshape(len(values), -1).mean(axis=1))

    return per_sample


def _error(power: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        flat = outputs.reshape(len(outputs), -1).astype(np.float64)
        wanted = targets.reshape(len(targets), -1).astype(np.float64)
        return np.asarray((np.abs(flat - wanted) ** power).mean(axis=1))

    return per_sample


def infer_metric(model: Any, task: Task) -> Metric:
    """The metric of the compiled model where optkit can report it, else the one for the task.

    Args:
        model: The tf_keras model; its compiled metrics are looked at in their order.
        task: What the model is for.

    Returns:
        Classification accuracy, mean absolute or squared error, or any compiled metric of Keras
        that is the mean of a function of each sample.
    """
    passed_over: list[str] = []
    for given in compiled_metrics(model):
        item = _as_metric(given)
        name = _metric_name(given)
        if name in _ACCURACIES and task.is_classification:
            return _accuracy_metric(task, "compiled model")
        if name in _ERRORS:
            full = _ERRORS[name]
            power = 1 if full == "mean_absolute_error" else 2
            return Metric(full, False, _error(power), "compiled model")
        better = _higher_is_better(item)
        if better is None:
            passed_over.append(name)
        else:
            return _wrapped_metric(item, better)
    note = (
        f"the compiled metric {', '.join(passed_over)} is not known to be a mean over samples of "
        "which more, or less, is better; the default is reported instead"
        if passed_over
        else ""
    )
    if task.is_classification:
        return _accuracy_metric(task, "inferred", note)
    return Metric("mean_absolute_error", False, _error(1), "inferred", note)


def _as_metric(given: Any) -> Any:
    """A Keras metric for a name, a function or a metric."""
    metrics = tf_keras().metrics
    item = given
    if isinstance(given, str) and given.lower() not in _ACCURACIES:
        try:
            item = metrics.get(given)
        except ValueError:
            return given
    if callable(item) and not isinstance(item, metrics.Metric | type | str):
        return metrics.MeanMetricWrapper(item, name=getattr(item, "__name__", "metric"))
    return item


def _higher_is_better(item: Any) -> bool | None:
    """By the class or function of a mean over samples, as names can be anything."""
    if not isinstance(item, tf_keras().metrics.MeanMetricWrapper):
        return None
    kind = type(item).__name__
    if kind == "MeanMetricWrapper":
        kind = getattr(item._fn, "__name__", "")
    kind = kind.lower().replace("_", "")
    if any(word in kind for word in _BETTER_HIGHER):
        return True
    return False if any(word in kind for word in _BETTER_LOWER) else None


def _metric_name(item: Any) -> str:
    if isinstance(item, str):
        return item.lower()
    name = getattr(item, "name", None) or getattr(item, "__name__", type(item).__name__)
    return str(name).lower()


def _accuracy_metric(task: Task, source: str, note: str = "") -> Metric:
    return Metric("accuracy", True, _accuracy(task), source, note)


def _wrapped_metric(item: Any, higher_is_better: bool) -> Metric:
    function, keywords = item._fn, dict(getattr(item, "_fn_kwargs", {}))

    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        outputs = outputs.astype(np.float32, copy=False)
        if np.ndim(targets) != np.ndim(outputs) and np.size(targets) == np.size(outputs):
            targets = np.reshape(targets, outputs.shape)  # (n,) against (n, 1) would broadcast
        values = np.asarray(function(targets, outputs, **keywords), dtype=np.float64)
        return np.asarray(values.reshape(len(outputs), -1).mean(axis=1))

    def keras(new_name: str) -> Any:
        return type(item).from_config({**item.get_config(), "name": new_name})

    return Metric(str(item.name), higher_is_better, per_sample, "compiled model", keras=keras)
