"""`Augment`: shows the training variants of its images."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Setting
from optkit.data import Split, first_leaf
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.images import ValueRange, value_range
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, tensorflow, tf_keras
from optkit.translate import object_to_tf_keras

__all__ = ["PRESETS", "Augment", "Strengths", "augment_images"]


@dataclass(frozen=True)
class Strengths:
    """How much images may change; see `Augment` for each."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    translation: float = 0.0
    crop: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0


#: The presets by name. Only ``"safe"`` keeps the label of whatever is in the image: a mirrored
#: digit or letter is another one, or none.
PRESETS = {
    "safe": Strengths(rotation=10, zoom=0.1, translation=0.1, contrast=0.1, brightness=0.1),
    "photo": Strengths(
        horizontal_flip=True,
        rotation=15,
        zoom=0.15,
        translation=0.1,
        contrast=0.2,
        brightness=0.15,
    ),
    "strong": Strengths(
        horizontal_flip=True,
        rotation=25,
        zoom=0.25,
        translation=0.15,
        crop=0.25,
        contrast=0.4,
        brightness=0.3,
    ),
}


_DRAWS = 11  # random numbers that one image takes at most


def augment_images(
    images: Any, seed: Any, strengths: Strengths, values: ValueRange, fill_mode: str = "nearest"
) -> Any:
    """Changes each image of a batch at random, by a seed.

    All that moves pixels is one affine map an image, so that pixels are interpolated once.

    Args:
        images: Shape ``(batch, height, width, channels)``, any numeric dtype, which is kept.
        seed: Integer tensor of shape ``(2,)``; equal seeds give equal changes.
        strengths: How much.
        values: Lowest and highest pixel value; results stay inside.
        fill_mode: What stands where nothing was: ``"nearest"``, ``"reflect"``, ``"wrap"`` or
            ``"constant"`` (the lowest value).

    Returns:
        The changed images, of the same shape.
    """
    tf = tensorflow()
    pixels = tf.cast(images, tf.float32)
    count = tf.shape(pixels)[0]
    # All random numbers of the batch in one draw; each use takes a row of its own.
    rows = iter(tf.unstack(tf.random.stateless_uniform([_DRAWS, count], seed)))

    def uniform(low: float, high: float) -> Any:
        return low + (high - low) * next(rows)

    s = strengths
    if s.horizontal_flip or s.vertical_flip or s.rotation or s.zoom or s.translation or s.crop:
        height = tf.cast(tf.shape(pixels)[1], tf.float32)
        width = tf.cast(tf.shape(pixels)[2], tf.float32)
        angle = uniform(-1, 1) * (s.rotation * math.pi / 180)
        # The map goes from output to input pixels: a scale below 1 looks closer.
        window = uniform(1 - s.crop, 1)
        scale = window * uniform(1 - s.zoom, 1 + s.zoom)
        shift_x = (uniform(-1, 1) * s.translation + uniform(-0.5, 0.5) * (1 - window)) * width
        shift_y = (uniform(-1, 1) * s.translation + uniform(-0.5, 0.5) * (1 - window)) * height
        sign_x = tf.where(uniform(0, 1) < 0.5, -1.0, 1.0) if s.horizontal_flip else 1.0
        sign_y = tf.where(uniform(0, 1) < 0.5, -1.0, 1.0) if s.vertical_flip else 1.0
        cosine, sine = tf.cos(angle) * scale, tf.sin(angle) * scale
        a, b = cosine * sign_x, -sine * sign_y
        c, d = sine * sign_x, cosine * sign_y
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        offset_x = centre_x + shift_x - a * centre_x - b * centre_y
        offset_y = centre_y + shift_y - c * centre_x - d * centre_y
        zero = tf.zeros_like(a)
        pixels = tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels,
            transforms=tf.stack([a, b, offset_x, c, d, offset_y, zero, zero], axis=1),
            output_shape=tf.shape(pixels)[1:3],
            fill_value=values[0],
            interpolation="BILINEAR",
            fill_mode=fill_mode.upper(),
        )
    low, high = values
    if s.contrast:
        mean = tf.reduce_mean(pixels, axis=(1, 2), keepdims=True)
        pixels = mean + (pixels - mean) * _a_value_an_image(uniform(1 - s.contrast, 1 + s.contrast))
    if s.brightness:
        pixels += _a_value_an_image(uniform(-1, 1)) * (s.brightness * (high - low))
    if s.contrast or s.brightness:
        pixels = tf.clip_by_value(pixels, low, high)
    if images.dtype.is_integer:
        pixels = tf.round(pixels)
    return tf.ensure_shape(tf.cast(pixels, images.dtype), images.shape)


