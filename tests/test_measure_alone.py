"""`measure`: figures of one artifact, or of two against each other, without a pipeline."""

from __future__ import annotations

import random

import numpy as np
import pytest

import optkit as ok
from optkit.convert import convert, convert_to_tflite
from optkit.data import Data
from optkit.measuring import Measure, measure
from optkit.task import infer_task_of_outputs

QUIET = Measure(latency_seconds=0, memory=False)


@pytest.fixture(scope="module")
def files(trained, data):
    from optkit.testing import small_model

    return {
        "trained": ok.TFLiteArtifact(convert_to_tflite(trained)),
        "small": ok.TFLiteArtifact(convert_to_tflite(small_model())),
    }


def test_everything_of_two_artifacts(trained, data, files):
    settings = Measure(latency_seconds=0.2, callers=2)
    found = measure(files["trained"], data, baseline=trained, measure=settings)
    assert found.figures.accuracy == found.baseline.accuracy > 0.9
    assert found.comparison.accuracy_change == 0
    assert found.figures.samples == 120
    assert found.figures.latency_ms <= found.figures.latency_p99_ms
    assert found.figures.peak_memory_bytes < found.baseline.peak_memory_bytes
    assert found.figures.throughput.callers == 2
    # How narrow the interval gets, and so the verdict, is a matter of what else the machine does.
    assert found.comparison.speedup > 1
    assert found.verdict == found.comparison.verdict
    assert len(found.worst_classes(3)) == 3
    assert found.notes == ()
    text = str(found)
    for part in (
        "accuracy",
        "latency, p99",
        "peak memory",
        f"speed: {found.verdict}",
        "worst classes:",
    ):
        assert part in text
    assert "n = 120" in text
    assert "on test; 1 thread" in text


def test_a_file_alone_scores_as_its_model(trained, data, files, tmp_path):
    path = files["trained"].save(tmp_path / "model")
    expected = measure(trained, data, measure=QUIET).figures
    for given in (files["trained"], path, str(path)):
        found = measure(given, data.test, measure=QUIET)
        assert found.figures.accuracy == expected.accuracy
        assert found.figures.accuracy_ci == expected.accuracy_ci
        assert found.figures.per_class == expected.per_class
        assert found.baseline is None
        assert found.comparison.accuracy_change is None
        assert found.verdict is None


def test_a_drop_is_seen(trained, data, files):
    found = measure(files["small"], data, baseline=files["trained"], measure=QUIET)
    assert found.comparison.accuracy_change < -0.5
    assert found.comparison.accuracy_change_ci[1] < -0.5
    assert found.worst_classes(1)[0].after == 0


def test_the_callers_generators_stay(data, files):
    random.seed(3)
    expected = random.random()
    random.seed(3)
    measure(files["small"], data, measure=QUIET)
    assert random.random() == expected


def test_a_function_is_tried_on_the_file_itself(data, files):
    def share(y_true, y_pred):
        return float(np.mean(y_pred.argmax(axis=1) == y_true))

    settings = Measure(metric=share, higher_is_better=True, latency_seconds=0, memory=False)
    found = measure(files["trained"], data, measure=settings)
    plain = measure(files["trained"], data, measure=QUIET)
    assert found.metric == "share"
    assert found.figures.accuracy == plain.figures.accuracy
    assert found.figures.accuracy_ci == pytest.approx(plain.figures.accuracy_ci, abs=0.03)


@pytest.fixture(scope="module")
def words():
    """A model that takes raw texts, its data, and its file."""
    import tf_keras

    texts = np.array(["good film", "bad", "a bad film", "so good"] * 6, dtype=object)
    tf_keras.utils.set_random_seed(0)
    vectorize = tf_keras.layers.TextVectorization(max_tokens=9, output_sequence_length=4)
    vectorize.adapt(texts)
    model = tf_keras.Sequential(
        [
            tf_keras.Input((), dtype="string", name="text"),
            vectorize,
            tf_keras.layers.Embedding(9, 4),
            tf_keras.layers.GlobalAveragePooling1D(),
            tf_keras.layers.Dense(2, activation="softmax"),
        ]
    )
    return model, (texts, np.arange(24) % 2), convert(model).artifact


def test_a_file_behind_lookups_takes_what_the_model_takes(words, tmp_path):
    model, data, artifact = words
    expected = measure(model, data, measure=QUIET).figures
    path = artifact.save(tmp_path / "texts.tflite")
    found = measure(path, data, measure=QUIET)
    assert found.figures.accuracy == expected.accuracy
    assert found.figures.per_class == expected.per_class


