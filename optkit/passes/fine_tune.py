"""`FineTune`: trains the model further, and stops when it no longer gets better."""

from __future__ import annotations

from typing import Any

from optkit import _validate
from optkit.base import TrainPass
from optkit.context import Context, Setting
from optkit.recipe import Recipe
from optkit.training import check_learning_rate, check_optimizer

__all__ = ["FineTune"]


class FineTune(TrainPass):
    """Trains the whole model by the recipe, with early stopping on the validation metric.

    Use it to adapt a trained model to new data, to let a recipe act (augmentation, label
    smoothing), or to recover accuracy after a pass that cost some. Layers that are not trainable
    stay as they are.

    Args:
        epochs: Epochs at most, at least 1.
        learning_rate: Peak learning rate, above 0; ``"auto"`` to look for one before the training
            begins (see `find_learning_rate`).
        optimizer: Name of a Keras optimizer, or an optimizer, of which a fresh copy is used;
            ``None`` for the recipe's, else one of the class that the model is compiled with, else
            AdamW.
        weight_decay: Decay of kernels (not of biases or normalization), at least 0; ``None`` for
            the optimizer's own setting.
        patience: Epochs without a better validation metric (ties go by the loss) after which
            training stops; the best weights are restored. ``None`` trains all epochs and keeps the
            last weights. Of several outputs, see `Measure(output=…)` for what is watched.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.FineTune(epochs=10, learning_rate=0.02)]).run(
        ...     small_model(), digits(samples=400)
        ... )
        >>> result.report.final.accuracy > result.report.baseline.accuracy
        True

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019 (AdamW).
        Prechelt, "Early Stopping - But When?", 1998.
    """

    def __init__(
        self,
        epochs: int = 5,
        learning_rate: float | str = 1e-4,
        *,
        optimizer: Any = "adamw",
        weight_decay: float | None = None,
        patience: int | None = 3,
    ):
        _validate.integer("epochs", epochs, minimum=1)
        check_learning_rate("learning_rate", learning_rate)
        _validate.optional(_validate.number, "weight_decay", weight_decay, minimum=0)
        _validate.optional(_validate.integer, "patience", patience, minimum=1)
        if optimizer not in (None, "adamw"):
            check_optimizer("optimizer", optimizer)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.patience = patience

    @property
    def needs(self) -> tuple[str, ...]:
        """Validation only for early stopping."""
        return ("train",) if self.patience is None else ("train", "validation")

    def check(self, setting: Setting) -> None:
        """Refuses a model with nothing to train."""
        setting.require_trainable()

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Trains the model."""
        history = context.fit(
            model,
            recipe,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            patience=self.patience,
        )
        if history.stopped_early or history.best_epoch < history.epochs:
            context.note(f"kept epoch {history.best_epoch} of {history.epochs}")
        return model
