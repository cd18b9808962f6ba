"""What was seen of the channels of activations on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.errors import DataError, first_line
from optkit.runtime import tensorflow, tf_keras

__all__ = ["Batches", "Seen", "look"]

#: Inputs of a model in its order, batch by batch; what gives them may be called more than once.
Batches = Iterable[Any] | Callable[[], Iterable[Any]]

_TOGETHER = 32  # samples that are run at once, and
_TOGETHER_BYTES = 2**23  # bytes of inputs


@dataclass(frozen=True)
class Seen:
    """What was seen of a tensor.

    Attributes:
        low: The lowest value of each channel.
        high: The highest value of each channel.
        mean: The mean of each channel.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray

    def moved(self, shift: np.ndarray) -> Seen:
        """What would have been seen with a summand for each channel."""
        return Seen(self.low + shift, self.high + shift, self.mean + shift)


def look(model: Any, tensors: Mapping[int, Any], batches: Batches) -> dict[int, Seen]:
    """Runs a model and looks at the channels of some of its tensors.

    Args:
        model: A functional or Sequential tf_keras model.
        tensors: Tensors of its graph, with channels on the last axis, by any key.
        batches: Inputs of the model in its order, in batches.

    Raises:
        DataError: If there is no sample, one does not fit the model, or what comes out is no number.
    """
    if not tensors:
        return {}
    tf = tensorflow()
    probe = tf_keras().Model(model.inputs, list(tensors.values()))

    @tf.function(input_signature=[[tensor.type_spec for tensor in model.inputs]])  # type: ignore[untyped-decorator]
    def measured(leaves: Any) -> Any:
        found = []
        for values in tf.nest.flatten(probe(leaves, training=False)):
            axes = list(range(len(values.shape) - 1))
            # In parts: a mean of a million values in 32 bits has an error of its own.
            mean = tf.reduce_mean(tf.cast(tf.reduce_mean(values, axes[1:]), tf.float64), 0)
            found.append((tf.reduce_min(values, axes), tf.reduce_max(values, axes), mean))
        return found

    low: list[np.ndarray] = []
    high: list[np.ndarray] = []
    mean: list[np.ndarray] = []
    count = 0
    for leaves in _gathered(batches, model.inputs):
        try:
            fed = zip(leaves, model.inputs, strict=True)
            parts = measured([tf.cast(leaf, tensor.dtype) for leaf, tensor in fed])
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise DataError(
                f"The model does not run on a batch of shapes {[leaf.shape for leaf in leaves]}. "
                f"Expected {[tuple(tensor.shape) for tensor in model.inputs]}, the shapes of its "
                f"inputs. {first_line(error)}"
            ) from error
        fresh = [[np.asarray(value, np.float64) for value in part] for part in parts]
        low = _merged(np.minimum, low, [part[0] for part in fresh])
        high = _merged(np.maximum, high, [part[1] for part in fresh])
        mean = _merged(np.add, mean, [part[2] * len(leaves[0]) for part in fresh])
        count += len(leaves[0])
    if not count:
        raise DataError("There is no sample to look at activations on. Give batches of inputs.")
    if not all(np.isfinite(values).all() for values in (*low, *high, *mean)):
        raise DataError(
            "Activations are NaN or infinite on the samples, so that nothing can be learned from "
            "them. Check the inputs and how they are scaled."
        )
    found = zip(tensors, low, high, mean, strict=True)
    return {key: Seen(least, most, total / count) for key, least, most, total in found}


def _merged(
    function: Callable[[Any, Any], Any], before: list[np.ndarray], fresh: list[np.ndarray]
) -> list[np.ndarray]:
    return [function(*pair) for pair in zip(before, fresh, strict=True)] if before else fresh


def _gathered(batches: Batches, inputs: Sequence[Any]) -> Iterator[list[np.ndarray]]:
    """Batches put together as far as their shapes allow: they often come one sample at a time."""
    alone = any(tensor.shape[0] is not None for tensor in inputs)
    waiting: list[list[np.ndarray]] = []
    for batch in batches() if callable(batches) else batches:
        leaves = [np.asarray(leaf) for leaf in tensorflow().nest.flatten(batch)]
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
        if len(leaves) != len(inputs) or len(lengths) != 1:
            raise DataError(
                "A batch does not fit the inputs of the model. Expected one array for each of the "
                f"{len(inputs)}, with equally many samples. Received arrays of shapes "
                f"{[leaf.shape for leaf in leaves]}."
            )
        if 0 in lengths:
            continue
        if waiting and (alone or not _fits(waiting, leaves)):
            yield _joined(waiting)
            waiting = []
        waiting.append(leaves)
    if waiting:
        yield _joined(waiting)


def _fits(waiting: list[list[np.ndarray]], leaves: list[np.ndarray]) -> bool:
    """Whether a batch can be run together with those that wait."""
    alike = zip(waiting[-1], leaves, strict=True)
    if any(one.shape[1:] != other.shape[1:] for one, other in alike):
        return False
    every = [*waiting, leaves]
    size = sum(leaf.nbytes for batch in every for leaf in batch)
    return sum(len(batch[0]) for batch in every) <= _TOGETHER and size <= _TOGETHER_BYTES


def _joined(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(leaves) for leaves in zip(*batches, strict=True)]
