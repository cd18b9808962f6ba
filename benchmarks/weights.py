"""Size, speed and error of files with weights in fewer bits, against the float32 file in LiteRT.

Models above a million parameters with random weights (fixed seed), each quantized by each pass of the
family. Both files run one sample on one thread, in turns; the error is that of the outputs, as a
share of their spread. Random weights are the worst case for 4 bits: what training leaves is more
forgiving. The figures of the method cards; holds optkit to nothing but sizes.

Run it with ``python -m benchmarks.weights``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import common

#: Of the float32 file, above a million parameters: by pass.
LIMITS = {
    "QuantizeFloat16()": 0.51,
    "QuantizeDynamic()": 0.28,
    "QuantizeDynamic(bits=4)": 0.155,
    "QuantizeWeights()": 0.28,
    "QuantizeWeights(bits=4)": 0.155,
}
_SAMPLES = 32
_REPEATS = 3


def _models() -> dict[str, Callable[[], Any]]:
    import tf_keras as keras

    layers = keras.layers

    def words(layer: Any) -> Any:
        ids = keras.Input((80,), dtype="int32", name="ids")
        x = layer(layers.Embedding(10000, 128)(ids))
        x = layers.GlobalMaxPooling1D()(x) if len(x.shape) == 3 else x
        return keras.Model(ids, layers.Dense(16)(x))

    def dense() -> Any:
        image = keras.Input((784,), name="image")
        x = layers.Dense(512, activation="relu")(layers.Dense(1024, activation="relu")(image))
        return keras.Model(image, layers.Dense(10)(x))

    def mobilenet() -> Any:
        model = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.0
        # Statistics that fit the weights: otherwise activations fade from layer to layer.
        model(_inputs(model, 8), training=True)
        return model

    return {
        "dense": dense,
        "GRU": lambda: words(layers.GRU(64)),
        "LSTM": lambda: words(layers.LSTM(64)),
        "Conv1D": lambda: words(layers.Conv1D(128, 5, activation="relu")),
        "MobileNetV2": mobilenet,
    }


def _inputs(model: Any, count: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 10000, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def _passes() -> list[Any]:
    import optkit as ok

    return [
        ok.QuantizeFloat16(),
        ok.QuantizeDynamic(),
        ok.QuantizeDynamic(4),
        ok.QuantizeWeights(),
        ok.QuantizeWeights(4),
        ok.QuantizeINT16x8(_SAMPLES),
    ]


def _figures(model: Any, item: Any, x: Any, before: Any, expected: Any) -> dict[str, Any]:
    import numpy as np

    import optkit as ok
    from optkit.measuring.turns import in_turns

    data = ok.Data(train=(x, expected), validation=(x[:8], expected[:8]))
    quiet = ok.Measure(latency_seconds=0, memory=False)
    after = ok.Pipeline([item], loss="mse").run(model, data, measure=quiet).artifact
    speeds = [in_turns(after, before, x[:1]).ratio for _ in range(_REPEATS)]
    error = np.sqrt(np.mean((after.predict(x) - expected) ** 2)) / np.std(expected)
    return {
        "size": after.size_bytes / before.size_bytes,
        "error": float(error),
        "speed": common.median(speeds),
        "speeds": speeds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit status."""
    parser = common.parser(__doc__)
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tf_keras as keras

    from optkit.convert import convert

    found: dict[str, dict[str, Any]] = {}
    rows = []
    for name, make in list(_models().items())[: 1 if options.quick else None]:
        keras.utils.set_random_seed(0)
        model = make()
        x = _inputs(model, _SAMPLES)
        before = convert(model).artifact
        expected = before.predict(x)
        found[name] = {"bytes": before.size_bytes}
        for item in _passes():
            found[name][repr(item)] = _figures(model, item, x, before, expected)
        for key in list(found[name])[1:]:
            figures = found[name][key]
            rows.append(
                (
                    name,
                    key.removesuffix(f"({_SAMPLES})"),
                    f"{figures['size']:.3f}",
                    f"{100 * figures['error']:.2g} %",
                    f"{figures['speed']:.2f}×",
                )
            )
    header = ("model", "pass", "size", "error", "speed")
    print(common.table(header, rows))
    missed = [
        (name, key)
        for name, figures in found.items()
        for key, limit in LIMITS.items()
        if figures[key]["size"] > limit
    ]
    if options.json is not None:
        common.write_json(
            options.json, {"name": "weights", "runs": found, "environment": common.environment()}
        )
    print("".join(f"\nlarger than promised: {name}, {key}" for name, key in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
