"""Bias correction: what quantizing shifts on average is taken out of the biases.

Two ways. `correct_biases` works out what rounding the weights shifts; it takes one run of the float
file. `settle_biases` compares the quantized file with the float one, operator by operator, each with
those before it already corrected; it takes a run of the quantized file an operator, and sees what
rounding the activations shifts as well.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from optkit.convert import Samples
from optkit.flatbuffer import buffer_of, floats_of, packed, unpacked
from optkit.quantize.calibrate import batches, observe, runs
from optkit.quantize.floatfile import FloatFile, Operation

__all__ = [
    "correct_biases",
    "rounded_weights",
    "settle_biases",
    "uncorrected",
    "with_own_biases",
]

_CHANNEL = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}
_LARGEST = {8: 127, 4: 7}
_SETTLED_ON = 32  # samples that means are compared on


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
    places = _correctable(file)
    means = _means(file, batches(file, samples), {item.inputs[0] for item in places})
    model = unpacked(file.content)
    graph = model.subgraphs[0]
    for item in places:
        taken = [int(tensor) for tensor in graph.operators[item.index].inputs]
        if _bias_of(model, item) is None or item.inputs[0] not in means:
            continue
        weights = floats_of(model, graph.tensors[taken[1]])
        if weights is None:
            continue
        weights = weights.astype(np.float64)
        error = rounded_weights(weights, _CHANNEL[item.kind], bits) - weights
        shift = _mean_shift(item.kind, error, means[item.inputs[0]])
        if shift is not None:
            _lower_bias(model, item, shift)
    return dataclasses.replace(file, content=packed(model, len(file.content)))


def settle_biases(
    file: FloatFile,
    make: Callable[[FloatFile], bytes],
    samples: Samples,
    keep_float: Collection[int] = (),
) -> FloatFile:
    """A float file whose biases make up for what quantizing shifts on average, operator by operator.

    Of each convolution and dense layer in turn, the mean of every output channel in the quantized
    file is brought to that in the float file. Where an activation is fused with it, the mean behind
    that is compared, so that the shift is made up for in part.

    Args:
        file: The float file. It is not changed.
        make: Makes a quantized file of one like it.
        samples: As for `optkit.quantize.calibrate.calibrate`; the first ones are taken.
        keep_float: Indices of operators that stay float, and as they are.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
        2019, section 4.2 (empirical bias correction).
    """
    parts = _first(batches(file, samples))
    model = unpacked(file.content)
    places = [
        item
        for item in _correctable(file)
        if item.index not in keep_float and _bias_of(model, item) is not None
    ]
    wanted = _means(file, iter(parts), {item.outputs[0] for item in places})
    for item in places:
        settled = dataclasses.replace(file, content=packed(model, len(file.content)))
        found = _mean_stored(settled, make(settled), parts, item.outputs[0])
        if found is not None and item.outputs[0] in wanted:
            _lower_bias(model, item, found - wanted[item.outputs[0]])
    return dataclasses.replace(file, content=packed(model, len(file.content)))


def _correctable(file: FloatFile) -> list[Operation]:
    """Convolutions and dense layers whose weights no other operator uses.

    A layer that is used several times, in each step of a recurrent one say, has one bias for all.
    """
    users: Counter[str] = Counter(name for item in file.operations for name in item.weights)
    return [
        item
        for item in file.operations
        if item.kind in _CHANNEL and item.weights and all(users[name] == 1 for name in item.weights)
    ]


def uncorrected(file: FloatFile, exact: FloatFile) -> dict[int, tuple[int, bytes]]:
    """Where a file with corrected biases holds them, and what stood there before.

    A correction is for rounded numbers: an operator that is kept in float needs its own bias.

    Args:
        file: What `correct_biases` or `settle_biases` gave.
        exact: The file that was given to it.

    Returns:
        By index of the operator, the place of its bias in the bytes of the file, and the bytes that
        belong there if it stays in float.
    """
    model, before = unpacked(file.content), unpacked(exact.content)
    start = _address(np.frombuffer(file.content, np.uint8))
    found = {}
    for item in file.operations:
        if item.kind not in _CHANNEL:
            continue
        old, new = _bias_of(before, item), _bias_of(model, item)
        if old is None or new is None or np.array_equal(old, new):
            continue
        graph = model.subgraphs[0]
        tensor = graph.tensors[int(graph.operators[item.index].inputs[2])]
        place = _address(np.asarray(model.buffers[tensor.buffer].data)) - start
        found[item.index] = (place, old.astype(np.float32).tobytes())
    return found


def with_own_biases(
    file: FloatFile, places: Mapping[int, tuple[int, bytes]], keep_float: Collection[int]
) -> FloatFile:
    """The file with the biases of operators that stay in float as they were.

    Args:
        file: What `correct_biases` or `settle_biases` gave.
        places: What `uncorrected` found in it.
        keep_float: Indices of operators that stay float.
    """
    changed = [places[index] for index in keep_float if index in places]
    if not changed:
        return file
    content = bytearray(file.content)
    for place, own in changed:
        content[place : place + len(own)] = own
    return dataclasses.replace(file, content=bytes(content))


def _address(values: np.ndarray) -> int:
    return int(values.__array_interface__["data"][0])


def _first(found: Iterator[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The batches of the first samples: run at once, those of a large model would fill memory."""
    parts, left = [], _SETTLED_ON
    for leaves in found:
        parts.append([leaf[:left] for leaf in leaves])
        left -= len(leaves[0])
        if left <= 0:
            break
    return parts


