"""Measuring: that it measures the real thing, notices what is wrong, and says what it cannot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import optkit as ok
from optkit.artifact import Artifact
from optkit.data import Data
from optkit.measuring import Meter
from optkit.measuring.accuracy import score
from optkit.measuring.latency import LatencyProcess
from optkit.measuring.worker import time_in_turns
from optkit.metric import infer_metric
from optkit.models import signature
from optkit.task import infer_task
from optkit.testing import small_model


def meter_for(model, data):
    bound = data.bind(signature(model))
    task = infer_task(model, bound.test.head(500)[1])
    return Meter(bound, task, infer_metric(model, task))


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
        [keras.Input((8, 8, 1)), *[keras.layers.Conv2D(96, 3, padding="same") for _ in range(6)]]
    )
    sample = np.zeros((1, 8, 8, 1), "float32")
    with LatencyProcess(1, sample) as process:
        process.load("light", ok.KerasArtifact(small_model()))
        process.load("twin", ok.KerasArtifact(small_model()))
        process.load("heavy", ok.KerasArtifact(heavy))
        alone = process.time("light")
        assert 0 < alone.ci[0] <= alone.median_ms <= alone.ci[1]
        assert alone.median_ms <= alone.p90_ms
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
    with LatencyProcess(1, np.zeros((1, 8, 8, 1), "float32")) as process:
        process.load("a", ok.KerasArtifact(small_model()))
        path = f"{process._folder.name}/a/model"
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == ["1", "1"]


def test_turns_alternate_and_end():
    order = []
    runners = [lambda: order.append("a"), lambda: order.append("b")]
    times = time_in_turns(runners, seconds=0.05, precision=0.0, minimum=4)
    assert len(times[0]) == len(times[1]) >= 4
    turns = "".join(order[-8:])
    assert turns in ("abbaabba", "baabbaab")


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
    assert "latency of a odd artifact cannot be measured" in measured.notes[0]


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

    with LatencyProcess(1, np.zeros((1, 8, 8, 1), "float32")) as process:
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
