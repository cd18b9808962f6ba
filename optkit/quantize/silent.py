"""Channels whose weights are too small for their bias, in files of integers.

A bias is stored in steps of the input's times the weight's. Where all weights of a channel are (nearly)
0, as pruning and training leave some, these steps are so small that 32 bits do not reach the bias,
and ai-edge-quantizer cuts it off, or turns its sign. Such channels get larger steps here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from optkit.flatbuffer import INT4, INT8, INT64, buffer_of, operator_name, packed, unpacked
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.weights import pairs

__all__ = ["widen_silent_channels"]

_MOST = {INT8: 127, INT4: 7}
#: How many steps a bias may be large, by type of weights: sums of products need the rest of 32 bits,
#: and kernels for 4 bits count in sixteenths.
_STEPS = {INT8: 2.0**30, INT4: 2.0**25}
#: Where input, weights and bias stand.
_PLACES = {
    "FULLY_CONNECTED": (0, 1, 2),
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}


@dataclass(frozen=True)
class _Silent:
    """Weights of which channels have steps that are too small.

    Attributes:
        graph: Index of the subgraph.
        weight: Index of the tensor.
        users: Indices of the inputs and biases that it goes with.
        scale: The steps that it needs, one a channel.
    """

    graph: int
    weight: int
    users: tuple[tuple[int, int], ...]
    scale: np.ndarray


def widen_silent_channels(content: bytes, file: FloatFile) -> bytes:
    """A file of integers whose biases are all within reach.

    Args:
        content: The bytes of the file, its tensors named as those of the float file.
        file: The float file that it was made of.

    Returns:
        The bytes of the file; those that came where nothing is out of reach.
    """
    found = list(_silent(content, file))
    if not found:
        return content
    model = unpacked(content)
    for item in found:
        _widen(model, item, file)
    return packed(model, len(content))


def _silent(content: bytes, file: FloatFile) -> Iterator[_Silent]:
    """Looks through the bytes as they are: few files have such channels, and unpacking takes long."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    kinds = [_kind(model.OperatorCodes(k)) for k in range(model.OperatorCodesLength())]
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        users: dict[int, list[tuple[int, int]]] = {}  # of weights: their inputs and biases
        foreign: set[int] = set()
        for k in range(graph.OperatorsLength()):
            operator = graph.Operators(k)
            taken = [operator.Inputs(j) for j in range(operator.InputsLength())]
            places = _PLACES.get(kinds[operator.OpcodeIndex()], ())
            if places and len(taken) > max(places) and taken[places[2]] >= 0:
                given, weight, bias = (taken[place] for place in places)
                users.setdefault(weight, []).append((given, bias))
            else:
                foreign.update(taken)
        for weight, own in users.items():
            if weight not in foreign and graph.Tensors(weight).Type() in _MOST:
                scale = _needed(graph, weight, own, file)
                if scale is not None:
                    yield _Silent(number, weight, tuple(own), scale)


def _kind(code: Any) -> str:
    """The kind of operator of an entry in the table that is not unpacked."""
    return operator_name(
        SimpleNamespace(
            customCode=code.CustomCode(),
            builtinCode=code.BuiltinCode(),
            deprecatedBuiltinCode=code.DeprecatedBuiltinCode(),
        )
    )


def _needed(
    graph: Any, weight: int, users: list[tuple[int, int]], file: FloatFile
) -> np.ndarray | None:
    """The steps that weights need for their biases; ``None`` where theirs will do."""
    kernel = graph.Tensors(weight)
    scale = _scale_of(kernel)
    if scale is None or kernel.Name() not in file.constants:
        return None
    needed = scale.copy()
    for given, place in users:
        bias, steps = (
            file.constants.get(graph.Tensors(place).Name()),
            _scale_of(graph.Tensors(given)),
        )
        if bias is None or steps is None:
            return None
        least = np.abs(bias).ravel() / (steps[0] * np.float32(_STEPS[kernel.Type()]))
        needed = np.maximum(needed, least if len(scale) > 1 else least.max())
    return None if (needed <= scale).all() else needed


def _scale_of(tensor: Any) -> np.ndarray | None:
    found = tensor.Quantization()
    if found is None or found.ScaleIsNone():
        return None
    return np.asarray(found.ScaleAsNumpy(), np.float32)


def _widen(model: Any, item: _Silent, file: FloatFile) -> None:
    graph, needed = model.subgraphs[item.graph], item.scale
    kernel = graph.tensors[item.weight]
    values = file.constants[kernel.name]
    axis = int(kernel.quantization.quantizedDimension) if len(needed) > 1 else 0
    along = [1] * values.ndim
    along[axis] = len(needed)
    most = _MOST[kernel.type]
    numbers = np.clip(np.rint(values / needed.reshape(along)), -most, most).astype(np.int8)
    stored = pairs(numbers) if kernel.type == INT4 else numbers
    kernel.buffer = buffer_of(model, stored.tobytes())
    kernel.quantization.scale = needed
    for given, place in item.users:
        tensor = graph.tensors[place]
        steps = np.float32(graph.tensors[given].quantization.scale[0]) * needed
        kind = np.int64 if tensor.type == INT64 else np.int32
        bias = file.constants[tensor.name].astype(np.float64).ravel()
        tensor.buffer = buffer_of(model, np.rint(bias / steps).astype(kind).tobytes())
        tensor.quantization.scale = steps.astype(np.float32)
