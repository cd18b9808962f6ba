"""`MixedPrecision`: 16 bits while a model trains, float32 before and behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from test_accumulation import context_for, in_order

import optkit as ok
from optkit.data import Data
from optkit.models import clone, variables_by_path, walk_layers
from optkit.recipe import Recipe
from optkit.runtime import isolated
from optkit.testing import digits, small_model
from optkit.training.precision import in_16_bits
from optkit.training.twin import working_twin

layers = tf_keras.layers


def low(model: Any) -> set[str]:
    """The names of the layers that are chosen."""
    chosen = in_16_bits(model)
    return {layer.name for layer in walk_layers(model) if id(layer) in chosen}


# ------------------------------------------------------------------------------- against formulas


def _linear():
    with isolated(2):
        return tf_keras.Sequential(
            [
                tf_keras.Input((4,)),
                layers.Dense(5, use_bias=False, name="half"),
                layers.Dense(1, use_bias=False, name="out"),
            ]
        )


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 2.0**15), ("bfloat16", 1.0)])
def test_the_update_is_that_of_16_bit_arithmetic(dtype, scale):
    """One step of gradient descent against NumPy that rounds where the layer does."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, size)).astype("float32") / 4 for size in (4, 1))
    model = _linear()
    first, last = (weight.copy() for weight in model.get_weights())
    narrow = tf.as_dtype(dtype).as_numpy_dtype

    def rounded(value):
        return np.asarray(value, np.float32).astype(narrow).astype(np.float32)

    hidden = rounded(rounded(x) @ rounded(first))
    error = hidden @ last - y
    back = rounded(scale * 2 * error / len(x) @ last.T)  # what comes back to the layer
    by_first = rounded(rounded(x).T @ back) / scale
    by_last = hidden.T @ (2 * error / len(x))
    trained = clone(model)
    context_for(model, in_order((x, y), 8)).fit(
        trained, Recipe(precision=f"mixed_{dtype}"), epochs=1, optimizer="sgd", learning_rate=1.0
    )
    found = [
        before - after for before, after in zip((first, last), trained.get_weights(), strict=True)
    ]
    # Sums may be rounded in another order.
    digits_kept = 2.0 ** -(10 if dtype == "float16" else 7)
    np.testing.assert_allclose(found[0], by_first, atol=2 * digits_kept * np.abs(by_first).max())
    np.testing.assert_allclose(found[1], by_last, rtol=1e-3, atol=1e-3)
    # Without rounding it is another one, which float32 arithmetic gives.
    exact = x.T @ (2 * (x @ first @ last - y) / len(x) @ last.T)
    assert 1e-6 < np.abs(found[0] - exact).max() < 0.05 * np.abs(exact).max()


def test_small_gradients_survive_by_scaling_the_loss():
    """A gradient of 1e-8 is nothing in float16, and comes through."""
    x, y = np.full((8, 4), 1e-2, "float32"), np.zeros((8, 1), "float32")
    model = _linear()
    first, last = model.get_weights()
    model.set_weights([first, last * 1e-3])
    first, last = model.get_weights()
    exact = x.T @ (2 * (x @ first @ last) / len(x) @ last.T)
    assert 0 < np.abs(exact).max() < np.finfo(np.float16).smallest_subnormal
    trained = clone(model)
    context_for(model, in_order((x, y), 8)).fit(
        trained, Recipe(precision="mixed_float16"), epochs=1, optimizer="sgd", learning_rate=1e6
    )
    found = (first - trained.get_weights()[0]) / 1e6
    np.testing.assert_allclose(found, exact, rtol=0.05)


def test_steps_that_overflow_are_left_out_and_the_scale_falls():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype("float32") / 8
    y = np.full((8, 1), 30.0, "float32")
    model = _linear()
    seen = []

    class Watching(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((float(self.model.optimizer.loss_scale), self.model.get_weights()[0]))

    trained = clone(model)
    context_for(model, in_order((x, y), 8)).fit(
        trained,
        Recipe(precision="mixed_float16"),
        epochs=8,
        optimizer="sgd",
        learning_rate=1e-3,
        callbacks=[Watching()],
    )
    scales = [scale for scale, _ in seen]
    assert scales[:2] == [2.0**14, 2.0**13]  # the first two were left out
    assert scales[-1] == scales[-2] < 2.0**14  # until one fitted
    assert np.array_equal(seen[0][1], model.get_weights()[0])
    assert not np.array_equal(seen[-1][1], model.get_weights()[0])
    assert all(np.isfinite(weight).all() for weight in trained.get_weights())


# ---------------------------------------------------------------------------------- which layers


def test_which_layers_compute_in_16_bits():
    image = tf_keras.Input((8, 8, 1), name="image")
    inside = tf_keras.Input((8, 8, 1))
    inner = tf_keras.Model(
        inside, layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(inside))
    )
    x = layers.Reshape((8, 8, 1), name="before")(image)
    x = layers.Rescaling(0.5, name="rescale")(x)
    x = layers.Flatten(name="flat")(inner(x))
    x = layers.Lambda(lambda value: value * 2, name="function")(x)
    x = layers.Dense(6, activity_regularizer="l2", name="penalized")(x)
    x = tf.nn.relu(layers.Dense(5, name="dense")(x) + tf.constant(1.0))
    x = layers.Dropout(0.1, name="drop")(layers.Dense(4, name="scores")(x))
    model = tf_keras.Model(image, x)
    assert low(model) == {"conv", "norm", "flat", "dense"}
    with working_twin(model, precision="mixed_float16") as twin:
        assert list(variables_by_path(twin)) == list(variables_by_path(model))
        assert {variable.dtype for variable in twin.variables} == {tf.float32}
        assert [output.dtype for output in twin.outputs] == [tf.float32]
        values = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype("float32")
        one, other = twin(values).numpy(), model(values).numpy()
        assert 0 < np.abs(one - other).max() < 0.01


