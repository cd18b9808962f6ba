"""Optimizers of one Keras for the other, without their slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.runtime import keras as keras3
from optkit.runtime import tf_keras
from optkit.translate.native import accepted

__all__ = ["convert_optimizer"]

#: Arguments that only one library has, with the values that mean what the other does anyway.
_SAME_WITHOUT: dict[str, tuple[Any, ...]] = {
    "loss_scale_factor": (None,),
    "gradient_accumulation_steps": (None,),
    "is_legacy_optimizer": (True, False),
    "jit_compile": (True, False, None),
}


def convert_optimizer(optimizer: Any, *, forward: bool) -> Any:
    """The optimizer of the other library, with the same hyperparameters."""
    from optkit.translate.objects import convert_object

    source, target = (keras3(), tf_keras()) if forward else (tf_keras(), keras3())
    if hasattr(optimizer, "carried"):
        return optimizer.carried
    name = type(optimizer).__name__
    if name.startswith("LossScaleOptimizer"):
        return _loss_scale(optimizer, target, forward)
    other = getattr(target.optimizers, name, None)
    same = getattr(source.optimizers, name, None) is type(optimizer)
    legacy = ".legacy" in type(optimizer).__module__ or "optimizer_v2" in type(optimizer).__module__
    if other is not None and (same or legacy):
        given = {}
        for key, value in _without_decay(optimizer).items():
            if key not in accepted(other):
                if not any(value == one for one in _SAME_WITHOUT.get(key, ())):
                    break
                continue
            if hasattr(value, "get_config"):
                value = convert_object(value, forward=forward, layer=lambda layer: layer)
            elif isinstance(value, dict) and "class_name" in value:
                alive = source.optimizers.schedules.deserialize(value)
                value = convert_object(alive, forward=forward, layer=lambda layer: layer)
            elif key == "learning_rate":
                # Kept in 32 bits, it is told as 0.0010000000474974513: what was meant is 0.001.
                value = float(str(np.float32(value)))
            given[key] = value
        else:
            return other(**given)
    if forward:
        from optkit.translate.carried2 import Keras3Optimizer

        return Keras3Optimizer(optimizer)
    from optkit.translate.carried3 import TfKerasOptimizer

    return TfKerasOptimizer(optimizer)


def _without_decay(optimizer: Any) -> dict[str, Any]:
    """The configuration; the decay of a legacy optimizer as the schedule that it stands for."""
    config = dict(optimizer.get_config())
    decay = config.pop("decay", None)
    if decay:
        schedules = tf_keras().optimizers.schedules
        config["learning_rate"] = schedules.InverseTimeDecay(
            float(str(np.float32(config["learning_rate"]))), 1, float(decay)
        )
    return config


def _loss_scale(optimizer: Any, target: Any, forward: bool) -> Any:
    inner = convert_optimizer(optimizer.inner_optimizer, forward=forward)
    if forward:
        return target.mixed_precision.LossScaleOptimizer(
            inner,
            initial_scale=optimizer.initial_scale,
            dynamic_growth_steps=optimizer.dynamic_growth_steps,
        )
    return target.optimizers.LossScaleOptimizer(
        inner,
        initial_scale=float(optimizer.initial_scale),
        dynamic_growth_steps=int(optimizer.dynamic_growth_steps or 2000),
    )
