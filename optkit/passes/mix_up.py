"""`MixUp`: trains on blends of two samples."""

from __future__ import annotations

from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Setting
from optkit.mixing import MixUpMixing, check_mixable
from optkit.recipe import Recipe

__all__ = ["MixUp"]


class MixUp(RecipePass):
    """Blends each training sample with another one of its batch, inputs and targets alike.

    Use it against overfitting where there are few samples and no augmentation is known that keeps
    labels, tables and sequences of numbers among them. A blend of 0.8 of a cat and 0.2 of a dog is
    to be told as 0.8 cat and 0.2 dog. Takes classes, labels and values to regress; accuracy is
    counted on samples as they are, against their labels. Inputs must be numbers of which a mean
    makes sense: no text, no token ids, no numbers of categories.

    Args:
        alpha: Of the distribution Beta(alpha, alpha), from which each sample's share is drawn; above
            0. Small ones (0.1 to 0.4) leave most samples nearly as they are; 1 draws evenly.
        probability: Share of the samples that are blended, in ``(0, 1]``.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.MixUp(0.2), ok.FineTune(epochs=1)])
        >>> [row.status for row in pipeline.run(small_model(), digits(samples=200)).report.rows]
        ['recipe', 'ok']

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """

    def __init__(self, alpha: float = 0.2, *, probability: float = 1.0):
        _validate.number("alpha", alpha, minimum=0, exclusive="min")
        _validate.number("probability", probability, minimum=0, maximum=1, exclusive="min")
        self.alpha = alpha
        self.probability = probability

    def check(self, setting: Setting) -> Any:
        """Refuses inputs and losses that blends cannot be made for."""
        check_mixable("MixUp", setting.data.train, setting.model, setting.task, setting.loss)

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``mix``."""
        return recipe.amended(mix=MixUpMixing(self.alpha, self.probability))
