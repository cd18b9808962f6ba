"""The figure that "accuracy" stands for: one value a sample where possible, for its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from optkit.errors import ArgumentTypeError, PipelineError
from optkit.models import compiled_metrics, output_names
from optkit.runtime import tensorflow, tf_keras
from optkit.task import Task
from optkit.translate import object_to_tf_keras

__all__ = [
    "Metric",
    "check_metric",
    "hits",
    "infer_metric",
    "metric_name",
    "resolve_metric",
    "true_classes",
]

_GIVEN = "Measure(metric=…)"

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

_BALANCED = "balanced_accuracy"

_BETTER_HIGHER = ("accuracy", "cosinesimilarity")
_BETTER_LOWER = ("error", "loss", "entropy", "divergence", "hinge", "poisson", "logcosh")


@dataclass(frozen=True)
class Metric:
    """A metric: the mean of one value a sample, or one figure of the whole split.

    Attributes:
        name: The field's name for it, for example ``"accuracy"``.
        higher_is_better: Whether more is better.
        per_sample: Function of ``(y_true, y_pred)``, both with the batch first, to one value a
            sample, shape ``(n,)``; ``None`` where there is only a figure of the whole split.
        source: Where it came from, for the report.
        note: What the user should know of the choice; empty where there is nothing.
        keras: Function of a name to the Keras metric to watch in training; ``None`` where it
            follows from the task.
        whole: Function of ``(y_true, y_pred)`` of the whole split to one figure, where the metric
            is no mean over samples.
        custom: Whether it is a function of the user's own, of which training knows nothing.
        weighted: Whether samples count by their weights.
        takes_rows: Whether the Keras metric takes one-hot rows as well as class numbers.
        output: Of a model with several outputs, the one that this is of.
        parts: Of a model with several outputs, the metric of each that has targets, by name; what
            stands here besides is that of ``output``.
        judged: The outputs that goals of accuracy are judged on.
    """

    name: str
    higher_is_better: bool
    per_sample: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    source: str = "inferred"
    note: str = ""
    keras: Callable[[str], Any] | None = None
    whole: Callable[[np.ndarray, np.ndarray], float] | None = None
    custom: bool = False
    weighted: bool = False
    takes_rows: bool = False
    output: str = ""
    parts: Mapping[str, Metric] = field(default_factory=dict)
    judged: tuple[str, ...] = ()

    @property
    def each(self) -> Mapping[str, Metric]:
        """The metric of each output by name; of the only output under ``""``."""
        return self.parts or {"": self}

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1, as accuracies do."""
        return "accuracy" in self.name

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


