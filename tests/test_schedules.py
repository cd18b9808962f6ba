"""Learning rates: schedules over a training, the range test, ``learning_rate="auto"``."""

from __future__ import annotations

import random

import numpy as np
import pytest

import optkit as ok
from optkit.context import Context
from optkit.entrance import admit
from optkit.models import variables_by_path
from optkit.prepare import Options, prepare
from optkit.runtime import isolated
from optkit.testing import digits, small_model
from optkit.training import LearningRateSearch, Steps
from optkit.training.range_test import _Losses

pytestmark = pytest.mark.usefixtures("untimed")
PEAK = 0.04


@pytest.fixture(scope="module")
def table():
    """Six batches an epoch, the last one short."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(88, 4)).astype("float32")
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1).astype("float32")[:, None]
    return ok.Data(train=(x, y), validation=(x[:20], y[:20]), batch_size=16)


def linear_model(optimizer="sgd"):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def context_of(model, data, seed=3):
    prepared = prepare((), admit(model, data), data, None, Options())
    return Context(
        data=prepared.data,
        task=prepared.task,
        metric=prepared.metric,
        loss=prepared.loss,
        seed=seed,
        model=model,
    )


def watching(rates):
    """A recipe's callback that writes down the rate of every batch."""
    import tf_keras

    class See(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    return See


def rates_of(recipe, data, epochs, **settings):
    model, rates = linear_model(), []
    with isolated(0):
        context = context_of(model, data)
        settings = {"learning_rate": PEAK, **settings}
        history = context.fit(
            model, recipe.amended(callbacks=watching(rates)), epochs=epochs, **settings
        )
    return rates, history


# -------------------------------------------------------------------------------------- schedules


def half_wave(place, begin, end):
    return end + (begin - end) * (1 + np.cos(np.pi * place)) / 2


def cosine(i, n):
    warm = 4  # a fifth of 18, rounded
    if i < warm:
        return PEAK * (i + 1) / (warm + 1)
    return half_wave((i - warm) / (n - warm), PEAK, 0.1 * PEAK)


def restarts(i, n):
    return half_wave(i % 6 / 6, PEAK, 0.0)


def uneven_restarts(i, n):
    begin, end = max(pair for pair in ((0, 4), (4, 9), (9, 14), (14, 18)) if pair[0] <= i)
    return half_wave((i - begin) / (end - begin), PEAK, 0.0)


def steps_at_shares(i, n):
    return PEAK * (1 if i < 9 else 0.1 if i < 14 else 0.01)  # 0.5 and 0.75 of 18: 9 and 13.5


def steps_at_epochs(i, n):
    return PEAK * 0.5 ** (i >= 6) * 0.5 ** (i >= 12)


def warm_steps(i, n):
    return PEAK * (i + 1) / 10 if i < 9 else PEAK * 0.1 ** (i >= 12)


def exponential(i, n):
    return PEAK * 0.01 ** (i / n)


def decay(i, n):
    return PEAK * 0.8 ** (i / 6)


def one_cycle(i, n):
    rising = 5  # 0.3 of 18, rounded
    if i < rising:
        return half_wave(i / rising, 0.04 * PEAK, PEAK)
    return half_wave((i - rising) / (n - rising), PEAK, 0.0)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (ok.LRSchedule("cosine", warmup=0.2, end=0.1), cosine),
        (ok.LRSchedule("cosine_restarts", restarts=2), restarts),
        (ok.LRSchedule("step"), steps_at_shares),
        (ok.LRSchedule("step", every=1, factor=0.5), steps_at_epochs),
        (ok.LRSchedule("step", milestones=[2, 1, 30], factor=0.5), steps_at_epochs),
        (ok.LRSchedule("step", milestones=list(np.arange(1, 3)), factor=0.5), steps_at_epochs),
        (ok.LRSchedule("cosine_restarts", restarts=3), uneven_restarts),
        (ok.LRSchedule("step", warmup=0.5, milestones=[2]), warm_steps),
        (ok.LRSchedule("exponential"), exponential),
        (ok.LRSchedule("exponential", decay=0.8), decay),
        (ok.LRSchedule("one_cycle"), one_cycle),
    ],
    ids=lambda item: getattr(item, "__name__", repr(item)),
)
def test_a_schedule_is_its_formula_in_every_update(table, schedule, formula):
    rates, history = rates_of(schedule.amend(ok.Recipe()), table, epochs=3)
    assert len(rates) == 18
    assert rates == pytest.approx([formula(i, 18) for i in range(18)], rel=1e-4, abs=1e-8)
    assert history.curves["learning_rate"] == pytest.approx(rates[5::6], rel=1e-4)


