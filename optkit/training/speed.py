"""How long steps of training take, one recipe against another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optkit.data import BoundData
from optkit.errors import DataError, OptkitError
from optkit.measuring.latency import Speedup
from optkit.measuring.statistics import bootstrap_median
from optkit.measuring.worker import by_block, time_in_turns
from optkit.metric import Metric
from optkit.models import clone, is_compiled
from optkit.recipe import Recipe
from optkit.runtime import isolated, tensorflow
from optkit.task import Loss, Task, replaced_loss
from optkit.training.optimizers import make_optimizer
from optkit.training.plan import compile_arguments, plan_training
from optkit.training.precision import with_loss_scaling
from optkit.training.steps import sampled
from optkit.training.stream import training_batches
from optkit.training.trainer import make_trainer
from optkit.training.twin import working_twin
from optkit.training.xla import hindrance

__all__ = ["CompileError", "StepSpeed", "compare_steps", "in_turns"]

# Where things lie in memory makes them a few per cent faster or slower, and each is made once.
_RESOLUTION = 0.04
_SECONDS = 0.4
_ROUNDS = 4


class CompileError(OptkitError):
    """XLA was to compile a training step and cannot; the message is the reason."""


@dataclass(frozen=True)
class StepSpeed:
    """What a training step takes.

    Attributes:
        speedup: How many times faster it is than the other.
        milliseconds: Of one step.
        preparing: Seconds that the first step took, compiling included.
    """

    speedup: Speedup
    milliseconds: float
    preparing: float


def in_turns(run: Callable[[], Any], other: Callable[[], Any]) -> tuple[Speedup, float]:
    """How many times faster one function is than another, and its time in milliseconds.

    Example:
        >>> in_turns(lambda: sum(range(1000)), lambda: sum(range(9000)))[0].ratio > 2
        True
    """
    others, times = time_in_turns([other, run], seconds=_SECONDS, precision=0.02, minimum=_ROUNDS)
    ratios = by_block(others) / by_block(times)
    low, high = bootstrap_median(ratios)
    ends = (low / (1 + _RESOLUTION), high * (1 + _RESOLUTION))
    return Speedup(float(np.median(ratios)), ends), float(np.median(times)) * 1e3


def compare_steps(
    model: Any,
    recipe: Recipe,
    other: Recipe,
    *,
    data: BoundData,
    task: Task,
    metric: Metric,
    loss: Loss,
    source: Any,
    seed: int,
) -> StepSpeed:
    """Times training steps on one batch by two recipes that differ in how they compute.

    Copies are trained, and the global generators put back: with or without it a run gives the
    same.

    Args:
        model: A built tf_keras model.
        recipe: The recipe to time.
        other: The one to hold it against.
        data: The data of the run.
        task: What the model is for.
        metric: The metric of the run.
        loss: The loss of the run.
        source: The model that came in.
        seed: Seed for what is random.

    Raises:
        CompileError: Where XLA is to compile the recipe's step and cannot.
    """
    tf = tensorflow()
    if data.train is None:
        raise DataError("Training needs a `train` split.")
    if recipe.jit and (reason := hindrance(model)):
        raise CompileError(reason)
    if recipe.loss is not None:
        loss = replaced_loss(recipe.loss, task, loss, "recipe")
    plan = plan_training(task, metric, loss, soft=recipe.softens_targets)
    compiled = source.optimizer if is_compiled(source) else None
    with isolated(seed), contextlib.ExitStack() as stack:
        split = sampled(data.train, recipe, seed)
        batch = next(iter(training_batches(split, recipe, plan, seed)))
        batches = tf.data.Dataset.from_tensors(batch).repeat()

        def runner(how: Recipe) -> tuple[Any, Callable[[], Any]]:
            twin = stack.enter_context(working_twin(clone(model), precision=how.precision))
            trainer = make_trainer(twin, {}, {}, by_name=bool(task.parts))
            optimizer = make_optimizer((how.optimizer, compiled), None, None)
            trainer.compile(
                optimizer=with_loss_scaling(optimizer, twin),
                loss=plan.loss.function,
                jit_compile=bool(how.jit),
                **compile_arguments(plan, metric, source if split.weighted else None),
            )
            trainer.begin(split.steps)
            train, iterator = trainer.make_train_function(), iter(batches)
            return trainer, lambda: float(train(iterator)["loss"])

        plain = replace(other, accumulate=None)
        _, run_other = runner(plain)
        trainer, run = runner(replace(recipe, accumulate=None))
        began = time.perf_counter()
        run()
        preparing = time.perf_counter() - began
        if trainer.not_compiled:
            raise CompileError(trainer.not_compiled)
        speedup, milliseconds = in_turns(run, run_other)
    return StepSpeed(speedup, milliseconds, preparing)
