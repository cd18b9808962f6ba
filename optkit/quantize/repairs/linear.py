"""Layers that multiply by a matrix: how their weights follow when channels are scaled or shifted.

Each kind of layer is described by two tables of indices that broadcast against its kernel: which
channel of the input, and which channel of the output, an entry of the kernel belongs to. All
arithmetic follows from these two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optkit.runtime import tf_keras

__all__ = ["Linear", "is_linear_layer"]

_DENSE = ("Dense", "Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")


def is_linear_layer(layer: Any) -> bool:
    """Whether it is a layer that `Linear` knows: of tf_keras itself, channels last, in float32."""
    kinds = (*_DENSE, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)
    return (
        type(layer) in [getattr(tf_keras().layers, kind) for kind in kinds]
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and layer.compute_dtype == "float32"
        and all(weight.dtype.base_dtype.name == "float32" for weight in layer.weights)
    )


class Linear:
    """The weights of a layer, in float64 while they are worked on.

    Args:
        layer: A built layer that `is_linear_layer` knows; it is read, never changed.

    Attributes:
        layer: The layer.
        changed: Whether the weights are others than those of the layer.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self.changed = False
        kind = type(layer).__name__
        self._separable = kind in _SEPARABLE
        if self._separable:
            names = ("depthwise_kernel", "pointwise_kernel")
        else:
            names = ("depthwise_kernel" if kind in _DEPTHWISE else "kernel",) * 2
        self._into, self._out_of = names
        self._values = {
            name: getattr(layer, name).numpy().astype(np.float64) for name in dict.fromkeys(names)
        }
        self._bias = None if layer.bias is None else layer.bias.numpy().astype(np.float64)
        shape = self._values[self._into].shape
        if kind in _DEPTHWISE or self._separable:
            self.inputs = shape[-2]
            self._input = np.arange(shape[-2])[:, np.newaxis]
            middle = np.arange(shape[-2] * shape[-1]).reshape(shape[-2:])
            self._middle = middle
            self._output = np.arange(layer.filters) if self._separable else middle
            self.outputs = layer.filters if self._separable else middle.size
        elif kind in _TRANSPOSED:
            self.outputs, self.inputs = shape[-2:]
            self._input = np.arange(self.inputs)
            self._output = np.arange(self.outputs)[:, np.newaxis]
        else:
            groups = getattr(layer, "groups", 1)
            self.outputs = shape[-1]
            self.inputs = shape[-2] * groups
            self._output = np.arange(self.outputs)
            # Each group of outputs sees its own part of the inputs.
            first = self._output // (self.outputs // groups) * shape[-2]
            self._input = np.arange(shape[-2])[:, np.newaxis] + (first if groups > 1 else 0)

    def scale_inputs(self, scale: np.ndarray, shift: np.ndarray) -> None:
        """Makes it give on ``x`` what it gave on ``scale * x + shift``.

        Args:
            scale: One factor for each input channel.
            shift: One summand for each input channel; where there are some, `takes_shift` must hold.
        """
        kernel = self._values[self._into]
        if shift.any():
            if self._separable:
                middle = self._collect(kernel * shift[self._input], self._middle)
                pointwise = self._values[self._out_of]
                added = middle @ pointwise.reshape(-1, self.outputs)
            else:
                added = self._collect(kernel * shift[self._input], self._output)
            self._bias = added if self._bias is None else self._bias + added
        self._values[self._into] = kernel * scale[self._input]
        self.changed = True

    def scale_outputs(self, scale: np.ndarray, shift: np.ndarray) -> None:
        """Makes it give ``scale * y + shift`` where it gave ``y``, before its activation.

        Args:
            scale: One factor for each output channel.
            shift: One summand for each output channel.
        """
        self._values[self._out_of] = self._values[self._out_of] * scale[self._output]
        if self._bias is not None:
            self._bias = self._bias * scale + shift
        elif shift.any():
            self._bias = shift.copy()
        self.changed = True

    def input_ranges(self) -> np.ndarray:
        """The largest absolute weight of each input channel."""
        return self._largest(self._values[self._into], self._input, self.inputs)

    def output_ranges(self) -> np.ndarray:
        """The largest absolute weight of each output channel."""
        return self._largest(self._values[self._out_of], self._output, self.outputs)

    def config(self) -> dict[str, Any]:
        """The configuration of a layer that can hold the weights.

        A constraint was for the kernel as it was, and would undo the change in training.
        """
        config: dict[str, Any] = dict(self.layer.get_config())
        config["use_bias"] = self._bias is not None
        for name in config:
            if name.endswith("_constraint"):
                config[name] = None
        return config

    def assign_to(self, layer: Any) -> None:
        """Writes the weights to a built layer of that configuration."""
        for name, value in self._values.items():
            getattr(layer, name).assign(value.astype(np.float32))
        if self._bias is not None:
            layer.bias.assign(self._bias.astype(np.float32))

    def takes_shift(self, size: tuple[int | None, ...]) -> bool:
        """Whether a shift of its input is nothing but another bias, wherever the output is taken.

        It is where no zeros are padded: they would have to be shifted, too.

        Args:
            size: The spatial size of its input, without batch and channels; ``None`` where open.
        """
        layer = self.layer
        if type(layer).__name__ == "Dense":
            return True
        reach = [
            (width - 1) * dilation + 1
            for width, dilation in zip(layer.kernel_size, layer.dilation_rate, strict=True)
        ]
        if type(layer).__name__ in _TRANSPOSED:
            # Elsewhere some places of the output get less of the kernel than others.
            return all(width == 1 for width in reach) and all(step == 1 for step in layer.strides)
        if layer.padding == "valid":
            return True
        if layer.padding == "causal":
            return all(width == 1 for width in reach)
        if layer.padding != "same":
            return False
        spatial = size[len(size) - len(reach) :]
        places = zip(reach, layer.strides, spatial, strict=True)
        return all(_pads_nothing(width, stride, length) for width, stride, length in places)

    @staticmethod
    def _collect(values: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Sums of the values of each channel."""
        summed = values.sum(_axes_without(values, index))
        return np.bincount(index.ravel(), weights=summed.ravel())

    @staticmethod
    def _largest(values: np.ndarray, index: np.ndarray, channels: int) -> np.ndarray:
        ranges = np.zeros(channels)
        largest = np.abs(values).max(_axes_without(values, index))
        np.maximum.at(ranges, index.ravel(), largest.ravel())
        return ranges


def _axes_without(values: np.ndarray, index: np.ndarray) -> tuple[int, ...]:
    """The axes along which a table of indices that broadcasts against the values is the same."""
    shape = (1,) * (values.ndim - index.ndim) + index.shape
    return tuple(axis for axis, length in enumerate(shape) if length == 1)


def _pads_nothing(width: int, stride: int, length: int | None) -> bool:
    """Whether "same" pads no zeros along one axis."""
    if length is None:
        return width == 1
    return (math.ceil(length / stride) - 1) * stride + width <= length
