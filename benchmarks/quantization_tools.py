"""The ways of quantizing that `benchmarks.quantization` compares, each in a process of its own.

``python -m benchmarks.quantization_tools make SUBJECT TOOL FILE`` quantizes the cached model of a
subject and writes the file; ``… score SUBJECT FILE OUT`` runs a file through LiteRT on the test
samples. Both write what they found as JSON beside it. They may crash; who starts them says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common, models
from optkit.errors import first_line

QAT_EPOCHS = 1
QAT_LEARNING_RATE = 1e-4
_SCORING_BATCH = 50
_LATENCY_SECONDS, _LATENCY_RUNS = 2.0, 200


class MissingError(Exception):
    """The tool is not there."""


@dataclass(frozen=True)
class Job:
    """What a tool is given: a trained model, its data, and the samples that all calibrate on."""

    model: Any
    splits: models.Splits

    def representative(self) -> Iterator[list[Any]]:
        """The calibration samples one by one, as TensorFlow's converter wants them."""
        samples = self.splits.calibration()
        for place in range(len(samples)):
            yield [samples[place : place + 1]]


# ------------------------------------------------------------------------------ without quantizing


def float32(job: Job) -> bytes:
    """The float32 file that all are held against."""
    from optkit.convert import convert_to_tflite

    return convert_to_tflite(job.model)


# -------------------------------------------------------------------------------- stock converter


def _integers(converter: Any, job: Job, *, calibrate: bool = True) -> bytes:
    """Full integers, as TensorFlow's guide to post-training quantization has it."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibrate:
        converter.representative_dataset = job.representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if job.model.inputs[0].dtype == tf.float32:
        converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def stock(job: Job) -> bytes:
    """`TFLiteConverter.from_keras_model` with a representative data set."""
    import tensorflow as tf

    return _integers(tf.lite.TFLiteConverter.from_keras_model(job.model), job)


def stock_one_sample(job: Job) -> bytes:
    """The way that TensorFlow shows for recurrent layers: a function of one sample."""
    return _integers(_one_sample(job.model), job)


def stock_unrolled(job: Job) -> bytes:
    """Of a twin with its recurrent layers unrolled."""
    import tensorflow as tf

    return _integers(tf.lite.TFLiteConverter.from_keras_model(_unrolled(job.model)), job)


def _one_sample(model: Any) -> Any:
    import tensorflow as tf

    shape = (1, *model.input_shape[1:])
    function = tf.function(model).get_concrete_function(
        tf.TensorSpec(shape, model.inputs[0].dtype, name="words")
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([function], model)


def _unrolled(model: Any) -> Any:
    import tf_keras as keras

    def fresh(layer: Any) -> Any:
        config = layer.get_config()
        if "unroll" in config:
            config["unroll"] = True
        return type(layer).from_config(config)

    twin = keras.models.clone_model(model, clone_function=fresh)
    twin.set_weights(model.get_weights())
    return twin


# ------------------------------------------------------------------------------ ai-edge-quantizer


def _by_ai_edge_quantizer(content: bytes, job: Job) -> bytes:
    """Static 8 bits with everything that is not asked for left as it comes."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    key, signature = next(iter(Interpreter(model_content=content).get_signature_list().items()))
    name = signature["inputs"][0]
    tool = quantizer.Quantizer(content, recipe.static_wi8_ai8())
    ranges = tool.calibrate({key: [{name: sample} for (sample,) in job.representative()]})
    made = tool.quantize(ranges).quantized_model
    if made is None:
        raise RuntimeError("It gave no model.")
    return bytes(made)


def ai_edge_quantizer(job: Job) -> bytes:
    """Of the float file that the stock converter makes."""
    import tensorflow as tf

    content = tf.lite.TFLiteConverter.from_keras_model(job.model).convert()
    return _by_ai_edge_quantizer(bytes(content), job)


def ai_edge_quantizer_one_sample(job: Job) -> bytes:
    """Of a float file of one sample, for recurrent layers."""
    return _by_ai_edge_quantizer(bytes(_one_sample(job.model).convert()), job)


