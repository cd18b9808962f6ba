"""Policies that draw their operations anew for every image: plain values, and what they do.

Everything random follows from the seed that is handed in, so that equal seeds give equal images in
whatever order, and on however many threads, batches are computed.
"""

from __future__ import annotations

import abc
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from optkit import _validate
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.images import ValueRange, in_dtype, rectangles
from optkit.imaging import operations
from optkit.imaging.operations import AMOUNTS_OF_AUGMIX, AMOUNTS_OF_AUTOAUGMENT
from optkit.imaging.published import POLICIES
from optkit.runtime import tensorflow

__all__ = ["AugMix", "AutoAugment", "ImagePolicy", "RandAugment", "RandomErasing"]

_RAND_OPERATIONS = tuple(name for name in operations.OPERATIONS if name != "Invert")
_MIX_OPERATIONS = (
    *("AutoContrast", "Equalize", "Posterize", "Rotate", "Solarize"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
_ALL_MIX_OPERATIONS = (*_MIX_OPERATIONS, "Color", "Contrast", "Brightness", "Sharpness")


class ImagePolicy(abc.ABC):
    """What changes images at random: a frozen value that says how.

    Attributes:
        channels: Numbers of channels that it knows how to treat; empty for any.
        moves: Whether pixels may go to other places, so that targets of places no longer fit.
    """

    channels: ClassVar[tuple[int, ...]] = ()
    moves: ClassVar[bool] = True

    def apply(self, images: Any, seed: Any, values: ValueRange, fill_mode: str = "nearest") -> Any:
        """Changes each image of a batch at random.

        Args:
            images: Shape ``(batch, height, width, channels)``, any numeric dtype, which is kept.
            seed: Integer tensor of shape ``(2,)``; equal seeds give equal images.
            values: Lowest and highest pixel value; results stay inside.
            fill_mode: What stands where nothing was: ``"nearest"``, ``"reflect"``, ``"wrap"`` or
                ``"constant"`` (the lowest value).

        Returns:
            The changed images, of the same shape.
        """
        tf = tensorflow()
        low, high = values
        pixels = (tf.cast(images, tf.float32) - low) * (255.0 / (high - low))
        # A level above white would be none: what came before may have overshot a little.
        pixels = self._changed(tf.clip_by_value(pixels, 0.0, 255.0), seed, fill_mode)
        pixels = tf.clip_by_value(pixels * ((high - low) / 255.0) + low, low, high)
        return tf.ensure_shape(in_dtype(pixels, images.dtype), images.shape)

    @abc.abstractmethod
    def _changed(self, pixels: Any, seed: Any, fill_mode: str) -> Any:
        """The changed images, of pixels from 0 to 255."""

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain values: its kind and its settings."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def _draws(rows: int, count: Any, seed: Any) -> Any:
    """Uniform numbers in [0, 1), ``rows`` for each image."""
    tf = tensorflow()
    return tf.unstack(tf.random.stateless_uniform([rows, count], seed))


def _drawn(uniform: Any, names: tuple[str, ...]) -> Any:
    """Numbers of operations out of some, drawn evenly."""
    tf = tensorflow()
    table = np.array([operations.number(name) for name in names], "int32")
    place = tf.minimum(tf.cast(uniform * len(names), tf.int32), len(names) - 1)
    return tf.gather(table, place)


def _sign(uniform: Any) -> Any:
    return tensorflow().where(uniform < 0.5, -1.0, 1.0)


@dataclass(frozen=True)
class RandAugment(ImagePolicy):
    """Some operations, drawn anew for each image, all of one magnitude.

    Use it where a policy is wanted and there is no time to search for one: two numbers say all. The
    operations are the fourteen of the paper (identity, auto-contrast, equalize, rotate, solarize,
    colour, posterize, contrast, brightness, sharpness, shears and shifts); none mirrors.

    Args:
        n: Operations an image, at least 1.
        magnitude: Strength of all of them, 0 to 30. At 30 they rotate by 30°, shear by 0.3, shift
            by 45 % of the side, change contrast and the like by 0.9, and keep 4 bits. (Tools that
            count to 10 mean three times as much by the same number.)

    Example:
        >>> import optkit as ok
        >>> ok.Augment(ok.RandAugment(n=2, magnitude=12))
        Augment(policy=RandAugment(n=2, magnitude=12))

    References:
        Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search
        space", 2020.
    """

    n: int = 2
    magnitude: float = 9

    channels: ClassVar[tuple[int, ...]] = (1, 3)

    def __post_init__(self) -> None:
        _validate.integer("n", self.n, minimum=1)
        _validate.number("magnitude", self.magnitude, minimum=0, maximum=30)

    def _changed(self, pixels: Any, seed: Any, fill_mode: str) -> Any:
        tf = tensorflow()
        rows = _draws(2 * self.n, tf.shape(pixels)[0], seed)
        for which, side in zip(rows[::2], rows[1::2], strict=True):
            operation = _drawn(which, _RAND_OPERATIONS)
            amount = AMOUNTS_OF_AUTOAUGMENT.of(operation, self.magnitude / 30, _sign(side))
            pixels = operations.apply(
                pixels, operation, amount, used=_RAND_OPERATIONS, fill_mode=fill_mode, low=0.0
            )
        return pixels


@dataclass(frozen=True)
class AutoAugment(ImagePolicy):
    """One of 25 published pairs of operations, drawn anew for each image.

    Use it for photographs that resemble the data on which the policy was found. The pairs mirror
    nothing; for photographs they were used behind a left-right flip.

    Args:
        policy: ``"cifar10"`` (small pictures of objects) or ``"imagenet"``.

    Example:
        >>> import optkit as ok
        >>> ok.Augment(ok.AutoAugment("cifar10"), horizontal_flip=True)
        Augment(policy=AutoAugment(policy='cifar10'), horizontal_flip=True)

    References:
        Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", 2019.
    """

    policy: str = "imagenet"

    channels: ClassVar[tuple[int, ...]] = (1, 3)

    def __post_init__(self) -> None:
        _validate.one_of("policy", self.policy, tuple(POLICIES))

    def _changed(self, pixels: Any, seed: Any, fill_mode: str) -> Any:
        tf = tensorflow()
        pairs = POLICIES[self.policy]
        rows = iter(_draws(5, tf.shape(pixels)[0], seed))
        pair = tf.minimum(tf.cast(next(rows) * len(pairs), tf.int32), len(pairs) - 1)
        for turn in range(2):
            steps = [drawn[turn] for drawn in pairs]
            numbers = np.array([operations.number(name) for name, _, _ in steps], "int32")
            chances = np.array([chance for _, chance, _ in steps], "float32")
            strengths = np.array([strength for _, _, strength in steps], "float32")
            acts = next(rows) < tf.gather(chances, pair)
            operation = tf.where(acts, tf.gather(numbers, pair), operations.number("Identity"))
            amount = AMOUNTS_OF_AUTOAUGMENT.of(
                operation, tf.gather(strengths, pair), _sign(next(rows))
            )
            used = {"Identity", *(name for name, _, _ in steps)}
            pixels = operations.apply(
                pixels, operation, amount, used=used, fill_mode=fill_mode, low=0.0
            )
        return pixels


@dataclass(frozen=True)
class AugMix(ImagePolicy):
    """Each image blended with several chains of operations on itself.

    Use it where images in use will be worse than those trained on (noise, blur, other cameras): its
    aim is robustness more than accuracy. This is the augmentation alone; the paper's second part, a
    loss on the agreement of three variants, is not in it.

    Args:
        severity: Strength of the operations, 1 to 10; each draws its own up to that.
        width: Chains an image, at least 1.
        depth: Operations a chain; -1 for 1 to 3, drawn anew for each.
        alpha: Of the distributions that the shares of the chains (Dirichlet) and of the image itself
            (beta) are drawn from, above 0.
        all_operations: Whether colour, contrast, brightness and sharpness are among the operations,
            too. The paper leaves them out, as its test images are changed in these ways.

    Example:
        >>> import optkit as ok
        >>> ok.Augment(ok.AugMix(severity=5))
        Augment(policy=AugMix(severity=5, width=3, depth=-1, alpha=1.0, all_operations=False))

    References:
        Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and
        Uncertainty", 2020.
    """

    severity: float = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0
    all_operations: bool = False

    channels: ClassVar[tuple[int, ...]] = (1, 3)

    def __post_init__(self) -> None:
        _validate.number("severity", self.severity, minimum=1, maximum=10)
        _validate.integer("width", self.width, minimum=1)
        if self.depth != -1:
            _validate.integer("depth", self.depth, minimum=1)
        _validate.number("alpha", self.alpha, minimum=0, exclusive="min")
        _validate.boolean("all_operations", self.all_operations)

    def _changed(self, pixels: Any, seed: Any, fill_mode: str) -> Any:
        tf = tensorflow()
        used = _ALL_MIX_OPERATIONS if self.all_operations else _MIX_OPERATIONS
        longest = 3 if self.depth == -1 else self.depth
        count = tf.shape(pixels)[0]
        # All chains of all images are one batch.
        chains = tf.concat([pixels] * self.width, axis=0)
        chains = tf.ensure_shape(chains, [None, *pixels.shape[1:]])
        length, *rows = _draws(3 * longest + 1, self.width * count, seed)
        length = tf.floor(length * 3) + 1 if self.depth == -1 else tf.fill(tf.shape(length), 3e38)
        for step in range(longest):
            which, strength, side = rows[3 * step : 3 * step + 3]
            strength = (0.1 + strength * (self.severity - 0.1)) / 10
            operation = _drawn(which, used)
            operation = tf.where(step < length, operation, operations.number("Identity"))
            amount = AMOUNTS_OF_AUGMIX.of(operation, strength, _sign(side))
            chains = operations.apply(
                chains,
                operation,
                amount,
                used=("Identity", *used),
                fill_mode=fill_mode,
                low=0.0,
            )
        shares, kept = _shares(self.width, count, self.alpha, seed)
        chains = tf.reshape(chains, tf.concat([[self.width], tf.shape(pixels)], axis=0))
        mixed = tf.reduce_sum(shares[:, :, None, None, None] * chains, axis=0)
        kept = kept[:, None, None, None]
        return kept * pixels + (1 - kept) * mixed


def _shares(width: int, count: Any, alpha: float, seed: Any) -> tuple[Any, Any]:
    """How much each chain, ``(width, batch)``, and the image itself, ``(batch,)``, weigh."""
    tf = tensorflow()
    key = tf.random.experimental.stateless_fold_in(seed, 1)
    drawn = tf.random.stateless_gamma([width + 2, count], key, alpha) + 1e-12
    shares = drawn[:width] / tf.reduce_sum(drawn[:width], axis=0)
    return shares, drawn[width] / (drawn[width] + drawn[width + 1])


@dataclass(frozen=True)
class RandomErasing(ImagePolicy):
    """A rectangle of each image filled with noise, or with one value.

    Use it, last in a list, where objects may be partly hidden. The rectangle always lies inside
    the image and has the area that was drawn.

    Args:
        probability: Share of the images that lose one, in ``(0, 1]``.
        area: Smallest and largest area, as shares of the image, in ``(0, 1]``.
        ratio: Smallest and largest ratio of width to height, above 0.
        fill: ``"noise"`` (each value drawn evenly from the value range), ``"mean"`` (of the image,
            by channel), or a share of the value range, 0 for its lowest and 1 for its highest value.

    Example:
        >>> import optkit as ok
        >>> ok.Augment(["photo", ok.RandAugment(), ok.RandomErasing(0.25)])
        Augment(policy=['photo', RandAugment(n=2, magnitude=9), RandomErasing(probability=0.25,
            area=(0.02, 0.33), ratio=(0.3, 3.3), fill='noise')])

    References:
        Zhong et al., "Random Erasing Data Augmentation", 2020.
    """

    moves: ClassVar[bool] = False

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: str | float = "noise"

    def __post_init__(self) -> None:
        _validate.number("probability", self.probability, minimum=0, maximum=1, exclusive="min")
        for name, maximum in (("area", 1.0), ("ratio", math.inf)):
            object.__setattr__(self, name, _rising(name, getattr(self, name), maximum))
        if isinstance(self.fill, str):
            _validate.one_of("fill", self.fill, ("noise", "mean"))
        else:
            _validate.number("fill", self.fill, minimum=0, maximum=1)

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain values: its kind and its settings."""
        return {**super().to_dict(), "area": list(self.area), "ratio": list(self.ratio)}

    def _changed(self, pixels: Any, seed: Any, fill_mode: str) -> Any:
        tf = tensorflow()
        shape = tf.shape(pixels)
        size = tf.cast(shape, tf.float32)
        height, width = size[1], size[2]
        rows = _draws(5, shape[0], seed)
        area = (self.area[0] + rows[0] * (self.area[1] - self.area[0])) * height * width
        # Ratios at which so large a rectangle still fits.
        least = tf.minimum(tf.maximum(self.ratio[0], area / height**2), width**2 / area)
        most = tf.maximum(tf.minimum(self.ratio[1], width**2 / area), least)
        ratio = tf.exp(tf.math.log(least) + rows[1] * tf.math.log(most / least))
        wide = tf.clip_by_value(tf.round(tf.sqrt(area * ratio)), 1.0, width)
        tall = tf.clip_by_value(tf.round(tf.sqrt(area / ratio)), 1.0, height)
        left = tf.floor(rows[2] * (width - wide + 1))
        top = tf.floor(rows[3] * (height - tall + 1))
        hidden = rectangles((shape[1], shape[2]), (top, left), (tall, wide))
        hidden = tf.logical_and(hidden, (rows[4] < self.probability)[:, None, None])
        if self.fill == "noise":
            key = tf.random.experimental.stateless_fold_in(seed, 1)
            filling = tf.random.stateless_uniform(shape, key, maxval=255.0)
        elif self.fill == "mean":
            filling = tf.reduce_mean(pixels, axis=(1, 2), keepdims=True)
        else:
            filling = tf.constant(255.0 * float(self.fill))
        return tf.where(hidden[..., None], filling, pixels)


def _rising(name: str, value: Any, maximum: float) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentTypeError(
            f"`{name}` must be a pair (smallest, largest). Received: {value!r}."
        )
    low, high = (
        _validate.number(name, item, minimum=0, maximum=maximum, exclusive="min") for item in value
    )
    if low > high:
        raise PipelineError(f"`{name}` must rise. Received: {value}.")
    return low, high
