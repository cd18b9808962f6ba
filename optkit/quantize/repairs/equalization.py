"""Cross-layer equalization: channels of one tensor brought to ranges that suit each other.

A quantized tensor has one scale for all of its channels (a kernel, one for each channel of its
output at best), so a channel of small values next to one of large values is left with few of the
256 steps. Between two layers with matrices, a factor of each channel is free: the first can be
divided by it and the second multiplied. It is chosen so that both use the channel with equal
ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.quantize.repairs.bench import Bench, Repaired
from optkit.quantize.repairs.fold import fold_all
from optkit.quantize.repairs.linear import is_linear_layer
from optkit.quantize.repairs.walk import Way, is_homogeneous

__all__ = ["equalize"]

_ROUNDS = 100
_SETTLED = 1e-3  # the largest change of a factor, in a round, that counts as none
_DEAD = (
    1e-6  # of the widest channel's range; what is below is a rest of weight decay, not a channel
)


@dataclass(frozen=True)
class _Pair:
    """A layer, and the way from its output to all the layers that take it."""

    node: Any
    way: Way


def equalize(model: Any) -> Repaired:
    """Equalizes the ranges of channels between layers, exactly.

    Batch normalizations are folded first, as `fold_batch_norms` does. Then, for each layer with a
    matrix whose output reaches, through ReLU, pooling, padding, dropout, flattening or
    concatenation, nothing but other layers with a matrix, every channel ``i`` of it is divided by
    ``s_i = sqrt(r1_i * r2_i) / r2_i``, where ``r1_i`` and ``r2_i`` are the largest absolute weights
    with which it is made and used, and its uses are multiplied by it. Layers in a row change each
    other's ranges, so this is repeated until nothing changes. Channels that nothing makes or uses
    are left alone.

    The outputs stay what they are, up to rounding, when the model predicts. Whether its INT8 form
    gets better is to be measured: kernels quantized by channel of their output have little to
    gain, and ranges of activations may become wider.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.

    Returns:
        The repaired model; its layers keep their names.

    Example:
        >>> import tf_keras as keras
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(4, 3, activation="relu", name="first"),
        ...     keras.layers.Conv2D(2, 3, name="second"),
        ... ])
        >>> equalize(model).done
        ("first: with 'second'",)

    References:
        Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.1.
    """
    bench = Bench(model)
    folded, left = fold_all(bench)
    pairs = _pairs(bench)
    changed: dict[int, _Pair] = {}
    for _ in range(_ROUNDS):
        largest = 0.0
        for number, pair in enumerate(pairs):
            change = _equalize_pair(bench, pair)
            if change > _SETTLED:
                changed[number] = pair
            largest = max(largest, change)
        if largest <= _SETTLED:
            break
    done = tuple(
        f"{pair.node.layer.name}: with "
        + " and ".join(dict.fromkeys(repr(end.node.layer.name) for end in pair.way.ends))
        for _, pair in sorted(changed.items())
    )
    repaired, names = bench.build()
    return Repaired(repaired, folded + done, left, names)


def _pairs(bench: Bench) -> list[_Pair]:
    """The layers whose channels are free, from the input to the output."""
    found = []
    for node in bench.graph.nodes:
        layer = node.layer
        if not is_linear_layer(layer) or bench.graph.why_not(node) or not is_homogeneous(layer):
            continue
        way = bench.graph.forward(node.outputs, bench.linear(layer).outputs, norms=True)
        if way.ends and not way.blocked:
            found.append(_Pair(node, way))
    return found


def _equalize_pair(bench: Bench, pair: _Pair) -> float:
    """Settles the factors of one pair; returns by how much the largest differs from one."""
    first = bench.linear(pair.node.layer)
    made = first.output_ranges()
    used = np.zeros_like(made)
    for end in pair.way.ends:
        own = end.index >= 0
        ranges = bench.linear(end.node.layer).input_ranges()
        np.maximum.at(used, end.index[own], ranges[own])
    alive = (made > _DEAD * made.max()) & (used > _DEAD * used.max())
    scale = np.ones_like(made)
    scale[alive] = np.sqrt(made[alive] * used[alive]) / used[alive]
    change = float(np.abs(np.log(scale)).max())
    if change <= _SETTLED:
        return change
    first.scale_outputs(1.0 / scale, np.zeros_like(scale))
    for end in pair.way.norms:
        bench.norm(end.node.layer).divide(_of(scale, end.index))
    for end in pair.way.ends:
        factors = _of(scale, end.index)
        bench.linear(end.node.layer).scale_inputs(factors, np.zeros_like(factors))
    return change


def _of(scale: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The factors of the channels that an end has; those from elsewhere keep theirs."""
    return np.where(index >= 0, scale[index], 1.0)
