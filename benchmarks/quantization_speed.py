"""How fast quantizing is: calibrating, and trying every layer in float, against TensorFlow's ways.

MobileNetV2 at 224 (random weights with batch-norm statistics that fit them, random images).

- *Calibrate and quantize*: from the Keras model to the full-integer file with 200 samples, by optkit's
  engine and by `TFLiteConverter.from_keras_model`, in turns, each time from a fresh model.
- *Scan*: every layer by itself in float and the others quantized, with the error of the outputs, by
  optkit, by TensorFlow's `QuantizationDebugger`, and by converting anew for each layer. The scan of
  optkit is run whole. Of the others what comes once is timed, and some of the layers; the time of all
  layers is worked out from these.

Run it with ``python -m benchmarks.quantization_speed``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import common, conversion

LIMIT_CALIBRATE = 4.0
LIMIT_SCAN = 10.0
_SAMPLES = 200
_LAYERS_TIMED = 3

Samples = Callable[[], Iterator[list[Any]]]


def by_optkit(model: Any, samples: Samples) -> bytes:
    """From the Keras model to a full-integer file, by optkit's engine."""
    from optkit.quantize import calibrate, float_file, quantize

    file = float_file(model)
    return quantize(file, calibrate(file, samples))


# -------------------------------------------------------------------------------------------- scan


def scan_by_optkit(model: Any, samples: Samples, images: Any) -> dict[str, Any]:
    """All layers one at a time, everything from the Keras model on counted."""
    from optkit.metric import Metric
    from optkit.quantize import calibrate, float_file, quantize
    from optkit.quantize.judge import Judge
    from optkit.quantize.scan import scan
    from optkit.quantize.select import groups
    from optkit.quantize.sources import Taken

    began = time.perf_counter()
    file = float_file(model)
    ranges = calibrate(file, samples)
    # Without targets, errors alone are judged.
    judge = Judge(file, Taken(images, None, None, len(images)), Metric("accuracy", True, None))
    layers = groups(file)
    prepared = time.perf_counter() - began
    found = scan(lambda kept: quantize(file, ranges, keep_float=kept), judge, layers)
    if len(found) != len(layers):
        raise RuntimeError(f"{len(found)} of {len(layers)} layers were tried.")
    return {
        "layers": len(layers),
        "prepare_seconds": prepared,
        "seconds": time.perf_counter() - began,
    }


