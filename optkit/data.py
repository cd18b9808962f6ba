"""The data of a run: the splits, in whatever form they came, read batch by batch.

`Data` is what users make. Bound to a model's inputs it becomes `BoundData`, whose splits all read
the same way, and never hold in memory what did not come in memory.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit import _validate
from optkit.errors import ArgumentTypeError, DataError
from optkit.models import Signature, TensorInfo
from optkit.runtime import derive_seed, tensorflow

__all__ = ["SPLITS", "ArraySplit", "BoundData", "Data", "Split", "StreamSplit"]

SPLITS = ("train", "validation", "test", "calibration")
_VALIDATION_SHARE = 0.2


class Data:
    """The data that models are trained, chosen and judged on.

    Each split is one of

    - ``(x, y)``: arrays, ``x`` of shape ``(n, …)`` or, for a model with several inputs, a dict (by
      input name) or a list of such arrays;
    - a ``tf.data.Dataset`` of ``(x, y)``, batched or not (which of the two is settled against the
      model's input);
    - a Keras ``Sequence`` of batches;
    - a function without arguments that returns a fresh iterator over ``(x, y)``, batches or single
      samples, together with ``steps``.

    Decisions (early stopping, choosing) are made on ``validation``, and ``test`` is only ever used
    to report. A missing ``validation`` is cut from ``train`` (a fifth, stratified by class where
    every class has at least two samples) as soon as a pass needs one; a missing ``calibration`` is
    drawn from ``train`` (of a stream, its first samples). The report says so.

    Args:
        train: Split to train on.
        validation: Split to decide on.
        test: Split to report on; without it the report shows validation figures and says so.
        calibration: Split that shows converters the range of activations; targets are not used,
            and arrays may come without them.
        batch_size: Samples a batch, for arrays and for datasets of single samples.
        class_names: Names of the classes in the order of their numbers, for the report.
        steps: Batches an epoch of what has no length of its own (generators, infinite or repeated
            datasets): one number for all splits, or a dict by split.
        fingerprint: For streams, a text that changes whenever their content does: one for all
            splits, or a dict by split. Arrays are fingerprinted by their content.
        seed: Seed of the cut and of the draws, in ``[0, 2**31)``.

    Raises:
        DataError: For an empty split, inputs and targets of different lengths, no split at all.
        PipelineError: For a bad argument; `ArgumentTypeError` for one of the wrong type.

    Example:
        >>> import numpy as np
        >>> import optkit as ok
        >>> x, y = np.zeros((100, 8, 8, 1), "float32"), np.arange(100) % 10
        >>> ok.Data(train=(x, y), test=(x[:20], y[:20]))
        Data(train=100 samples, test=20 samples, batch_size=32, seed=0)
    """

    def __init__(
        self,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        calibration: Any = None,
        *,
        batch_size: int = 32,
        class_names: list[str] | tuple[str, ...] | None = None,
        steps: int | dict[str, int] | None = None,
        fingerprint: str | dict[str, str] | None = None,
        seed: int = 0,
    ):
        self.train, self.validation = train, validation
        self.test, self.calibration = test, calibration
        self.batch_size = _validate.integer("batch_size", batch_size, minimum=1)
        self.class_names = _validate.optional(_validate.texts, "class_names", class_names)
        self.steps = _by_split(
            "steps", steps, lambda name, v: _validate.integer(name, v, minimum=1)
        )
        self.fingerprint = _by_split("fingerprint", fingerprint, _validate.text)
        self.seed = _validate.integer("seed", seed, minimum=0, maximum=2**31 - 1)
        given = {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}
        if not given:
            raise DataError("Data needs at least one split: `train`, `validation`, `test`, …")
        for name, value in given.items():
            _check_form(name, value)

    def __repr__(self) -> str:
        parts = []
        for name in SPLITS:
            value = getattr(self, name)
            if value is None:
                continue
            if _is_arrays(value, name):
                parts.append(f"{name}={_array_length(name, value)} samples")
            else:
                parts.append(f"{name}=<{type(value).__name__}>")
        return f"Data({', '.join(parts)}, batch_size={self.batch_size}, seed={self.seed})"

    def bind(self, signature: Signature) -> BoundData:
        """Settles every split against a model's inputs.

        Args:
            signature: The inputs that the splits must fit.

        Raises:
            DataError: For data that do not fit the inputs, that are not finite, or whose length
                cannot be known.
        """
        bound = BoundData(
            batch_size=self.batch_size, seed=self.seed, class_names=self.class_names or ()
        )
        for name in SPLITS:
            value = getattr(self, name)
            if value is not None:
                setattr(bound, name, self._bind_split(name, value, signature))
        return bound

    def _bind_split(self, name: str, value: Any, signature: Signature) -> Split:
        steps, fingerprint = self.steps.get(name), self.fingerprint.get(name)
        if _is_arrays(value, name):
            if steps is not None and isinstance(self.steps, _Explicit):
                raise DataError(f"`{name}` is arrays, whose length is known; it takes no `steps`.")
            return ArraySplit.bind(name, value, signature, self.batch_size)
        return StreamSplit.bind(
            name, value, signature, self.batch_size, steps=steps, fingerprint=fingerprint
        )


class _Explicit(dict[str, Any]):
    """Settings that the user gave split by split."""


def _by_split(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(SPLITS))
        if unknown:
            raise DataError(f"`{name}` names unknown splits: {unknown}. Splits: {list(SPLITS)}.")
        return _Explicit((key, check(f"{name}[{key!r}]", item)) for key, item in value.items())
    return dict.fromkeys(SPLITS, check(name, value))


def _has_shape(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_array_like(value: Any) -> bool:
    return _has_shape(value) or isinstance(value, list | tuple) or hasattr(value, "to_numpy")


def _is_arrays(value: Any, split: str) -> bool:
    """Whether a split is in memory: ``(x, y)``, or ``x`` alone for calibration."""
    if isinstance(value, tuple):
        return True
    return split == "calibration" and (_is_array_like(value) or isinstance(value, Mapping))


def _check_form(name: str, value: Any) -> None:
    if _is_arrays(value, name):
        _array_length(name, value)
        return
    is_stream = (
        callable(value)
        or hasattr(value, "element_spec")
        or (hasattr(value, "__getitem__") and hasattr(value, "__len__") and not _has_shape(value))
    )
    if not is_stream or isinstance(value, list | Mapping | str):
        raise ArgumentTypeError(
            f"`{name}` must be (x, y), a tf.data.Dataset, a Keras Sequence, or a function that "
            f"returns an iterator. Received: {type(value).__name__}."
        )


def _split_pair(name: str, value: Any) -> tuple[Any, Any]:
    if name == "calibration" and not (isinstance(value, tuple) and len(value) == 2):
        return value, None
    if len(value) != 2:
        raise DataError(
            f"`{name}` must be a pair (x, y). Received: a tuple of {len(value)}. Sample weights "
            "are not supported."
        )
    return value[0], value[1]


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        return list(x.values())
    if isinstance(x, list | tuple) and x and all(_has_shape(item) for item in x):
        return list(x)
    return [x]


def _array_length(name: str, value: Any) -> int:
    x, y = _split_pair(name, value)
    lengths = {len(leaf) for leaf in _leaves(x)}
    if isinstance(x, list | tuple) and len(lengths) != 1:
        lengths = {len(x)}  # a plain list of samples
    if y is not None:
        several_inputs = len(_leaves(x)) > 1 and isinstance(x, list | tuple)
        if several_inputs and len(y) == len(x) and len(y) not in lengths:
            lengths = {len(x)}  # a list of samples, each an array
        if len(lengths) != 1 or len(y) not in lengths:
            counts = ", ".join(str(length) for length in sorted(lengths))
            raise DataError(
                f"`{name}` has inputs and targets of different lengths: {counts} and {len(y)}."
            )
        length = len(y)
    else:
        length = min(lengths)
    if length == 0:
        raise DataError(f"`{name}` is empty.")
    return length


@dataclass
class BoundData:
    """The splits, settled against a model's inputs, with what was done to get them.

    Attributes:
        train, validation, test, calibration: The splits, or ``None``.
        batch_size: Samples a batch.
        seed: Seed of the cut and the draws.
        class_names: Names of the classes, or ``()``.
        notes: What the report must say of the data, for example that validation was cut from train.
    """

    batch_size: int
    seed: int
    class_names: tuple[str, ...] = ()
    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None
    calibration: Split | None = None
    notes: list[str] = field(default_factory=list)

    def require_validation(self, stratify: bool) -> None:
        """Cuts ``validation`` from ``train`` where it is missing.

        Args:
            stratify: Whether the targets are classes whose shares should be kept.
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
            for name in SPLITS
            if (split := getattr(self, name)) is not None
        }


