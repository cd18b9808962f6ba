"""Losses, optimizers, metrics and other small objects of one Keras for the other.

What both libraries have, by name and configuration, becomes the other's own; anything else is
carried: an object of the target library that holds the original and runs it. Nothing here needs the
graph of a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from optkit.runtime import keras as keras3
from optkit.runtime import tf_keras
from optkit.translate.functions import function_to_keras3, function_to_tf_keras
from optkit.translate.native import policy_name

__all__ = ["convert_object", "is_keras3", "is_tf_keras", "resolve_name"]

_Layers = Callable[[Any], Any]

#: Kinds of objects, with the module that holds them, under the same name in both libraries.
_KINDS = (
    ("Loss", "losses"),
    ("LearningRateSchedule", "optimizers.schedules"),
    ("Initializer", "initializers"),
    ("Regularizer", "regularizers"),
    ("Constraint", "constraints"),
    ("Optimizer", "optimizers"),
    ("Callback", "callbacks"),
)


def is_keras3(value: Any) -> bool:
    """Whether a value is of Keras 3: a model, a layer or another object of it, or a subclass' object.

    Does not import Keras.

    >>> is_keras3("adam"), is_keras3(3)
    (False, False)
    """
    return _is_of("keras", value)


def is_tf_keras(value: Any) -> bool:
    """Whether a value is of tf_keras, or of a subclass of one of its classes."""
    return _is_of("tf_keras", value)


def _is_of(library: str, value: Any) -> bool:
    if inspect.isclass(value):
        return False
    if inspect.isfunction(value):
        return (value.__module__ or "").partition(".")[0] == library
    return any(base.__module__.partition(".")[0] == library for base in type(value).__mro__)


def convert_object(value: Any, *, forward: bool, layer: Callable[[Any], Any]) -> Any:
    """Translates an object, or those in a container; what needs no translation comes back as is.

    Args:
        value: What to translate.
        forward: From Keras 3 to tf_keras, or back.
        layer: Translates layers and models.
    """
    if isinstance(value, dict):
        items = {k: convert_object(v, forward=forward, layer=layer) for k, v in value.items()}
        return items if _differ(items.values(), value.values()) else value
    if isinstance(value, list | tuple | set | frozenset):
        parts = [convert_object(item, forward=forward, layer=layer) for item in value]
        if not _differ(parts, value):
            return value
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return (type(value) if type(value) in (tuple, set, frozenset) else list)(parts)
    if inspect.isfunction(value):
        return function_to_tf_keras(value) if forward else function_to_keras3(value)
    if not (is_keras3(value) if forward else is_tf_keras(value)):
        return value
    source, target = _libraries(forward)
    # Before layers: a metric of tf_keras is one.
    if isinstance(value, source.metrics.Metric):
        return _counterpart("Metric", "metrics", value, forward=forward, layer=layer)
    if isinstance(value, source.layers.Layer):
        return layer(value)
    name = policy_name(value)
    if name is not None and "olicy" in type(value).__name__:
        return target.mixed_precision.Policy(name) if forward else target.DTypePolicy(name)
    if _is_optimizer(value):
        from optkit.translate.optimizers import convert_optimizer

        return convert_optimizer(value, forward=forward)
    for kind, module in _KINDS:
        home = _module(source, module)
        base = getattr(home, kind, None)
        if base is not None and isinstance(value, base):
            if kind == "Callback":
                return _carried(kind, value, forward)
            return _counterpart(kind, module, value, forward=forward, layer=layer)
    return value


def _libraries(forward: bool) -> tuple[Any, Any]:
    return (keras3(), tf_keras()) if forward else (tf_keras(), keras3())


def _module(library: Any, path: str) -> Any:
    for part in path.split("."):
        library = getattr(library, part)
    return library


def _differ(new: Any, old: Any) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))


def _is_optimizer(value: Any) -> bool:
    return any(
        base.__name__ in ("Optimizer", "BaseOptimizer", "OptimizerV2", "LossScaleOptimizer")
        and base.__module__.partition(".")[0] in ("keras", "tf_keras")
        for base in type(value).__mro__
    )


def _counterpart(kind: str, module: str, value: Any, *, forward: bool, layer: _Layers) -> Any:
    home, target = (_module(library, module) for library in _libraries(forward))
    if _is_carrier(value):
        return value.carried  # it came from there
    name = type(value).__name__
    other = getattr(target, name, None)
    of_library = getattr(home, name, None) is type(value)
    if not of_library or other is None:
        return _carried(kind, value, forward)
    config = {**value.get_config(), **getattr(value, "_fn_kwargs", {})}  # the former lacks some
    names, defaults = _accepted(other), inspect.signature(type(value)).parameters
    arguments = {}
    for key, item in config.items():
        if key == "fn":
            if "Wrapper" in name:
                return _carried(kind, value, forward)
            continue  # follows from the class
        if key == "reduction":
            if item not in (_REDUCTIONS if forward else {*_REDUCTIONS, "auto"}):
                return _carried(kind, value, forward)
            item = {"auto": "sum_over_batch_size"}.get(item, item) or "none"
        if key == "dtype" and item is not None:
            item = policy_name(item)
            if item is None or "mixed" in item:
                return _carried(kind, value, forward)
            if not item.startswith("float"):
                continue  # counts, which each library keeps in a type of its own
        if key == "name" and item is None:
            continue
        if key not in names:
            usual = defaults[key].default if key in defaults else None
            if item not in (None, False, usual) and key not in ("seed", "dtype", "name"):
                return _carried(kind, value, forward)
            continue
        arguments[key] = convert_object(_object(home, item), forward=forward, layer=layer)
    return other(**arguments)


_REDUCTIONS = ("sum_over_batch_size", "sum", "none", None)


def _is_carrier(value: Any) -> bool:
    return type(value).__module__ in ("optkit.translate.carried2", "optkit.translate.carried3")


def _object(home: Any, item: Any) -> Any:
    """A nested object of a configuration, such as the schedule that a warm-up goes over to."""
    if isinstance(item, dict) and "class_name" in item:
        return home.deserialize(item)
    return item


def _accepted(kind: type) -> frozenset[str]:
    from optkit.translate.native import accepted

    return accepted(kind)


def _carrier_name(kind: str, forward: bool) -> str:
    return f"Keras3{kind}" if forward else f"TfKeras{kind}"


def _carried(kind: str, value: Any, forward: bool) -> Any:
    if forward:
        from optkit.translate import carried2 as carriers
    else:
        from optkit.translate import carried3 as carriers  # type: ignore[no-redef]
    carrier = getattr(carriers, _carrier_name(kind, forward))
    return carrier(value)


def resolve_name(kind: str, name: str, *, forward: bool) -> Any:
    """A loss, metric or optimizer that was given by name: the name, where both know it as the same.

    Args:
        kind: ``"losses"``, ``"metrics"`` or ``"optimizers"``.
        name: The name.
        forward: From Keras 3 to tf_keras, or back.
    """
    source, target = _libraries(forward)
    if name in ("accuracy", "acc", "crossentropy", "ce"):
        return name  # settled by the shapes of targets and outputs, in both alike
    found = getattr(source, kind).get(name)
    try:
        other = getattr(target, kind).get(name)
    except (ValueError, TypeError):
        other = None
    if other is not None and _plain(other) == _plain(found):
        return name
    return convert_object(found, forward=forward, layer=_no_layer)


def _plain(found: Any) -> str:
    """What a function or an object of a class is called, the spelling of functions or classes aside."""
    return str(getattr(found, "__name__", type(found).__name__)).replace("_", "").lower()


def _no_layer(value: Any) -> Any:
    return value
