"""(c) What optkit's pipeline costs over a hand-written script that does the same work.

The quick start's first pipeline (augmentation and label smoothing, fine-tuning, weight averaging
with batch-norm re-estimation, pruning, INT8) runs in turns with `hand_written`, which does the same
training and conversion with TensorFlow, tf_keras and tfmot alone. Both start from the same trained
model, train as many epochs on as many steps, and end with the bytes of a full-integer file.

optkit also measures every stage, which the script does not; that is counted apart, in two ways:

- *passes*: the sum of ``row.seconds`` of the report;
- *run*: the wall time of ``Pipeline.run`` but for the time spent measuring. When that began and
  ended is known from the progress events: from ``finished`` to ``measured`` of every pass. What
  lies before the first ``started`` is the checks and the copy of the model, which are counted (they
  are run and timed by themselves, too), and the measuring of the baseline, which is not. What lies
behind the last ``measured`` is counted, but for ending the measuring process.

Run it with ``python -m benchmarks.overhead``.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from benchmarks import common

LIMIT_RATIO = 1.05

# The quick start's settings, said once more: the script below must not read them from optkit.
BATCH = 32
CLASSES = 10
FINE_TUNE_EPOCHS = 12
SWA_EPOCHS = 6
PRUNE_EPOCHS = 4
CALIBRATION_SAMPLES = 200
STAGES = ("FineTune", "SWA", "Prune", "QuantizeINT8")


def hand_written(
    trained: Any, train: Any, validation: Any, *, epochs: dict[str, int], seed: int = 0
) -> tuple[bytes, dict[str, float]]:
    """The quick start's compression as a script: nothing of optkit in it.

    Args:
        trained: The model to start from; it is left as it is.
        train: Images and class numbers to train on.
        validation: Images and class numbers for early stopping.
        epochs: Receives the epochs trained, by stage.
        seed: Seed of everything random.

    Returns:
        The bytes of the full-integer file, and the seconds of each stage.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    keras.utils.set_random_seed(seed)
    x_train, y_train = train
    steps = -(-len(x_train) // BATCH)
    seconds: dict[str, float] = {}

    def augment(images: Any, labels: Any) -> Any:
        count, side = tf.shape(images)[0], 8.0

        def draw(limit: float, shape: Sequence[int] = ()) -> Any:
            return tf.random.uniform([count, *shape], -limit, limit)

        angle, scale = draw(10 * np.pi / 180), 1.0 + draw(0.1)
        cosine, sine = tf.cos(angle) * scale, tf.sin(angle) * scale
        centre = (side - 1) / 2
        offset_x = centre + draw(0.1) * side - (cosine - sine) * centre
        offset_y = centre + draw(0.1) * side - (sine + cosine) * centre
        zero = tf.zeros_like(angle)
        images = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.stack([cosine, -sine, offset_x, sine, cosine, offset_y, zero, zero], 1),
            output_shape=tf.shape(images)[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )
        mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
        images = mean + (images - mean) * (1.0 + draw(0.1, (1, 1, 1))) + draw(0.1, (1, 1, 1))
        return tf.ensure_shape(tf.clip_by_value(images, 0.0, 1.0), (None, 8, 8, 1)), labels

    one_hot = keras.utils.to_categorical(y_train, CLASSES)
    raw = tf.data.Dataset.from_tensor_slices((x_train, one_hot)).shuffle(len(x_train)).batch(BATCH)
    # Repeated, as starting the stream anew for every epoch takes longer than reading it.
    batches = (
        raw.repeat().map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    )
    x_validation, y_validation = validation
    held_out = tf.data.Dataset.from_tensor_slices(
        (x_validation, keras.utils.to_categorical(y_validation, CLASSES))
    ).batch(BATCH)

    def reestimate(model: Any) -> None:
        # Batch normalization forgets at once, so that after each batch it holds that batch's moments.
        norms = [
            layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
        ]
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = 0.0
        moments = [np.zeros((2, layer.moving_mean.shape[0])) for layer in norms]
        forward = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
        for images, _ in raw:
            forward(images)
            for total, layer in zip(moments, norms, strict=True):
                total += (layer.moving_mean.numpy(), layer.moving_variance.numpy())
        for total, layer, momentum in zip(moments, norms, momenta, strict=True):
            layer.moving_mean.assign(total[0] / steps)
            layer.moving_variance.assign(total[1] / steps)
            layer.momentum = momentum

    def compiled(model: Any, optimizer: Any) -> Any:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
        model.compile(optimizer, loss, metrics=["accuracy"])
        return model

    # Fine-tuning, with the best weights kept; patience is as long as the training (see `main`).
    began = time.perf_counter()
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    adamw = keras.optimizers.AdamW(1e-3)
    adamw.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    stopping = keras.callbacks.EarlyStopping(
        "val_accuracy", patience=FINE_TUNE_EPOCHS, mode="max", restore_best_weights=True
    )
    history = compiled(model, adamw).fit(
        batches,
        epochs=FINE_TUNE_EPOCHS,
        steps_per_epoch=steps,
        validation_data=held_out,
        verbose=0,
        callbacks=[stopping],
    )
    model.set_weights(stopping.best_weights)  # Keras restores them only where it stopped early
    epochs["FineTune"] = len(history.epoch)
    seconds["FineTune"] = time.perf_counter() - began

    # Stochastic weight averaging over all epochs but the first.
    began = time.perf_counter()
    sums: list[np.ndarray] = []

    def average(epoch: int, _: Any) -> None:
        if epoch == 1:
            sums.extend(weight.astype("float64") for weight in model.get_weights())
        elif epoch > 1:
            for total, weight in zip(sums, model.get_weights(), strict=True):
                total += weight

    history = compiled(model, keras.optimizers.Adam(5e-4)).fit(
        batches,
        epochs=SWA_EPOCHS,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=average)],
    )
    epochs["SWA"] = len(history.epoch)
    model.set_weights([total / (SWA_EPOCHS - 1) for total in sums])
    reestimate(model)
    seconds["SWA"] = time.perf_counter() - began

    # Magnitude pruning of the layers with kernels, as tfmot's guide has it.
    began = time.perf_counter()
    last = PRUNE_EPOCHS * steps * 2 // 3
    every = -(-last // 50)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        0.0, 0.5, begin_step=every, end_step=last - last % every, frequency=every
    )

    def prunable(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)
        return layer

    wrapped = keras.models.clone_model(model, clone_function=prunable)
    history = compiled(wrapped, keras.optimizers.Adam(5e-4)).fit(
        batches,
        epochs=PRUNE_EPOCHS,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    epochs["Prune"] = len(history.epoch)
    model = tfmot.sparsity.keras.strip_pruning(wrapped)
    reestimate(model)
    seconds["Prune"] = time.perf_counter() - began

    # Full-integer quantization by way of a frozen function, the quick way: see `conversion`.
    began = time.perf_counter()

    def samples() -> Any:
        for row in np.random.default_rng(seed).choice(len(x_train), CALIBRATION_SAMPLES, False):
            yield [x_train[row : row + 1]]

    function = tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec((None, 8, 8, 1), tf.float32, name="image")],
    )
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    content = converter.convert()
    seconds["QuantizeINT8"] = time.perf_counter() - began
    return content, seconds


