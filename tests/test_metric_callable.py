"""Metrics that the user names or writes: which are taken, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import optkit as ok
from optkit.data import Data
from optkit.measuring import Device, Measure, Meter
from optkit.measuring.statistics import mean_interval
from optkit.metric import resolve_metric
from optkit.models import signature
from optkit.task import infer_task


def macro_f1(y_true, y_pred):
    return f1_score(y_true, y_pred.argmax(axis=1), average="macro", zero_division=0)


def brier(y_true, y_pred):
    return np.square(np.eye(10)[y_true] - y_pred).sum(axis=1)


def meter_for(model, data, metric, higher_is_better=None):
    bound = data.bind(signature(model))
    x, y = bound.test.head(100)
    task = infer_task(model, y)
    found = resolve_metric(
        metric,
        higher_is_better,
        model,
        task,
        example=lambda: (y, ok.KerasArtifact(model).predict(x)),
    )
    return Meter(bound, task, found)


class Shifted(ok.KerasArtifact):
    """Gives the wrong class for every fifth sample."""

    def predict(self, x, batch_size=32):
        outputs = super().predict(x, batch_size)
        outputs[::5] = np.roll(outputs[::5], 1, axis=1)
        return outputs


def test_a_function_to_one_figure_is_bootstrapped(trained, data):
    meter = meter_for(trained, data, macro_f1, higher_is_better=True)
    assert meter.metric.custom
    assert meter.metric.per_sample is None
    assert meter.metric.name == "macro_f1"
    before = meter.measure(ok.KerasArtifact(trained))
    after = meter.measure(Shifted(trained))
    y = data.test[1]
    # `predict` is asked batch by batch, so which samples are shifted follows the batches.
    outputs, shifted = (m.scores.outputs for m in (before, after))
    assert before.figures.accuracy == pytest.approx(macro_f1(y, outputs))
    assert after.comparison.accuracy_change == pytest.approx(
        macro_f1(y, shifted) - macro_f1(y, outputs)
    )
    rng = np.random.default_rng(7)
    draws = rng.integers(0, len(y), (500, len(y)))
    single = [macro_f1(y[rows], shifted[rows]) for rows in draws]
    pairs = [macro_f1(y[rows], shifted[rows]) - macro_f1(y[rows], outputs[rows]) for rows in draws]
    assert after.figures.accuracy_ci == pytest.approx(np.percentile(single, [2.5, 97.5]), abs=0.03)
    assert after.comparison.accuracy_change_ci == pytest.approx(
        np.percentile(pairs, [2.5, 97.5]), abs=0.03
    )
    assert after.comparison.accuracy_change_ci[1] < 0
    # Whatever the metric, the accuracy of each class is known.
    right = outputs.argmax(axis=1) == y
    assert before.figures.per_class["3"] == pytest.approx(right[y == 3].mean())


def test_a_function_to_one_value_a_sample_keeps_no_outputs(trained, data):
    meter = meter_for(trained, data, brier, higher_is_better=False)
    found = meter.measure(ok.KerasArtifact(trained))
    values = brier(data.test[1], trained.predict(data.test[0], verbose=0))
    assert found.scores.outputs is None
    assert found.figures.accuracy == pytest.approx(values.mean(), rel=1e-4)
    assert found.figures.accuracy_ci == pytest.approx(
        mean_interval(values.astype(np.float32)), rel=1e-3
    )
    worse = meter.measure(Shifted(trained))
    assert worse.comparison.accuracy_change > 0
    assert not meter.metric.higher_is_better


def test_a_figure_that_few_samples_do_not_have(dense):
    """The first samples are of one class, and of one class there is no area under the curve."""
    model = dense(1, "sigmoid")
    x = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")
    y = np.repeat([0, 1], 150)

    def area(y_true, y_pred):
        return roc_auc_score(y_true, y_pred[:, 0])

    bound = Data(test=(x, y)).bind(signature(model))
    task = infer_task(model, y)
    outputs = model.predict(x, verbose=0)

    def example():
        return y[:100], outputs[:100]

    metric = resolve_metric(area, True, model, task, example=example)
    found = Meter(bound, task, metric).measure(ok.KerasArtifact(model)).figures
    assert found.accuracy == pytest.approx(roc_auc_score(y, outputs[:, 0]), abs=1e-6)
    assert found.accuracy_ci[0] < found.accuracy < found.accuracy_ci[1]


def test_an_unpaired_change_of_a_figure_is_wider(trained, data):
    import tensorflow as tf

    shuffled = tf.data.Dataset.from_tensor_slices(data.test).shuffle(120).batch(16)
    widths = []
    for split in (Data(test=data.test), Data(test=shuffled)):
        meter = meter_for(trained, split, macro_f1, higher_is_better=True)
        meter.measure(ok.KerasArtifact(trained))
        low, high = meter.measure(ok.KerasArtifact(trained)).comparison.accuracy_change_ci
        assert low <= 0 <= high
        widths.append(high - low)
    assert widths[0] == 0 < widths[1]


@pytest.mark.parametrize(
    ("given", "better", "name", "higher"),
    [
        ("mae", None, "mean_absolute_error", False),
        ("mse", None, "mean_squared_error", False),
        ("cosine_similarity", None, "cosine_similarity", True),
        ("mean_squared_logarithmic_error", None, "mean_squared_logarithmic_error", False),
    ],
)
def test_named_metrics_of_a_regression(dense, given, better, name, higher):
    model = dense(2, None)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), rng.random((60, 2)).astype("float32")
    meter = meter_for(model, Data(test=(x, y)), given, better)
    assert meter.metric.name == name
    assert meter.metric.higher_is_better is higher
    assert not meter.metric.custom
    found = meter.measure(ok.KerasArtifact(model)).figures
    model.compile(metrics=[given])
    expected = model.evaluate(x, y, verbose=0, return_dict=True)[given]
    assert found.accuracy == pytest.approx(expected, rel=1e-4)
    assert found.per_class is None


def test_a_keras_metric_object_and_top_k(trained, data):
    import tf_keras as keras

    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=3, name="top3")
    meter = meter_for(trained, data, metric)
    found = meter.measure(ok.KerasArtifact(trained)).figures
    top = np.argsort(trained.predict(data.test[0], verbose=0), axis=1)[:, -3:]
    assert found.accuracy == pytest.approx(np.mean(np.any(top == data.test[1][:, None], axis=1)))
    assert meter.metric.higher_is_better
    assert meter.metric.keras("m").name == "m"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": macro_f1}, "cannot be known whether more of it is better"),
        ({"metric": lambda a, b: 0.0}, "Of the function 'metric'"),
        ({"higher_is_better": True}, "and `metric` is not given"),
        ({"metric": ""}, "must not be an empty string"),
        ({"metric": 3}, "`metric` must be the name of a tf_keras metric"),
        ({"metric": dict}, "`metric` must be the name of a tf_keras metric"),
        ({"metric": "mae", "higher_is_better": 1}, "`higher_is_better` must be True or False"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"threads": 0}, "`threads` must be at least 1"),
        ({"latency_seconds": -1}, "`latency_seconds` must be a number in"),
        ({"memory": 1}, "`memory` must be True or False"),
        ({"baseline_runtime": "onnx"}, "`baseline_runtime` must be one of 'tflite'"),
        ({"callers": 0}, "`callers` must be at least 1"),
        ({"device": 1}, "`device` must be an `optkit.Device`"),
        ({"threads": 3, "device": Device(threads=2)}, "Give the number once"),
        (
            {"memory": False, "device": Device(memory_mb=512)},
            "only counts where memory is measured",
        ),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(arguments, message):
    with pytest.raises(ok.PipelineError, match=message):
        Measure(**arguments)


def test_settings_are_plain_and_readable():
    settings = Measure(metric=macro_f1, higher_is_better=True, device=Device(cpus=1, threads=2))
    assert settings.to_dict() == {
        "metric": "macro_f1",
        "higher_is_better": True,
        "batch_size": 1,
        "latency_seconds": 1.0,
        "memory": True,
        "baseline_runtime": None,
        "callers": None,
        "device": {"threads": 2, "memory_mb": None, "cpus": 1},
    }
    assert settings.target.describe() == "2 threads, 1 core"
    assert Measure(threads=3).target == Device(threads=3)
    assert repr(Measure(batch_size=4)) == "Measure(batch_size=4)"


@pytest.mark.parametrize(
    ("given", "better", "message"),
    [
        ("no_such_metric", None, "is unknown to tf_keras"),
        ("AUC", True, "is no mean over samples"),
        ("accuracy", None, "is for classifiers"),
        ("mae", True, "says the contrary"),
        ("msle", None, None),
        (lambda y, p: np.zeros((3, 3)), True, "It gave shape"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(dense, given, better, message):
    model = dense(2, None)
    x = np.zeros((10, 4), "float32")
    data = Data(test=(x, np.linspace(0, 1, 20).reshape(10, 2)))
    if message is None:
        assert meter_for(model, data, given, better).metric.name
        return
    with pytest.raises(ok.PipelineError, match=message):
        meter_for(model, data, given, better)


def test_a_metric_that_fails_says_where(trained, data):
    def broken(y_true, y_pred):
        raise KeyError("oh")

    def undefined(y_true, y_pred):
        return float("nan")

    def sometimes(y_true, y_pred):
        return np.full(len(y_true), np.nan)

    for function, message in (
        (broken, "gives no figure for `test` as a whole: 'oh'"),
        (undefined, "is nan on `test`"),
        (sometimes, "must give one finite value a sample"),
    ):
        meter = meter_for(trained, data, function, higher_is_better=True)
        with pytest.raises(ok.PipelineError, match=message):
            meter.measure(ok.KerasArtifact(trained))
