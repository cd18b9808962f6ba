"""`LearnedRanges`: what training for quantization has found out, for the quantizer behind it."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from optkit import _validate
from optkit.errors import ArgumentTypeError, PipelineError

__all__ = ["LearnedRanges"]

_BITS = (4, 8)


@dataclass(frozen=True)
class LearnedRanges:
    """Ranges of activations, and bits of weights, that a model was trained to live with.

    Quantization-aware training leaves them with the model (`Context.learn`); a quantizer that comes
    next finds them in `Context.learned` and need not measure them again. They belong to these
    weights: whatever changes the model afterwards drops them.

    Args:
        activations: By path of the layer, the lowest and the highest value that its output was
            rounded to in training; both finite, the lower one first.
        weight_bits: By path of the layer, the bits of its weights, 8 or 4. Layers that are not
            named were trained in float.
        notes: What else whoever uses them should tell the user.

    Raises:
        PipelineError: For a range that is none, or other numbers of bits.

    Example:
        >>> learned = LearnedRanges({"relu": (0.0, 6.0)}, {"conv": 8})
        >>> learned.activations["relu"], learned.weight_bits["conv"]
        ((0.0, 6.0), 8)
        >>> LearnedRanges.from_dict(learned.to_dict()) == learned
        True
    """

    activations: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges = {path: _range(path, ends) for path, ends in _items("activations", self)}
        bits = {path: _bits(path, count) for path, count in _items("weight_bits", self)}
        # It travels with every state behind the pass, and so must not change in anybody's hands.
        object.__setattr__(self, "activations", types.MappingProxyType(ranges))
        object.__setattr__(self, "weight_bits", types.MappingProxyType(bits))
        object.__setattr__(self, "notes", _validate.texts("notes", self.notes))

    def __str__(self) -> str:
        """In words, how much there is.

        >>> str(LearnedRanges({"relu": (0.0, 6.0)}, {"conv": 4, "scores": 8, "hidden": 8}))
        '1 range of activations, weights of 1 layer to 4 bits and of 2 layers to 8 bits'
        """
        counts = sorted(Counter(self.weight_bits.values()).items())
        bits = " and ".join(
            f"of {count} layer{'s' * (count != 1)} to {b} bits" for b, count in counts
        )
        found = len(self.activations)
        ranges = f"{found} range{'s' * (found != 1)} of activations"
        return f"{ranges}, weights {bits}" if bits else ranges

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "activations": {path: list(ends) for path, ends in self.activations.items()},
            "weight_bits": dict(self.weight_bits),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also after a round trip through JSON."""
        return cls(values["activations"], values["weight_bits"], tuple(values["notes"]))


def _items(name: str, learned: LearnedRanges) -> list[tuple[str, Any]]:
    values = getattr(learned, name)
    if not isinstance(values, Mapping):
        raise ArgumentTypeError(
            f"`{name}` must be a dict by path of the layer. Received: {values!r}."
        )
    return [(_validate.text(f"a key of {name}", path), value) for path, value in values.items()]


def _range(path: str, ends: Any) -> tuple[float, float]:
    name = f"activations[{path!r}]"
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise ArgumentTypeError(f"`{name}` must be a pair (low, high). Received: {ends!r}.")
    low, high = (_validate.number(name, end) for end in ends)
    if low > high:
        raise PipelineError(f"`{name}` must have its lower end first. Received: {ends!r}.")
    return low, high


def _bits(path: str, count: Any) -> int:
    found = _validate.integer(f"weight_bits[{path!r}]", count, minimum=1)
    if found not in _BITS:
        raise PipelineError(f"`weight_bits[{path!r}]` must be 8 or 4. Received: {count}.")
    return found
