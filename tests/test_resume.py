"""Trainings that go on where they were: checkpoints within a pass, whatever the pass."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import optkit as ok
from optkit.bundle import Bundle
from optkit.models import signature
from optkit.testing import digits
from optkit.training import checkpoint as checkpoints
from optkit.training import loop
from optkit.training.checkpoint import signature_of
from optkit.training.randomness import seeded_layers, unrepeatable_operations

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
    given = {"progress": stop.listen, "stop": stop, "measure": MEASURE} | settings
    result = ok.Pipeline(passes, seed=5).run(model_with(), digits(200), workdir=workdir, **given)
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


class Twice(ok.TrainPass):
    """A pass of a user's, with rates by layer and two trainings."""

    def train(self, model, recipe, context):
        factors = {"conv/kernel": 0.1}
        context.fit(model, recipe, epochs=2, learning_rate=1e-2, rate_factors=factors)
        context.fit(model, recipe, epochs=2, optimizer="sgd", learning_rate=1e-2)
        return model


class Noisy(ok.TrainPass):
    """Trains a model with a layer of the user's that holds a generator of its own."""

    def train(self, model, recipe, context):
        import tensorflow as tf
        import tf_keras

        class Noise(tf_keras.layers.Layer):
            def __init__(self, **settings):
                super().__init__(**settings)
                self.numbers = tf.random.Generator.from_seed(1)

            def call(self, x, training=None):
                return x * self.numbers.uniform(tf.shape(x)) if training else x

        out = model.layers[-1].output
        noisy = tf_keras.Model(model.inputs, Noise(name="noise")(out))
        context.fit(noisy, recipe, epochs=3, learning_rate=1e-2)
        return model


def averaging(rate):
    import tf_keras

    return tf_keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.5)


def legacy(rate):
    import tf_keras

    return tf_keras.optimizers.legacy.Adam(rate)


