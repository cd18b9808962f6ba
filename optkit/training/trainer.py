"""The model that Keras trains: over the same layers, with what belongs to every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optkit.constraint import Constraint
from optkit.models import output_names, variables_by_path
from optkit.runtime import tensorflow, tf_keras

__all__ = ["make_trainer"]


def make_trainer(
    model: Any,
    constraints: Mapping[Any, Constraint],
    rate_factors: Mapping[str, float],
    *,
    by_name: bool,
) -> Any:
    """A model over the same layers, which does after every update what is not the optimizer's.

    Args:
        model: The model.
        constraints: What must be kept: weights are projected.
        rate_factors: By path of a variable, what its updates are multiplied by.
        by_name: Whether it gives a dict by output name, as the targets are one.
    """
    adjust = _adjustment(model, constraints, rate_factors)
    kind = tf_keras().Model if adjust is None else _adjusting(adjust)
    outputs = model.outputs
    if by_name:
        outputs = dict(zip(output_names(model), outputs, strict=True))
    trainer = kind(model.inputs, outputs, name=model.name)
    if by_name:
        # Keras names losses and metrics by the layers otherwise, which may be other names.
        trainer.output_names = sorted(outputs)
    return trainer


def _adjusting(adjust: Callable[[], None]) -> Any:
    """The class of a model that adjusts its variables after every update, in the same graph."""

    class Trainer(tf_keras().Model):  # type: ignore[misc]
        def make_train_function(self, force: bool = False) -> Any:
            step = super().make_train_function(force)

            def adjusted(iterator: Any) -> Any:
                logs = step(iterator)
                adjust()
                return logs

            self.train_function = tensorflow().function(adjusted)
            return self.train_function

    return Trainer


def _adjustment(
    model: Any, constraints: Mapping[Any, Constraint], rate_factors: Mapping[str, float]
) -> Callable[[], None] | None:
    """What is done to variables after every update; ``None`` for nothing.

    A factor takes the optimizer's whole update, decay and momentum included, so that it means the
    same for every optimizer.
    """
    variables = variables_by_path(model)
    held = [item for item in constraints.values() if item.path in variables]
    factors = {path: factor for path, factor in rate_factors.items() if factor != 1.0}
    if not held and not factors:
        return None
    tf = tensorflow()
    before = {path: tf.Variable(variables[path], trainable=False) for path in factors}

    def adjust() -> None:
        for path, factor in factors.items():
            variable = variables[path]
            variable.assign(before[path] + factor * (variable - before[path]))
        for item in held:
            variables[item.path].assign(item.project(variables[item.path]))
        for path, last in before.items():
            last.assign(variables[path])

    return adjust
