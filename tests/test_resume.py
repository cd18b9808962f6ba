"""Trainings that go on where they were: checkpoints within a pass, whatever the pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import optkit as ok
from optkit.bundle import Bundle, BundleError
from optkit.testing import digits
from optkit.training import checkpoint as checkpoints

SCRIPT = Path(__file__).with_name("killed_training.py")
MEASURE = ok.Measure(latency_seconds=0, memory=False)


@pytest.fixture(autouse=True)
def at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "_SHORTEST", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)


def model_with(*further):
    import tf_keras as keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.3, name="dropout"),
            layers.Flatten(name="flatten"),
            *further,
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="digits",
    )


class Stop:
    """Says so once a training has seen so many epochs."""

    def __init__(self, epochs: int):
        self.left, self.seen = epochs, []

    def __call__(self) -> bool:
        return self.left <= 0

    def listen(self, event) -> None:
        if event.kind == "epoch":
            self.seen.append(event.epoch)
            self.left -= 1


def run(passes, workdir, stop=None, **settings):
    stop = stop or Stop(10**6)
    result = ok.Pipeline(passes, seed=5).run(
        model_with(),
        digits(200),
        workdir=workdir,
        measure=MEASURE,
        progress=stop.listen,
        stop=stop,
        **settings,
    )
    return result, stop


def same(one, other) -> bool:
    pairs = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class Plateau(ok.RecipePass):
    """One of Keras' own callbacks, which counts epochs."""

    def amend(self, recipe):
        import tf_keras

        return recipe.amended(
            callbacks=lambda: tf_keras.callbacks.ReduceLROnPlateau(
                monitor="loss", patience=1, min_delta=10.0
            )
        )


class HalfDecay(ok.TrainPass):
    """A pass of a user's, with rates by layer and two trainings."""

    def train(self, model, recipe, context):
        factors = {"conv/kernel": 0.1}
        context.fit(model, recipe, epochs=2, learning_rate=1e-2, rate_factors=factors)
        context.fit(model, recipe, epochs=2, optimizer="sgd", learning_rate=1e-2)
        return model


CASES = {
    "early stopping": ([ok.FineTune(4, 1e-2, patience=2)], (1, 3)),
    "augmented": ([ok.Augment(rotation=10.0), ok.FineTune(3, 1e-2)], (2,)),
    "weights averaged": ([ok.SWA(4, 1e-2, start=0.25)], (3,)),
    "cycles": ([ok.SWA(4, 1e-2, start=0, schedule="cyclic", cycle_epochs=2)], (1, 3)),
    "pruned": ([ok.Prune(0.8, 3)], (1, 2)),
    "rounded": ([ok.QuantizeAware(3, 1e-3, patience=None)], (2,)),
    "callback of Keras": ([Plateau(), ok.FineTune(4, 1e-2)], (3,)),
    "two trainings": ([HalfDecay()], (1, 3)),
    "transferred": ([ok.TransferLearn(None, 2, fine_tune_epochs=2, unfreeze=2)], (1, 3)),
    "legacy optimizer": ([ok.FineTune(3)], (2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped(name, tmp_path):
    import tf_keras

    passes, stops = CASES[name]
    if name == "legacy optimizer":
        legacy = tf_keras.optimizers.legacy.Adam(1e-2)
        passes = [ok.FineTune(3, optimizer=legacy)]
    whole, _ = run(passes, tmp_path / "whole")
    plain, _ = run(passes, None)
    assert same(whole, plain), "checkpoints alone must change nothing"
    for after in stops:
        ended, stop = run(passes, tmp_path / str(after), Stop(after))
        assert ended.report.rows[-1].status == "cancelled"
        resumed, again = run(passes, tmp_path / str(after))
        assert len(stop.seen) == after
        assert len(again.seen) == sum(item["epochs"] for item in trainings(whole)) - after
        assert same(resumed, whole)
        assert row(resumed).notes == row(whole).notes
        assert [
            {**item, "resumed": []} for item in trainings(resumed)
        ] == trainings(whole)
        assert row(resumed).curves == row(whole).curves
        assert not (tmp_path / str(after) / "checkpoints").exists()


def row(result):
    return result.report.rows[-1]


def trainings(result):
    return list(row(result).trainings)