class OptkitRuns:
    """Runs optkit's pipeline and takes the time with measuring counted apart.

    Args:
        trained: The model to start from.
        data: The splits.
    """

    def __init__(self, trained: Any, data: Any):
        import optkit as ok
        from optkit.quickstart import compress_pipeline

        # Patience as long as the training: both sides then train the same number of epochs.
        passes = [
            ok.FineTune.from_config(item.get_config() | {"patience": FINE_TUNE_EPOCHS})
            if isinstance(item, ok.FineTune)
            else item
            for item in compress_pipeline()
        ]
        self.pipeline = ok.Pipeline(passes)
        self.trained, self.data = trained, data
        self.epochs: dict[str, int] = {}
        self.content = b""
        #: By repetition: seconds that count, in the two ways, and of each stage.
        self.runs: list[dict[str, Any]] = []

    def run(self) -> float:
        """One run; returns the seconds of the passes."""
        from optkit.measuring.latency import LatencyProcess
        from optkit.models import clone

        events: list[tuple[float, Any]] = []
        closing: list[float] = []
        close = LatencyProcess.close

        def timed_close(process: LatencyProcess) -> None:
            closing.append(common.seconds_of(lambda: close(process)))

        gc.collect()
        with mock.patch.object(LatencyProcess, "close", timed_close):
            began = time.perf_counter()
            result = self.pipeline.run(
                self.trained,
                self.data,
                progress=lambda event: events.append((time.perf_counter(), event)),
            )
            ended = time.perf_counter()

        at = {(event.kind, event.step): when for when, event in events}
        first = min(when for when, event in events if event.kind == "started")
        measuring = sum(
            when - at["finished", step]
            for (kind, step), when in at.items()
            if kind == "measured" and step > 0
        ) + sum(closing)
        # Before the first pass the checks and the copy alternate with the baseline's measuring,
        # and no event tells them apart, so they are run once more.
        gc.collect()
        checks = common.seconds_of(
            lambda: (self.pipeline.check(self.trained, self.data), clone(self.trained))
        )
        report = result.report
        stages = {row.name: row.seconds for row in report.rows}
        self.runs.append(
            {
                "passes": sum(stages.values()),
                "run": ended - first - measuring + checks,
                "checks": checks,
                "measuring": measuring + (first - began) - checks,
                "closing": sum(closing),
                "stages": stages,
            }
        )
        self.epochs = {event.name: event.epoch for _, event in events if event.kind == "epoch"}
        self.content = result.artifact.content
        return float(self.runs[-1]["passes"])


