"""Keras 3 objects from their serialized form, without importing what a file names.

Known are Keras' own classes, classes registered with ``keras.saving``, and classes of objects that
were translated in this process: those are the caller's own, alive and imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from optkit.errors import ModelError
from optkit.models import constructor_config
from optkit.runtime import keras, tf_keras

__all__ = ["remember", "revive", "revive_tf_keras", "serialized", "serialized_tf_keras"]

_SEEN: dict[tuple[str, str, str], Any] = {}


def serialized(value: Any) -> Any:
    """The Keras 3 serialization of an object; its classes are known from then on.

    Raises:
        NotImplementedError: If its configuration cannot be told.
    """
    import keras

    stored = _repaired(keras.saving.serialize_keras_object(value))
    if isinstance(stored, dict) and isinstance(value, keras.Model) and "config" in stored:
        taken = constructor_config(value)
        stored["config"] = {k: item for k, item in stored["config"].items() if k in taken}
    remember(value, stored)
    return stored


def _repaired(stored: Any) -> Any:
    """With what Keras writes but cannot read put right.

    Left out is how layers of the user's own were built: they are built by their first call, as one
    that has no `build()` would be marked as built without its weights.
    """
    if isinstance(stored, list | tuple):
        return type(stored)(_repaired(item) for item in stored)
    if not isinstance(stored, dict):
        return stored
    built = "build_config" in stored and not _of_keras(str(stored.get("module") or "?"))
    stored = {
        key: _repaired(item)
        for key, item in stored.items()
        if not (built and key == "build_config")
    }
    if stored.get("class_name") == "RandomShear":
        config = dict(stored["config"])
        for key in ("x_factor", "y_factor"):  # kept as (-x, x), where only x is taken
            if isinstance(config.get(key), list | tuple):
                config[key] = abs(config[key][1])
        return {**stored, "config": config}
    return stored


def serialized_tf_keras(value: Any) -> Any:
    """The tf_keras serialization of an object; its classes are known from then on."""
    stored = tf_keras().saving.serialize_keras_object(value)
    remember(value, stored)
    return stored


def remember(value: Any, stored: Any) -> None:
    """Notes the classes and functions of the caller's own that a serialized object consists of."""
    alive = {type(part).__name__: type(part) for part in _parts(value)}
    for module, name, registered in _named(stored):
        found = alive.get(name) or getattr(sys.modules.get(module), name, None)
        if found is not None and not _of_keras(getattr(found, "__module__", "")):
            _SEEN[module, name, registered] = found


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if hasattr(value, "_flatten_layers"):
        yield from value._flatten_layers(include_self=False)


def _named(stored: Any) -> Iterator[tuple[str, str, str]]:
    """Module, name and registered name of everything in a serialized object."""
    if isinstance(stored, list | tuple):
        for item in stored:
            yield from _named(item)
    elif isinstance(stored, dict):
        if "class_name" in stored:
            name = str(stored["class_name"])
            if name == "function":
                name = str(stored.get("config"))
            registered = stored.get("registered_name") or name
            yield str(stored.get("module") or ""), name, str(registered)
        for item in stored.values():
            yield from _named(item)


def _of_keras(module: str) -> bool:
    return module.partition(".")[0] in ("keras", "tf_keras", "builtins", "")


def revive(stored: Any) -> Any:
    """The Keras 3 object of a serialized form.

    Raises:
        ModelError: If it names a class that is neither Keras' own nor registered nor known.
    """
    from optkit.runtime import keras

    return _revived(stored, keras())


def revive_tf_keras(stored: Any) -> Any:
    """The tf_keras object of a serialized form.

    Raises:
        ModelError: If it names a class that is neither tf_keras' own nor registered nor known.
    """
    return _revived(stored, tf_keras())


def _revived(stored: Any, library: Any) -> Any:
    scope: dict[str, Any] = {}
    other = tf_keras() if library.__name__ == "keras" else keras()
    for module, name, registered in _named(stored):
        found = _SEEN.get((module, name, registered))
        if library.saving.get_registered_object(registered) is not None:
            continue
        if found is None and _of_keras(module):
            continue
        if found is None:  # given by the caller to the Keras that reads the file
            found = other.saving.get_registered_object(registered)
        if found is None:
            raise ModelError(
                f"The model holds an object of class {name!r} (module {module!r}), which is not "
                "known here. Import the module that registers it with "
                f"`{library.__name__}.saving.register_keras_serializable` first."
            )
        scope[registered] = scope[name] = found
    with library.saving.custom_object_scope(scope):
        return library.saving.deserialize_keras_object(stored, safe_mode=True)
