"""What passes on images need to know of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optkit.data import Split, first_leaf
from optkit.errors import DataError, PipelineError
from optkit.runtime import tensorflow

__all__ = ["ValueRange", "are_places", "in_dtype", "rectangles", "require_images", "value_range"]

ValueRange = tuple[float, float]

_COMMON: tuple[ValueRange, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_SAMPLES = 2048


def require_images(name: str, split: Split, advice: str) -> None:
    """Refuses what is no image.

    Args:
        name: Of the pass, for the message.
        split: The training split.
        advice: What to do instead.

    Raises:
        PipelineError: For several inputs, or one of another rank.
    """
    if len(split.inputs) != 1 or len(split.inputs[0].shape) != 4:
        shapes = ", ".join(str(info.shape) for info in split.inputs)
        raise PipelineError(
            f"{name} treats images, one input of shape (batch, height, width, channels). The "
            f"model's inputs: {shapes}. {advice}"
        )


def value_range(split: Split, declared: Sequence[float] | None = None) -> ValueRange:
    """The range of pixel values: as declared, else inferred from the data.

    Inferred is the common range (0 to 1, -1 to 1, 0 to 255) that the values fill to more than
    half, else the smallest and largest value seen.

    Args:
        split: The training split; of a stream, the first 2048 samples are looked at.
        declared: Lowest and highest value, if the user gave them.

    Raises:
        DataError: If the data leave the declared range.
    """
    low, high = split.extent(_SAMPLES)
    if declared is not None:
        bottom, top = float(declared[0]), float(declared[1])
        slack = 0.01 * (top - bottom)
        if low < bottom - slack or high > top + slack:
            raise DataError(
                f"The images of `{split.name}` have values from {low:g} to {high:g}, outside the "
                f"declared range {bottom:g} to {top:g}."
            )
        return bottom, top
    if first_leaf(split.head(1)[0]).dtype == np.uint8:
        return 0.0, 255.0
    for bottom, top in _COMMON:
        fills = high > bottom + (top - bottom) / 2 and (bottom >= 0 or low < 0)
        if low >= bottom and high <= top and fills:
            return bottom, top
    if low == high:
        raise DataError(
            f"The images of `{split.name}` are constant ({low:g}); declare their value range."
        )
    return low, high


def are_places(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Whether targets say something of the places of an image, so that they would have to move too.

    Args:
        shape: Of the targets of one sample.
        size: Height and width of the images.

    >>> are_places((32, 32), (64, 64)), are_places((16, 16, 3), (64, 64)), are_places((10,), (8, 8))
    (True, True, False)
    """
    if len(shape) > 2:
        return True
    if len(shape) < 2:
        return False
    height, width = size
    smaller = shape[0] > 1 and height * shape[1] == width * shape[0] and height % shape[0] == 0
    return smaller or shape[0] == height * width


def in_dtype(pixels: Any, dtype: Any) -> Any:
    """Float pixels as a dtype: the nearest whole number, and of flags the nearer one.

    Args:
        pixels: Float tensor.
        dtype: TensorFlow's.
    """
    tf = tensorflow()
    if dtype.is_integer or dtype.is_bool:
        pixels = tf.round(pixels)
    return tf.cast(pixels, dtype)


def rectangles(size: tuple[Any, Any], corner: tuple[Any, Any], extent: tuple[Any, Any]) -> Any:
    """Which pixels lie in a rectangle, one for each image.

    Args:
        size: Height and width of the images, in pixels.
        corner: First row and first column of each rectangle, whole numbers as floats, shape
            ``(batch,)`` each.
        extent: Rows and columns of each.

    Returns:
        Shape ``(batch, height, width)``, ``True`` inside.
    """
    tf = tensorflow()
    inside = []
    for pixels, first, count in zip(size, corner, extent, strict=True):
        place = tf.range(tf.cast(pixels, tf.float32))[None]
        inside.append(tf.logical_and(place >= first[:, None], place < (first + count)[:, None]))
    return tf.logical_and(inside[0][:, :, None], inside[1][:, None, :])