def ai_edge_quantizer_unrolled(job: Job) -> bytes:
    """Of the float file of a twin with its recurrent layers unrolled."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(_unrolled(job.model))
    return _by_ai_edge_quantizer(bytes(converter.convert()), job)


# -------------------------------------------------------------------------------------- tfmot QAT


def tfmot_qat(job: Job) -> bytes:
    """`quantize_model` on the whole model, an epoch of training, the stock converter."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = tfmot.quantization.keras.quantize_model(job.model)
    model.compile(keras.optimizers.Adam(QAT_LEARNING_RATE), "sparse_categorical_crossentropy")
    model.fit(*job.splits.train, batch_size=32, epochs=QAT_EPOCHS, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    return _integers(converter, job, calibrate=False)


# ----------------------------------------------------------------------------------------- optkit


def _by_optkit(*makers: Callable[[Any], Any]) -> Callable[[Job], bytes]:
    """A pipeline of passes, as a user writes it; a pass is made from the package."""

    def run(job: Job) -> bytes:
        import optkit as ok

        try:
            passes = [make(ok) for make in makers]
        except (AttributeError, TypeError) as error:
            raise MissingError(f"not there: {first_line(error)}") from error
        splits = job.splits
        data = ok.Data(
            train=splits.train,
            validation=splits.validation,
            test=splits.test,
            calibration=splits.calibration(),
        )
        measure = ok.Measure(latency_seconds=0, memory=False)
        result = ok.Pipeline(passes).run(job.model, data, progress=False, measure=measure)
        for row in result.report.rows:
            for note in row.notes:
                print(f"{row.name}: {note}", file=sys.stderr)
        artifact: Any = result.artifact
        return bytes(artifact.content)

    return run


def _aware(ok: Any) -> Any:
    return ok.QuantizeAware(epochs=QAT_EPOCHS, learning_rate=QAT_LEARNING_RATE)


#: By name: a function from a job to the bytes of a file.
TOOLS: dict[str, Callable[[Job], bytes]] = {
    "float32": float32,
    "stock": stock,
    "stock, one sample": stock_one_sample,
    "stock, unrolled": stock_unrolled,
    "ai-edge-quantizer": ai_edge_quantizer,
    "ai-edge-quantizer, one sample": ai_edge_quantizer_one_sample,
    "ai-edge-quantizer, unrolled": ai_edge_quantizer_unrolled,
    "tfmot": tfmot_qat,
    "QuantizeINT8": _by_optkit(lambda ok: ok.QuantizeINT8()),
    "QuantizeINT8 auto": _by_optkit(lambda ok: ok.QuantizeINT8(keep_float="auto", max_drop=0.005)),
    "QuantizeAware": _by_optkit(_aware, lambda ok: ok.QuantizeINT8()),
    "QuantizeFloat16": _by_optkit(lambda ok: ok.QuantizeFloat16()),
    "QuantizeDynamic": _by_optkit(lambda ok: ok.QuantizeDynamic()),
    "QuantizeDynamic 4": _by_optkit(lambda ok: ok.QuantizeDynamic(bits=4)),
    "QuantizeINT16x8": _by_optkit(lambda ok: ok.QuantizeINT16x8()),
    "QuantizeWeights 8": _by_optkit(lambda ok: ok.QuantizeWeights(bits=8)),
    "QuantizeWeights 4": _by_optkit(lambda ok: ok.QuantizeWeights(bits=4)),
}


# ---------------------------------------------------------------------------------------- scoring


def run_file(content: bytes, x: Any) -> Any:
    """Outputs of a file on the scale of the model, by a bare LiteRT interpreter.

    The same for all tools: it quantizes the input and dequantizes the output by what the file says,
    and knows nothing of how the file was made.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    (given,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
    batch = _SCORING_BATCH if given["shape_signature"][0] == -1 else 1
    stored, outputs, shape = _stored(x, given), [], None
    for start in range(0, len(x), batch):
        part = stored[start : start + batch]
        if part.shape != shape:
            interpreter.resize_tensor_input(given["index"], part.shape)
            interpreter.allocate_tensors()
            shape = part.shape
        interpreter.reset_all_variables()  # the states of fused recurrent layers
        interpreter.set_tensor(given["index"], part)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(gives["index"]))
    values = np.concatenate(outputs).astype(np.float32)
    scale, zero = gives["quantization"]
    return (values - zero) * scale if scale else values


def _stored(x: Any, details: dict[str, Any]) -> Any:
    import numpy as np

    scale, zero = details["quantization"]
    if not scale:
        return x.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def latency(content: bytes, sample: Any) -> float:
    """Milliseconds of one sample on one thread: the median of some runs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], sample.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], _stored(sample, given))
    interpreter.invoke()
    times: list[float] = []
    end = time.perf_counter() + _LATENCY_SECONDS
    while len(times) < 5 or (len(times) < _LATENCY_RUNS and time.perf_counter() < end):
        times.append(common.seconds_of(interpreter.invoke))
    return 1000 * common.median(times)


# ---------------------------------------------------------------------------------- the processes


def _make(name: str, tool: str, path: Path, cache: Path) -> dict[str, Any]:
    subject = models.subject(name)
    job = Job(subject.model(cache), subject.load())
    began = time.perf_counter()
    try:
        content = TOOLS[tool](job)
    except MissingError as error:
        return {"status": "missing", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"status": "fails", "reason": first_line(error)}
    seconds = time.perf_counter() - began
    path.write_bytes(content)
    return {
        "status": "ok",
        "seconds": seconds,
        "size_bytes": len(content),
        "parameters": int(job.model.count_params()),
    }


def _score(name: str, path: Path, out: Path) -> dict[str, Any]:
    import numpy as np

    x, y = models.subject(name).load().test
    content = path.read_bytes()
    try:
        outputs = run_file(content, x)
        milliseconds = latency(content, x[:1])
    except (RuntimeError, ValueError) as error:
        return {"status": "fails in LiteRT", "reason": first_line(error)}
    right = outputs.argmax(-1) == y
    np.save(out, right)
    return {"status": "ok", "accuracy": float(right.mean()), "latency_ms": milliseconds}


def main() -> int:
    """Does one piece of work and writes what came of it; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("work", choices=("make", "score"))
    parser.add_argument("subject", choices=[one.name for one in models.SUBJECTS])
    parser.add_argument("--tool", choices=list(TOOLS))
    parser.add_argument("--file", type=Path, required=True, help="the .tflite file")
    parser.add_argument("--out", type=Path, required=True, help="where the findings go, as JSON")
    parser.add_argument("--cache", type=Path, default=models.default_cache())
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.work == "make":
        if options.tool == "tfmot":
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
        found = _make(options.subject, options.tool, options.file, options.cache)
    else:
        found = _score(options.subject, options.file, options.out.with_suffix(".npy"))
    options.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
