"""`SWA`: stochastic weight averaging."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import KerasArtifact
from optkit.base import TrainPass
from optkit.context import Context, Setting
from optkit.errors import PipelineError
from optkit.measuring.accuracy import score
from optkit.models import is_compiled, variables_by_path
from optkit.recipe import Recipe, Schedule
from optkit.runtime import tensorflow, tf_keras
from optkit.training import Steps, check_learning_rate, check_optimizer, peak_learning_rate
from optkit.training.schedules import cosine, cycles, linear, sequence

__all__ = ["SWA", "AveragingRate", "ExponentialMean", "RunningMean"]

_CYCLE_END = 0.05  # the lowest learning rate of a cycle, as a share of the peak
_DECAY = 0.999


class RunningMean:
    """The mean of weights seen one set at a time, in double precision.

    >>> mean = RunningMean()
    >>> for value in (1.0, 2.0, 6.0):
    ...     mean.add({"w": np.array([value])})
    >>> mean.count, mean.values()
    (3, {'w': array([3.])})
    """

    def __init__(self) -> None:
        self.count = 0
        self._means: dict[str, np.ndarray] = {}

    def add(self, weights: Mapping[str, Any]) -> None:
        """Takes one set of weights in; counters and words have no mean."""
        self.count += 1
        for path, weight in _floats(weights).items():
            value = np.asarray(weight, np.float64)
            if self.count == 1:
                self._means[path] = value
            else:
                self._means[path] += (value - self._means[path]) / self.count

    def values(self) -> dict[str, np.ndarray]:
        """The mean by path."""
        return self._means

    def restore(self, count: int, values: dict[str, np.ndarray]) -> None:
        """Goes on from where another was."""
        self.count, self._means = count, values


class ExponentialMean:
    """A mean of weights in which each set counts ``decay`` times as much as the one behind it.

    What the mean of ``n`` sets lacks, as its weights ``decay ** (n - i)`` do not add up to 1 while
    there are few, is made up for by dividing by their sum. It stays on the device.

    Args:
        decay: In ``(0, 1)``.

    Example:
        >>> mean, weight = ExponentialMean(0.5), tensorflow().Variable([0.0])
        >>> for value in (1.0, 4.0):
        ...     _ = weight.assign([value])
        ...     mean.add({"w": weight})
        >>> mean.values()["w"]  # (0.5 * 1 + 4) / (0.5 + 1)
        array([3.], dtype=float32)
    """

    def __init__(self, decay: float):
        self.decay, self.count = decay, 0
        self._means: dict[str, Any] = {}
        self._update: Any = None

    def add(self, weights: Mapping[str, Any]) -> None:
        """Takes one set of weights in: the same variables each time."""
        tf = tensorflow()
        kept = _floats(weights)
        if not self._means:
            self._means = {
                path: tf.Variable(tf.zeros(weight.shape, tf.float32), trainable=False)
                for path, weight in kept.items()
            }
        if self._update is None:
            pairs = [(self._means[path], weight) for path, weight in kept.items()]

            def update(share: Any) -> None:
                for mean, weight in pairs:
                    mean.assign_add(share * (tf.cast(weight, tf.float32) - mean))

            self._update = tf.function(update, autograph=False)
        self.count += 1
        self._update(tf.constant((1 - self.decay) / (1 - self.decay**self.count), tf.float32))

    def values(self) -> dict[str, np.ndarray]:
        """The mean by path."""
        return {path: mean.numpy() for path, mean in self._means.items()}

    def restore(self, count: int, values: dict[str, np.ndarray]) -> None:
        """Goes on from where another was."""
        tf = tensorflow()
        self.count, self._update = count, None
        self._means = {path: tf.Variable(mean, trainable=False) for path, mean in values.items()}


def _floats(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a mean can be made of."""
    return {
        path: weight for path, weight in weights.items() if np.dtype(_dtype(weight)).kind == "f"
    }


def _dtype(weight: Any) -> Any:
    return getattr(weight.dtype, "as_numpy_dtype", weight.dtype)


