"""Checks of arguments, with messages that name the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optkit.errors import ArgumentTypeError, PipelineError

__all__ = ["boolean", "integer", "number", "one_of", "optional", "path", "text", "texts"]


def _type_error(name: str, expected: str, value: object) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"`{name}` must be {expected}. Received: {value!r} (of type {type(value).__name__})."
    )


def integer(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> int:
    """A whole number in ``[minimum, maximum]``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _type_error(name, "a whole number", value)
    whole = int(value)
    if whole < minimum or (maximum is not None and whole > maximum):
        limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise PipelineError(f"`{name}` must be {limits}. Received: {value}.")
    return whole


def number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: str = "",
) -> float:
    """A finite number in an interval; ``exclusive`` ("min", "max", "min max") opens its ends."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _type_error(name, "a number", value)
    real = float(value)
    low_open, high_open = "min" in exclusive, "max" in exclusive
    too_low = real <= minimum if low_open else real < minimum
    too_high = real >= maximum if high_open else real > maximum
    if not math.isfinite(real) or too_low or too_high:
        # No end that is infinite belongs to it.
        left = "(" if low_open or math.isinf(minimum) else "["
        right = ")" if high_open or math.isinf(maximum) else "]"
        interval = f"{left}{minimum:g}, {maximum:g}{right}"
        raise PipelineError(f"`{name}` must be a number in {interval}. Received: {value}.")
    return real


def boolean(name: str, value: Any) -> bool:
    """``True`` or ``False``."""
    if not isinstance(value, bool):
        raise _type_error(name, "True or False", value)
    return value


def text(name: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise _type_error(name, "a string", value)
    if not value:
        raise PipelineError(f"`{name}` must not be an empty string.")
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Several strings, none of them empty; one lone string is taken for a mistake."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _type_error(name, "a list of strings", value)
    return tuple(text(f"{name}[{i}]", item) for i, item in enumerate(value))


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise PipelineError(f"`{name}` must be one of {listed}. Received: {value!r}.")
    return value


def path(name: str, value: Any) -> Path:
    """A path, made absolute: the process may change its folder later."""
    if not isinstance(value, str | os.PathLike):
        raise _type_error(name, "a path", value)
    return Path(value).absolute()


def optional(check: Any, name: str, value: Any, **limits: Any) -> Any:
    """``None``, or what ``check`` accepts."""
    return None if value is None else check(name, value, **limits)
