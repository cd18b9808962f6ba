"""How passes train: the recipe in its order, constraints, early stopping, optimizers, seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optkit as ok
from optkit.constraint import constraints_from_arrays, constraints_to_arrays
from optkit.context import Context
from optkit.data import Data
from optkit.metric import infer_metric
from optkit.models import clone, signature, variables_by_path
from optkit.recipe import Recipe
from optkit.task import infer_loss, infer_task
from optkit.testing import digits, small_model


def context_for(model: Any, data: Data, constraints: Any = None, seed: int = 0) -> Context:
    bound = data.bind(signature(model))
    y = bound.train.head(1000)[1]
    task = infer_task(model, y)
    return Context(
        data=bound,
        task=task,
        metric=infer_metric(model, task),
        loss=infer_loss(model, task),
        seed=seed,
        model=model,
        constraints=constraints,
    )


def blobs(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = (rng.normal(size=(n, 4)) + np.eye(4)[y] * 3).astype("float32")
    return Data(train=(x, y), validation=(x[::2], y[::2]), batch_size=20)


class _Recorder:
    """Parts of a recipe that write down in which order they act, and on what."""

    stateless = False  # one batch after the other

    def __init__(self):
        self.seen: list[tuple[str, Any]] = []

    def prepare(self, *arguments):
        if len(arguments) == 2:  # an augmentation: split and seed
            return lambda x, seed: self._tell("augment", x, x + 100)
        return lambda y: self._tell("smooth", y, y * 0.5)

    def mix(self, x, y, seed):
        return self._tell("mix", x, x * 2), y

    def sample(self, split, seed):
        self.seen.append(("sample", split.name))
        return split

    def _tell(self, name, value, result):
        import tensorflow as tf

        def note(array):
            self.seen.append((name, float(array.max())))
            return np.float32(0)

        noted = tf.numpy_function(note, [tf.cast(value, tf.float32)], tf.float32)
        with tf.control_dependencies([noted]):
            return tf.identity(result) + tf.cast(noted, result.dtype)


@pytest.mark.parametrize(
    "order", [("smooth", "mix", "augment", "sample"), ("sample", "augment", "mix", "smooth")]
)
def test_the_recipe_acts_in_one_order_whatever_the_order_of_passes(dense, order):
    recorder = _Recorder()
    parts = {
        "smooth": recorder,
        "augment": recorder,
        "mix": recorder.mix,
        "sample": recorder.sample,
    }
    recipe = Recipe()
    for slot in order:
        recipe = recipe.amended(**{slot: parts[slot]})
    model = dense(3)
    data = blobs(20)
    context_for(model, data).fit(model, recipe, epochs=1)
    top = float(data.train[0].max())
    names = [name for name, _ in recorder.seen[:4]]
    assert names == ["sample", "augment", "mix", "smooth"]
    values = dict(recorder.seen[1:4])
    assert values["augment"] == pytest.approx(top, rel=1e-5)
    assert values["mix"] == pytest.approx(top + 100, rel=1e-5)
    assert values["smooth"] == 1.0, "targets are one-hot rows by then"


def test_an_exclusive_slot_holds_one_and_the_others_collect():
    recipe = Recipe().amended(loss="mse").amended(loss="mae")
    assert recipe.loss == "mae"
    one, other = _Recorder(), _Recorder()
    assert Recipe().amended(augment=one).amended(augment=other).augment == (one, other)
    with pytest.raises(ok.PipelineError, match="no slot 'nothing'"):
        Recipe().amended(nothing=1)


def test_constraints_hold_after_every_batch(dense):
    import tf_keras

    model = dense(3)
    kernel = variables_by_path(model)["hidden/kernel"]
    mask = np.random.default_rng(0).random(kernel.shape) < 0.5
    kernel.assign(kernel * mask)
    seen = []

    class Look(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(kernel.numpy())

    constraint = ok.KeepZeros("hidden/kernel", mask)
    context = context_for(model, blobs(), {("hidden/kernel", "keep_zeros"): constraint})
    context.fit(model, Recipe(), epochs=2, learning_rate=0.05, callbacks=[Look()])
    assert len(seen) == 6
    assert all(constraint.holds(value) for value in seen)
    assert not np.array_equal(seen[0][mask], seen[-1][mask]), "the others trained"


def test_without_constraints_zeros_would_be_lost(dense):
    model = dense(3)
    kernel = variables_by_path(model)["hidden/kernel"]
    mask = np.random.default_rng(0).random(kernel.shape) < 0.5
    kernel.assign(kernel * mask)
    context_for(model, blobs()).fit(model, Recipe(), epochs=1, learning_rate=0.05)
    assert not ok.KeepZeros("hidden/kernel", mask).holds(kernel.numpy())


def test_constraints_can_be_saved(tmp_path):
    mask = np.array([[True, False], [False, True]])
    constraint = ok.KeepZeros("dense/kernel", mask)
    np.savez(tmp_path / "c.npz", **constraints_to_arrays([constraint]))
    with np.load(tmp_path / "c.npz") as stored:
        (again,) = constraints_from_arrays(dict(stored))
    assert (again.path, again.name) == ("dense/kernel", "keep_zeros")
    assert np.array_equal(again.mask, mask)
    with pytest.raises(ok.OptkitError, match="Unknown constraint 'nothing'"):
        constraints_from_arrays({"nothing:a": mask})


def test_early_stopping_restores_the_best_weights(dense):
    """Weights after the fit are those of the epoch that validated best."""
    import tf_keras

    model = dense(3)
    weights, figures = [], []

    class Keep(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())
            figures.append((logs["val_metric"], -logs["val_loss"]))

    history = context_for(model, blobs()).fit(
        model, Recipe(), epochs=30, learning_rate=0.5, patience=2, callbacks=[Keep()]
    )
    best = max(range(len(figures)), key=lambda i: (figures[i], -i))
    assert history.best_epoch == best + 1
    assert history.stopped_early
    assert history.epochs == best + 3 < 30
    for one, other in zip(model.get_weights(), weights[best], strict=True):
        assert np.array_equal(one, other)


def test_epochs_before_the_model_has_settled_do_not_count(dense):
    model = dense(3)
    history = context_for(model, blobs()).fit(
        model, Recipe(), epochs=6, learning_rate=1.0, patience=1, settled_after=4
    )
    assert history.best_epoch >= 5


def test_divergence_is_said(dense):
    model = dense(1, "linear")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32") * 1e18
    data = Data(train=(x, x[:, 0] * 1e18))
    with pytest.raises(ok.OptkitError, match="Training diverged"):
        context_for(model, data).fit(model, Recipe(), epochs=3, learning_rate=1e6, optimizer="sgd")


def test_which_optimizer_trains(dense):
    import tf_keras as keras

    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            optimizer = self.model.optimizer
            seen.append((type(optimizer).__name__, round(float(optimizer.learning_rate), 6)))

    def fit(model, recipe=None, **arguments):
        context_for(model, blobs()).fit(
            clone(model), recipe or Recipe(), epochs=1, callbacks=[Look()], **arguments
        )
        return seen[-1]

    plain = dense(3)
    compiled = dense(
        3, optimizer=keras.optimizers.RMSprop(0.02), loss="sparse_categorical_crossentropy"
    )
    assert fit(plain) == ("AdamW", 0.001)
    assert fit(compiled) == ("RMSprop", 0.02)
    assert fit(compiled, learning_rate=0.3) == ("RMSprop", 0.3)
    assert fit(compiled, Recipe(optimizer="sgd")) == ("SGD", 0.001)
    assert fit(compiled, Recipe(optimizer="sgd"), optimizer="adam") == ("Adam", 0.001)
    own = keras.optimizers.SGD(0.4, momentum=0.9)
    assert fit(compiled, optimizer=own) == ("SGD", 0.4)
    assert fit(compiled, optimizer=keras.optimizers.legacy.Adam(0.1)) == ("Adam", 0.1)
    assert not own.variables or int(own.iterations) == 0, "the user's optimizer was not used"
    with pytest.raises(ok.PipelineError, match="takes no `weight_decay`"):
        fit(plain, optimizer=keras.optimizers.legacy.Adam(), weight_decay=0.1)


def test_weight_decay_spares_biases(dense):
    """Without gradients, decay alone moves the weights: kernels shrink, biases stay."""
    model = dense(1, "linear")
    for variable in model.weights:
        variable.assign(np.ones(variable.shape))

    def no_gradient(y_true, y_pred):
        return y_pred * 0.0

    context = context_for(model, Data(train=(np.ones((10, 4), "float32"), np.ones(10) * 0.3)))
    recipe = Recipe(loss=no_gradient)
    context.fit(model, recipe, epochs=1, learning_rate=0.1, optimizer="adamw", weight_decay=0.5)
    values = {path: v.numpy() for path, v in variables_by_path(model).items()}
    assert np.allclose(values["hidden/kernel"], 1 - 0.1 * 0.5)
    assert np.all(values["hidden/bias"] == 1)


def test_layers_whose_names_sound_like_biases_decay():
    import tf_keras

    model = tf_keras.Sequential(
        [tf_keras.Input((4,)), tf_keras.layers.Dense(1, kernel_initializer="ones", name="debiased")]
    )
    data = Data(train=(np.ones((10, 4), "float32"), np.ones(10) * 0.3))
    context_for(model, data).fit(
        model,
        Recipe(loss=lambda y_true, y_pred: y_pred * 0.0),
        epochs=1,
        learning_rate=0.1,
        optimizer="adamw",
        weight_decay=0.5,
    )
    assert np.allclose(model.layers[0].kernel, 1 - 0.1 * 0.5)


def test_zeros_are_kept_by_an_optimizer_that_averages(untimed):
    """Keras puts the average of the weights in their place at the end, zeros forgotten."""
    import tf_keras

    averaging = tf_keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    model = small_model()
    model.compile(averaging, "sparse_categorical_crossentropy")
    passes = [ok.Prune(0.6, 2), ok.FineTune(2, 1e-2, optimizer=averaging, patience=None)]
    result = ok.Pipeline(passes, seed=1).run(model, digits(200))
    for stage in ("Prune", "FineTune"):
        kernels = [v.numpy() for v in result.stages[stage].model.weights if len(v.shape) > 1]
        zeros = sum(int((value == 0).sum()) for value in kernels)
        assert zeros / sum(value.size for value in kernels) == pytest.approx(0.6, abs=0.02)


def test_the_model_stays_uncompiled(dense):
    model = dense(3)
    context_for(model, blobs()).fit(model, Recipe(), epochs=1)
    assert model.optimizer is None


def test_the_weighted_metric_is_what_early_stopping_watches(dense):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 4)).astype("float32"), rng.integers(0, 3, 120)
    weights = rng.random(120)
    data = ok.Data(train=(x, y, weights), validation=(x[:60], y[:60], weights[:60]))
    settings = ok.Measure(latency_seconds=0, memory=False, sample_weight=True)
    pipeline = ok.Pipeline([ok.FineTune(epochs=4, learning_rate=0.02, patience=4)])
    row = pipeline.run(dense(), data, measure=settings).report.rows[0]
    assert row.validation_after == pytest.approx(max(row.curves[0]["val_metric"]), abs=1e-6)


def test_batches_of_different_lengths_train_and_are_scored():
    """Sequences with a mask: each batch as long as its longest, the figures those of the model."""
    import tf_keras

    rng = np.random.default_rng(0)
    batches = []
    for length in (3, 9, 5, 7):
        y = rng.integers(0, 2, 16)
        batches.append((rng.integers(1, 10, (16, length)) + 10 * y[:, None], y))
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [
            tf_keras.Input((None,), dtype="int32"),
            tf_keras.layers.Embedding(21, 4, mask_zero=True),
            tf_keras.layers.LSTM(4),
            tf_keras.layers.Dense(2),
        ]
    )
    data = ok.Data(
        train=lambda: iter(batches), validation=lambda: iter(batches), steps=4, batch_size=16
    )
    pipeline = ok.Pipeline([ok.FineTune(epochs=15, learning_rate=0.05)])
    result = pipeline.run(model, data, measure=ok.Measure(latency_seconds=0.05, memory=False))
    right = [result.artifact.predict(x).argmax(-1) == y for x, y in batches]
    assert result.report.final.accuracy == pytest.approx(np.concatenate(right).mean())
    assert result.report.final.accuracy > 0.9
    assert result.report.final.samples == 64


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_factor_takes_the_whole_update(dense, optimizer):
    rng = np.random.default_rng(0)
    one_batch = Data(train=(rng.normal(size=(20, 4)).astype("float32"), np.arange(20) % 3))
    model = dense()
    paths = list(variables_by_path(model))

    def update(factor):
        trained = clone(model)
        context_for(model, one_batch).fit(
            trained,
            Recipe(),
            epochs=1,
            learning_rate=0.1,
            optimizer=optimizer,
            weight_decay=0.1 if optimizer == "adamw" else None,
            rate_factors={paths[0]: factor},
        )
        pairs = zip(trained.get_weights(), model.get_weights(), strict=True)
        return [after - before for after, before in pairs]

    whole, quarter, nothing = update(1.0), update(0.25), update(0.0)
    assert np.abs(whole[0]).max() > 0.001
    np.testing.assert_allclose(quarter[0], 0.25 * whole[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(nothing[0], np.zeros_like(nothing[0]))
    np.testing.assert_array_equal(quarter[1], whole[1])  # the others are left alone


def test_weights_are_mixed_along(dense):
    """The inputs are rows of a unit matrix, so they tell how each sample was blended."""
    from optkit.training.plan import plan_training
    from optkit.training.stream import training_batches

    y = np.arange(30) % 3
    weights = np.random.default_rng(0).uniform(0, 2, 30).astype("float32")
    data = Data(train=(np.eye(30, dtype="float32"), y, weights), batch_size=30)
    context = context_for(dense(3, features=30), data)
    recipe = ok.MixUp(0.5).amend(Recipe())
    plan = plan_training(context.task, context.metric, context.loss, soft=True)
    batches = training_batches(context.data.train, recipe, plan, seed=1)
    x, targets, mixed = (part.numpy() for part in next(iter(batches)))
    np.testing.assert_allclose(mixed, x @ weights, rtol=1e-5)
    parts = x @ (weights[:, None] * np.eye(3)[y])
    np.testing.assert_allclose(mixed[:, None] * targets, parts, rtol=1e-4, atol=1e-6)
    assert (x.max(1) < 0.99).sum() > 10


def test_a_mixing_that_takes_no_weights_is_refused_where_there_are_some(dense):
    x, y = np.eye(4, dtype="float32"), np.arange(4) % 3
    context = context_for(dense(3), Data(train=(x, y, np.ones(4, "float32"))))
    with pytest.raises(ok.PipelineError, match=r"must take `\(x, y, seed, weights\)`"):
        context.fit(dense(3), Recipe(mix=lambda x, y, seed: (x, y)), epochs=1)
