"""`SWA`: stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optkit import _validate
from optkit.base import TrainPass
from optkit.context import Context, Setting
from optkit.errors import PipelineError
from optkit.models import is_compiled
from optkit.recipe import Recipe
from optkit.runtime import tf_keras
from optkit.training import check_optimizer, initial_learning_rate

__all__ = ["SWA", "RunningMean", "cyclic_learning_rate"]

_CYCLE_END = 0.05  # the lowest learning rate of a cycle, as a share of the peak


class RunningMean:
    """The mean of weights seen one set at a time, in double precision.

    >>> mean = RunningMean()
    >>> for value in (1.0, 2.0, 6.0):
    ...     mean.add([np.array([value])])
    >>> mean.count, mean.values([np.zeros(1, "float32")])
    (3, [array([3.], dtype=float32)])
    """

    def __init__(self) -> None:
        self.count = 0
        self._means: list[np.ndarray | None] = []  # none for what has no mean

    def add(self, weights: Sequence[np.ndarray]) -> None:
        """Takes one set of weights in."""
        self.count += 1
        if self.count == 1:
            self._means = [
                weight.astype(np.float64) if weight.dtype.kind == "f" else None
                for weight in weights
            ]
            return
        for mean, weight in zip(self._means, weights, strict=True):
            if mean is not None:
                mean += (weight - mean) / self.count

    def values(self, like: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The mean in the dtypes of ``like``; counters and words are those of ``like``."""
        return [
            last if mean is None else mean.astype(last.dtype)
            for mean, last in zip(self._means, like, strict=True)
        ]


def cyclic_learning_rate(peak: float, position: float) -> float:
    """The learning rate at a position in ``[0, 1]`` of a cycle: linear from the peak to 5 % of it.

    >>> [round(cyclic_learning_rate(1.0, position), 3) for position in (0.0, 0.5, 1.0)]
    [1.0, 0.525, 0.05]
    """
    return peak * (1 - position * (1 - _CYCLE_END))


class SWA(TrainPass):
    """Averages the weights over the last part of a training.

    Training at a learning rate that stays up walks around in a flat region of the loss; the mean of
    the places visited lies nearer to its middle and generalizes better than any one of them. The
    average is the result; the last weights are thrown away. The statistics of batch normalization
    are then measured anew on the training data (frozen layers keep theirs).

    Args:
        epochs: Epochs to train, at least 1.
        learning_rate: Constant learning rate, or peak of each cycle, above 0; ``None`` for that of
            the compiled optimizer, else 0.001.
        start: Share of the epochs after which averaging begins, in ``[0, 1)``.
        schedule: ``"constant"``: a set of weights every epoch; ``"cyclic"``: the learning rate
            falls linearly to a twentieth within each cycle, and the weights at its end count.
        cycle_epochs: Epochs a cycle, at least 1; only for ``"cyclic"``.
        optimizer: As in `FineTune`; ``None`` for the recipe's, else the compiled class, else AdamW.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.SWA(epochs=4, start=0.5)])
        >>> pipeline.run(small_model(), digits(samples=200)).report.rows[0].notes[0]
        'averaged 2 sets of weights, of epochs 3 to 4'

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.
    """

    def __init__(
        self,
        epochs: int = 5,
        learning_rate: float | None = None,
        *,
        start: float = 0.25,
        schedule: str = "constant",
        cycle_epochs: int = 1,
        optimizer: Any = None,
    ):
        _validate.integer("epochs", epochs, minimum=1)
        _validate.optional(
            _validate.number, "learning_rate", learning_rate, minimum=0, exclusive="min"
        )
        _validate.number("start", start, minimum=0, maximum=1, exclusive="max")
        _validate.one_of("schedule", schedule, ("constant", "cyclic"))
        _validate.integer("cycle_epochs", cycle_epochs, minimum=1)
        check_optimizer("optimizer", optimizer)
        first = int(epochs * start)
        if schedule == "cyclic" and epochs - first < cycle_epochs:
            raise PipelineError(
                f"No cycle of {cycle_epochs} epochs fits behind epoch {first} of {epochs}. Train "
                "longer, start earlier, or make `cycle_epochs` smaller."
            )
        if schedule == "constant" and cycle_epochs != 1:
            raise PipelineError("`cycle_epochs` is for schedule='cyclic'; leave it at 1.")
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.start = start
        self.schedule = schedule
        self.cycle_epochs = cycle_epochs
        self.optimizer = optimizer

    def check(self, setting: Setting) -> None:
        """Refuses a model with nothing to train."""
        setting.require_trainable()

    def _rate(self, recipe: Recipe, context: Context) -> float | None:
        """A number, as the rate must stay up: a compiled schedule counts by its first rate."""
        chosen = self.optimizer if self.optimizer is not None else recipe.optimizer
        if chosen is None and is_compiled(context.model):
            chosen = context.model.optimizer
        if self.learning_rate is not None or chosen is None or isinstance(chosen, str):
            return self.learning_rate
        return initial_learning_rate(chosen)

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Trains, averages, re-estimates batch normalization."""
        mean = RunningMean()
        first = int(self.epochs * self.start)
        steps = context.data.train.steps if context.data.train is not None else 1
        used: list[int] = []
        callbacks = [_averaging(mean, used, first, self.cycle_epochs)]
        if self.schedule == "cyclic":
            callbacks.insert(0, _cycling(first, self.cycle_epochs, steps))
        context.fit(
            model,
            recipe,
            epochs=self.epochs,
            learning_rate=self._rate(recipe, context),
            optimizer=self.optimizer,
            callbacks=callbacks,
        )
        model.set_weights(mean.values(model.get_weights()))
        context.project(model)
        context.note(
            f"averaged {mean.count} set{'s' * (mean.count != 1)} of weights, of epochs "
            f"{used[0]} to {used[-1]}"
        )
        context.reestimate_batch_norm(model)
        return model


def _averaging(mean: RunningMean, used: list[int], first: int, every: int) -> Any:
    """Takes the weights in at the end of every cycle behind the first epochs."""

    class Averaging(tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            done = epoch + 1 - first
            if done > 0 and done % every == 0:
                mean.add(self.model.get_weights())
                used.append(epoch + 1)

    return Averaging()


def _cycling(first: int, cycle_epochs: int, steps: int) -> Any:
    """Sets the learning rate before every batch behind the first epochs."""

    class Cycling(tf_keras().callbacks.Callback):  # type: ignore[misc]
        peak = 0.0
        epoch = 0

        def on_train_begin(self, logs: Any = None) -> None:
            self.peak = float(self.model.optimizer.learning_rate)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            done = self.epoch - first
            if done < 0:
                return
            place = ((done % cycle_epochs) * steps + batch) / max(1, cycle_epochs * steps - 1)
            rate = cyclic_learning_rate(self.peak, min(1.0, place))
            self.model.optimizer.learning_rate.assign(rate)

    return Cycling()
