"""What a model is for, inferred from its output, its loss and its targets; and the loss for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from optkit.errors import DataError, PipelineError
from optkit.models import compiled_metrics, final_activation, is_compiled, signature
from optkit.runtime import tf_keras

__all__ = [
    "Loss",
    "Task",
    "check_targets",
    "dense_targets",
    "describe_loss",
    "infer_loss",
    "infer_task",
    "infer_task_of_outputs",
]

Kind = Literal["multiclass", "binary", "multilabel", "regression"]

_CROSS_ENTROPIES = {
    "sparsecategoricalcrossentropy": "sparse",
    "categoricalcrossentropy": "categorical",
    "binarycrossentropy": "binary",
    "categoricalfocalcrossentropy": "categorical",
    "binaryfocalcrossentropy": "binary",
}


@dataclass(frozen=True)
class Task:
    """What is predicted, and how the targets and outputs say it.

    Attributes:
        kind: ``"multiclass"`` (one of several classes), ``"binary"`` (one probability),
            ``"multilabel"`` (several independent probabilities) or ``"regression"``.
        classes: Number of classes or labels (2 for binary); 0 for regression.
        sparse: Whether targets are class numbers; otherwise they have the shape of the output.
        from_logits: Whether the output is before softmax or sigmoid.
        outputs: Size of the last dimension of the output.
    """

    kind: Kind
    classes: int
    sparse: bool
    from_logits: bool
    outputs: int

    @property
    def is_classification(self) -> bool:
        """Whether classes or labels are predicted."""
        return self.kind != "regression"

    def describe(self) -> str:
        """A line for the report, for example ``"multiclass, 10 classes, sparse targets, logits"``."""
        if not self.is_classification:
            return f"regression, {self.outputs} value{'s' * (self.outputs != 1)}"
        noun = "labels" if self.kind == "multilabel" else "classes"
        parts = [self.kind, f"{self.classes} {noun}"]
        if self.kind == "multiclass":
            parts.append("class numbers" if self.sparse else "one-hot targets")
        parts.append("logits" if self.from_logits else "probabilities")
        return ", ".join(parts)


@dataclass(frozen=True)
class Loss:
    """A loss and where it came from.

    Attributes:
        function: A tf_keras loss instance, or a callable of ``(y_true, y_pred)``.
        source: ``"compiled model"``, ``"Pipeline(loss=…)"``, ``"inferred"`` or a pass.
        family: ``"sparse"``, ``"categorical"``, ``"binary"`` (the cross-entropies) or ``"other"``.
        from_logits: What the loss takes the model's output for; ``None`` where unknown.
        label_smoothing: Smoothing that the loss does by itself.
    """

    function: Any
    source: str
    family: str
    from_logits: bool | None
    label_smoothing: float = 0.0

    @property
    def name(self) -> str:
        """Readable name, for example ``"sparse_categorical_crossentropy (from logits)"``."""
        plain = getattr(self.function, "name", None) or getattr(
            self.function, "__name__", type(self.function).__name__
        )
        return f"{plain} (from logits)" if self.from_logits else str(plain)


def describe_loss(loss: Any, source: str) -> Loss:
    """Recognises a loss given as a name, a function or an object.

    Args:
        loss: What ``compile`` takes as ``loss``, for one output.
        source: Where it came from, in words, for messages and the report.

    Raises:
        PipelineError: If it is no loss that tf_keras can use.
    """
    keras = tf_keras()
    if isinstance(loss, dict | list | tuple):
        values = list(loss.values()) if isinstance(loss, dict) else list(loss)
        if len(values) != 1:
            raise PipelineError(
                f"The {source} has {len(values)} losses; optkit treats one output so far."
            )
        loss = values[0]
    keras3 = type(loss).__module__.partition(".")[0] == "keras"
    if keras3 or not (isinstance(loss, str) or callable(loss)):
        hint = "a Keras 3 object" if keras3 else type(loss).__name__
        raise PipelineError(
            f"The loss from the {source} must be the name of a tf_keras loss, a tf_keras loss "
            f"object, or a function of (y_true, y_pred). Received: {loss!r} ({hint})."
        )
    if isinstance(loss, str):
        try:
            function = keras.losses.get(loss)
        except ValueError as error:
            raise PipelineError(
                f"The loss {loss!r} from the {source} is unknown to tf_keras: {error}"
            ) from error
    else:
        function = loss
    name = getattr(function, "__name__", type(function).__name__)
    family = _CROSS_ENTROPIES.get(name.replace("_", "").lower(), "other")
    keywords = getattr(function, "_fn_kwargs", {})
    from_logits = bool(keywords.get("from_logits", False)) if family != "other" else None
    smoothing = keywords.get("label_smoothing", 0.0)
    return Loss(function, source, family, from_logits, float(smoothing or 0.0))


def infer_task(model: Any, targets: np.ndarray, loss: Any = None) -> Task:
    """What the model is for.

    The last activation and the targets decide: softmax means classes, sigmoid means labels, and
    whole-number targets with neither mean logits. A cross-entropy given as ``loss``, or that the
    model is compiled with, decides before both.

    Args:
        model: A built tf_keras model with one output.
        targets: Some targets, shape ``(n,)`` or ``(n, …)``.
        loss: A loss as ``compile`` takes it; ``None`` for the compiled one, if there is one.

    Raises:
        DataError: If the output does not fit the targets.
    """
    given: Loss | None = None
    if loss is not None:
        given = describe_loss(loss, "Pipeline(loss=…)")
    elif is_compiled(model):
        given = describe_loss(model.loss, "compiled model")
    shape = signature(model).outputs[0].shape
    return _infer(shape, final_activation(model), given, _counts_hits(model), targets)


def infer_task_of_outputs(outputs: np.ndarray, targets: np.ndarray, loss: Any = None) -> Task:
    """What a model is for of which only its outputs are known, such as a converted file.

    Rows of probabilities that add up to 1 are taken for those of a softmax. Values from 0 to 1 for
    targets of 0 and 1 are taken for those of sigmoids. Everything else follows as in `infer_task`.

    Args:
        outputs: Its outputs on some samples, shape ``(n, …)``.
        targets: Their targets, shape ``(n,)`` or ``(n, …)``.
        loss: A loss as ``compile`` takes it; ``None`` for none.

    Raises:
        DataError: If the output does not fit the targets.
    """
    given = describe_loss(loss, "argument `loss`") if loss is not None else None
    width = outputs.shape[-1] if outputs.ndim > 1 else 1
    activation = "linear"
    if outputs.size and outputs.min() >= 0 and outputs.max() <= 1:
        # A full-integer file rounds each probability to a step of 1/256, so sums are off by some.
        sums = outputs.sum(axis=-1) if width > 1 else np.zeros(1)
        if width > 1 and np.all(np.abs(sums - 1) <= 0.02 + width**0.5 / 256):
            activation = "softmax"
        elif np.asarray(targets).dtype.kind in "iufb" and _is_zero_one(np.asarray(targets)):
            activation = "sigmoid"
    return _infer((None, *outputs.shape[1:]), activation, given, False, targets)


def _infer(
    shape: tuple[int | None, ...],
    activation: str | None,
    given: Loss | None,
    counts_hits: bool,
    targets: np.ndarray,
) -> Task:
    outputs = int(shape[-1]) if len(shape) > 1 and shape[-1] is not None else 1
    family = given.family if given else None
    if given is not None and given.from_logits is not None:
        logits = given.from_logits
    else:
        logits = activation not in ("softmax", "sigmoid")

    targets = np.asarray(targets)
    if targets.dtype.kind in "OSU":
        raise DataError(
            "Targets must be numbers: class numbers, one-hot rows, or values to regress. Received: "
            f"dtype {targets.dtype}. Turn names into numbers with "
            "`sklearn.preprocessing.LabelEncoder`, and pass the names as `class_names`."
        )
    whole = targets.dtype.kind in "iub" or bool(
        np.all(np.isfinite(targets)) and np.all(targets == np.floor(targets))
    )
    same_shape = _fits(targets.shape, shape)
    sparse_shape = _fits(targets.shape, shape[:-1]) or _fits(targets.shape, (*shape[:-1], 1))

    def mismatch(reason: str) -> DataError:
        return DataError(
            f"The model's output does not fit the targets: {reason} Output: shape {shape}, last "
            f"activation {activation}. Targets: shape {targets.shape}, dtype {targets.dtype}. If "
            "they belong together by a loss of your own, pass it: `Pipeline(..., loss=…)`."
        )

    if family == "other":
        # A loss of the user's own says nothing; classes are only assumed where the output says so.
        if outputs > 1 and sparse_shape and not same_shape and whole:
            return Task("multiclass", outputs, True, logits, outputs)
        if activation == "softmax" and same_shape:
            return Task("multiclass", outputs, False, logits, outputs)
        if same_shape or (outputs == 1 and sparse_shape):
            if whole and _is_zero_one(targets) and (activation == "sigmoid" or counts_hits):
                if outputs > 1 and activation != "sigmoid" and np.all(targets.sum(axis=-1) == 1):
                    return Task("multiclass", outputs, False, logits, outputs)
                kind: Kind = "binary" if outputs == 1 else "multilabel"
                return Task(kind, max(2, outputs), False, logits, outputs)
            return Task("regression", 0, False, False, outputs)
        raise mismatch("they differ in shape.")

    if outputs == 1:
        if not (same_shape or sparse_shape):
            raise mismatch("the output is one value a sample.")
        zero_one = whole and _is_zero_one(targets)
        soft = bool(np.all((targets >= 0) & (targets <= 1)))
        if family == "binary" or activation == "sigmoid":
            if not (zero_one or soft):
                raise mismatch("one probability needs targets from 0 to 1.")
            return Task("binary", 2, False, logits, 1)
        if family in ("sparse", "categorical"):
            raise mismatch(f"{family} cross-entropy needs an output a class.")
        if zero_one and targets.dtype.kind in "iub":
            return Task("binary", 2, False, True, 1)
        if activation == "softmax":
            raise mismatch("softmax over one value is always 1; use sigmoid.")
        return Task("regression", 0, False, False, 1)

    wants_sparse = family == "sparse" or (family is None and not same_shape)
    if wants_sparse:
        if not sparse_shape or not whole:
            wanted = f"class numbers 0 to {outputs - 1}, or rows of {outputs} values"
            raise mismatch(f"expected {wanted}.")
        if activation == "sigmoid" and family is None:
            raise mismatch(f"{outputs} independent probabilities need rows of {outputs} targets.")
        _check_class_numbers(targets, outputs)
        return Task("multiclass", outputs, True, logits, outputs)
    if not same_shape:
        raise mismatch(f"expected rows of {outputs} values.")
    if family == "categorical":
        return Task("multiclass", outputs, False, logits, outputs)
    if family == "binary":
        return Task("multilabel", outputs, False, logits, outputs)
    if activation == "softmax":
        return Task("multiclass", outputs, False, logits, outputs)
    if activation == "sigmoid":
        return Task("multilabel", outputs, False, logits, outputs)
    if whole and _is_zero_one(targets):
        one_hot = bool(np.all(targets.sum(axis=-1) == 1))
        return Task("multiclass" if one_hot else "multilabel", outputs, False, True, outputs)
    return Task("regression", 0, False, False, outputs)


def _counts_hits(model: Any) -> bool:
    """Whether the model is compiled with an accuracy, and so classifies whatever its loss."""
    return any(
        "acc" in str(getattr(item, "name", None) or getattr(item, "__name__", item)).lower()
        for item in compiled_metrics(model)
    )


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(actual) == len(expected) and all(
        wanted is None or wanted == size
        for size, wanted in zip(actual[1:], expected[1:], strict=True)
    )


def _is_zero_one(targets: np.ndarray) -> bool:
    return bool(np.all((targets == 0) | (targets == 1)))


def _check_class_numbers(targets: np.ndarray, classes: int) -> None:
    low, high = targets.min(), targets.max()
    if low < 0 or high >= classes:
        raise DataError(
            f"Targets must be class numbers from 0 to {classes - 1}, for an output of {classes} "
            f"values. Received: numbers from {low:g} to {high:g}."
        )


def check_targets(task: Task, targets: np.ndarray, split: str) -> None:
    """Checks all targets of a split that came as an array.

    Raises:
        DataError: For a class number that the model has no output for, or a value that is not
            finite.
    """
    if not np.all(np.isfinite(targets)):
        raise DataError(f"The targets of `{split}` hold NaN or infinite values.")
    if task.kind == "multiclass" and task.sparse:
        try:
            _check_class_numbers(targets, task.classes)
        except DataError as error:
            raise DataError(f"In `{split}`: {error}") from None


def infer_loss(model: Any, task: Task, given: Any = None) -> Loss:
    """The loss to train with: the one given, else the compiled one, else the one for the task."""
    keras = tf_keras()
    if given is not None:
        loss = describe_loss(given, "Pipeline(loss=…)")
    elif is_compiled(model):
        loss = describe_loss(model.loss, "compiled model")
    else:
        if task.kind == "regression":
            function = keras.losses.MeanSquaredError()
        elif task.kind != "multiclass":
            function = keras.losses.BinaryCrossentropy(from_logits=task.from_logits)
        elif task.sparse:
            function = keras.losses.SparseCategoricalCrossentropy(from_logits=task.from_logits)
        else:
            function = keras.losses.CategoricalCrossentropy(from_logits=task.from_logits)
        loss = describe_loss(function, "inferred")
    return loss


def dense_targets(task: Task, loss: Loss) -> tuple[Task, Loss]:
    """The same task and loss with one-hot targets, which soft targets need.

    Raises:
        PipelineError: If the loss only takes class numbers and has no known counterpart.
    """
    if task.kind != "multiclass" or not task.sparse:
        return task, loss
    if loss.family != "sparse":
        raise PipelineError(
            f"Soft targets need one-hot rows, and the loss {loss.name!r} (from the {loss.source}) "
            "is given class numbers. Give the data one-hot targets, or use "
            "'sparse_categorical_crossentropy', which optkit knows how to widen."
        )
    function = tf_keras().losses.CategoricalCrossentropy(from_logits=bool(loss.from_logits))
    return replace(task, sparse=False), replace(loss, function=function, family="categorical")