@dataclass(frozen=True)
class AveragingRate:
    """The learning rate of a training whose weights are averaged; fills the recipe's slot.

    Attributes:
        before: What the recipe holds, for the epochs before averaging begins.
        first: Number of these epochs.
        schedule: That of the epochs behind them, as `SWA` takes it.
        cycle_epochs: Epochs a cycle.
    """

    before: Schedule | None
    first: int
    schedule: str
    cycle_epochs: int

    def rate(self, peak: float, steps: int, steps_per_epoch: int) -> Any:
        """The rate as a Keras schedule.

        Args:
            peak: The constant rate, and the one that cycles begin with.
            steps: Updates in the whole training.
            steps_per_epoch: Updates in an epoch.
        """
        begin = self.first * steps_per_epoch
        before: Any = peak
        if self.before is not None and begin:
            before = self.before.rate(peak, begin, steps_per_epoch)
        behind: Any = peak
        if self.schedule != "constant":
            length = self.cycle_epochs * steps_per_epoch
            falling = linear if self.schedule == "cyclic" else cosine
            # The last update of a cycle, behind which weights are taken, has the lowest rate.
            behind = cycles(falling(peak, _CYCLE_END * peak, length - 1), length)
        return sequence([(begin, before), (steps - begin, behind)])


class SWA(TrainPass):
    """Averages the weights over the last part of a training.

    Training at a learning rate that stays up walks around in a flat region of the loss; the mean of
    the places visited lies nearer to its middle and generalizes better than any one of them. The
    average is the result; the last weights are thrown away. The statistics of batch normalization
    are then measured anew on the training data (frozen layers keep theirs).

    An `LRSchedule` before it shapes the epochs before averaging begins; then the rate goes back up
    to what it is here.

    Args:
        epochs: Epochs to train, at least 1.
        learning_rate: Constant learning rate, or peak of each cycle, above 0; ``"auto"`` to look for
            one; ``None`` for that of the compiled optimizer, else 0.001.
        start: Where averaging begins: as a float the share of the epochs before it, in ``[0, 1)``;
            as a whole number, the epochs before it, fewer than ``epochs``.
        schedule: The learning rate while weights are averaged. ``"constant"``: stays up.
            ``"cyclic"``: falls to a twentieth within each cycle in a straight line; ``"cosine"``: in
            half a wave.
        cycle_epochs: Epochs a cycle, at least 1; not for ``"constant"``.
        average: ``"mean"``: of the weights at the end of each epoch, or cycle, all alike. ``"ema"``:
            of those behind every update of the optimizer, later ones counting more.
        decay: For ``"ema"``, how much less weights count with each update behind them, in ``(0, 1)``:
            0.999 looks back about 1000 updates. ``None`` for 0.999. Early averages are corrected for
            what their few updates lack.
        optimizer: As in `FineTune`; ``None`` for the recipe's, else the compiled class, else AdamW.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.SWA(epochs=4, start=0.5)])
        >>> pipeline.run(small_model(), digits(samples=200)).report.rows[0].notes[0]
        'averaged 2 sets of weights, of epochs 3 to 4'

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992 (EMA).
    """

    def __init__(
        self,
        epochs: int = 5,
        learning_rate: float | str | None = None,
        *,
        start: int | float = 0.25,
        schedule: str = "constant",
        cycle_epochs: int = 1,
        average: str = "mean",
        decay: float | None = None,
        optimizer: Any = None,
    ):
        _validate.integer("epochs", epochs, minimum=1)
        check_learning_rate("learning_rate", learning_rate, optional=True)
        if isinstance(start, int):
            _validate.integer("start", start, minimum=0, maximum=epochs - 1)
        else:
            _validate.number("start", start, minimum=0, maximum=1, exclusive="max")
        _validate.one_of("schedule", schedule, ("constant", "cyclic", "cosine"))
        _validate.integer("cycle_epochs", cycle_epochs, minimum=1)
        _validate.one_of("average", average, ("mean", "ema"))
        _validate.optional(
            _validate.number, "decay", decay, minimum=0, maximum=1, exclusive="min max"
        )
        check_optimizer("optimizer", optimizer)
        first = _epochs_before(start, epochs)
        if schedule != "constant" and epochs - first < cycle_epochs:
            raise PipelineError(
                f"No cycle of {cycle_epochs} epochs fits behind epoch {first} of {epochs}. Train "
                "longer, start earlier, or make `cycle_epochs` smaller."
            )
        if schedule == "constant" and cycle_epochs != 1:
            raise PipelineError(
                "`cycle_epochs` is for schedule='cyclic' and 'cosine'; leave it at 1."
            )
        if average == "mean" and decay is not None:
            raise PipelineError(
                f"`decay` is for average='ema'. Received: {decay!r} with average='mean'. Leave it out."
            )
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.start = start
        self.schedule = schedule
        self.cycle_epochs = cycle_epochs
        self.average = average
        self.decay = decay
        self.optimizer = optimizer

    def check(self, setting: Setting) -> None:
        """Refuses a model with nothing to train, and a learning rate that cannot stay up."""
        setting.require_trainable()
        setting.require_peak(self.learning_rate, self.optimizer)

    def _rate(self, recipe: Recipe, context: Context) -> float | str:
        """A number, as the rate must stay up: a compiled schedule counts by its first rate."""
        if isinstance(self.learning_rate, str):
            return self.learning_rate
        compiled = context.model.optimizer if is_compiled(context.model) else None
        return peak_learning_rate((self.optimizer, recipe.optimizer, compiled), self.learning_rate)

    def train(self, model: Any, recipe: Recipe, context: Context) -> Any:
        """Trains, averages, re-estimates batch normalization."""
        first = _epochs_before(self.start, self.epochs)
        mean: RunningMean | ExponentialMean
        if self.average == "ema":
            mean = ExponentialMean(_DECAY if self.decay is None else self.decay)
            averaging = _averaging_updates(mean, first, context.steps(recipe))
        else:
            mean = RunningMean()
            averaging = _averaging_epochs(mean, first, self.cycle_epochs)
        rate = self._rate(recipe, context)
        if recipe.schedule is not None and not first:
            context.note("averaging begins at once, so the recipe's schedule has no part in it")
        if recipe.schedule is not None or self.schedule != "constant":
            course = AveragingRate(recipe.schedule, first, self.schedule, self.cycle_epochs)
            recipe = dataclasses.replace(recipe, schedule=course)
        context.fit(
            model,
            recipe,
            epochs=self.epochs,
            learning_rate=rate,
            optimizer=self.optimizer,
            callbacks=[averaging],
        )
        last = _score(model, context)
        variables = variables_by_path(model)
        for path, value in mean.values().items():
            variables[path].assign(value.astype(_dtype(variables[path])))
        context.project(model)
        begin, end = averaging.begin, averaging.end
        if self.average == "ema":
            what = f"the weights behind {mean.count} update{'s' * (mean.count != 1)}"
        else:
            what = f"{mean.count} set{'s' * (mean.count != 1)} of weights"
        context.note(f"averaged {what}, of epochs {begin} to {end}")
        context.reestimate_batch_norm(model)
        if last is not None:
            name = context.metric.name.replace("_", " ")
            context.note(
                f"{name} on validation: last weights {last:.4f}, averaged {_score(model, context):.4f}"
            )
        return model


