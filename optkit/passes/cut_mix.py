"""`CutMix`: trains on images with a rectangle of another one pasted in."""

from __future__ import annotations

from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Setting
from optkit.errors import PipelineError
from optkit.images import require_images
from optkit.mixing import CutMixing, check_mixable
from optkit.recipe import Recipe

__all__ = ["CutMix"]


class CutMix(RecipePass):
    """Pastes into each training image a rectangle of another one; labels are blended by the areas.

    Use it against overfitting on photographs, in longer trainings. Takes images and classes or
    labels; accuracy is counted on images as they are, against their labels. With ``mixup_alpha``
    some of the samples are blended as `MixUp` does instead: the two passes fill one slot of the
    recipe, and this is how to have both.

    Args:
        alpha: The share of the area that stays is drawn from Beta(alpha, alpha); above 0. At 1
            it is drawn evenly.
        probability: Share of the samples that are changed, in ``(0, 1]``.
        mixup_alpha: Of MixUp, for the samples that it takes; ``None`` for none.
        switch_probability: With ``mixup_alpha``, the share of the changed samples that MixUp takes,
            in ``(0, 1)``.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.CutMix(mixup_alpha=0.2), ok.FineTune(epochs=1)])
        >>> [row.status for row in pipeline.run(small_model(), digits(samples=200)).report.rows]
        ['recipe', 'ok']

    References:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", 2019.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        probability: float = 1.0,
        mixup_alpha: float | None = None,
        switch_probability: float = 0.5,
    ):
        _validate.number("alpha", alpha, minimum=0, exclusive="min")
        _validate.number("probability", probability, minimum=0, maximum=1, exclusive="min")
        _validate.optional(_validate.number, "mixup_alpha", mixup_alpha, minimum=0, exclusive="min")
        _validate.number(
            "switch_probability", switch_probability, minimum=0, maximum=1, exclusive="min max"
        )
        self.alpha = alpha
        self.probability = probability
        self.mixup_alpha = mixup_alpha
        self.switch_probability = switch_probability

    def check(self, setting: Setting) -> Any:
        """Refuses what is no image, and targets of which areas have no say."""
        split = setting.data.train
        if split is None:
            return
        require_images("CutMix", split, "Use MixUp, or leave it out.")
        for name in setting.loss.each:
            task = setting.task.each[name]
            targets = split.targets(1)
            shape = (targets[name] if name else targets).shape
            if not task.is_classification or len(shape) > 2:
                what = "regression" if not task.is_classification else "a label for each place"
                raise PipelineError(
                    "CutMix blends the labels of whole images by the areas that are seen, and the "
                    f"task is {what} ({task.describe()}). Use MixUp, or leave it out."
                )
        check_mixable("CutMix", split, setting.model, setting.task, setting.loss)

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``mix``."""
        return recipe.amended(
            mix=CutMixing(self.alpha, self.probability, self.mixup_alpha, self.switch_probability)
        )
