"""A TFLite flatbuffer as an artifact, run by LiteRT, the interpreter that devices run."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact.base import Artifact, batches_of, named_inputs
from optkit.errors import DataError, ModelError

__all__ = ["TFLiteArtifact", "TensorPort"]

_NUMPY_OF_TENSOR_TYPE = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 9: np.int8}
_INT4 = 17


@dataclass(frozen=True)
class TensorPort:
    """An input or output of the file, with how its numbers are stored.

    Attributes:
        name: Name in the file's signature, else of the tensor.
        index: Index of the tensor.
        shape: Shape as stored, the batch first; -1 where it is open.
        dtype: NumPy dtype as stored.
        scale: Size of one quantization step; 0 where the numbers are stored as they are.
        zero_point: Stored number that stands for 0.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: Any
    scale: float
    zero_point: int

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Floats on the model's scale to stored numbers, rounded and clipped."""
        if not self.scale:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        stored = np.round(values.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(stored, limits.min, limits.max).astype(self.dtype))

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers to floats on the model's scale."""
        if not self.scale:
            return stored.astype(np.float32, copy=False)
        return (stored.astype(np.float32) - self.zero_point) * np.float32(self.scale)


class TFLiteArtifact(Artifact):
    """A TFLite flatbuffer. Runs through LiteRT; saved as ``.tflite``.

    A full-integer file takes and gives integers; `predict` quantizes inputs and dequantizes
    outputs, so that it takes and gives the same numbers as the model it was made from.

    Args:
        content: The bytes of the file.

    Raises:
        ModelError: If the bytes are no TFLite file that LiteRT can run.
    """

    kind = "tflite"
    suffix = ".tflite"

    def __init__(self, content: bytes):
        self._content = bytes(content)
        self._lock = threading.Lock()  # an interpreter serves one caller at a time
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        if self._content[4:8] != b"TFL3":
            raise ModelError(
                "These bytes are no TFLite flatbuffer: the mark 'TFL3' is missing at byte 4 "
                f"(length {len(self._content)})."
            )

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self._content

    @functools.cached_property
    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=self._content)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot run this TFLite file: {error}") from error
        return interpreter

    @functools.cached_property
    def inputs(self) -> tuple[TensorPort, ...]:
        """The inputs in the file's order."""
        return self._ports("inputs", self._interpreter.get_input_details())

    @functools.cached_property
    def outputs(self) -> tuple[TensorPort, ...]:
        """The outputs in the file's order."""
        return self._ports("outputs", self._interpreter.get_output_details())

    def _ports(self, side: str, details: list[dict[str, Any]]) -> tuple[TensorPort, ...]:
        names = {}
        for entry in self._flatbuffer.signatureDefs or []:
            for mapping in getattr(entry, side) or []:
                names[mapping.tensorIndex] = mapping.name.decode()
        ports = []
        for detail in details:
            scale, zero_point = detail["quantization"]
            ports.append(
                TensorPort(
                    name=names.get(detail["index"], detail["name"]),
                    index=detail["index"],
                    shape=tuple(int(size) for size in detail["shape_signature"]),
                    dtype=np.dtype(detail["dtype"]),
                    scale=float(scale),
                    zero_point=int(zero_point),
                )
            )
        return tuple(ports)

    def predict(self, x: Any, batch_size: int = 32) -> np.ndarray:
        """Runs the file through LiteRT, in batches where its batch dimension is open."""
        ports = self.inputs
        inputs = named_inputs(x, [port.name for port in ports])
        for port in ports:
            if inputs[port.name].ndim != len(port.shape):
                raise DataError(
                    f"Input {port.name!r} has shape {port.shape}. "
                    f"Received: {inputs[port.name].shape}."
                )
        open_batch = all(port.shape[0] == -1 for port in ports)
        with self._lock:
            parts = [
                self._invoke(batch) for batch in batches_of(inputs, batch_size if open_batch else 1)
            ]
        if not parts:
            return np.zeros((0, *[max(d, 0) for d in self.outputs[0].shape[1:]]), np.float32)
        return np.concatenate(parts)

    def _invoke(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        interpreter = self._interpreter
        shapes = tuple(batch[port.name].shape for port in self.inputs)
        try:
            if shapes != self._shapes:
                for port, shape in zip(self.inputs, shapes, strict=True):
                    interpreter.resize_tensor_input(port.index, shape, strict=True)
                interpreter.allocate_tensors()
                self._shapes = shapes
            for port in self.inputs:
                interpreter.set_tensor(port.index, port.quantize(batch[port.name]))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            self._shapes = None
            raise ModelError(
                f"LiteRT could not run the file on inputs of shape {list(shapes)}: {error}"
            ) from error
        output = self.outputs[0]
        return output.dequantize(interpreter.get_tensor(output.index))

    def _write(self, path: Path) -> None:
        path.write_bytes(self._content)

    @functools.cached_property
    def _flatbuffer(self) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        try:
            return schema.ModelT.InitFromPackedBuf(self._content, 0)
        except Exception as error:
            raise ModelError(f"This TFLite file cannot be read: {error}") from error

    def _weights(self) -> Iterator[tuple[np.ndarray, Any]]:
        """The constant tensors that are weights, each with the stored number that means 0."""
        model = self._flatbuffer
        for graph in model.subgraphs:
            for tensor in graph.tensors:
                data = model.buffers[tensor.buffer].data
                if data is None or len(data) == 0:
                    continue
                raw = np.asarray(data, dtype=np.uint8)
                quantization = tensor.quantization
                has_scale = quantization is not None and quantization.scale is not None
                if tensor.type == _INT4:
                    low, high = (raw << 4).astype(np.int8) >> 4, raw.astype(np.int8) >> 4
                    values = np.stack([low, high], axis=1).ravel()[: int(np.prod(tensor.shape))]
                elif tensor.type in _NUMPY_OF_TENSOR_TYPE:
                    dtype = np.dtype(_NUMPY_OF_TENSOR_TYPE[tensor.type])
                    if dtype.kind in "iu" and not has_scale:
                        continue  # shapes, axes and the like
                    values = raw.view(dtype)
                else:
                    continue
                shape = tuple(int(size) for size in tensor.shape)
                zero: Any = 0
                if has_scale and quantization.zeroPoint is not None:
                    points = np.asarray(quantization.zeroPoint)
                    if len(points) == 1:
                        zero = points[0]
                    elif len(points) > 1:
                        along = [1] * len(shape)
                        along[quantization.quantizedDimension] = len(points)
                        zero = points.reshape(along)
                yield values.reshape(shape), zero

    @functools.cached_property
    def _counts(self) -> tuple[int, int, int]:
        values = kernel_values = zeros = 0
        for weight, zero in self._weights():
            values += weight.size
            if weight.ndim > 1:
                kernel_values += weight.size
                zeros += int(np.count_nonzero(weight == zero))
        return values, kernel_values, zeros

    @property
    def parameters(self) -> int:
        """Number of values in the weight tensors of the file."""
        return self._counts[0]

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the weight tensors of rank two and above."""
        _, kernel_values, zeros = self._counts
        return zeros / kernel_values if kernel_values else None
