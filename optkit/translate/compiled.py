"""How a model is compiled, in the other library: loss, optimizer, metrics and the rest.

The optimizer comes without its slots: momentum and the like start anew.
"""

from __future__ import annotations

from typing import Any

from optkit.translate.objects import convert_object, resolve_name

__all__ = ["compile_state"]


def compile_state(source: Any, target: Any, *, forward: bool) -> None:
    """Compiles the translation of a model as the model is compiled, if it is."""
    settings = _settings(source, forward)
    if settings is None:
        return
    optimizer = settings.pop("optimizer")
    given = {
        "optimizer": convert_object(optimizer, forward=forward, layer=_itself),
        "loss": _converted("losses", settings.pop("loss"), forward),
        "metrics": _converted("metrics", settings.pop("metrics"), forward),
        "weighted_metrics": _converted("metrics", settings.pop("weighted_metrics"), forward),
    }
    target.compile(**given, **{key: v for key, v in settings.items() if v is not None})


def _itself(layer: Any) -> Any:
    return layer


def _settings(model: Any, forward: bool) -> dict[str, Any] | None:
    """What the model was compiled with, and the living optimizer."""
    noted = getattr(model, "_compile_config", None)
    if getattr(model, "optimizer", None) is None or noted is None:
        return None
    config = getattr(noted, "config", noted)
    found = {
        "optimizer": model.optimizer,
        "loss": config.get("loss"),
        "metrics": config.get("metrics"),
        "weighted_metrics": config.get("weighted_metrics"),
        "loss_weights": config.get("loss_weights"),
        "run_eagerly": config.get("run_eagerly") or None,
        "steps_per_execution": config.get("steps_per_execution"),
    }
    # Keras 3 settles "auto" when it compiles; tf_keras would compile for XLA what it cannot.
    if config.get("jit_compile") is not None and not forward:
        found["jit_compile"] = config["jit_compile"]
    return found


def _converted(kind: str, value: Any, forward: bool) -> Any:
    if isinstance(value, dict):
        return {key: _converted(kind, item, forward) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_converted(kind, item, forward) for item in value]
    if isinstance(value, str):
        return resolve_name(kind, value, forward=forward)
    return convert_object(value, forward=forward, layer=_itself)
