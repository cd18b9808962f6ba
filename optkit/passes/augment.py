"""`Augment`: shows the training variants of its images."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Setting
from optkit.data import Split, first_leaf, map_leaves
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.images import ValueRange, are_places, in_dtype, require_images, value_range
from optkit.imaging import (
    POLICIES_BY_NAME,
    Albumented,
    ImagePolicy,
    KeyedLayer,
    from_description,
    is_albumentations,
    is_random_layer,
    moves_pixels,
    to_description,
)
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

    @property
    def moves(self) -> bool:
        """Whether pixels go to other places."""
        turned = self.horizontal_flip or self.vertical_flip or bool(self.rotation)
        return turned or bool(self.zoom or self.translation or self.crop)


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


#: Layers of Keras that move pixels.
_MOVING = frozenset(
    f"Random{what}"
    for what in (
        *("Crop", "ElasticTransform", "Flip", "Height", "Perspective", "Rotation", "Shear"),
        *("Translation", "Width", "Zoom"),
    )
) | {"AugMix", "RandAugment"}
#: Layers of Keras that blend images with each other, and their labels if they get them.
_MIXING = frozenset({"CutMix", "MixUp"})
_TRIED = 8  # images that a policy is tried on before anything trains
_DRAWS = 11  # random numbers that one image takes at most
_KERAS = ("keras.", "tf_keras.")
_OWN = 2**20  # from here on numbers make keys for steps; what a step folds in by itself is smaller


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
    if s.moves:
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
    return tf.ensure_shape(in_dtype(pixels, images.dtype), images.shape)


def _a_value_an_image(values: Any) -> Any:
    return tensorflow().reshape(values, (-1, 1, 1, 1))


@dataclass(frozen=True)
class _Steps:
    """What is done to images, one thing after the other, as part of a recipe.

    Attributes:
        items: `Strengths`, policies, transforms of albumentations, layers, functions.
        declared: The value range, if the user gave it.
        fill_mode: See `augment_images`.
    """

    items: tuple[Any, ...]
    declared: tuple[float, ...] | None
    fill_mode: str

    @property
    def stateless(self) -> bool:
        """Whether each takes the seed and can be called in any order."""
        return all(
            _knows_range(item) or is_random_layer(item) or _takes_seed(item) for item in self.items
        )

    def prepare(self, split: Split, seed: int) -> Callable[[Any, Any], Any]:
        """Looks up the value range, and makes fresh, seeded copies of layers."""
        tf = tensorflow()
        values = (0.0, 1.0)
        if any(map(_knows_range, self.items)):
            values = value_range(split, self.declared)
        steps = [
            self._step(item, values, derive_seed(seed, i)) for i, item in enumerate(self.items)
        ]

        def changed(images: Any, key: Any) -> Any:
            for i, step in enumerate(steps):
                # One key for each, or two of them would draw the same numbers. Steps make keys of
                # their own by folding small numbers in, so that these must be others.
                own = tf.random.experimental.stateless_fold_in(key, _OWN + i) if i else key
                images = step(images, own)
            return images

        def run(x: Any, key: Any) -> Any:
            # The one input may come by its name.
            return map_leaves(lambda images: changed(images, key), x)

        if all(map(_knows_range, self.items)):
            # There is no control flow of TensorFlow's in it, and looking for some takes a while.
            run = tf.autograph.experimental.do_not_convert(run)
        return run

    def _step(self, given: Any, values: ValueRange, seed: int) -> Callable[[Any, Any], Any]:
        if isinstance(given, Strengths):
            return lambda x, key: augment_images(x, key, given, values, self.fill_mode)
        if isinstance(given, ImagePolicy):
            return lambda x, key: given.apply(x, key, values, self.fill_mode)
        if is_albumentations(given):
            return Albumented(given, values)
        if is_random_layer(given):
            return KeyedLayer(given)
        item = object_to_tf_keras(given)
        if isinstance(item, tf_keras().layers.Layer):
            config = item.get_config()
            if "seed" in config:
                config["seed"] = derive_seed(seed, config["seed"])
            copy = type(item).from_config(config)
            if item.built and item.weights:
                copy.build(item.weights[0].shape)
                copy.set_weights(item.get_weights())
            return _unseeded(functools.partial(copy, training=True))
        return item if _takes_seed(item) else _unseeded(item)


def _knows_range(item: Any) -> bool:
    """Whether it goes by the value range, and draws from the seed that it is given alone."""
    return isinstance(item, Strengths | ImagePolicy) or is_albumentations(item)


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
        policy: One of these, or a list of them to apply in order:

            - a preset: ``"safe"`` (no flips; for digits, text and whatever has a left and right),
              ``"photo"`` (mild, with left-right flips), ``"strong"``;
            - a learned policy: `RandAugment`, `AutoAugment`, `AugMix`, `RandomErasing`, or the word
              for one with its defaults: ``"rand"``, ``"auto-cifar10"``, ``"auto-imagenet"``,
              ``"augmix"``, ``"erase"``. They take grey or RGB images;
            - a transform of albumentations, such as ``A.Compose([…])``, as it takes one image
              (``optkit[albumentations]``);
            - in a list, a Keras preprocessing layer, or a function of a batch of images, and of
              ``seed`` (an int64 tensor of shape ``(2,)``) if it wants to be repeatable when called
              in parallel.
        horizontal_flip: Whether to mirror left and right, half of the time. Here and below
            ``None`` means as the preset has it, and not at all without a preset. What is given
            besides a learned policy acts before it.
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

        A published policy behind the flips that it was searched with, then erasing:

        >>> ok.Augment(["photo", ok.AutoAugment("cifar10"), "erase"])
        Augment(policy=['photo', AutoAugment(policy='cifar10'), 'erase'])

    References:
        Shorten and Khoshgoftaar, "A survey on Image Data Augmentation for Deep Learning", 2019.
    """

    def __init__(
        self,
        policy: Any = "safe",
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
        self.policy = from_description(policy)
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
        if isinstance(self.policy, list | tuple):
            self._check_list(given)
        elif isinstance(self.policy, type):
            _refuse_class("policy", self.policy)
        elif isinstance(self.policy, str) or not _knows_range(self.policy):
            _known("policy", self.policy)

    def _check_list(self, given: dict[str, Any]) -> None:
        if not self.policy:
            raise PipelineError("`policy` must hold at least one thing to do. Received: [].")
        for i, item in enumerate(self.policy):
            if isinstance(item, type):
                _refuse_class(f"policy[{i}]", item)
            elif isinstance(item, str) or not (_knows_range(item) or callable(item)):
                _known(f"policy[{i}]", item)
            elif mixing := _kinds_of(item) & _MIXING:
                (name,) = sorted(mixing)[:1]
                raise PipelineError(
                    f"`policy[{i}]` has Keras' {name}, which blends images with each other, and here "
                    f"their labels would stay as they are. Use the pass `ok.{name}()`."
                )
        unused = self.value_range is not None and not any(map(_knows_range, self._items()))
        if given or unused:
            raise PipelineError(
                "A list says all by itself, and takes no "
                f"{', '.join([*given, *(['value_range'] if unused else [])])}. Put a preset into it, "
                "or another `Augment` beside this one."
            )

    def _items(self) -> tuple[Any, ...]:
        """What is done, in order, words looked up."""
        if isinstance(self.policy, list | tuple):
            return tuple(_looked_up(item) for item in self.policy)
        found = _looked_up(self.policy)
        if isinstance(found, Strengths):
            return (Strengths(**{**vars(found), **self._given()}),)
        given = self._given()
        return (*((Strengths(**given),) if given else ()), found)

    def _given(self) -> dict[str, Any]:
        names = Strengths.__dataclass_fields__
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def check(self, setting: Setting) -> None:
        """Refuses what is no image, and values outside the declared range."""
        split = setting.data.train
        if split is None:
            return
        require_images("Augment", split, "Leave it out.")
        items, steps = self._items(), self._steps()
        _refuse_places(items, setting)
        images = first_leaf(split.head(_TRIED)[0])
        for item in items:
            known = item.channels if isinstance(item, ImagePolicy) else ()
            if known and images.shape[-1] not in known:
                raise PipelineError(
                    f"{type(item).__name__} takes grey images (1 channel) or RGB ones (3). "
                    f"Received: {images.shape[-1]} channels. Use a preset, or `RandomErasing`."
                )
        if any(map(_knows_range, items)):
            value_range(split, self.value_range)
        if all(isinstance(item, Strengths | ImagePolicy) for item in items):
            return
        tf = tensorflow()
        try:
            # By themselves first, as an error within a graph says little of what is wrong.
            for item in filter(is_albumentations, items):
                values = value_range(split, self.value_range)
                Albumented(item, values).changed(images, np.zeros(2, "int64"))
            few = tf.convert_to_tensor(images[:2])
            out = steps.prepare(split, 0)(few, tf.constant([0, 0], tf.int64))
        except Exception as error:
            raise PipelineError(f"`policy` fails on some images: {error}") from error
        if tuple(out.shape) != tuple(few.shape):
            raise PipelineError(
                f"`policy` turns a batch of shape {tuple(few.shape)} into {tuple(out.shape)}; "
                "augmentation must keep the shape that the model takes."
            )

    def amend(self, recipe: Recipe) -> Recipe:
        """Adds to ``augment``."""
        return recipe.amended(augment=self._steps())

    def _steps(self) -> _Steps:
        declared = tuple(self.value_range) if self.value_range is not None else None
        return _Steps(self._items(), declared, self.fill_mode)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; policies as plain values, which a file can hold."""
        return {**super().get_config(), "policy": to_description(self.policy)}

    def __repr__(self) -> str:
        shown = super().__repr__()
        if isinstance(self.policy, ImagePolicy):  # its own repr is the call that makes it
            shown = shown.replace(f"<{type(self.policy).__name__}>", repr(self.policy), 1)
        return shown


def _looked_up(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    return PRESETS.get(item) or POLICIES_BY_NAME[item]


def _kinds_of(item: Any) -> frozenset[str]:
    """The names of the classes of a layer of Keras and of what is in it; none for anything else."""
    of_keras = any(kind.__module__.startswith(_KERAS) for kind in type(item).__mro__)
    if not of_keras or not hasattr(item, "_flatten_layers"):
        return frozenset()
    return frozenset(type(layer).__name__ for layer in item._flatten_layers())


def _moves(item: Any) -> bool:
    """Whether it moves pixels, as far as can be known: of a function of the user's it cannot."""
    if isinstance(item, Strengths | ImagePolicy):
        return item.moves
    if is_albumentations(item):
        return moves_pixels(item)
    return bool(_kinds_of(item) & _MOVING)


def _refuse_places(items: tuple[Any, ...], setting: Setting) -> None:
    """Refuses to move images whose targets say something of their places, which would stay."""
    split = setting.data.train
    if split is None or not any(map(_moves, items)):
        return
    size = first_leaf(split.head(1)[0]).shape[1:3]
    targets = split.targets(1)
    for name in setting.loss.each:
        shape = (targets[name] if name else targets).shape
        if are_places(shape[1:], size):
            raise PipelineError(
                "Augment moves images, and the targets "
                f"{f'of {name!r} ' if name else ''}say something of their places (shape "
                f"{('batch', *shape[1:])}, images of {size[0]} by {size[1]}): they would stay where "
                "they are. Use what leaves pixels where they are, such as `ok.RandomErasing()` or "
                "`ok.Augment('safe', rotation=0, zoom=0, translation=0)`, or move images and targets "
                "together in your data."
            )


def _refuse_class(name: str, value: type) -> None:
    raise ArgumentTypeError(
        f"`{name}` is the class {value.__name__}. Give an object of it: `{value.__name__}(…)`."
    )


def _known(name: str, value: Any) -> None:
    """Refuses what is no word for a policy."""
    words = (*PRESETS, *POLICIES_BY_NAME)
    if isinstance(value, str):
        _validate.one_of(name, value, words)
        return
    raise ArgumentTypeError(
        f"`{name}` must be one of {', '.join(map(repr, words))}, a policy such as "
        "`ok.RandAugment()`, a transform of albumentations, or (in a list) a Keras layer or a "
        f"function of a batch of images. Received: {value!r} ({type(value).__name__})."
    )
