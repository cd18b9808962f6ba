"""Inputs in memory, in whatever form they came, as the arrays that a model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from optkit.data.split import check_finite, sample_fits
from optkit.errors import DataError
from optkit.models import TensorInfo

__all__ = [
    "array_of",
    "has_shape",
    "is_frame",
    "is_ragged",
    "length_of",
    "no_fit",
    "read_inputs",
]


def has_shape(value: Any) -> bool:
    """Whether it is an array or a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_frame(value: Any) -> bool:
    """Whether it is a table with columns, such as a ``pandas.DataFrame``."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def is_ragged(value: Any) -> bool:
    """Whether it is a ``tf.RaggedTensor``."""
    return hasattr(value, "row_splits") and hasattr(value, "to_tensor")


def length_of(value: Any) -> int:
    """The number of samples."""
    return int(value.nrows()) if is_ragged(value) else len(value)


def array_of(split: str, what: str, value: Any) -> np.ndarray:
    """An array of numbers, or of texts.

    Args:
        split: Name of the split, for messages.
        what: What it is, for messages, such as ``"inputs"``.
        value: An array, a tensor, a list, a column or a table of pandas.

    Raises:
        DataError: If values are missing, or are neither numbers nor texts.
    """
    if is_frame(value):
        return _table(split, what, value)
    if hasattr(value, "to_numpy"):
        array = np.asarray(value.to_numpy())
    elif isinstance(value, list | tuple) and value and _all_text(value):
        array = np.array(value, dtype=object)  # as wide as each text, not as the longest
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "biufcOSU":
        raise DataError(
            f"The {what} of `{split}` are neither numbers nor texts: dtype {array.dtype}. Turn "
            "dates and times into numbers first."
        )
    return _typed(split, what, array) if array.dtype.kind == "O" else array


def _all_text(values: Any) -> bool:
    return all(isinstance(item, str | bytes) for item in values)


def _is_missing(item: Any) -> bool:
    if isinstance(item, float | np.floating):
        return math.isnan(item)
    return item is None or type(item).__name__ in ("NAType", "NaTType")  # of pandas


def _typed(split: str, what: str, array: np.ndarray) -> np.ndarray:
    """Objects as numbers where they are some; texts are left."""
    flat = array.ravel()
    if _all_text(flat):
        return array
    for place, item in enumerate(flat):
        if _is_missing(item):
            raise DataError(
                f"The {what} of `{split}` have a missing value ({item!r}, number {place}). Fill "
                "it in or leave the sample out."
            )
    try:
        numbers = np.array(array.tolist())
    except ValueError:  # rows of different lengths
        numbers = array
    if numbers.dtype.kind in "biuf":
        return numbers
    kinds = ", ".join(sorted({type(item).__name__ for item in flat}))
    raise DataError(
        f"The {what} of `{split}` are neither numbers nor texts throughout: they hold {kinds}."
    )


def _table(split: str, what: str, frame: Any) -> np.ndarray:
    """A table as one array, a column a feature."""
    columns = {str(name): array_of(split, what, frame[name]) for name in frame.columns}
    texts = [name for name, values in columns.items() if values.dtype.kind in "OSU"]
    if texts and len(texts) != len(columns):
        raise DataError(
            f"The {what} of `{split}` are a table in which {', '.join(map(repr, texts))} hold "
            "texts and the other columns numbers, and the model has one input. Give such a model "
            "an input for each column, or turn the texts into numbers first."
        )
    return np.column_stack(list(columns.values()))


def read_inputs(
    split: str, x: Any, inputs: tuple[TensorInfo, ...], notes: list[str]
) -> np.ndarray | dict[str, np.ndarray]:
    """The inputs of a split as the model takes them: one array, or a dict by input name.

    Args:
        split: Name of the split.
        x: An array (or what `array_of` takes, or a ``tf.RaggedTensor``, or a list of sequences),
            or a dict, a list or a table of such, one for each input.
        inputs: The model's inputs.
        notes: Is told what was done to the inputs.

    Raises:
        DataError: If they do not fit the model.
    """
    if len(inputs) == 1 and not isinstance(x, Mapping):
        single = isinstance(x, list | tuple) and len(x) == 1 and has_shape(x[0])
        return _read(split, x[0] if single else x, inputs[0], notes)
    named = _by_name(split, x, inputs)
    return {info.name: _read(split, named[info.name], info, notes) for info in inputs}


def _by_name(split: str, x: Any, inputs: tuple[TensorInfo, ...]) -> Any:
    names = [info.name for info in inputs]
    if isinstance(x, Mapping) or is_frame(x):
        given = list(x.columns) if is_frame(x) else list(x)
        # The columns of a table may be groups of columns, which have names of several parts.
        given = list(dict.fromkeys(key[0] if isinstance(key, tuple) else key for key in given))
        if sorted(map(str, given)) != sorted(names):
            raise DataError(
                f"The inputs of `{split}` are named {sorted(map(str, given))}; the model's are "
                f"{sorted(names)}."
            )
        return x
    if not isinstance(x, list | tuple) or len(x) != len(inputs):
        count = len(x) if isinstance(x, list | tuple) else 1
        raise DataError(
            f"The model has {len(inputs)} inputs ({', '.join(names)}); `{split}` gives {count}."
        )
    return dict(zip(names, x, strict=True))


def _read(split: str, value: Any, info: TensorInfo, notes: list[str]) -> np.ndarray:
    if is_ragged(value):
        array = _to_length(split, value.to_tensor().numpy(), info)
        notes.append(_padding_note(split, array, info))
    elif isinstance(value, list | tuple) and len({np.shape(item) for item in value}) > 1:
        array = _to_length(split, _padded(split, value), info)
        notes.append(_padding_note(split, array, info))
    else:
        array = array_of(split, "inputs", value)
    if array.ndim == 1 and info.shape == (None, 1):
        array = array[:, None]
    elif array.ndim == 2 and array.shape[1] == 1 and len(info.shape) == 1:
        array = array[:, 0]
    if not sample_fits(array.shape, (None, *info.shape[1:])):
        raise no_fit(split, info, array.shape)
    if (array.dtype.kind in "OSU") != (info.dtype == "string"):
        raise DataError(
            f"The inputs of `{split}` have dtype {array.dtype}; the model's input {info.name!r} is "
            f"{info.dtype}."
        )
    check_finite(split, "inputs", array)
    return array


def _padded(split: str, samples: Any) -> np.ndarray:
    """Sequences of different lengths as one array, with zeros (or empty texts) at their ends."""
    rows = [array_of(split, "inputs", item) for item in samples]
    if len({row.shape[1:] for row in rows}) > 1 or any(row.ndim == 0 for row in rows):
        raise DataError(
            f"The inputs of `{split}` are samples of different shapes, and more than their first "
            "dimension differs. Bring them to one size, or give batches of equal shapes: a "
            "generator, a Sequence or a tf.data.Dataset."
        )
    text = rows[0].dtype.kind in "OSU"
    dtype = object if text else np.result_type(*rows)
    array = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), dtype)
    if text:
        array[...] = ""
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


def _to_length(split: str, array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Pads further, where the model takes one length only."""
    if len(array.shape) != len(info.shape):
        return array  # does not fit, which is told with both shapes
    missing = [
        (0, 0 if wanted is None else wanted - size)
        for wanted, size in zip((None, *info.shape[1:]), array.shape, strict=True)
    ]
    if any(after < 0 for _, after in missing):
        raise DataError(
            f"The longest sample of `{split}` has shape {array.shape[1:]}, and the model's input "
            f"{info.name!r} takes {info.shape[1:]}. Cut longer samples first: what of them to keep "
            "is for you to say."
        )
    filler: Any = "" if array.dtype.kind in "OSU" else 0
    return np.pad(array, missing, constant_values=filler)


def _padding_note(split: str, array: np.ndarray, info: TensorInfo) -> str:
    return (
        f"{split}: samples of different lengths for {info.name!r} were padded with "
        f"{'empty texts' if array.dtype.kind in 'OSU' else 'zeros'} at the end, to shape "
        f"{array.shape[1:]}"
    )


def no_fit(split: str, info: TensorInfo, shape: Any) -> DataError:
    """What to raise for an input of a wrong shape."""
    hint = ""
    if len(shape) == len(info.shape) - 1 and info.shape[-1] == 1:
        hint = " Add the last dimension: `x[..., None]`."
    return DataError(
        f"`{split}` does not fit the model's input {info.name!r}: expected shape {info.shape}, "
        f"received {tuple(shape)}.{hint}"
    )
