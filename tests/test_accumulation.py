"""`GradientAccumulation`: small batches that make the update of a large one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import optkit as ok
from optkit.context import Context
from optkit.data import Data
from optkit.metric import resolve_metric
from optkit.models import clone, signature, variables_by_path
from optkit.recipe import Recipe
from optkit.runtime import isolated
from optkit.task import infer_loss, infer_task
from optkit.testing import digits, small_model

layers, optimizers = tf_keras.layers, tf_keras.optimizers
SAMPLES = 22


def context_for(model: Any, data: Data) -> Context:
    bound = data.bind(signature(model))
    task = infer_task(model, bound.train.head(100)[1])
    return Context(
        data=bound,
        task=task,
        metric=resolve_metric(None, None, model, task),
        loss=infer_loss(model, task),
        seed=0,
        model=model,
    )


def fit(model, data, accumulate=None, epochs=2, **settings):
    """The weights after a training of a copy."""
    trained = clone(model)
    with isolated(5):
        context_for(model, data).fit(
            trained, Recipe(accumulate=accumulate), epochs=epochs, **settings
        )
    return trained.get_weights()


def apart(some, others):
    return max(float(np.abs(one - other).max()) for one, other in zip(some, others, strict=True))


def in_order(arrays, size):
    """Data that come in their order, in batches of a size, the last one shorter."""
    return Data(train=tf.data.Dataset.from_tensor_slices(arrays).batch(size))


# ------------------------------------------------------------------------------- against formulas


def test_updates_are_those_of_the_formula():
    """Momentum, sample weights, an L2 penalty and a last window that is shorter, by NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 4)).astype("float32")
    y = rng.normal(size=(SAMPLES, 1)).astype("float32")
    weights = rng.uniform(0.5, 2, SAMPLES).astype("float32")
    with isolated(1):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((4,)),
                layers.Dense(1, use_bias=False, kernel_regularizer=tf_keras.regularizers.L2(0.1)),
            ]
        )
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    kernel = model.get_weights()[0].astype(np.float64)
    velocity = np.zeros_like(kernel)
    for _ in range(3):
        for start in range(0, SAMPLES, 12):  # four batches of three; then three, and one of one
            rows = slice(start, start + 12)
            error = (x[rows] @ kernel - y[rows]) * weights[rows, None]
            gradient = 2 * x[rows].T @ error / len(x[rows]) + 2 * 0.1 * kernel
            velocity = 0.9 * velocity - 0.05 * gradient
            kernel = kernel + velocity
    data = in_order((x, y, weights), 3)
    (found,) = fit(model, data, accumulate=4, epochs=3)
    np.testing.assert_allclose(found, kernel, rtol=1e-5)
    (small,) = fit(model, data, epochs=3)
    assert np.abs(small - kernel).max() > 0.01


def _several_outputs():
    with isolated(2):
        inputs = tf_keras.Input((5,), name="x")
        hidden = layers.Dense(8, "tanh", kernel_regularizer="l2", name="hidden")(inputs)
        return tf_keras.Model(
            inputs,
            [
                layers.Dense(3, "softmax", name="kind")(hidden),
                layers.Dense(1, name="size")(hidden),
            ],
        )


def _two_targets(size):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(SAMPLES, 5)).astype("float32")
    y = {"kind": rng.integers(0, 3, SAMPLES), "size": rng.normal(size=(SAMPLES, 1))}
    weights = rng.uniform(0.5, 2, SAMPLES).astype("float32")
    return in_order((x, y, {"kind": weights, "size": weights[::-1].copy()}), size)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        optimizers.Adam(0.01),
        optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.05),
        optimizers.RMSprop(0.01, global_clipnorm=0.1),
        optimizers.legacy.SGD(0.1, momentum=0.9, clipvalue=0.01),
        optimizers.legacy.Adam(0.01, clipnorm=0.05),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop", "legacy sgd", "legacy adam"],
)
def test_any_optimizer_makes_the_update_of_the_large_batch(optimizer):
    """Two outputs with weights of their own, a penalty, and a last window that is shorter."""
    model = _several_outputs()
    large = fit(model, _two_targets(12), optimizer=optimizer)
    found = fit(model, _two_targets(3), accumulate=4, optimizer=optimizer)
    assert apart(large, found) < 2e-6
    assert apart(model.get_weights(), found) > 1e-3