def test_a_schedule_goes_by_updates_not_by_batches(table):
    recipe = ok.LRSchedule("cosine").amend(ok.Recipe()).amended(accumulate=4)
    rates, history = rates_of(recipe, table, epochs=3)
    # Six batches make two updates, of four and of two.
    expected = [half_wave(i / 6, PEAK, 0.0) for i in range(6)]
    assert [rates[i] for i in (3, 5, 9, 11, 15, 17)] == pytest.approx(expected, rel=1e-4)
    assert history.curves["learning_rate"] == pytest.approx(expected[1::2], rel=1e-4)


def test_a_schedule_of_a_training_that_stops_early_is_that_of_all_its_epochs(table):
    recipe = ok.LRSchedule("cosine").amend(ok.Recipe())
    _, whole = rates_of(recipe, table, epochs=6)
    # At this rate descent runs away, so that the second epoch is worse than the first.
    _, stopped = rates_of(recipe, table, epochs=6, patience=1, learning_rate=1.5)
    kept = len(stopped.curves["learning_rate"])
    assert stopped.stopped_early
    assert 1 < kept < 6
    expected = np.array(whole.curves["learning_rate"][:kept]) * 1.5 / PEAK
    assert stopped.curves["learning_rate"] == pytest.approx(expected, rel=1e-4)


def test_a_schedule_takes_the_place_of_a_compiled_one(table):
    import tf_keras

    schedules = tf_keras.optimizers.schedules
    falling = tf_keras.optimizers.SGD(schedules.ExponentialDecay(0.3, 1, 0.5))
    rates = []
    recipe = ok.LRSchedule("step", milestones=[0.5]).amend(ok.Recipe())
    with isolated(0):
        model = linear_model(falling)
        context = context_of(model, table)
        context.fit(model, recipe.amended(callbacks=watching(rates)), epochs=2)
        assert rates == pytest.approx([0.3] * 6 + [0.03] * 6)
        ok.LRSchedule().apply(ok.State(ok.KerasArtifact(model)), context)
        assert context.notes == ["takes the place of the schedule that the model is compiled with"]
        warming = schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5)
        model = linear_model(tf_keras.optimizers.SGD(warming))
        with pytest.raises(ok.PipelineError, match=r"begins at 0\. Give the training pass"):
            context_of(model, table).fit(model, recipe, epochs=1)


