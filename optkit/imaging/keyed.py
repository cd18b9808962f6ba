"""Random layers of Keras 3 that draw from a given key instead of from a state of their own.

A layer's own generator is a variable that each call moves on, so in a parallel map it depends on which
batch came first. All that such a layer draws comes through `SeedGenerator.next`, and that is where a
copy of the layer gets numbers from the key.
"""

from __future__ import annotations

import threading
from typing import Any

from optkit.images import in_dtype
from optkit.runtime import keras, tensorflow
from optkit.translate import is_keras3

__all__ = ["KeyedLayer", "is_random_layer"]


def is_random_layer(value: Any) -> bool:
    """Whether it is a layer of Keras 3, without weights, that draws from generators.

    >>> import keras
    >>> is_random_layer(keras.layers.RandomErasing()), is_random_layer(keras.layers.Rescaling(2.0))
    (True, False)
    """
    if not is_keras3(value) or not isinstance(value, keras().layers.Layer):
        return False
    return bool(_generators(value)) and not value.weights


def _generators(layer: Any) -> list[Any]:
    kind = keras().random.SeedGenerator
    found = [
        item
        for inner in layer._flatten_layers()
        for item in vars(inner).values()
        if isinstance(item, kind)
    ]
    return list({id(item): item for item in found}.values())


class KeyedLayer:
    """A copy of a random layer as a function of a batch of images and a seed.

    Args:
        layer: The layer; it is copied, and goes on drawing as it did.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> layer = KeyedLayer(keras.layers.RandomErasing(1.0, value_range=(0, 1)))
        >>> images, key = tf.zeros([4, 8, 8, 3]), tf.constant([1, 2], tf.int64)
        >>> bool(np.array_equal(layer(images, key), layer(images, key)))
        True
    """

    def __init__(self, layer: Any):
        self._layer = type(layer).from_config(layer.get_config())
        self._lock = threading.RLock()  # two traces at once would share the key
        self._key: Any = None
        self._drawn = 0
        for generator in _generators(self._layer):
            generator.next = self._next

    def _next(self, ordered: bool = True) -> Any:
        """The next seed that follows from the key."""
        self._drawn += 1
        return tensorflow().random.experimental.stateless_fold_in(self._key, self._drawn)

    def __call__(self, images: Any, seed: Any) -> Any:
        """Changes a batch; equal seeds give equal images. The dtype is kept."""
        with self._lock:
            self._key, self._drawn = seed, 0
            try:
                out = self._layer(images, training=True)
            finally:
                self._key = None
        return in_dtype(out, images.dtype)
