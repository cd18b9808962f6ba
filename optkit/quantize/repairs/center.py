"""Means of channels taken off where nothing but a summand lies between, and put back behind.

A channel far from zero that varies little costs twice when it is quantized: the one scale of its
tensor is as wide as the distance, and the rounding errors of the weights that take it are
multiplied by it. Where a layer without an activation reaches nothing but layers with matrices, its
means can be taken off, and the biases of those layers make up for them, whatever the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optkit.quantize.repairs.bench import Bench
from optkit.quantize.repairs.linear import is_linear_layer
from optkit.quantize.repairs.norm import is_norm_layer
from optkit.quantize.repairs.seen import Seen
from optkit.quantize.repairs.walk import concatenates, joins, passage
from optkit.runtime import tensorflow, tf_keras

__all__ = ["center", "centered_layers"]

_ACTIVATIONS = ("Activation", "ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax", "ThresholdedReLU")
_CENTERED = 1e-3  # of the width of a tensor: means that count as none


def centered_layers(bench: Bench) -> tuple[list[Any], dict[str, str]]:
    """The uses of layers whose means can be taken off.

    Returns:
        Them, and the names of others without an activation, in the layer or right behind it, with
        the reason why theirs cannot.
    """
    obstacles = _obstacles(bench)
    found, left = [], {}
    for node in bench.graph.nodes:
        layer = node.layer
        if not is_linear_layer(layer) or layer.activation is not tf_keras().activations.linear:
            continue
        why = bench.graph.why_not(node) or obstacles[id(node.outputs)]
        behind = bench.graph.takers(node.outputs)
        if why and any(type(taker.layer).__name__ in _ACTIVATIONS for taker in behind):
            continue
        if why:
            left[layer.name] = f"not centered: {why}"
        else:
            found.append(node)
    return found, left


def _obstacles(bench: Bench) -> dict[int, str]:
    """Why what is behind a tensor cannot make up for a summand; empty where it can."""
    graph = bench.graph
    found: dict[int, str] = {}
    for node in reversed(graph.nodes):
        for tensor in tensorflow().nest.flatten(node.outputs):
            takers = graph.takers(tensor)
            why = "" if takers else "nothing takes it"
            if graph.is_output(tensor):
                why = "an output of the model needs it"
            for taker in takers:
                why = why or _obstacle(bench, taker, found)
            found[id(tensor)] = why
    return found


def _obstacle(bench: Bench, node: Any, found: Mapping[int, str]) -> str:
    """Why a layer neither takes summands up nor lets them through, as far as is known behind it."""
    layer = node.layer
    name = repr(layer.name)
    if is_linear_layer(layer):
        size = tuple(node.keras_inputs[0].shape)[1:-1]
        padded = (
            "" if bench.linear(layer).takes_shift(size) else f"{name} behind it pads with zeros"
        )
        return bench.graph.why_not(node) or padded
    if is_norm_layer(layer):
        return bench.graph.why_not(node)
    if concatenates(node) or joins(node) in _SUMS:
        return found[id(node.outputs)]
    passed = passage(node)
    if passed is None:
        return f"{name} ({type(layer).__name__}) comes behind it"
    return f"no summand passes {name}, behind it" if passed.unshifted else found[id(node.outputs)]


# What becomes of the summands of the parts.
_SUMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Add": lambda parts: np.asarray(parts.sum(axis=0)),
    "Average": lambda parts: np.asarray(parts.mean(axis=0)),
    "Subtract": lambda parts: np.asarray(parts[0] - parts[1]),
}


def center(
    bench: Bench, nodes: list[Any], seen: Mapping[int, Seen]
) -> tuple[tuple[str, ...], dict[int, np.ndarray]]:
    """Takes means off, and has the layers behind make up for them.

    Args:
        bench: The bench.
        nodes: As `centered_layers` gives them.
        seen: What was seen of their outputs, by id of the tensor.

    Returns:
        What was done, and the summands that tensors have got by it, by their id.
    """
    wanted = {id(node.layer) for node in nodes}
    moved: dict[int, np.ndarray] = {}
    done = []
    for node in bench.graph.nodes:
        layer = node.layer
        parts = [moved.get(id(tensor)) for tensor in node.keras_inputs]
        if any(part is not None for part in parts):
            taken = [
                np.zeros(tensor.shape[-1]) if part is None else part
                for tensor, part in zip(node.keras_inputs, parts, strict=True)
            ]
            shift = _through(bench, node, taken)
            if shift is not None:
                moved[id(node.outputs)] = shift
        if id(layer) in wanted:
            shift = -_offset(seen[id(node.outputs)])
            if shift.any():
                bench.linear(layer).scale_outputs(np.ones_like(shift), shift)
                moved[id(node.outputs)] = shift
                done.append(f"{layer.name}: centered")
    return tuple(done), moved


def _through(bench: Bench, node: Any, taken: list[np.ndarray]) -> np.ndarray | None:
    """The summands behind a layer; ``None`` where it made up for them."""
    layer = node.layer
    if is_linear_layer(layer):
        bench.linear(layer).scale_inputs(np.ones_like(taken[0]), -taken[0])
        return None
    if is_norm_layer(layer):
        bench.norm(layer).shift_inputs(-taken[0])
        return None
    if concatenates(node):
        return np.concatenate(taken)
    kind = joins(node)
    if kind:
        return _SUMS[kind](np.stack(taken))
    passed = passage(node)
    return np.tile(taken[0], 1 if passed is None else passed.repeat)


def _offset(seen: Seen) -> np.ndarray:
    """What to take off: the mean, or what is nearest to it and leaves the tensor narrowest.

    That is as wide as its widest channel, of which exactly the mean is taken off.
    """
    widest = int(np.argmax(seen.high - seen.low))
    low, high = (edge[widest] - seen.mean[widest] for edge in (seen.low, seen.high))
    offset = np.clip(seen.mean, seen.high - high, seen.low - low)
    width = max(seen.high.max(), 0.0) - min(seen.low.min(), 0.0)
    return offset if np.abs(offset).max() > _CENTERED * width else np.zeros_like(offset)
