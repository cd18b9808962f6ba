"""Batch normalization as what it is when a model predicts: a factor and a summand of each channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.runtime import tf_keras

__all__ = ["Norm", "is_norm_layer"]

_NEARLY_ONE = 1e-6


def is_norm_layer(layer: Any) -> bool:
    """Whether it is a batch normalization of tf_keras itself, over the last axis, in float32."""
    layers = tf_keras().layers
    if type(layer) not in (layers.BatchNormalization, layers.experimental.SyncBatchNormalization):
        return False
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    return (
        axes == [layer.input_spec.ndim - 1]
        and not layer.renorm
        and layer.virtual_batch_size is None
        and layer.adjustment is None
        and layer.compute_dtype == "float32"
    )


class Norm:
    """The statistics of a batch normalization, in float64 while they are worked on.

    Args:
        layer: A built layer that `is_norm_layer` knows; it is read, never changed.

    Attributes:
        layer: The layer.
        changed: Whether the statistics are others than those of the layer.
        fixed: Whether the layer is now a mere summand, so that training must not touch it.
    """

    def __init__(self, layer: Any):
        def values(name: str, default: float) -> np.ndarray:
            variable = getattr(layer, name)
            if variable is None:
                return np.full(layer.moving_mean.shape, default)
            return np.asarray(variable.numpy(), np.float64)

        self.layer = layer
        self.changed = self.fixed = False
        self._gamma = values("gamma", 1.0)
        self._beta = values("beta", 0.0)
        self._mean = values("moving_mean", 0.0)
        self._variance = values("moving_variance", 1.0)

    @property
    def scale(self) -> np.ndarray:
        """The factor of each channel."""
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # whoever asks looks whether it is finite
            factor = self._gamma / np.sqrt(self._variance + self.layer.epsilon)
        return np.where(np.abs(factor - 1.0) < _NEARLY_ONE, 1.0, factor)

    @property
    def shift(self) -> np.ndarray:
        """The summand of each channel."""
        with np.errstate(invalid="ignore"):
            summand: np.ndarray = self._beta - self._mean * self.scale
        return summand

    @property
    def reach(self) -> float:
        """How far from zero the values that come in lie, by the statistics: three deviations."""
        return float((np.abs(self._mean) + 3.0 * np.sqrt(np.maximum(self._variance, 0.0))).max())

    def become_shift(self, shift: np.ndarray) -> None:
        """Gives up the factors, which other layers have taken, and keeps summands alone.

        Args:
            shift: One summand for each channel.
        """
        self._mean, self._beta = -shift, np.zeros_like(self._beta)
        self._gamma = np.ones_like(self._gamma)
        # A factor of exactly one is left out of the flatbuffer.
        self._variance = np.full_like(self._variance, 1.0 - self.layer.epsilon)
        self.changed = self.fixed = True

    def divide(self, scale: np.ndarray) -> None:
        """Makes it give ``y / scale`` on ``x / scale`` where it gave ``y`` on ``x``."""
        self._mean, self._beta = self._mean / scale, self._beta / scale
        self.changed = True

    def shift_inputs(self, shift: np.ndarray) -> None:
        """Makes it give on ``x`` what it gave on ``x + shift``."""
        self._mean = self._mean - shift
        self.changed = True

    def assign_to(self, layer: Any) -> None:
        """Writes the statistics to a built layer of the same configuration."""
        for name, value in (
            ("gamma", self._gamma),
            ("beta", self._beta),
            ("moving_mean", self._mean),
            ("moving_variance", self._variance),
        ):
            if getattr(layer, name) is not None:
                getattr(layer, name).assign(value.astype(np.float32))
