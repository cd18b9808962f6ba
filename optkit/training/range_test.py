"""The learning-rate range test: which rate suits a model, found by trying all of them in one go."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.ndimage import median_filter

from optkit.errors import OptkitError
from optkit.runtime import isolated, tensorflow, tf_keras
from optkit.study import Chart, Study

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["LearningRateSearch", "RateRange", "range_test", "smoothed"]

_WIDTH = 2.0  # of the smoothing, in updates
_SHARE = 0.1  # of the rate at which the loss is lowest
_FEWEST = 10  # losses without which nothing can be told
_SETTLING = 20  # losses before the search can stop: of a few, any next one is the largest
_LAST = 5  # that must all be high for the loss to have run away, and not to be noise
_CLEAR = 8  # within noise alone, averages come to lie some five times their spread apart
_CALM = 1 / 3  # of the losses, the first ones, behind rates too low to do much


@dataclass(frozen=True)
class RateRange:
    """The learning rates that a range test tries.

    Attributes:
        low: The rate to begin with.
        high: The rate to end with.
        updates: Number of rates, at least 2, each higher than the one before by the same factor.
    """

    low: float = 1e-6
    high: float = 10.0
    updates: int = 100

    @property
    def rates(self) -> list[float]:
        """The rates.

        >>> [round(rate, 3) for rate in RateRange(0.01, 1.0, 3).rates]
        [0.01, 0.1, 1.0]
        """
        return [float(rate) for rate in np.geomspace(self.low, self.high, self.updates)]


@dataclass(frozen=True)
class LearningRateSearch:
    """What a range test found.

    Attributes:
        rates: Learning rates tried, from low to high.
        losses: For each the loss of the next batch, after an update with that rate.
        smoothed: The losses with the noise of single batches averaged out.
        edge: The highest rate at which the smoothed loss is still as low as the lowest.
        suggestion: The rate to train with: a tenth of ``edge``.
        diverged: Whether the loss ran away and the test stopped there.
        notes: What the reader should know.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    edge: float
    suggestion: float
    diverged: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[float], losses: Sequence[float], *, diverged: bool) -> Self:
        """Judges the losses of a range test.

        The lowest loss lies where rates begin to be too high, as every update before has lowered
        it. The edge is the last rate whose loss is no more than a tenth of the fall above that, or
        within noise of it; the noise alone decides for a model that is trained already, whose loss
        falls no further. A tenth of the edge is safe for a whole training. What comes behind a
        first clear rise is not looked at, as a model that broke may recover to worse. A single
        batch makes no rise, however hard it is: of a trained model most batches have next to no
        loss, and a few all of it.

        Args:
            rates: Learning rates, rising.
            losses: The loss after an update with each.
            diverged: Whether the loss ran away behind the last one.

        Raises:
            OptkitError: If there are too few of them.
        """
        if len(losses) < _FEWEST:
            raise OptkitError(
                f"The range test of learning rates came to {len(losses)} updates before the loss "
                "ran away. Look for extreme values in the inputs, or give a learning rate."
            )
        raw = np.asarray(losses, np.float64)
        noise = _noise(raw) / math.sqrt(2 * math.sqrt(math.pi) * _WIDTH)  # what smoothing leaves
        # A loss that ran away would raise the averages before it.
        highest = max(_too_high(raw), float(smoothed(raw).min()) + 2 * _CLEAR * noise)
        capped = np.minimum(raw, highest)
        curve = smoothed(capped)
        # The same without single batches.
        usual = smoothed(median_filter(capped, size=_LAST, mode="nearest"))
        risen = np.flatnonzero(_rises(curve, noise) & _rises(usual, noise))
        sound = curve[: int(risen[0])] if len(risen) else curve
        limit = sound.min() + max(0.1 * (curve[0] - sound.min()), 3 * noise)
        edge = int(np.flatnonzero(sound <= limit)[-1])
        notes = [f"suggested: {_SHARE:g} of the highest rate at which the loss is still lowest"]
        if edge == len(curve) - 1 and not diverged:
            notes.append("the loss had not risen yet at the highest rate that was tried")
        if curve[0] - sound.min() <= 4 * noise:
            notes.append("the loss did not fall: the rate is one that does not harm the model")
        return cls(
            tuple(float(rate) for rate in rates),
            tuple(float(loss) for loss in raw),
            tuple(float(loss) for loss in curve),
            edge=float(rates[edge]),
            suggestion=float(f"{_SHARE * rates[edge]:.2g}"),
            diverged=diverged,
            notes=tuple(notes),
        )

    @property
    def measured(self) -> dict[str, Any]:
        """What `of` takes to make it again, as plain values."""
        return {
            "rates": list(self.rates),
            "losses": list(self.losses),
            "diverged": self.diverged,
        }

    @property
    def study(self) -> Study:
        """The table, a row a rate, with its chart."""
        marked = int(np.argmin(np.abs(np.log(np.asarray(self.rates) / self.suggestion))))
        rows = tuple(
            (rate, math.log10(rate), loss, smooth, i == marked)
            for i, (rate, loss, smooth) in enumerate(
                zip(self.rates, self.losses, self.smoothed, strict=True)
            )
        )
        figures = (*self.losses, *self.smoothed)
        wide = min(figures) > 0 and max(figures) > 30 * min(figures)
        return Study(
            "Learning rates tried",
            ("rate", "log10 of rate", "loss", "smoothed loss", "suggested"),
            rows,
            notes=(f"suggested learning rate: {self.suggestion:g}", *self.notes),
            chart=Chart(
                "line", x="log10 of rate", y=("loss", "smoothed loss"), mark="suggested", log=wide
            ),
        )

    def __str__(self) -> str:
        return str(self.study)

    def __repr__(self) -> str:
        return (
            f"LearningRateSearch(suggestion={self.suggestion:g}, edge={self.edge:.2g}, "
            f"{len(self.rates)} rates)"
        )

    def _repr_html_(self) -> str:
        return self.study._repr_html_()

    def to_frame(self) -> pandas.DataFrame:
        """A ``pandas.DataFrame``, a row a rate."""
        import pandas

        return pandas.DataFrame(
            {"rate": self.rates, "loss": self.losses, "smoothed loss": self.smoothed}
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The loss over the logarithm of the rate, with the suggestion set off.

        Args:
            path: Where to save the picture; the suffix (``.png``, ``.svg``, ``.pdf``) says how.

        Returns:
            The matplotlib ``Axes``.
        """
        return self.study.plot(path)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Values averaged with their neighbours by a Gaussian weight, at the ends with those there are.

    It looks both ways and so lags behind nothing, other than a running average.

    >>> [float(value) for value in smoothed(np.full(5, 3.0)).round(6)]
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / _WIDTH) ** 2)
    averaged: np.ndarray = weights @ values / weights.sum(axis=1)
    return averaged


def _rises(curve: np.ndarray, noise: float) -> Any:
    """Where a curve lies clearly above its lowest value so far."""
    lowest = np.minimum.accumulate(curve)
    return curve - lowest > np.maximum(0.5 * (curve[0] - lowest), _CLEAR * noise)


def _noise(values: np.ndarray) -> float:
    """The spread of single values around their course, from the differences of neighbours.

    The median of all is not misled by where the loss runs away, and knows nothing of rare hard
    batches; the mean square of the first ones knows them.
    """
    differences = np.diff(values)
    usual = float(np.median(np.abs(differences))) / 0.6745
    calm = differences[: max(_FEWEST, round(_CALM * len(values))) - 1]
    return max(usual, float(np.sqrt(np.mean(calm**2)))) / math.sqrt(2)


def range_test(
    model: Any,
    make_trainer: Callable[[Any], Any],
    batches: Any,
    *,
    accumulate: int,
    seed: int,
    tried: RateRange,
) -> LearningRateSearch:
    """Trains over rising rates and looks at the loss; everything is put back at the end.

    Args:
        model: The model, whose weights are the same afterwards.
        make_trainer: Makes of a learning-rate schedule a compiled model over the same layers.
        batches: The training stream, endless.
        accumulate: Batches whose gradients make one update.
        seed: Seed of what is random in training.
        tried: The rates.

    Raises:
        OptkitError: If the loss runs away at once.
    """
    schedule = tf_keras().optimizers.schedules.ExponentialDecay(
        tried.low, tried.updates - 1, tried.high / tried.low
    )
    watch = _Losses(accumulate)
    with isolated(seed), _put_back(model):
        trainer = make_trainer(schedule)
        steps = (tried.updates + 1) * accumulate
        trainer.fit(
            batches, epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[watch.callback()]
        )
    # The loss of a batch tells what the update before it did.
    losses = watch.losses[1:]
    return LearningRateSearch.of(tried.rates[: len(losses)], losses, diverged=watch.diverged)


class _Losses:
    """Collects the loss of every update, and stops where it runs away."""

    def __init__(self, accumulate: int):
        self.accumulate = accumulate
        self.losses: list[float] = []
        self.diverged = False
        self._pending: list[float] = []

    def callback(self) -> Any:
        """The Keras callback that looks on."""
        watch = self

        class Looking(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                self.model.reset_metrics()  # Keras tells the mean since the last reset

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                watch.add(float((logs or {})["loss"]))
                if watch.diverged:
                    self.model.stop_training = True

        return Looking()

    def add(self, loss: float) -> None:
        """Takes the loss of one batch in."""
        self._pending.append(loss)
        if len(self._pending) < self.accumulate:
            return
        loss, self._pending = float(np.mean(self._pending)), []
        if not math.isfinite(loss):
            self.diverged = True
            return
        self.losses.append(loss)
        self.diverged = _ran_away(np.asarray(self.losses))


def _ran_away(losses: np.ndarray) -> bool:
    """Whether the last losses are all far above any up to where the loss was lowest."""
    return len(losses) > _SETTLING and bool(losses[-_LAST:].min() > _too_high(losses))


def _too_high(losses: np.ndarray) -> float:
    """A loss far above any up to where it was lowest."""
    curve = smoothed(losses)
    lowest = int(np.argmin(curve))
    highest = float(losses[: max(_SETTLING, lowest + 1)].max())
    return highest + max(abs(highest), highest - float(curve[lowest]))


@contextlib.contextmanager
def _put_back(model: Any) -> Iterator[None]:
    """Gives a model its weights back, and its layers the states that they draw from."""
    tf = tensorflow()
    weights = model.get_weights()
    generators = [
        generator
        for layer in model._flatten_layers()
        for holder in (layer, getattr(layer, "_random_generator", None))
        for generator in getattr(holder, "__dict__", {}).values()
        if isinstance(generator, tf.random.Generator)
    ]
    states = [generator.state.numpy() for generator in generators]
    try:
        yield
    finally:
        model.set_weights(weights)
        for generator, state in zip(generators, states, strict=True):
            generator.state.assign(state)
