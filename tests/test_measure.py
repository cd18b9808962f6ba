"""Measuring: that it measures the real thing, notices what is wrong, and says what it cannot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import optkit as ok
from optkit.artifact import Artifact
from optkit.data import Data
from optkit.measuring import Device, Measure, Measured, Meter, worst_classes
from optkit.measuring.accuracy import Scores, score
from optkit.measuring.latency import LatencyProcess
from optkit.measuring.measurement import Comparison, Measurement
from optkit.measuring.worker import by_block, time_callers, time_in_turns
from optkit.metric import infer_metric
from optkit.models import signature
from optkit.task import infer_task
from optkit.testing import small_model


def meter_for(model, data, measure=None):
    bound = data.bind(signature(model))
    task = infer_task(model, bound.test.head(500)[1])
    return Meter(bound, task, infer_metric(model, task), measure)


class Wrong(ok.KerasArtifact):
    """A runtime that gives other outputs than the model for some samples."""

    def __init__(self, model, how):
        super().__init__(model)
        self.how = how

    def predict(self, x, batch_size=32):
        return self.how(super().predict(x, batch_size))


def test_wrong_outputs_of_a_runtime_are_noticed(trained, data):
    meter = meter_for(trained, data)
    good = meter.measure(ok.KerasArtifact(trained)).figures
    rolled = meter.measure(Wrong(trained, lambda out: np.roll(out, 1, axis=1)))
    assert good.accuracy > 0.9
    assert rolled.figures.accuracy < 0.1
    assert rolled.comparison.accuracy_change == pytest.approx(
        rolled.figures.accuracy - good.accuracy
    )
    assert rolled.comparison.accuracy_change_ci[1] < 0
    with pytest.raises(ok.ModelError, match="NaN or infinite outputs"):
        meter.measure(Wrong(trained, lambda out: out * np.nan))


def test_accuracy_from_a_stream_is_that_from_arrays(trained, data):
    import tensorflow as tf

    stream = Data(test=tf.data.Dataset.from_tensor_slices(data.test).batch(7))
    one, other = (
        meter_for(trained, d).measure(ok.KerasArtifact(trained)).figures for d in (data, stream)
    )
    assert one.accuracy == other.accuracy
    assert one.accuracy_ci == other.accuracy_ci
    assert one.samples == other.samples == 120


def test_class_names_are_used(trained, data):
    names = [f"digit {i}" for i in range(10)]
    named = Data(test=data.test, class_names=names)
    per_class = meter_for(trained, named).measure(ok.KerasArtifact(trained)).figures.per_class
    assert list(per_class) == names


def test_labels_are_counted_by_label(dense):
    model = dense(3, "sigmoid")
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    y = (np.random.default_rng(1).random((50, 3)) < [0.1, 0.5, 0.9]).astype("int64")
    split = Data(test=(x, y)).bind(signature(model)).test
    task = infer_task(model, y)
    scores = score(ok.KerasArtifact(model), split, task, infer_metric(model, task))
    right = (model.predict(x, verbose=0) > 0.5) == y
    assert scores.mean == pytest.approx(right.mean())
    assert scores.per_class == pytest.approx(dict(enumerate(right.mean(0))))


def test_latency_is_of_the_artifact(trained):
    """A model with a hundred times the work takes longer, and one against itself does not."""
    import tf_keras as keras

    heavy = keras.Sequential(
        [keras.Input((8, 8, 1)), *[keras.layers.Conv2D(128, 3, padding="same") for _ in range(9)]]
    )
    sample = np.zeros((1, 8, 8, 1), "float32")
    with LatencyProcess(Device(), sample) as process:
        process.load("light", ok.KerasArtifact(small_model()))
        process.load("twin", ok.KerasArtifact(small_model()))
        process.load("heavy", ok.KerasArtifact(heavy))
        alone = process.time("light")
        assert 0 < alone.ci[0] <= alone.median_ms <= alone.ci[1]
        assert alone.median_ms <= alone.p90_ms <= alone.p99_ms
        latency, speedup = process.time_against("heavy", "light")
        assert speedup.ratio < 0.5
        assert speedup.ci[1] < 1
        assert latency.median_ms > alone.median_ms
        _, same = process.time_against("twin", "light")
        assert same.ratio == pytest.approx(1, abs=0.2)
        process.unload("twin")
        with pytest.raises(ok.OptkitError, match="could not do it: KeyError"):
            process.time("twin")


def test_the_threads_are_set_in_the_process():
    """Asked of TensorFlow in a process started as the measuring one is."""
    from optkit.measuring import worker

    script = (
        "import numpy as np, sys, tensorflow as tf\n"
        "from optkit.measuring import worker\n"
        "worker._keras_runner(sys.argv[1], [np.zeros((1, 8, 8, 1), 'f')], 1)()\n"
        "print(tf.config.threading.get_intra_op_parallelism_threads(),"
        " tf.config.threading.get_inter_op_parallelism_threads())"
    )
    assert worker.__doc__
    with LatencyProcess(Device(), np.zeros((1, 8, 8, 1), "float32")) as process:
        process.load("a", ok.KerasArtifact(small_model()))
        path = f"{process._folder.name}/a/model"
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == ["1", "1"]


def test_turns_are_even_and_end():
    order = []
    runners = [lambda: order.append("a"), lambda: order.append("b")]
    times = time_in_turns(runners, seconds=0.05, precision=0.0, minimum=4)
    assert len(times[0]) == len(times[1]) >= 4
    called = "".join(order[-len(times[0]) * 4 :])
    timed = called[1::2]
    assert timed == called[::2]  # each that is timed follows one of the same that is not
    blocks = [timed[i : i + 8] for i in range(0, len(timed), 8)]
    assert set(blocks) == {"abbabaab", "baababba"}
    assert len(by_block(times[0])) == len(blocks)
    assert sum(by_block(times[0])) == pytest.approx(sum(times[0]))


def test_what_cannot_be_timed_is_said_and_the_rest_is_measured(trained, data):
    class Odd(Artifact):
        kind = "odd"
        suffix = ".odd"
        parameters = 1
        sparsity = None

        def predict(self, x, batch_size=32):
            return ok.KerasArtifact(trained).predict(x, batch_size)

        def _write(self, path):
            path.write_bytes(b"odd")

    with meter_for(trained, data) as meter:
        meter.measure(ok.KerasArtifact(trained))
        measured = meter.measure(Odd())
    assert measured.figures.latency_ms is None
    assert measured.figures.accuracy > 0.9
    assert measured.figures.size_bytes == 3
    assert measured.figures.peak_memory_bytes is None
    assert measured.notes == (
        "memory and latency not measured: A odd artifact has no runtime that can be measured.",
    )


def test_the_death_of_the_process_is_said(trained, data):
    with meter_for(trained, data) as meter:
        meter.measure(ok.KerasArtifact(trained))
        meter._process._process.kill()
        measured = meter.measure(ok.KerasArtifact(trained))
    assert measured.figures.latency_ms is None
    assert "measuring process failed" in measured.notes[0]
    assert measured.figures.accuracy is not None


def test_an_open_input_shape_is_pinned_and_said():
    import tf_keras as keras

    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    x, y = np.random.default_rng(0).random((40, 8, 8, 1)).astype("f"), np.arange(40) % 10
    result = ok.Pipeline([ok.FineTune(1)]).run(model, Data(train=(x, y), test=(x, y)))
    assert any("pinned to (1, 8, 8, 1)" in note for note in result.report.notes)
    assert result.report.final.latency_ms > 0


def test_a_test_stream_in_changing_order_is_not_compared_sample_by_sample(trained, data):
    import tensorflow as tf

    shuffled = tf.data.Dataset.from_tensor_slices(data.test).shuffle(120).batch(16)
    meter = meter_for(trained, Data(test=shuffled))
    meter.measure(ok.KerasArtifact(trained))
    measured = meter.measure(ok.KerasArtifact(trained))
    assert "another order" in measured.notes[0]
    assert measured.comparison.accuracy_change == 0
    low, high = measured.comparison.accuracy_change_ci
    p = measured.figures.accuracy
    half = 1.959964 * np.sqrt(2 * p * (1 - p) / 120)
    assert (low, high) == pytest.approx((-half, half), rel=1e-5)
    ordered = meter_for(trained, data)
    ordered.measure(ok.KerasArtifact(trained))
    assert not ordered.measure(ok.KerasArtifact(trained)).notes


def test_a_model_with_lookup_tables_is_timed():
    import tf_keras as keras

    tokens = keras.Input((3,), dtype="int64", name="tokens")
    x = keras.layers.IntegerLookup(vocabulary=[3, 5, 8])(tokens)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(6, 4)(x))
    model = keras.Model(tokens, keras.layers.Dense(2, activation="softmax")(x))
    ids = np.random.default_rng(0).choice([3, 5, 8], (60, 3))
    y = (ids[:, 0] == 3).astype("int64")
    result = ok.Pipeline([ok.FineTune(1)]).run(model, Data(train=(ids, y), test=(ids, y)))
    assert result.report.final.latency_ms > 0


def test_a_late_answer_is_not_taken_for_another(monkeypatch):
    from optkit.measuring import latency

    with LatencyProcess(Device(), np.zeros((1, 8, 8, 1), "float32")) as process:
        monkeypatch.setattr(latency, "_ANSWER_WITHIN_SECONDS", 0.01)
        with pytest.raises(ok.OptkitError, match="no answer in time"):
            process.load("slow", ok.KerasArtifact(small_model()))
        monkeypatch.setattr(latency, "_ANSWER_WITHIN_SECONDS", 60)
        with pytest.raises(ok.OptkitError, match="no answer in time"):
            process.time("slow")


def test_a_class_beyond_the_outputs_deep_in_a_stream_is_said(trained, data):
    import tensorflow as tf

    x, y = data.test
    late = np.concatenate([np.tile(y, 10), [10]])
    images = np.concatenate([np.tile(x, (10, 1, 1, 1)), x[:1]])
    stream = tf.data.Dataset.from_tensor_slices((images, late)).batch(32)
    with pytest.raises(ok.DataError, match="holds the class 10"):
        ok.Pipeline([ok.QuantizeINT8()]).run(trained, Data(train=data.train, test=stream))


def test_a_process_that_runs_something_else_is_refused(trained, data):
    """The outputs of what is timed are held to those of the artifact."""
    with meter_for(trained, data, Measure(memory=False, latency_seconds=0.1)) as meter:
        meter.measure(ok.KerasArtifact(trained))
        wrong = meter.measure(Wrong(trained, lambda out: np.roll(out, 1, axis=1)))
        close = meter.measure(Wrong(trained, lambda out: out * (1 + 1e-6)))
        shape = meter.measure(Wrong(trained, lambda out: np.concatenate([out, 0 * out], axis=1)))
    for measured in (wrong, shape):
        assert measured.figures.latency_ms is None
        assert measured.comparison.speedup is None
        assert "ran something else than the artifact" in measured.notes[0]
    assert close.figures.latency_ms > 0
    assert not close.notes


def test_a_stage_is_faster_or_slower_by_the_interval():
    assert Comparison(2.0, (1.5, 2.5)).verdict == "faster"
    assert Comparison(0.5, (0.4, 0.9)).verdict == "slower"
    assert Comparison(1.1, (0.9, 1.3)).verdict == "no measurable change"
    assert Comparison().verdict is None


def test_larger_batches_are_what_is_timed(trained, data):
    settings = Measure(batch_size=64, memory=False, latency_seconds=0.2)
    with meter_for(trained, data, settings) as meter:
        assert np.shape(meter._process._sample) == (64, 8, 8, 1)
        many = meter.measure(ok.KerasArtifact(trained)).figures
    with meter_for(trained, data, Measure(memory=False, latency_seconds=0.2)) as meter:
        one = meter.measure(ok.KerasArtifact(trained)).figures
    assert many.latency_ms > 2 * one.latency_ms


def test_what_is_switched_off_is_not_measured_and_starts_nothing(trained, data):
    settings = Measure(latency_seconds=0, memory=False)
    with meter_for(trained, data, settings) as meter:
        figures = meter.measure(ok.KerasArtifact(trained)).figures
        assert meter._process is None
    assert figures.latency_ms is figures.peak_memory_bytes is figures.throughput is None
    assert figures.accuracy > 0.9
    assert sum(layer.parameters for layer in figures.layers) == figures.parameters


def test_throughput_of_parallel_callers(trained, data):
    figures = {}
    for callers in (1, 2):
        settings = Measure(memory=False, latency_seconds=0.3, callers=callers)
        with meter_for(trained, data, settings) as meter:
            figures[callers] = meter.measure(ok.KerasArtifact(trained)).figures
    for callers, found in figures.items():
        throughput = found.throughput
        assert (throughput.callers, throughput.batch_size) == (callers, 1)
        assert 0 < throughput.p50_ms <= throughput.p95_ms <= throughput.p99_ms
        assert throughput.error_rate == 0
    # A request of a lone caller is what latency is of: the two must agree, but for noise.
    alone = figures[1]
    assert 1 / 3 < alone.throughput.p50_ms / alone.latency_ms < 3
    assert alone.throughput.requests_per_second <= 1000 / alone.throughput.p50_ms * 2


def test_callers_ask_in_parallel_and_failures_are_counted():
    import time

    calls = []

    def slow():
        time.sleep(0.01)

    def fails_often():
        calls.append(1)
        time.sleep(0.01)
        if len(calls) % 2:
            raise ValueError("no")

    one = time_callers([slow], seconds=0.3)
    four = time_callers([slow] * 4, seconds=0.3)
    assert four["answered"] > 2.5 * one["answered"]
    assert one["percentiles"] == sorted(one["percentiles"])
    assert one["percentiles"][0] >= 0.01
    failing = time_callers([fails_often], seconds=0.3)
    assert abs(failing["errors"] - failing["answered"]) <= 1
    assert failing["last_error"] == "ValueError: no"


def test_a_restored_baseline_gives_the_same_figures(trained, data):
    import json

    settings = Measure(memory=False, latency_seconds=0.1)
    rolled = Wrong(trained, lambda out: np.roll(out, 1, axis=1))
    with meter_for(trained, data, settings) as meter:
        baseline = meter.measure(ok.KerasArtifact(trained))
        first = meter.measure(rolled)
    values, arrays = baseline.to_plain()
    stored = Measured.from_plain(json.loads(json.dumps(values)), arrays)
    assert stored.figures == baseline.figures
    with meter_for(trained, data, settings) as meter:
        meter.restore_baseline(ok.KerasArtifact(trained), stored)
        assert meter._baseline_timed is None  # not run again for its own sake
        again = meter.measure(rolled)
        good = meter.measure(ok.KerasArtifact(small_model()))
    assert again.comparison == first.comparison
    assert again.validation_change == first.validation_change < -0.8
    assert again.validation_change_ci == first.validation_change_ci
    assert good.comparison.speedup is not None  # so the baseline was loaded in the end


def test_scores_survive_being_stored(tmp_path):
    scores = Scores(
        np.array([0.0, 1.0], np.float32),
        {3: 0.5, 7: 0.0},
        {3: 2, 7: 1},
        "abc",
        2,
        chance=0.4,
        figure=0.7,
        targets=np.array([1, 2]),
        outputs=np.eye(2),
    )
    np.savez(tmp_path / "scores.npz", **scores.to_arrays())
    with np.load(tmp_path / "scores.npz") as stored:
        again = Scores.from_arrays(dict(stored))
    assert (again.per_class, again.counts, again.order) == ({3: 0.5, 7: 0.0}, {3: 2, 7: 1}, "abc")
    assert (again.samples, again.chance, again.mean) == (2, 0.4, 0.7)
    for one, other in zip(again.kept(), scores.kept(), strict=True):
        assert np.array_equal(one, other)
    plain = Scores(np.ones(3, np.float32), None, None, "x", 3)
    assert Scores.from_arrays(plain.to_arrays()).per_class is None
    with pytest.raises(ValueError, match="only kept for"):
        plain.kept()


def test_the_validation_change_is_paired_against_the_baseline(trained, data):
    meter = meter_for(trained, data)
    baseline = meter.measure(ok.KerasArtifact(trained))
    assert baseline.validation_change is None
    rolled = meter.measure(Wrong(trained, lambda out: np.roll(out, 1, axis=1)))
    assert rolled.validation_change == pytest.approx(rolled.validation - baseline.validation)
    low, high = rolled.validation_change_ci
    assert low < rolled.validation_change < high < 0
    # Without a test split, validation is what is reported, and the two are one.
    single = Data(train=data.train, validation=data.validation)
    bound = single.bind(signature(trained))
    task = infer_task(trained, data.validation[1])
    meter = Meter(bound, task, infer_metric(trained, task))
    meter.measure(ok.KerasArtifact(trained))
    same = meter.measure(Wrong(trained, lambda out: np.roll(out, 1, axis=1)))
    assert same.validation_change == same.comparison.accuracy_change
    assert same.scores is same.validation_scores


def test_a_drop_that_the_mean_hides_is_seen(trained, data):
    """One class of ten is answered wrongly throughout: its mean hides most of it."""

    def forget_seven(out):
        out = out.copy()
        out[:, 7] = 0
        return out

    meter = meter_for(trained, data)
    before = meter.measure(ok.KerasArtifact(trained)).figures
    after = meter.measure(Wrong(trained, forget_seven)).figures
    worst, *others = worst_classes(before, after, 3)
    assert (worst.name, worst.after) == ("7", 0.0)
    assert worst.change == -before.per_class["7"] < -0.8
    assert worst.samples == int(np.sum(data.test[1] == 7)) == after.class_samples["7"]
    assert len(others) == 2
    assert all(item.after >= worst.after for item in others)
    assert worst_classes(before, Measurement(), 3) == []
    assert worst_classes(None, after, 1)[0].change is None
    with pytest.raises(ok.PipelineError, match="`count`"):
        worst_classes(before, after, 0)


@pytest.mark.parametrize("kind", ["classes", "labels", "regression"])
def test_a_baseline_no_better_than_chance_is_said(kind, dense, caplog):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    if kind == "classes":
        model, y = dense(3, "softmax"), rng.choice(3, 200, p=[0.7, 0.2, 0.1])
        chance = np.mean(y == 0)
    elif kind == "labels":
        model, y = dense(2, "sigmoid"), (rng.random((200, 2)) < [0.1, 0.9]).astype(int)
        chance = (np.mean(y[:, 0] == 0) + np.mean(y[:, 1])) / 2
    else:
        model, y = dense(1, None), rng.normal(size=200).astype("float32")
        chance = np.mean(np.abs(y - np.median(y)))
    meter = meter_for(model, Data(test=(x, y)))
    measured = meter.measure(ok.KerasArtifact(model))
    assert measured.scores.chance == pytest.approx(chance)
    assert any("no better than chance" in note for note in meter.notes)
    assert "no better than chance" in caplog.text


def test_a_baseline_better_than_chance_is_not_warned_of(trained, data, dense):
    meter = meter_for(trained, data)
    meter.measure(ok.KerasArtifact(trained))
    assert not meter.notes
    model = dense(1, None)
    x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    exact = Data(test=(x, model.predict(x, verbose=0)[:, 0] + 0.001))
    meter = meter_for(model, exact)
    meter.measure(ok.KerasArtifact(model))
    assert not meter.notes


def test_a_classifier_of_raw_texts_is_timed_and_weighed():
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((2,), dtype="string"),
            layers.Hashing(16),
            layers.Embedding(16, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )
    words = np.array([["good", "film"], ["bad", "fïlm"]], dtype=object)
    data = Data(test=(words, ["yes", "no"]), class_names=["no", "yes"])
    found = ok.measure(model, data, measure=ok.Measure(latency_seconds=0.05))
    assert found.figures.latency_ms > 0
    assert found.figures.peak_memory_bytes > found.figures.runtime_memory_bytes > 0
    assert not found.notes or "not measured" not in " ".join(found.notes)
