"""Samples as rows of numbers: what samplers compare, and how rows become samples again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import KerasArtifact, SavedModelArtifact, load_model
from optkit.data import ArraySplit, Split, map_leaves
from optkit.errors import DataError, ModelError, PipelineError, first_line
from optkit.models import LOOKUPS, TensorInfo, is_graph

__all__ = ["Features", "images_among", "whole_number_inputs"]

# Columns that only travel along weigh so little that they change no distance that matters.
_ALONG = 1e-7
_BATCH = 128


def images_among(inputs: tuple[TensorInfo, ...]) -> list[str]:
    """The inputs that are images: shape ``(batch, height, width, channels)``."""
    return [info.name for info in inputs if len(info.shape) == 4]


def whole_number_inputs(model: Any, inputs: tuple[TensorInfo, ...]) -> list[str]:
    """The inputs whose numbers, or texts, stand for something: token ids, categories, words.

    Args:
        model: The tf_keras model; ``None`` where it is not known, and the inputs' types must do.
        inputs: Its inputs.
    """
    found = {
        info.name
        for info in inputs
        if info.dtype == "string" or ("int" in info.dtype and len(info.shape) < 4)
    }
    if model is not None:
        found |= _looked_up(model)
    return [info.name for info in inputs if info.name in found]


def _looked_up(model: Any) -> set[str]:
    """The names of the inputs of which a layer looks the numbers up, also one of a model within."""
    wanted = {tensor.name for tensor in getattr(model, "inputs", None) or ()}
    found: set[str] = set()
    for layer in getattr(model, "layers", ()):
        if type(layer).__name__ in LOOKUPS:
            found.update(_inputs_before([layer], wanted))
        elif is_graph(layer) and (own := _looked_up(layer)):
            for node in layer.inbound_nodes:
                pairs = zip(node.keras_inputs, layer.inputs, strict=False)
                before = [taken.node.layer for taken, tensor in pairs if tensor.name in own]
                before = [item for item in before if not item.weights]
                found.update(_inputs_before(before, wanted))
    return found


def _inputs_before(layers: Sequence[Any], wanted: set[str]) -> Iterator[str]:
    """Inputs that are, or reach, some layers without anything learned in between."""
    seen, todo = set(), list(layers)
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if current.name in wanted:
            yield current.name
        for node in current.inbound_nodes:
            before = node.inbound_layers
            before = before if isinstance(before, list | tuple) else [before]
            todo += [item for item in before if not item.weights]


class Features:
    """What samplers compare: the inputs laid flat, or what a model makes of them.

    Args:
        kind: ``"flat"`` (values as they are), ``"scaled"`` (each column over its deviation),
            ``"auto"`` (``"scaled"`` for rows of numbers, ``"flat"`` for everything else), or a Keras
            model or the path of one, whose outputs are compared.

    Example:
        >>> features = Features("scaled")
        >>> x = np.array([[0.0, 100.0], [2.0, 300.0]])
        >>> rows = features.rows(x, make=True)
        >>> rows.values
        array([[0., 1.],
               [2., 3.]])
        >>> rows.samples(rows.values[:1])
        array([[  0., 100.]])
    """

    def __init__(self, kind: Any = "auto"):
        self.kind = kind

    @property
    def embeds(self) -> bool:
        """Whether a model makes the features."""
        return not (isinstance(self.kind, str) and self.kind in ("auto", "flat", "scaled"))

    def embed(self, x: Any) -> np.ndarray:
        """What the model makes of samples, shape ``(n, …)`` laid flat.

        Raises:
            ModelError: If the model does not run on them, or gives several outputs.
        """
        model: Any = self.kind
        if isinstance(model, str | os.PathLike):
            model = load_model(Path(model))
            if isinstance(model, SavedModelArtifact):
                raise ModelError(
                    f"{os.fspath(self.kind)!r} holds a SavedModel that no Keras wrote. Give the "
                    "model of `features` as Keras saved it."
                )
        artifact = KerasArtifact(model)
        if isinstance(x, np.ndarray) and len(artifact.signature.inputs) == 1:
            x = {artifact.signature.inputs[0].name: x}
        try:
            found = artifact.predict(x, _BATCH)
        except Exception as error:
            raise ModelError(
                f"The model of `features` does not run on the training samples: {first_line(error)}"
            ) from error
        if isinstance(found, dict):
            raise ModelError(
                f"The model of `features` has {len(found)} outputs ({', '.join(found)}). Give one "
                "with a vector a sample: `Model(model.inputs, model.outputs[0])`."
            )
        if not np.all(np.isfinite(found)):
            raise ModelError("The model of `features` gives NaN or infinite values.")
        return np.asarray(found, np.float64).reshape(len(found), -1)

    def rows(self, x: Any, *, make: bool) -> Rows:
        """Samples as rows for a sampler.

        Args:
            x: The inputs, an array or a dict by name.
            make: Whether rows of the sampler's making must become samples.
        """
        if self.embeds:
            found = self.embed(x)
            # Centred, as a kernel's width may be chosen by the spread of all values.
            found = found - found.mean(0)
            if not make:
                return Rows(found, None, 0, np.ones(0))
            flat = _flat(x).astype(np.float64)
            spread = [float(np.sqrt(np.mean(np.var(part, 0)))) for part in (found, flat)]
            if not spread[0]:
                raise DataError("The model of `features` gives the same for every sample.")
            factor = _ALONG * spread[0] / (spread[1] or 1.0) / np.sqrt(flat.shape[1])
            along = flat * factor
            scale = np.full(flat.shape[1], 1 / factor)
            return Rows(np.hstack([found, along]), x, found.shape[1], scale)
        flat = _flat(x)
        if self.kind == "scaled" or (self.kind == "auto" and _is_table(x)):
            flat = flat.astype(np.float64)
            scale = np.std(flat, 0)
            scale[scale == 0] = 1.0
            return Rows(flat / scale, x, 0, scale)
        return Rows(flat, x, 0, np.ones(flat.shape[1], flat.dtype))

    def check(self, split: Split) -> None:
        """Runs the model on two samples.

        Raises:
            ModelError: If it does not run on them.
        """
        if self.embeds:
            self.embed(split.head(2)[0])


class Rows:
    """Samples as rows of numbers, and the way back.

    Attributes:
        values: The rows, shape ``(n, columns)``.
    """

    def __init__(self, values: np.ndarray, like: Any, start: int, scale: np.ndarray):
        self.values = values
        self._like, self._start, self._scale = like, start, scale

    def samples(self, made: np.ndarray) -> Any:
        """Rows as samples in the form and the types of those that the rows were made of."""
        if self._like is None:
            raise PipelineError(
                "The sampler made rows that are no samples, and what a model of `features` gives "
                "cannot be turned back. Use a sampler that picks samples."
            )
        flat = made[:, self._start :] * self._scale
        place = 0

        def part(leaf: np.ndarray) -> np.ndarray:
            nonlocal place
            size = int(np.prod(leaf.shape[1:], dtype=np.int64))
            values = flat[:, place : place + size].reshape(-1, *leaf.shape[1:])
            place += size
            if leaf.ndim == 4:  # pixels beyond all others would be no image
                values = np.clip(values, leaf.min(), leaf.max())
            if leaf.dtype.kind == "b":
                return np.asarray(values >= 0.5)
            if leaf.dtype.kind in "iu":
                bounds = np.iinfo(leaf.dtype)
                values = np.clip(np.rint(values), bounds.min, bounds.max)
            return np.asarray(values.astype(leaf.dtype))

        return map_leaves(part, self._like)


def _is_table(x: Any) -> bool:
    leaves = list(x.values()) if isinstance(x, dict) else [x]
    return all(leaf.ndim <= 2 for leaf in leaves)


def _flat(x: Any) -> np.ndarray:
    """All inputs beside each other, a row a sample, in floats that hold their values."""
    leaves = list(x.values()) if isinstance(x, dict) else [x]
    for leaf in leaves:
        if leaf.dtype.kind not in "biuf":
            raise DataError(f"Rows of numbers are needed, and the inputs have dtype {leaf.dtype}.")
    flat = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    dtype = np.result_type(np.float32, *flat)
    return np.hstack(flat).astype(dtype, copy=False)


def rows_of(split: ArraySplit) -> Any:
    """The inputs of a split, an array or a dict by name."""
    if split.index is None:
        return split.x
    return map_leaves(lambda leaf: leaf[split.index], split.x)
