"""`BNReestimate`: measures the statistics of batch normalization anew."""

from __future__ import annotations

from typing import Any

from optkit import _validate
from optkit.base import RewritePass
from optkit.context import Context, Setting
from optkit.errors import PipelineError
from optkit.models import batch_norms

__all__ = ["BNReestimate"]


class BNReestimate(RewritePass):
    """Sets the moving statistics of batch normalization to those of the training data.

    The moving averages that training leaves behind lag behind the weights, and no longer fit at
    all once weights were averaged, pruned or edited. One pass over the training data, without
    augmentation, replaces them by the statistics of the weights as they are. Nothing is trained.

    Args:
        include_frozen: Whether layers that are not trainable are re-estimated, too. Left alone by
            default: a frozen backbone was meant to keep its statistics.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.BNReestimate()]).run(small_model(), digits(samples=400))
        >>> result.report.rows[0].notes
        ('re-estimated 1 of 1 batch-normalization layers',)

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018,
        section 3.2.
    """

    def __init__(self, *, include_frozen: bool = False):
        _validate.boolean("include_frozen", include_frozen)
        self.include_frozen = include_frozen

    @property
    def needs(self) -> tuple[str, ...]:
        """The training data."""
        return ("train",)

    def check(self, setting: Setting) -> None:
        """Refuses a model in which there is nothing to re-estimate."""
        if setting.model is None:
            return
        layers = batch_norms(setting.model)
        if not layers:
            raise PipelineError(
                f"Model {setting.model.name!r} has no batch normalization. Leave this pass out."
            )
        if not self.include_frozen and not any(layer.trainable for layer in layers):
            raise PipelineError(
                f"All batch normalization of model {setting.model.name!r} is frozen. Pass "
                "`include_frozen=True` if it is meant to change."
            )

    def rewrite(self, model: Any, context: Context) -> Any:
        """Re-estimates the statistics."""
        context.reestimate_batch_norm(model, include_frozen=self.include_frozen)
        return model
