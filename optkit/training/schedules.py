"""Learning rates over a training: what schedules are put together from.

The schedules themselves are those of ``tf_keras.optimizers.schedules``; here are the two ways to
make longer ones of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optkit.runtime import tensorflow, tf_keras

__all__ = ["cosine", "cycles", "linear", "sequence"]


def linear(begin: float, end: float, updates: int) -> Any:
    """A straight line from one rate to another, which it has reached after so many updates."""
    return tf_keras().optimizers.schedules.PolynomialDecay(
        begin, max(1, updates), end_learning_rate=end, power=1.0
    )


def cosine(begin: float, end: float, updates: int) -> Any:
    """Half a wave from one rate, above 0, to another, which it has reached after so many updates."""
    return tf_keras().optimizers.schedules.CosineDecay(begin, max(1, updates), alpha=end / begin)


def sequence(parts: Sequence[tuple[int, Any]]) -> Any:
    """Schedules one behind another, each counted from its own beginning.

    Args:
        parts: How many updates each holds for, and the schedule, or a number for a constant rate.
            The last one holds on. A part without updates is passed over.

    Example:
        >>> rate = sequence([(2, 0.5), (2, linear(1.0, 0.0, 4))])
        >>> [round(float(rate(step)), 3) for step in range(5)]
        [0.5, 0.5, 1.0, 0.75, 0.5]
    """
    tf = tensorflow()
    kept = [(updates, part) for updates, part in parts if updates > 0]

    def rate(step: Any) -> Any:
        found, begin = None, 0
        for updates, part in kept:
            # Parts that do not hold are evaluated as well, at one of their ends.
            own = tf.clip_by_value(step - begin, 0.0, float(updates))
            value = part(own) if callable(part) else tf.constant(part, tf.float32)
            found = value if found is None else tf.where(step < begin, found, value)
            begin += updates
        return found

    return _schedule(rate, "sequence")


def cycles(schedule: Any, updates: int) -> Any:
    """A schedule that begins anew each time after so many updates.

    Example:
        >>> rate = cycles(linear(1.0, 0.0, 1), 2)
        >>> [round(float(rate(step)), 3) for step in range(4)]
        [1.0, 0.0, 1.0, 0.0]
    """
    tf = tensorflow()
    return _schedule(lambda step: schedule(tf.math.floormod(step, float(updates))), "cycles")


def _schedule(rate: Callable[[Any], Any], name: str) -> Any:
    """A Keras schedule of a function of the step as a float32 tensor."""
    tf = tensorflow()

    class Made(tf_keras().optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return rate(tf.cast(step, tf.float32))

        def get_config(self) -> dict[str, Any]:
            """Its parts are functions; it is made anew for each training and never stored."""
            return {"name": name}

    return Made()
