"""A split whose samples are in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from optkit.data.inputs import read_inputs
from optkit.data.split import (
    Split,
    batch_length,
    content_of,
    first_leaf,
    leaves_of,
    map_leaves,
)
from optkit.data.targets import Targets, read_weights
from optkit.errors import DataError
from optkit.models import TensorInfo
from optkit.runtime import tensorflow

__all__ = ["ArraySplit"]


class ArraySplit(Split):
    """Arrays in memory, seen through an index, so that cutting and drawing copies nothing.

    Attributes:
        x: All inputs, an array or a dict by input name.
        y: All targets, an array or a dict by output name.
        weights: All weights, an array or a dict by output name; ``None`` without.
        index: The samples of this split among all; ``None`` for all of them.
    """

    def __init__(
        self,
        name: str,
        x: Any,
        y: Any,
        inputs: tuple[TensorInfo, ...],
        *,
        batch_size: int,
        weights: Any = None,
        index: np.ndarray | None = None,
    ):
        self.name, self.inputs, self.batch_size = name, inputs, batch_size
        self.x, self.y, self.weights, self.index = x, y, weights, index
        self.weighted = weights is not None
        self.samples = self._length = batch_length(x) if index is None else len(index)
        self.steps = -(-self._length // batch_size)
        self._fingerprint: str | None = None

    @classmethod
    def bind(
        cls,
        name: str,
        parts: tuple[Any, Any, Any],
        inputs: tuple[TensorInfo, ...],
        *,
        targets: Targets,
        batch_size: int,
        notes: list[str],
    ) -> ArraySplit:
        """Checks shapes and values, and orders the arrays by the model's inputs and outputs.

        Args:
            name: Name of the split.
            parts: Inputs, targets and weights as they came; ``None`` for what is not given.
            inputs: The model's inputs.
            targets: How its targets are read.
            batch_size: Samples a batch.
            notes: Is told what was done to the data.

        Raises:
            DataError: If they do not fit.
        """
        x, y, weights = parts
        x = read_inputs(name, x, inputs, notes)
        length = batch_length(x)
        labelled = y is not None
        y = targets.from_arrays(name, y) if labelled else np.zeros(length, np.int8)
        counts = {length, *map(len, leaves_of(y))}
        if len(counts) > 1:
            counted = " and ".join(map(str, sorted(counts)))
            raise DataError(f"`{name}` has inputs and targets of different lengths: {counted}.")
        if weights is not None:
            weights = read_weights(name, weights, length, targets)
        split = cls(name, x, y, inputs, batch_size=batch_size, weights=weights)
        split.labelled = labelled
        return split

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the content and of the choice of samples."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            if isinstance(self.y, dict):
                digest.update(repr(list(self.y)).encode())
            leaves = [*leaves_of(self.x), *leaves_of(self.y)]
            if self.weights is not None:
                by_output = list(self.weights) if isinstance(self.weights, dict) else ""
                digest.update(f"weights {by_output}".encode())
                leaves += leaves_of(self.weights)
            for leaf in [*leaves, *([] if self.index is None else [self.index])]:
                digest.update(f"{leaf.dtype}{leaf.shape}".encode())
                if leaf.dtype.kind == "O":
                    digest.update(content_of(leaf))
                else:
                    digest.update(np.ascontiguousarray(leaf).data if leaf.size else b"")
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _rows(self, rows: Any) -> tuple[Any, Any, Any]:
        rows = rows if self.index is None else self.index[rows]
        x, y = (map_leaves(lambda leaf: leaf[rows], part) for part in (self.x, self.y))
        if self.weights is None:
            return x, y, None
        return x, y, map_leaves(lambda leaf: leaf[rows], self.weights)

    def iterate_weighted(self) -> Iterator[tuple[Any, Any, Any]]:
        """NumPy batches ``(x, y, weights)`` of one pass, in order; ``None`` without weights."""
        for start in range(0, self._length, self.batch_size):
            yield self._rows(slice(start, start + self.batch_size))

    def _tensors(self, weighted: bool) -> tuple[Any, ...]:
        parts = (self.x, self.y, self.weights) if weighted and self.weighted else (self.x, self.y)
        return tuple(map_leaves(tensorflow().convert_to_tensor, part) for part in parts)

    def batches(self, *, weighted: bool = False) -> Any:
        """A ``tf.data.Dataset`` of the batches of one pass, in order."""
        tf = tensorflow()
        if self.index is None:  # slicing starts in a fraction of the time that a map takes
            tensors = self._tensors(weighted)
            return tf.data.Dataset.from_tensor_slices(tensors).batch(self.batch_size)
        return self._gathered(tf.data.Dataset.range(self.samples).batch(self.batch_size), weighted)

    def training_batches(self, seed: int, *, weighted: bool = False, first_epoch: int = 0) -> Any:
        """An endless ``tf.data.Dataset`` of batches, shuffled anew each epoch; see `Split`."""
        tf = tensorflow()

        def epoch(number: Any) -> Any:
            # Stateless: the order of an epoch depends on the seed and its number alone.
            order = tf.random.experimental.stateless_shuffle(
                tf.range(self.samples, dtype=tf.int64),
                seed=tf.stack([tf.cast(seed, tf.int64), number]),
            )
            return tf.data.Dataset.from_tensor_slices(order).batch(self.batch_size)

        return self._gathered(tf.data.Dataset.counter(first_epoch).flat_map(epoch), weighted)

    def _gathered(self, rows: Any, weighted: bool) -> Any:
        tf = tensorflow()
        parts = self._tensors(weighted)
        index = None if self.index is None else tf.convert_to_tensor(self.index)

        def gather(positions: Any) -> Any:
            chosen = positions if index is None else tf.gather(index, positions)
            return tuple(map_leaves(lambda leaf: tf.gather(leaf, chosen), part) for part in parts)

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

    def cut(self, share: float, seed: int, stratify: bool | str) -> tuple[Split, Split, str]:
        """A random cut, stratified by class where the classes allow it."""
        from sklearn.model_selection import train_test_split

        rows = np.arange(self._length) if self.index is None else self.index
        if isinstance(stratify, str) and isinstance(self.y, dict):
            labels = self.y[stratify][rows]
        else:
            labels = first_leaf(self.y)[rows]
        if labels.ndim > 1:
            labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[..., 0]
        how, groups = "random", None
        if stratify and labels.ndim == 1:
            _, counts = np.unique(labels, return_counts=True)
            held = math.ceil(share * len(rows))  # as scikit-learn counts
            if counts.min() >= 2 and len(counts) <= min(held, len(rows) - held):
                how, groups = "stratified by class", labels
                if isinstance(self.y, dict):
                    how += f" of {stratify}"
        if len(rows) < 2:
            raise DataError(f"`{self.name}` has too few samples to cut a validation split from.")
        kept, held_out = train_test_split(
            rows, test_size=share, random_state=seed, stratify=groups, shuffle=True
        )
        return self._view(self.name, kept), self._view("validation", held_out), how

    def drawn(self, rows: np.ndarray, extra: tuple[Any, Any, Any] | None = None) -> ArraySplit:
        """Some of the samples, as often as asked, and further ones.

        Args:
            rows: Positions among the samples, each as often as it shall be there.
            extra: Inputs, targets and weights of samples that are not among them, in the form of
                those that are; ``None`` for none. With them all samples are copied.
        """
        split = self._view(self.name, rows if self.index is None else self.index[rows])
        if extra is None:
            return split

        def joined(parts: Any, further: Any) -> Any:
            if isinstance(parts, dict):
                return {name: joined(leaf, further[name]) for name, leaf in parts.items()}
            return np.concatenate([parts[split.index], further])

        weights = None if self.weights is None else joined(self.weights, extra[2])
        return ArraySplit(
            self.name,
            joined(self.x, extra[0]),
            joined(self.y, extra[1]),
            self.inputs,
            batch_size=self.batch_size,
            weights=weights,
        )

    def _view(self, name: str, index: np.ndarray) -> ArraySplit:
        return ArraySplit(
            name,
            self.x,
            self.y,
            self.inputs,
            batch_size=self.batch_size,
            weights=self.weights,
            index=np.sort(index),
        )

    def reweighted(
        self,
        by_arrays: Callable[[Any, Any], Any],
        by_tensors: Callable[[Any, Any], Any],
        reason: str,
    ) -> ArraySplit:
        """The same samples with other weights."""
        return ArraySplit(
            self.name,
            self.x,
            self.y,
            self.inputs,
            batch_size=self.batch_size,
            weights=by_arrays(self.y, self.weights),
            index=self.index,
        )
