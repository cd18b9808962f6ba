"""From a float file and ranges to a quantized file, in well under a second.

Two engines do it, equally well where they are given the same ranges: ai-edge-quantizer, which is
public and the quicker, and TensorFlow's own quantizer, which knows more operators. The second is
taken where the first would leave operators in float.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from optkit.errors import OptkitError, first_line
from optkit.flatbuffer import FLOAT32, operator_name, packed, unpacked
from optkit.quantize.calibrate import Ranges
from optkit.quantize.floatfile import FloatFile, Operation
from optkit.quantize.silent import widen_silent_channels
from optkit.runtime import locked, tensorflow

__all__ = [
    "NO_ARITHMETIC",
    "Scheme",
    "engine_of",
    "float_inputs",
    "float_operations",
    "quantize",
    "whole_number_inputs",
]

_BOUNDED = (2, 3)  # activations from -1 to 1, and from 0 to 6
#: The narrowest range of such an activation, by bits.
_NARROWEST = {8: 1e-6, 16: 1e-4}
#: Operators that compute nothing of the floats that they take or give.
NO_ARITHMETIC = frozenset({"CAST", "FILL", "SHAPE", "ZEROS_LIKE"})
#: Operators that ai-edge-quantizer calls other than LiteRT does.
_NAMED_OTHERWISE = {"CONV_2D_TRANSPOSE": "TRANSPOSE_CONV"}
_UNPACKING = frozenset({"QUANTIZE", "DEQUANTIZE"})


@dataclass(frozen=True)
class Scheme:
    """What is stored in how many bits.

    Attributes:
        weights: Bits of weights: 8 or 4.
        activations: Bits of activations: 8 or 16.
        layer_weights: Bits of the weights of single operators, by index, where they differ.
    """

    weights: Literal[4, 8] = 8
    activations: Literal[8, 16] = 8
    layer_weights: Mapping[int, int] | None = None


def quantize(
    file: FloatFile,
    ranges: Ranges,
    *,
    scheme: Scheme | None = None,
    keep_float: Collection[int] = (),
    io: Literal["int8", "float32"] = "int8",
    engine: str | None = None,
) -> bytes:
    """Makes a quantized file of a float one.

    Args:
        file: The float file.
        ranges: Ranges of the activations, by name of the tensor.
        scheme: What is stored in how many bits; full integers of 8 bits unless given.
        keep_float: Indices of operators that stay float.
        io: ``"int8"`` for inputs and outputs as activations are (of 16 bits in a scheme of these),
            ``"float32"`` for floats. Whole-number inputs stay what they are.
        engine: ``"ai-edge-quantizer"`` or ``"tensorflow"``; `engine_of` the file unless given.

    Returns:
        The bytes of the file, its tensors named as those of the float file.

    Raises:
        OptkitError: If the engine cannot do it.
    """
    scheme = scheme or Scheme()
    if (engine or engine_of(file, scheme)) == "tensorflow":
        return _by_tensorflow(file, ranges, keep_float, io)
    return _by_ai_edge_quantizer(file, ranges, scheme, keep_float, io)


def engine_of(file: FloatFile, scheme: Scheme | None = None) -> str:
    """Which engine treats more of the operators of a file: see `quantize`."""
    scheme = scheme or Scheme()
    if scheme.activations != 8 or scheme.weights != 8 or scheme.layer_weights:
        return "ai-edge-quantizer"
    known = _known_operators()
    return "ai-edge-quantizer" if not foreign(file, known) else "tensorflow"


def foreign(file: FloatFile, known: Collection[str]) -> tuple[Operation, ...]:
    """The operators on floats that ai-edge-quantizer would leave in float."""
    floats = file.float_tensors
    return tuple(
        item
        for item in file.operations
        if item.kind not in known
        and floats.intersection((*item.inputs, *item.outputs))
        and item.kind not in NO_ARITHMETIC
    )


@functools.cache
def _known_operators() -> frozenset[str]:
    from ai_edge_quantizer import default_policy

    policy = json.loads(default_policy.DEFAULT_JSON_POLICY)
    names = policy["ops_per_config"]["static_wi8_ai8"]
    return frozenset(_NAMED_OTHERWISE.get(name, name) for name in names)


# ------------------------------------------------------------------------------- ai-edge-quantizer


def _by_ai_edge_quantizer(
    file: FloatFile,
    ranges: Ranges,
    scheme: Scheme,
    keep_float: Collection[int],
    io: str,
) -> bytes:
    from ai_edge_quantizer import quantizer

    statistics = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in _wide(file, ranges, scheme.activations).items()
    }
    try:
        with warnings.catch_warnings(), _without_bars():
            # Said of an interpreter that it makes to look tensors up.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            # Of biases that 32 bits do not reach, for which `widen_silent_channels` makes good.
            warnings.filterwarnings("ignore", message="invalid value encountered in cast")
            maker = quantizer.Quantizer(file.content, _recipe(file, scheme, keep_float, io))
            made = maker.quantize(
                statistics, enable_progress_bar=False, enable_progress_report=False
            )
    except OptkitError:
        raise
    except Exception as error:
        raise OptkitError(
            f"ai-edge-quantizer cannot quantize this model. {first_line(error)}"
        ) from error
    content = bytes(made.quantized_model)
    if len(set(file.outputs)) < len(file.outputs) or set(file.outputs) & set(file.inputs):
        content = _with_outputs_named(content)
    return widen_silent_channels(content, file)


def _with_outputs_named(content: bytes) -> bytes:
    """A file whose signature names its outputs, where ai-edge-quantizer lost track of them.

    It does of those that are inputs as well, and of those that are outputs twice.
    """
    model = unpacked(content)
    for entry in model.signatureDefs:
        for mapping, tensor in zip(entry.outputs, model.subgraphs[0].outputs, strict=True):
            mapping.tensorIndex = int(tensor)
    return packed(model, len(content))


def _wide(file: FloatFile, ranges: Ranges, bits: int) -> Ranges:
    """Ranges that are not so narrow that the 6 of a ReLU6 is more steps than 32 bits count.

    LiteRT refuses such files. Activations that are always (nearly) 0 have such ranges.
    """
    least = _NARROWEST[bits]
    narrow = {name for name, (low, high) in ranges.items() if max(-low, high) < least}
    if not narrow:
        return ranges
    model = unpacked(file.content)
    bounded = {
        graph.tensors[int(tensor)].name.decode()
        for graph in model.subgraphs
        for operator in graph.operators
        if getattr(operator.builtinOptions, "fusedActivationFunction", 0) in _BOUNDED
        for tensor in operator.outputs
    }
    return dict(ranges) | dict.fromkeys(narrow & bounded, (0.0, least))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps ai-edge-quantizer from drawing a bar for large files, of which it cannot be told."""
    from ai_edge_quantizer.utils import progress_utils

    drawn = progress_utils.ProgressBar
    with locked():
        progress_utils.ProgressBar = functools.partial(_bar, drawn)
        try:
            yield
        finally:
            progress_utils.ProgressBar = drawn