def _a_value_an_image(values: Any) -> Any:
    return tensorflow().reshape(values, (-1, 1, 1, 1))


@dataclass(frozen=True)
class _Images:
    """The presets as part of a recipe."""

    strengths: Strengths
    declared: tuple[float, ...] | None
    fill_mode: str
    stateless: bool = True

    def prepare(self, split: Split, seed: int) -> Callable[[Any, Any], Any]:
        """Looks up the value range of the split."""
        values = value_range(split, self.declared)
        # There is no control flow of TensorFlow's in it, and looking for some takes a while.
        augment = tensorflow().autograph.experimental.do_not_convert(augment_images)
        return lambda x, key: augment(x, key, self.strengths, values, self.fill_mode)


@dataclass(frozen=True)
class _Listed:
    """Layers and functions of the user's as part of a recipe."""

    items: tuple[Any, ...]

    @property
    def stateless(self) -> bool:
        """Whether each takes the seed and can be called in any order."""
        return all(_takes_seed(item) for item in self.items)

    def prepare(self, split: Split, seed: int) -> Callable[[Any, Any], Any]:
        """Makes fresh, seeded copies of the layers: the user's own draw on as they did."""
        layer_class = tf_keras().layers.Layer
        steps: list[Callable[[Any, Any], Any]] = []
        for i, given in enumerate(self.items):
            item = object_to_tf_keras(given)
            if isinstance(item, layer_class):
                config = item.get_config()
                if "seed" in config:
                    config["seed"] = derive_seed(seed, i, config["seed"])
                copy = type(item).from_config(config)
                if item.weights:
                    copy.build(item.weights[0].shape)
                    copy.set_weights(item.get_weights())
                steps.append(_unseeded(functools.partial(copy, training=True)))
            elif _takes_seed(item):
                steps.append(item)
            else:
                steps.append(_unseeded(item))

        def run(x: Any, key: Any) -> Any:
            for step in steps:
                x = step(x, key)
            return x

        return run


