"""A TFLite flatbuffer as an artifact, run by LiteRT, the interpreter that devices run."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact.base import Artifact, Layer, batches_of, named_inputs, write_atomically
from optkit.artifact.keras import KerasArtifact, from_file
from optkit.artifact.reading import Terms, read_keras_archive
from optkit.errors import DataError, ModelError
from optkit.flatbuffer import buffer_of, operator_name, packed, unpacked
from optkit.models import signature
from optkit.runtime import tensorflow

__all__ = ["TFLiteArtifact", "TensorPort", "front_function"]

_NUMPY_OF_TENSOR_TYPE = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 9: np.int8}
_INT4 = 17
_FRONT_BATCH = 256
_FRONT_MARK = b"optkit.front"
_UNPACKING = ("DEQUANTIZE", "DENSIFY")  # operators that give constants as others can read them


#: From inputs of a whole model, and shapes by name, to inputs of the file by name.
FrontFunction = Callable[[Any, dict[str, tuple[int | None, ...]]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class _Stored:
    """Where a weight tensor stands, how it is stored, and the stored number that means 0."""

    graph: int
    tensor: int
    dtype: str
    bytes: int
    zero: Any


@dataclass(frozen=True)
class _Count:
    """What was counted in a weight tensor; zeros only where it is a kernel, of rank two or above."""

    dtype: str
    values: int
    kernel_values: int
    zeros: int
    bytes: int


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

    TFLite has no lookups of strings and categories. Of a model with such layers, the file holds what
    comes behind them, and they themselves are its front: a Keras model, saved beside the file as
    ``<name>.front.keras``. `predict` runs both; size and speed are those of the file.

    Args:
        content: The bytes of the file.
        front: What to run before the file, as a `KerasArtifact` or the bytes of its file; ``None``
            for nothing. Its outputs are called as the inputs of the file.
        threads: Threads that `predict` runs on.

    Raises:
        ModelError: If the bytes are no TFLite file that LiteRT can run.
    """

    kind = "tflite"
    suffix = ".tflite"
    front_suffix = ".front.keras"

    def __init__(
        self, content: bytes, front: KerasArtifact | bytes | None = None, *, threads: int = 1
    ):
        self._content = bytes(content)
        self._threads = threads
        self._front = _file_of(front) if isinstance(front, KerasArtifact) else front
        self._lock = threading.Lock()  # an interpreter serves one caller at a time
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        if self._content[4:8] != b"TFL3":
            raise ModelError(
                "These bytes are no TFLite flatbuffer: the mark 'TFL3' is missing at byte 4 "
                f"(length {len(self._content)})."
            )
        if self._front is not None and self._front_mark is None:
            self._content = _marked(self._content, hashlib.sha256(self._front).digest())
            del self._flatbuffer  # of the content without the mark

    @property
    def _front_mark(self) -> bytes | None:
        """What the file says of the front that it was made with."""
        model = self._flatbuffer
        for entry in model.metadata or ():
            if entry.name == _FRONT_MARK:
                return bytes(bytearray(model.buffers[entry.buffer].data))
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self._content,
            self._front,
        )  # an interpreter cannot travel, and is made anew

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self._content

    @functools.cached_property
    def front(self) -> KerasArtifact | None:
        """What runs before the file; ``None`` for nothing."""
        return None if self._front is None else from_file(self._front, keras3=False)

    @property
    def front_content(self) -> bytes | None:
        """The bytes of the file of the front; ``None`` without one."""
        return self._front

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TFLiteArtifact:
        """Reads what `save` wrote: the file, and its front where it has one.

        Raises:
            ModelError: If it is no TFLite file, or its front is not that which it was made with.
        """
        target = Path(path)
        artifact = cls(target.read_bytes())
        mark = artifact._front_mark
        if mark is None:
            return artifact
        beside = target.with_suffix(cls.front_suffix)
        if not beside.is_file():
            raise ModelError(
                f"{target.name!r} was made of a model with lookups, which TFLite cannot run, and "
                f"their file {beside.name!r} is not beside it. Copy both. (LiteRT can run the file "
                "alone, on what the lookups give.)"
            )
        content = beside.read_bytes()
        if hashlib.sha256(content).digest() != mark:
            raise ModelError(
                f"{beside.name!r} does not belong to {target.name!r}: it is not the one that was "
                "saved with it. Save the artifact again."
            )
        read_keras_archive(beside, Terms(compile=False))  # refuses what would run something
        return cls(artifact.content, front=content)

    @functools.cached_property
    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=self._content, num_threads=self._threads)
            shapes = [detail["shape_signature"] for detail in interpreter.get_input_details()]
            # Sizes that are open count as 1 until inputs come, too small for many a model.
            if all(size >= 0 for shape in shapes for size in shape[1:]):
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
        names: dict[int, list[str]] = {}  # one tensor may be several outputs
        for entry in self._flatbuffer.signatureDefs or []:
            for mapping in getattr(entry, side) or []:
                names.setdefault(mapping.tensorIndex, []).append(mapping.name.decode())
        ports = []
        for detail in details:
            scale, zero_point = detail["quantization"]
            ports.append(
                TensorPort(
                    name=(names.get(detail["index"]) or [detail["name"]]).pop(0),
                    index=detail["index"],
                    shape=tuple(int(size) for size in detail["shape_signature"]),
                    dtype=np.dtype(detail["dtype"]),
                    scale=float(scale),
                    zero_point=int(zero_point),
                )
            )
        return tuple(ports)

    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """Runs the file through LiteRT, in batches where its batch dimension is open.

        Of a file with several outputs it gives a dict by output name, in the file's order.

        Where it has a front, that runs before it.
        """
        ports = self.inputs
        inputs = self.file_inputs(x)
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
        found = {}
        for place, port in enumerate(self.outputs):
            if parts:
                found[port.name] = np.concatenate([part[place] for part in parts])
            else:
                found[port.name] = np.zeros((0, *[max(d, 0) for d in port.shape[1:]]), np.float32)
        return found if len(found) > 1 else next(iter(found.values()))

    def file_inputs(self, x: Any) -> dict[str, np.ndarray]:
        """The inputs of the file by name: what is given, or what the front makes of it."""
        ports = self.inputs
        if self.front is None:
            return named_inputs(x, [port.name for port in ports])
        shapes = [tuple(None if d < 0 else d for d in port.shape[1:]) for port in ports]
        return self._front_run(x, dict(zip((port.name for port in ports), shapes, strict=True)))

    @functools.cached_property
    def _front_run(self) -> FrontFunction:
        assert self.front is not None
        return front_function(self.front)

    def _invoke(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
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
            interpreter.reset_all_variables()  # no state goes over from the samples before
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            self._shapes = None
            raise ModelError(
                f"LiteRT could not run the file on inputs of shape {list(shapes)}: {error}"
            ) from error
        return [port.dequantize(interpreter.get_tensor(port.index)) for port in self.outputs]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file to deploy, and its front, where it has one, as ``<name>.front.keras``.

        Args:
            path: Where to. The suffix is added where the name has none.

        Returns:
            The path that was written.

        Raises:
            OptkitError: For a suffix of another kind of file.
        """
        target = super().save(path)
        if (front := self._front) is not None:
            beside = target.with_suffix(self.front_suffix)
            write_atomically(beside, lambda file: file.write_bytes(front))
        return target

    def _write(self, path: Path) -> None:
        path.write_bytes(self._content)

    @functools.cached_property
    def _flatbuffer(self) -> Any:
        try:
            return unpacked(self._content)
        except Exception as error:
            raise ModelError(f"This TFLite file cannot be read: {error}") from error

    def _weights(self) -> Iterator[tuple[np.ndarray, _Stored]]:
        """The constant tensors that are weights, each with how it is stored."""
        model = self._flatbuffer
        buffers: set[int] = set()
        for g, graph in enumerate(model.subgraphs):
            for t, tensor in enumerate(graph.tensors):
                data = model.buffers[tensor.buffer].data
                if data is None or len(data) == 0:
                    continue
                raw = np.asarray(data, dtype=np.uint8)
                quantization = tensor.quantization
                has_scale = quantization is not None and quantization.scale is not None
                if tensor.type == _INT4:
                    name = "int4"
                    low, high = (raw << 4).astype(np.int8) >> 4, raw.astype(np.int8) >> 4
                    values = np.stack([low, high], axis=1).ravel()[: int(np.prod(tensor.shape))]
                elif tensor.type in _NUMPY_OF_TENSOR_TYPE:
                    dtype = np.dtype(_NUMPY_OF_TENSOR_TYPE[tensor.type])
                    if dtype.kind in "iu" and not has_scale:
                        continue  # shapes, axes and the like
                    name, values = dtype.name, raw.view(dtype)
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
                # Tensors of the same content may share a buffer.
                size = 0 if tensor.buffer in buffers else len(raw)
                buffers.add(tensor.buffer)
                yield values.reshape(shape), _Stored(g, t, name, size, zero)

    @functools.cached_property
    def _counts(self) -> dict[tuple[int, int], _Count]:
        """What was counted in each weight tensor, by the numbers of its graph and of itself."""
        counts = {}
        for weight, stored in self._weights():
            kernel = weight.ndim > 1
            counts[stored.graph, stored.tensor] = _Count(
                dtype=stored.dtype,
                values=weight.size,
                kernel_values=weight.size if kernel else 0,
                zeros=int(np.count_nonzero(weight == stored.zero)) if kernel else 0,
                bytes=stored.bytes,
            )
        return counts

    @property
    def parameters(self) -> int:
        """Number of values in the weight tensors of the file."""
        return sum(count.values for count in self._counts.values())

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the weight tensors of rank two and above."""
        return _sparsity(self._counts.values())

    def layers(self) -> tuple[Layer, ...]:
        """What each operator's constant tensors take up, by the name of the operator's output.

        An operator that only unpacks a constant for others to read (`DEQUANTIZE` of float16
        weights) is not listed: its weights are those of the operator that reads them.
        """
        model = self._flatbuffer
        left = dict(self._counts)
        found = []
        for g, graph in enumerate(model.subgraphs):
            unpacked: dict[int, list[_Count]] = {}
            for operator in graph.operators:
                kind = operator_name(model.operatorCodes[operator.opcodeIndex])
                outputs = list(operator.outputs)
                weights = []
                for t in map(int, operator.inputs):  # -1 stands for one that is left out
                    weights += unpacked.pop(t, [])
                    if (g, t) in left:
                        weights.append(left.pop((g, t)))
                if weights and kind in _UNPACKING:
                    unpacked[int(outputs[0])] = weights
                    continue
                name = graph.tensors[outputs[0]].name.decode() if outputs else kind
                found.append(_layer(name, kind, weights))
        for (g, t), weight in left.items():  # constants that are outputs of the graph
            name = model.subgraphs[g].tensors[t].name.decode()
            found.append(_layer(name, "constant", [weight]))
        return tuple(found)


def front_function(front: KerasArtifact) -> FrontFunction:
    """A function from the inputs of a front, and the shapes wanted, to its outputs by name.

    Sequences whose length the front leaves open are brought to the length that is wanted, or, where
    that is open as well, to that of the longest: zeros at the end, or the end cut off.
    """
    infos = signature(front.model)
    names = [info.name for info in infos.inputs]

    def run(x: Any, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {info.name: [] for info in infos.outputs}
        for batch in batches_of(named_inputs(x, names), _FRONT_BATCH):
            # Called as it is: `predict` would give floats in place of numbers of words.
            tensors = [
                tensorflow().constant(batch[i.name].astype(_numpy_type(i.dtype), copy=False))
                for i in infos.inputs
            ]
            outputs = tensorflow().nest.flatten(front.model(_packed(tensors), training=False))
            for info, output in zip(infos.outputs, outputs, strict=True):
                found[info.name].append(output.numpy())
        return {name: _joined(parts, shapes[name]) for name, parts in found.items()}

    return run


def _packed(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _numpy_type(dtype: str) -> Any:
    return object if dtype == "string" else np.dtype(dtype)


def _joined(parts: list[np.ndarray], shape: tuple[int | None, ...]) -> np.ndarray:
    """Batches as one array of a shape without the batch, filled up with zeros or cut off."""
    if not parts:
        return np.zeros((0, *(size or 0 for size in shape)), np.float32)
    wanted = [
        max(part.shape[axis] for part in parts) if size is None else size
        for axis, size in enumerate(shape, start=1)
    ]
    cut = [part[(slice(None), *(slice(0, size) for size in wanted))] for part in parts]
    return np.concatenate(
        [
            np.pad(
                part,
                [(0, 0), *((0, n - have) for n, have in zip(wanted, part.shape[1:], strict=True))],
            )
            for part in cut
        ]
    )


def _file_of(artifact: KerasArtifact) -> bytes:
    with tempfile.TemporaryDirectory(prefix="optkit-") as folder:
        return artifact.save(Path(folder) / f"front{artifact.suffix}").read_bytes()


def _marked(content: bytes, mark: bytes) -> bytes:
    """The flatbuffer with an entry in its metadata that says which front it was made with."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _FRONT_MARK, buffer_of(model, mark)
    model.metadata = [*(model.metadata or ()), entry]
    return packed(model, len(content))


def _layer(name: str, kind: str, weights: list[_Count]) -> Layer:
    values: Counter[str] = Counter()
    for weight in weights:
        values[weight.dtype] += weight.values
    return Layer(
        name=name,
        kind=kind,
        parameters=values.total(),
        bytes=sum(weight.bytes for weight in weights),
        sparsity=_sparsity(weights),
        dtype=values.most_common(1)[0][0] if values else None,
    )


def _sparsity(weights: Collection[_Count]) -> float | None:
    total = sum(weight.kernel_values for weight in weights)
    return sum(weight.zeros for weight in weights) / total if total else None
