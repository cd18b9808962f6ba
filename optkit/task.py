"""What a model is for, inferred from its output, its loss and its targets; and the loss for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from optkit.errors import DataError, PipelineError
from optkit.models import (
    compiled_loss_weights,
    compiled_metrics,
    final_activation,
    is_compiled,
    output_names,
    signature,
)
from optkit.runtime import tensorflow, tf_keras
from optkit.translate import object_to_tf_keras

__all__ = [
    "Loss",
    "Task",
    "check_targets",
    "dense_targets",
    "describe_loss",
    "infer_loss",
    "infer_task",
    "infer_task_of_outputs",
    "loss_of_task",
    "one_hot_outputs",
    "replaced_loss",
    "several_losses",
    "stratified_by",
]

Kind = Literal["multiclass", "binary", "multilabel", "regression", "several"]
_GIVEN = "Pipeline(loss=…)"
_COMPILED = "compiled model"

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
            ``"multilabel"`` (several independent probabilities) or ``"regression"``; ``"several"``
            for a model with several outputs, whose tasks are the ``parts``.
        classes: Number of classes or labels (2 for binary); 0 for regression.
        sparse: Whether targets are class numbers; otherwise they have the shape of the output.
        from_logits: Whether the output is before softmax or sigmoid.
        outputs: Size of the last dimension of the output.
        parts: Of a model with several outputs, the task of each that has targets, by name; then
            targets and predictions are dicts by name, too. Empty for one output.
    """

    kind: Kind
    classes: int
    sparse: bool
    from_logits: bool
    outputs: int
    parts: Mapping[str, Task] = field(default_factory=dict)

    @property
    def is_classification(self) -> bool:
        """Whether classes or labels are predicted; of several outputs that is for each to say."""
        return self.kind not in ("regression", "several")

    @property
    def each(self) -> Mapping[str, Task]:
        """The task of each output by name; of the only output under ``""``."""
        return self.parts or {"": self}

    def describe(self) -> str:
        """A line for the report, for example ``"multiclass, 10 classes, sparse targets, logits"``."""
        if self.parts:
            each = "; ".join(f"{name}: {part.describe()}" for name, part in self.parts.items())
            return f"{len(self.parts)} outputs ({each})"
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
        function: A tf_keras loss instance, or a callable of ``(y_true, y_pred)``; of several
            outputs a dict of such by name.
        source: ``"compiled model"``, ``"Pipeline(loss=…)"``, ``"inferred"`` or a pass.
        family: ``"sparse"``, ``"categorical"``, ``"binary"`` (the cross-entropies) or ``"other"``;
            ``"several"`` for a model with several outputs.
        from_logits: What the loss takes the model's output for; ``None`` where unknown.
        label_smoothing: Smoothing that the loss does by itself.
        weight: What it is multiplied with; of one output among several, its share in their sum.
        parts: Of a model with several outputs, the loss of each that is trained, by name.
    """

    function: Any
    source: str
    family: str
    from_logits: bool | None
    label_smoothing: float = 0.0
    weight: float = 1.0
    parts: Mapping[str, Loss] = field(default_factory=dict)

    @property
    def each(self) -> Mapping[str, Loss]:
        """The loss of each output by name; of the only output under ``""``."""
        return self.parts or {"": self}

    @property
    def name(self) -> str:
        """Readable name, for example ``"sparse_categorical_crossentropy (from logits)"``."""
        if self.parts:
            return "; ".join(f"{name}: {part.name}" for name, part in self.parts.items())
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
                f"The {source} has {len(values)} losses, and the model has one output."
            )
        loss = values[0]
    if not (isinstance(loss, str) or callable(loss)):
        raise PipelineError(
            f"The loss from the {source} must be the name of a Keras loss, a Keras loss "
            f"object, or a function of (y_true, y_pred). Received: {loss!r} "
            f"({type(loss).__name__})."
        )
    loss = object_to_tf_keras(loss)
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


def _by_output(given: Any, names: tuple[str, ...], what: str, source: str) -> dict[str, Any]:
    """What ``compile`` takes for several outputs, by output; those without one are left out.

    Args:
        given: One for all, a list in the order of the outputs, or a dict by name.
        names: Names of the outputs.
        what: What it is, for messages, in the plural.
        source: Where it came from, for messages.
    """
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise PipelineError(
                f"The {what} of the {source} name unknown outputs: {unknown}. Outputs: {names}."
            )
        found = dict(given)
    elif isinstance(given, list | tuple):
        if len(given) != len(names):
            raise PipelineError(
                f"The {source} has {len(given)} {what}, and the model has {len(names)} outputs "
                f"({', '.join(names)}). Give one for all, one for each, or a dict by name."
            )
        found = dict(zip(names, given, strict=True))
    else:
        found = dict.fromkeys(names, given)
    return {name: found[name] for name in names if found.get(name) is not None}


def _losses(model: Any, given: Any) -> tuple[dict[str, Loss], bool]:
    """The losses by output (``""`` for the only one), and whether anybody chose them."""
    if given is not None:
        loss, source = given, _GIVEN
    elif is_compiled(model):
        loss, source = model.loss, _COMPILED
    else:
        return {}, False
    names = output_names(model)
    if len(names) == 1:
        if isinstance(loss, Mapping):
            loss = next(iter(_by_output(loss, names, "losses", source).values()), None)
        return {"": describe_loss(loss, source)}, True
    by_output = _by_output(loss, names, "losses", source)
    return {name: describe_loss(item, source) for name, item in by_output.items()}, True


def one_hot_outputs(model: Any, loss: Any = None) -> frozenset[str]:
    """The outputs (``""`` for the only one) whose loss takes one-hot rows and no class numbers.

    Args:
        model: A built tf_keras model.
        loss: A loss as ``compile`` takes it; ``None`` for the compiled one, if there is one.
    """
    losses, _ = _losses(model, loss)
    return frozenset(name for name, item in losses.items() if item.family == "categorical")


def infer_task(model: Any, targets: Any, loss: Any = None) -> Task:
    """What the model is for.

    The last activation and the targets decide: softmax means classes, sigmoid means labels, and
    whole-number targets with neither mean logits. A cross-entropy given as ``loss``, or that the
    model is compiled with, decides before both.

    Args:
        model: A built tf_keras model.
        targets: Some targets, shape ``(n,)`` or ``(n, …)``; for a model with several outputs a dict
            of such by output name.
        loss: A loss as ``compile`` takes it; ``None`` for the compiled one, if there is one.

    Raises:
        DataError: If an output does not fit its targets.
    """
    given, _ = _losses(model, loss)
    outputs = signature(model).outputs
    if not isinstance(targets, Mapping):
        known = given.get("")
        activation = final_activation(model)
        return _infer(outputs[0].shape, activation, known, _counts_hits(model), targets)
    parts = {}
    for place, info in enumerate(outputs):
        if info.name not in targets:
            continue
        activation = final_activation(model, place)
        hits = _counts_hits(model, info.name)
        with_loss = given.get(info.name)
        with _told_of(info.name):
            parts[info.name] = _infer(info.shape, activation, with_loss, hits, targets[info.name])
    return _several(parts)


def _several(parts: dict[str, Task]) -> Task:
    return Task("several", 0, False, False, 0, parts)


@contextlib.contextmanager
def _told_of(output: str) -> Iterator[None]:
    """Names the output in what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"Output {output!r}: {error}") from None