def test_rows_of_a_table_that_batches_share_are_counted_once():
    with isolated(2):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((3,), dtype="int32"),
                layers.Embedding(6, 4, name="words"),
                layers.Flatten(),
                layers.Dense(2, "softmax"),
            ]
        )
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (SAMPLES, 3)), rng.integers(0, 2, SAMPLES)
    large = fit(model, in_order((x, y), 12), optimizer=optimizers.Adam(0.01))
    found = fit(model, in_order((x, y), 3), accumulate=4, optimizer=optimizers.Adam(0.01))
    assert apart(large, found) < 2e-6


def test_factors_and_counters_go_by_updates(dense):
    """A factor takes whole updates; callbacks see every batch, the optimizer every update."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(SAMPLES, 4)).astype("float32"), np.arange(SAMPLES) % 3
    model = dense()
    path = next(iter(variables_by_path(model)))
    seen = []

    class Watching(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = variables_by_path(self.model)[path].numpy()
            seen.append((int(self.model.optimizer.iterations), kernel))

    settings = {"optimizer": "sgd", "learning_rate": 0.1, "rate_factors": {path: 0.25}}
    large = fit(model, in_order((x, y), 12), **settings)
    found = fit(model, in_order((x, y), 3), accumulate=4, callbacks=[Watching()], **settings)
    assert apart(large, found) < 2e-6
    assert [count for count, _ in seen] == [*([0] * 3), *([1] * 4), *([2] * 4), *([3] * 4), 4]
    kernels = [kernel for _, kernel in seen]
    assert np.array_equal(kernels[0], kernels[2])  # nothing moves between updates
    assert not np.array_equal(kernels[2], kernels[3])


def test_float16_leaves_out_the_whole_update_where_one_batch_is_too_large():
    """The inputs of one batch overflow; its window changes nothing, the next one does."""
    with isolated(2):
        model = tf_keras.Sequential(
            [tf_keras.Input((4,)), layers.Dense(4, name="half"), layers.Dense(1, name="out")]
        )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4)).astype("float32") / 8
    y = x[:, :1] / 8
    y[2] = 1e6  # in the first window of 8
    seen = []

    class Watching(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            seen.append((float(optimizer.loss_scale), self.model.get_weights()[0]))

    trained = clone(model)
    recipe = Recipe(accumulate=4, precision="mixed_float16")
    context_for(model, in_order((x, y), 2)).fit(
        trained, recipe, epochs=1, optimizer="sgd", learning_rate=1e-3, callbacks=[Watching()]
    )
    before = model.get_weights()[0]
    assert [scale for scale, _ in seen] == [2.0**15] * 3 + [2.0**14] * 5
    assert np.array_equal(seen[6][1], before)
    assert not np.array_equal(seen[7][1], before)
    assert all(np.isfinite(weight).all() for weight in trained.get_weights())


# ------------------------------------------------------------------------------------ with others


class Nothing(ok.RecipePass):
    """Takes a place in the pipeline: seeds go by places."""

    def amend(self, recipe):
        return recipe


def test_pruning_and_averaging_are_those_of_the_large_batch(untimed):
    """Masks and averages go by updates; 135 samples are four batches and a short one."""
    with isolated(4):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(16, "relu", kernel_regularizer="l2"),
                layers.Dense(10, "softmax"),
            ]
        )
    model.compile(optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    passes = [ok.Prune(0.7, epochs=4), ok.SWA(3, start=1, average="ema", decay=0.8)]
    found, plain = digits(225), {}
    for first, size in ((Nothing(), 96), (ok.GradientAccumulation(3), 32)):
        data = Data(found.train, found.validation, found.test, batch_size=size)
        result = ok.Pipeline([first, *passes], seed=1).run(model, data, progress=False)
        plain[size] = [result.stages[name].model.get_weights() for name in ("Prune", "SWA")]
    for large, small, epochs in zip(plain[96], plain[32], (4, 7), strict=True):
        assert apart(large, small) < 1e-6 * epochs
    assert apart(model.get_weights(), plain[32][0]) > 0.01
    assert apart(*plain[32]) > 1e-3


def test_with_pruning_averaging_and_16_bits(untimed):
    data = digits(300)
    pipeline = ok.Pipeline(
        [
            ok.GradientAccumulation(2),
            ok.MixedPrecision("bfloat16"),
            ok.Prune(0.5, epochs=3, learning_rate=0.01),
            ok.SWA(epochs=2, learning_rate=1e-3),
        ]
    )
    result = pipeline.run(small_model(), data, progress=False)
    assert result.report.rows[0].notes[1].startswith("batch normalization (1 layer) goes by")
    pruned, averaged = (result.stages[name].model for name in ("Prune", "SWA"))
    for model in (pruned, averaged):
        kernel = model.get_layer("conv").kernel.numpy()
        assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.01)
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_it_learns_the_digits_and_says_how(untimed):
    """Early stopping, and a model that must know more digits behind it than before."""
    with isolated(4):
        model = tf_keras.Sequential(
            [
                tf_keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(32, "relu"),
                layers.Dense(10, "softmax"),
            ]
        )
    tuning = ok.FineTune(epochs=20, learning_rate=0.01, patience=4)
    result = ok.Pipeline([ok.GradientAccumulation(2), tuning]).run(
        model, digits(600), progress=False
    )
    first, trained = result.report.rows
    assert first.notes == (
        "updates by 2 batches of 32 samples: as a batch size of 64; 6 updates an epoch",
    )
    assert result.report.final.accuracy > 0.8 > 3 * result.report.baseline.accuracy
    assert trained.curves[0]["loss"][-1] < trained.curves[0]["loss"][0] / 2


@pytest.mark.parametrize("steps", [1, 0, 2.5, "two"])
def test_steps_must_be_two_or_more(steps):
    with pytest.raises((ok.PipelineError, TypeError), match="steps"):
        ok.GradientAccumulation(steps)


class Summed(ok.RecipePass):
    """A loss of a pass's own."""

    def amend(self, recipe):
        return recipe.amended(loss=tf_keras.losses.SparseCategoricalCrossentropy(reduction="sum"))


