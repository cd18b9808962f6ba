"""Activations that tf_keras means otherwise than Keras 3, as functions for Keras 3."""

from __future__ import annotations

from typing import Any

import keras

from optkit.runtime import tf_keras

__all__ = ["tf_keras_activation"]


@keras.saving.register_keras_serializable(package="optkit")  # type: ignore[untyped-decorator]
def tf_keras_hard_sigmoid(x: Any) -> Any:
    """``hard_sigmoid`` of Keras 2: ``clip(0.2 x + 0.5, 0, 1)``."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable(package="optkit")  # type: ignore[untyped-decorator]
def tf_keras_leaky_relu(x: Any) -> Any:
    """``tf.nn.leaky_relu`` with its slope of 0.2."""
    return keras.ops.leaky_relu(x, negative_slope=0.2)


def tf_keras_activation(name: str) -> Any:
    """The activation of tf_keras under a name, as a function that Keras 3 can save and read back."""
    same = {"log_softmax": "log_softmax", "relu6": "relu6"}
    if name in same:
        return getattr(keras.activations, same[name])
    return globals().get(f"tf_keras_{name}") or getattr(tf_keras().activations, name)
