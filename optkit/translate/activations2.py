"""Activations that only Keras 3 has, or means otherwise than tf_keras, as functions for tf_keras.

Each is registered as ``optkit>keras3_NAME``, so that files which name them can be read.
"""

from __future__ import annotations

from typing import Any

import tf_keras

__all__ = ["NAMES", "keras3_activation"]

#: The activations of Keras 3 that have no equal in tf_keras.
NAMES = (
    "celu",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "relu6",
    "soft_shrink",
    "sparse_plus",
    "sparse_sigmoid",
    "sparsemax",
    "squareplus",
    "tanh_shrink",
    "threshold",
)


def _make(name: str) -> Any:
    def activation(x: Any) -> Any:
        import keras

        return getattr(keras.activations, name)(x)

    activation.__name__ = activation.__qualname__ = f"keras3_{name}"
    activation.__doc__ = f"Keras 3's activation `{name}`."
    return tf_keras.saving.register_keras_serializable(package="optkit")(activation)


_FUNCTIONS = {name: _make(name) for name in NAMES}
globals().update({function.__name__: function for function in _FUNCTIONS.values()})


def keras3_activation(name: str) -> Any:
    """Keras 3's activation of a name, as a function that tf_keras can save and read back."""
    return _FUNCTIONS[name]