def test_without_a_schedule_a_rate_is_a_number_that_callbacks_may_set(table):
    import tf_keras

    recipe = ok.Recipe().amended(
        callbacks=lambda: tf_keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * (epoch + 1))
    )
    rates, history = rates_of(recipe, table, epochs=2)
    assert rates == pytest.approx([0.01] * 6 + [0.02] * 6)
    assert history.curves["learning_rate"] == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ok.LRSchedule("sine"), "`shape` must be one of"),
        (lambda: ok.LRSchedule(warmup=1.0), "`warmup` must be a number in"),
        (lambda: ok.LRSchedule("cosine", decay=0.5), "`decay` is for 'exponential'"),
        (lambda: ok.LRSchedule("one_cycle", warmup=0.1), "`warmup` is not for 'one_cycle'"),
        (lambda: ok.LRSchedule("exponential", end=0.0), "`end` must be a number in"),
        (lambda: ok.LRSchedule("exponential", end=0.1, decay=0.5), "say the same in two ways"),
        (lambda: ok.LRSchedule("step", milestones=[0.5], every=1), "say the same in two ways"),
        (lambda: ok.LRSchedule("step", milestones=[1.5]), r"milestones\[0\]"),
        (lambda: ok.LRSchedule("step", milestones=[]), "at least one place"),
        (lambda: ok.LRSchedule("step", milestones=0.5), "must be a list"),
        (lambda: ok.FineTune(learning_rate="best"), "a number above 0 or 'auto'"),
        (lambda: ok.FineTune(learning_rate=None), "`learning_rate` must be a number"),
        (lambda: ok.Prune(learning_rate=0.0), "`learning_rate` must be a number"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises((ok.PipelineError, ok.ArgumentTypeError), match=message):
        make()


def test_steps_of_an_epoch():
    steps = Steps(batches=7, accumulate=3)
    assert steps.updates == 3
    assert [steps.update(0, batch) for batch in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [steps.update(2, batch) for batch in (0, 6)] == [6, 8]
    assert [batch for batch in range(7) if steps.ends_update(batch)] == [2, 5, 6]


def test_steps_are_those_of_what_is_drawn(table):
    with isolated(0):
        context = context_of(linear_model(), table)
        assert context.steps(ok.Recipe()) == Steps(6)

        def twice(split, seed):
            return split.drawn(np.tile(np.arange(88), 2))

        drawn = ok.Recipe(sample=twice, accumulate=4)
        assert context.steps(drawn) == Steps(11, 4)


# ------------------------------------------------------------------------------------- range test


def test_the_edge_of_a_quadratic_is_where_descent_is_no_longer_stable(table):
    """Gradient descent on a mean square is stable up to 2 / the largest eigenvalue."""
    import tf_keras

    generator = np.random.default_rng(1)
    x = (generator.normal(size=(64, 4)) * [3.0, 1.0, 0.5, 2.0]).astype("float32")
    y = (x @ [1.0, -2.0, 0.5, 1.0]).astype("float32")[:, None]
    ones = np.concatenate([x, np.ones((64, 1))], axis=1)
    limit = 2 / np.linalg.eigvalsh(2 / 64 * ones.T @ ones).max()
    found = ok.find_learning_rate(
        linear_model(), ok.Data(train=(x, y), batch_size=64), optimizer="sgd", loss="mse"
    )
    assert found.diverged
    assert limit / 2 < found.edge < 4 * limit
    assert limit / 50 < found.suggestion < limit
    assert found.suggestion == pytest.approx(0.1 * found.edge, rel=0.05)

    # What is told is what happens: descent with the suggestion comes to the solution, and with
    # ten times the limit it runs away.
    for rate, settles in ((found.suggestion, True), (10 * limit, False)):
        model = linear_model(tf_keras.optimizers.SGD(rate))
        history = model.fit(x, y, batch_size=64, epochs=30, verbose=0).history["loss"]
        assert bool(history[-1] < 0.1 * history[0]) == settles


def test_rates_rise_evenly_and_losses_are_those_behind_them(table):
    """The first losses of the range test, by NumPy."""
    x, y = table.train
    data = ok.Data(train=(x, y), validation=table.validation, batch_size=len(x))
    model = linear_model()
    kernel, bias = (value.astype(float) for value in model.get_weights())
    found = ok.find_learning_rate(model, data, low=1e-3, high=1.0, updates=31, loss="mse")
    assert found.rates[0] == pytest.approx(1e-3)
    assert np.allclose(np.diff(np.log10(found.rates)), 0.1)
    for rate, loss in zip(found.rates[:15], found.losses, strict=False):
        error = x @ kernel + bias - y
        kernel -= rate * 2 * x.T @ error / len(x)
        bias -= rate * 2 * error.mean(axis=0)
        assert loss == pytest.approx(float(((x @ kernel + bias - y) ** 2).mean()), rel=1e-3)
    frame = found.to_frame()
    assert list(frame) == ["rate", "loss", "smoothed loss"]
    assert len(frame) == len(found.rates)
    assert found.plot().get_xlabel() == "log10 of rate"
    assert repr(found).startswith(f"LearningRateSearch(suggestion={found.suggestion:g}")
    assert "suggested learning rate" in found._repr_html_()


def curve(*, start, fall, limit, noise, rebound=None):
    """Losses over rates as models have them: a fall, then a rise beyond a limit."""
    rates = np.geomspace(1e-6, 10, 100)
    place = np.log10(rates)
    losses = start - fall / (1 + np.exp(-6 * (place - np.log10(limit) + 1)))
    losses = losses + 2 * start * np.maximum(0, place - np.log10(limit)) ** 2
    if rebound is not None:
        losses = np.where(rates > 20 * limit, rebound, losses)
    return rates, losses + noise * np.random.default_rng(5).normal(size=100)


@pytest.mark.parametrize(
    "shape",
    [
        {"start": 2.3, "fall": 1.5, "limit": 0.05, "noise": 0.05},
        {"start": 2.3, "fall": 1.5, "limit": 1e-3, "noise": 0.2},
        {"start": 0.05, "fall": 0.0, "limit": 1e-3, "noise": 0.01},  # trained already
        {"start": 5.0, "fall": 2.0, "limit": 1e-3, "noise": 0.05, "rebound": 2.0},
    ],
)
def test_the_edge_is_near_the_limit_whatever_the_shape(shape):
    found = LearningRateSearch.of(*curve(**shape), diverged=False)
    assert shape["limit"] / 5 < found.edge < 5 * shape["limit"]
    fell = not any("did not fall" in note for note in found.notes)
    assert fell == (shape["fall"] > 0)


@pytest.mark.parametrize("seed", range(12))
def test_rare_hard_batches_are_noise(seed):
    """Of a trained model most batches have next to no loss, and a few all of it."""
    rates = np.geomspace(1e-6, 10, 100)
    losses = np.exp(np.random.default_rng(seed).normal(-5.0, 2.0, 100))  # a mean of 0.05
    assert losses.max() > 20 * np.median(losses)
    losses += 2 * np.maximum(0, np.log10(rates) + 3) ** 2
    found = LearningRateSearch.of(rates, losses, diverged=False)
    assert 1e-3 / 10 < found.edge < 10 * 1e-3
    watch = _Losses(accumulate=1)
    seen = [watch.add(loss) or watch.diverged for loss in losses]
    assert not any(seen[:43])  # up to the limit
    assert any(seen)


def test_a_trained_model_is_given_a_rate_whatever_the_batches():
    data = digits(600)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    with isolated(0):
        model.fit(*data.train, epochs=60, verbose=0)
    small = ok.Data(train=data.train, validation=data.validation, batch_size=4)
    found = [ok.find_learning_rate(model, small, seed=seed) for seed in range(4)]
    assert all(len(search.losses) > 40 for search in found)  # nothing ran away before
    rates = [search.suggestion for search in found]
    assert min(rates) > 3e-6
    assert max(rates) < 100 * min(rates)


def test_a_curve_that_never_rises_says_so():
    rates, losses = curve(start=2.0, fall=1.0, limit=100.0, noise=0.01)
    found = LearningRateSearch.of(rates, losses, diverged=False)
    assert found.edge == pytest.approx(10.0)
    assert any("had not risen yet" in note for note in found.notes)
    with pytest.raises(ok.OptkitError, match="came to 5 updates before the loss"):
        LearningRateSearch.of(rates[:5], losses[:5], diverged=True)


def test_nothing_of_the_caller_changes():
    import tensorflow as tf

    model, data = small_model(), digits(200)
    weights = model.get_weights()
    random.seed(1)
    np.random.seed(2)
    tf.random.set_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy()
    found = ok.find_learning_rate(model, data, updates=25)
    again = ok.find_learning_rate(model, data, updates=25)
    assert found == again
    assert found != ok.find_learning_rate(model, data, updates=25, seed=1)
    assert not model._is_compiled
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    with isolated(0):
        pass
    drawn = float(tf.random.uniform(()))
    tf.random.set_seed(3)
    assert drawn == float(tf.random.uniform(()))


def test_recipe_passes_are_in_force():
    model, data = small_model(), digits(200)
    plain = ok.find_learning_rate(model, data, updates=25)
    smooth = ok.find_learning_rate(model, data, passes=[ok.LabelSmooth(0.3)], updates=25)
    assert plain.losses != smooth.losses
    x, y = data.train
    assert ok.find_learning_rate(model, (x, y), updates=25).losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": [ok.FineTune()]}, "must hold recipe passes"),
        ({"passes": ok.LabelSmooth()}, "must be a list"),
        ({"low": 0.0}, "`low`"),
        ({"high": 1e-7}, "`high`"),
        ({"updates": 3}, "`updates`"),
        ({"data": 3}, "`data` must be"),
    ],
)
def test_searches_that_cannot_be_meant(settings, message):
    settings = {"data": digits(100), **settings}
    with pytest.raises((ok.PipelineError, ok.ArgumentTypeError), match=message):
        ok.find_learning_rate(small_model(), **settings)


