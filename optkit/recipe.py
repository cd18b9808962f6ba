"""`Recipe`: how the next training is done.

Recipe passes amend it; every later training pass trains by it. The order in which its parts act is
fixed, whatever the order of the passes: sample, augment, mix, smooth, loss.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from optkit.errors import PipelineError

if TYPE_CHECKING:
    from optkit.data import Split
    from optkit.task import Task

__all__ = ["EXCLUSIVE_SLOTS", "Augmentation", "Recipe", "Schedule", "TargetTransform"]

#: The slots that hold one thing at a time; the others collect.
EXCLUSIVE_SLOTS = (
    *("sample", "mix", "smooth", "loss", "optimizer"),
    *("schedule", "accumulate", "precision", "jit"),
)


class Augmentation(Protocol):
    """Changes the inputs of a training batch.

    Called in a ``tf.data`` map, perhaps in parallel: everything random must come from ``seed``.
    One that draws from elsewhere says so by an attribute ``stateless = False``, and is then called
    in one order.
    """

    def prepare(self, split: Split, seed: int) -> Callable[[Any, Any], Any]:
        """Looks at the training split once and returns the transform of one batch.

        Args:
            split: The training split.
            seed: Seed of this training.

        Returns:
            A function of ``(x, seed)``: a batch of inputs, shape ``(batch, …)``, and an int64
            tensor of shape ``(2,)`` that differs for each batch; it returns the changed inputs.
        """


class TargetTransform(Protocol):
    """Changes the targets of a training batch."""

    def prepare(self, task: Task) -> Callable[[Any], Any]:
        """Returns a function of dense float targets to the targets to train on."""


class Schedule(Protocol):
    """Shapes the learning rate over a training."""

    def rate(self, peak: float, steps: int, steps_per_epoch: int) -> Any:
        """The learning rate of a training, as a ``tf_keras`` ``LearningRateSchedule``.

        Args:
            peak: The learning rate that the training pass asks for.
            steps: Updates of the weights in the whole training.
            steps_per_epoch: Updates in an epoch.
        """


@dataclass(frozen=True)
class Recipe:
    """How the next training is done. A frozen value: `amended` makes a new one.

    Attributes:
        sample: Function of ``(split, seed)`` to the training split to draw from. Exclusive.
        augment: `Augmentation` objects, applied in order.
        mix: Function of ``(x, y, seed)``, inputs, dense targets and a ``(2,)`` seed tensor, to the
            mixed batch ``(x, y)``. Where samples have weights it takes them as a fourth argument
            and gives ``(x, y, weights)``. Exclusive.
        smooth: A `TargetTransform`. Exclusive.
        loss: Loss that replaces the model's own. Exclusive.
        optimizer: tf_keras optimizer, or name of one, for passes that are given none. Exclusive.
        schedule: A `Schedule` of the learning rate. Exclusive.
        accumulate: Batches whose gradients make one update; ``None`` for each by itself. Exclusive.
        precision: Policy under which layers compute, ``"mixed_float16"`` or ``"mixed_bfloat16"``;
            ``None`` for float32. Exclusive.
        jit: Whether training steps are compiled by XLA; ``None`` for no. Exclusive.
        callbacks: Functions without arguments, each making a Keras callback for one training.
    """

    sample: Callable[[Split, int], Split] | None = None
    augment: tuple[Augmentation, ...] = ()
    mix: Callable[..., tuple[Any, ...]] | None = None
    smooth: TargetTransform | None = None
    loss: Any = None
    optimizer: Any = None
    schedule: Schedule | None = None
    accumulate: int | None = None
    precision: str | None = None
    jit: bool | None = None
    callbacks: tuple[Callable[[], Any], ...] = ()

    def amended(self, **slots: Any) -> Recipe:
        """A recipe with more in it: exclusive slots are filled, the others get one item more.

        Example:
            >>> recipe = Recipe().amended(loss="mse").amended(callbacks=list)
            >>> recipe.loss, len(recipe.callbacks)
            ('mse', 1)
        """
        changes: dict[str, Any] = {}
        for slot, value in slots.items():
            if slot not in {field.name for field in dataclasses.fields(self)}:
                known = ", ".join(field.name for field in dataclasses.fields(self))
                raise PipelineError(f"A recipe has no slot {slot!r}. Slots: {known}.")
            changes[slot] = value if slot in EXCLUSIVE_SLOTS else (*getattr(self, slot), value)
        return dataclasses.replace(self, **changes)

    @property
    def softens_targets(self) -> bool:
        """Whether training needs dense targets instead of class numbers."""
        return self.mix is not None or self.smooth is not None

    @property
    def mixes_weights(self) -> bool:
        """Whether what mixes samples also takes their weights."""
        if self.mix is None:
            return False
        try:
            inspect.signature(self.mix).bind(None, None, None, None)
        except (TypeError, ValueError):
            return False
        return True
