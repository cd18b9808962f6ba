"""Where the channels of a tensor come from, and where they go.

A repair moves a factor and a summand of each channel from one layer to another. What lies between
must let them through unchanged. Here that is found out, by the graph alone; what is not known
blocks the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.quantize.repairs.linear import is_linear_layer
from optkit.quantize.repairs.norm import is_norm_layer
from optkit.runtime import tensorflow, tf_keras

__all__ = [
    "Graph",
    "Way",
    "ceiling",
    "concatenates",
    "is_bent",
    "is_homogeneous",
    "is_plain",
    "joins",
    "passage",
]

# What these do to a channel does not depend on its factor and summand, when the model predicts.
_SAME = (
    "ActivityRegularization",
    "AlphaDropout",
    "Cropping1D",
    "Cropping2D",
    "Cropping3D",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "RepeatVector",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "UpSampling1D",
    "UpSampling2D",
    "UpSampling3D",
)
_AVERAGES = tuple(f"{g}AveragePooling{n}D" for g in ("", "Global") for n in (1, 2, 3))
_MAXIMA = tuple(f"{g}MaxPooling{n}D" for g in ("", "Global") for n in (1, 2, 3))
_ADDITIONS = ("__operators__.add", "math.add")
_JOINS = ("Add", "Average", "Maximum", "Minimum", "Subtract")
_PADDINGS = ("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")


@dataclass(frozen=True)
class End:
    """A layer with a matrix at the end of a way.

    Attributes:
        node: Where it is used.
        index: For each of its channels on this side, the channel that the way started with; -1 for
            those that come from elsewhere.
    """

    node: Any
    index: np.ndarray


@dataclass(frozen=True)
class Way:
    """What a factor and a summand of each channel must pass, and who takes them.

    Attributes:
        ends: The layers that take them.
        norms: Batch normalizations on the way, with the channels as in `End`.
        positive: Whether something on the way lets positive factors through only, and which layer.
        unshifted: Whether something on the way lets no summands through, and which layer.
        blocked: Why there is no way; empty where there is one.
    """

    ends: tuple[End, ...] = ()
    norms: tuple[End, ...] = ()
    positive: str = ""
    unshifted: str = ""
    blocked: str = ""

    def __add__(self, other: Way) -> Way:
        return Way(
            self.ends + other.ends,
            self.norms + other.norms,
            self.positive or other.positive,
            self.unshifted or other.unshifted,
            self.blocked or other.blocked,
        )


@dataclass(frozen=True)
class Passage:
    """How a layer without a matrix lets channels through.

    Attributes:
        repeat: How often each channel comes out.
        positive: Whether it lets positive factors through only.
        unshifted: Whether it lets no summands through.
    """

    repeat: int = 1
    positive: bool = False
    unshifted: bool = False


class Graph:
    """The uses of the layers of a model, and which tensors connect them.

    Args:
        model: A built functional or Sequential tf_keras model without models in it.

    Attributes:
        nodes: The uses of layers, each behind those that it needs.
        removed: Layers that count as gone: what goes in comes out.
    """

    def __init__(self, model: Any):
        self.nodes = tuple(
            node
            for depth in sorted(model._nodes_by_depth, reverse=True)
            for node in model._nodes_by_depth[depth]
            if not node.is_input
        )
        self.removed: set[int] = set()
        flat = tensorflow().nest.flatten
        self._outputs = {id(tensor) for tensor in model.outputs}
        self._makers = {id(tensor): node for node in self.nodes for tensor in flat(node.outputs)}
        self._takers: dict[int, list[Any]] = {}
        self._uses: dict[int, int] = {}
        owners: dict[int, set[int]] = {}
        for node in self.nodes:
            for tensor in {id(tensor): tensor for tensor in node.keras_inputs}.values():
                self._takers.setdefault(id(tensor), []).append(node)
            self._uses[id(node.layer)] = self._uses.get(id(node.layer), 0) + 1
            for weight in node.layer.weights:
                owners.setdefault(id(weight), set()).add(id(node.layer))
        self._shared = {owner for found in owners.values() if len(found) > 1 for owner in found}

    def takers(self, tensor: Any) -> tuple[Any, ...]:
        """The uses of layers that take a tensor, each once."""
        return tuple(self._takers.get(id(tensor), ()))

    def is_output(self, tensor: Any) -> bool:
        """Whether a tensor is an output of the model."""
        return id(tensor) in self._outputs

    def why_not(self, node: Any) -> str:
        """Why a layer cannot be changed where it is used; empty where it can."""
        layer = node.layer
        if self._uses[id(layer)] > 1:
            return f"{layer.name!r} is used in several places"
        if id(layer) in self._shared:
            return f"{layer.name!r} shares weights with another layer"
        if not is_plain(node):
            return f"{layer.name!r} is called with arguments of its own"
        return ""

    def forward(self, tensor: Any, channels: int, *, norms: bool = False) -> Way:
        """Where the channels of a tensor go, by all ways that they take.

        Args:
            tensor: The tensor.
            channels: How many channels it has on its last axis.
            norms: Whether batch normalizations let factors through; the caller then settles their
                statistics.
        """
        return self._forward(tensor, np.arange(channels), norms)

    def _forward(self, tensor: Any, index: np.ndarray, norms: bool) -> Way:
        if self.is_output(tensor):
            return Way(blocked="an output of the model needs it")
        way = Way()
        for node in self._takers.get(id(tensor), []):
            way += self._through(node, tensor, index, norms)
            if way.blocked:
                break
        return way

    def _through(self, node: Any, tensor: Any, index: np.ndarray, norms: bool) -> Way:
        layer = node.layer
        if is_linear_layer(layer):
            why = self.why_not(node)
            return Way(blocked=why) if why else Way(ends=(End(node, index),))
        if id(layer) in self.removed:
            return self._forward(node.outputs, index, norms)
        if norms and is_norm_layer(layer) and not self.why_not(node):
            rest = self._forward(node.outputs, index, norms)
            return Way(norms=(End(node, index),)) + rest
        if concatenates(node):
            parts = [
                index if other is tensor else np.full(other.shape[-1], -1)
                for other in node.keras_inputs
            ]
            return self._forward(node.outputs, np.concatenate(parts), norms)
        passed = passage(node)
        if passed is None:
            return Way(blocked=f"{layer.name!r} ({type(layer).__name__}) comes behind it")
        rest = self._forward(node.outputs, np.tile(index, passed.repeat), norms)
        return _marked(passed, layer) + rest

    def backward(self, tensor: Any, channels: int, taker: Any) -> Way:
        """Where the channels of a tensor that one layer alone takes come from.

        Args:
            tensor: The tensor.
            channels: How many channels it has on its last axis.
            taker: The use of the layer that takes it.
        """
        return self._backward(tensor, np.arange(channels), taker)

    def _backward(self, tensor: Any, index: np.ndarray, taker: Any) -> Way:
        node = self._makers.get(id(tensor))
        if node is None:
            return Way(blocked="it follows an input of the model")
        layer = node.layer
        if self.is_output(tensor) or self._takers[id(tensor)] != [taker]:
            return Way(blocked=f"the output of {layer.name!r} is used elsewhere, too")
        if is_linear_layer(layer):
            why = self.why_not(node)
            if not why and not is_homogeneous(layer):
                why = f"{layer.name!r} ends in an activation that factors do not pass"
            bent = layer.name if layer.activation is not tf_keras().activations.linear else ""
            if why:
                return Way(blocked=why)
            return Way(ends=(End(node, index),), positive=bent, unshifted=bent)
        if id(layer) in self.removed:
            return self._backward(node.keras_inputs[0], index, node)
        if concatenates(node):
            way, first = Way(), 0
            if len({id(part) for part in node.keras_inputs}) < len(node.keras_inputs):
                return Way(blocked=f"{layer.name!r} takes the same tensor twice")
            for part in node.keras_inputs:
                last = first + part.shape[-1]
                way += self._backward(part, index[first:last], node)
                first = last
            return way
        passed = passage(node)
        if passed is None or passed.repeat != 1:
            return Way(blocked=f"it follows {layer.name!r} ({type(layer).__name__})")
        return _marked(passed, layer) + self._backward(node.keras_inputs[0], index, node)


def _marked(passed: Passage, layer: Any) -> Way:
    return Way(
        positive=layer.name if passed.positive else "",
        unshifted=layer.name if passed.unshifted else "",
    )


def is_plain(node: Any) -> bool:
    """Whether a layer is called with one tensor, and as for predicting."""
    if len(node.keras_inputs) != 1 or not node.call_args:
        return False
    if node.call_args[0] is not node.keras_inputs[0]:
        return False
    settings = [value for value in node.call_args[1:] if value is not None]
    modes = {key: value for key, value in node.call_kwargs.items() if value is not None}
    return not settings and (not modes or (set(modes) == {"training"} and not modes["training"]))


def is_homogeneous(layer: Any) -> bool:
    """Whether the activation of a layer lets positive factors through: linear or ReLU."""
    activations = tf_keras().activations
    known = (activations.linear, activations.relu, tensorflow().nn.relu)
    return any(getattr(layer, "activation", None) is function for function in known)


def ceiling(layer: Any) -> float | None:
    """Up to which value the activation of a layer lets positive factors through.

    Infinite for linear and ReLU, 6 for ReLU6; ``None`` where there is no such value.
    """
    if is_homogeneous(layer):
        return np.inf
    if type(layer) is tf_keras().layers.ReLU:
        bent = layer.threshold or (layer.max_value is not None and layer.max_value <= 0)
        return None if bent else np.inf if layer.max_value is None else float(layer.max_value)
    return 6.0 if getattr(layer, "activation", None) is tensorflow().nn.relu6 else None


def is_bent(layer: Any) -> bool:
    """Whether it is a layer that is a ReLU, of whatever kind, and nothing else."""
    layers = tf_keras().layers
    if type(layer) is layers.Activation:
        homogeneous = (
            is_homogeneous(layer) and layer.activation is not tf_keras().activations.linear
        )
        return _float32(layer) and (homogeneous or ceiling(layer) == 6.0)
    return type(layer) in (layers.ReLU, layers.LeakyReLU, layers.PReLU) and _float32(layer)


def concatenates(node: Any) -> bool:
    """Whether it puts channels side by side."""
    layer = node.layer
    if type(layer) is not tf_keras().layers.Concatenate or not _takes_several(node):
        return False
    return layer.axis in (-1, len(node.keras_inputs[0].shape) - 1)


def joins(node: Any) -> str:
    """The kind of a layer that makes one tensor of several alike, channel by channel; else empty.

    Factors that all of them share come through. The sum of two tensors by ``+`` counts as ``Add``.
    """
    layer = node.layer
    kind = type(layer).__name__
    if kind == "TFOpLambda" and layer.get_config()["function"] in _ADDITIONS:
        plain = len(node.call_args) == 2 and not any(
            value is not None for value in node.call_kwargs.values()
        )
        kind = "Add" if plain and len(node.keras_inputs) == 2 and _float32(layer) else ""
    elif (
        kind not in _JOINS
        or type(layer) is not getattr(tf_keras().layers, kind)
        or not _takes_several(node)
    ):
        return ""
    sizes = {part.shape[-1] for part in (*node.keras_inputs, node.outputs)}
    return kind if len(sizes) == 1 else ""


def _takes_several(node: Any) -> bool:
    """Whether a layer is called with a list of tensors, and nothing else."""
    plain = len(node.call_args) == 1 and not any(
        value is not None and value is not False for value in node.call_kwargs.values()
    )
    arguments = node.call_args[0] if node.call_args else ()
    several = isinstance(arguments, list | tuple) and len(arguments) == len(node.keras_inputs)
    return plain and several and _float32(node.layer)


def passage(node: Any) -> Passage | None:
    """How a layer lets channels through; ``None`` where it does not, or is not known."""
    layer = node.layer
    layers = tf_keras().layers
    kind = type(layer).__name__
    if not is_plain(node) or not _float32(layer) or type(layer) is not getattr(layers, kind, None):
        return None
    if getattr(layer, "data_format", "channels_last") not in ("channels_last", None):
        return None
    source = tuple(node.keras_inputs[0].shape)
    if kind in _SAME:
        # Other ways of interpolating do not give a constant back as it was.
        plain = getattr(layer, "interpolation", "nearest") in ("nearest", "bilinear")
        return Passage() if plain else None
    if kind in _AVERAGES:
        return Passage()
    if kind in _MAXIMA:
        return Passage(positive=True)
    if kind in _PADDINGS:
        return Passage(unshifted=True)
    if kind in ("Flatten", "Reshape"):
        return _rearranged(source, tuple(node.outputs.shape))
    if kind == "Permute":
        return Passage() if layer.dims[-1] == len(layer.dims) else None
    if kind in ("LeakyReLU", "PReLU"):
        return Passage(positive=True, unshifted=True)
    if kind == "ReLU":
        bent = layer.max_value is None and not layer.threshold
        return Passage(positive=True, unshifted=True) if bent else None
    if kind == "Activation" and is_homogeneous(layer):
        bent = layer.activation is not tf_keras().activations.linear
        return Passage(positive=bent, unshifted=bent)
    return None


def _rearranged(source: tuple[int | None, ...], target: tuple[int | None, ...]) -> Passage | None:
    """Channels after values were put into another shape: the last axis is the fastest in both."""
    before, after = source[-1], target[-1]
    if len(source) < 2 or before is None or after is None or after % before:
        return None
    return Passage(repeat=after // before)


def _float32(layer: Any) -> bool:
    return bool(layer.compute_dtype == "float32")
