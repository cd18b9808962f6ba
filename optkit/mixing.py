"""Blending the samples of a batch with each other: pure functions of a batch and a seed.

Each sample gets a partner, by a permutation of the batch, and a share of its own. Where samples have
weights, so do the parts of a blend, in a way that leaves the sum of the losses what it would be if
the loss of each part were taken by itself (see `blended_targets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.data import Split, map_leaves
from optkit.errors import PipelineError
from optkit.images import rectangles
from optkit.models import LOOKUPS
from optkit.runtime import tensorflow
from optkit.task import Loss, Task, dense_targets

__all__ = ["CutMixing", "MixUpMixing", "beta", "blended_targets", "check_mixable"]


def check_mixable(name: str, split: Split | None, model: Any, task: Task, loss: Loss) -> None:
    """Refuses data and losses that no blends can be made for.

    Args:
        name: Of the pass, for messages.
        split: The training split, if there is one.
        model: The model, if it is known.
        task: What the model is for.
        loss: What it trains with.

    Raises:
        PipelineError: With the reason and a remedy.
    """
    if split is None:
        return
    for info in split.inputs:
        images = len(info.shape) == 4
        if "float" not in info.dtype and not (images and "int" in info.dtype):
            raise PipelineError(
                f"{name} blends inputs, and the input {info.name!r} holds {info.dtype}: text, token "
                "ids or numbers of categories have no mean. Leave it out."
            )
    layers = [] if model is None else list(model._flatten_layers(include_self=False))
    found = next((layer for layer in layers if type(layer).__name__ in LOOKUPS), None)
    if found is not None:
        raise PipelineError(
            f"{name} blends inputs, and the layer {found.name!r} ({type(found).__name__}) looks them "
            "up: the mean of two token ids or categories is another one. Leave it out."
        )
    dense_targets(task, loss)


def beta(count: Any, alpha: float, seed: Any) -> Any:
    """Numbers from the distribution Beta(alpha, alpha).

    Args:
        count: How many.
        alpha: Above 0; below 1 most are near 0 or 1.
        seed: Integer tensor of shape ``(2,)``.
    """
    tf = tensorflow()
    # In logarithms: for a small alpha both of the numbers are often 0 as floats. A gamma variable of
    # alpha is one of alpha + 1 times a power of a uniform one.
    keys = [tf.random.experimental.stateless_fold_in(seed, i) for i in (1, 2)]
    grown = tf.random.stateless_gamma([2, count], keys[0], alpha + 1.0)
    uniform = tf.random.stateless_uniform([2, count], keys[1], minval=1e-30)
    logarithms = tf.math.log(grown) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logarithms[0] - logarithms[1])


def blended_targets(
    targets: Any, other: Any, share: Any, weights: Any, others: Any
) -> tuple[Any, Any]:
    """Targets and weights of blends, so that the loss of a blend is that of its parts.

    Without weights a blend's target is ``share * target + (1 - share) * other``. With weights a and b
    of the two parts, it is their mean, weighted with ``share * a`` and ``(1 - share) * b``, and the
    blend weighs the sum of these. For a loss that is linear in the targets, as cross-entropies are,
    that is the same as ``share * a * loss(target) + (1 - share) * b * loss(other)``; for squared
    errors it is the same but for a constant, so that gradients are equal.

    Args:
        targets: Dense targets, shape ``(batch, …)``.
        other: Those of the partners.
        share: Of the sample itself, from 0 to 1, shape ``(batch,)``.
        weights: Floats, one a sample, shape ``(batch,)`` or ``(batch, 1)``, or one for each of its
            positions; or ``None``.
        others: Of the partners, or ``None``.

    Returns:
        The targets, and the weights or ``None``.
    """
    tf = tensorflow()
    if weights is None:
        return _over(share, targets) * targets + _over(1 - share, targets) * other, None
    own, theirs = _over(share, weights) * weights, _over(1 - share, weights) * others
    total = own + theirs
    # What weighs nothing has any target.
    part = tf.cast(tf.math.divide_no_nan(own, total), targets.dtype)
    for _ in range(len(weights.shape), len(targets.shape)):
        part = part[..., None]
    if len(weights.shape) > len(targets.shape):  # one number a sample, and weights in a column
        part = part[..., 0]
    return part * targets + (1 - part) * other, total


def _over(values: Any, batch: Any) -> Any:
    """One value a sample, to be broadcast over the rest of the shape of a batch."""
    tf = tensorflow()
    ones = [1] * (len(batch.shape) - 1)
    return tf.cast(tf.reshape(values, [-1, *ones]), batch.dtype)


def _partners(count: Any, seed: Any) -> Any:
    """A permutation of the batch."""
    tf = tensorflow()
    key = tf.random.experimental.stateless_fold_in(seed, 3)
    return tf.argsort(tf.random.stateless_uniform([count], key))


def _chosen(count: Any, probability: float, seed: Any, purpose: int) -> Any:
    tf = tensorflow()
    key = tf.random.experimental.stateless_fold_in(seed, purpose)
    return tf.random.stateless_uniform([count], key) < probability


def _blended_inputs(x: Any, partners: Any, share: Any) -> Any:
    """Inputs, each blended with its partner.

    Images of whole numbers stay such. Other inputs become floats, as the model takes them: rounding
    a flag would give one of the two samples back, with the label of both.
    """
    tf = tensorflow()

    def blend(leaf: Any) -> Any:
        plain = leaf if leaf.dtype.is_floating else tf.cast(leaf, tf.float32)
        part = _over(share, plain)
        blended = part * plain + (1 - part) * tf.gather(plain, partners)
        if leaf.dtype.is_integer and len(leaf.shape) == 4:
            return tf.cast(tf.round(blended), leaf.dtype)
        return blended

    return map_leaves(blend, x)


def _mixed_targets(y: Any, weights: Any, partners: Any, share: Any) -> tuple[Any, ...]:
    """Targets, and weights where there are some, each one or a dict by output."""
    tf = tensorflow()

    def one(targets: Any, own: Any) -> tuple[Any, Any]:
        if own is not None and not own.dtype.is_floating:
            own = tf.cast(own, tf.float32)  # a stream may count samples
        others = None if own is None else tf.gather(own, partners)
        return blended_targets(targets, tf.gather(targets, partners), share, own, others)

    if not isinstance(y, dict):
        mixed, total = one(y, weights)
        return (mixed,) if weights is None else (mixed, total)
    given = weights if isinstance(weights, dict) else dict.fromkeys(y, weights)
    pairs = {name: one(targets, given.get(name)) for name, targets in y.items()}
    targets = {name: pair[0] for name, pair in pairs.items()}
    if weights is None:
        return (targets,)
    return targets, {name: pair[1] for name, pair in pairs.items()}


@dataclass(frozen=True)
class MixUpMixing:
    """Blends inputs and targets with those of the partner, by a share from Beta(alpha, alpha).

    Attributes:
        alpha: Of the distribution.
        probability: Share of the samples that are blended.
    """

    alpha: float
    probability: float = 1.0

    def __call__(self, x: Any, y: Any, seed: Any, weights: Any = None) -> tuple[Any, ...]:
        """The mixed batch.

        Args:
            x: Inputs, shape ``(batch, …)``, or a dict of such.
            y: Dense float targets, or a dict of such.
            seed: Integer tensor of shape ``(2,)``.
            weights: See `blended_targets`; or a dict of such by output.

        Returns:
            ``(x, y)``; with weights ``(x, y, weights)``.
        """
        tf = tensorflow()
        count = tf.shape(next(iter(tf.nest.flatten(y))))[0]
        share = beta(count, self.alpha, seed)
        if self.probability < 1:
            share = tf.where(_chosen(count, self.probability, seed, 4), share, 1.0)
        partners = _partners(count, seed)
        return _blended_inputs(x, partners, share), *_mixed_targets(y, weights, partners, share)


@dataclass(frozen=True)
class CutMixing:
    """Pastes a rectangle of the partner's image into each; targets are blended by the areas.

    Attributes:
        alpha: The area that stays is drawn from Beta(alpha, alpha).
        probability: Share of the samples that are changed.
        mixup_alpha: Where given, some samples are blended as `MixUpMixing` does, with this alpha.
        switch_probability: Share of the changed samples that are.
    """

    alpha: float
    probability: float = 1.0
    mixup_alpha: float | None = None
    switch_probability: float = 0.5

    def __call__(self, x: Any, y: Any, seed: Any, weights: Any = None) -> tuple[Any, ...]:
        """The mixed batch; see `MixUpMixing`. ``x`` is a batch of images."""
        tf = tensorflow()
        leaf: Any = tf.nest.flatten(x)[0]
        shape = tf.shape(leaf)
        count = shape[0]
        partners = _partners(count, seed)
        changed = _chosen(count, self.probability, seed, 4)
        pasted, share = self._rectangles(shape, seed)
        pasted = tf.logical_and(pasted, changed[:, None, None])
        share = tf.where(changed, share, 1.0)
        part = None
        if self.mixup_alpha is not None:
            key = tf.random.experimental.stateless_fold_in(seed, 5)
            blended = tf.logical_and(_chosen(count, self.switch_probability, seed, 6), changed)
            share = tf.where(blended, beta(count, self.mixup_alpha, key), share)
            pasted = tf.logical_and(pasted, tf.logical_not(blended)[:, None, None])
            part = tf.where(blended, share, 1.0)

        def mixed(images: Any) -> Any:
            if images.dtype.is_bool and part is not None:
                images = tf.cast(images, tf.float32)  # as blends are
            own = images if part is None else _blended_inputs(images, partners, part)
            return _pasted(own, partners, pasted, of=images)

        return map_leaves(mixed, x), *_mixed_targets(y, weights, partners, share)

    def _rectangles(self, shape: Any, seed: Any) -> tuple[Any, Any]:
        """Where the partner is pasted, and the share of the area that stays."""
        tf = tensorflow()
        count, height, width = shape[0], shape[1], shape[2]
        tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        cut = tf.sqrt(1 - beta(count, self.alpha, seed))
        key = tf.random.experimental.stateless_fold_in(seed, 7)
        x, y = tf.unstack(tf.random.stateless_uniform([2, count], key))
        # Whole pixels around a middle anywhere in the image; what lies outside is cut off.
        edges = []
        for middle, size in ((tf.floor(x * wide), wide), (tf.floor(y * tall), tall)):
            half = tf.floor(tf.floor(size * cut) / 2)
            edges.append((tf.maximum(middle - half, 0.0), tf.minimum(middle + half, size)))
        (left, right), (top, bottom) = edges
        pasted = rectangles((height, width), (top, left), (bottom - top, right - left))
        stays = 1 - (right - left) * (bottom - top) / (tall * wide)
        return pasted, stays


def _pasted(images: Any, partners: Any, where: Any, of: Any) -> Any:
    """Images with the marked pixels of their partners, taken from ``of``."""
    tf = tensorflow()
    return tf.where(where[..., None], tf.gather(of, partners), images)
