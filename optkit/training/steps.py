"""How many batches and updates of the weights an epoch of a training has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.recipe import Recipe
from optkit.runtime import derive_seed

__all__ = ["Steps", "sampled", "steps_of"]


@dataclass(frozen=True)
class Steps:
    """What an epoch of a training consists of.

    Attributes:
        batches: Batches of an epoch, the short last one included.
        accumulate: Batches whose gradients make one update. The last update of an epoch takes what
            is left.

    Example:
        >>> steps = Steps(batches=10, accumulate=4)
        >>> steps.updates, [batch for batch in range(10) if steps.ends_update(batch)]
        (3, [3, 7, 9])
    """

    batches: int
    accumulate: int = 1

    @property
    def updates(self) -> int:
        """Updates of the weights in an epoch."""
        return -(-self.batches // self.accumulate)

    def update(self, epoch: int, batch: int) -> int:
        """The number of the update that a batch belongs to, from 0 on over the whole training.

        It goes by places, so that it asks no optimizer, and is right where a training goes on in
        the middle.

        Args:
            epoch: Number of the epoch, from 0, as Keras gives it to callbacks.
            batch: Number of the batch in it, from 0.
        """
        return epoch * self.updates + min(batch, self.batches - 1) // self.accumulate

    def ends_update(self, batch: int) -> bool:
        """Whether weights have moved once this batch of an epoch is done."""
        return (batch + 1) % self.accumulate == 0 or batch + 1 >= self.batches


def sampled(split: Any, recipe: Recipe, seed: int) -> Any:
    """The training split that a training draws from.

    Args:
        split: The training split as it came.
        recipe: How to train.
        seed: Seed of the training.
    """
    if recipe.sample is None:
        return split
    return recipe.sample(split, derive_seed(seed, "sample"))


def steps_of(split: Any, recipe: Recipe) -> Steps:
    """What an epoch over a split consists of.

    Args:
        split: The split to draw from, as `sampled` gives it.
        recipe: How to train.
    """
    return Steps(split.steps, recipe.accumulate or 1)