def test_so_is_that_of_a_pass_behind_it(data):
    passes = [ok.GradientAccumulation(2), Summed(), ok.FineTune(epochs=1)]
    with pytest.raises(ok.PipelineError, match=r"has the reduction 'sum'.*GradientAccumulation"):
        ok.Pipeline(passes).check(small_model(), data)


def test_updates_are_counted_as_they_will_be_drawn(untimed):
    x = np.random.default_rng(0).random((96, 8, 8, 1)).astype("float32")
    y = np.repeat([0, 1], [90, 6])
    data = ok.Data(train=(x, y), test=(x, y), batch_size=10)
    passes = [ok.Rebalance("over"), ok.GradientAccumulation(4), ok.FineTune(1, patience=None)]
    rows = ok.Pipeline(passes).run(small_model(), data).report.rows
    assert rows[1].notes[0].endswith("5 updates an epoch")  # by 18 batches of 180 samples


def test_a_loss_that_grows_with_the_batch_is_refused(dense, data):
    model = small_model()
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    with pytest.raises(ok.PipelineError, match="has the reduction 'sum'"):
        ok.Pipeline([ok.GradientAccumulation(2), ok.FineTune(epochs=1)]).check(model, data)


def test_the_note_knows_the_batches_of_a_stream():
    train = digits(300).train
    stream = tf.data.Dataset.from_tensor_slices(train).batch(16)
    data = Data(train=stream, validation=digits(300).validation)
    pipeline = ok.Pipeline([ok.GradientAccumulation(2), ok.FineTune(1)])
    report = pipeline.run(
        small_model(), data, measure=ok.Measure(latency_seconds=0, memory=False)
    ).report
    assert "2 batches of 16 samples: as a batch size of 32" in report.rows[0].notes[0]
