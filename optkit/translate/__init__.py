"""Between Keras 3 and tf_keras: models and objects of the one as those of the other, and back.

Passes work on tf_keras models, because tensorflow-model-optimization needs them. A Keras 3 model is
translated at the door and its results are translated back; see the page on Keras 3 of the docs.
"""

from __future__ import annotations

from typing import Any

from optkit.errors import ModelError
from optkit.translate.objects import convert_object, is_keras3
from optkit.translate.registry import register_layer

__all__ = [
    "is_keras3",
    "object_to_keras3",
    "object_to_tf_keras",
    "register_carriers",
    "register_layer",
    "to_keras3",
    "to_tf_keras",
]


def to_tf_keras(model: Any) -> Any:
    """A tf_keras model that computes what a Keras 3 model computes.

    Layer names, weights, `trainable` flags, dtype policies and the compile state are kept; the state
    of the optimizer is not. The model itself is not changed.

    Args:
        model: A Keras 3 model, Sequential (built) or functional, on the TensorFlow backend.

    Raises:
        ModelError: If something in it cannot be translated; the message names every such part, its
            place, and the remedy.

    Example:
        >>> import keras, tf_keras
        >>> from optkit.translate import to_tf_keras
        >>> inputs = keras.Input((4,))
        >>> model = keras.Model(inputs, keras.ops.tanh(keras.layers.Dense(2)(inputs)))
        >>> isinstance(to_tf_keras(model), tf_keras.Model)
        True
    """
    from optkit.translate.compiled import compile_state
    from optkit.translate.forward import Forward

    if not _is_model(model, "keras"):
        raise ModelError(f"Expected a Keras 3 model. Received: {_kind(model)}.")
    forward = Forward()
    result = forward.model(model)
    if forward.problems:
        raise _refusal(model, "tf_keras", forward.problems)
    compile_state(model, result, forward=True)
    return result


def to_keras3(model: Any) -> Any:
    """A Keras 3 model that computes what a tf_keras model computes: the way back of `to_tf_keras`.

    Args:
        model: A tf_keras model, Sequential (built) or functional.

    Raises:
        ModelError: If something in it cannot be translated; the message names every such part, its
            place, and the remedy.

    Example:
        >>> import keras, tf_keras
        >>> from optkit.translate import to_keras3
        >>> model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
        >>> isinstance(to_keras3(model), keras.Model)
        True
    """
    from optkit.translate.backward import Backward
    from optkit.translate.compiled import compile_state

    if not _is_model(model, "tf_keras"):
        raise ModelError(f"Expected a tf_keras model. Received: {_kind(model)}.")
    backward = Backward()
    result = backward.model(model)
    if backward.problems:
        raise _refusal(model, "Keras 3", backward.problems)
    compile_state(model, result, forward=False)
    return result


def object_to_tf_keras(value: Any) -> Any:
    """A Keras 3 loss, optimizer, metric, layer, … for tf_keras; anything else comes back as it is.

    Containers are looked through.

    Example:
        >>> import keras
        >>> from optkit.translate import object_to_tf_keras
        >>> type(object_to_tf_keras(keras.losses.Huber(delta=2.0))).__module__.split(".")[0]
        'tf_keras'
    """
    return convert_object(value, forward=True, layer=_layer_to_tf_keras)


def object_to_keras3(value: Any) -> Any:
    """A tf_keras loss, optimizer, metric, layer, … for Keras 3; anything else comes back as it is.

    Containers are looked through.
    """
    return convert_object(value, forward=False, layer=_layer_to_keras3)


def register_carriers() -> None:
    """Makes the classes known to tf_keras by which translated models carry parts of Keras 3.

    Whoever reads a tf_keras file that optkit may have written calls it first.
    """
    import optkit.translate.activations2
    import optkit.translate.carried2
    import optkit.translate.carrier2  # noqa: F401


def _layer_to_tf_keras(layer: Any) -> Any:
    if _is_model(layer, "keras"):
        return to_tf_keras(layer)
    from optkit.translate.forward import Forward

    return _settled(Forward(), layer, "tf_keras")


def _layer_to_keras3(layer: Any) -> Any:
    if _is_model(layer, "tf_keras"):
        return to_keras3(layer)
    from optkit.translate.backward import Backward

    return _settled(Backward(), layer, "Keras 3")


def _settled(translation: Any, layer: Any, target: str) -> Any:
    result = translation.lone_layer(layer)
    if translation.problems:
        raise _refusal(layer, target, translation.problems)
    return result


def _is_model(value: Any, library: str) -> bool:
    return any(
        base.__name__ == "Model" and base.__module__.partition(".")[0] == library
        for base in type(value).__mro__
    )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _refusal(model: Any, target: str, problems: list[str]) -> ModelError:
    lines = "\n".join(f"  - {problem}." for problem in problems)
    return ModelError(f"{model.name!r} cannot be translated to {target}:\n{lines}")