def _bar(drawn: Any, *arguments: Any, **settings: Any) -> Any:
    return drawn(*arguments, **(settings | {"enable": False}))


def _recipe(
    file: FloatFile, scheme: Scheme, keep_float: Collection[int], io: str
) -> list[dict[str, Any]]:
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    manager = recipe_manager.RecipeManager()
    kinds = qtyping.TFLOperationName

    def add(scope: str, bits: int, kind: Any = kinds.ALL_SUPPORTED) -> None:
        manager.add_static_config(scope, kind, scheme.activations, bits)

    add(".*", 8)
    if scheme.weights != 8:
        add(".+", scheme.weights)  # of what is known in so few bits; the rest stays as above
    for index, bits in (scheme.layer_weights or {}).items():
        add(_exactly(file.operations[index]), bits)
    for index in sorted({*keep_float, *_comparing(file, io)}):
        manager.add_quantization_config(
            _exactly(file.operations[index]),
            kinds.ALL_SUPPORTED,
            algorithm_key=AlgorithmName.NO_QUANTIZE,
        )
    for kind, stays in (
        (kinds.INPUT, io == "float32" or whole_number_inputs(file)),
        (kinds.OUTPUT, io == "float32"),
    ):
        if stays:
            manager.add_quantization_config("(?:)", kind, algorithm_key=AlgorithmName.NO_QUANTIZE)
    found: list[dict[str, Any]] = manager.get_quantization_recipe()
    return found


