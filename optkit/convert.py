"""From a Keras model to a TFLite flatbuffer, by way of one frozen function.

Tracing one function and freezing its variables skips the SavedModel that the stock converter
writes, which traces every layer on its own; the flatbuffer is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from optkit.artifact.keras import inference_function
from optkit.models import signature
from optkit.runtime import tensorflow

__all__ = ["convert_to_tflite"]


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
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    tf = tensorflow()
    function = inference_function(model, batch=None, shapes=input_shapes)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    # A frozen function tracks nothing; the empty module makes the converter write a signature.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    if representative is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        float_inputs = all(info.dtype.startswith("float") for info in signature(model).inputs)
        if io == "int8":
            converter.inference_output_type = tf.int8
            if float_inputs:
                converter.inference_input_type = tf.int8
    with warnings.catch_warnings():
        # Says that no statistics were given by hand; they come from the representative samples.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        return bytes(converter.convert())
