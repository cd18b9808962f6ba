"""`LRSchedule`: how the learning rate goes over the trainings that follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optkit import _validate
from optkit.base import RecipePass
from optkit.context import Context, State
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.models import is_compiled
from optkit.recipe import Recipe
from optkit.runtime import tf_keras
from optkit.training import follows_schedule
from optkit.training.schedules import cosine, linear, sequence

__all__ = ["SHAPES", "LRSchedule", "Shape"]

#: By shape, what it takes besides `warmup`, and what stands for ``None``.
SHAPES: dict[str, dict[str, Any]] = {
    "cosine": {"end": 0.0},
    "cosine_restarts": {"end": 0.0, "restarts": 1},
    "step": {"milestones": (0.5, 0.75), "every": None, "factor": 0.1},
    "exponential": {"end": 0.01, "decay": None},
    "one_cycle": {"begin": 0.04, "rise": 0.3, "end": 0.0},
}


@dataclass(frozen=True)
class Shape:
    """The course of a learning rate, whatever its peak and the length of the training.

    Fills the recipe's slot; for the attributes, of which each shape takes some, see `LRSchedule`.
    """

    shape: str
    warmup: float = 0.0
    end: float = 0.0
    restarts: int = 1
    milestones: tuple[float, ...] = ()
    every: int | None = None
    factor: float = 0.1
    decay: float | None = None
    begin: float = 0.04
    rise: float = 0.3

    def rate(self, peak: float, steps: int, steps_per_epoch: int) -> Any:
        """The learning rate of a training, as a Keras schedule.

        The lowest rate of a fall would be that of the update behind the last: one at a rate of 0
        would be of no use.

        Args:
            peak: The highest rate.
            steps: Updates in the whole training.
            steps_per_epoch: Updates in an epoch.
        """
        if self.shape == "one_cycle":
            rising = self._share(self.rise, steps)
            up = cosine(self.begin * peak, peak, rising)
            down = cosine(peak, self.end * peak, steps - rising)
            return sequence([(rising, up), (steps - rising, down)])
        warm = self._share(self.warmup, steps)
        rest = steps - warm
        # Begins above 0, and the update behind it has the peak.
        warming = linear(peak / (warm + 1), peak, warm)
        return sequence([(warm, warming), (rest, self._behind(peak, warm, rest, steps_per_epoch))])

    @staticmethod
    def _share(share: float, steps: int) -> int:
        """Updates of a share of the training; at least one is left."""
        return min(round(share * steps), steps - 1)

    def _behind(self, peak: float, warm: int, rest: int, steps_per_epoch: int) -> Any:
        """What comes behind the warm-up."""
        schedules = tf_keras().optimizers.schedules
        if self.shape == "cosine":
            return cosine(peak, self.end * peak, rest)
        if self.shape == "cosine_restarts":
            waves = self.restarts + 1
            ends = [round(rest * wave / waves) for wave in range(waves + 1)]
            lengths = [end - begin for begin, end in itertools.pairwise(ends)]
            return sequence([(n, cosine(peak, self.end * peak, n)) for n in lengths])
        if self.shape == "exponential":
            if self.decay is not None:
                return schedules.ExponentialDecay(peak, steps_per_epoch, self.decay)
            return schedules.ExponentialDecay(peak, rest, self.end)
        return self._steps(peak, warm, warm + rest, steps_per_epoch)

    def _steps(self, peak: float, warm: int, steps: int, steps_per_epoch: int) -> Any:
        if self.every is not None:
            length = self.every * steps_per_epoch
            places = list(range(length, steps, length))
        else:
            places = sorted(
                round(place * steps) if isinstance(place, float) else int(place) * steps_per_epoch
                for place in self.milestones
            )
        places = [place for place in places if place < steps]
        if not places:
            return peak
        values = [peak * self.factor**i for i in range(len(places) + 1)]
        # Keras changes the value behind a boundary, not at it.
        boundaries = [float(place - warm) - 0.5 for place in places]
        return tf_keras().optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


class LRSchedule(RecipePass):
    """Shapes the learning rate of the trainings that follow.

    A rate that falls to nearly nothing lets a training come to rest; a warm-up keeps the first
    updates, made while an optimizer knows nothing yet, from harming a trained model. The peak is
    what each training pass asks for by its ``learning_rate``; every training goes through the whole
    shape over all of its epochs, also where early stopping may end it before. It goes by updates of
    the weights, and takes the place of a schedule that the model's optimizer was compiled with.

    Args:
        shape: ``"cosine"``: half a wave from the peak to the end. ``"cosine_restarts"``: several
            such waves of equal length, up to an update. ``"step"``: falls by a factor at milestones.
            ``"exponential"``: falls by the same share in every update. ``"one_cycle"``: half a wave
            up to the peak and one down. Momentum stays as it is.
        warmup: Share of the training, in ``[0, 1)``, in which the rate first grows to the peak in a
            straight line. Not for ``"one_cycle"``, which begins with its rise.
        end: Rate at the end, as a share of the peak: in ``[0, 1)`` for ``"cosine"``,
            ``"cosine_restarts"`` and ``"one_cycle"``, ``None`` for 0; in ``(0, 1)`` for
            ``"exponential"``, ``None`` for 0.01.
        restarts: For ``"cosine_restarts"``, how often the wave begins anew, at least 1; ``None``
            for once.
        milestones: For ``"step"``, where the rate falls: shares of the training in ``(0, 1)`` as
            floats, or numbers of epochs behind which it does, as whole numbers; ``None`` for
            ``(0.5, 0.75)``. Those behind the end of a training are not reached.
        every: For ``"step"``, in place of milestones: epochs from one fall to the next, at least 1.
        factor: For ``"step"``, what the rate is multiplied by, in ``(0, 1)``; ``None`` for 0.1.
        decay: For ``"exponential"``, in place of ``end``: the share of the rate that is left after
            an epoch, in ``(0, 1)``.
        begin: For ``"one_cycle"``, the rate at the beginning as a share of the peak, in ``(0, 1)``;
            ``None`` for 0.04.
        rise: For ``"one_cycle"``, share of the training in which the rate rises, in ``(0, 1)``;
            ``None`` for 0.3.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> passes = [ok.LRSchedule("cosine", warmup=0.1), ok.FineTune(4, 0.02, patience=None)]
        >>> result = ok.Pipeline(passes).run(small_model(), digits(200))
        >>> rates = result.report.rows[1].curves[0]["learning_rate"]
        >>> rates[0] > rates[1] > rates[2] > rates[3] > 0
        True

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
        Goyal et al., "Accurate, Large Minibatch SGD", 2017 (warm-up).
        Smith and Topin, "Super-Convergence", 2018 (one cycle).
    """

    def __init__(
        self,
        shape: str = "cosine",
        *,
        warmup: float = 0.0,
        end: float | None = None,
        restarts: int | None = None,
        milestones: Sequence[float] | None = None,
        every: int | None = None,
        factor: float | None = None,
        decay: float | None = None,
        begin: float | None = None,
        rise: float | None = None,
    ):
        _validate.one_of("shape", shape, tuple(SHAPES))
        _validate.number("warmup", warmup, minimum=0, maximum=1, exclusive="max")
        given = {
            "end": end,
            "restarts": restarts,
            "milestones": milestones,
            "every": every,
            "factor": factor,
            "decay": decay,
            "begin": begin,
            "rise": rise,
        }
        for name, value in given.items():
            if value is not None and name not in SHAPES[shape]:
                takers = ", ".join(repr(kind) for kind in SHAPES if name in SHAPES[kind])
                raise PipelineError(
                    f"`{name}` is for {takers}. Received: {value!r} with shape={shape!r}. Leave it "
                    "out."
                )
        if shape == "one_cycle" and warmup:
            raise PipelineError(
                f"`warmup` is not for 'one_cycle', which begins with its own rise. Received: "
                f"{warmup!r}. Leave it out, or set `rise`."
            )
        open_ends = {"exclusive": "min max" if shape == "exponential" else "max"}
        _validate.optional(_validate.number, "end", end, minimum=0, maximum=1, **open_ends)
        for name in ("factor", "decay", "begin", "rise"):
            _validate.optional(
                _validate.number, name, given[name], minimum=0, maximum=1, exclusive="min max"
            )
        _validate.optional(_validate.integer, "restarts", restarts, minimum=1)
        _validate.optional(_validate.integer, "every", every, minimum=1)
        _validate.optional(_milestones, "milestones", milestones)
        for one, other in (("milestones", "every"), ("end", "decay")):
            if given[one] is not None and given[other] is not None:
                raise PipelineError(
                    f"`{one}` and `{other}` say the same in two ways. Received: {given[one]!r} and "
                    f"{given[other]!r}. Leave one of them out."
                )
        self.shape = shape
        self.warmup = warmup
        self.end = end
        self.restarts = restarts
        self.milestones = milestones
        self.every = every
        self.factor = factor
        self.decay = decay
        self.begin = begin
        self.rise = rise

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``schedule``."""
        settings = {}
        for name, default in SHAPES[self.shape].items():
            value = getattr(self, name)
            settings[name] = default if value is None else value
        if settings.get("milestones") is not None:
            settings["milestones"] = tuple(settings["milestones"])
        return recipe.amended(schedule=Shape(self.shape, self.warmup, **settings))

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe, and says which other schedule gives way."""
        model = context.model
        if model is not None and is_compiled(model) and follows_schedule(model.optimizer):
            context.note("takes the place of the schedule that the model is compiled with")
        return super().apply(state, context)


def _milestones(name: str, value: Any) -> None:
    """Shares of the training as floats, or epochs as whole numbers; at least one."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ArgumentTypeError(
            f"`{name}` must be a list of shares such as (0.5, 0.75), or of epochs such as (10, 15). "
            f"Received: {value!r}."
        )
    if not value:
        raise PipelineError(f"`{name}` must hold at least one place. Received: none.")
    for i, place in enumerate(value):
        if isinstance(place, float):
            _validate.number(f"{name}[{i}]", place, minimum=0, maximum=1, exclusive="min max")
        else:
            _validate.integer(f"{name}[{i}]", place, minimum=1)
