"""Transforms of albumentations on batches: in their value range, seeded, in parallel.

The library draws from generators that a transform holds, so two threads must not share one. Each
call takes a copy out of a pool and gives it the generators that its seed stands for.
"""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np

from optkit.errors import PipelineError
from optkit.images import ValueRange
from optkit.runtime import tensorflow

__all__ = [
    "Albumented",
    "is_albumentations",
    "moves_pixels",
    "plain_transform",
    "transform_from_plain",
]


#: How far beyond its range a transform may go, as a share of it; it is cut off there.
_BEYOND = 0.5


def is_albumentations(value: Any) -> bool:
    """Whether it is a transform of albumentations, or one of a class of the user's made from it."""
    return any(
        kind.__module__.startswith("albumentations.core.")
        and kind.__name__ in ("BasicTransform", "BaseCompose")
        for kind in type(value).__mro__
    )


def _albumentations() -> Any:
    try:
        import albumentations
    except ImportError as error:
        raise PipelineError(
            "This needs albumentations, which is not installed. Install it with `pip install "
            "'optkit[albumentations]'`."
        ) from error
    return albumentations


def moves_pixels(transform: Any) -> bool:
    """Whether a transform may move pixels: all that the library does not call image-only.

    >>> import albumentations as A
    >>> moves_pixels(A.Compose([A.RandomBrightnessContrast()])), moves_pixels(A.HorizontalFlip())
    (False, True)
    """
    inner = getattr(transform, "transforms", None)
    if inner is not None:
        return any(map(moves_pixels, inner))
    return not isinstance(transform, _albumentations().ImageOnlyTransform)


class Albumented:
    """A transform as a function of a batch of images and a seed.

    Args:
        transform: The transform; it is copied, never called itself.
        values: Lowest and highest pixel value. Images of whole numbers from 0 to 255 are given as
            uint8, all others as float32 from 0 to 1, as albumentations expects them; what comes
            back is put into the range and the dtype of the images again.
    """

    def __init__(self, transform: Any, values: ValueRange):
        self.values = values
        self._free: list[Any] = [copy.deepcopy(transform)]
        self._lock = threading.Lock()

    def __call__(self, images: Any, seed: Any) -> Any:
        """Changes each image of a batch; equal seeds give equal images."""
        tf = tensorflow()
        out = tf.numpy_function(self.changed, [images, seed], images.dtype, stateful=False)
        return tf.ensure_shape(out, images.shape)

    def changed(self, images: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """The same on arrays.

        Raises:
            PipelineError: If an image comes back in another shape or range.
        """
        low, high = self.values
        whole = images.dtype.kind in "iu"
        as_bytes = whole and (low, high) == (0.0, 255.0)
        given = images.astype("uint8") if as_bytes else (images.astype("float32") - low)
        if not as_bytes:
            given = np.clip(given / np.float32(high - low), 0.0, 1.0)
        with self._lock:
            transform = copy.deepcopy(self._free[0]) if len(self._free) == 1 else self._free.pop()
        # One pair of generators for all transforms inside. (`set_random_seed` would give each one of
        # its own from one seed, and they would draw the same numbers.)
        numbers = [int(part) % 2**63 for part in seed]
        transform.set_random_state(np.random.default_rng(numbers), random.Random(str(numbers)))
        found = [transform(image=np.ascontiguousarray(image))["image"] for image in given]
        with self._lock:
            self._free.append(transform)
        out = np.stack([self._checked(image, given[0]) for image in found]) if found else given
        if as_bytes:
            return out.astype(images.dtype)
        out = np.clip(out, 0.0, 1.0) * np.float32(high - low) + np.float32(low)
        flags = images.dtype.kind == "b"
        return (np.rint(out) if whole or flags else out).astype(images.dtype)

    @staticmethod
    def _checked(image: Any, given: np.ndarray) -> Any:
        """An image as it must be: some transforms drop the axis of a single channel."""
        if not isinstance(image, np.ndarray):
            raise PipelineError(
                f"The transform gives {type(image).__name__} instead of an array. Leave out what "
                "makes tensors, such as `ToTensorV2`."
            )
        if image.shape == given.shape[:2]:
            image = image[..., None]
        if image.shape != given.shape:
            raise PipelineError(
                f"The transform turns an image of shape {given.shape} into {image.shape}; "
                "augmentation must keep the shape that the model takes. Resize or crop back to it."
            )
        if image.dtype == given.dtype == np.uint8:
            return image  # which cannot be out of its range
        low, high = float(image.min()), float(image.max())
        top = 255.0 if given.dtype == np.uint8 else 1.0
        # `ToFloat` makes 0 to 1 of bytes, as a last step that frameworks want; it is undone.
        shrunk = top == 255 and image.dtype != given.dtype
        reach = 1.0 if shrunk else top
        # Interpolating by cubes overshoots at edges, by less than that; normalizing does not stop.
        if low < -_BEYOND * reach or high > (1 + _BEYOND) * reach:
            raise PipelineError(
                f"The transform gives {image.dtype} from {low:g} to {high:g}, and was given "
                f"{given.dtype} from 0 to {top:g}. Leave out what normalizes, such as `Normalize`: "
                "the model's preprocessing does it."
            )
        return np.rint(np.clip(image, 0.0, 1.0) * 255.0) if shrunk else image


def plain_transform(transform: Any) -> dict[str, Any] | None:
    """A transform as plain values; ``None`` where a file could not give it back as it is.

    That is so for functions (`Lambda`) and for classes that are not albumentations' own.
    """
    try:
        library = _albumentations()
        stored: dict[str, Any] = library.to_dict(transform)
        if not _own(stored):
            return None
        # Reading it back makes, say, 0.0 of 0: once, and then no more.
        stored = library.to_dict(library.from_dict(stored))
    except Exception:  # it raises whatever a transform's own serialization does
        return None
    plain: dict[str, Any] = _without_tuples(stored)
    return plain


def _own(stored: dict[str, Any]) -> bool:
    """Whether a stored transform is made of albumentations' own classes, and of no functions."""
    return all(
        "." not in str(part.get("__class_fullname__", "")) and "__name__" not in part
        for part in _parts(stored["transform"])
    )


def _parts(stored: dict[str, Any]) -> list[dict[str, Any]]:
    found = [stored]
    for inner in stored.get("transforms") or ():
        found += _parts(inner)
    return found


def _without_tuples(value: Any) -> Any:
    """As JSON would give it back: a transform takes lists where it takes tuples."""
    if isinstance(value, dict):
        return {str(key): _without_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tuples(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def transform_from_plain(stored: dict[str, Any]) -> Any:
    """What `plain_transform` was given.

    Raises:
        PipelineError: If albumentations is missing, or refuses it.
    """
    library = _albumentations()
    if not _own(stored):
        raise PipelineError("A stored transform may only name classes of albumentations' own.")
    try:
        return library.from_dict(stored)
    except Exception as error:
        raise PipelineError(f"The stored transform cannot be read: {error}") from error