def test_ids_and_what_stands_before_them_stay_exact():
    """An id of 2049 is 2048 in float16."""
    ids = tf_keras.Input((2,), name="ids")  # floats, as tables have them
    x = layers.Reshape((2, 1), name="column")(ids)
    x = layers.Flatten(name="row")(x)
    x = layers.Embedding(3000, 4, name="table")(x)
    model = tf_keras.Model(ids, layers.Dense(1, name="out")(layers.Flatten(name="flat")(x)))
    assert low(model) == {"table", "flat"}
    values = np.array([[2049.0, 2051.0]], "float32")
    with working_twin(model, precision="mixed_float16") as twin:
        np.testing.assert_allclose(twin(values), model(values), rtol=1e-2, atol=1e-4)


def test_a_twin_gives_its_weights_back_and_none_on_failure():
    model = small_model()
    before = model.get_weights()
    with working_twin(model, precision="mixed_bfloat16") as twin:
        twin.set_weights([weight + 1 for weight in twin.get_weights()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old + 1)

    def fail():
        with working_twin(model, precision="mixed_bfloat16") as twin:
            twin.set_weights(before)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old + 1)


# ------------------------------------------------------------------------------------ in pipelines


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_trains_the_digits_and_leaves_float32(dtype, untimed):
    with isolated(4):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, activation="relu", name="conv"),
                layers.Flatten(name="flat"),
                layers.Dense(10, "softmax", name="classes"),
            ]
        )
    passes = [ok.MixedPrecision(dtype), ok.FineTune(epochs=8, learning_rate=0.01)]
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        result = ok.Pipeline(passes).run(model, digits(600), progress=False)
        assert tf_keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    row = result.report.rows[0]
    assert row.notes[0] == f"2 of 3 layers compute in {dtype}; in float32 stay: classes"
    if not tf.config.list_physical_devices("GPU"):
        assert "times as fast as in float32" in row.notes[1]
    assert {layer.dtype_policy.name for layer in result.model.layers} == {"float32"}
    assert {layer.dtype for layer in result.artifact.layers()} <= {"float32", None}
    assert result.report.final.accuracy > 0.8


def test_a_model_that_comes_in_16_bits_keeps_its_own(untimed):
    with isolated(4):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((8, 8, 1)),
                layers.Flatten(name="flat"),
                layers.Dense(16, "relu", dtype="mixed_bfloat16", name="own"),
                layers.Dense(16, "relu", name="plain"),
                layers.Dense(10, "softmax", name="classes"),
            ]
        )
    assert low(model) == {"flat", "plain"}
    pipeline = ok.Pipeline([ok.MixedPrecision("bfloat16"), ok.FineTune(epochs=1)])
    result = pipeline.run(model, digits(200), progress=False)
    assert result.report.rows[0].notes[0] == (
        "2 of 4 layers compute in bfloat16; in float32 stay: classes"
    )
    policies = [layer.dtype_policy.name for layer in result.model.layers]
    assert policies == ["float32", "mixed_bfloat16", "float32", "float32"]


def test_rounding_for_integers_trains_in_float32(untimed):
    pipeline = ok.Pipeline([ok.MixedPrecision("bfloat16"), ok.QuantizeAware(epochs=1)])
    result = pipeline.run(small_model(), digits(200), progress=False)
    assert "trained in float32" in result.report.rows[1].notes[0]


def test_what_it_refuses(dense):
    with pytest.raises(ok.PipelineError, match="`dtype` must be one of"):
        ok.MixedPrecision("float8")
    only = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3, "softmax")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)).astype("float32"), np.arange(30) % 3
    tuning = ok.FineTune(epochs=1)
    with pytest.raises(ok.PipelineError, match=r"No layer .* can compute in float16"):
        ok.Pipeline([ok.MixedPrecision(), tuning]).check(only, Data(train=(x, y)))
    large = Data(train=(x * 1e6, y))
    with pytest.raises(ok.PipelineError, match="float16 ends at 65504"):
        ok.Pipeline([ok.MixedPrecision(), tuning]).check(dense(), large)
    ok.Pipeline([ok.MixedPrecision("bfloat16"), tuning]).check(dense(), large)
