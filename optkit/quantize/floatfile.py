"""The float file that quantizing starts from: made once, with what each operator was in Keras."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.artifact import KerasArtifact
from optkit.convert import Samples, Source, convert_to_tflite, source_of
from optkit.flatbuffer import FLOAT32, floats_of, operator_name, packed, unpacked
from optkit.models import (
    Signature,
    is_graph,
    layers_by_path,
)
from optkit.runtime import tensorflow, tf_keras

__all__ = ["FloatFile", "Operation", "float_file", "layers_before", "rename_tensors"]

#: What stands in tensor names for a layer: of one width, so that none is the beginning of another.
_MARK = re.compile(r"L(\d{6})L")
_OUTPUT = re.compile(r"^(?:Identity|PartitionedCall|StatefulPartitionedCall)(?:[_:]\d+)*$")
_CONTROL_FLOW = frozenset({"WHILE", "IF", "CALL_ONCE"})
# fmt: off
_NOTHING = frozenset({  # layers that give what they get when a model predicts
    "ActivityRegularization", "AlphaDropout", "Dropout", "Flatten", "GaussianDropout",
    "GaussianNoise", "InputLayer", "Masking", "Reshape", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D",
})
# fmt: on


@dataclass(frozen=True)
class Operation:
    """One operator of a float file.

    Attributes:
        index: Place in the file.
        kind: Kind, such as ``"CONV_2D"``.
        inputs: Names of the tensors that it takes; those that are left out are not named.
        outputs: Names of the tensors that it gives.
        layers: Paths of the Keras layers that are fused into it, the last one first, as
            `optkit.models.layers_by_path` has them: ``("relu", "bn", "conv")``. Empty where it
            belongs to none.
        weights: Names of those of its inputs that are constants of rank two and above.
    """

    index: int
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def scope(self) -> str:
        """What names it in a recipe of ai-edge-quantizer."""
        return "".join(f"{name};" for name in self.outputs or self.inputs)


@dataclass(frozen=True)
class FloatFile:
    """A float32 flatbuffer, and what is known of it.

    Attributes:
        content: The bytes of the file. Its signature carries the names of inputs and outputs; in
            names of tensors, layers go by marks.
        operations: The operators, in the order in which they run.
        source: What it was made of, and what has to run before it.
        float_tensors: Names of the tensors that hold floats.
        inputs: Names of the input tensors, in the order of the signature.
        outputs: Names of the output tensors, in the order of the signature.
        names: What each mark stands for.
        kinds: Class of each layer, by path.
        weighted: Paths of the layers that have weights.
    """

    content: bytes
    operations: tuple[Operation, ...]
    source: Source
    float_tensors: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: Mapping[str, str]
    kinds: Mapping[str, str]
    weighted: frozenset[str]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the file, as the model has them."""
        return self.source.signature

    @property
    def front(self) -> KerasArtifact | None:
        """What runs before the file; ``None`` for nothing."""
        return self.source.front

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a report should know of it."""
        return self.source.notes

    @property
    def has_control_flow(self) -> bool:
        """Whether loops or branches are left in it."""
        return any(item.kind in _CONTROL_FLOW for item in self.operations)

    @functools.cached_property
    def constants(self) -> Mapping[bytes, np.ndarray]:
        """The values of its float constants, by name of the tensor; looked up once."""
        model = unpacked(self.content)
        found = {tensor.name: floats_of(model, tensor) for tensor in model.subgraphs[0].tensors}
        return {name: values for name, values in found.items() if values is not None}

    def behind(self, samples: Samples) -> Samples:
        """Samples of the model as inputs of the file: without lookups they are the same."""
        return self.source.behind(samples)

    def readable(self, name: str) -> str:
        """The name of a tensor with names of layers in place of marks."""
        return _MARK.sub(lambda found: self.names[found[0]], name)

    def finish(self, content: bytes) -> bytes:
        """A file made of this one, with names of layers in place of marks.

        Args:
            content: The bytes of the file that was made.
        """
        return rename_tensors(content, self.readable) if self.names else content


def float_file(
    source: Any, input_shapes: Mapping[str, tuple[int | None, ...]] | None = None
) -> FloatFile:
    """Makes the float32 file of a model, loops over time written out.

    Args:
        source: A built tf_keras model, or an artifact with `signature` and `inference_function`.
        input_shapes: Shapes by name of the file's inputs, without the batch, where the model leaves
            some open.

    Raises:
        OptkitError: If it cannot be converted.

    Example:
        >>> from optkit.testing import small_model
        >>> [(item.kind, item.layers) for item in float_file(small_model()).operations][0]
        ('CONV_2D', ('relu', 'norm', 'conv'))
    """
    parts = source_of(source, input_shapes)
    is_model = isinstance(parts.rest, tf_keras().Model)
    marks: dict[str, str] = {}
    kinds: dict[str, str] = {}
    ends: tuple[tuple[str, ...], ...] = ()
    weighted: frozenset[str] = frozenset()
    if is_model:
        by_path = layers_by_path(parts.rest)
        kinds = {path: type(layer).__name__ for path, layer in by_path.items()}
        weighted = frozenset(path for path, layer in by_path.items() if layer.weights)
        ends = tuple(_origin(tensor) for tensor in parts.rest.outputs)

    def tracing(model: Any) -> contextlib.AbstractContextManager[None]:
        return _marked(model, marks)

    content = convert_to_tflite(
        parts.rest,
        input_shapes=parts.shapes if input_shapes else None,
        unrolled=True,
        tracing=tracing if is_model else None,
    )
    operations, inputs, outputs, floats = _read(content, marks, kinds, ends)
    if is_model:
        operations = _with_vanished(operations, layers_before(parts.rest), kinds)
    names = {mark: path.rpartition("/")[2] for mark, path in marks.items()}
    return FloatFile(
        content=content,
        operations=operations,
        source=parts,
        float_tensors=floats,
        inputs=inputs,
        outputs=outputs,
        names=names,
        kinds=kinds,
        weighted=weighted,
    )


@contextlib.contextmanager
def _marked(model: Any, marks: dict[str, str]) -> Iterator[None]:
    """Calls every layer by a mark while the model is traced.

    TensorFlow tells layers that are called twice apart by endings (``dense``, ``dense_1``), which
    may be the names of other layers.
    """
    keras = tf_keras()
    renamed: list[tuple[Any, str]] = []
    paths: dict[int, str] = {}

    def visit(part: Any, prefix: str) -> None:
        for layer in part._flatten_layers(include_self=False, recursive=False):
            if id(layer) in paths or isinstance(layer, keras.layers.InputLayer):
                continue
            paths[id(layer)] = prefix + layer.name
            renamed.append((layer, layer._name))
            visit(layer, f"{prefix}{layer.name}/")

    visit(model, "")
    try:
        for number, (layer, _) in enumerate(renamed):
            mark = f"L{number:06d}L"
            marks[mark] = paths[id(layer)]
            layer._name = mark
        yield
    finally:
        for layer, name in renamed:
            layer._name = name


def _origin(tensor: Any) -> tuple[str, ...]:
    """The path of the layer that an output of a model comes from, models within it opened."""
    prefix = ""
    layer = tensor._keras_history.layer
    place = tensor._keras_history.tensor_index
    while is_graph(layer):
        prefix += f"{layer.name}/"
        inner = layer.outputs[place]
        layer, place = inner._keras_history.layer, inner._keras_history.tensor_index
    return (prefix + layer.name,)


def layers_before(model: Any) -> dict[str, tuple[str, ...]]:
    """For each layer, by path, the layers whose outputs it takes; models within it opened.

    Args:
        model: A functional or Sequential tf_keras model.

    Returns:
        Paths as in `optkit.models.layers_by_path`, each layer behind those before it.
    """
    flat = tensorflow().nest.flatten
    found: dict[str, list[str]] = {}

    def visit(part: Any, prefix: str, makers: dict[int, list[str]]) -> None:
        nodes = [
            node for depth in sorted(part._nodes_by_depth, reverse=True)
            for node in part._nodes_by_depth[depth] if not node.is_input
        ]  # fmt: skip
        for node in nodes:
            sources = [makers.get(id(tensor), []) for tensor in node.keras_inputs]
            path = prefix + node.layer.name
            if is_graph(node.layer):
                inner = {
                    id(tensor): source
                    for tensor, source in zip(node.layer.inputs, sources, strict=True)
                }
                visit(node.layer, f"{path}/", inner)
                ends = [inner.get(id(tensor), []) for tensor in node.layer.outputs]
            else:
                found.setdefault(path, []).extend(name for source in sources for name in source)
                ends = [[path]] * len(flat(node.outputs))
            makers |= {id(t): end for t, end in zip(flat(node.outputs), ends, strict=True)}

    visit(model, "", {})
    return {path: tuple(dict.fromkeys(sources)) for path, sources in found.items()}


def _with_vanished(
    operations: tuple[Operation, ...],
    before: Mapping[str, tuple[str, ...]],
    kinds: Mapping[str, str],
) -> tuple[Operation, ...]:
    """Lists layers of which no name is left with the operators that they went into.

    The converter works a batch norm into the weights of the convolution before it, and what is made
    has the name of the convolution alone.
    """
    layers = [list(item.layers) for item in operations]
    places: dict[str, list[int]] = {}
    for index, found in enumerate(layers):
        for path in found:
            places.setdefault(path, []).append(index)
    for path, sources in before.items():
        if path in places or kinds.get(path) in _NOTHING:
            continue
        for source in sources:
            taken = [index for index in places.get(source, ()) if operations[index].weights]
            # A layer that is called twice has two operators with the same weights.
            same = [i for i in taken if operations[i].weights == operations[taken[-1]].weights]
            for index in same or places.get(source, [])[-1:]:
                layers[index].insert(layers[index].index(source), path)
                places.setdefault(path, []).append(index)
    return tuple(
        dataclasses.replace(item, layers=tuple(found))
        for item, found in zip(operations, layers, strict=True)
    )


def _read(
    content: bytes,
    marks: Mapping[str, str],
    kinds: Mapping[str, str],
    ends: tuple[tuple[str, ...], ...],
) -> tuple[tuple[Operation, ...], tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """The operators of a file, and the names of its input, output and float tensors."""
    model = unpacked(content)
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    entry = model.signatureDefs[0]
    inputs = tuple(names[mapping.tensorIndex] for mapping in entry.inputs)
    outputs = tuple(names[mapping.tensorIndex] for mapping in entry.outputs)
    users: dict[int, int] = {}
    for operator in graph.operators:
        for tensor in set(map(int, operator.inputs)):
            users[tensor] = users.get(tensor, 0) + 1

    def layers_of(name: str) -> list[str]:
        found = []
        for part in name.split(";"):
            paths = [marks[mark[0]] for mark in _MARK.finditer(part)]
            # The outermost that counts as a layer: what it is built of is its own business.
            known = [path for path in paths if path in kinds]
            if known or paths:
                found.append(known[0] if known else paths[-1])
        return found

    origin: dict[int, list[str]] = {}
    operations = []
    for index, operator in enumerate(graph.operators):
        taken = [int(tensor) for tensor in operator.inputs if tensor >= 0]
        given = [int(tensor) for tensor in operator.outputs]
        weights = [t for t in taken if _is_weight(model, graph.tensors[t])]
        layers: list[str] = []
        for tensor in given:
            if _OUTPUT.match(names[tensor]) and names[tensor] in outputs and ends:
                layers += ends[outputs.index(names[tensor])]
            layers += layers_of(names[tensor])
        for tensor in weights:
            if users[tensor] == 1:  # constants that happen to be equal are stored once
                layers += layers_of(names[tensor])
        if not layers:  # something that the converter put in: it goes with what it follows
            layers = [path for tensor in taken for path in origin.get(tensor, [])[:1]]
        layers = list(dict.fromkeys(layers))
        for tensor in given:
            origin[tensor] = layers
        operations.append(
            Operation(
                index=index,
                kind=operator_name(model.operatorCodes[operator.opcodeIndex]),
                inputs=tuple(names[tensor] for tensor in taken),
                outputs=tuple(names[tensor] for tensor in given),
                layers=tuple(layers),
                weights=tuple(names[tensor] for tensor in weights),
            )
        )
    floats = frozenset(
        tensor.name.decode()
        for part in model.subgraphs
        for tensor in part.tensors
        if tensor.type == FLOAT32
    )
    return tuple(operations), inputs, outputs, floats


def _is_weight(model: Any, tensor: Any) -> bool:
    values = floats_of(model, tensor)
    return values is not None and values.ndim > 1


def rename_tensors(content: bytes, name: Callable[[str], str]) -> bytes:
    """A file with other names of tensors; what equals another after that gets a number.

    Args:
        content: The bytes of the file.
        name: From a name to another.
    """
    model = unpacked(content)
    for graph in model.subgraphs:
        taken: set[str] = set()
        for tensor in graph.tensors:
            fresh = first = name(tensor.name.decode())
            number = 1
            while fresh in taken:
                number += 1
                fresh = f"{first}#{number}"
            taken.add(fresh)
            tensor.name = fresh.encode()
    return packed(model, len(content))
