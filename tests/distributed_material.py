"""What is trained in tests of distribution.

Without dropout and batch normalization, so that every number can be compared with those of one
process.
"""

from __future__ import annotations

import optkit as ok
from optkit.testing import digits

MEASURE = ok.Measure(latency_seconds=0, memory=False)


class Slow(ok.RecipePass):
    """Leaves time between two epochs, for a process to be killed in."""

    def __init__(self, seconds: float = 1.0):
        self.seconds = seconds

    def amend(self, recipe):
        import time

        import tf_keras

        seconds = self.seconds

        class Waiting(tf_keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                time.sleep(seconds)

        return recipe.amended(callbacks=Waiting)


def model(seed=3):
    import tf_keras as keras

    keras.utils.set_random_seed(seed)
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
    """An odd number of samples in the last batch, so that shares differ."""
    return digits(225)


def pipeline(slow: bool = False):
    passes = [
        ok.Augment(rotation=5.0),
        ok.FineTune(3, 1e-2, patience=2),
        ok.GradientAccumulation(2),
        ok.Prune(0.6, 1, learning_rate=1e-3),
        ok.SWA(1, 1e-3, start=0, average="ema", decay=0.5),
        ok.QuantizeAware(1, 1e-3),
        ok.QuantizeINT8(calibration_samples=20),
    ]
    if slow:
        passes = [Slow(), ok.FineTune(8, 1e-2, patience=None)]
    return ok.Pipeline(passes, goals=ok.Goals(max_accuracy_drop=0.5), seed=5)