def infer_task_of_outputs(outputs: Any, targets: Any, loss: Any = None) -> Task:
    """What a model is for of which only its outputs are known, such as a converted file.

    Rows of probabilities that add up to 1 are taken for those of a softmax. Values from 0 to 1 for
    targets of 0 and 1 are taken for those of sigmoids. Everything else follows as in `infer_task`.

    Args:
        outputs: Its outputs on some samples, shape ``(n, …)``; of several outputs a dict by name.
        targets: Their targets, shape ``(n,)`` or ``(n, …)``; of several outputs a dict by name.
        loss: A loss as ``compile`` takes it; ``None`` for none.

    Raises:
        DataError: If the output does not fit the targets.
    """
    source = "argument `loss`"
    if isinstance(targets, Mapping):
        losses = {} if loss is None else _by_output(loss, tuple(outputs), "losses", source)
        parts = {}
        for name, wanted in targets.items():
            with _told_of(name):
                parts[name] = infer_task_of_outputs(outputs[name], wanted, losses.get(name))
        return _several(parts)
    given = describe_loss(loss, source) if loss is not None else None
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
            f"dtype {targets.dtype}. Give names as `Data(class_names=…)`, in the order of the "
            "model's output; they are turned into numbers then."
        )
    whole = targets.dtype.kind in "iub" or bool(
        np.all(np.isfinite(targets)) and np.all(targets == np.floor(targets))
    )
    same_shape = _fits(targets.shape, shape)
    soft = _is_soft(targets)
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
        if family == "binary" or activation == "sigmoid":
            if not soft:
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
    entropy = family in ("categorical", "binary")
    if not soft and (entropy or (family is None and activation in ("softmax", "sigmoid"))):
        raise mismatch("rows of probabilities need targets from 0 to 1.")
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


