"""Optimizers of a training: which is taken, a fresh copy of it, its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optkit import _validate
from optkit.errors import PipelineError
from optkit.models import is_compiled
from optkit.runtime import tf_keras
from optkit.translate import object_to_tf_keras

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "check_compiled_optimizer",
    "check_learning_rate",
    "check_optimizer",
    "final_learning_rate",
    "follows_schedule",
    "initial_learning_rate",
    "make_optimizer",
    "peak_learning_rate",
]

DEFAULT_LEARNING_RATE = 1e-3
#: By the variable's own name, also that of its copy on a replica: its layer's may be anything.
_NOT_DECAYED = r"(^|/)[^/]*(bias|gamma|beta)(/replica_\d+)?(:\d+)?$"


def check_learning_rate(name: str, value: Any, *, optional: bool = False) -> None:
    """Checks a learning-rate argument: a number above 0, or ``"auto"``, which finds one.

    Args:
        name: Name of the argument.
        value: What was given for it.
        optional: Whether it may be ``None``, for the rate of the compiled optimizer.

    Raises:
        PipelineError: If it is another word, or a number that is not above 0.
        ArgumentTypeError: If it is neither a number nor a word.

    Example:
        >>> check_learning_rate("learning_rate", 1e-3)
        >>> check_learning_rate("learning_rate", "auto")
    """
    if isinstance(value, str):
        if value != "auto":
            raise PipelineError(
                f"`{name}` must be a number above 0 or 'auto'. Received: {value!r}."
            )
    elif value is not None or not optional:
        _validate.number(name, value, minimum=0, exclusive="min")


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


def make_optimizer(choices: Iterable[Any], learning_rate: Any, weight_decay: float | None) -> Any:
    """A fresh optimizer of the first kind given, with the settings that it came with.

    Args:
        choices: Optimizers, or names of some, of which the first that is not ``None`` counts.
        learning_rate: A number or a Keras schedule; ``None`` for the optimizer's own.
        weight_decay: Decay of kernels; ``None`` for the optimizer's own.
    """
    keras = tf_keras()
    chosen = _first(choices)
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
        optimizer.exclude_from_weight_decay(var_names=[_NOT_DECAYED])
    return optimizer


def _first(choices: Iterable[Any]) -> Any:
    return next((choice for choice in choices if choice is not None), "adamw")


def peak_learning_rate(choices: Iterable[Any], learning_rate: float | None) -> float:
    """The rate that goes with a course that is not the optimizer's own.

    Args:
        choices: As `make_optimizer` takes them.
        learning_rate: What the pass asks for; ``None`` for the optimizer's own, of one with a
            schedule the one it begins with.

    Raises:
        PipelineError: If that is 0, as where the optimizer's schedule begins with a warm-up.
    """
    if learning_rate is not None:
        return learning_rate
    chosen = _first(choices)
    if isinstance(chosen, str):
        return DEFAULT_LEARNING_RATE
    rate = initial_learning_rate(object_to_tf_keras(chosen))
    if not rate > 0:
        raise PipelineError(
            "The learning rate is to follow a course of its own here, which needs a peak, and the "
            f"optimizer's own schedule begins at {rate:g}. Give the training pass a `learning_rate`."
        )
    return rate


def check_compiled_optimizer(model: Any) -> None:
    """Refuses a compiled optimizer that could not be copied for training.

    Raises:
        PipelineError: With what to do.
    """
    if is_compiled(model):
        make_optimizer((model.optimizer,), None, None)


def initial_learning_rate(optimizer: Any) -> float:
    """The learning rate of an optimizer; of a schedule, the one it begins with."""
    rate = _rate_of(optimizer)
    if _is_schedule(rate):
        rate = rate(0)
    return _number(rate)


def final_learning_rate(optimizer: Any) -> float:
    """The learning rate that the last update of a tf_keras optimizer was made with."""
    rate = _rate_of(optimizer)
    if _is_schedule(rate):
        rate = rate(max(0, int(_number(optimizer.iterations)) - 1))
    return _number(rate)


def follows_schedule(optimizer: Any) -> bool:
    """Whether the learning rate of an optimizer, of Keras 2 or 3, is a schedule."""
    return _is_schedule(_rate_of(object_to_tf_keras(optimizer)))


def _rate_of(optimizer: Any) -> Any:
    """The rate of a tf_keras optimizer, or its schedule."""
    plain = getattr(optimizer, "inner_optimizer", optimizer)  # inside a loss-scaling one
    rate = getattr(plain, "_learning_rate", None)
    return plain.learning_rate if rate is None else rate  # a legacy one has no other


def _number(value: Any) -> float:
    """Of a number or a variable, also one that several devices have."""
    return float(value.numpy() if hasattr(value, "numpy") else value)


def _is_schedule(rate: Any) -> bool:
    return isinstance(rate, tf_keras().optimizers.schedules.LearningRateSchedule)
