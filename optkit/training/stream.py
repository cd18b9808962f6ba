"""The training stream: the split through the recipe."""

from __future__ import annotations

from typing import Any

from optkit.data import map_leaves
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, tensorflow
from optkit.training.plan import Plan

__all__ = ["training_batches"]


def training_batches(
    split: Any, recipe: Recipe, plan: Plan, seed: int, *, first_epoch: int = 0
) -> Any:
    """The training stream: augment, mix, smooth, in this order whatever the order of passes.

    Behind the first epochs it is what it would be had they been read.
    """
    tf = tensorflow()
    batches = split.training_batches(
        derive_seed(seed, "order"), weighted=True, first_epoch=first_epoch
    )
    augment = [
        item.prepare(split, derive_seed(seed, "augment", i))
        for i, item in enumerate(recipe.augment)
    ]
    smooth = recipe.smooth.prepare(plan.task) if recipe.smooth is not None else None
    if not augment and recipe.mix is None and smooth is None:
        return batches.prefetch(tf.data.AUTOTUNE)
    seeds = [derive_seed(seed, "stream", i) for i in range(len(augment) + 1)]

    def transform(number: Any, batch: Any) -> Any:
        x, y, *weights = batch
        shapes = tf.nest.map_structure(lambda leaf: leaf.shape, x)
        for augmentation, base in zip(augment, seeds[:-1], strict=True):
            x = augmentation(x, tf.stack([tf.constant(base, tf.int64), number]))
        if recipe.softens_targets:
            y = map_leaves(lambda leaf: tf.cast(leaf, tf.float32), plan.dense(y))
        if recipe.mix is not None:
            dense_shapes = tf.nest.map_structure(lambda leaf: leaf.shape, y)
            x, y = recipe.mix(x, y, tf.stack([tf.constant(seeds[-1], tf.int64), number]))
            y = tf.nest.map_structure(tf.ensure_shape, y, dense_shapes)
        if smooth is not None:
            y = smooth(y)
        # Functions of the user's may lose the shapes, which layers need.
        return tf.nest.map_structure(tf.ensure_shape, x, shapes), y, *weights

    # What draws from seeds of its own must be called in one order to be repeatable.
    stateless = all(getattr(item, "stateless", True) for item in recipe.augment)
    return (
        batches.enumerate(first_epoch * split.steps)
        .map(
            transform,
            num_parallel_calls=tf.data.AUTOTUNE if stateless else None,
            deterministic=True if stateless else None,
        )
        .prefetch(tf.data.AUTOTUNE)
    )