def _means(
    file: FloatFile, samples: Iterator[list[np.ndarray]], names: Collection[str]
) -> dict[str, np.ndarray]:
    """The mean of each channel of activations of the float file, by name of the tensor."""
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def visit(name: str, values: np.ndarray) -> None:
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        sums[name] = sums.get(name, 0.0) + flat.sum(axis=0)
        counts[name] = counts.get(name, 0) + len(flat)

    observe(file, samples, visit, names=names)
    return {name: np.asarray(total / counts[name]) for name, total in sums.items()}


def _mean_stored(
    file: FloatFile, content: bytes, parts: list[list[np.ndarray]], name: str
) -> np.ndarray | None:
    """The mean of each channel of one activation of a quantized file; ``None`` if not found."""
    total, count = np.zeros(()), 0
    scale, zero_point = 0.0, 0
    for interpreter in runs(file, iter(parts), content):
        detail = next((d for d in interpreter.get_tensor_details() if d["name"] == name), None)
        if detail is None:
            return None
        scale, zero_point = detail["quantization"]
        values = interpreter.get_tensor(detail["index"]).astype(np.float64)
        flat = values.reshape(-1, values.shape[-1])
        total, count = total + flat.sum(axis=0), count + len(flat)
    mean = total / count
    return np.asarray((mean - zero_point) * scale if scale else mean)


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


def _bias_of(model: Any, item: Operation) -> np.ndarray | None:
    """The bias of an operator; ``None`` where it has none that is a constant."""
    graph = model.subgraphs[0]
    taken = [int(tensor) for tensor in graph.operators[item.index].inputs]
    if len(taken) < 3 or taken[2] < 0:
        return None
    found = floats_of(model, graph.tensors[taken[2]])
    return None if found is None else found.astype(np.float64)


def _lower_bias(model: Any, item: Operation, shift: np.ndarray) -> None:
    """Subtracts from the bias of an operator, in place."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    operator = graph.operators[item.index]
    taken = [int(tensor) for tensor in operator.inputs]
    bias = _bias_of(model, item)
    if bias is None or bias.shape != shift.shape:
        return
    content = (bias - shift).astype(np.float32)
    name = f"{item.outputs[0]}/bias".encode()
    old = graph.tensors[taken[2]]
    if old.name == name:
        model.buffers[old.buffer].data = np.frombuffer(content.tobytes(), np.uint8)
        return
    # One of its own: equal biases of several operators are stored once.
    fresh = schema.TensorT()
    fresh.shape, fresh.type, fresh.name = old.shape, old.type, name
    fresh.buffer = buffer_of(model, content.tobytes())
    operator.inputs = np.array([*taken[:2], len(graph.tensors), *taken[3:]], np.int32)
    graph.tensors.append(fresh)
