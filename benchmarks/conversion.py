"""(b) Conversion to TFLite: optkit's frozen function against TensorFlow's stock converter.

tf_keras' MobileNetV2 at 224 (random weights, fixed seed) is converted to float32 and to full-integer
INT8, by `optkit.convert.convert_to_tflite` and by `tf.lite.TFLiteConverter.from_keras_model`, in
turns. Both get the same calibration samples. Every conversion gets a fresh model with the same
weights, so that none profits from what another one traced. That the two give the same model is
checked on the outputs of the files.

Run it with ``python -m benchmarks.conversion``.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import common

LIMIT_RATIO = 5.0
# Float files may differ by rounding, as a share of the spread of the outputs.
LIMIT_FLOAT_DIFFERENCE = 1e-3
# Full-integer files with equal ranges may differ by the last step of the output.
LIMIT_INT8_STEPS = 1.0
_CALIBRATION_SAMPLES = 10
_PROBES = 4


def _fresh() -> Any:
    import tf_keras as keras

    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(weights=None, classifier_activation=None)


@functools.cache
def _weights() -> Any:
    """Random weights, with batch-norm statistics that fit them.

    Without these the activations of an untrained network fade from layer to layer, and any two
    files would agree on outputs of all but zero. For the same reason the classifier gives logits.
    """
    import tf_keras as keras

    model = _fresh()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(_samples(8, seed=3), training=True)
    return model.get_weights()


def _model() -> Any:
    """MobileNetV2, freshly built; equal weights every time."""
    weights, model = _weights(), _fresh()
    model.set_weights(weights)
    return model


def _samples(count: int, seed: int) -> Any:
    import numpy as np

    values = np.random.default_rng(seed).uniform(-1, 1, (count, 224, 224, 3))
    return values.astype("float32")


def _representative(samples: Any) -> Callable[[], Iterator[list[Any]]]:
    return lambda: ([samples[i : i + 1]] for i in range(len(samples)))


def by_optkit(model: Any, samples: Any) -> bytes:
    """A float file, or a full-integer one where there are samples."""
    from optkit.convert import convert_to_tflite

    if samples is None:
        return convert_to_tflite(model)
    return convert_to_tflite(model, representative=_representative(samples), io="int8")


def by_tensorflow(model: Any, samples: Any) -> bytes:
    """The same, as TensorFlow's guide has it."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if samples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = _representative(samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


class Converted:
    """Runs one way of converting, and keeps its last file.

    Args:
        convert: The way.
        samples: Calibration samples; ``None`` for float.
    """

    def __init__(self, convert: Callable[[Any, Any], bytes], samples: Any):
        self._convert, self._samples = convert, samples
        self.content = b""

    def run(self) -> float:
        """One conversion; returns its seconds, building the model not counted."""
        model = _model()

        def convert() -> None:
            self.content = self._convert(model, self._samples)

        return common.seconds_of(convert)


def compare(one: bytes, other: bytes, probes: Any) -> dict[str, float]:
    """How far the outputs of two files lie apart, through LiteRT."""
    import numpy as np

    import optkit as ok

    first, second = ok.TFLiteArtifact(one), ok.TFLiteArtifact(other)
    outputs = first.predict(probes, batch_size=1), second.predict(probes, batch_size=1)
    scales = [artifact.outputs[0].scale for artifact in (first, second)]
    return {
        "max_difference": float(np.abs(outputs[0] - outputs[1]).max()),
        "spread": float(outputs[1].std()),
        "output_step": max(scales),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of conversions of each kind")
    options = parser.parse_args(arguments)
    pairs = 1 if options.quick else options.pairs
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    outcome = common.Outcome("conversion")
    calibration, probes = _samples(_CALIBRATION_SAMPLES, seed=1), _samples(_PROBES, seed=2)
    rows = []
    for kind, samples in (("float32", None), ("INT8", calibration)):
        optkit, stock = Converted(by_optkit, samples), Converted(by_tensorflow, samples)
        # Stock first: the ratio is how many times faster optkit is.
        turns = common.in_turns(
            stock.run, optkit.run, pairs, warm_up=0 if options.quick else 1, label=kind
        )
        apart = compare(optkit.content, stock.content, probes)
        sizes = {"optkit": len(optkit.content), "stock": len(stock.content)}
        outcome.figures[kind] = turns.to_dict() | {"bytes": sizes, "outputs": apart}
        rows.append(
            (
                kind,
                f"{common.median(turns.first):.2f} s",
                f"{common.median(turns.second):.2f} s",
                common.shown(turns.ratio, turns.ratio_ci, 1),
                f"{sizes['stock']:,} / {sizes['optkit']:,}",
                f"{apart['max_difference']:.2g} of spread {apart['spread']:.2g}",
            )
        )
        outcome.hold(
            f"{kind}: at least {LIMIT_RATIO:g} times faster",
            f"{common.shown(turns.ratio, turns.ratio_ci, 1)} times ({pairs} pairs)",
            turns.ratio >= LIMIT_RATIO,
        )
        limit = (
            LIMIT_FLOAT_DIFFERENCE * apart["spread"]
            if samples is None
            else (LIMIT_INT8_STEPS + 0.01) * apart["output_step"]
        )
        outcome.hold(
            f"{kind}: outputs within {limit:.2g} of the stock file's",
            f"largest difference {apart['max_difference']:.2g}, spread {apart['spread']:.2g}",
            apart["max_difference"] <= limit and apart["spread"] > limit,
        )
    header = ("", "stock", "optkit", "times faster", "bytes stock / optkit", "largest difference")
    print(f"\n{common.table(header, rows)}")
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
