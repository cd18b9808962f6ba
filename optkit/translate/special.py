"""What is particular about single layer classes: state, wrapped layers, calls that differ."""

from __future__ import annotations

from typing import Any

__all__ = ["amend", "check", "config", "inner_layers"]


def inner_layers(layer: Any) -> dict[str, Any]:
    """The layers that a layer was made with, by the argument that takes them."""
    name = type(layer).__name__
    if name == "Bidirectional":
        return {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    if name in ("TimeDistributed", "SpectralNormalization"):
        return {"layer": layer.layer}
    if name == "RNN":
        return {"cell": layer.cell}
    if name == "StackedRNNCells":
        return {"cells": list(layer.cells)}
    return {}


def config(layer: Any, *, forward: bool) -> dict[str, Any]:
    """The configuration of a layer, with the state that it keeps outside its weights."""
    found = _plain(dict(layer.get_config()))
    name = type(layer).__name__
    if name == "Bidirectional":
        found["backward_layer"] = None  # replaced by the living one
    if name == "BatchNormalization" and isinstance(found["axis"], list) and len(found["axis"]) == 1:
        (found["axis"],) = found["axis"]
    return found


def _plain(value: Any) -> Any:
    """Without the wrappers that tf_keras puts around the lists and dicts of a layer."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


def check(layer: Any, nodes: list[Any], *, forward: bool, refuse: type[Exception]) -> None:
    """Refuses what the other library's class of the same name would compute otherwise."""


def amend(name: str, given: dict[str, Any], *, forward: bool) -> dict[str, Any]:
    """Adds what only the target's class has."""
    if forward and name in ("MultiHeadAttention",):
        given["softmax_robust_masking"] = True  # as in Keras 3: masked scores are replaced
    return given
