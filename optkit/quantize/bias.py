"""Bias correction: what rounding the weights shifts on average is taken out of the biases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from optkit.convert import Samples
from optkit.flatbuffer import FLOAT32, buffer_of, packed, unpacked
from optkit.quantize.calibrate import batches, observe
from optkit.quantize.floatfile import FloatFile

__all__ = ["correct_biases", "rounded_weights"]

_CHANNEL = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}
_LARGEST = {8: 127, 4: 7}


def rounded_weights(weights: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Weights as they come out of being stored: symmetric, with a scale a channel.

    Args:
        weights: The weights.
        axis: The axis of the output channels.
        bits: 8 or 4.

    Example:
        >>> rounded_weights(np.array([[1.27, 0.104], [0.0, 0.0]]), axis=0)
        array([[1.27, 0.1 ],
               [0.  , 0.  ]])
    """
    others = tuple(place for place in range(weights.ndim) if place != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest, 1) / _LARGEST[bits]
    return np.asarray(np.rint(weights / scale) * scale)


def correct_biases(file: FloatFile, samples: Samples, bits: int = 8) -> FloatFile:
    """A float file whose biases make up for what rounding its weights will shift on average.

    An output channel of a convolution or dense layer is off by the rounding errors of its weights
    times what goes in; the mean of that over the samples is subtracted from its bias. Operators
    without a bias are left as they are.

    Args:
        file: The float file. It is not changed.
        samples: As for `optkit.quantize.calibrate.calibrate`.
        bits: Bits that the weights will be stored in.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
    """
    from ai_edge_litert import schema_py_generated as schema

    places = [item for item in file.operations if item.kind in _CHANNEL and item.weights]
    wanted = {item.inputs[0] for item in places}
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def visit(name: str, values: np.ndarray) -> None:
        if name in wanted:
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + flat.sum(axis=0)
            counts[name] = counts.get(name, 0) + len(flat)

    observe(file, batches(file, samples), visit)
    model = unpacked(file.content)
    graph = model.subgraphs[0]
    for item in places:
        operator = graph.operators[item.index]
        taken = [int(tensor) for tensor in operator.inputs]
        if len(taken) < 3 or taken[2] < 0 or item.inputs[0] not in sums:
            continue
        weights = _constant(model, graph.tensors[taken[1]])
        bias = _constant(model, graph.tensors[taken[2]])
        if weights is None or bias is None:
            continue
        mean = sums[item.inputs[0]] / counts[item.inputs[0]]
        error = rounded_weights(weights, _CHANNEL[item.kind], bits) - weights
        shift = _mean_shift(item.kind, error, mean)
        if shift is None:
            continue
        # Of its own: equal biases of several operators are stored once.
        fresh = schema.TensorT()
        old = graph.tensors[taken[2]]
        fresh.shape, fresh.type, fresh.name = (
            old.shape,
            old.type,
            f"{item.outputs[0]}/bias".encode(),
        )
        fresh.buffer = buffer_of(model, (bias - shift).astype(np.float32).tobytes())
        operator.inputs = np.array([*taken[:2], len(graph.tensors), *taken[3:]], np.int32)
        graph.tensors.append(fresh)
    return dataclasses.replace(file, content=packed(model, len(file.content)))


def _mean_shift(kind: str, error: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """What errors of the weights add to each output channel on average; ``None`` if unknown."""
    if kind == "DEPTHWISE_CONV_2D":
        channels = error.shape[-1]
        if channels % len(mean):
            return None
        each = np.repeat(mean, channels // len(mean))
        return np.asarray(error.reshape(-1, channels).sum(axis=0) * each)
    if error.shape[-1] != len(mean):  # grouped convolutions, inputs that are flattened
        return None
    return np.asarray(error.reshape(len(error), -1, len(mean)).sum(axis=1) @ mean)


def _constant(model: Any, tensor: Any) -> np.ndarray | None:
    data = model.buffers[tensor.buffer].data
    if tensor.type != FLOAT32 or data is None or len(data) == 0:
        return None
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    return np.asarray(data, np.uint8).view(np.float32).reshape(shape).astype(np.float64)