#: Passes, and behind how many epochs of all they are ended.
CASES = {
    "early stopping": (lambda: [ok.FineTune(4, 1e-2, patience=2)], 3),
    "cycles averaged": (
        lambda: [ok.SWA(4, 1e-2, start=0, schedule="cyclic", cycle_epochs=2)],
        3,
    ),
    "pruned": (lambda: [ok.Prune(0.8, 3)], 1),
    "rounded": (lambda: [ok.QuantizeAware(2, 1e-3)], 1),
    "augmented, callback of Keras": (
        lambda: [ok.Augment(rotation=10.0), Plateau(), ok.FineTune(4, 1e-2)],
        3,
    ),
    "first of two trainings": (lambda: [Twice()], 1),
    "second of two trainings": (lambda: [Twice()], 3),
    "between two stages": (lambda: [ok.TransferLearn(None, 1, fine_tune_epochs=2, unfreeze=2)], 1),
    "schedule, accumulated": (
        lambda: [ok.LRSchedule("cosine"), ok.GradientAccumulation(3), ok.FineTune(3, 1e-2)],
        2,
    ),
    "16 bits": (lambda: [ok.MixedPrecision("float16"), ok.FineTune(3, 1e-2)], 2),
    "averaging optimizer, behind its first training": (
        lambda: [ok.TransferLearn(None, 1, fine_tune_epochs=2, optimizer=averaging(1e-3))],
        1,
    ),
    "generator of a layer": (lambda: [Noisy()], 2),
    "rate found": (lambda: [ok.FineTune(3, "auto")], 2),
    "legacy optimizer": (lambda: [ok.FineTune(3, optimizer=legacy(1e-2))], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped(name, tmp_path):
    make, after = CASES[name]
    whole, _ = run(make(), None)
    ended, stop = run(make(), tmp_path, Stop(after))
    assert row(ended).status == "cancelled"
    assert (tmp_path / "checkpoints").is_dir()
    resumed, again = run(make(), tmp_path)
    assert len(stop.seen) == after
    assert len(again.seen) == sum(item["epochs"] for item in trainings(whole)) - after
    assert same(resumed, whole), "also: a run without a workdir gives the same"
    assert row(resumed).notes == row(whole).notes
    found = trainings(resumed)
    behind = [epoch for item in found for epoch in item.pop("resumed")]
    assert behind in ([after], [after - 2], [])  # of this training, of the second, of none
    for item in (expected := trainings(whole)):
        assert item.pop("resumed") == []
    assert found == expected
    assert row(resumed).curves == row(whole).curves
    assert not (tmp_path / "checkpoints").exists()


def row(result):
    return result.report.rows[-1]


def trainings(result):
    return [dict(item) for item in row(result).trainings]


class Forgetful(ok.RecipePass):
    """A callback that counts batches and tells nobody."""

    def amend(self, recipe):
        import tf_keras

        class Counting(tf_keras.callbacks.Callback):
            seen = 0

            def on_train_batch_end(self, batch, logs=None):
                self.seen += 1

        return recipe.amended(callbacks=Counting)


def test_what_cannot_be_taken_up_is_said(tmp_path):
    run([Forgetful(), ok.FineTune(3, 1e-2)], tmp_path, Stop(2))
    resumed, _ = run([Forgetful(), ok.FineTune(3, 1e-2)], tmp_path)
    assert trainings(resumed)[0]["resumed"] == [2]
    said = [note for note in row(resumed).notes if "went on behind epoch 2" in note]
    assert len(said) == 1
    assert "what Counting held is lost" in said[0]


def test_what_was_said_of_a_training_is_said_again_where_it_need_not_be_repeated(tmp_path):
    passes = [Forgetful(), Twice()]
    run(passes, tmp_path, Stop(1))
    run(passes, tmp_path, Stop(2))  # goes on in the first training, ends in the second
    resumed, again = run(passes, tmp_path)
    assert len(again.seen) == 1
    said = [note for note in row(resumed).notes if "what Counting held is lost" in note]
    assert len(said) == 2


def test_a_rate_that_was_found_is_not_looked_for_again(tmp_path, monkeypatch):
    looked = []
    search = loop.range_test
    monkeypatch.setattr(
        loop, "range_test", lambda *given, **named: looked.append(1) or search(*given, **named)
    )
    run([ok.FineTune(3, "auto")], tmp_path, Stop(2))
    ended, _ = run([ok.FineTune(3, "auto")], tmp_path)
    assert len(looked) == 1
    assert row(ended).studies[0].title == "Learning rates tried"


def test_random_numbers_that_cannot_be_repeated_are_found():
    import tensorflow as tf

    drawing = tf.function(lambda x: x + tf.random.uniform([2]))
    drawing(tf.zeros([2]))
    nested = tf.function(lambda x: 2 * drawing(x))
    nested(tf.zeros([2]))
    stateless = tf.function(lambda x: x + tf.random.stateless_uniform([2], seed=[1, 2]))
    stateless(tf.zeros([2]))
    assert unrepeatable_operations(drawing) == ["RandomUniform"]
    assert unrepeatable_operations(nested) == ["RandomUniform"]
    assert unrepeatable_operations(stateless) == []


def test_layers_draw_by_seed_and_epoch_and_as_before_afterwards():
    import tensorflow as tf

    model = model_with()
    layer = model.get_layer("dropout")
    before = dict(vars(layer._random_generator))
    ones, seen = tf.ones([1, 1000]), {}
    for seed, epoch, batches in ((1, 0, 3), (1, 1, 1), (1, 0, 1), (2, 0, 1)):
        with seeded_layers(model, seed) as callback:
            callback.on_epoch_begin(epoch)
            masks = [layer(ones, training=True).numpy() for _ in range(batches)]
        seen.setdefault((seed, epoch), masks[0])
        assert np.array_equal(seen[seed, epoch], masks[0])
        assert not any(np.array_equal(masks[0], mask) for mask in masks[1:])
    assert len({mask.tobytes() for mask in seen.values()}) == 3
    assert np.mean(seen[1, 0] == 0) == pytest.approx(0.3, abs=0.06)
    assert vars(layer._random_generator) == before


def test_a_damaged_checkpoint_is_left_alone_and_the_training_begins_anew(tmp_path, caplog):
    whole, _ = run([ok.FineTune(3, 1e-2)], None)
    run([ok.FineTune(3, 1e-2)], tmp_path, Stop(2))
    (file,) = (tmp_path / "checkpoints").rglob("*.checkpoint")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again, stop = run([ok.FineTune(3, 1e-2)], tmp_path)
    assert stop.seen == [1, 2, 3]
    assert same(again, whole)
    assert "is damaged" in caplog.text


def test_a_checkpoint_of_other_weights_is_not_used(tmp_path):
    model = model_with()
    known = signature_of(model, (3, 1e-2))
    assert signature_of(model, (3, 1e-2)) == known
    assert signature_of(model, (4, 1e-2)) != known
    model.get_layer("conv").trainable = False
    assert signature_of(model, (3, 1e-2)) != known
    model.get_layer("conv").trainable = True
    kernel = model.get_layer("conv").kernel
    kernel.assign(kernel + 1e-7)
    assert signature_of(model, (3, 1e-2)) != known


def test_epochs_shorter_than_a_second_are_not_all_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_SHORTEST", 1000.0)
    written = []
    monkeypatch.setattr(Bundle, "write", lambda self, path: written.append(path))
    run([ok.FineTune(3, 1e-2)], tmp_path)
    assert written == []


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Bundle, "write", full)
    result, _ = run([ok.FineTune(2, 1e-2)], tmp_path)
    assert row(result).status == "ok"
    assert caplog.text.count("no further checkpoints") == 1


def test_streams_go_on_where_they_were():
    import tensorflow as tf

    x = np.arange(10, dtype=np.float32)[:, None]
    stream = tf.data.Dataset.from_tensor_slices((x, np.zeros(10))).shuffle(10, seed=3).batch(3)
    for train, settings in (((x, np.zeros(10)), {}), (stream, {"fingerprint": "a"})):
        import tf_keras

        model = tf_keras.Sequential([tf_keras.Input((1,)), tf_keras.layers.Dense(1)])
        bound = ok.Data(train=train, batch_size=3, **settings).bind(signature(model))
        split = bound.train
        whole = [item.numpy() for item, _ in split.training_batches(7).take(3 * split.steps)]
        rest = [
            item.numpy() for item, _ in split.training_batches(7, first_epoch=2).take(split.steps)
        ]
        assert len(rest) == split.steps == 4
        if not settings:  # a stream is shuffled by its maker, who draws anew in each process
            for one, other in zip(whole[2 * split.steps :], rest, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            assert sorted(np.concatenate(rest)[:, 0]) == list(range(10))


# ------------------------------------------------------------------------------------------- killed


def start(workdir, model):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(workdir), str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_process_killed_in_an_epoch_goes_on_with_that_epoch(tmp_path):
    with start(tmp_path / "whole", tmp_path / "whole.keras") as whole:
        with start(tmp_path / "run", tmp_path / "run.keras") as killed:
            told = [killed.stdout.readline() for _ in range(3)]
            time.sleep(0.2)
            killed.kill()
        with start(tmp_path / "run", tmp_path / "run.keras") as resumed:
            again = resumed.stdout.read().splitlines()
        everything = whole.stdout.read().splitlines()
    assert [line.strip() for line in told] == everything[:3]
    assert again == everything[3:]
    one, other = (ok.load(tmp_path / f"{name}.keras").model for name in ("whole", "run"))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
