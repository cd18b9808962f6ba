"""The quick start: a real model, trained on real data, goes through whole pipelines.

Run it with ``python -m optkit``. It needs no network and takes a minute or two on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit.data import Data
    from optkit.pipeline import Pipeline
    from optkit.result import Result

__all__ = ["build_model", "compress_pipeline", "main", "transfer_data", "transfer_pipeline"]

_TRANSFER_SAMPLES = 50
_TRANSFER_BATCH = 10


def build_model(classes: int = 10, *, name: str = "digits_cnn") -> Any:
    """A small convolutional network for images of shape ``(8, 8, 1)``, compiled."""
    import tf_keras as keras

    layers = keras.layers

    def block(filters: int, number: int) -> list[Any]:
        return [
            layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv{number}"),
            layers.BatchNormalization(name=f"{name}_norm{number}"),
            layers.ReLU(name=f"{name}_relu{number}"),
        ]

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            *block(32, 1),
            *block(64, 2),
            layers.MaxPooling2D(name=f"{name}_pool"),
            *block(64, 3),
            layers.Flatten(name=f"{name}_flatten"),
            layers.Dense(64, activation="relu", name=f"{name}_dense"),
            layers.Dense(classes, activation="softmax", name=f"{name}_classes"),
        ],
        name=name,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def compress_pipeline() -> Pipeline:
    """Trained better, then made small: everything but transfer."""
    import optkit as ok

    return ok.Pipeline(
        [
            ok.Augment(),
            ok.LabelSmooth(0.1),
            ok.FineTune(epochs=12, learning_rate=1e-3, patience=4),
            ok.SWA(epochs=6, learning_rate=5e-4),
            ok.Prune(0.5, epochs=4, learning_rate=5e-4),
            ok.QuantizeINT8(),
        ],
        goals=ok.Goals(max_accuracy_drop=0.01, max_size_mb=0.2, min_speedup=2),
    )


def transfer_data(data: Data, classes: Sequence[int], train_samples: int | None = None) -> Data:
    """The digits of some classes, numbered from 0, with fewer training samples if asked."""
    import numpy as np

    import optkit as ok

    def chosen(split: tuple[Any, Any], limit: int | None = None) -> tuple[Any, Any]:
        x, y = split
        rows = np.flatnonzero(np.isin(y, classes))[:limit]
        return x[rows], y[rows] - min(classes)

    return ok.Data(
        train=chosen(data.train, train_samples),
        validation=chosen(data.validation),
        test=chosen(data.test),
        class_names=[str(number) for number in classes],
        batch_size=32 if train_samples is None else _TRANSFER_BATCH,
    )


def transfer_pipeline(backbone: Any) -> Pipeline:
    """What was learned from many samples of other classes, put to use on a few."""
    import optkit as ok

    return ok.Pipeline(
        [
            ok.TransferLearn(
                backbone,
                epochs=20,
                fine_tune_epochs=20,
                learning_rate=3e-3,
                fine_tune_learning_rate=3e-4,
                patience=8,
            ),
            ok.QuantizeINT8(),
        ]
    )


def _trained(model: Any, data: Data, epochs: int) -> Any:
    x, y = data.train
    model.fit(x, y, batch_size=data.batch_size, epochs=epochs, verbose=0)
    return model


def _say(text: str) -> None:
    print(text, flush=True)


def _run(title: str, pipeline: Pipeline, model: Any, data: Data, **settings: Any) -> Result:
    _say(f"\n{title}\n{pipeline}\n")
    result = pipeline.run(model, data, progress=True, **settings)
    _say(f"\n{result.report}")
    return result.require_goals()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TensorFlow's C++ parts say while they load from the screen."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _show(folder: Path) -> None:
    import numpy as np

    with _quiet():
        import tf_keras as keras

    import optkit as ok
    from optkit.testing import digits

    data = digits()
    keras.utils.set_random_seed(0)
    _say("Baseline: a small CNN, trained for 12 epochs on scikit-learn's digits.")
    model = _trained(build_model(), data, 12)
    pipeline = compress_pipeline()
    result = _run(
        "1. More accurate, then smaller and faster",
        pipeline,
        model,
        data,
        workdir=folder / "compress",
        # What LiteRT gives by itself stands beside what the passes give.
        measure=ok.Measure(baseline_runtime="tflite"),
    )

    _say("\nOn a small device, simulated: one core, 512 MB of address space, two callers at once.")
    small = ok.Measure(callers=2, device=ok.Device(threads=1, cpus=1, memory_mb=512))
    _say(str(ok.measure(result.artifact, data, measure=small)))

    _say("\nWhat did each pass contribute? The same without each of them in turn:\n")
    accuracy_alone = ok.Measure(latency_seconds=0, memory=False)
    ablation = pipeline.ablate(
        model, data, workdir=folder / "compress", measure=accuracy_alone, progress=True
    )
    _say(f"\n{ablation}")

    _say(
        "\nBackbone: the convolutions of the same CNN, trained on the digits 0 to 4. The task: 5 to "
        f"9, of which only {_TRANSFER_SAMPLES} samples are left to train on."
    )
    backbone = _trained(build_model(5, name="backbone"), transfer_data(data, range(5)), 12)
    # Its convolutions; the dense layers behind them know of the digits 0 to 4 alone.
    backbone = keras.Model(backbone.inputs, backbone.get_layer("backbone_flatten").output)
    few = transfer_data(data, range(5, 10), _TRANSFER_SAMPLES)
    scratch = _trained(build_model(5, name="scratch"), few, 60)
    transferred = _run(
        "2. Transfer to a task with few samples; baseline: 60 epochs on them from scratch",
        transfer_pipeline(backbone),
        scratch,
        few,
        workdir=folder / "transfer",
    )

    result.report.to_html(folder / "report.html")
    result.report.to_json(folder / "report.json")
    result.report.plot(folder / "report.png")
    transferred.report.to_html(folder / "transfer.html")
    saved = result.artifact.save(folder / "model.tflite")

    loaded = ok.load(saved)
    x_test, y_test = data.test
    accuracy = float(np.mean(loaded.predict(x_test).argmax(axis=-1) == y_test))
    reported = result.report.final.accuracy
    if reported is None or abs(accuracy - reported) > 1e-9:
        raise ok.OptkitError(
            f"The file read back scores {accuracy:.4f} on test; the report says {reported}."
        )
    _say(
        f"\nRead back {saved.name}: {loaded.size_bytes:,} bytes, accuracy {accuracy:.2%} on test, "
        "as reported."
    )
    _say(f"\n{ok.Run(folder / 'compress')}")
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    _say(f"\nWritten to {folder}: {names}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the quick start.

    Args:
        arguments: Command line; ``None`` for that of the process.

    Returns:
        The exit status: 0, or 1 if anything failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m optkit",
        description="Runs two pipelines on scikit-learn's digits and writes their reports.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("optkit-quickstart"), help="folder to write into"
    )
    folder = parser.parse_args(arguments).out
    # This process is ours alone: without these, TensorFlow's log drowns the progress bars.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    began = time.perf_counter()
    _say("optkit quick start: importing TensorFlow …")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _show(folder)
    except Exception as error:
        print(f"\nThe quick start failed: {type(error).__name__}: {error}", file=sys.stderr)
        cause = error.__cause__
        if cause is not None:
            print(f"Because of {type(cause).__name__}: {cause}", file=sys.stderr)
        return 1
    _say(f"Done in {time.perf_counter() - began:.0f} s.")
    return 0
