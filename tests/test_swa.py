"""`SWA`: what is averaged, when, and at which learning rates."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

import optkit as ok
from optkit.context import Context
from optkit.entrance import admit
from optkit.models import variables_by_path
from optkit.passes.swa import AveragingRate, ExponentialMean, RunningMean, _averaging_updates
from optkit.prepare import Options, prepare
from optkit.runtime import isolated
from optkit.testing import digits, small_model
from optkit.training import Steps

pytestmark = pytest.mark.usefixtures("untimed")


class Looking(ok.RecipePass):
    """Writes down the weights and the rate behind every batch."""

    weights: ClassVar[list[dict[str, np.ndarray]]] = []
    rates: ClassVar[list[float]] = []

    def amend(self, recipe):
        import tf_keras

        class Look(tf_keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                Looking.rates.append(float(self.model.optimizer.learning_rate))
                Looking.weights.append(
                    {path: item.numpy() for path, item in variables_by_path(self.model).items()}
                )

        return recipe.amended(callbacks=Look)


@pytest.fixture(scope="module")
def data():
    """Six batches an epoch."""
    plain = digits(300)
    x, y = plain.train
    return ok.Data(train=(x[:176], y[:176]), validation=plain.validation, batch_size=32)


def train(swa, data, recipe=None):
    """Runs the pass alone and returns model and context; what it saw is in `Looking`."""
    Looking.weights, Looking.rates = [], []
    with isolated(0):
        model = small_model()
        prepared = prepare((), admit(model, data), data, None, Options())
        context = Context(
            data=prepared.data,
            task=prepared.task,
            metric=prepared.metric,
            loss=prepared.loss,
            seed=3,
            model=model,
        )
        state = ok.State(ok.KerasArtifact(model), Looking().amend(recipe or ok.Recipe()))
        return swa.apply(state, context).artifact.model, context


@pytest.mark.parametrize(
    ("settings", "accumulate", "first"),
    [
        ({"epochs": 3, "start": 1, "decay": 0.9}, None, 1),
        ({"epochs": 3, "start": 0.67, "schedule": "cyclic"}, None, 2),
        ({"epochs": 2, "start": 0.0, "decay": 0.9}, 4, 0),
    ],
)
def test_the_exponential_mean_by_hand(data, settings, accumulate, first):
    recipe = ok.Recipe(accumulate=accumulate)
    swa = ok.SWA(learning_rate=0.02, average="ema", **settings)
    model, context = train(swa, data, recipe)
    ends = (3, 5) if accumulate else range(6)  # the batches of an epoch behind which weights moved
    places = [6 * epoch + i for epoch in range(first, swa.epochs) for i in ends]
    decay = settings.get("decay", 0.999)
    counts = decay ** np.arange(len(places))[::-1]
    found = variables_by_path(model)
    for path in ("conv/kernel", "norm/gamma", "classes/kernel", "classes/bias"):
        values = np.array([Looking.weights[i][path] for i in places], np.float64)
        expected = np.tensordot(counts / counts.sum(), values, 1)
        assert np.allclose(found[path].numpy(), expected, rtol=0, atol=2e-6), path
        assert not np.allclose(values[-1], expected, rtol=0, atol=2e-6), "it is an average"
    epochs = f"of epochs {first + 1} to {swa.epochs}"
    assert context.notes[0] == f"averaged the weights behind {len(places)} updates, {epochs}"


def test_a_whole_number_is_an_epoch_to_start_at_and_the_row_compares_with_the_last_weights(data):
    from optkit.measuring.accuracy import score

    model, context = train(ok.SWA(4, 0.02, start=1), data)
    assert context.notes[0] == "averaged 3 sets of weights, of epochs 2 to 4"
    kernel = variables_by_path(model)["conv/kernel"].numpy()
    mean = np.mean([Looking.weights[6 * epoch + 5]["conv/kernel"] for epoch in (1, 2, 3)], axis=0)
    assert np.allclose(kernel, mean, rtol=0, atol=1e-6)

    split, aside = context.data.validation, context.seconds_aside
    averaged = score(ok.KerasArtifact(model), split, context.task, context.metric).mean
    last = small_model()
    for path, variable in variables_by_path(last).items():
        variable.assign(Looking.weights[-1][path])
    before = score(ok.KerasArtifact(last), split, context.task, context.metric).mean
    assert context.notes[-1] == (
        f"accuracy on validation: last weights {before:.4f}, averaged {averaged:.4f}"
    )
    assert aside > 0


def test_cosine_cycles_fall_to_a_twentieth(data):
    train(ok.SWA(5, 0.1, start=1, schedule="cosine", cycle_epochs=2, optimizer="sgd"), data)
    place = np.arange(12) / 11
    cycle = 0.005 + 0.095 * (1 + np.cos(np.pi * place)) / 2
    assert Looking.rates == pytest.approx([0.1] * 6 + [*cycle] * 2, rel=1e-4)


def test_cycles_go_by_updates(data):
    recipe = ok.Recipe(accumulate=4)
    train(ok.SWA(2, 0.1, start=0, schedule="cyclic", optimizer="sgd"), data, recipe)
    assert [Looking.rates[i] for i in (3, 5, 9, 11)] == pytest.approx([0.1, 0.005] * 2, rel=1e-4)


def test_a_schedule_shapes_the_epochs_before_and_then_the_rate_stays_up(data):
    recipe = ok.LRSchedule("cosine", end=0.5).amend(ok.Recipe())
    _, context = train(ok.SWA(4, 0.1, start=0.5, optimizer="sgd"), data, recipe)
    wave = 0.05 + 0.05 * (1 + np.cos(np.pi * np.arange(12) / 12)) / 2
    assert Looking.rates == pytest.approx([*wave, *[0.1] * 12], rel=1e-4)
    assert not any("no part in it" in note for note in context.notes)
    _, context = train(ok.SWA(1, 0.1, optimizer="sgd"), data, recipe)
    assert Looking.rates == pytest.approx([0.1] * 6)
    assert any("no part in it" in note for note in context.notes)


def test_the_course_of_a_training_of_one_update_an_epoch():
    rate = AveragingRate(None, 0, "cyclic", 1).rate(0.2, 3, 1)
    assert [float(rate(step)) for step in range(3)] == pytest.approx([0.2] * 3)


def test_zeros_stay_zeros_in_an_exponential_mean(data):
    swa = ok.SWA(2, 0.02, average="ema", decay=0.9, start=0)
    result = ok.Pipeline([ok.Prune(0.6, epochs=1, learning_rate=0.02), swa]).run(
        small_model(), data
    )
    pruned, averaged = (
        variables_by_path(result.stages[name].model)["conv/kernel"].numpy()
        for name in ("Prune", "SWA")
    )
    assert np.mean(pruned == 0) == pytest.approx(0.6, abs=0.02)
    assert np.array_equal(averaged == 0, pruned == 0)
    assert not np.array_equal(averaged, pruned)


def test_pruning_under_accumulation_reaches_its_target(data):
    """Two updates an epoch: the end of the schedule is one of them."""
    recipe = ok.Recipe(accumulate=4)
    model, _ = train(ok.Prune(0.7, epochs=2, learning_rate=0.02), data, recipe)
    zeros = [np.mean(item["classes/kernel"] == 0) for item in Looking.weights]
    assert zeros[-1] == pytest.approx(0.7, abs=0.01)
    # Weights fall away between updates alone: four batches, then two, make one.
    for begin, end in ((0, 4), (4, 6), (6, 10), (10, 12)):
        assert len(set(zeros[begin:end])) == 1
    assert np.mean(model.get_layer("classes").kernel.numpy() == 0) == pytest.approx(zeros[-1])


@pytest.mark.parametrize("kind", [RunningMean, lambda: ExponentialMean(0.7)])
def test_a_mean_that_goes_on_elsewhere_is_the_same(kind):
    import tensorflow as tf

    weight, counter = tf.Variable([0.0, 0.0]), tf.Variable(3)
    sets = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    whole, first, second = kind(), kind(), kind()
    for i, values in enumerate(sets):
        weight.assign(values)
        for mean in (whole, first if i < 4 else second):
            mean.add(
                {"w": weight, "n": counter}
                if isinstance(mean, ExponentialMean)
                else {"w": weight.numpy(), "n": counter.numpy()}
            )
        if i == 3:
            second.restore(first.count, first.values())
    assert second.count == whole.count == 6
    assert list(second.values()) == ["w"]
    assert second.values()["w"] == pytest.approx(whole.values()["w"], abs=1e-6)


def test_the_callback_keeps_and_takes_up_its_state():
    import tf_keras

    model = small_model()
    one = _averaging_updates(ExponentialMean(0.5), 0, Steps(2))
    other = _averaging_updates(ExponentialMean(0.5), 0, Steps(2))
    assert isinstance(one, tf_keras.callbacks.Callback)
    for item in (one, other):
        item.set_model(model)
        item.on_train_begin()
    one.on_epoch_begin(4)
    one.on_train_batch_end(0)
    other.restore(one.state())
    assert (other.begin, other.end) == (5, 5)
    assert other.state().keys() == one.state().keys()
    for name, value in one.state().items():
        assert np.array_equal(value, other.state()[name]), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ok.SWA(3, start=3), "`start` must be from 0 to 2"),
        (lambda: ok.SWA(start=True), "`start`"),
        (lambda: ok.SWA(start=1.0), "`start` must be a number in"),
        (lambda: ok.SWA(average="median"), "`average` must be one of"),
        (lambda: ok.SWA(decay=0.9), "`decay` is for average='ema'"),
        (lambda: ok.SWA(average="ema", decay=1.0), "`decay` must be a number in"),
        (lambda: ok.SWA(3, start=2, schedule="cosine", cycle_epochs=2), "No cycle of 2 epochs"),
        (lambda: ok.SWA(learning_rate="fast"), "a number above 0 or 'auto'"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises((ok.PipelineError, ok.ArgumentTypeError), match=message):
        make()


def test_an_average_is_better_than_the_last_weights_where_the_rate_is_high():
    """A rate at which single weights jump about: their mean is better, by its own note."""
    passes = [ok.FineTune(8, 0.03, patience=None), ok.SWA(5, 0.15, start=0, average="ema")]
    report = ok.Pipeline(passes).run(small_model(), digits(400)).report
    note = report.rows[1].notes[-1]
    last, averaged = (float(part.split()[-1]) for part in note.split(","))
    assert averaged > last + 0.15


def test_a_schedule_that_begins_at_nothing_is_refused_before_anything_trains(data):
    """Its first rate is the peak where the pass gives none."""
    import tf_keras

    warming = tf_keras.optimizers.schedules.CosineDecay(0.0, 9, warmup_target=0.1, warmup_steps=5)
    model = small_model()
    model.compile(tf_keras.optimizers.SGD(warming), "sparse_categorical_crossentropy")
    tune = ok.FineTune(1)
    for passes in ([tune, ok.SWA(2)], [tune, ok.LRSchedule(), ok.Prune(epochs=1)]):
        with pytest.raises(ok.PipelineError, match=r"begins at 0\. Give the training pass a"):
            ok.Pipeline(passes).check(model, data)
    for passes in ([ok.SWA(2, 0.1)], [ok.Prune(epochs=1)], [ok.SWA(2, optimizer="sgd")]):
        ok.Pipeline(passes).check(model, data)