def _unseeded(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, key: function(x)


def _takes_seed(item: Any) -> bool:
    try:
        return "seed" in inspect.signature(item).parameters
    except (TypeError, ValueError):
        return False


class Augment(RecipePass):
    """Augments the images of the trainings that follow, on the fly, the training split only.

    Use it where a model fits its training images better than new ones. Images are arrays of shape
    ``(height, width, channels)`` in any value range; each is changed anew every time it is seen.

    Args:
        policy: A preset, or a list of Keras preprocessing layers and functions to apply in
            order. Functions take a batch of images, and ``seed`` (an int64 tensor of shape
            ``(2,)``) if they want to be repeatable when called in parallel. Presets: ``"safe"``
            (no flips; for digits, text and whatever has a left and right), ``"photo"`` (mild, with
            left-right flips), ``"strong"``.
        horizontal_flip: Whether to mirror left and right, half of the time. Here and below
            ``None`` means as the preset has it.
        vertical_flip: Whether to mirror top and bottom, half of the time.
        rotation: Largest rotation to either side, in degrees, 0 to 180.
        zoom: Largest zoom in or out, as a share of the size, in ``[0, 1)``.
        translation: Largest shift, as a share of the size, in ``[0, 1]``.
        crop: Largest share of each side that is cut away, in ``[0, 1)``; the rest fills the image.
        contrast: Largest change of contrast, as a share, in ``[0, 1]``.
        brightness: Largest change of brightness, as a share of the value range, in ``[0, 1]``.
        value_range: Lowest and highest pixel value; ``None`` to infer it from the training data.
        fill_mode: What stands where nothing was: ``"nearest"``, ``"reflect"``, ``"wrap"`` or
            ``"constant"`` (the lowest value).

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.Augment(rotation=15), ok.FineTune(epochs=1)])
        >>> result = pipeline.run(small_model(), digits(samples=200))
        >>> result.report.rows[0].config["rotation"]
        15

    References:
        Shorten and Khoshgoftaar, "A survey on Image Data Augmentation for Deep Learning", 2019.
    """

    def __init__(
        self,
        policy: str | Sequence[Any] = "safe",
        *,
        horizontal_flip: bool | None = None,
        vertical_flip: bool | None = None,
        rotation: float | None = None,
        zoom: float | None = None,
        translation: float | None = None,
        crop: float | None = None,
        contrast: float | None = None,
        brightness: float | None = None,
        value_range: tuple[float, float] | None = None,
        fill_mode: str = "nearest",
    ):
        self.policy = policy
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.rotation = rotation
        self.zoom = zoom
        self.translation = translation
        self.crop = crop
        self.contrast = contrast
        self.brightness = brightness
        self.value_range = value_range
        self.fill_mode = fill_mode
        self._validate()

    def _validate(self) -> None:
        limits = {"rotation": (180, ""), "zoom": (1, "max"), "crop": (1, "max")}
        given = self._given()
        for name, value in given.items():
            if name.endswith("flip"):
                _validate.boolean(name, value)
            else:
                maximum, exclusive = limits.get(name, (1, ""))
                _validate.number(name, value, minimum=0, maximum=maximum, exclusive=exclusive)
        _validate.one_of("fill_mode", self.fill_mode, ("nearest", "reflect", "wrap", "constant"))
        if self.value_range is not None:
            if not isinstance(self.value_range, list | tuple) or len(self.value_range) != 2:
                raise ArgumentTypeError(
                    f"`value_range` must be a pair (lowest, highest). Received: {self.value_range!r}."
                )
            low, high = (_validate.number("value_range", item) for item in self.value_range)
            if low >= high:
                raise PipelineError(f"`value_range` must rise. Received: {self.value_range}.")
        if isinstance(self.policy, str):
            _validate.one_of("policy", self.policy, tuple(PRESETS))
            return
        if not isinstance(self.policy, Sequence) or not self.policy:
            raise ArgumentTypeError(
                "`policy` must be the name of a preset or a list of layers and functions. "
                f"Received: {self.policy!r}."
            )
        if given or self.value_range is not None:
            raise PipelineError(
                f"A list of layers and functions says all by itself; it takes no "
                f"{', '.join([*given, *(['value_range'] if self.value_range else [])])}."
            )
        for i, item in enumerate(self.policy):
            if not callable(item) or isinstance(item, type):
                raise ArgumentTypeError(
                    f"`policy[{i}]` must be a Keras layer or a function of a batch of images. "
                    f"Received: {item!r} ({type(item).__name__})."
                )

    def _given(self) -> dict[str, Any]:
        names = Strengths.__dataclass_fields__
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def check(self, setting: Setting) -> None:
        """Refuses what is no image, and values outside the declared range."""
        split = setting.data.train
        if split is None:
            return
        if len(split.inputs) != 1 or len(split.inputs[0].shape) != 4:
            shapes = ", ".join(str(info.shape) for info in split.inputs)
            raise PipelineError(
                "Augment treats images, one input of shape (batch, height, width, channels). The "
                f"model's inputs: {shapes}. Leave it out."
            )
        if isinstance(self.policy, str):
            value_range(split, self.value_range)
            return
        tf = tensorflow()
        images = tf.convert_to_tensor(first_leaf(split.head(2)[0]))
        run = _Listed(tuple(self.policy)).prepare(split, 0)
        try:
            out = run(images, tf.constant([0, 0], tf.int64))
        except Exception as error:
            raise PipelineError(f"`policy` fails on a batch of two images: {error}") from error
        if tuple(out.shape) != tuple(images.shape):
            raise PipelineError(
                f"`policy` turns a batch of shape {tuple(images.shape)} into {tuple(out.shape)}; "
                "augmentation must keep the shape that the model takes."
            )

    def amend(self, recipe: Recipe) -> Recipe:
        """Adds to ``augment``."""
        if not isinstance(self.policy, str):
            return recipe.amended(augment=_Listed(tuple(self.policy)))
        strengths = Strengths(**{**vars(PRESETS[self.policy]), **self._given()})
        declared = tuple(self.value_range) if self.value_range is not None else None
        return recipe.amended(augment=_Images(strengths, declared, self.fill_mode))