def _epochs_before(start: int | float, epochs: int) -> int:
    """How many epochs there are before averaging begins."""
    return int(start) if isinstance(start, int) else int(epochs * start)


def _score(model: Any, context: Context) -> float | None:
    """The metric on validation, where there is such a split; not counted as the pass's own time."""
    split = context.data.validation
    if split is None:
        return None
    with context.aside():
        return score(KerasArtifact(model), split, context.task, context.metric).mean


def _averaging_epochs(mean: RunningMean, first: int, every: int) -> Any:
    """Takes the weights in at the end of every cycle behind the first epochs."""

    class Averaging(_keeping(mean)):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            done = epoch + 1 - first
            if done > 0 and done % every == 0:
                mean.add(
                    {path: item.numpy() for path, item in variables_by_path(self.model).items()}
                )
                self.took(epoch)

    return Averaging()


def _averaging_updates(mean: ExponentialMean, first: int, steps: Steps) -> Any:
    """Takes the weights in behind every update of the optimizer behind the first epochs."""

    class Averaging(_keeping(mean)):  # type: ignore[misc]
        epoch = 0

        def on_train_begin(self, logs: Any = None) -> None:
            self.variables = variables_by_path(self.model)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.epoch >= first and steps.ends_update(batch):
                mean.add(self.variables)
                self.took(self.epoch)

    return Averaging()


def _keeping(mean: RunningMean | ExponentialMean) -> Any:
    """The class of a callback that averages, and goes on where another process was ended."""

    class Keeping(tf_keras().callbacks.Callback):  # type: ignore[misc]
        begin = end = 0  # epochs, from 1

        def took(self, epoch: int) -> None:
            self.begin, self.end = self.begin or epoch + 1, epoch + 1

        def state(self) -> dict[str, np.ndarray]:
            """What has been averaged, for the checkpoint of a training."""
            taken = np.array([mean.count, self.begin, self.end])
            return {"taken": taken, **{f"mean {k}": v for k, v in mean.values().items()}}

        def restore(self, state: dict[str, np.ndarray]) -> None:
            """Takes up what `state` gave."""
            count, self.begin, self.end = (int(value) for value in state["taken"])
            values = {k.removeprefix("mean "): v for k, v in state.items() if k != "taken"}
            mean.restore(count, values)

    return Keeping