def _comparing(file: FloatFile, io: str) -> list[int]:
    """Operators that compare inputs with a value, as masks do, where the file takes floats.

    Rounded to 8 bits, an input that equals a value need not equal it any more.
    """
    if io != "float32":
        return []
    return [
        item.index
        for item in file.operations
        if item.kind in ("EQUAL", "NOT_EQUAL") and set(item.inputs).intersection(file.inputs)
    ]


def _exactly(operation: Operation) -> str:
    return f"^{re.escape(operation.scope)}$"


def whole_number_inputs(file: FloatFile) -> list[str]:
    """Names of the tensors of float inputs that are cast to whole numbers, as for embeddings."""
    floats = {
        name
        for name, info in zip(file.inputs, file.signature.inputs, strict=True)
        if info.dtype.startswith("float")
    }
    readers: dict[str, set[str]] = {}
    for operation in file.operations:
        for name in operation.inputs:
            readers.setdefault(name, set()).add(operation.kind)
    return [name for name in file.inputs if name in floats and "CAST" in readers.get(name, set())]


# -------------------------------------------------------------------------------------- TensorFlow


def _by_tensorflow(file: FloatFile, ranges: Ranges, keep_float: Collection[int], io: str) -> bytes:
    tf = tensorflow()
    from tensorflow.lite.python.convert import mlir_quantize

    kind = tf.int8 if io == "int8" else tf.float32
    floats = all(info.dtype.startswith("float") for info in file.signature.inputs)
    taken = kind if floats and not whole_number_inputs(file) else tf.float32
    names = {name for index in keep_float for name in file.operations[index].outputs}
    try:
        return bytes(
            mlir_quantize(
                _with_ranges(file.content, ranges),
                input_data_type=taken,
                output_data_type=kind,
                denylisted_nodes=names or None,
            )
        )
    except Exception as error:
        raise OptkitError(
            f"TensorFlow's converter cannot quantize this model. {first_line(error)}"
        ) from error


def _with_ranges(content: bytes, ranges: Ranges) -> bytes:
    """The float file with ranges in it, where TensorFlow's calibrator would have put them."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(content)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            found = ranges.get(tensor.name.decode())
            if found is None or tensor.type != FLOAT32:
                continue
            entry = tensor.quantization or schema.QuantizationParametersT()
            entry.min = np.array([found[0]], np.float32)
            entry.max = np.array([found[1]], np.float32)
            tensor.quantization = entry
    return packed(model, len(content))


def float_operations(content: bytes) -> tuple[str, ...]:
    """The kinds of the operators that still compute in float in a quantized file."""
    model = unpacked(content)
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = operator_name(model.operatorCodes[operator.opcodeIndex])
            if kind in _UNPACKING:
                continue
            taken = [t for t in (*operator.inputs, *operator.outputs) if t >= 0]
            if any(graph.tensors[t].type == FLOAT32 for t in taken):
                found.append(kind)
    return tuple(found)


def float_inputs(content: bytes) -> tuple[str, ...]:
    """The names of the inputs, as the signature has them, that a file takes as floats."""
    model = unpacked(content)
    tensors = model.subgraphs[0].tensors
    return tuple(
        entry.name.decode()
        for entry in model.signatureDefs[0].inputs
        if tensors[entry.tensorIndex].type == FLOAT32
    )
