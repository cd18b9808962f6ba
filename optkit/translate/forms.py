"""How an operation was called, as plain values: where its tensors stood, and everything else.

A graph node of one Keras holds the arguments of a call with tensors anywhere in them. What carries
the operation into the other Keras is called with a flat list of tensors and keeps the rest, the
*form* of the call, in its configuration, so that it survives copying and saving exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["fill", "form_of"]


class UnknownValueError(TypeError):
    """A call has an argument that a configuration cannot hold."""


def form_of(
    args: Sequence[Any], kwargs: dict[str, Any], is_tensor: Callable[[Any], bool]
) -> tuple[dict[str, Any], list[Any]]:
    """Takes the tensors out of a call.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        is_tensor: Tells the tensors of the graph from constants.

    Returns:
        The form, which JSON can hold, and the tensors in its order, each once.

    Raises:
        UnknownValueError: If an argument is neither a tensor, a plain value nor an array.
    """
    tensors: list[Any] = []

    def encode(value: Any) -> Any:
        if is_tensor(value):
            for number, known in enumerate(tensors):
                if known is value:
                    return {"tensor": number}
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        return _encode_constant(value, encode)

    form = {
        "args": [encode(value) for value in args],
        "kwargs": {name: encode(value) for name, value in kwargs.items()},
    }
    return form, tensors


def _encode_constant(value: Any, encode: Callable[[Any], Any]) -> Any:
    import numpy as np

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return {"list": [encode(item) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[str(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    if hasattr(value, "as_numpy_dtype") and hasattr(value, "name"):  # a DType of TensorFlow
        return str(value.name)
    if hasattr(value, "as_list") and hasattr(value, "rank"):  # a TensorShape
        return {"list": list(value.as_list())}
    if isinstance(value, np.ndarray | np.generic) or (
        hasattr(value, "numpy") and not hasattr(value, "assign")
    ):
        array = value if isinstance(value, np.ndarray | np.generic) else value.numpy()
        array = np.asarray(array)
        if array.dtype.kind in "SO":
            texts = np.asarray([_text(item) for item in array.ravel()], dtype=object)
            return {"array": texts.tolist(), "shape": list(array.shape), "dtype": "string"}
        plain = array.astype("float32") if array.dtype.name == "bfloat16" else array
        return {
            "array": plain.ravel().tolist(),
            "shape": list(array.shape),
            "dtype": array.dtype.name,
        }
    raise UnknownValueError(f"{type(value).__module__}.{type(value).__qualname__}")


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def fill(form: dict[str, Any], tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call from its form and its tensors.

    >>> form, tensors = form_of(["x", (slice(None), 0)], {"axis": -1}, lambda value: value == "x")
    >>> fill(form, ["y"])
    (['y', (slice(None, None, None), 0)], {'axis': -1})
    """

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        (tag, content), *_ = value.items()
        if tag == "tensor":
            return tensors[content]
        if tag == "list":
            return [decode(item) for item in content]
        if tag == "tuple":
            return tuple(decode(item) for item in content)
        if tag == "dict":
            return {key: decode(item) for key, item in content}
        if tag == "slice":
            return slice(*(decode(part) for part in content))
        if tag == "ellipsis":
            return Ellipsis
        return _decode_array(value)

    return (
        [decode(value) for value in form["args"]],
        {name: decode(value) for name, value in form["kwargs"].items()},
    )


def _decode_array(value: dict[str, Any]) -> Any:
    import numpy as np

    if value["dtype"] == "string":
        return np.asarray(value["array"], dtype=object).reshape(value["shape"])
    if value["dtype"] == "bfloat16":
        import tensorflow as tf

        array = np.asarray(value["array"], dtype="float32").reshape(value["shape"])
        return tf.cast(array, tf.bfloat16)
    return np.asarray(value["array"], dtype=value["dtype"]).reshape(value["shape"])