def _counts_hits(model: Any, output: str | None = None) -> bool:
    """Whether the model is compiled with an accuracy, and so classifies whatever its loss."""
    return any(
        "acc" in str(getattr(item, "name", None) or getattr(item, "__name__", item)).lower()
        for weighted in (False, True)
        for item in compiled_metrics(model, output, weighted=weighted)
    )


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(actual) == len(expected) and all(
        wanted is None or wanted == size
        for size, wanted in zip(actual[1:], expected[1:], strict=True)
    )


def _is_soft(targets: np.ndarray) -> bool:
    """Whether they can be probabilities, but for rounding."""
    slack = 1e-6
    return bool(np.all((targets >= -slack) & (targets <= 1 + slack)))


def _is_zero_one(targets: np.ndarray) -> bool:
    return bool(np.all((targets == 0) | (targets == 1)))


def _check_class_numbers(targets: np.ndarray, classes: int) -> None:
    low, high = targets.min(), targets.max()
    if low < 0 or high >= classes:
        raise DataError(
            f"Targets must be class numbers from 0 to {classes - 1}, for an output of {classes} "
            f"values. Received: numbers from {low:g} to {high:g}."
        )


def check_targets(task: Task, targets: Any, split: str) -> None:
    """Checks all targets of a split that came as an array, or as a dict by output name.

    Raises:
        DataError: For a class number that the model has no output for, or a value that is not
            finite.
    """
    if task.parts:
        if list(targets) != list(task.parts):
            raise DataError(
                f"`{split}` has targets for {list(targets)}, and the first split has some for "
                f"{list(task.parts)}. Give all splits targets for the same outputs."
            )
        for name, part in task.parts.items():
            with _told_of(name):
                check_targets(part, targets[name], split)
        return
    if not np.all(np.isfinite(targets)):
        raise DataError(f"The targets of `{split}` hold NaN or infinite values.")
    if task.kind == "multiclass" and task.sparse:
        try:
            _check_class_numbers(targets, task.classes)
        except DataError as error:
            raise DataError(f"In `{split}`: {error}") from None