def hits(task: Task, targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Which answers of a classifier are right: one a sample, one a label, or one a position."""
    threshold = 0.0 if task.from_logits else 0.5
    if task.kind == "multiclass":
        return np.asarray(outputs.argmax(axis=-1) == true_classes(task, targets))
    if task.kind == "binary":
        scores = outputs[..., 0] if outputs.ndim > 1 else outputs
        return np.asarray((scores > threshold) == true_classes(task, targets))
    return np.asarray((outputs > threshold) == (targets >= 0.5))


def _accuracy(task: Task) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        values = hits(task, targets, outputs).astype(np.float64)
        # One value a sample: dense predictions (a class a pixel) and labels count by their mean.
        return np.asarray(values.reshape(len(values), -1).mean(axis=1))

    return per_sample


def _balanced_accuracy(task: Task) -> Callable[[np.ndarray, np.ndarray], float]:
    """The mean, over the classes that there are, of the accuracy in each."""

    def whole(targets: np.ndarray, outputs: np.ndarray) -> float:
        classes = true_classes(task, targets).ravel()
        asked = np.bincount(classes, minlength=task.classes)
        right = np.bincount(
            classes, hits(task, targets, outputs).ravel().astype(np.float64), task.classes
        )
        there = asked > 0
        return float((right[there] / asked[there]).mean())

    return whole


def _balanced_keras(task: Task) -> Callable[[str], Any]:
    """The same as a Keras metric, to watch while training."""

    def make(new_name: str) -> Any:
        tf = tensorflow()

        class BalancedAccuracy(tf_keras().metrics.Metric):  # type: ignore[misc]
            def __init__(self, name: str):
                super().__init__(name=name)
                shape = (task.classes,)
                self.right = self.add_weight("right", shape, initializer="zeros")
                self.asked = self.add_weight("asked", shape, initializer="zeros")

            def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
                if task.kind == "binary":
                    answers = tf.cast(y_pred[..., 0] > (0.0 if task.from_logits else 0.5), tf.int64)
                    classes = tf.cast(tf.cast(y_true, tf.float32) >= 0.5, tf.int64)
                else:
                    answers, classes = tf.argmax(y_pred, -1), tf.convert_to_tensor(y_true)
                    rank = y_pred.shape.rank
                    rows = classes.shape.rank == rank and classes.shape[-1] == y_pred.shape[-1]
                    classes = tf.argmax(classes, -1) if rows else tf.cast(classes, tf.int64)
                answers, classes = tf.reshape(answers, [-1]), tf.reshape(classes, [-1])
                counts = tf.ones_like(classes, tf.float32)
                if sample_weight is not None:
                    counts *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
                right = tf.where(answers == classes, counts, 0.0)
                self.right.assign_add(tf.math.unsorted_segment_sum(right, classes, task.classes))
                self.asked.assign_add(tf.math.unsorted_segment_sum(counts, classes, task.classes))

            def result(self) -> Any:
                there = tf.cast(self.asked > 0, tf.float32)
                shares = tf.math.divide_no_nan(self.right, self.asked)
                return tf.math.divide_no_nan(tf.reduce_sum(shares), tf.reduce_sum(there))

            def reset_state(self) -> None:
                for counted in (self.right, self.asked):
                    counted.assign(tf.zeros_like(counted))

        return BalancedAccuracy(new_name)

    return make


def _error(power: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        flat = outputs.reshape(len(outputs), -1).astype(np.float64)
        wanted = targets.reshape(len(targets), -1).astype(np.float64)
        return np.asarray((np.abs(flat - wanted) ** power).mean(axis=1))

    return per_sample


def infer_metric(model: Any, task: Task, output: str | None = None) -> Metric:
    """The metric of the compiled model where optkit can report it, else the one for the task.

    Args:
        model: The tf_keras model, whose compiled metrics are looked at in their order; ``None``
            where there is none.
        task: What the model is for, or one of its outputs.
        output: Name of the output, where there are several.

    Returns:
        Classification accuracy, mean absolute or squared error, or any compiled metric of Keras
        that is the mean of a function of each sample.
    """
    passed_over: list[str] = []
    for given in () if model is None else compiled_metrics(model, output):
        known = _known_metric(given, task, "compiled model")
        if known is not None:
            return known
        item = _as_metric(given)
        better = _higher_is_better(item)
        if better is None:
            passed_over.append(metric_name(given))
        else:
            return _wrapped_metric(item, better, "compiled model")
    note = (
        f"the compiled metric {', '.join(passed_over)} is not known to be a mean over samples of "
        "which more, or less, is better; the default is reported instead"
        if passed_over
        else ""
    )
    if task.is_classification:
        return _accuracy_metric(task, "inferred", note)
    return Metric("mean_absolute_error", False, _error(1), "inferred", note)


def check_metric(given: Any, higher_is_better: Any) -> None:
    """Refuses what cannot be a metric before anything is known of the model.

    Args:
        given: What `Measure` takes as ``metric``.
        higher_is_better: What it takes as ``higher_is_better``.

    Raises:
        PipelineError: If the direction of a function is not given, or one is given alone.
        ArgumentTypeError: If it is no metric at all.
    """
    if isinstance(given, Mapping):
        for output, item in given.items():
            better = higher_is_better
            check_metric(item, better.get(output) if isinstance(better, Mapping) else better)
        return
    if given is None:
        if higher_is_better is not None:
            raise PipelineError(
                "`higher_is_better` says which way a metric of your own goes, and `metric` is not "
                "given. Give both, or neither."
            )
        return
    if isinstance(given, str):
        if not given:
            raise PipelineError("`metric` must not be an empty string.")
        return
    if isinstance(given, type) or not (callable(given) or _is_keras_metric(given)):
        raise ArgumentTypeError(
            "`metric` must be the name of a tf_keras metric, a tf_keras metric, or a function of "
            "(y_true, y_pred); for a model with several outputs it may be a dict of such by name. "
            f"Received: {given!r} (of type {type(given).__name__})."
        )
    if higher_is_better is None and not _is_keras_metric(given):
        raise PipelineError(
            f"Of the function {metric_name(given)!r} it cannot be known whether more of it is "
            "better. Say so: `Measure(metric=…, higher_is_better=True)`, or `False` for an error."
        )


#: Gives targets and outputs of some samples.
Example = Callable[[], tuple[Any, Any]]


def resolve_metric(
    given: Any,
    higher_is_better: Any,
    model: Any,
    task: Task,
    *,
    example: Example | None = None,
    output: str | None = None,
    weighted: bool = False,
) -> Metric:
    """The metric that the user named, or the inferred one.

    Args:
        given: What `Measure` takes as ``metric``; ``None`` to infer it. A dict is by output.
        higher_is_better: What it takes as ``higher_is_better``.
        model: The tf_keras model, or ``None``; looked at only where nothing is given.
        task: What the model is for.
        example: Gives targets and outputs of some samples. Only called for a function, to see
            whether it gives one value a sample or one figure.
        output: The output that accuracy stands for, of a model with several; ``None`` for each.
        weighted: Whether samples count by their weights.

    Raises:
        PipelineError: For an unknown name, a metric that is no mean over samples, one that does
            not fit the task, or one of which it is not known whether more is better; for an output
            that there is not.
    """
    check_metric(given, higher_is_better)
    if not task.parts:
        names = () if model is None else output_names(model)
        _check_outputs(names, output, given)
        if isinstance(given, Mapping):
            given = next(iter(given.values()), None)
        if isinstance(higher_is_better, Mapping):
            higher_is_better = next(iter(higher_is_better.values()), None)
        return _resolve_one(given, higher_is_better, model, task, example, weighted=weighted)
    _check_outputs(tuple(task.parts), output, given)
    parts = {}
    for name, part in task.parts.items():
        better = higher_is_better
        if isinstance(given, Mapping):
            own = given.get(name)
        else:
            own = given if output in (None, name) else None
        if isinstance(better, Mapping):
            better = better.get(name)
        one = None if example is None else _example_of(example, name)
        try:
            parts[name] = _resolve_one(
                own,
                None if own is None else better,
                model,
                part,
                one,
                output=name,
                weighted=weighted,
            )
        except PipelineError as error:
            raise PipelineError(
                f"Output {name!r}: {error} Metrics by output: `Measure(metric={{{name!r}: …}})`."
            ) from error
    lead = output or next(iter(parts))
    judged: tuple[str, ...] = (lead,)
    if output is None:
        # A goal of accuracy says nothing about an error in other units, where there are both.
        judged = tuple(name for name, part in parts.items() if part.is_share) or tuple(parts)
    return replace(parts[lead], parts=parts, judged=judged)


def _check_outputs(names: tuple[str, ...], output: str | None, given: Any) -> None:
    asked = [] if output is None else [("output", output)]
    asked += [("metric", name) for name in given] if isinstance(given, Mapping) else []
    for argument, name in asked:
        if names and name not in names:
            raise PipelineError(
                f"`Measure({argument}=…)` names the output {name!r}. Outputs that have targets: "
                f"{list(names)}."
            )


def _example_of(example: Example, name: str) -> Example:
    def one() -> tuple[Any, Any]:
        targets, outputs = example()
        return targets[name], outputs[name]

    return one


def _resolve_one(
    given: Any,
    higher_is_better: bool | None,
    model: Any,
    task: Task,
    example: Example | None,
    *,
    output: str | None = None,
    weighted: bool = False,
) -> Metric:
    """The metric of one output."""
    given = object_to_tf_keras(given)
    metric = _metric_of(given, higher_is_better, model, task, example=example, output=output)
    if weighted and metric.whole is not None:
        raise PipelineError(
            f"The metric {metric.name!r} is one figure of the whole split, of which samples have no "
            "share that could be weighted. Leave out `Measure(sample_weight=True)`, or give a "
            "function to one value a sample."
        )
    return replace(metric, weighted=weighted, output=output or "")


def _metric_of(
    given: Any,
    higher_is_better: bool | None,
    model: Any,
    task: Task,
    *,
    example: Example | None,
    output: str | None,
) -> Metric:
    if given is None:
        return infer_metric(model, task, output)
    if not isinstance(given, str) and not _is_keras_metric(given):
        return _function_metric(given, bool(higher_is_better), example)
    name = metric_name(given)
    metric = _known_metric(given, task, _GIVEN)
    if metric is not None:
        if higher_is_better not in (None, metric.higher_is_better):
            raise PipelineError(
                f"Of {name!r}, {'more' if metric.higher_is_better else 'less'} is better, and "
                f"`higher_is_better={higher_is_better}` says the contrary. Leave it out."
            )
        return metric
    item = _as_metric(given)
    if isinstance(item, str):
        if item.lower() == _BALANCED:
            raise PipelineError(
                f"The metric {item!r} needs classes of which a sample has one, and the task is "
                f"{task.describe()}."
            )
        if item.lower() in _ACCURACIES:
            raise PipelineError(
                f"The metric {item!r} is for classifiers, and the task is a {task.describe()}."
            )
        raise PipelineError(f"The metric {item!r} is unknown to tf_keras.")
    if not isinstance(item, tf_keras().metrics.MeanMetricWrapper):
        raise PipelineError(
            f"The metric {name!r} is no mean over samples, so it has no value for each. Give a "
            "function of (y_true, y_pred) to one figure instead, for example "
            "`sklearn.metrics.roc_auc_score`, and `higher_is_better`."
        )
    better = _higher_is_better(item) if higher_is_better is None else higher_is_better
    if better is None:
        raise PipelineError(
            f"Of the metric {name!r} it is not known whether more of it is better. Say so: "
            "`Measure(metric=…, higher_is_better=True)`, or `False` for an error."
        )
    return _wrapped_metric(item, better, _GIVEN)


def _is_keras_metric(given: Any) -> bool:
    # By what it has: a check by class would import tf_keras to construct a few settings.
    return hasattr(given, "update_state") and hasattr(given, "result")


def _known_metric(given: Any, task: Task, source: str) -> Metric | None:
    """The accuracies and errors that optkit computes by itself."""
    name = metric_name(given).lower()
    if name in _ACCURACIES and task.is_classification:
        return _accuracy_metric(task, source)
    if isinstance(given, str) and name == _BALANCED and task.kind in ("multiclass", "binary"):
        keras, whole = _balanced_keras(task), _balanced_accuracy(task)
        return Metric(_BALANCED, True, None, source, keras=keras, whole=whole, takes_rows=True)
    if name in _ERRORS:
        full = _ERRORS[name]
        return Metric(full, False, _error(1 if full == "mean_absolute_error" else 2), source)
    return None


def _function_metric(
    function: Callable[[Any, Any], Any],
    higher_is_better: bool,
    example: Callable[[], tuple[np.ndarray, np.ndarray]] | None,
) -> Metric:
    name = metric_name(function)

    def whole(targets: np.ndarray, outputs: np.ndarray) -> float:
        return float(np.asarray(function(targets, outputs), dtype=np.float64).item())

    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return np.asarray(function(targets, outputs), dtype=np.float64)

    by_sample = False
    if example is not None:
        targets, outputs = example()
        try:
            shape = np.shape(function(targets, outputs))
        except Exception:
            shape = ()  # a few samples may lack a class that, say, an area under a curve needs
        if shape not in ((), (len(targets),)):
            raise PipelineError(
                f"The metric {name!r} must give one value a sample, shape ({len(targets)},) here, "
                f"or one figure. It gave shape {shape}."
            )
        by_sample = shape != ()
    return Metric(
        name,
        higher_is_better,
        per_sample if by_sample else None,
        _GIVEN,
        whole=None if by_sample else whole,
        custom=True,
    )


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


def metric_name(item: Any) -> str:
    """A readable name for what `Measure` or ``compile`` takes as a metric."""
    if isinstance(item, Mapping):
        return ", ".join(f"{output}: {metric_name(part)}" for output, part in item.items())
    if isinstance(item, str):
        return item.lower()
    item = getattr(item, "func", item)  # of a partial function
    name = getattr(item, "name", None) or getattr(item, "__name__", type(item).__name__)
    return "metric" if name == "<lambda>" else str(name).lower()


def _accuracy_metric(task: Task, source: str, note: str = "") -> Metric:
    return Metric("accuracy", True, _accuracy(task), source, note)


def _wrapped_metric(item: Any, higher_is_better: bool, source: str) -> Metric:
    function, keywords = item._fn, dict(getattr(item, "_fn_kwargs", {}))

    def per_sample(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        outputs = outputs.astype(np.float32, copy=False)
        if np.ndim(targets) != np.ndim(outputs) and np.size(targets) == np.size(outputs):
            targets = np.reshape(targets, outputs.shape)  # (n,) against (n, 1) would broadcast
        values = np.asarray(function(targets, outputs, **keywords), dtype=np.float64)
        return np.asarray(values.reshape(len(outputs), -1).mean(axis=1))

    def keras(new_name: str) -> Any:
        return type(item).from_config({**item.get_config(), "name": new_name})

    return Metric(str(item.name), higher_is_better, per_sample, source, keras=keras)