class Split(abc.ABC):
    """One split: batches of ``(x, y)``, as often as asked.

    Attributes:
        name: ``"train"``, ``"validation"``, ``"test"`` or ``"calibration"``.
        inputs: The model's inputs that it fits.
        steps: Batches in one pass.
        samples: Samples in one pass; ``None`` for a stream whose last batch was not looked at.
        batch_size: Samples a batch.
        fingerprint: Changes with the content; ``None`` where that cannot be known.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    steps: int
    samples: int | None
    batch_size: int
    fingerprint: str | None

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """Changes with the content and with how it is cut into batches; ``None`` if not known."""
        return None if self.fingerprint is None else (self.fingerprint, self.steps, self.batch_size)

    @abc.abstractmethod
    def iterate(self) -> Iterator[tuple[Any, np.ndarray]]:
        """NumPy batches of one pass, in order."""

    @abc.abstractmethod
    def batches(self) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order."""

    @abc.abstractmethod
    def training_batches(self, seed: int) -> Any:
        """An endless ``tf.data.Dataset`` of batches, ``steps`` of them an epoch.

        What came as arrays or as a Sequence is shuffled anew each epoch; a ``tf.data.Dataset`` or
        a generator comes in the order that its maker chose.
        """

    @abc.abstractmethod
    def cut(self, share: float, seed: int, stratify: bool) -> tuple[Split, Split, str]:
        """Two splits without common samples, and in words how they were told apart."""

    def single_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """The inputs of up to ``count`` samples, one at a time, shape ``(1, …)``."""
        left = count
        for x, _ in self.iterate():
            size = len(first_leaf(x))
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
        for x, y in self.iterate():
            leaf = first_leaf(x)
            low, high = min(low, float(leaf.min())), max(high, float(leaf.max()))
            seen += len(y)
            if seen >= samples:
                break
        return low, high

    def targets(self, count: int) -> np.ndarray:
        """The targets of the first samples, at least ``count`` if there are so many."""
        found: list[np.ndarray] = []
        for _, y in self.iterate():
            found.append(y)
            if sum(len(part) for part in found) >= count:
                break
        return np.concatenate(found)

    def head(self, count: int) -> tuple[Any, np.ndarray]:
        """The first samples, at most ``count``; fewer where later batches have other shapes."""
        xs: list[Any] = []
        ys: list[np.ndarray] = []
        seen = 0
        for x, y in self.iterate():
            if xs and first_leaf(x).shape[1:] != first_leaf(xs[0]).shape[1:]:
                break
            xs.append(x)
            ys.append(y)
            seen += len(y)
            if seen >= count:
                break
        x = join_leaves(xs)
        return map_leaves(lambda leaf: leaf[:count], x), np.concatenate(ys)[:count]


