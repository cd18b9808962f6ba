"""The operations that learned policies are made of, on whole batches.

Every image of a batch may get another operation, and every one its own amount. Images are sorted by
the kind of work that their operation is, each kind does its share of the batch at once, and the
results are put back in place: what nobody drew costs next to nothing. Pixels are float32 from 0 to
255 in here, as the definitions of these operations (those of Pillow) are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from optkit.runtime import tensorflow

__all__ = [
    "AMOUNTS_OF_AUGMIX",
    "AMOUNTS_OF_AUTOAUGMENT",
    "OPERATIONS",
    "Amounts",
    "apply",
    "number",
]

#: The operations by name, and the kind of work that each is.
_KINDS = {
    "Identity": "keep",
    "ShearX": "move",
    "ShearY": "move",
    "TranslateX": "move",
    "TranslateY": "move",
    "Rotate": "move",
    "Brightness": "line",
    "Contrast": "line",
    "AutoContrast": "line",
    "Invert": "line",
    "Color": "colour",
    "Sharpness": "sharpen",
    "Posterize": "level",
    "Solarize": "level",
    "Equalize": "equalize",
}
#: Names of the operations; their numbers are places in here.
OPERATIONS = tuple(_KINDS)

# Of what the amount is, for each: shears a slope, translations a share of the side, rotations
# degrees, `Posterize` bits that are kept, `Solarize` the grey from which on is inverted; of
# `Brightness`, `Contrast`, `Color` and `Sharpness` a factor, 1 of which changes nothing.
_FACTORS = ("Brightness", "Contrast", "Color", "Sharpness")
_SIDE = 150 / 331  # the shift of the papers, in pixels of the size that the search was done on


class Amounts:
    """How strong operations are: ``start + strength * (end - start)``, perhaps with a sign.

    Args:
        ends: For each operation its amount at strength 0 and at strength 1.
        signed: The operations that go to either side, by chance.

    Example:
        >>> AMOUNTS_OF_AUTOAUGMENT.of([number("Posterize"), number("Rotate")], [1.0, 0.5], -1.0)
        <tf.Tensor: shape=(2,), dtype=float32, numpy=array([  4., -15.], dtype=float32)>
    """

    def __init__(self, ends: dict[str, tuple[float, float]], signed: Iterable[str]):
        pairs = [ends.get(name, (0.0, 0.0)) for name in OPERATIONS]
        self.start = np.array([start for start, _ in pairs], "float32")
        self.slope = np.array([end - start for start, end in pairs], "float32")
        self.signed = np.array([name in set(signed) for name in OPERATIONS])

    def of(self, operation: Any, strength: Any, sign: Any) -> Any:
        """The amount for each image.

        Args:
            operation: Number of the operation of each image.
            strength: From 0 to 1.
            sign: -1 or 1, for the operations that go either way.
        """
        tf = tensorflow()
        change = tf.gather(self.slope, operation) * strength
        change = tf.where(tf.gather(self.signed, operation), change * sign, change)
        return tf.gather(self.start, operation) + change


_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

#: The ranges of AutoAugment's search space, which RandAugment took over.
AMOUNTS_OF_AUTOAUGMENT = Amounts(
    {
        "ShearX": (0, 0.3),
        "ShearY": (0, 0.3),
        "Rotate": (0, 30),
        "TranslateX": (0, _SIDE),
        "TranslateY": (0, _SIDE),
        **dict.fromkeys(_FACTORS, (1, 1.9)),
        "Posterize": (8, 4),
        "Solarize": (256, 0),
    },
    signed=(*_MOVES, *_FACTORS),
)
#: Those of AugMix.
AMOUNTS_OF_AUGMIX = Amounts(
    {
        "ShearX": (0, 0.3),
        "ShearY": (0, 0.3),
        "Rotate": (0, 30),
        "TranslateX": (0, 1 / 3),
        "TranslateY": (0, 1 / 3),
        **dict.fromkeys(_FACTORS, (0.1, 1.9)),
        "Posterize": (4, 0),
        "Solarize": (256, 0),
    },
    signed=_MOVES,
)


def number(name: str) -> int:
    """The number of an operation.

    >>> number("Identity")
    0
    """
    return OPERATIONS.index(name)


def apply(
    pixels: Any, operation: Any, amount: Any, *, used: Iterable[str], fill_mode: str, low: float
) -> Any:
    """Applies to each image the operation that was drawn for it.

    Args:
        pixels: Shape ``(batch, height, width, channels)``, float32 from 0 to 255; one channel, or
            three in the order red, green, blue.
        operation: Number of the operation of each image, shape ``(batch,)``, int32.
        amount: How much, shape ``(batch,)``; in the unit of the operation.
        used: The operations that may occur.
        fill_mode: What stands where nothing was, after a shear, a shift or a rotation.
        low: What ``fill_mode="constant"`` fills with.

    Returns:
        The changed images, of the same shape.
    """
    tf = tensorflow()
    kinds = list(dict.fromkeys(_KINDS[name] for name in OPERATIONS if name in set(used)))
    place = {kind: i for i, kind in enumerate(kinds)}
    kind_of = np.array([place.get(_KINDS[name], 0) for name in OPERATIONS], "int32")
    kind = tf.gather(kind_of, operation)
    rows = tf.range(tf.shape(pixels)[0])
    parts = [
        tf.dynamic_partition(values, kind, len(kinds))
        for values in (rows, pixels, operation, amount)
    ]
    work: dict[str, Callable[[Any, Any, Any], Any]] = {
        "keep": lambda images, *_: images,
        "move": lambda images, which, much: _move(images, which, much, fill_mode, low),
        "line": _line,
        "colour": _colour,
        "sharpen": _sharpen,
        "level": _level,
        "equalize": lambda images, *_: _equalize(images),
    }
    done = []
    for name, _, images, which, much in zip(kinds, *parts, strict=True):
        images = tf.ensure_shape(images, [None, *pixels.shape[1:]])
        done.append(work[name](images, which, much))
    return tf.ensure_shape(tf.dynamic_stitch(parts[0], done), pixels.shape)


def _is(which: Any, name: str) -> Any:
    return tensorflow().equal(which, number(name))


def _each(values: Any) -> Any:
    """One value an image, to be broadcast over its pixels."""
    return tensorflow().reshape(values, (-1, 1, 1, 1))


def _clipped(pixels: Any) -> Any:
    return tensorflow().clip_by_value(pixels, 0.0, 255.0)


def _grey(images: Any) -> Any:
    """Luminance (ITU-R 601), shape ``(batch, height, width, 1)``."""
    if images.shape[-1] == 1:
        return images
    weights = tensorflow().constant([0.299, 0.587, 0.114])
    return tensorflow().reduce_sum(images * weights, axis=-1, keepdims=True)


def _move(images: Any, which: Any, amount: Any, fill_mode: str, low: float) -> Any:
    """Shears, shifts and rotations around the middle, as one affine map an image."""
    tf = tensorflow()
    size = tf.cast(tf.shape(images), tf.float32)
    height, width = size[1], size[2]

    def only(name: str, values: Any = amount) -> Any:
        return tf.where(_is(which, name), values, tf.zeros_like(amount))

    angle = only("Rotate") * (math.pi / 180)
    a, e = tf.cos(angle), tf.cos(angle)
    b, d = tf.sin(angle) + only("ShearX"), -tf.sin(angle) + only("ShearY")
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    offset_x = middle_x - a * middle_x - b * middle_y + only("TranslateX") * width
    offset_y = middle_y - d * middle_x - e * middle_y + only("TranslateY") * height
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, offset_x, d, e, offset_y, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=low,
        interpolation="BILINEAR",
        fill_mode=fill_mode.upper(),
    )


def _line(images: Any, which: Any, factor: Any) -> Any:
    """What is a line for every channel, ``scale * value + offset``, clipped."""
    tf = tensorflow()
    factor = _each(factor)
    scale, offset = factor, tf.zeros_like(factor)  # brightness
    # Of the image in grey, as a whole number: Pillow's mean.
    mean = tf.floor(tf.reduce_mean(tf.round(_grey(images)), axis=(1, 2, 3), keepdims=True) + 0.5)
    offset = tf.where(_each(_is(which, "Contrast")), mean * (1 - factor), offset)
    inverted = _each(_is(which, "Invert"))
    scale, offset = tf.where(inverted, -1.0, scale), tf.where(inverted, 255.0, offset)
    darkest = tf.reduce_min(images, axis=(1, 2), keepdims=True)
    lightest = tf.reduce_max(images, axis=(1, 2), keepdims=True)
    # A channel that is flat (but for what rounding leaves) has nothing to spread.
    spread = tf.logical_and(_each(_is(which, "AutoContrast")), lightest - darkest > 0.5)
    flat = tf.logical_and(_each(_is(which, "AutoContrast")), lightest - darkest <= 0.5)
    steep = 255.0 / tf.maximum(lightest - darkest, 0.5)
    scale, offset = tf.where(spread, steep, scale), tf.where(spread, -darkest * steep, offset)
    scale, offset = tf.where(flat, 1.0, scale), tf.where(flat, 0.0, offset)
    return _clipped(images * scale + offset)


def _colour(images: Any, which: Any, factor: Any) -> Any:
    grey = _grey(images)
    return _clipped(grey + (images - grey) * _each(factor))


def _sharpen(images: Any, which: Any, factor: Any) -> Any:
    """Away from, or towards, a blur of three by three pixels; the outermost stay as they are."""
    tf = tensorflow()
    kernel = np.ones([3, 3, images.shape[-1], 1], "float32") / 13
    kernel[1, 1] = 5 / 13
    blurred = tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")
    inside = []
    for pixels in tf.unstack(tf.shape(images)[1:3]):
        place = tf.range(pixels)
        inside.append(tf.cast(tf.logical_and(place > 0, place < pixels - 1), tf.float32))
    # Factors instead of a choice by pixel, which TensorFlow is slow at where it has to broadcast.
    share = (1 - _each(factor)) * inside[0][:, None, None] * inside[1][:, None]
    return _clipped(images + (blurred - images) * share)


def _level(images: Any, which: Any, amount: Any) -> Any:
    """`Posterize` and `Solarize`, which know 256 levels; each with what leaves the other as it is."""
    tf = tensorflow()
    levels = tf.round(images)
    bits = tf.where(_is(which, "Posterize"), tf.round(amount), 8.0)
    step = _each(2.0 ** (8.0 - bits))
    above = _each(tf.where(_is(which, "Solarize"), amount, 256.0))
    return tf.where(levels < above, tf.floor(levels / step) * step, 255 - levels)


def _equalize(images: Any) -> Any:
    """Spreads the levels of each channel so that all are used about equally often."""
    tf = tensorflow()
    shape = tf.shape(images)
    channels = shape[0] * shape[3]
    levels = tf.cast(tf.round(_clipped(images)), tf.int32)
    channel = tf.reshape(tf.range(channels), [shape[0], 1, 1, shape[3]])
    places = levels + channel * 256
    counts = tf.math.bincount(tf.reshape(places, [-1]), minlength=channels * 256)
    # Some 256 levels more than there are channels, where a batch is empty.
    counts = tf.reshape(counts[: channels * 256], [channels, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1, keepdims=True)
    step = (shape[1] * shape[2] - tf.gather(counts, last, batch_dims=1)) // 255
    safe = tf.maximum(step, 1)
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.minimum((step // 2 + below) // safe, 255)
    # Too few pixels, or a single level, leave nothing to spread.
    table = tf.where(step > 0, table, tf.range(256))
    return tf.cast(tf.gather(tf.reshape(table, [-1]), places), tf.float32)
