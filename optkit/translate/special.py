"""What is particular about single layer classes: state, wrapped layers, calls that differ."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

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
    found: dict[str, Any] = _plain(dict(layer.get_config()))
    name = type(layer).__name__
    if name == "Bidirectional":
        found["backward_layer"] = None  # replaced by the living one
    elif name == "BatchNormalization":
        axis = found["axis"]
        found["axis"] = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    elif name == "Discretization":
        boundaries = layer.bin_boundaries
        if boundaries is not None and len(boundaries):
            found["bin_boundaries"] = [float(item) for item in boundaries]
            found["num_bins"] = None
    elif name in ("IntegerLookup", "StringLookup", "TextVectorization"):
        _add_vocabulary(layer, found)
        if name == "TextVectorization" or found["output_mode"] == "int":
            del found["dtype"]  # each library has its own default, and takes no other
    return found


def _add_vocabulary(layer: Any, found: dict[str, Any]) -> None:
    lookup = getattr(layer, "_lookup_layer", layer)
    words = _plain(list(layer.get_vocabulary(include_special_tokens=False)))
    if not words:
        return
    found["vocabulary"] = words
    if found["output_mode"] == "tf_idf":
        weights = np.asarray(lookup.idf_weights)
        # The weights of unknown words come first, and are made anew from the others.
        found["idf_weights"] = [float(item) for item in weights[-len(words) :]]


def _plain(value: Any) -> Any:
    """Without the wrappers that tf_keras puts around lists and dicts, and without NumPy's types."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return value


#: Keras 3 hands masks on through these; tf_keras ends them there.
_PASS_MASKS_IN_ONE = ("Identity", "Normalization", "Rescaling")


def check(layer: Any, nodes: list[Any], *, forward: bool, refuse: type[Exception]) -> None:
    """Refuses what the other library's class of the same name would compute otherwise.

    Both libraries hide masked scores from a softmax, but where all of a row are masked Keras 3
    gives zeros in some cases, and tf_keras the mean.
    """
    name = type(layer).__name__
    if name in _PASS_MASKS_IN_ONE and any(_masks(node) for node in nodes):
        raise refuse
    if name == "Resizing" and any(_whole_numbers(node) for node in nodes):
        raise refuse  # tf_keras gives floats
    if name == "Softmax" and any(_masks(node) for node in nodes):
        raise refuse
    if name == "MultiHeadAttention" and layer._dropout > 0 and any(_masks(n) for n in nodes):
        raise refuse


def _arguments(node: Any) -> tuple[Any, Any]:
    if hasattr(node, "arguments"):
        return node.arguments.args, node.arguments.kwargs
    return node.call_args, node.call_kwargs


def _whole_numbers(node: Any) -> bool:
    """Whether a call gets tensors of whole numbers."""
    dtypes = [str(getattr(tensor, "dtype", "")) for tensor in _flat(list(_arguments(node)[0]))]
    return any("int" in dtype for dtype in dtypes)


def _masks(node: Any) -> bool:
    """Whether a call has a mask, given or implied."""
    args, kwargs = _arguments(node)
    given = any(
        key.endswith("mask") and key != "use_causal_mask" and kwargs[key] is not None
        for key in kwargs
    )
    tensors = [*args, *kwargs.values()]
    return bool(given) or any(_mask_of(tensor) is not None for tensor in _flat(tensors))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in _flat(value)]
    return [values]


def _mask_of(tensor: Any) -> Any:
    return getattr(tensor, "_keras_mask", None)


def amend(target: type, given: dict[str, Any]) -> dict[str, Any]:
    """Adds what only the class of tf_keras has."""
    if "softmax_robust_masking" in inspect.signature(target).parameters:  # tf_keras 2.21
        given["softmax_robust_masking"] = True  # as in Keras 3: masked scores are replaced
    return given