def first_leaf(x: Any) -> Any:
    """The first array of a nested input."""
    while isinstance(x, dict | list | tuple):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    return x


def map_leaves(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to every array of a nested input."""
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


def _sample_fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
    )


def _no_fit(split: str, info: TensorInfo, shape: Any) -> DataError:
    hint = ""
    if len(shape) == len(info.shape) - 1 and info.shape[-1] == 1:
        hint = " Add the last dimension: `x[..., None]`."
    return DataError(
        f"`{split}` does not fit the model's input {info.name!r}: expected shape {info.shape}, "
        f"received {tuple(shape)}.{hint}"
    )


def _check_finite(split: str, what: str, values: np.ndarray) -> None:
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


class ArraySplit(Split):
    """Arrays in memory, seen through an index, so that cutting and drawing copies nothing."""

    def __init__(
        self,
        name: str,
        x: Any,
        y: np.ndarray,
        inputs: tuple[TensorInfo, ...],
        *,
        batch_size: int,
        index: np.ndarray | None = None,
    ):
        self.name, self.inputs, self.batch_size = name, inputs, batch_size
        self.x, self.y, self.index = x, y, index
        self.samples = self._length = len(y) if index is None else len(index)
        self.steps = -(-self._length // batch_size)
        self._fingerprint: str | None = None

    @classmethod
    def bind(cls, name: str, value: Any, signature: Signature, batch_size: int) -> ArraySplit:
        """Checks shapes and values, and orders the arrays by the model's inputs."""
        x, y = _split_pair(name, value)
        inputs = signature.inputs
        if len(inputs) > 1 or isinstance(x, Mapping):
            x = _order_inputs(name, x, inputs)
        else:
            (only,) = (
                x if isinstance(x, list | tuple) and len(x) == 1 and _has_shape(x[0]) else (x,)
            )
            if isinstance(only, list | tuple) and len({np.shape(item) for item in only}) > 1:
                raise DataError(f"The inputs of `{name}` are samples of different shapes.")
            x = _as_array(only)
        for leaf, info in zip(x.values() if isinstance(x, dict) else [x], inputs, strict=True):
            if not _sample_fits(leaf.shape, (None, *info.shape[1:])):
                raise _no_fit(name, info, leaf.shape)
            if leaf.dtype.kind == "O" or (leaf.dtype.kind in "SU") != (info.dtype == "string"):
                raise DataError(
                    f"The inputs of `{name}` have dtype {leaf.dtype}; the model's input "
                    f"{info.name!r} is {info.dtype}."
                )
            _check_finite(name, "inputs", leaf)
        length = len(first_leaf(x))
        targets = np.zeros(length, np.int8) if y is None else _as_array(y)
        _check_finite(name, "targets", targets)
        return cls(name, x, targets, inputs, batch_size=batch_size)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the content and of the choice of samples."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            leaves = list(self.x.values()) if isinstance(self.x, dict) else [self.x]
            for leaf in [*leaves, self.y, *([] if self.index is None else [self.index])]:
                digest.update(f"{leaf.dtype}{leaf.shape}".encode())
                digest.update(np.ascontiguousarray(leaf).data if leaf.size else b"")
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _rows(self, rows: Any) -> tuple[Any, np.ndarray]:
        rows = rows if self.index is None else self.index[rows]
        return map_leaves(lambda leaf: leaf[rows], self.x), self.y[rows]

    def iterate(self) -> Iterator[tuple[Any, np.ndarray]]:
        """NumPy batches of one pass, in order."""
        for start in range(0, self._length, self.batch_size):
            yield self._rows(slice(start, start + self.batch_size))

    def batches(self) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order."""
        tf = tensorflow()
        if self.index is None:  # slicing starts in a fraction of the time that a map takes
            tensors = map_leaves(tf.convert_to_tensor, self.x), tf.convert_to_tensor(self.y)
            return tf.data.Dataset.from_tensor_slices(tensors).batch(self.batch_size)
        return self._gathered(tf.data.Dataset.range(self.samples).batch(self.batch_size))

    def training_batches(self, seed: int) -> Any:
        """An endless ``tf.data.Dataset`` of batches, shuffled anew each epoch."""
        tf = tensorflow()

        def epoch(number: Any) -> Any:
            # Stateless: the order of an epoch depends on the seed and its number alone.
            order = tf.random.experimental.stateless_shuffle(
                tf.range(self.samples, dtype=tf.int64),
                seed=tf.stack([tf.cast(seed, tf.int64), number]),
            )
            return tf.data.Dataset.from_tensor_slices(order).batch(self.batch_size)

        return self._gathered(tf.data.Dataset.counter().flat_map(epoch))

    def _gathered(self, rows: Any) -> Any:
        tf = tensorflow()
        x, y = map_leaves(tf.convert_to_tensor, self.x), tf.convert_to_tensor(self.y)
        index = None if self.index is None else tf.convert_to_tensor(self.index)

        def gather(positions: Any) -> Any:
            chosen = positions if index is None else tf.gather(index, positions)
            return map_leaves(lambda leaf: tf.gather(leaf, chosen), x), tf.gather(y, chosen)

        return rows.map(gather)  # too little work to hand to other threads

    def extent(self, samples: int) -> tuple[float, float]:
        """Smallest and largest input value of all samples."""
        leaf = first_leaf(self.x)
        chosen = leaf if self.index is None else leaf[self.index]
        return float(chosen.min()), float(chosen.max())

    def single_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """The inputs of up to ``count`` samples, drawn without repeats."""
        total = self._length
        rows = np.arange(total)
        if count < total:
            rows = np.sort(np.random.default_rng(seed).choice(total, size=count, replace=False))
        for row in rows:
            yield self._rows(np.array([row]))[0]

    def cut(self, share: float, seed: int, stratify: bool) -> tuple[Split, Split, str]:
        """A random cut, stratified by class where the classes allow it."""
        from sklearn.model_selection import train_test_split

        rows = np.arange(self._length) if self.index is None else self.index
        labels = self.y[rows]
        if labels.ndim > 1:
            labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[..., 0]
        how, groups = "random", None
        if stratify and labels.ndim == 1:
            _, counts = np.unique(labels, return_counts=True)
            held = round(share * len(rows))
            if counts.min() >= 2 and len(counts) <= min(held, len(rows) - held):
                how, groups = "stratified by class", labels
        if len(rows) < 2:
            raise DataError(f"`{self.name}` has too few samples to cut a validation split from.")
        kept, held_out = train_test_split(
            rows, test_size=share, random_state=seed, stratify=groups, shuffle=True
        )
        return self._view(self.name, kept), self._view("validation", held_out), how

    def _view(self, name: str, index: np.ndarray) -> ArraySplit:
        return ArraySplit(
            name, self.x, self.y, self.inputs, batch_size=self.batch_size, index=np.sort(index)
        )


def _as_array(value: Any) -> np.ndarray:
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)


def _order_inputs(name: str, x: Any, inputs: tuple[TensorInfo, ...]) -> dict[str, np.ndarray]:
    names = [info.name for info in inputs]
    if isinstance(x, Mapping):
        if sorted(x) != sorted(names):
            raise DataError(
                f"The inputs of `{name}` are named {sorted(x)}; the model's are {sorted(names)}."
            )
        return {key: _as_array(x[key]) for key in names}
    if not isinstance(x, list | tuple) or len(x) != len(inputs):
        count = len(x) if isinstance(x, list | tuple) else 1
        raise DataError(
            f"The model has {len(inputs)} inputs ({', '.join(names)}); `{name}` gives {count}."
        )
    return {key: _as_array(value) for key, value in zip(names, x, strict=True)}


class StreamSplit(Split):
    """A dataset, Sequence or generator: read anew for every pass, never held in memory."""

    def __init__(
        self,
        name: str,
        inputs: tuple[TensorInfo, ...],
        read: Callable[[int | None], Any],
        *,
        steps: int,
        samples: int | None,
        batch_size: int,
        fingerprint: str | None,
    ):
        self.name, self.inputs, self.batch_size = name, inputs, batch_size
        self.steps, self.samples, self.fingerprint = steps, samples, fingerprint
        self._read = read
        self._first: int | None = None  # samples of the first batch; the stream's maker decides

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """Changes with the content and with how it is cut into batches; ``None`` if not known."""
        found = super().identity
        return None if found is None else (*found, self._first, str(self.batches().element_spec))

    @classmethod
    def bind(
        cls,
        name: str,
        value: Any,
        signature: Signature,
        batch_size: int,
        *,
        steps: int | None,
        fingerprint: str | None,
    ) -> StreamSplit:
        """Settles whether it is batched, and how many batches a pass has."""
        tf = tensorflow()
        inputs = signature.inputs
        read, length = _reader(name, value, inputs)
        dataset = read(None)
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            raise DataError(
                f"`{name}` must give pairs (x, y). Received elements: {spec}. Sample weights are "
                "not supported."
            )
        leaves = tf.nest.flatten(spec[0])
        if len(leaves) != len(inputs):
            raise DataError(
                f"The model has {len(inputs)} inputs; `{name}` gives {len(leaves)} a sample."
            )
        if isinstance(spec[0], Mapping) and sorted(spec[0]) != sorted(i.name for i in inputs):
            raise DataError(
                f"The inputs of `{name}` are named {sorted(spec[0])}; the model's are "
                f"{sorted(info.name for info in inputs)}."
            )
        ordered = (
            [spec[0][info.name] for info in inputs] if isinstance(spec[0], Mapping) else leaves
        )
        batched = cls._is_batched(name, ordered, inputs)
        names = [info.name for info in inputs]

        def batches(seed: int | None) -> Any:
            elements = read(seed)
            if not isinstance(spec[0], Mapping) and len(inputs) > 1:
                # By name from here on: a converted file may have another order than the model.
                elements = elements.map(lambda x, y: (dict(zip(names, x, strict=True)), y))
            return elements if batched else elements.batch(batch_size)

        if length is None:
            counted = int(tf.data.experimental.cardinality(batches(None)).numpy())
            if counted == tf.data.INFINITE_CARDINALITY and steps is None:
                raise DataError(
                    f"`{name}` is an infinite tf.data.Dataset. Say how many batches make one "
                    "pass: `Data(..., steps=…)`."
                )
            if counted == tf.data.UNKNOWN_CARDINALITY and steps is None:
                if callable(value) and not hasattr(value, "element_spec"):
                    raise DataError(
                        f"`{name}` is a generator, whose length cannot be known. Say how many "
                        "batches make one pass: `Data(..., steps=…)`."
                    )
                counted = int(batches(None).reduce(np.int64(0), lambda n, _: n + 1).numpy())
            length = counted
        if length == 0:
            raise DataError(f"`{name}` is empty.")
        total = steps if steps is not None else length
        if length > 0:
            total = min(total, length)
        split = cls(
            name,
            inputs,
            batches,
            steps=total,
            samples=None,
            batch_size=batch_size,
            fingerprint=fingerprint,
        )
        split._check_first()
        return split

    @staticmethod
    def _is_batched(name: str, specs: list[Any], inputs: tuple[TensorInfo, ...]) -> bool:
        if any(spec.shape.rank is None for spec in specs):
            raise DataError(
                f"`{name}` does not say the shapes of its elements. Set them: "
                "`dataset.map(lambda x, y: (tf.ensure_shape(x, …), tf.ensure_shape(y, …)))`."
            )
        shapes = [tuple(spec.shape) for spec in specs]
        wanted = [info.shape for info in inputs]
        pairs = list(zip(shapes, wanted, strict=True))
        if all(_sample_fits(shape[1:], w[1:]) and len(shape) == len(w) for shape, w in pairs):
            return True
        if all(_sample_fits(shape, w[1:]) for shape, w in pairs):
            return False
        bad = next(i for i, (s, w) in enumerate(pairs) if not _sample_fits(s[1:], w[1:]))
        raise _no_fit(name, inputs[bad], shapes[bad])

    def _check_first(self) -> None:
        for x, y in self.iterate():
            if len(y) == 0:
                raise DataError(f"The first batch of `{self.name}` is empty.")
            for leaf in x.values() if isinstance(x, dict) else _leaves(x):
                _check_finite(self.name, "inputs", leaf)
            _check_finite(self.name, "targets", y)
            self._first = len(y)
            return
        raise DataError(f"`{self.name}` is empty.")

    def iterate(self) -> Iterator[tuple[Any, np.ndarray]]:
        """NumPy batches of one pass, in order."""
        batches = self.batches().as_numpy_iterator()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(f"Reading `{self.name}` failed: {error}") from error
            yield batch

    def batches(self) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order."""
        return self._read(None).take(self.steps)

    def training_batches(self, seed: int) -> Any:
        """An endless ``tf.data.Dataset`` of batches; only Sequences are shuffled here."""
        return self._read(seed).repeat()

    def cut(self, share: float, seed: int, stratify: bool) -> tuple[Split, Split, str]:
        """A cut by the content of each sample, so that it holds in whatever order they come."""
        tf = tensorflow()
        buckets = 10_000
        key = [derive_seed(seed, 0), derive_seed(seed, 1)]

        def held_out(x: Any, y: Any) -> Any:
            parts = [tf.io.serialize_tensor(leaf) for leaf in [*tf.nest.flatten(x), y]]
            bucket = tf.strings.to_hash_bucket_strong(tf.strings.join(parts), buckets, key)
            return bucket < int(share * buckets)

        def part(name: str, wanted: bool) -> StreamSplit:
            def read(order: int | None) -> Any:
                # `take` before the filter: a pass over an endless stream must end.
                samples = self._read(order).take(self.steps).unbatch()
                chosen = samples.filter(lambda x, y: tf.equal(held_out(x, y), wanted))
                return chosen.batch(self.batch_size)

            steps = int(read(None).reduce(np.int64(0), lambda n, _: n + 1).numpy())
            if steps == 0:
                raise DataError(
                    f"`{self.name}` has too few different samples to cut a validation split from."
                )
            return StreamSplit(
                name,
                self.inputs,
                read,
                steps=steps,
                samples=None,
                batch_size=self.batch_size,
                fingerprint=self.fingerprint,
            )

        return part(self.name, False), part("validation", True), "by a hash of each sample"


def _reader(
    name: str, value: Any, inputs: tuple[TensorInfo, ...]
) -> tuple[Callable[[int | None], Any], int | None]:
    """A function from an order (a seed, or None for as it is) to a dataset, and its known length."""
    tf = tensorflow()
    if hasattr(value, "element_spec"):
        return lambda order: value, None
    if callable(value):
        first = _first_element(name, iter(_call(name, value)))
        specs = _element_spec(first, inputs)
        return (
            lambda order: tf.data.Dataset.from_generator(
                lambda: map(_as_pair, value()), output_signature=specs
            ),
            None,
        )
    length = len(value)
    if length == 0:
        raise DataError(f"`{name}` is empty.")
    specs = _element_spec(_first_element(name, iter([value[0]])), inputs)

    def read(order: int | None) -> Any:
        epochs = itertools.count()

        def items() -> Iterator[Any]:
            indices = np.arange(length)
            if order is not None:
                # A new order each epoch, made here: `on_epoch_end` would change the user's object.
                np.random.default_rng(derive_seed(order, next(epochs))).shuffle(indices)
            for i in indices:
                yield _as_pair(value[int(i)])

        return tf.data.Dataset.from_generator(items, output_signature=specs)

    return read, length


def _call(name: str, function: Callable[[], Any]) -> Any:
    try:
        result = function()
    except TypeError as error:
        raise DataError(
            f"`{name}` must be a function without arguments that returns a fresh iterator: {error}"
        ) from error
    if not hasattr(result, "__iter__"):
        raise DataError(
            f"`{name}` must return an iterator over (x, y). It returned: {type(result).__name__}."
        )
    return result


def _as_pair(item: Any) -> Any:
    x, y = item
    return (tuple(x) if isinstance(x, list) else x), y


def _first_element(name: str, iterator: Iterator[Any]) -> Any:
    try:
        item = next(iterator)
    except StopIteration:
        raise DataError(f"`{name}` is empty.") from None
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"`{name}` must give pairs (x, y). Received: {type(item).__name__}"
            + (f" of {len(item)}." if hasattr(item, "__len__") else ".")
        )
    return _as_pair(item)


