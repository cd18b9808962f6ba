"""What is trained in tests of distribution: without dropout and batch normalization, so that
every number can be compared with those of one process."""

from __future__ import annotations

import optkit as ok
from optkit.testing import digits

MEASURE = ok.Measure(latency_seconds=0, memory=False)


def model():
    import tf_keras as keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="digits",
    )


def data():
    return digits(215)


def pipeline():
    return ok.Pipeline(
        [
            ok.Augment(rotation=5.0),
            ok.FineTune(3, 1e-2, patience=2),
            ok.Prune(0.6, 2, learning_rate=1e-3),
            ok.QuantizeINT8(calibration_samples=20),
        ],
        goals=ok.Goals(max_accuracy_drop=0.5),
        seed=5,
    )
