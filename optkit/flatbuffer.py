"""TFLite files as objects and back."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "INT4",
    "INT8",
    "INT32",
    "INT64",
    "buffer_of",
    "floats_of",
    "operator_name",
    "packed",
    "unpacked",
]

#: The numbers that stand for types of tensors.
FLOAT32, FLOAT16, INT32, INT64, INT8, INT4 = 0, 1, 2, 4, 9, 17

_ROOM = 2**16  # what an edit may add before the builder has to grow
_MARK = b"TFL3"


def unpacked(content: bytes) -> Any:
    """The ``ModelT`` of a file: objects that can be read and changed.

    What a file holds behind its flatbuffer, as ai-edge-quantizer writes large ones, is taken in.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 stand for none
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any, size: int) -> bytes:
    """The bytes of a ``ModelT``.

    Args:
        model: The model.
        size: About how many bytes it will have.
    """
    builder = _builder(size + _ROOM)
    builder.Finish(model.Pack(builder), _MARK)
    return bytes(builder.Output())


def _builder(size: int) -> Any:
    """A builder that writes equal vectors of zero points once.

    Each channel of each weight has a zero point of eight bytes, and all are zero; stored anew for
    every tensor they make up a tenth of a quantized MobileNet.
    """
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self, size: int):
            super().__init__(size)
            self.written: dict[bytes, int] = {}

        def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 (the library's name)
            if x.dtype != np.int64:
                return super().CreateNumpyVector(x)
            content = x.tobytes()
            if content not in self.written:
                self.written[content] = super().CreateNumpyVector(x)
            return self.written[content]

    return Builder(size)


def buffer_of(model: Any, content: bytes) -> int:
    """Adds a buffer of this content to a ``ModelT``; returns its index."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def floats_of(model: Any, tensor: Any) -> np.ndarray | None:
    """The values of a float32 constant in its shape; ``None`` for other tensors.

    Args:
        model: A ``ModelT``.
        tensor: One of its tensors.

    Returns:
        A view of the bytes in the buffer.
    """
    data = model.buffers[tensor.buffer].data
    if tensor.type != FLOAT32 or data is None or len(data) == 0 or tensor.isVariable:
        return None
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    values = np.asarray(data, np.uint8).view(np.float32)
    return values.reshape(shape) if values.size == np.prod(shape) else None


def operator_name(code: Any) -> str:
    """The kind of operator that an entry in a file's table of operators stands for."""
    if code.customCode is not None:
        return str(code.customCode.decode())
    # Codes above 127 do not fit the field that older files have alone.
    return _builtin_operators().get(max(code.builtinCode, code.deprecatedBuiltinCode), "UNKNOWN")


@functools.cache
def _builtin_operators() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    values = vars(schema.BuiltinOperator).items()
    return {number: name for name, number in values if isinstance(number, int)}
