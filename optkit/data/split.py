"""What all splits have in common, and the splits of a run together."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit.errors import DataError
from optkit.models import TensorInfo
from optkit.runtime import derive_seed

__all__ = [
    "SPLITS",
    "BoundData",
    "ClassNames",
    "Split",
    "batch_length",
    "check_finite",
    "content_of",
    "first_leaf",
    "join_leaves",
    "leaves_of",
    "map_leaves",
    "names_of",
    "sample_fits",
]

SPLITS = ("train", "validation", "test", "calibration")
_VALIDATION_SHARE = 0.2

#: Names of the classes of the one output, or by output.
ClassNames = tuple[str, ...] | dict[str, tuple[str, ...]]


def names_of(class_names: ClassNames, output: str) -> tuple[str, ...]:
    """The names of the classes of an output, ``()`` where there are none."""
    return class_names.get(output, ()) if isinstance(class_names, dict) else class_names


@dataclass
class BoundData:
    """The splits, settled against a model's inputs and outputs, with what was done to get them.

    Attributes:
        train, validation, test, calibration: The splits, or ``None``.
        batch_size: Samples a batch.
        seed: Seed of the cut and the draws.
        class_names: Names of the classes, or ``()``; of a model with several outputs a dict by
            output.
        notes: What the report must say of the data, for example that validation was cut from train.
        class_weight: How much the samples of a class count in training, by output (``""`` of a
            model with one) and class number.
    """

    batch_size: int
    seed: int
    class_names: ClassNames = ()
    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None
    calibration: Split | None = None
    notes: list[str] = field(default_factory=list)
    class_weight: dict[str, dict[int, float]] = field(default_factory=dict)

    def names_of(self, output: str = "") -> tuple[str, ...]:
        """The names of the classes of an output, ``()`` where there are none."""
        return names_of(self.class_names, output)

    def require_validation(self, stratify: bool | str) -> None:
        """Cuts ``validation`` from ``train`` where it is missing.

        Args:
            stratify: Whether the targets are classes whose shares should be kept; of several
                outputs, the name of one whose targets are.
        """
        if self.validation is not None:
            return
        if self.train is None:
            raise DataError("There is no `validation` split and no `train` split to cut it from.")
        self.train, self.validation, how = self.train.cut(
            _VALIDATION_SHARE, derive_seed("validation", self.seed), stratify
        )
        self.notes.append(
            f"validation: cut from train ({_VALIDATION_SHARE:.0%}, {how}), as none was given"
        )

    def calibration_split(self) -> Split:
        """The calibration split, or the training split it is drawn from."""
        chosen = self.calibration or self.train or self.validation
        if chosen is None:
            raise DataError("Calibration needs a `calibration` or a `train` split.")
        return chosen

    @property
    def report_split(self) -> Split | None:
        """The split that the report's figures are of: ``test``, else ``validation``."""
        return self.test or self.validation

    def identities(self) -> dict[str, tuple[Any, ...] | None]:
        """`Split.identity` by split."""
        return {
            name: split.identity for name in SPLITS if (split := getattr(self, name)) is not None
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Sizes and fingerprints by split, for the report."""
        return {
            name: {
                "samples": split.samples,
                "steps": split.steps,
                "fingerprint": split.fingerprint,
            }
            | ({"weighted": True} if split.weighted else {})
            for name in SPLITS
            if (split := getattr(self, name)) is not None
        }


class Split(abc.ABC):
    """One split: batches of ``(x, y)``, as often as asked.

    ``x`` is an array, or for several inputs a dict of arrays by input name; ``y`` is an array, or
    for a model with several outputs a dict of arrays by output name.

    Attributes:
        name: ``"train"``, ``"validation"``, ``"test"`` or ``"calibration"``.
        inputs: The model's inputs that it fits.
        steps: Batches in one pass.
        samples: Samples in one pass; ``None`` for a stream whose last batch was not looked at.
        batch_size: Samples a batch.
        fingerprint: Changes with the content; ``None`` where that cannot be known.
        weighted: Whether its samples have weights.
        labelled: Whether its samples came with targets; those of calibration need none.
        notes: What the row of a training on it must say.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    steps: int
    samples: int | None
    batch_size: int
    fingerprint: str | None
    weighted: bool = False
    labelled: bool = True
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """Changes with the content and with how it is cut into batches; ``None`` if not known."""
        return None if self.fingerprint is None else (self.fingerprint, self.steps, self.batch_size)

    @abc.abstractmethod
    def iterate_weighted(self) -> Iterator[tuple[Any, Any, Any]]:
        """NumPy batches ``(x, y, weights)`` of one pass, in order; ``None`` without weights."""

    def iterate(self) -> Iterator[tuple[Any, Any]]:
        """NumPy batches of one pass, in order."""
        for x, y, _ in self.iterate_weighted():
            yield x, y

    @abc.abstractmethod
    def batches(self, *, weighted: bool = False) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order.

        Args:
            weighted: Whether to give ``(x, y, weights)`` where samples have weights.
        """

    @abc.abstractmethod
    def training_batches(self, seed: int, *, weighted: bool = False, first_epoch: int = 0) -> Any:
        """An endless ``tf.data.Dataset`` of batches, ``steps`` of them an epoch.

        What came as arrays or as a Sequence is shuffled anew each epoch; a ``tf.data.Dataset`` or
        a generator comes in the order that its maker chose.

        Args:
            seed: Seed of the order.
            weighted: Whether to give ``(x, y, weights)`` where samples have weights.
            first_epoch: Epochs to leave out at the beginning, for a training that goes on.
        """

    @abc.abstractmethod
    def cut(self, share: float, seed: int, stratify: bool | str) -> tuple[Split, Split, str]:
        """Two splits without common samples, and in words how they were told apart."""

    @abc.abstractmethod
    def reweighted(
        self,
        by_arrays: Callable[[Any, Any], Any],
        by_tensors: Callable[[Any, Any], Any],
        reason: str,
    ) -> Split:
        """The same samples with other weights.

        Args:
            by_arrays: Function of targets and weights (or ``None``), NumPy arrays or dicts of
                such, to the new weights.
            by_tensors: The same of tensors, to run in a ``tf.data`` map.
            reason: What the weights depend on besides, for the fingerprint.
        """

    def single_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """The inputs of up to ``count`` samples, one at a time, shape ``(1, …)``."""
        left = count
        for x, _ in self.iterate():
            size = batch_length(x)
            for i in range(min(size, left)):
                yield map_leaves(operator.itemgetter(slice(i, i + 1)), x)
            left -= size
            if left <= 0:
                return

    def extent(self, samples: int) -> tuple[float, float]:
        """Smallest and largest input value, of at least so many samples, batch by batch.

        Only for one input of numbers.
        """
        low, high, seen = np.inf, -np.inf, 0
        for x, _ in self.iterate():
            leaf = first_leaf(x)
            low, high = min(low, float(leaf.min())), max(high, float(leaf.max()))
            seen += len(leaf)
            if seen >= samples:
                break
        return low, high

    def targets(self, count: int) -> Any:
        """The targets of the first samples, at least ``count`` if there are so many.

        Batches whose targets have another shape (longer sequences, say) are left out.
        """
        found: list[Any] = []
        seen = 0
        for _, y in self.iterate():
            if found and _shapes(y) != _shapes(found[0]):
                continue
            found.append(y)
            seen += batch_length(y)
            if seen >= count:
                break
        return join_leaves(found)

    def head(self, count: int) -> tuple[Any, Any]:
        """The first samples, at most ``count``; fewer where later batches have other shapes."""
        xs: list[Any] = []
        ys: list[Any] = []
        seen = 0
        for x, y in self.iterate():
            if xs and (_shapes(x) != _shapes(xs[0]) or _shapes(y) != _shapes(ys[0])):
                break
            xs.append(x)
            ys.append(y)
            seen += batch_length(y)
            if seen >= count:
                break
        x, y = join_leaves(xs), join_leaves(ys)
        return map_leaves(lambda leaf: leaf[:count], x), map_leaves(lambda leaf: leaf[:count], y)


def leaves_of(x: Any) -> list[Any]:
    """The arrays of a nested batch, in order."""
    if isinstance(x, dict):
        return list(x.values())
    return list(x) if isinstance(x, list | tuple) else [x]


def _shapes(x: Any) -> list[tuple[int, ...]]:
    return [leaf.shape[1:] for leaf in leaves_of(x)]


def first_leaf(x: Any) -> Any:
    """The first array of a nested batch."""
    while isinstance(x, dict | list | tuple):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    return x


def batch_length(x: Any) -> int:
    """The number of samples in a nested batch of inputs or targets."""
    return len(first_leaf(x))


def map_leaves(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to every array of a nested batch."""
    if isinstance(x, dict):
        return {key: function(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return tuple(function(value) for value in x)
    return function(x)


def join_leaves(parts: list[Any]) -> Any:
    """Concatenates nested batches along the batch dimension."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return tuple(np.concatenate(items) for items in zip(*parts, strict=True))
    return np.concatenate(parts)


def content_of(array: np.ndarray) -> bytes:
    """The content of an array as bytes, the same in every process.

    Of texts, their letters: NumPy holds them as wide as the longest of the array.
    """
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).tobytes()
    parts = []
    for item in array.ravel():
        letters = item if isinstance(item, bytes) else str(item).encode()
        parts += [len(letters).to_bytes(8, "little"), letters]
    return b"".join(parts)


def sample_fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape may be another one, where ``None`` stands for any size."""
    return len(shape) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
    )


def check_finite(split: str, what: str, values: np.ndarray) -> None:
    """Refuses NaN and infinity.

    Raises:
        DataError: With the place where the first one was seen.
    """
    if values.dtype.kind not in "fc":
        return
    rows = max(1, 2**22 // max(1, values[:1].size))  # 16 MiB of float32 at a time
    for start in range(0, len(values), rows):
        if not np.all(np.isfinite(values[start : start + rows])):
            raise DataError(
                f"The {what} of `{split}` hold NaN or infinite values (first seen between samples "
                f"{start} and {min(start + rows, len(values)) - 1}). Clean them first: a model "
                "that sees one NaN in training is lost."
            )