def test_a_search_needs_something_to_train():
    model = small_model()
    model.trainable = False
    with pytest.raises(ok.ModelError, match="is frozen"):
        ok.find_learning_rate(model, digits(100))
    with pytest.raises(ok.DataError, match="on `train`"):
        ok.find_learning_rate(small_model(), ok.Data(test=digits(100).test))


# ------------------------------------------------------------------------------------------- auto


def dropped_model(*first):
    """Batch normalization and dropout: states that a search would leave behind."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 1)),
            *first,
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )


def noise():
    """A layer of the user's, which draws from a generator of its own."""
    import tensorflow as tf
    import tf_keras

    class Noise(tf_keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.generator = tf.random.Generator.from_seed(3)

        def call(self, inputs, training=None):
            if not training:
                return inputs
            return inputs + self.generator.normal(tf.shape(inputs), stddev=0.1)

    return Noise()


def test_a_rate_that_was_found_trains_as_the_same_number_given():
    data, found = digits(300), {}
    with isolated(7):
        start = [layer.get_weights() for layer in dropped_model().layers]
    for rate in ("auto", None):
        with isolated(0):
            model = dropped_model(noise())
            for layer, values in zip(model.layers[1:], start, strict=True):
                layer.set_weights(values)
            context = context_of(model, data)
            given = rate or found["auto"].search.suggestion
            found[rate or "number"] = context.fit(
                model, ok.Recipe(), epochs=2, learning_rate=given, optimizer="adam"
            )
            found[f"{rate or 'number'} weights"] = model.get_weights()
            assert len(context.notes) == len(context.studies) == (rate == "auto")
    assert found["number"].search is None
    assert found["auto"].curves == found["number"].curves
    for one, other in zip(found["auto weights"], found["number weights"], strict=True):
        assert np.array_equal(one, other)


def test_a_search_keeps_what_must_be_kept(table):
    """Zeros stay zeros while rates are tried, as the losses are those of such a model."""
    with isolated(0):
        model = linear_model()
        model.set_weights([np.array([[1.0], [0.0], [1.0], [1.0]]), np.zeros(1)])
        context = context_of(model, table)
        [path] = [path for path in variables_by_path(model) if path.endswith("kernel")]
        context.attach(ok.KeepZeros(path, np.array([[True], [False], [True], [True]])))
        history = context.fit(model, ok.Recipe(), epochs=3, learning_rate="auto")
    # The column whose weight is held explains 4 of the loss, which nothing can take away.
    assert min(history.search.smoothed) > 1.0
    assert model.get_weights()[0][1] == 0


def test_auto_makes_digits_better_and_says_what_it_did():
    data = digits(400)
    passes = [ok.LRSchedule("cosine", warmup=0.1), ok.FineTune(12, "auto", patience=None)]
    report = ok.Pipeline(passes).run(dropped_model(), data).report
    row = report.rows[1]
    assert report.final.accuracy > 0.7 > 4 * report.baseline.accuracy
    assert row.notes[0].startswith("learning rate 0.")
    assert row.notes[0].endswith("found by a range test")
    assert row.studies[0].title == "Learning rates tried"
    rates = row.curves[0]["learning_rate"]
    assert rates[0] > rates[-1] > 0
    panels = report.plot(kind="curves")
    assert list(panels[2, 0].lines[0].get_ydata()) == pytest.approx(rates)
