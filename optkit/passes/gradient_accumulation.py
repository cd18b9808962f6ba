"""`GradientAccumulation`: updates of the weights by several batches together."""

from __future__ import annotations

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Context, State
from optkit.models import batch_norms
from optkit.recipe import Recipe

__all__ = ["GradientAccumulation"]


class GradientAccumulation(RecipePass):
    """Trains as with batches so many times larger, in the memory of the small ones.

    Use it where the batch that a model trains well with does not fit into memory. Gradients of
    several batches are averaged, each counted by its samples, and make one update, which up to
    floating point is that of the batch that they would be together, with any optimizer: clipping,
    weight decay, loss scaling, schedules and the constraints of earlier passes act on whole updates.
    At the end of an epoch what is left makes an update of its own.

    Two things go by the single batches: batch normalization, and dropout's random numbers.

    Args:
        steps: Batches an update, at least 2.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.GradientAccumulation(4), ok.FineTune(epochs=1)])
        >>> pipeline.run(small_model(), digits(samples=400)).report.rows[0].notes[0]
        'updates by 4 batches of 32 samples: as a batch size of 128; 2 updates an epoch'

    References:
        Ott et al., "Scaling Neural Machine Translation", 2018, section 3.
    """

    def __init__(self, steps: int = 4):
        _validate.integer("steps", steps, minimum=2)
        self.steps = steps

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``accumulate``."""
        return recipe.amended(accumulate=self.steps)

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe, and says what the updates will be."""
        split = context.data.train
        if split is not None:
            size, updates = split.batch_size, context.steps(self.amend(state.recipe)).updates
            context.note(
                f"updates by {self.steps} batches of {size} samples: as a batch size of "
                f"{self.steps * size}; {updates} update{'s' * (updates != 1)} an epoch"
            )
        model = getattr(state.artifact, "model", None)
        if model is not None and (layers := batch_norms(model)):
            trained = sum(layer.trainable for layer in layers)
            if trained:
                context.note(
                    f"batch normalization ({trained} layer{'s' * (trained != 1)}) goes by the "
                    "statistics of the single batches"
                )
        return super().apply(state, context)
