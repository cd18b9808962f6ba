"""Activations, and other plain functions of one Keras, in the other.

Where both libraries mean the same by a name, the other's function of that name is taken. Where they
do not, such as ``hard_sigmoid``, the function itself is taken over under a name of its own, so that
it is read back as what it was.
"""

from __future__ import annotations

from typing import Any

from optkit.runtime import keras as keras3
from optkit.runtime import tf_keras

__all__ = ["SAME_ACTIVATIONS", "function_to_keras3", "function_to_tf_keras"]

#: Keras 3's name of an activation to that of tf_keras, where they are equal.
SAME_ACTIVATIONS = {
    "elu": "elu",
    "exponential": "exponential",
    "gelu": "gelu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "silu": "swish",
    "softmax": "softmax",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
}


def function_to_tf_keras(function: Any) -> Any:
    """The tf_keras function for a Keras 3 function; another function as it is."""
    home, name = (function.__module__ or ""), function.__name__
    if home == "optkit.translate.activations3":
        return getattr(tf_keras().activations, name.removeprefix("tf_keras_"))
    if home.partition(".")[0] != "keras":
        return function
    keras, legacy = keras3(), tf_keras()
    if getattr(keras.activations, name, None) is function:
        if name in SAME_ACTIVATIONS:
            return getattr(legacy.activations, SAME_ACTIVATIONS[name])
        from optkit.translate import activations2

        return activations2.keras3_activation(name)
    for module in ("losses", "metrics"):
        if getattr(getattr(keras, module), name, None) is function:
            return getattr(getattr(legacy, module), name, function)
    return function  # Keras 3's functions run on TensorFlow's tensors


def function_to_keras3(function: Any) -> Any:
    """The Keras 3 function for a tf_keras function; another function as it is."""
    home, name = (function.__module__ or ""), function.__name__
    if home == "optkit.translate.activations2":
        return getattr(keras3().activations, name.removeprefix("keras3_"))
    if home.partition(".")[0] not in ("tf_keras", "tensorflow"):
        return function
    keras, legacy = keras3(), tf_keras()
    if getattr(legacy.activations, name, None) is function:
        for new, old in SAME_ACTIVATIONS.items():
            if old == name:
                return getattr(keras.activations, new)
        from optkit.translate import activations3

        return activations3.tf_keras_activation(name)
    for module in ("losses", "metrics"):
        if getattr(getattr(legacy, module), name, None) is function:
            return getattr(getattr(keras, module), name, function)
    return function
