"""What a repair works on: the graph of a model, weights that are being changed, the model made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optkit.models import (
    copy_learned_state,
    copy_state,
    flat_copy,
    layers_by_path,
    nested_models,
    rewire,
    walk_layers,
)
from optkit.quantize.repairs.linear import Linear
from optkit.quantize.repairs.norm import Norm
from optkit.quantize.repairs.walk import Graph
from optkit.runtime import tensorflow, tf_keras

__all__ = ["Bench", "Repaired"]


@dataclass(frozen=True)
class Repaired:
    """What a repair made of a model.

    Attributes:
        model: The repaired model, uncompiled; the model that was given, where nothing was done.
        done: What was done, one short sentence each, beginning with the name of the layer.
        left: Names of the layers that could not be treated, each with the reason.
        names: Where models within the model were opened: the path that each layer had, and the
            name that it has now. Empty otherwise; layers keep their names then.
        exact: Whether the outputs are the same, up to rounding, for every input, and not only for
            those like the samples that the repair has seen.
    """

    model: Any
    done: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True


class Bench:
    """The graph of a model, and what is to become of its layers.

    Args:
        model: A built functional or Sequential tf_keras model; it is read, never changed.

    Attributes:
        model: The model, with models within it opened.
        graph: The uses of its layers.
        names: As in `Repaired`, of all layers.
    """

    def __init__(self, model: Any):
        self._given = model
        self.model, self.names = (_opened if nested_models(model) else _as_it_is)(model)
        self.graph = Graph(self.model)
        self._linears: dict[int, Linear] = {}
        self._norms: dict[int, Norm] = {}

    def linear(self, layer: Any) -> Linear:
        """The weights of a layer with a matrix, as they are by now."""
        return self._linears.setdefault(id(layer), Linear(layer))

    def norm(self, layer: Any) -> Norm:
        """The statistics of a batch normalization, as they are by now."""
        return self._norms.setdefault(id(layer), Norm(layer))

    def remove(self, layer: Any) -> None:
        """Leaves a layer out: what goes in comes out."""
        self.graph.removed.add(id(layer))

    def build(self) -> tuple[Any, Mapping[str, str]]:
        """The model with the changed weights, and the names of its layers as in `Repaired`."""
        parts: dict[int, Linear | Norm] = {**self._linears, **self._norms}
        changed = {key: part for key, part in parts.items() if part.changed}
        if not changed and not self.graph.removed:
            return self._given, {}
        keras, tf = tf_keras(), tensorflow()
        made: dict[int, Any] = {}

        def call(layer: Any, arguments: Any, keywords: Any) -> Any:
            if id(layer) in self.graph.removed:
                return arguments[0]
            if id(layer) not in made:
                part = changed.get(id(layer))
                config = part.config() if isinstance(part, Linear) else layer.get_config()
                made[id(layer)] = fresh = type(layer).from_config(config)
                fresh._name = layer.name
                outputs = fresh(*arguments, **keywords)
                fresh.trainable = layer.trainable
                if part is None:
                    copy_state(layer, fresh)
                    copy_learned_state(layer, fresh)
                else:
                    part.assign_to(fresh)
                    fresh.trainable &= not getattr(part, "fixed", False)
                return outputs
            return made[id(layer)](*arguments, **keywords)

        inputs = _inputs(self.model)
        outputs = rewire(self.model, inputs, call)
        packed = tf.nest.pack_sequence_as(self.model._nested_inputs, inputs)
        results = tf.nest.pack_sequence_as(self.model._nested_outputs, outputs)
        repaired = keras.Model(packed, results, name=self._given.name)
        kept = {layer.name for layer in repaired.layers}
        return repaired, {path: name for path, name in self.names.items() if name in kept}


def _inputs(model: Any) -> list[Any]:
    """Fresh inputs like those of a model."""
    keras = tf_keras()
    return [
        keras.Input(type_spec=tensor.type_spec, name=name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]


def _as_it_is(model: Any) -> tuple[Any, dict[str, str]]:
    return model, {}


def _opened(model: Any) -> tuple[Any, dict[str, str]]:
    """A copy of a model with the models within it opened, and what became of the layers' names."""
    keras, tf = tf_keras(), tensorflow()
    inputs = _inputs(model)
    outputs, copies = flat_copy(model, inputs)
    outputs = tf.nest.flatten(outputs)
    packed = tf.nest.pack_sequence_as(model._nested_outputs, outputs)
    flat = keras.Model(
        tf.nest.pack_sequence_as(model._nested_inputs, inputs), packed, name=model.name
    )
    new = {id(old): copy.name for old, copy in zip(walk_layers(model), copies, strict=True)}
    return flat, {path: new[id(old)] for path, old in layers_by_path(model).items()}
