"""Weights of a float file in fewer bits; what it computes with stays float.

Written into the flatbuffer directly, as no library treats every place where weights stand: bodies of
loops over time, tables of embeddings, kernels of three-dimensional convolutions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from optkit.flatbuffer import (
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    INT32,
    buffer_of,
    floats_of,
    operator_name,
    packed,
    unpacked,
)

__all__ = ["ALWAYS_8", "KERNELS", "Stored", "pairs", "quantize_symmetric", "store_weights"]

_LARGEST_FLOAT16 = 65504.0
#: What the file needs to say of a tensor and an operator more, and of a channel's scale, in bytes.
_SAYING, _SCALE = 256, 12

_LOOKUP = "EMBEDDING_LOOKUP"
#: Where the kernel of an operator stands among its inputs, and which of its axes are channels.
KERNELS: Mapping[str, tuple[int, int]] = {
    "FULLY_CONNECTED": (1, 0),
    "CONV_2D": (1, 0),
    "DEPTHWISE_CONV_2D": (1, 3),
    "TRANSPOSE_CONV": (1, 0),
    "CONV_3D": (1, 4),
    "CONV_3D_TRANSPOSE": (1, 4),
    _LOOKUP: (1, 0),
}
#: Operators whose kernels quantize what comes in as they run. Depthwise convolutions have such a
#: kernel, which is many times slower than the one for floats.
_DYNAMIC = frozenset({"FULLY_CONNECTED", "CONV_2D"})
#: What a depthwise kernel would lose in 4 bits is most of its few values.
ALWAYS_8 = frozenset({"DEPTHWISE_CONV_2D"})


@dataclass(frozen=True)
class Stored:
    """A file whose weights were stored otherwise.

    Attributes:
        content: The bytes of the file.
        values: Number of values in weights by how they are stored now, such as ``{"int4": 1024}``.
        kinds: Operators by how their weights are stored now: ``{"int8": {"CONV_2D": 3}}``.
        dynamic: Operators that quantize what comes in as they run: ``{"CONV_2D": 3}``.
        unpacked: Operators that compute in float with weights unpacked before.
        overflowing: Names of tensors that float16 does not hold, and that stay float32.
    """

    content: bytes
    values: Mapping[str, int]
    kinds: Mapping[str, Mapping[str, int]]
    dynamic: Mapping[str, int]
    unpacked: Mapping[str, int]
    overflowing: tuple[str, ...]


def store_weights(
    content: bytes, bits: Literal[16, 8, 4], *, computes: Literal["float", "integer"] = "float"
) -> Stored:
    """Stores the weights of a float file in fewer bits.

    In 16 bits every weight is a float16. In 8 and 4 bits, kernels get a symmetric scale a channel,
    tables of embeddings one a row. What depthwise convolutions hold stays at 8 bits. Stored as
    float16 is what has so few values a channel that scales would take what is saved, and other
    large constants, such as tables of positions.

    Args:
        content: The bytes of a float32 file.
        bits: 16, 8 or 4.
        computes: ``"float"`` has weights unpacked before use, ``"integer"`` has those kernels that
            can quantize what comes in as they run (dynamic range). Rows of tables are unpacked as
            they are looked up, in either case.
    """
    return _Writer(content, bits, computes == "integer").run()


def quantize_symmetric(values: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and a scale a channel, so that ``numbers * scale`` is nearly ``values``.

    Args:
        values: Floats.
        bits: 8 or 4.
        axis: The channels.

    Returns:
        The numbers as int8, of the shape of ``values``, and the scales.

    Example:
        >>> numbers, scale = quantize_symmetric(np.array([[1.27, -0.5]], np.float32), 8, 0)
        >>> numbers.tolist(), round(float(scale[0]), 4)
        ([[127, -50]], 0.01)
    """
    most = 2 ** (bits - 1) - 1
    others = tuple(k for k in range(values.ndim) if k != axis)
    largest = np.abs(values).max(axis=others, keepdims=True).astype(np.float32)
    scale = largest / np.float32(most)
    # What is smaller than any float32 with full precision divides to infinity.
    scale[largest < np.finfo(np.float32).tiny * most] = 1.0
    numbers = np.clip(np.rint(values / scale), -most, most).astype(np.int8)
    return numbers, scale.ravel()


