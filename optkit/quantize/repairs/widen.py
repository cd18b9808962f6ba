"""Narrow channels widened in front of depthwise convolutions.

An activation has one scale for all of its channels, so that a channel of small values is left with
few of the 256 steps. Kernels have a scale for each channel of their output. Between a layer that
makes the channels and a depthwise convolution, both with a scale of their own for each of them, a
factor a channel costs nothing: the kernels keep all their bits, and the activation gains some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.quantize.repairs.bench import Bench
from optkit.quantize.repairs.linear import is_linear_layer
from optkit.quantize.repairs.norm import is_norm_layer
from optkit.quantize.repairs.seen import Seen
from optkit.quantize.repairs.walk import ceiling, concatenates, is_bent, is_plain, joins, passage
from optkit.runtime import tensorflow

__all__ = ["Ties", "widen"]

_WIDEST = 64.0  # no channel is widened by more
_DEAD = 1e-4  # of the widest channel; what is below is a rest of weight decay, not a channel
_MARGIN = 2.0  # times what was seen of a channel is what a ReLU6 still lets through
_WIDENED = 1.01  # factors below count as none
_EACH = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")


@dataclass(frozen=True)
class _Place:
    """A tensor whose channels must not become too wide.

    Attributes:
        tensor: The tensor.
        channels: The numbers of its channels.
        ceiling: Where it is cut off; infinite where it is not.
        stored: Whether it has a scale of its own in a quantized file.
    """

    tensor: Any
    channels: np.ndarray
    ceiling: float
    stored: bool


class Ties:
    """Which channels of the tensors of a model share one factor, and whether that is free.

    Channels that are added to each other are one, as are those before and behind a ReLU.

    Args:
        bench: The bench; its graph is read, nothing is changed.

    Attributes:
        makers: Uses of layers with a matrix, and the numbers of the channels that they make.
        takers: Uses of depthwise convolutions, and the numbers of the channels that they take.
        norms: Batch normalizations between.
        places: Tensors with free channels that must not become too wide.
    """

    def __init__(self, bench: Bench):
        self._graph = bench.graph
        self._numbers: dict[int, np.ndarray | None] = {}
        self._parents: list[int] = []
        self._reasons: list[str] = []
        self.makers: list[tuple[Any, np.ndarray]] = []
        self.takers: list[tuple[Any, np.ndarray]] = []
        self.norms: list[tuple[Any, np.ndarray]] = []
        places: list[_Place] = []
        for tensor in bench.model.inputs:
            self._made(tensor, "it follows an input of the model")
        for node in self._graph.nodes:
            cut = self._add(node)
            for tensor in tensorflow().nest.flatten(node.outputs):
                if self._graph.is_output(tensor):
                    self._hold(tensor, "an output of the model needs it")
                channels = self._numbers[id(tensor)]
                stored = cut is not None and self._stored(tensor)
                if channels is not None and cut is not None and (stored or np.isfinite(cut)):
                    places.append(_Place(tensor, channels, cut, stored))
        self._settle()
        self.places = [place for place in places if self.free(place.channels).any()]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self._parents)

    def free(self, channels: np.ndarray) -> np.ndarray:
        """Which channels a factor is free for."""
        return np.asarray(~self._held[channels])

    def why_not(self, channels: np.ndarray) -> str:
        """Why no factor is free for any of some channels; empty where there is one."""
        if self.free(channels).any():
            return ""
        return self._why[int(channels[0])]

    # ------------------------------------------------------------------------------ going through

    def _add(self, node: Any) -> float | None:
        """Numbers what comes out of a layer.

        Returns:
            Where its outputs are cut off; ``None`` where they are what came in, or part of it.
        """
        layer = node.layer
        taken = [self._numbers.get(id(tensor)) for tensor in node.keras_inputs]
        known = [channels for channels in taken if channels is not None]
        kind = f"{layer.name!r} ({type(layer).__name__})"
        if is_linear_layer(layer):
            return self._add_linear(node)
        if len(known) == len(taken):
            if is_norm_layer(layer) and not self._graph.why_not(node):
                self.norms.append((node, known[0]))
                return self._comes_out(node, known[0])
            if concatenates(node):
                return self._comes_out(node, np.concatenate(known))
            if joins(node):
                for other in known[1:]:
                    self._tie(known[0], other)
                return self._comes_out(node, known[0])
            passed = passage(node)
            if passed is not None:
                self._comes_out(node, np.tile(known[0], passed.repeat))
                return np.inf if passed.unshifted and is_bent(layer) else None
            cut = ceiling(layer) if is_bent(layer) and is_plain(node) else None
            if cut is not None:
                self._comes_out(node, known[0])
                return cut
        for tensor in node.keras_inputs:
            self._hold(tensor, f"{kind} comes behind it")
        for tensor in tensorflow().nest.flatten(node.outputs):
            self._made(tensor, f"it follows {kind}")
        return None

    def _add_linear(self, node: Any) -> float | None:
        layer, why = node.layer, self._graph.why_not(node)
        if not why and type(layer).__name__ in _EACH:
            channels = self._numbers[id(node.keras_inputs[0])]
            if channels is not None:
                self.takers.append((node, channels))
        else:
            many = f"{layer.name!r} has one scale for all the channels that it takes"
            self._hold(node.keras_inputs[0], why or many)
        cut = ceiling(layer)
        if not why and cut is None:
            why = f"{layer.name!r} ends in an activation that factors do not pass"
        channels = self._made(node.outputs, why)
        if channels is not None:
            self.makers.append((node, channels))
        return cut

    def _comes_out(self, node: Any, channels: np.ndarray) -> float:
        self._numbers[id(node.outputs)] = channels
        return np.inf

    def _made(self, tensor: Any, why: str) -> np.ndarray | None:
        """Gives numbers to the channels of a tensor, held where there is a reason."""
        size = tensor.shape[-1] if tensor.shape.rank else None
        channels = None
        if size is not None:
            channels = np.arange(self.size, self.size + size)
            self._parents += channels.tolist()
            self._reasons += [why] * size
        self._numbers[id(tensor)] = channels
        return channels

    def _hold(self, tensor: Any, why: str) -> None:
        channels = self._numbers.get(id(tensor))
        for number in () if channels is None else channels:
            self._reasons[number] = self._reasons[number] or why

    def _tie(self, one: np.ndarray, other: np.ndarray) -> None:
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            first, second = map(self._root, pair)
            self._parents[max(first, second)] = min(first, second)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def _stored(self, tensor: Any) -> bool:
        """Whether it keeps a scale of its own: a ReLU is fused with what is before it."""
        takers = self._graph.takers(tensor)
        return not takers or not all(is_bent(node.layer) or concatenates(node) for node in takers)

    def _settle(self) -> None:
        self.roots = np.array([self._root(number) for number in range(self.size)], np.int64)
        reasons: dict[int, str] = {}
        for root, why in zip(self.roots.tolist(), self._reasons, strict=True):
            if why:
                reasons.setdefault(root, why)
        self._why: list[str] = [reasons.get(root, "") for root in self.roots.tolist()]
        self._held = np.array([bool(why) for why in self._why], bool)


def widen(
    bench: Bench, ties: Ties, seen: Mapping[int, Seen]
) -> tuple[tuple[str, ...], dict[str, str], bool]:
    """Widens narrow channels in front of depthwise convolutions.

    Args:
        bench: The bench.
        ties: Of its graph.
        seen: What was seen of the tensors of `Ties.places`, by their id.

    Returns:
        What was done, which depthwise convolutions were left and why, and whether the outputs are
        the same for every input.
    """
    factors = _factors(ties, seen)
    cut = np.zeros(ties.size, bool)
    for place in ties.places:
        cut[ties.roots[place.channels]] |= np.isfinite(place.ceiling)
    cut = cut[ties.roots] & (factors > 1)
    done, left = [], {}
    takers = [(node, channels) for node, channels in ties.takers if (factors[channels] > 1).any()]
    for node, channels in ties.makers:
        scale = factors[channels]
        if (scale == 1).all():
            continue
        bench.linear(node.layer).scale_outputs(scale, np.zeros_like(scale))
        roots = ties.roots[channels[scale > 1]]
        behind = [repr(t.layer.name) for t, c in takers if np.isin(roots, ties.roots[c]).any()]
        said = f"{node.layer.name}: widened for {' and '.join(dict.fromkeys(behind))}"
        within = f", exact within {_MARGIN:g} times what was seen" if cut[channels].any() else ""
        done.append(said + within)
    for node, channels in ties.norms:
        if (factors[channels] > 1).any():
            bench.norm(node.layer).divide(1.0 / factors[channels])
    for node, channels in takers:
        bench.linear(node.layer).scale_inputs(1.0 / factors[channels], np.zeros(len(channels)))
    for node, channels in ties.takers:
        why = ties.why_not(channels)
        if why:
            left[node.layer.name] = f"its channels are not widened: {why}"
    return tuple(done), left, not cut.any()


def _factors(ties: Ties, seen: Mapping[int, Seen]) -> np.ndarray:
    """A factor for each number, at least one: no tensor may become wider than its widest channel."""
    room = np.full(ties.size, _WIDEST)
    alive = np.zeros(ties.size, bool)
    for place in ties.places:
        roots = ties.roots[place.channels]
        found = seen[id(place.tensor)]
        low, high = np.maximum(-found.low, 0.0), np.maximum(found.high, 0.0)
        if place.stored:
            np.minimum.at(room, roots, _ratio(high.max(), high))
            np.minimum.at(room, roots, _ratio(low.max(), low))
            widest = np.maximum(low, high)
            np.logical_or.at(alive, roots, widest > _DEAD * widest.max())
        if np.isfinite(place.ceiling):
            np.minimum.at(room, roots, _ratio(place.ceiling / _MARGIN, high))
    factors = room[ties.roots]
    factors[~alive[ties.roots] | ~ties.free(np.arange(ties.size)) | (factors < _WIDENED)] = 1.0
    return factors


def _ratio(limit: float, reach: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(limit, reach, out=np.full_like(reach, np.inf), where=reach > 0))
