"""(d) Peak memory of evaluating and calibrating from a stream, by the number of samples.

Images are made on the fly by a ``tf.data`` pipeline and never exist all at once. Each figure is the
peak of a fresh process (``ru_maxrss``):

- *evaluate keras*, *evaluate tflite*: `optkit.measuring.accuracy.score` of a model, of its file;
- *calibrate*: a whole `Pipeline` with `QuantizeINT8`, whose train, calibration and test splits are
  streams, and which calibrates on all samples.

The same content as arrays is measured for contrast: what there is to hold in memory.

Run it with ``python -m benchmarks.memory``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import common

LIMIT_SHARE = 0.05
LIMIT_MIB = 20.0
SIDE = 64
CLASSES = 10
BATCH = 32
TASKS = ("evaluate keras", "evaluate tflite", "calibrate")
_BYTES_PER_SAMPLE = SIDE * SIDE * 3 * 4
_MIB = 2**20


def _model() -> Any:
    import tf_keras as keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3), name="image"),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def _stream(samples: int) -> Any:
    """Random images by their number, in batches."""
    import tensorflow as tf

    def sample(number: Any) -> Any:
        seed = tf.stack([number, tf.constant(7, tf.int64)])
        return tf.random.stateless_uniform((SIDE, SIDE, 3), seed), number % CLASSES

    return tf.data.Dataset.range(samples).map(sample).batch(BATCH)


def _arrays(samples: int) -> Any:
    """What the stream gives, all of it in memory."""
    import numpy as np

    x = np.empty((samples, SIDE, SIDE, 3), "float32")
    y = np.empty(samples, "int64")
    for i, (images, classes) in enumerate(_stream(samples).as_numpy_iterator()):
        x[i * BATCH : i * BATCH + len(classes)] = images
        y[i * BATCH : i * BATCH + len(classes)] = classes
    return x, y


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _work(task: str, source: str, samples: int) -> None:
    import optkit as ok

    model = _model()
    split = _stream(samples) if source == "stream" else _arrays(samples)
    if task == "calibrate":
        data = ok.Data(train=split, calibration=split, test=split, batch_size=BATCH)
        ok.Pipeline([ok.QuantizeINT8(calibration_samples=samples)]).run(model, data, progress=False)
        return

    from optkit.convert import convert_to_tflite
    from optkit.measuring.accuracy import score
    from optkit.metric import infer_metric
    from optkit.models import signature
    from optkit.task import infer_task

    bound = ok.Data(test=split, batch_size=BATCH).bind(signature(model)).test
    task_of_model = infer_task(model, bound.head(BATCH)[1])
    metric = infer_metric(model, task_of_model)
    if task == "evaluate keras":
        artifact: ok.Artifact = ok.KerasArtifact(model)
    else:
        artifact = ok.TFLiteArtifact(convert_to_tflite(model))
    scores = score(artifact, bound, task_of_model, metric)
    if len(scores.values) != samples:
        raise RuntimeError(f"{len(scores.values)} of {samples} samples were scored.")


def _peak_of(task: str, source: str, samples: int) -> int:
    """Peak bytes of a fresh process that does one task."""
    finished = common.child(
        ["-m", "benchmarks.memory", "--work", json.dumps([task, source, samples])],
        stdout=subprocess.PIPE,
        cwd=common.ROOT,
    )
    return int(json.loads(finished.stdout.splitlines()[-1])["peak_bytes"])


def _slope(sizes: Sequence[int], peaks: Sequence[int]) -> float:
    """MiB a thousand samples, by least squares."""
    import numpy as np

    return float(np.polyfit(np.array(sizes) / 1000, np.array(peaks) / _MIB, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[1000, 4000, 16000], help="sizes of the stream"
    )
    parser.add_argument("--work", default=None, help="(what a fresh process is told to do)")
    options = parser.parse_args(arguments)
    if options.work is not None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        _work(*json.loads(options.work))
        print(json.dumps({"peak_bytes": _peak_bytes()}))
        return 0
    sizes = [600, 1200] if options.quick else sorted(options.samples)

    outcome = common.Outcome("memory")
    outcome.figures = {"samples": sizes, "bytes_per_sample": _BYTES_PER_SAMPLE, "peaks": {}}
    data_growth = (sizes[-1] - sizes[0]) * _BYTES_PER_SAMPLE / _MIB
    rows = []
    for task, source in itertools.product(TASKS, ("stream", "arrays")):
        peaks = [_peak_of(task, source, samples) for samples in sizes]
        growth, slope = (peaks[-1] - peaks[0]) / _MIB, _slope(sizes, peaks)
        outcome.figures["peaks"][f"{task}, {source}"] = {
            "peak_bytes": peaks,
            "growth_mib": growth,
            "mib_per_1000_samples": slope,
        }
        cells = [f"{peak / _MIB:.0f}" for peak in peaks]
        rows.append((task, source, *cells, f"{growth:+.1f}", f"{slope:+.2f}"))
        print(f"{task}, {source}: peaks {', '.join(cells)} MiB", flush=True)
        if source == "stream":
            outcome.hold(
                f"{task}: grows by less than {LIMIT_SHARE:.0%} of the data and {LIMIT_MIB:g} MiB",
                f"{growth:+.1f} MiB from {sizes[0]:,} to {sizes[-1]:,} samples, "
                f"data {data_growth:+.0f} MiB",
                growth < LIMIT_SHARE * data_growth and growth < LIMIT_MIB,
            )
    header = (
        "task",
        "source",
        *(f"{size:,}" for size in sizes),
        "growth",
        "a thousand samples",
    )
    print(f"\nPeak memory in MiB, by number of samples\n{common.table(header, rows)}")
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