class HandWrittenRuns:
    """Runs the script.

    Args:
        trained: The model to start from.
        data: The splits.
    """

    def __init__(self, trained: Any, data: Any):
        self.trained, self.data = trained, data
        self.epochs: dict[str, int] = {}
        self.content = b""
        self.runs: list[dict[str, float]] = []

    def run(self) -> float:
        """One run; returns its seconds."""
        gc.collect()
        began = time.perf_counter()
        self.content, stages = hand_written(
            self.trained, self.data.train, self.data.validation, epochs=self.epochs
        )
        seconds = time.perf_counter() - began
        self.runs.append(stages)
        return seconds


def _trained_model(data: Any) -> Any:
    """The quick start's baseline, on which both sides work."""
    import tf_keras as keras

    from optkit.quickstart import build_model

    keras.utils.set_random_seed(0)
    model = build_model()
    model.fit(*data.train, batch_size=BATCH, epochs=12, verbose=0)
    return model


def _accuracy(content: bytes, data: Any) -> float:
    import numpy as np

    import optkit as ok

    x, y = data.test
    return float(np.mean(ok.TFLiteArtifact(content).predict(x).argmax(-1) == y))


def _by_stage(optkit: OptkitRuns, script: HandWrittenRuns, counted: int) -> list[dict[str, Any]]:
    rows = []
    for stage in STAGES:
        turns = common.Turns(
            tuple(run["stages"][stage] for run in optkit.runs[-counted:]),
            tuple(run[stage] for run in script.runs[-counted:]),
        )
        rows.append({"stage": stage} | turns.to_dict())
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of runs")
    options = parser.parse_args(arguments)
    pairs = 1 if options.quick else options.pairs
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from optkit.testing import digits

    data = digits()
    trained = _trained_model(data)
    optkit, script = OptkitRuns(trained, data), HandWrittenRuns(trained, data)
    passes = common.in_turns(
        optkit.run, script.run, pairs, warm_up=0 if options.quick else 1, label="overhead"
    )
    if optkit.epochs != script.epochs:
        raise RuntimeError(
            f"The two did not train alike: epochs {optkit.epochs} and {script.epochs}."
        )
    run = common.Turns(tuple(run["run"] for run in optkit.runs[-pairs:]), passes.second)
    stages = _by_stage(optkit, script, pairs)
    accuracies = _accuracy(optkit.content, data), _accuracy(script.content, data)

    outcome = common.Outcome("overhead")
    outcome.figures = {
        "epochs": optkit.epochs,
        "passes": passes.to_dict(),
        "run": run.to_dict(),
        "stages": stages,
        "checks_seconds": [run["checks"] for run in optkit.runs[-pairs:]],
        "measuring_seconds": [run["measuring"] for run in optkit.runs[-pairs:]],
        "closing_seconds": [run["closing"] for run in optkit.runs[-pairs:]],
        "test_accuracy": dict(zip(("optkit", "hand-written"), accuracies, strict=True)),
        "file_bytes": {"optkit": len(optkit.content), "hand-written": len(script.content)},
    }
    rows = [
        (
            name,
            f"{common.median(item['first_seconds']):.2f} s",
            f"{common.median(item['second_seconds']):.2f} s",
            common.shown(item["ratio"], tuple(item["ratio_ci"])),
        )
        for name, item in [
            *((item["stage"], item) for item in stages),
            ("passes", passes.to_dict()),
            ("run, less measuring", run.to_dict()),
        ]
    ]
    print(f"\n{common.table(('', 'optkit', 'hand-written', 'ratio'), rows)}")
    measuring = common.median(outcome.figures["measuring_seconds"])
    closing = common.median(outcome.figures["closing_seconds"])
    print(
        f"Measuring, counted apart: {measuring:.1f} s, of which {closing:.1f} s to end its process. "
        f"Epochs of both: {optkit.epochs}. "
        f"INT8 accuracy on test: {accuracies[0]:.4f} (optkit), {accuracies[1]:.4f} (hand-written)."
    )
    for name, turns in (("passes", passes), ("run, less measuring", run)):
        outcome.hold(
            f"{name}: interval of optkit / hand-written reaches {LIMIT_RATIO} or below",
            f"{common.shown(turns.ratio, turns.ratio_ci)} ({pairs} pairs)",
            turns.ratio_ci[0] <= LIMIT_RATIO,
        )
    return common.finish(outcome, options)


if __name__ == "__main__":
    sys.exit(main())
