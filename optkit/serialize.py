"""Values of configurations to JSON and back, without ever running what a file names."""

from __future__ import annotations

import sys
from pathlib import Path, PurePath
from typing import Any

from optkit.errors import PipelineError
from optkit.goals import Goals
from optkit.safety import find_unsafe

__all__ = ["from_plain", "readable", "to_plain"]

_TAG = "__optkit__"
_KERAS = {"keras": "tf_keras", "keras3": "keras"}


def to_plain(name: str, value: Any) -> Any:
    """A value that JSON can hold.

    Stored are plain values, paths, goals, passes, and what Keras can serialize by registered name; a
    model or a function is not, as a file could not give it back as it was.

    Args:
        name: Name of the parameter, for the message.
        value: Its value.

    Raises:
        PipelineError: If it cannot be stored.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return {_TAG: "path", "value": str(value)}
    if isinstance(value, Goals):
        return {_TAG: "goals", "value": value.to_dict()}
    if (passes := _passes(value)) is not None:
        config = {key: to_plain(f"{name}.{key}", item) for key, item in value.get_config().items()}
        return {_TAG: "pass", "class": passes.pass_key(value), "config": config}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "value": [to_plain(name, item) for item in value]}
    if isinstance(value, list):
        return [to_plain(name, item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {key: to_plain(f"{name}[{key!r}]", item) for key, item in value.items()}
        raise PipelineError(f"`{name}` has keys that are not strings, which JSON cannot hold.")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return to_plain(name, value.item())
    library, stored = _keras_form(value)
    if stored is None:
        raise PipelineError(
            f"`{name}` cannot be stored in JSON: {value!r} (of type {type(value).__qualname__}). "
            "Pass a plain value, a path (for a model: save it and pass the file), or an object of "
            "a class registered with `register_keras_serializable` of `tf_keras.saving`, or of "
            "`keras.saving`."
        )
    return {_TAG: library, "value": stored}


def _passes(value: Any) -> Any:
    """The module that defines passes, which stands below this one, if the value is a pass."""
    base: Any = sys.modules.get("optkit.base")
    return base if base is not None and isinstance(value, base.Pass) else None


def _keras_form(value: Any) -> tuple[str, Any]:
    """By which Keras an object is stored, and as what; ``None`` if by neither."""
    kind = type(value)
    for tag, name in _KERAS.items():
        library: Any = sys.modules.get(name)
        if library is None or not hasattr(value, "get_config"):
            continue
        registered = library.saving.get_registered_name(kind) != kind.__name__
        if kind.__module__.partition(".")[0] == name or registered:
            if isinstance(value, library.Model):
                break
            return tag, library.saving.serialize_keras_object(value)
    return "", None


def from_plain(name: str, value: Any) -> Any:
    """What `to_plain` was given.

    Raises:
        PipelineError: If the file names a class that is neither Keras' own nor registered, or a
            pass that is not imported.
    """
    if isinstance(value, list):
        return [from_plain(name, item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value.get(_TAG)
    if tag is None:
        return {key: from_plain(name, item) for key, item in value.items()}
    if tag == "path":
        return Path(value["value"])
    if tag == "tuple":
        return tuple(from_plain(name, item) for item in value["value"])
    if tag == "goals":
        return Goals(**value["value"])
    if tag == "pass":
        passes: Any = sys.modules["optkit.base"]  # whoever reads a pipeline has imported it
        config = {key: from_plain(key, item) for key, item in value["config"].items()}
        return passes.pass_class(value["class"]).from_config(config)
    if tag not in _KERAS:
        raise PipelineError(f"`{name}` is stored in a form that is unknown here: {tag!r}.")
    from optkit import runtime

    keras = runtime.tf_keras() if tag == "keras" else runtime.keras()
    stored = value["value"]
    library: Any = _KERAS[tag]
    if unsafe := find_unsafe(stored, library=library):
        raise PipelineError(f"`{name}` cannot be read: {unsafe[0].what}. {unsafe[0].remedy}")
    return keras.saving.deserialize_keras_object(stored, safe_mode=True)


def readable(value: Any) -> Any:
    """A value for the report: plain where it is plain, else its ``repr`` or kind."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Goals) or _passes(value) is not None:
        return repr(value)
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): readable(item) for key, item in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    kind = type(value).__qualname__
    return f"<{kind} {name}>" if isinstance(name, str) else f"<{kind}>"
