"""The training stream: the split through the recipe."""

from __future__ import annotations

from typing import Any

from optkit.data import first_leaf, map_leaves
from optkit.distribute import Crew
from optkit.recipe import Recipe
from optkit.runtime import derive_seed, tensorflow
from optkit.training.plan import Plan

__all__ = ["spread", "training_batches"]


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
            key = tf.stack([tf.constant(seeds[-1], tf.int64), number])
            x, y, *weights = recipe.mix(x, y, key, *weights)
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


def spread(batches: Any, crew: Crew, *, trains: bool) -> Any:
    """The batches in shares, one a replica: together they are what one alone would be given.

    Every process makes all batches, from the same seeds, and takes the shares of its replicas, as
    even as they can be. Distributing by TensorFlow's own means would cut files or samples apart
    before they are shuffled and augmented, which gives other batches.

    Args:
        batches: A ``tf.data.Dataset`` of batches.
        crew: Those who train together.
        trains: Whether every replica must have samples, as the statistics of none are no numbers.
    """
    if crew.replicas == 1:
        return batches
    tf = tensorflow()
    local = crew.replicas // crew.workers

    def size(batch: Any) -> Any:
        return tf.shape(first_leaf(batch), out_type=tf.int64)[0]

    def filled(*batch: Any) -> Any:
        # Each replica the whole of a batch that is too small: the mean stays what it is.
        times = tf.where(size(batch) < crew.replicas, crew.replicas, 1)

        def repeated(leaf: Any) -> Any:
            return tf.tile(leaf, [times, *[1] * (leaf.shape.rank - 1)])

        return tf.nest.map_structure(repeated, batch)

    def shares(context: Any) -> Any:
        first = context.input_pipeline_id * local

        def of(*batch: Any) -> Any:
            def share(replica: Any) -> Any:
                ends = [size(batch) * place // crew.replicas for place in (replica, replica + 1)]
                return tf.nest.map_structure(lambda leaf: leaf[ends[0] : ends[1]], batch)

            return tf.data.Dataset.range(first, first + local).map(share)

        whole = batches.map(filled) if trains else batches
        return whole.flat_map(of).prefetch(tf.data.AUTOTUNE)

    return crew.strategy.distribute_datasets_from_function(shares)
