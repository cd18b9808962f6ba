"""Channels whose weights are too small for their bias, in files of integers.

A bias is stored in steps of the input's times the weight's. Where all weights of a channel are (nearly)
0, as pruning and training leave some, these steps are so small that 32 bits do not reach the bias,
and ai-edge-quantizer cuts it off, or turns its sign. Such channels get larger steps here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.flatbuffer import FLOAT32, buffer_of, operator_name, packed, unpacked
from optkit.quantize.floatfile import FloatFile
from optkit.quantize.weights import pairs

__all__ = ["widen_silent_channels"]

_INT8, _INT64, _INT4 = 9, 4, 17
_MOST = {_INT8: 127, _INT4: 7}
#: How many steps a bias may be large, by type of weights: sums of products need the rest of 32 bits,
#: and kernels for 4 bits count in sixteenths.
_STEPS = {_INT8: 2.0**30, _INT4: 2.0**25}
#: Where input, weights and bias stand.
_PLACES = {
    "FULLY_CONNECTED": (0, 1, 2),
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}


def widen_silent_channels(content: bytes, file: FloatFile) -> bytes:
    """A file of integers whose biases are all within reach.

    Args:
        content: The bytes of the file, its tensors named as those of the float file.
        file: The float file that it was made of.
    """
    model = unpacked(content)
    floats: dict[bytes, np.ndarray] = {}
    changed = False
    for graph in model.subgraphs:
        users: dict[int, list[tuple[int, int]]] = {}  # of weights: their inputs and biases
        foreign: set[int] = set()
        for operator in graph.operators:
            taken = [int(t) for t in operator.inputs]
            kind = operator_name(model.operatorCodes[operator.opcodeIndex])
            places = _PLACES.get(kind, ())
            if places and len(taken) > max(places) and taken[places[2]] >= 0:
                given, weight, bias = (taken[place] for place in places)
                users.setdefault(weight, []).append((given, bias))
            else:
                foreign.update(taken)
        for weight, pairs_of in users.items():
            if weight in foreign or graph.tensors[weight].type not in _MOST:
                continue
            floats = floats or _constants(file)
            changed |= _widen(model, graph, weight, pairs_of, floats)
    return packed(model, len(content)) if changed else content


def _constants(file: FloatFile) -> dict[bytes, np.ndarray]:
    model = unpacked(file.content)
    found = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == FLOAT32 and data is not None and len(data):
            values = np.asarray(data, np.uint8).view(np.float32)
            found[tensor.name] = values.reshape([int(size) for size in tensor.shape])
    return found


def _widen(
    model: Any,
    graph: Any,
    weight: int,
    users: list[tuple[int, int]],
    floats: dict[bytes, np.ndarray],
) -> bool:
    kernel = graph.tensors[weight]
    values = floats.get(kernel.name)
    biases = [floats.get(graph.tensors[bias].name) for _, bias in users]
    if values is None or any(bias is None for bias in biases):
        return False
    scale = np.asarray(kernel.quantization.scale, np.float32)
    needed = scale.copy()
    for (given, _), bias in zip(users, biases, strict=True):
        if bias is None or graph.tensors[given].quantization is None:
            return False
        step = np.float32(graph.tensors[given].quantization.scale[0])
        least = np.abs(bias).ravel() / (step * np.float32(_STEPS[kernel.type]))
        needed = np.maximum(needed, least if len(scale) > 1 else least.max())
    if (needed <= scale).all():
        return False
    axis = int(kernel.quantization.quantizedDimension) if len(scale) > 1 else 0
    along = [1] * values.ndim
    along[axis] = len(needed)
    most = _MOST[kernel.type]
    numbers = np.clip(np.rint(values / needed.reshape(along)), -most, most).astype(np.int8)
    stored = pairs(numbers) if kernel.type == _INT4 else numbers
    kernel.buffer = buffer_of(model, stored.tobytes())
    kernel.quantization.scale = needed
    for (given, place), bias in zip(users, biases, strict=True):
        tensor = graph.tensors[place]
        steps = np.float32(graph.tensors[given].quantization.scale[0]) * needed
        kind = np.int64 if tensor.type == _INT64 else np.int32
        whole = np.rint(np.asarray(bias, np.float64).ravel() / steps).astype(kind)
        tensor.buffer = buffer_of(model, whole.tobytes())
        tensor.quantization.scale = steps.astype(np.float32)
    return True