def test_what_a_timed_file_leaves_out_is_said(words):
    model, data, artifact = words
    timed = Measure(latency_seconds=0.05, memory=False)
    said = "latency, memory and size are those of the file, without the lookups"
    alone = measure(artifact, data, measure=timed)
    assert alone.notes[-1].startswith(said)
    assert "baseline" not in alone.notes[-1]
    against = measure(artifact, data, baseline=model, measure=timed)
    assert said in str(against)
    assert "the baseline's are of the whole model" in against.notes[-1]
    assert not any(said in note for note in measure(model, data, measure=timed).notes)


def test_goals_of_speed_behind_lookups_are_judged_with_a_note(words):
    model, (texts, y), _ = words
    result = ok.Pipeline([ok.QuantizeINT8()], goals=ok.Goals(min_speedup=1e-6)).run(
        model,
        ok.Data(train=(texts, y)),
        measure=Measure(latency_seconds=0.05, memory=False),
    )
    (row,) = result.report.rows
    assert row.speedup > 0
    assert any("the baseline's are of the whole model" in note for note in row.notes)


def test_a_keras_3_model_has_the_size_of_its_own_file(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Bidirectional(keras.layers.LSTM(4)),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    data = (np.zeros((6, 8, 8), "float32"), np.arange(6) % 2)
    model.save(tmp_path / "model.keras")
    wanted = ok.KerasArtifact(model).size_bytes
    assert wanted == pytest.approx((tmp_path / "model.keras").stat().st_size, rel=0.05)
    for given in (model, tmp_path / "model.keras"):  # one of Keras 2 is a tenth smaller
        assert measure(given, data, measure=QUIET).figures.size_bytes == pytest.approx(
            wanted, rel=0.02
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None), "`artifact` must be an artifact"),
        (("no/such/file.tflite", None), "There is no file"),
        (("small", [1, 2]), "`data` must be an `optkit.Data` or a pair"),
        (("small", (np.zeros((3, 8, 8, 1)),)), "`data` must be an `optkit.Data` or a pair"),
        (("small", (np.zeros((3, 9, 8, 1), "f"), [0, 1, 2])), "does not fit the model's input"),
        (("small", (np.zeros((3, 8, 8, 1), "f"), [0, 1, 12])), "class numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused(files, data, arguments, message):
    artifact, given = arguments
    with pytest.raises(ok.PipelineError, match=message):
        measure(files.get(artifact, artifact), given or data, measure=QUIET)


def test_further_arguments_are_checked(files, data):
    with pytest.raises(ok.ArgumentTypeError, match="`measure` must be an"):
        measure(files["small"], data, measure={"threads": 1})
    with pytest.raises(ok.DataError, match="There is nothing to measure on"):
        measure(files["small"], Data(train=data.train), measure=QUIET)


SOFTMAX = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (SOFTMAX, [1, 0], "multiclass, 3 classes, class numbers, probabilities"),
        (SOFTMAX, np.eye(3)[[1, 0]], "multiclass, 3 classes, one-hot targets, probabilities"),
        (SOFTMAX * 9 - 3, [1, 0], "multiclass, 3 classes, class numbers, logits"),
        (SOFTMAX[:, :1], [1, 0], "binary, 2 classes, probabilities"),
        (SOFTMAX[:, :1] * 9 - 3, [1, 0], "binary, 2 classes, logits"),
        (SOFTMAX[:, :2], [[1, 1], [0, 1]], "multilabel, 2 labels, probabilities"),
        (SOFTMAX * 9, [[1.5, 2.0, 3.1], [0.1, 2.0, 3.0]], "regression, 3 values"),
        (SOFTMAX[:, :1] * 9, [1.5, 0.25], "regression, 1 value"),
        (SOFTMAX[:, :1], [0.5, 0.25], "regression, 1 value"),
    ],
)
def test_what_a_file_is_for_follows_from_its_outputs(outputs, targets, expected):
    assert infer_task_of_outputs(outputs, np.array(targets)).describe() == expected


def test_what_a_file_is_for_can_be_said(files):
    task = infer_task_of_outputs(SOFTMAX, np.array([1, 0]), "sparse_categorical_crossentropy")
    assert task.describe() == "multiclass, 3 classes, class numbers, probabilities"
    with pytest.raises(ok.DataError, match="does not fit the targets"):
        infer_task_of_outputs(SOFTMAX, np.array([1.5, 0.5]))
