"""Pairs of layer classes that users declare to be the same layer in Keras 3 and in tf_keras."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optkit.errors import ArgumentTypeError

__all__ = ["Pair", "pair_of", "register_layer"]

Config = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A Keras 3 layer class, the tf_keras class that does the same, and how configs translate."""

    keras3: type
    tf_keras: type
    to_tf_keras: Callable[[Config], Config] | None = None
    to_keras3: Callable[[Config], Config] | None = None
    weights_to_tf_keras: Callable[[list[Any]], list[Any]] | None = None
    weights_to_keras3: Callable[[list[Any]], list[Any]] | None = None


_PAIRS: dict[type, Pair] = {}


def register_layer(
    *,
    keras3: type,
    tf_keras: type,
    to_tf_keras: Callable[[Config], Config] | None = None,
    to_keras3: Callable[[Config], Config] | None = None,
    weights_to_tf_keras: Callable[[list[Any]], list[Any]] | None = None,
    weights_to_keras3: Callable[[list[Any]], list[Any]] | None = None,
) -> None:
    """Says which tf_keras layer does what a Keras 3 layer of yours does.

    Without it, a layer of your own is carried as it is: it trains, converts and comes back, but a
    pass sees a closed box. With it, passes see the tf_keras layer, and can prune or quantize what
    is inside. A registered pair also wins over optkit's own translation of a built-in class.

    By default a layer is translated by ``tf_keras.from_config(layer.get_config())`` and its weights
    are taken over in their order. Registering a class again replaces what was registered before.

    Args:
        keras3: The Keras 3 layer class.
        tf_keras: The tf_keras layer class that computes the same.
        to_tf_keras: From the Keras 3 config to the tf_keras config, where they differ. ``dtype`` is
            already the name of a policy.
        to_keras3: The way back.
        weights_to_tf_keras: From the list of weight arrays in Keras 3's order to that of tf_keras,
            where they differ.
        weights_to_keras3: The way back.

    Raises:
        ArgumentTypeError: If a class is no layer class of its library.

    Example:
        >>> import keras, tf_keras
        >>> import optkit as ok
        >>> class Scale3(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(shape=(), initializer="ones", name="factor")
        ...     def call(self, x):
        ...         return x * self.factor
        >>> class Scale2(tf_keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(shape=(), initializer="ones", name="factor")
        ...     def call(self, x):
        ...         return x * self.factor
        >>> ok.register_layer(keras3=Scale3, tf_keras=Scale2)
        >>> model = keras.Sequential([keras.Input((4,)), Scale3(name="scale")])
        >>> type(ok.translate.to_tf_keras(model).get_layer("scale")).__name__
        'Scale2'
    """
    _check("keras3", keras3, "keras.layers.Layer", "keras.src.layers.layer")
    _check("tf_keras", tf_keras, "tf_keras.layers.Layer", "tf_keras.src.engine.base_layer")
    pair = Pair(keras3, tf_keras, to_tf_keras, to_keras3, weights_to_tf_keras, weights_to_keras3)
    for kind in (keras3, tf_keras):
        known = _PAIRS.pop(kind, None)
        if known is not None:
            _PAIRS.pop(known.keras3, None)
            _PAIRS.pop(known.tf_keras, None)
    _PAIRS[keras3] = _PAIRS[tf_keras] = pair


def _check(argument: str, kind: Any, expected: str, module: str) -> None:
    bases = inspect.getmro(kind) if inspect.isclass(kind) else ()
    if not any(base.__module__ == module and base.__name__ == "Layer" for base in bases):
        raise ArgumentTypeError(
            f"`{argument}` must be a subclass of `{expected}`. Received: {kind!r}."
        )


def pair_of(kind: type) -> Pair | None:
    """The pair that a layer class was registered in, if any."""
    return _PAIRS.get(kind)
