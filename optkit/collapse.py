"""A guard that stops a training whose first steps destroy what the model already knew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.data import Split
from optkit.distribute import ALONE, Crew
from optkit.metric import hits, true_classes
from optkit.models import variables_by_path
from optkit.runtime import tensorflow, tf_keras
from optkit.task import Task

__all__ = ["Collapse", "CollapseGuard", "has_collapsed", "put_back", "snapshot"]

_SAMPLES = 200  # of the validation split, that each look is taken at
_LOST = 0.5  # share of what the model knew beyond chance, that must be lost
_ERRORS = 3.0  # by so many standard errors of the paired difference
_LOOKS = 2  # so many times in a row: a first step may be a stumble


@dataclass(frozen=True)
class Collapse:
    """What a guard saw.

    Attributes:
        step: The step after which the training was stopped, from 1.
        before: The figure before the training.
        after: The figure at that step.
        chance: What always answering the same gives.
        figure: Name of the figure.
        samples: Number of samples that were looked at.
        split: The split they are of.
    """

    step: int
    before: float
    after: float
    chance: float
    figure: str
    samples: int
    split: str

    def __str__(self) -> str:
        return (
            f"within {self.step} step{'s' * (self.step != 1)} the {self.figure} on {self.samples} "
            f"samples of `{self.split}` went from {self.before:.3f} to {self.after:.3f} (always "
            f"answering the same: {self.chance:.3f})"
        )


def has_collapsed(before: np.ndarray, now: np.ndarray, chance: float) -> bool:
    """Whether a model has lost more than half of what it knew beyond chance, and not by accident.

    Args:
        before: One value a sample, more is better, before the training.
        now: The same after some steps, for the same samples.
        chance: The mean of these values that always answering the same gives.

    Example:
        >>> import numpy as np
        >>> before = np.array([1.0] * 90 + [0.0] * 10)
        >>> has_collapsed(before, np.array([1.0] * 20 + [0.0] * 80), 0.1)
        True
        >>> has_collapsed(before, np.array([1.0] * 60 + [0.0] * 40), 0.1)
        False
    """
    if not np.all(np.isfinite(now)):
        return True
    known = float(before.mean()) - chance
    spread = _error(before)
    if known <= _ERRORS * spread:
        return False  # it knew next to nothing: there is nothing to lose
    lost = float((before - now).mean())
    return lost > _LOST * known and lost > _ERRORS * _error(before - now)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


class CollapseGuard:
    """Looks at a fixed part of a split at the start of a training, and stops it on a collapse.

    It looks before the first step and after steps 1, 2, 4, 8, …: often where a rate that is too
    high shows, and seldom later. The weights of the best look are kept, for `restore`.

    Args:
        task: What the model is for. The figure is its accuracy, or the squared error.
        split: What to look at: ``validation``, or ``train`` where there is no such split.
        crew: Those who train together, and must stop together.

    Attributes:
        collapse: What was seen, once a training was stopped; else ``None``.
        split: What is looked at.
    """

    def __init__(self, task: Task, split: Split, crew: Crew = ALONE):
        self.collapse: Collapse | None = None
        self._task, self.split, self._crew = task, split, crew
        self._x, self._y = split.head(_SAMPLES)
        self._chance = _constant(task, self._y)
        self._before: np.ndarray | None = None
        self._best: tuple[float, dict[str, np.ndarray]] | None = None
        self._fallen = 0

    def figure(self, model: Any) -> tuple[float, float]:
        """The figure of a model now, and its standard error."""
        values = self._values(_runner(model))
        return self._shown(float(values.mean())), _error(values)

    def callback(self) -> Any:
        """The Keras callback that looks."""
        guard = self

        class Guarding(tf_keras().callbacks.Callback):  # type: ignore[misc]
            def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
                self.steps = 0
                self.run = _runner(self.model)
                guard._begin(self.run, self.model)

            def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
                self.steps += 1
                if self.steps & (self.steps - 1) == 0:  # a power of two
                    guard._look(self.run, self.model, self.steps)

            def state(self) -> dict[str, np.ndarray]:
                return {"steps": np.array(self.steps), **guard._state()}

            def restore(self, state: dict[str, np.ndarray]) -> None:
                self.steps = int(state.pop("steps"))
                guard._take_up(state)

        return Guarding()

    def _state(self) -> dict[str, np.ndarray]:
        """What it holds, as arrays of numbers, for a training that goes on in another process."""
        if self._before is None or self._best is None:
            return {}
        mean, weights = self._best
        found = {"fallen": np.array(self._fallen), "before": self._before, "mean": np.array(mean)}
        if self.collapse is not None:
            seen = self.collapse
            found["collapse"] = np.array([seen.step, seen.before, seen.after], "float64")
        return found | {f"best/{path}": value for path, value in weights.items()}

    def _take_up(self, state: dict[str, np.ndarray]) -> None:
        """Takes up what `_state` gave."""
        if not state:
            return
        best = {
            name.removeprefix("best/"): value
            for name, value in state.items()
            if name.startswith("best/")
        }
        self._fallen, self._before = int(state["fallen"]), state["before"]
        self._best = (float(state["mean"]), best)
        if "collapse" in state:
            step, before, after = state["collapse"].tolist()
            self.collapse = self._seen(int(step), before, after)

    def _begin(self, run: Any, model: Any) -> None:
        self._fallen = 0
        self._before = self._values(run)
        self._best = (float(self._before.mean()), snapshot(model))

    def _look(self, run: Any, model: Any, step: int) -> None:
        if self.collapse is not None or self._before is None or self._best is None:
            return
        now = self._values(run)
        mean = float(now.mean())
        # Other machines may compute other last digits.
        if self._crew.agreed(has_collapsed(self._before, now, self._chance)):
            self._fallen += 1
        else:
            self._fallen = 0
            if self._crew.agreed(mean > self._best[0]):
                self._best = (mean, snapshot(model))
        if self._fallen >= _LOOKS:
            before = self._shown(float(self._before.mean()))
            self.collapse = self._seen(step, before, self._shown(mean))
            model.stop_training = True

    def _seen(self, step: int, before: float, after: float) -> Collapse:
        return Collapse(
            step=step,
            before=before,
            after=after,
            chance=self._shown(self._chance),
            figure="accuracy" if self._task.is_classification else "mean squared error",
            samples=len(self._y),
            split=self.split.name,
        )

    def restore(self, model: Any) -> None:
        """Gives a model the weights of the best look."""
        if self._best is None:
            return
        put_back(model, self._best[1])

    def _shown(self, value: float) -> float:
        return value if self._task.is_classification else -value

    def _values(self, run: Any) -> np.ndarray:
        return _per_sample(self._task, self._y, run(self._x))


def _per_sample(task: Task, targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """One value a sample, more is better: the share of right answers, or minus the squared error."""
    if task.is_classification:
        right = hits(task, targets, outputs).reshape(len(outputs), -1).mean(1)
        # Comparing with what is not finite gives answers as well, right ones among them.
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(1)
        return np.asarray(np.where(finite, right, 0.0), "float64")
    wrong = np.asarray(outputs, "float64").reshape(len(outputs), -1) - _flat(targets)
    return np.asarray(-(wrong**2).mean(1))


def _flat(targets: np.ndarray) -> np.ndarray:
    return np.asarray(targets, "float64").reshape(len(targets), -1)


def _constant(task: Task, targets: np.ndarray) -> float:
    """The mean of these values that always answering the same gives."""
    if not task.is_classification:
        return -float(_flat(targets).var(0).mean())
    if task.kind == "multilabel":
        share = (_flat(targets) >= 0.5).mean(0)
        return float(np.maximum(share, 1 - share).mean())
    return float(np.bincount(true_classes(task, targets)).max() / len(targets))


def snapshot(model: Any) -> dict[str, np.ndarray]:
    """The values of all variables by their paths, as they are now."""
    return {path: np.array(variable) for path, variable in variables_by_path(model).items()}


def put_back(model: Any, values: dict[str, np.ndarray]) -> None:
    """Gives variables the values that a `snapshot` of this model, or of a copy, holds."""
    variables = variables_by_path(model)
    for path, value in values.items():
        variables[path].assign(value)


def _runner(model: Any) -> Any:
    """A function from inputs of the split to the outputs of a model in inference mode."""
    tf = tensorflow()
    step = tf.function(lambda tensors: model(tensors, training=False), autograph=False)

    def run(x: Any) -> np.ndarray:
        inputs = [x[name] for name in model.input_names] if isinstance(x, dict) else [x]
        parts = []
        for start in range(0, len(inputs[0]), 32):
            tensors = [
                _tensor(value[start : start + 32], wanted)
                for value, wanted in zip(inputs, model.inputs, strict=True)
            ]
            parts.append(np.asarray(step(tensors[0] if len(tensors) == 1 else tensors)))
        return np.concatenate(parts)

    return run


def _tensor(value: np.ndarray, wanted: Any) -> Any:
    tf = tensorflow()
    made = tf.convert_to_tensor(value)
    return made if made.dtype == tf.string else tf.cast(made, wanted.dtype)
