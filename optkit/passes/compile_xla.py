"""`CompileXLA`: training and inference compiled by XLA, where that makes them faster."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import KerasArtifact
from optkit.artifact.keras import inference_function
from optkit.base import Pass
from optkit.context import Context, State
from optkit.errors import ArgumentTypeError, PipelineError
from optkit.measuring.latency import Speedup
from optkit.models import mixed_precision_layers, signature
from optkit.quantize.sources import leaves_of
from optkit.runtime import isolated, tensorflow
from optkit.training.speed import CompileError, compare_steps, in_turns
from optkit.training.xla import hindrance, is_compile_failure, reason_of

__all__ = ["CompileXLA"]

_COMPARED = 16
# How far outputs with and without XLA may lie apart, as a share of the largest: what another order
# of summation explains.
_AGREEMENT = 1e-3
_AGREEMENT_IN_16_BITS = 2e-2


class CompileXLA(Pass):
    """Has XLA compile the trainings that follow, and the model that comes out.

    XLA makes few large operations of many small ones, for inputs of one shape. That can make steps
    faster, most of all on GPUs, and takes seconds to minutes of compiling for each shape. Where it
    is not faster on this machine, or has no counterpart for an operation, nothing changes, and the
    row says so.

    Of inference, what is deployed stays a Keras model; its artifact runs it compiled
    (`KerasArtifact.jit`), and keeps to that in its file and through later passes. The report's
    figures are of the compiled model. Conversions know nothing of it.

    Args:
        training: Whether the trainings that follow are compiled: ``"auto"`` where steps are
            measured to be faster, ``True`` wherever XLA can, ``False``. By itself, what is measured
            may decide otherwise the next time, and other weights come out, apart by rounding.
        inference: Whether the model is run compiled, in the same way; with ``True`` and
            ``"auto"`` only if it gives the same outputs, up to rounding.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.CompileXLA(training=False, inference=True)])
        >>> pipeline.run(small_model(), digits(samples=200)).artifact.jit
        True

    References:
        "XLA: Optimizing Compiler for Machine Learning", https://openxla.org/xla.
    """

    family = "rewrite"

    def __init__(self, *, training: bool | str = "auto", inference: bool | str = "auto"):
        for name, value in (("training", training), ("inference", inference)):
            if isinstance(value, str):
                _validate.one_of(name, value, ("auto",))
            elif not isinstance(value, bool):
                raise ArgumentTypeError(
                    f"`{name}` must be True, False or 'auto'. Received: {value!r}."
                )
        if not training and not inference:
            raise PipelineError(
                "CompileXLA with training=False and inference=False does nothing. Leave it out."
            )
        self.training = training
        self.inference = inference

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples to measure with."""
        return ("train",)

    @property
    def changes_model(self) -> bool:
        """Not where it is about training alone."""
        return self.inference is not False

    def apply(self, state: State, context: Context) -> State:
        """Tries it, amends the recipe, and has the artifact run compiled."""
        artifact = state.artifact
        if not isinstance(artifact, KerasArtifact):
            raise PipelineError(f"Expected a Keras model. Received: {artifact!r}.")
        # Those who train together must do the same, and each has measured for itself.
        agreed = context.crew.agreed
        if self.training and agreed(self._compiles_training(artifact.model, state, context)):
            state = replace(state, recipe=state.recipe.amended(jit=True))
        if self.inference and agreed(self._compiles_inference(artifact.model, context)):
            state = replace(state, artifact=artifact.with_jit(True))
        return state

    def _compiles_training(self, model: Any, state: State, context: Context) -> bool:
        """Whether trainings are to be compiled; the row says why."""
        if reason := hindrance(model, context.crew.strategy):
            context.note(f"training goes on without XLA: {reason}")
            return False
        try:
            found = compare_steps(
                model,
                state.recipe.amended(jit=True),
                replace(state.recipe, jit=None),
                data=context.data,
                task=context.task,
                metric=context.metric,
                loss=context.loss,
                source=context.model,
                seed=context.derive_seed("speed"),
            )
        except CompileError as error:
            context.note(f"training goes on without XLA: {error}")
            return False
        context.depend_on_machine()
        wanted = self.training is True or found.speedup.ci[0] > 1
        context.note(
            f"training {'with' if wanted else 'stays without'} XLA: a step is "
            f"{_said(found.speedup)} with it, and the first one took {found.preparing:.1f} s"
        )
        return wanted

    def _compiles_inference(self, model: Any, context: Context) -> bool:
        """Whether the model is to be run compiled; the row says why."""
        if reason := hindrance(model):
            context.note(f"inference goes on without XLA: {reason}")
            return False
        try:
            speedup, apart, seconds = compare_inference(
                model, context.data.train, context.derive_seed("inference")
            )
        except Exception as error:
            if not is_compile_failure(error):
                raise
            context.note(f"inference goes on without XLA: {reason_of(error)}")
            return False
        context.depend_on_machine()
        allowed = _AGREEMENT_IN_16_BITS if mixed_precision_layers(model) else _AGREEMENT
        if not apart <= allowed:
            context.note(
                f"inference goes on without XLA: its outputs are {apart:.2g} of the largest one "
                f"apart, where rounding explains {allowed:g}"
            )
            return False
        wanted = self.inference is True or speedup.ci[0] > 1
        context.note(
            f"inference {'with' if wanted else 'stays without'} XLA: one sample is "
            f"{_said(speedup)} with it, outputs agree to {apart:.1g} of the largest, and compiling "
            f"took {seconds:.1f} s"
        )
        return wanted


def compare_inference(model: Any, split: Any, seed: int) -> tuple[Speedup, float, float]:
    """Runs a model on single samples with XLA and without.

    Args:
        model: A built tf_keras model.
        split: The samples.
        seed: Seed for what is random.

    Returns:
        How many times faster it is with XLA, how far outputs are apart at most as a share of the
        largest, and the seconds that compiling took.
    """
    tf = tensorflow()
    described = signature(model)
    # Of one shape all: XLA compiles each by itself.
    samples = [leaves_of(x, described) for x in split.single_inputs(_COMPARED, seed)]
    shapes = tuple(leaf.shape[1:] for leaf in samples[0])
    samples = [item for item in samples if tuple(leaf.shape[1:] for leaf in item) == shapes]
    tensors = [
        [
            tf.constant(leaf.astype(info.dtype))
            for leaf, info in zip(item, described.inputs, strict=True)
        ]
        for item in samples
    ]
    with isolated(seed):
        plain, compiled = (
            inference_function(model, batch=1, shapes=shapes, jit=jit) for jit in (False, True)
        )
        began = time.perf_counter()
        compiled(*tensors[0])
        seconds = time.perf_counter() - began
        apart = largest = 0.0
        for item in tensors:
            pairs = zip(
                tf.nest.flatten(plain(*item)), tf.nest.flatten(compiled(*item)), strict=True
            )
            for one, other in pairs:
                expected, given = (np.asarray(part, np.float64) for part in (one, other))
                apart = max(apart, float(np.max(np.abs(expected - given), initial=0.0)))
                largest = max(largest, float(np.max(np.abs(expected), initial=0.0)))

        def runner(function: Any) -> Any:
            return lambda: [one.numpy() for one in tf.nest.flatten(function(*tensors[0]))]

        speedup, _ = in_turns(runner(compiled), runner(plain))
    return speedup, apart / largest if largest else apart, seconds


def _said(speedup: Speedup) -> str:
    low, high = speedup.ci
    return f"{speedup.ratio:.3g} times as fast ({low:.3g} to {high:.3g})"