def _element_spec(element: Any, inputs: tuple[TensorInfo, ...]) -> Any:
    """The spec of every element of a stream, from its first one and what the model leaves open."""
    tf = tensorflow()
    x, y = element
    named = {info.name: info for info in inputs}
    infos = [named.get(key) for key in sorted(x)] if isinstance(x, Mapping) else list(inputs)
    leaves = tf.nest.flatten(x)
    batched = bool(infos and infos[0] and np.ndim(leaves[0]) == len(infos[0].shape))

    def spec(leaf: Any, wanted: tuple[int | None, ...] | None) -> Any:
        array = np.asarray(leaf)
        shape: list[int | None] = list(array.shape)
        if wanted is not None and len(wanted) == len(shape):
            shape = [None if w is None else size for size, w in zip(shape, wanted, strict=True)]
        if batched and shape:
            shape[0] = None
        dtype = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
        return tf.TensorSpec(shape, dtype)

    def expected(i: int) -> tuple[int | None, ...] | None:
        info = infos[i] if i < len(infos) else None
        if info is None:
            return None
        return info.shape if batched else info.shape[1:]

    specs = [spec(leaf, expected(i)) for i, leaf in enumerate(leaves)]
    return tf.nest.pack_sequence_as(x, specs), spec(y, None)