def infer_loss(model: Any, task: Task, given: Any = None) -> Loss:
    """The loss to train with: the one given, else the compiled one, else the one for the task.

    Of a model with several outputs, each that has targets and a loss is trained; compiled
    ``loss_weights`` count whichever loss it is.

    Raises:
        PipelineError: If no output that has targets has a loss.
    """
    losses, chosen = _losses(model, given)
    names = output_names(model)
    weights = compiled_loss_weights(model)
    _require_numbers(weights)
    by_output = {} if weights is None else _by_output(weights, names, "loss weights", _COMPILED)
    if not task.parts:
        loss = losses[""] if chosen else _loss_for(task)
        return replace(loss, weight=float(by_output.get(names[0], 1.0)))
    if not chosen:
        losses = {name: _loss_for(part) for name, part in task.parts.items()}
    parts = {
        name: replace(losses[name], weight=float(by_output.get(name, 1.0)))
        for name in task.parts
        if name in losses
    }
    if not parts:
        raise PipelineError(
            f"The data have targets for {list(task.parts)}, and the losses are those of "
            f"{list(losses)}. Give targets for an output with a loss, or `Pipeline(loss={{…}})`."
        )
    return several_losses(parts)


def _require_numbers(weights: Any) -> None:
    """Refuses what is easily given for ``loss_weights``: the third argument of Keras 3's compile."""
    for value in tensorflow().nest.flatten(weights):
        if value is not None and not isinstance(value, int | float | np.number):
            raise PipelineError(
                f"The model was compiled with `loss_weights={weights!r}`, which are not numbers. "
                "Metrics are given by name: `compile(…, metrics=[…])`."
            )


def loss_of_task(task: Task) -> Loss:
    """The loss that fits a task of which nothing else is known."""
    if not task.parts:
        return _loss_for(task)
    return several_losses({name: _loss_for(part) for name, part in task.parts.items()})


def several_losses(parts: dict[str, Loss]) -> Loss:
    """The losses of several outputs as one."""
    sources = list(dict.fromkeys(part.source for part in parts.values()))
    functions = {name: part.function for name, part in parts.items()}
    return Loss(functions, ", ".join(sources), "several", None, parts=parts)


def _loss_for(task: Task) -> Loss:
    keras = tf_keras()
    if task.kind == "regression":
        function = keras.losses.MeanSquaredError()
    elif task.kind != "multiclass":
        function = keras.losses.BinaryCrossentropy(from_logits=task.from_logits)
    elif task.sparse:
        function = keras.losses.SparseCategoricalCrossentropy(from_logits=task.from_logits)
    else:
        function = keras.losses.CategoricalCrossentropy(from_logits=task.from_logits)
    return describe_loss(function, "inferred")


def replaced_loss(given: Any, task: Task, loss: Loss, source: str) -> Loss:
    """Another loss in the place of that of a run: for each of its outputs, with their weights.

    Args:
        given: A loss as ``compile`` takes it; ``None`` for none, so that the run's stays.
        task: What the model is for.
        loss: The loss that it replaces.
        source: Where it came from, in words.
    """
    if given is None:
        return loss
    if not task.parts:
        return replace(describe_loss(given, source), weight=loss.weight)
    by_output = _by_output(given, tuple(task.parts), "losses", source)
    return several_losses(
        {
            name: replace(
                describe_loss(item, source),
                weight=loss.parts[name].weight if name in loss.parts else 1.0,
            )
            for name, item in by_output.items()
        }
    )


def stratified_by(task: Task) -> bool | str:
    """What a cut of a split keeps the shares of classes of, as `Split.cut` takes it.

    Returns:
        Of a model with several outputs the name of the first with classes; of one with a single
        output whether it has classes.
    """
    found = [name for name, part in task.each.items() if part.kind in ("multiclass", "binary")]
    return found[0] if found and task.parts else bool(found)


def dense_targets(task: Task, loss: Loss) -> tuple[Task, Loss]:
    """The same task and loss with one-hot targets, which soft targets need.

    Of several outputs each that predicts classes and is trained gets some.

    Raises:
        PipelineError: If the loss only takes class numbers and has no known counterpart.
    """
    if task.parts:
        tasks, losses = dict(task.parts), dict(loss.parts)
        for name in loss.parts:
            try:
                tasks[name], losses[name] = dense_targets(tasks[name], losses[name])
            except PipelineError as error:
                raise PipelineError(f"Output {name!r}: {error}") from None
        return replace(task, parts=tasks), several_losses(losses)
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
