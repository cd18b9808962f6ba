"""Real material for the tests: the digits, and small models trained on them once."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import optkit as ok
from optkit.quickstart import build_model
from optkit.testing import digits


@pytest.fixture(scope="session")
def data() -> ok.Data:
    return digits(600)


@pytest.fixture(scope="session")
def trained():
    """A compiled CNN that knows its digits; session-wide, and so a test that it stays unchanged."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    model = build_model()
    x, y = digits(600).train
    model.fit(x, y, batch_size=10, epochs=15, verbose=0)
    before = [weight.copy() for weight in model.get_weights()]
    yield model
    for one, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, other), "some test changed the shared model"


@pytest.fixture
def dense():
    """Makes small dense models."""
    import tf_keras

    def make(outputs=3, activation="softmax", features=4, units=8, **compile_arguments):
        tf_keras.utils.set_random_seed(2)
        model = tf_keras.Sequential(
            [
                tf_keras.Input((features,), name="features"),
                tf_keras.layers.Dense(units, activation="relu", name="hidden"),
                tf_keras.layers.Dense(outputs, activation=activation, name="out"),
            ],
            name="dense",
        )
        if compile_arguments:
            model.compile(**compile_arguments)
        return model

    return make
