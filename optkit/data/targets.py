"""Targets and weights in whatever form they came: by output, and as numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.data.inputs import array_of, has_shape, is_frame
from optkit.data.split import ClassNames, check_finite, map_leaves, names_of
from optkit.errors import DataError
from optkit.models import TensorInfo
from optkit.runtime import tensorflow

__all__ = ["Targets", "read_weights"]

_SHOWN = 5


@dataclass(frozen=True)
class Targets:
    """How the targets of a model are read.

    Attributes:
        outputs: The model's outputs; empty where they are not known, which counts as one.
        class_names: Names of the classes: what names in the targets stand for.
        one_hot: The outputs (``""`` for the only one) whose class numbers become one-hot rows, as
            their loss takes no numbers.
    """

    outputs: tuple[TensorInfo, ...] = ()
    class_names: ClassNames = ()
    one_hot: Collection[str] = ()

    @property
    def several(self) -> bool:
        """Whether there are several outputs, so that targets are dicts."""
        return len(self.outputs) > 1

    def by_output(self, split: str, y: Any) -> Any:
        """The targets of the only output, or a dict by output name in the model's order.

        Args:
            split: Name of the split, for messages.
            y: Arrays, tensors or specs, as they came.

        Raises:
            DataError: If they do not go with the model's outputs.
        """
        names = [info.name for info in self.outputs]
        if isinstance(y, Mapping) or (self.several and is_frame(y)):
            given = [str(name) for name in (y.columns if is_frame(y) else y)]
            unknown = sorted(set(given) - set(names))
            if unknown or not given:
                raise DataError(
                    f"The targets of `{split}` are named {sorted(given)}; the model's outputs are "
                    f"{names}."
                )
            if not self.several:
                return y[given[0]]
            return {name: y[name] for name in names if name in given}
        if not self.several:
            single = isinstance(y, list | tuple) and len(y) == 1 and has_shape(y[0])
            return y[0] if single else y
        if isinstance(y, list | tuple) and len(y) == len(names) and not np.isscalar(y[0]):
            return dict(zip(names, y, strict=True))
        received = f"{len(y)}" if isinstance(y, list | tuple) else f"{type(y).__name__}"
        raise DataError(
            f"The model has {len(names)} outputs ({', '.join(names)}). Give the targets of "
            f"`{split}` as a dict by output name, or as a list of {len(names)} in this order. "
            f"Received: {received}."
        )

    def _each(self, y: Any, function: Callable[[str, TensorInfo | None, Any], Any]) -> Any:
        if isinstance(y, dict):
            infos = {info.name: info for info in self.outputs}
            return {name: function(name, infos[name], value) for name, value in y.items()}
        return function("", self.outputs[0] if self.outputs else None, y)

    def from_arrays(self, split: str, y: Any) -> Any:
        """The targets of arrays as numbers: one array, or a dict by output name.

        Raises:
            DataError: If they are missing, not finite, or names that nothing says the number of.
        """
        return self._each(self.by_output(split, y), lambda *given: self._numbers(split, *given))

    def _numbers(self, split: str, output: str, info: TensorInfo | None, y: Any) -> np.ndarray:
        array = array_of(split, _what(output), y)
        if array.dtype.kind == "b":
            array = array.astype(np.int32)
        elif array.dtype.kind in "OSU":
            array = self._numbers_of_names(split, output, array)
        check_finite(split, _what(output), array)
        if output not in self.one_hot or info is None or not _is_sparse(array.shape, info.shape):
            return array
        if array.dtype.kind == "f" and np.any(array != np.floor(array)):
            return array  # what they are is for the task to say
        if array.ndim == len(info.shape):
            array = array[..., 0]
        classes = int(info.shape[-1] or 0)
        if array.min() < 0 or array.max() >= classes:
            raise DataError(
                f"In `{split}`: {_what(output)} must be class numbers from 0 to {classes - 1}, for "
                f"an output of {classes} values. Received: numbers from {array.min():g} to "
                f"{array.max():g}."
            )
        rows = np.zeros((*array.shape, classes), np.float32)
        np.put_along_axis(rows, array.astype(np.int64)[..., None], 1, axis=-1)
        return rows

    def _names(self, split: str, output: str, seen: list[str]) -> tuple[str, ...]:
        names = names_of(self.class_names, output)
        if names:
            return names
        some = ", ".join(map(repr, seen[:_SHOWN])) + (", …" if len(seen) > _SHOWN else "")
        by_output = f"{{{output!r}: […]}}" if output else "[…]"
        raise DataError(
            f"The {_what(output)} of `{split}` are names{f' ({some})' if seen else ''}, and nothing "
            "says which number each of them has. Give all of them in the order of the model's "
            f"output: `Data(..., class_names={by_output})`."
        )

    def _numbers_of_names(self, split: str, output: str, array: np.ndarray) -> np.ndarray:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
        seen, places = np.unique(np.array(texts), return_inverse=True)
        names = self._names(split, output, seen.tolist())
        unknown = sorted(set(seen.tolist()) - set(names))
        if unknown:
            raise DataError(
                f"The {_what(output)} of `{split}` hold {unknown[:_SHOWN]}, and `class_names` knows "
                f"{list(names)} alone."
            )
        numbers = np.array([names.index(name) for name in seen.tolist()], np.int32)
        return numbers[places.reshape(array.shape)]

    def changes(self, split: str, y: Any) -> bool:
        """Whether tensors of these specs have to go through `from_tensors`.

        Raises:
            DataError: If they do not go with the model's outputs.
        """
        named = self.by_output(split, y)
        if isinstance(named, list | tuple):
            raise DataError(
                f"The model has one output, and `{split}` gives {len(named)} targets a sample."
            )
        changed: list[bool] = []
        self._each(named, lambda *given: changed.append(self._alters(split, *given)))
        same = all(isinstance(y, kind) == isinstance(named, kind) for kind in (dict, tuple))
        return any(changed) or not same or (isinstance(y, dict) and list(y) != list(named))

    def _alters(self, split: str, output: str, info: TensorInfo | None, spec: Any) -> bool:
        if spec.dtype.name == "string":
            self._names(split, output, [])
            return True
        one_hot = output in self.one_hot and info is not None
        return spec.dtype.is_bool or (one_hot and _is_sparse(tuple(spec.shape), info.shape))  # type: ignore[union-attr]

    def from_tensors(self, split: str, y: Any) -> Any:
        """The same of a batch of tensors, to run in a ``tf.data`` map."""
        return self._each(self.by_output(split, y), lambda *given: self._tensor(split, *given))

    def _tensor(self, split: str, output: str, info: TensorInfo | None, y: Any) -> Any:
        tf = tensorflow()
        if y.dtype == tf.string:
            names = tf.constant(self._names(split, output, []))
            same = tf.equal(y[..., None], names)
            strange = tf.boolean_mask(y, tf.logical_not(tf.reduce_any(same, -1)))
            some = tf.strings.reduce_join(tf.unique(strange)[0][:_SHOWN], separator="', '")
            message = [f"its {_what(output)} hold '", some, "', not among `class_names`: "]
            listed = ", ".join(self._names(split, output, []))
            known = tf.debugging.Assert(
                tf.equal(tf.size(strange), 0), [tf.strings.join([*message, listed])]
            )
            with tf.control_dependencies([known]):
                y = tf.argmax(same, -1, output_type=tf.int32)
        elif y.dtype.is_bool:
            y = tf.cast(y, tf.int32)
        if output in self.one_hot and info is not None and _is_sparse(tuple(y.shape), info.shape):
            if y.shape.rank == len(info.shape):
                y = tf.squeeze(y, -1)
            y = tf.one_hot(tf.cast(y, tf.int32), info.shape[-1])
        return y


def _what(output: str) -> str:
    return f"targets of {output!r}" if output else "targets"


def _is_sparse(shape: tuple[int | None, ...], output: tuple[int | None, ...]) -> bool:
    """Whether targets are numbers for an output that has a value for each class."""
    if not output or (output[-1] or 0) < 2:
        return False
    return len(shape) == len(output) - 1 or (len(shape) == len(output) and shape[-1] == 1)


def read_weights(split: str, weights: Any, length: int, targets: Targets) -> Any:
    """The weights of arrays: one a sample, or a dict of such by output name.

    Args:
        split: Name of the split.
        weights: As they came.
        length: Number of samples.
        targets: How the targets are read.

    Raises:
        DataError: If they are no weights of these samples.
    """
    if isinstance(weights, list | tuple) and weights and not has_shape(weights[0]):
        weights = np.asarray(weights)
    nested = isinstance(weights, Mapping | list | tuple) or (targets.several and is_frame(weights))
    found = targets.by_output(split, weights) if nested else weights

    def check(value: Any) -> np.ndarray:
        array = array_of(split, "sample weights", value)
        if array.dtype.kind not in "biuf":
            raise DataError(f"The sample weights of `{split}` must be numbers: {array.dtype}.")
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 0 or len(array) != length:
            raise DataError(
                f"`{split}` has {length} samples and sample weights of shape {array.shape}."
            )
        check_finite(split, "sample weights", array)
        if array.min() < 0 or not array.any():
            raise DataError(
                f"The sample weights of `{split}` must be at least 0, and some above. Received: "
                f"{array.min():g} to {array.max():g}."
            )
        return array.astype(np.float32)

    return map_leaves(check, found)