class _Writer:
    """One file on its way from float weights to stored ones."""

    def __init__(self, content: bytes, bits: int, dynamic: bool):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = unpacked(content)
        self.length = len(content)
        self.bits, self.integer = bits, dynamic
        self.values: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {}
        self.dynamic: Counter[str] = Counter()
        self.unpacked: Counter[str] = Counter()
        self.overflowing: list[str] = []
        self.buffers: dict[tuple[Any, ...], tuple[int, Any]] = {}

    def run(self) -> Stored:
        for graph in self.model.subgraphs:
            if self.bits != 16:
                self._look_up_rows(graph)
            self._store(graph)
        self._drop_unused()
        return Stored(
            content=packed(self.model, self.length),
            values=dict(self.values),
            kinds={dtype: dict(kinds) for dtype, kinds in self.kinds.items()},
            dynamic=dict(self.dynamic),
            unpacked=dict(self.unpacked),
            overflowing=tuple(self.overflowing),
        )

    # ------------------------------------------------------------------------------- what is where

    def _kind(self, operator: Any) -> str:
        return operator_name(self.model.operatorCodes[operator.opcodeIndex])

    # ----------------------------------------------------------------------------------- embeddings

    def _look_up_rows(self, graph: Any) -> None:
        """Has rows of constant tables looked up by the operator that unpacks them by itself.

        Keras' embeddings convert to `GATHER`, whose integer kernel knows one scale a table.
        """
        operators = []
        for operator in graph.operators:
            operators += self._rows(graph, operator) or [operator]
        graph.operators = operators

    def _rows(self, graph: Any, operator: Any) -> list[Any] | None:
        if self._kind(operator) != "GATHER":
            return None
        table, numbers = (graph.tensors[int(t)] for t in operator.inputs)
        rank = 0 if numbers.shape is None else len(numbers.shape)
        options = operator.builtinOptions
        values = floats_of(self.model, table)
        if (
            values is None
            or values.ndim != 2
            or not _saves(values, self.bits, 0)
            or numbers.type != INT32
            or (options is not None and (options.axis not in (0, -2) or options.batchDims))
            or rank == 0
        ):
            return None
        size = values.shape[1]
        given, (made,) = int(operator.inputs[1]), (int(t) for t in operator.outputs)
        lookup = self._operator(_LOOKUP, 4, [given, int(operator.inputs[0])], [made])
        if rank == 1:
            return [lookup]
        name = graph.tensors[made].name.decode()
        flat = self._tensor(graph, f"{name}/ids", INT32, self._open(numbers))
        rows = self._tensor(graph, f"{name}/rows", FLOAT32, self._open(numbers, size))
        lookup.inputs, lookup.outputs = [flat, int(operator.inputs[0])], [rows]
        line = self._whole(graph, f"{name}/line", [-1])
        before = [self._reshape([given, line], [flat])]
        sizes = [int(s) for s in self._signature(numbers)]
        if sizes.count(-1) <= 1:
            target = self._whole(graph, f"{name}/shape", [*sizes, size])
        else:
            # More than one size is open: they are taken from the numbers as they come.
            seen = self._tensor(graph, f"{name}/sizes", INT32, ([rank], None))
            target = self._tensor(graph, f"{name}/shape", INT32, ([rank + 1], None))
            width = self._whole(graph, f"{name}/width", [size])
            before += [
                self._operator("SHAPE", 1, [given], [seen], "ShapeOptionsT", outType=INT32),
                self._operator(
                    "CONCATENATION", 1, [seen, width], [target], "ConcatenationOptionsT", axis=0
                ),
            ]
        return [*before, lookup, self._reshape([rows, target], [made])]

    @staticmethod
    def _signature(tensor: Any) -> list[int]:
        found = tensor.shapeSignature
        return list(tensor.shape if found is None or len(found) == 0 else found)

    def _open(self, numbers: Any, *width: int) -> tuple[list[int], list[int] | None]:
        """Shape of as many rows as there are numbers, and that shape with what is open in it."""
        total = int(np.prod(numbers.shape))
        opened = any(size < 0 for size in self._signature(numbers))
        return [total, *width], [-1, *width] if opened else None

    # ------------------------------------------------------------------------------ new parts of it

    def _tensor(
        self, graph: Any, name: str, dtype: int, shape: tuple[list[int], list[int] | None]
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), dtype, 0
        tensor.shape = np.array(shape[0], np.int32)
        if shape[1] is not None:
            tensor.shapeSignature = np.array(shape[1], np.int32)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _whole(self, graph: Any, name: str, values: list[int]) -> int:
        place = self._tensor(graph, name, INT32, ([len(values)], None))
        graph.tensors[place].buffer = buffer_of(self.model, np.array(values, np.int32).tobytes())
        return place

    def _operator(
        self,
        kind: str,
        version: int,
        inputs: list[int],
        outputs: list[int],
        options: str | None = None,
        **settings: Any,
    ) -> Any:
        code = getattr(self.schema.BuiltinOperator, kind)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(code, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array(outputs, np.int32)
        if options is not None:
            name = options.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(self.schema, options)()
            for key, value in settings.items():
                setattr(operator.builtinOptions, key, value)
        return operator

    def _reshape(self, inputs: list[int], outputs: list[int]) -> Any:
        return self._operator("RESHAPE", 1, inputs, outputs)

    def _code(self, code: int, version: int) -> int:
        for place, known in enumerate(self.model.operatorCodes):
            if max(known.builtinCode, known.deprecatedBuiltinCode) == code:
                known.version = max(known.version, version)
                return place
        entry = self.schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
        entry.version = version
        self.model.operatorCodes.append(entry)
        return len(self.model.operatorCodes) - 1

    # -------------------------------------------------------------------------------------- storing

    def _store(self, graph: Any) -> None:
        readers: dict[int, list[tuple[Any, str, int]]] = {}
        for operator in graph.operators:
            kind = self._kind(operator)
            for place, t in enumerate(operator.inputs):
                readers.setdefault(int(t), []).append((operator, kind, place))
        ends = {int(t) for t in (*graph.inputs, *graph.outputs)}
        unpacking = []
        for t in range(len(graph.tensors)):
            values = floats_of(self.model, graph.tensors[t])
            if values is None or values.ndim < 2 or t in ends or t not in readers:
                continue  # biases and the like are too small to matter
            if not np.isfinite(values).all():
                continue
            unpacking += self._store_one(graph, t, values, readers[t])
        graph.operators = [*unpacking, *graph.operators]

    def _store_one(
        self, graph: Any, t: int, values: np.ndarray, readers: list[tuple[Any, str, int]]
    ) -> list[Any]:
        """Stores one constant; gives the operators that unpack it, to run before all others."""
        kinds = [kind for _, kind, _ in readers]
        axis = self._channels(values, readers)
        bits = 8 if ALWAYS_8.intersection(kinds) else self.bits
        if self.bits == 16 or axis is None or _smaller_as_float16(values, bits, axis):
            if not _saves(values, 16, None):
                return []
            if np.abs(values).max() > _LARGEST_FLOAT16:
                self.overflowing.append(graph.tensors[t].name.decode())
                return []
            self._count("float16", values, kinds)
            self.unpacked.update(kinds)
            return [self._unpacking(graph, t, values, None, 0)]
        if not _saves(values, bits, axis):
            return []
        self._count(f"int{bits}", values, kinds)
        # Rows of tables are unpacked as they are looked up, whatever else computes in integers.
        unpacks = _DYNAMIC | {_LOOKUP} if self.integer else {_LOOKUP}
        if unpacks.issuperset(kinds):
            self._quantize(graph.tensors[t], values, bits, axis)
            for operator, kind, _ in readers:
                self._dynamic(operator, kind)
            return []
        self.unpacked.update(kinds)
        return [self._unpacking(graph, t, values, bits, axis)]

    def _count(self, dtype: str, values: np.ndarray, kinds: list[str]) -> None:
        self.values[dtype] += values.size
        self.kinds.setdefault(dtype, Counter()).update(kinds)

    def _channels(self, values: np.ndarray, readers: list[tuple[Any, str, int]]) -> int | None:
        """The axis of channels where a constant is a kernel to all its readers, else ``None``."""
        axes = set()
        for operator, kind, place in readers:
            if kind == "BATCH_MATMUL" and place == 1 and values.ndim >= 2:
                turned = operator.builtinOptions is not None and operator.builtinOptions.adjY
                axes.add(values.ndim - (2 if turned else 1))
            elif kind in KERNELS and KERNELS[kind][0] == place:
                axes.add(KERNELS[kind][1])
            else:
                return None
        return axes.pop() if len(axes) == 1 else None

    def _dynamic(self, operator: Any, kind: str) -> None:
        """Marks an operator as one whose weights are whole numbers and whose inputs are floats."""
        versions = {"FULLY_CONNECTED": 12, "CONV_2D": 7}
        if kind == _LOOKUP:
            return
        self.dynamic[kind] += 1
        code = self.model.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, versions[kind])
        if kind == "FULLY_CONNECTED":
            operator.builtinOptions.asymmetricQuantizeInputs = True

    def _quantize(self, tensor: Any, values: np.ndarray, bits: int | None, axis: int) -> None:
        """Turns a constant into one of whole numbers (of float16 for no bits), in place."""
        key = (tensor.buffer, values.shape, bits, axis)
        if key not in self.buffers:
            if bits is None:
                stored: np.ndarray = values.astype(np.float16)
                scale = None
            else:
                stored, scale = quantize_symmetric(values, bits, axis)
                stored = pairs(stored) if bits == 4 else stored
            self.buffers[key] = buffer_of(self.model, stored.tobytes()), scale
        tensor.buffer, scale = self.buffers[key]
        tensor.type = {None: FLOAT16, 8: INT8, 4: INT4}[bits]
        tensor.quantization = None
        if scale is not None:
            entry = self.schema.QuantizationParametersT()
            entry.scale, entry.zeroPoint = scale, np.zeros(len(scale), np.int64)
            entry.quantizedDimension = axis
            tensor.quantization = entry

    def _unpacking(
        self, graph: Any, t: int, values: np.ndarray, bits: int | None, axis: int
    ) -> Any:
        name = graph.tensors[t].name.decode()
        stored = self._tensor(
            graph, f"{name}/stored", FLOAT32, ([int(s) for s in values.shape], None)
        )
        graph.tensors[stored].buffer = graph.tensors[t].buffer
        self._quantize(graph.tensors[stored], values, bits, axis)
        graph.tensors[t].buffer = 0
        return self._operator("DEQUANTIZE", {None: 3, 8: 5, 4: 6}[bits], [stored], [t])

    def _drop_unused(self) -> None:
        """Empties buffers that no tensor reads any more."""
        used = {tensor.buffer for graph in self.model.subgraphs for tensor in graph.tensors}
        used |= {entry.buffer for entry in self.model.metadata or ()}
        for place, buffer in enumerate(self.model.buffers):
            if place not in used:
                buffer.data = None


def _smaller_as_float16(values: np.ndarray, bits: int, axis: int) -> bool:
    """Whether the scales of few values each take what their numbers save, as in 3 times 3."""
    return int(values.size) * (16 - bits) // 8 <= _SCALE * int(values.shape[axis])


def _saves(values: np.ndarray, bits: int, axis: int | None) -> bool:
    """Whether a file with a constant in so many bits is smaller than one with floats."""
    channels = 0 if axis is None else values.shape[axis]
    return values.size * (32 - bits) // 8 > _SAYING + _SCALE * channels


def pairs(numbers: np.ndarray) -> np.ndarray:
    """Two numbers of 4 bits a byte, the first in the lower half."""
    flat = numbers.ravel()
    flat = np.concatenate([flat, np.zeros(len(flat) % 2, np.int8)])
    low, high = flat[::2].view(np.uint8) & 15, flat[1::2].view(np.uint8) & 15
    return np.asarray(low | (high << 4), np.uint8)