def scan_by_debugger(model: Any, samples: Samples, images: Any, layers: int) -> dict[str, Any]:
    """`QuantizationDebugger`: calibrated once; for each layer a model without it, run on all images.

    Args:
        model: A Keras model.
        samples: Calibration samples.
        images: Images to compare outputs on.
        layers: Number of layers of a whole scan.
    """
    import numpy as np
    import tensorflow as tf

    debugging = tf.lite.experimental
    metrics = {"error": lambda wanted, found: float(np.mean((wanted[0] - found[0]) ** 2))}
    began = time.perf_counter()
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    debugger = debugging.QuantizationDebugger(
        converter=converter,
        debug_dataset=lambda: ([images[i : i + 1]] for i in range(len(images))),
        debug_options=debugging.QuantizationDebugOptions(model_debug_metrics=metrics),
    )
    debugger.run()
    prepared = time.perf_counter() - began
    names = list(debugger.layer_statistics)
    each = []
    for name in names[:: max(1, len(names) // _LAYERS_TIMED)][:_LAYERS_TIMED]:
        began = time.perf_counter()
        debugger.options = debugging.QuantizationDebugOptions(
            denylisted_nodes=[name], model_debug_metrics=metrics
        )
        debugger.run()
        each.append(time.perf_counter() - began)
    return _extrapolated(prepared, each, layers)


def scan_by_converting(samples: Samples, images: Any, layers: int) -> dict[str, Any]:
    """The stock converter anew for each layer, and a run of each file on all images.

    How a layer would be left in float is not counted; the stock converter has no way to name one.
    """
    import tensorflow as tf

    each = []
    for _ in range(_LAYERS_TIMED - 1):
        model = conversion._model()
        began = time.perf_counter()
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        content = bytes(converter.convert())
        _run(content, images)
        each.append(time.perf_counter() - began)
    return _extrapolated(0.0, each, layers)


def _run(content: bytes, images: Any) -> Any:
    from benchmarks.quantization_tools import run_file

    return run_file(content, images)


def _extrapolated(prepared: float, each: Sequence[float], layers: int) -> dict[str, Any]:
    return {
        "layers": layers,
        "prepare_seconds": prepared,
        "layer_seconds": list(each),
        "seconds": prepared + layers * common.median(each),
        "extrapolated_from_layers": len(each),
    }


# -------------------------------------------------------------------------------------------- main


def _compare_calibrating(outcome: common.Outcome, samples: Any, pairs: int, warm_up: int) -> None:
    representative = conversion._representative(samples)
    optkit = conversion.Converted(lambda model, _: by_optkit(model, representative), samples)
    stock = conversion.Converted(conversion.by_tensorflow, samples)
    turns = common.in_turns(stock.run, optkit.run, pairs, warm_up=warm_up, label="calibrate")
    outcome.figures["calibrate"] = turns.to_dict() | {
        "samples": len(samples),
        "bytes": {"optkit": len(optkit.content), "stock": len(stock.content)},
    }
    what = f"calibrating {len(samples)} samples and quantizing"
    times = f"{common.median(turns.first):.1f} s", f"{common.median(turns.second):.1f} s"
    shown = common.shown(turns.ratio, turns.ratio_ci, 1)
    print(common.table(("", "stock", "optkit", "times faster"), [(what, *times, shown)]))
    outcome.hold(
        f"{what}: at least {LIMIT_CALIBRATE:g} times faster",
        f"{shown} times ({pairs} pairs)",
        turns.ratio >= LIMIT_CALIBRATE,
    )


def _compare_scans(outcome: common.Outcome, samples: Any, images: Any) -> None:
    representative = conversion._representative(samples)
    mine = scan_by_optkit(conversion._model(), representative, images)
    others = {
        "QuantizationDebugger": scan_by_debugger(
            conversion._model(), representative, images, mine["layers"]
        ),
        "converting anew": scan_by_converting(representative, images, mine["layers"]),
    }
    outcome.figures["scan"] = {"images": len(images), "optkit": mine, **others}
    rows = [("optkit", f"{mine['prepare_seconds']:.1f} s", f"{mine['seconds']:.0f} s", "")]
    for name, found in others.items():
        ratio = found["seconds"] / mine["seconds"]
        of = f"from {found['extrapolated_from_layers']} at {common.median(found['layer_seconds']):.1f} s"
        whole = f"{found['seconds']:.0f} s ({of})"
        rows.append((name, f"{found['prepare_seconds']:.1f} s", whole, f"{ratio:.1f}"))
        outcome.hold(
            f"scan of {mine['layers']} layers: at least {LIMIT_SCAN:g} times faster than {name}",
            f"{ratio:.1f} times (extrapolated)",
            ratio >= LIMIT_SCAN,
        )
    header = (f"{len(images)} images", "once", f"{mine['layers']} layers", "optkit faster, times")
    print(f"\n{common.table(header, rows)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of calibrations")
    parser.add_argument("--images", type=int, default=64, help="images that a scan compares on")
    parser.add_argument(
        "--only", choices=("calibrate", "scan"), default=None, help="one of the two alone"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    outcome = common.Outcome("quantization_speed")
    samples = conversion._samples(20 if options.quick else _SAMPLES, seed=1)
    if options.only != "scan":
        warm_up = 0 if options.quick else 1
        _compare_calibrating(outcome, samples, 1 if options.quick else options.pairs, warm_up)
    if options.only != "calibrate":
        images = conversion._samples(8 if options.quick else options.images, seed=2)
        _compare_scans(outcome, samples, images)
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
