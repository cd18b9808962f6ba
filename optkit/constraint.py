"""`Constraint`: what a pass did to a weight and later passes must not undo."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from optkit.errors import OptkitError
from optkit.runtime import tensorflow

__all__ = ["Constraint", "KeepZeros", "constraints_from_arrays", "constraints_to_arrays"]


class Constraint(abc.ABC):
    """A condition on one weight variable.

    Subclasses that set ``name`` can be saved and restored.

    Attributes:
        name: Short name of the kind of constraint, unique among subclasses.
        path: Path of the variable, such as ``"conv2d/kernel"``.
    """

    name: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Constraint]]] = {}

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "name" in cls.__dict__:
            Constraint._kinds[cls.name] = cls

    def __init__(self, path: str):
        self.path = path

    @abc.abstractmethod
    def project(self, value: Any) -> Any:
        """The nearest value that keeps the condition; called in a graph after each training batch.

        Args:
            value: A tensor of the variable's shape.
        """

    @abc.abstractmethod
    def holds(self, value: np.ndarray) -> bool:
        """Whether a value keeps the condition."""

    @abc.abstractmethod
    def to_array(self) -> np.ndarray:
        """Everything needed to restore it, as one array."""

    @classmethod
    @abc.abstractmethod
    def from_array(cls, path: str, array: np.ndarray) -> Constraint:
        """Restores what `to_array` gave."""


class KeepZeros(Constraint):
    """Keeps pruned weights at zero.

    Args:
        path: Path of the variable.
        mask: True where the weight may be other than zero; of the variable's shape.

    Example:
        >>> import numpy as np
        >>> constraint = KeepZeros("dense/kernel", np.array([True, False]))
        >>> constraint.holds(np.array([0.5, 0.0])), constraint.holds(np.array([0.5, 0.1]))
        (True, False)
    """

    name = "keep_zeros"

    def __init__(self, path: str, mask: np.ndarray):
        super().__init__(path)
        self.mask = np.asarray(mask, dtype=bool)

    def project(self, value: Any) -> Any:
        """The value with its pruned entries set to zero."""
        return value * tensorflow().constant(self.mask, value.dtype)

    def holds(self, value: np.ndarray) -> bool:
        """Whether all pruned entries are exactly zero."""
        return value.shape == self.mask.shape and not np.any(value[~self.mask])

    def to_array(self) -> np.ndarray:
        """The mask."""
        return self.mask

    @classmethod
    def from_array(cls, path: str, array: np.ndarray) -> KeepZeros:
        """Restores it from its mask."""
        return cls(path, array)


def constraints_to_arrays(constraints: Iterable[Constraint]) -> dict[str, np.ndarray]:
    """Arrays by key, fit for ``numpy.savez``."""
    return {f"{item.name}:{item.path}": item.to_array() for item in constraints}


def constraints_from_arrays(arrays: dict[str, np.ndarray]) -> tuple[Constraint, ...]:
    """What `constraints_to_arrays` was given.

    Raises:
        OptkitError: For a kind of constraint whose class is not imported.
    """
    restored = []
    for key, array in arrays.items():
        name, _, path = key.partition(":")
        if name not in Constraint._kinds:
            raise OptkitError(
                f"Unknown constraint {name!r} on {path!r}: import the module that defines it first."
            )
        restored.append(Constraint._kinds[name].from_array(path, array))
    return tuple(restored)
