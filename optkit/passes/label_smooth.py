"""`LabelSmooth`: trains on targets that are a little less than certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Setting
from optkit.errors import PipelineError
from optkit.recipe import Recipe
from optkit.task import Task, dense_targets

__all__ = ["LabelSmooth", "smoothed", "smoothing_for"]


def smoothing_for(classes: int) -> float:
    """The factor that ``"auto"`` stands for: 0.05 for two classes, 0.1 up to ten, then up to 0.2.

    Above ten classes it grows with the logarithm of their number and reaches 0.2 at a hundred.

    >>> [round(smoothing_for(classes), 3) for classes in (2, 10, 32, 100, 1000)]
    [0.05, 0.1, 0.151, 0.2, 0.2]
    """
    if classes <= 2:
        return 0.05
    return min(0.2, 0.1 + 0.1 * max(0.0, math.log10(classes / 10)))


def smoothed(targets: Any, factor: float, classes: int) -> Any:
    """Moves a share of the certainty to all classes evenly: ``(1 - f) y + f / classes``.

    Args:
        targets: One-hot rows, or probabilities of single labels.
        factor: Share to move.
        classes: Number of classes; 2 for targets that are single labels.
    """
    return targets * (1.0 - factor) + factor / classes


@dataclass(frozen=True)
class _Smoothing:
    """Fills the recipe's slot."""

    factor: float | str

    def prepare(self, task: Task) -> Callable[[Any], Any]:
        """The transform of dense targets of a task; of several outputs, of those with classes."""
        if task.parts:
            each = {
                name: self.prepare(part)
                for name, part in task.parts.items()
                # Class numbers that no loss made rows of are not trained on.
                if part.is_classification and not (part.kind == "multiclass" and part.sparse)
            }
            return lambda targets: {
                name: each[name](values) if name in each else values
                for name, values in targets.items()
            }
        # Labels that are independent of each other are two classes each.
        classes = task.classes if task.kind == "multiclass" else 2
        factor = smoothing_for(classes) if isinstance(self.factor, str) else self.factor
        return lambda targets: smoothed(targets, factor, classes)


class LabelSmooth(RecipePass):
    """Smooths the targets of the trainings that follow.

    Use it for classifiers that are too sure of themselves, and where some labels are wrong. Takes
    class numbers, one-hot rows, binary and multi-label targets; accuracy is still counted against
    the hard labels. Needs a cross-entropy that takes one-hot rows (a sparse one is widened). Of
    several outputs each that predicts classes is smoothed.

    Args:
        factor: Share of the certainty that is spread evenly over all classes, in ``(0, 1)``, or
            ``"auto"``: 0.05 for two classes, 0.1 for three to ten, growing to 0.2 at a hundred.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.LabelSmooth(0.1), ok.FineTune(epochs=1)])
        >>> [row.status for row in pipeline.run(small_model(), digits(samples=200)).report.rows]
        ['recipe', 'ok']

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
        Müller, Kornblith and Hinton, "When Does Label Smoothing Help?", 2019.
    """

    def __init__(self, factor: float | str = 0.1):
        if isinstance(factor, str):
            _validate.one_of("factor", factor, ("auto",))
        else:
            _validate.number("factor", factor, minimum=0, maximum=1, exclusive="min max")
        self.factor = factor

    def check(self, setting: Setting) -> None:
        """Refuses regression, losses that smooth themselves, losses of class numbers alone."""
        trained = [setting.task.each[name] for name in setting.loss.each]
        if not any(task.is_classification for task in trained):
            raise PipelineError(
                "LabelSmooth spreads certainty over classes, and the task is "
                f"{setting.task.describe()}. Leave it out."
            )
        for loss in setting.loss.each.values():
            if loss.label_smoothing:
                raise PipelineError(
                    f"The loss {loss.name!r} (from the {loss.source}) already smooths labels by "
                    f"{loss.label_smoothing:g}. Leave out LabelSmooth, or compile the model with a "
                    "loss that does not."
                )
        dense_targets(setting.task, setting.loss)

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``smooth``."""
        return recipe.amended(smooth=_Smoothing(self.factor))
