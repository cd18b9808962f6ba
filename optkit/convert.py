"""From a Keras model to a TFLite flatbuffer, by way of one traced function.

Converting one traced function skips the SavedModel that the stock converter writes, which traces
every layer on its own; the flatbuffer is the same. What such a function lacks, the named signature,
is put into the flatbuffer afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from optkit.artifact.keras import inference_function
from optkit.errors import OptkitError
from optkit.models import Signature, signature
from optkit.runtime import tensorflow

__all__ = ["convert_to_tflite"]

_SIGNATURE_KEY = "serving_default"
_DEPRECATED_PATH = "Please consider providing the trackable_obj argument"


def convert_to_tflite(
    model: Any,
    *,
    representative: Callable[[], Iterator[list[np.ndarray]]] | None = None,
    io: Literal["int8", "float32"] = "float32",
    input_shapes: tuple[tuple[int | None, ...], ...] | None = None,
) -> bytes:
    """Converts a model to a float32 flatbuffer, or to a full-integer one.

    Args:
        model: A built tf_keras model with one output.
        representative: ``None`` for float32; else a function that gives calibration samples, each
            a list of the inputs in the model's order, shape ``(1, …)``, for full-integer INT8.
        io: Type of the inputs and outputs of a full-integer file. Inputs that are integers in the
            model stay what they are.
        input_shapes: Shapes of the inputs without the batch, where the model leaves some open.

    Returns:
        The bytes of the ``.tflite`` file. Its batch dimension is open, and its signature carries
        the names of the model's inputs.

    Raises:
        OptkitError: If TensorFlow cannot convert it.
    """
    tf = tensorflow()
    function = inference_function(model, batch=None, shapes=input_shapes)
    with warnings.catch_warnings(), _without(_DEPRECATED_PATH):
        # Says that no statistics were given by hand; they come from the representative samples.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()]
        )
        if representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            inputs = signature(model).inputs
            if io == "int8":
                converter.inference_output_type = tf.int8
                if all(info.dtype.startswith("float") for info in inputs):
                    converter.inference_input_type = tf.int8
        try:
            content = converter.convert()
        except OptkitError:
            raise
        except Exception as error:
            kind = "float32" if representative is None else "full-integer"
            first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            raise OptkitError(
                f"TensorFlow's converter cannot make a {kind} file of this model. Its first words: "
                f"{first[:300]}"
            ) from error
    return _with_signature(content, signature(model))


@contextlib.contextmanager
def _without(words: str) -> Iterator[None]:
    """Keeps one known message of TensorFlow's out of the log."""

    def unknown(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(unknown)
    try:
        yield
    finally:
        logger.removeFilter(unknown)


def _with_signature(content: bytes, names: Signature) -> bytes:
    """Adds a signature, so that inputs and outputs carry the model's own names."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]

    def mapping(name: str, index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, int(index)
        return entry

    by_tensor_name = {graph.tensors[i].name.decode().partition(":")[0]: i for i in graph.inputs}
    # Where TensorFlow altered a name, the inputs are taken in the order of the model.
    named = all(info.name in by_tensor_name for info in names.inputs)
    indices = [by_tensor_name[info.name] for info in names.inputs] if named else graph.inputs
    entry = schema.SignatureDefT()
    entry.signatureKey, entry.subgraphIndex = _SIGNATURE_KEY, 0
    entry.inputs = [
        mapping(info.name, index) for info, index in zip(names.inputs, indices, strict=True)
    ]
    entry.outputs = [
        mapping(info.name, index) for info, index in zip(names.outputs, graph.outputs, strict=True)
    ]
    model.signatureDefs = [entry]
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
