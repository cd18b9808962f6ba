"""`MixedPrecision`: trains in 16 bits, with weights and outputs in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from optkit import _validate
from optkit.artifact import KerasArtifact
from optkit.base import RecipePass
from optkit.context import Context, Setting, State
from optkit.errors import PipelineError, first_line
from optkit.models import walk_layers
from optkit.recipe import Recipe
from optkit.runtime import tensorflow
from optkit.training.precision import in_16_bits
from optkit.training.speed import compare_steps
from optkit.training.twin import working_twin

__all__ = ["MixedPrecision"]

_LARGEST = 65504.0  # that float16 holds
_LOOKED_AT = 256


class MixedPrecision(RecipePass):
    """Has layers compute in 16 bits while they train: less memory, and faster on processors for it.

    Use it on GPUs (float16 from Volta on, bfloat16 from Ampere on) and on processors with units for
    bfloat16 (AMX, AVX512_BF16). Elsewhere it is slower: on a machine without a GPU the row says
    what it did to the time of a step.

    Weights, their updates and the statistics of batch normalization stay float32, and so do the
    outputs of the model, and with them the loss. In float16 the loss is scaled, so that small
    gradients are not lost, and steps with gradients too large for it are left out. What comes out
    is the model as it came in: it computes in float32 again. For one that computes in 16 bits as it
    comes, that stays so in the layers that do.

    In float32 stay, too: layers that prepare inputs or look up ids, and what stands before them;
    layers of your own, Lambda layers, and plain functions of tensors; layers whose outputs are
    penalized.

    Args:
        dtype: ``"float16"``, or ``"bfloat16"``, which has the range of float32 and fewer digits.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> pipeline = ok.Pipeline([ok.MixedPrecision("bfloat16"), ok.FineTune(epochs=1)])
        >>> result = pipeline.run(small_model(), digits(samples=200))
        >>> result.report.rows[0].notes[0]
        '4 of 5 layers compute in bfloat16; in float32 stay: classes'
        >>> {layer.dtype_policy.name for layer in result.model.layers}
        {'float32'}

    References:
        Micikevicius et al., "Mixed Precision Training", 2018.
        Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019.
    """

    def __init__(self, dtype: str = "float16"):
        _validate.one_of("dtype", dtype, ("float16", "bfloat16"))
        self.dtype = dtype

    @property
    def _policy(self) -> str:
        return f"mixed_{self.dtype}"

    def check(self, setting: Setting) -> None:
        """Refuses models with no layer for it, and inputs that float16 cannot hold."""
        model = setting.model
        if model is None:
            return
        chosen = in_16_bits(model)
        if not chosen:
            raise PipelineError(
                f"No layer of model {model.name!r} can compute in {self.dtype}: outputs, layers "
                "that prepare inputs, and code of one's own stay in float32, and layers that "
                "compute in 16 bits already stay as they are. Leave MixedPrecision out."
            )
        try:
            with working_twin(model, precision=self._policy):
                pass
        except Exception as error:
            raise PipelineError(
                f"Model {model.name!r} cannot be built with layers in {self.dtype}: "
                f"{first_line(error)} Leave MixedPrecision out."
            ) from error
        if self.dtype == "float16":
            self._check_range(model, chosen, setting)

    def _check_range(self, model: Any, chosen: frozenset[int], setting: Setting) -> None:
        if setting.data.train is None:
            return
        x, _ = setting.data.train.head(_LOOKED_AT)
        for name, tensor in zip(model.input_names, model.inputs, strict=True):
            if not any(id(layer) in chosen for layer in _users(model, tensor)):
                continue
            values = np.asarray(x[name] if isinstance(x, dict) else x)
            if values.dtype.kind != "f" or not values.size:
                continue
            largest = float(np.max(np.abs(values)))
            if largest > _LARGEST:
                raise PipelineError(
                    f"Input {name!r} has values up to {largest:.4g}, and float16 ends at "
                    f"{_LARGEST:.0f}. Use MixedPrecision('bfloat16'), or begin the model with a "
                    "`Normalization` layer, which computes in float32."
                )

    def amend(self, recipe: Recipe) -> Recipe:
        """Fills the slot ``precision``."""
        return recipe.amended(precision=self._policy)

    def apply(self, state: State, context: Context) -> State:
        """Amends the recipe, and says what will compute how, and how fast."""
        amended = super().apply(state, context)
        if isinstance(state.artifact, KerasArtifact):
            model = state.artifact.model
            context.note(self._describe(model))
            if not tensorflow().config.list_physical_devices("GPU"):
                context.note(self._speed(model, state.recipe, context))
        return amended

    def _describe(self, model: Any) -> str:
        chosen = in_16_bits(model)
        layers = [layer for layer in walk_layers(model) if type(layer).__name__ != "InputLayer"]
        rest = [layer for layer in layers if id(layer) not in chosen]
        stay = [layer.name for layer in rest if layer.compute_dtype != self.dtype]
        text = f"{len(layers) - len(rest)} of {len(layers)} layers compute in {self.dtype}"
        return f"{text}; in float32 stay: {_listed(stay)}" if stay else text

    def _speed(self, model: Any, recipe: Recipe, context: Context) -> str:
        """What it does to the time of a step, on a machine without a GPU."""
        try:
            found = compare_steps(
                model,
                replace(self.amend(recipe), jit=None),
                replace(recipe, precision=None, jit=None),
                data=context.data,
                task=context.task,
                metric=context.metric,
                loss=context.loss,
                source=context.model,
                seed=context.derive_seed("speed"),
            )
        except tensorflow().errors.OpError as error:
            return f"this machine cannot compute the model in {self.dtype}: {first_line(error)}"
        ratio, (low, high) = found.speedup.ratio, found.speedup.ci
        return (
            f"no GPU here: a training step is {ratio:.2f} times as fast as in float32 ({low:.2f} to "
            f"{high:.2f}; {found.milliseconds:.3g} ms)"
        )


def _users(model: Any, tensor: Any) -> Iterable[Any]:
    """The layers that use a tensor of a model."""
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            if not node.is_input and any(given is tensor for given in node.keras_inputs):
                yield node.layer


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 6 else shown
