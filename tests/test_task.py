"""What a model is for, its loss and its metric: inferred from output, targets and compile state."""

from __future__ import annotations

import numpy as np
import pytest

import optkit as ok
from optkit.metric import infer_metric
from optkit.models import final_activation
from optkit.task import dense_targets, infer_loss, infer_task

CLASSES = np.array([0, 2, 1, 1])
ONE_HOT = np.eye(3)[CLASSES]
BITS = np.array([0, 1, 1, 0])
LABELS = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
VALUES = np.array([0.5, -1.2, 3.3, 0.1])


@pytest.mark.parametrize(
    ("outputs", "activation", "targets", "kind", "sparse", "logits", "loss"),
    [
        (3, "softmax", CLASSES, "multiclass", True, False, "sparse_categorical_crossentropy"),
        (3, "softmax", ONE_HOT, "multiclass", False, False, "categorical_crossentropy"),
        (3, "linear", CLASSES, "multiclass", True, True, "sparse_categorical_crossentropy"),
        (3, "relu", CLASSES, "multiclass", True, True, "sparse_categorical_crossentropy"),
        (3, "linear", ONE_HOT, "multiclass", False, True, "categorical_crossentropy"),
        (3, "linear", LABELS, "multilabel", False, True, "binary_crossentropy"),
        (3, "sigmoid", LABELS, "multilabel", False, False, "binary_crossentropy"),
        (3, "linear", np.ones((4, 3)) * 0.3, "regression", False, False, "mean_squared_error"),
        (1, "sigmoid", BITS, "binary", False, False, "binary_crossentropy"),
        (1, "sigmoid", BITS[:, None], "binary", False, False, "binary_crossentropy"),
        (1, "linear", BITS, "binary", False, True, "binary_crossentropy"),
        (1, "linear", VALUES, "regression", False, False, "mean_squared_error"),
        (1, "linear", VALUES[:, None], "regression", False, False, "mean_squared_error"),
    ],
)
def test_inferred_task_and_loss(dense, outputs, activation, targets, kind, sparse, logits, loss):
    model = dense(outputs, activation)
    task = infer_task(model, targets)
    assert (task.kind, task.sparse, task.from_logits) == (kind, sparse, logits)
    found = infer_loss(model, task)
    assert found.source == "inferred"
    assert found.name.startswith(loss)
    assert ("from logits" in found.name) == (logits and kind != "regression")


def test_the_inferred_loss_fits_the_output(dense):
    """Loss against the formula, on logits and on probabilities."""
    for activation in ("linear", "softmax"):
        model = dense(3, activation)
        task = infer_task(model, CLASSES)
        outputs = np.array([[2.0, 1, 0], [0, 0, 3], [1, 1, 1], [0, 2, 0]])
        probabilities = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        given = outputs if activation == "linear" else probabilities
        expected = -np.log(probabilities[np.arange(4), CLASSES]).mean()
        assert float(infer_loss(model, task).function(CLASSES, given)) == pytest.approx(
            expected, rel=1e-5
        )


def test_the_compiled_model_decides(dense):
    import tf_keras

    model = dense(
        3,
        "linear",
        optimizer="sgd",
        loss=tf_keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    task = infer_task(model, ONE_HOT)
    assert (task.kind, task.from_logits) == ("multilabel", True)
    assert infer_loss(model, task).source == "compiled model"
    assert infer_metric(model, task).source == "compiled model"


def test_the_pipelines_loss_stands_above_the_compiled_one(dense):
    model = dense(3, "softmax", optimizer="sgd", loss="mse")
    task = infer_task(model, ONE_HOT, "categorical_crossentropy")
    loss = infer_loss(model, task, "categorical_crossentropy")
    assert loss.source == "Pipeline(loss=…)"
    assert loss.family == "categorical"


def test_a_regression_metric_comes_from_the_compiled_model(dense):
    model = dense(1, "linear", optimizer="sgd", loss="mae", metrics=["mse"])
    task = infer_task(model, VALUES)
    metric = infer_metric(model, task)
    assert (metric.name, metric.higher_is_better) == ("mean_squared_error", False)
    values = metric.per_sample(VALUES, VALUES[:, None] + 2)
    assert values == pytest.approx([4.0] * 4)


def test_any_metric_that_is_a_mean_over_samples_is_taken(dense):
    import tf_keras

    model = dense(
        3,
        "softmax",
        optimizer="sgd",
        loss="sparse_categorical_crossentropy",
        metrics=[tf_keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2_accuracy")],
    )
    metric = infer_metric(model, infer_task(model, CLASSES))
    outputs = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert metric.name == "top2_accuracy"
    assert metric.per_sample(CLASSES, outputs).tolist() == [1, 0, 1, 1]


def test_a_perfect_model_has_no_error_whatever_the_shape_of_targets(dense):
    import tf_keras

    model = dense(
        1,
        "linear",
        optimizer="sgd",
        loss="mse",
        metrics=[tf_keras.metrics.MeanAbsolutePercentageError(name="anything")],
    )
    metric = infer_metric(model, infer_task(model, VALUES))
    assert (metric.name, metric.higher_is_better) == ("anything", False)
    assert metric.per_sample(VALUES, VALUES[:, None]) == pytest.approx([0.0] * 4)


@pytest.mark.parametrize(
    ("given", "higher"),
    [
        ("mape", False),
        ("cosine_similarity", True),
        ("log_cosh", False),
        ("sparse_top_k_categorical_accuracy", True),
    ],
)
def test_the_direction_comes_from_the_function(dense, given, higher):
    import tf_keras

    name = "logcosh" if given == "log_cosh" else given
    item = tf_keras.metrics.LogCoshError() if given == "log_cosh" else name
    model = dense(3, "linear", optimizer="sgd", loss="mse", metrics=[item])
    targets = np.ones((4, 3)) * 0.3
    metric = infer_metric(model, infer_task(model, targets))
    assert metric.higher_is_better is higher
    assert metric.source == "compiled model"


def test_a_function_without_a_direction_is_passed_over(dense):
    def my_score(y_true, y_pred):
        return y_pred[:, 0]

    model = dense(1, "linear", optimizer="sgd", loss="mse", metrics=[my_score])
    metric = infer_metric(model, infer_task(model, VALUES))
    assert metric.name == "mean_absolute_error"
    assert "my_score" in metric.note


def test_classification_with_focal_or_own_losses(dense):
    import tf_keras

    focal = tf_keras.losses.CategoricalFocalCrossentropy(from_logits=True)
    task = infer_task(dense(3, "linear", optimizer="sgd", loss=focal), ONE_HOT)
    assert (task.kind, task.from_logits) == ("multiclass", True)

    def own(y_true, y_pred):
        return tf_keras.losses.categorical_crossentropy(y_true, y_pred, from_logits=True)

    for kind, targets in (("multiclass", ONE_HOT), ("multilabel", LABELS)):
        model = dense(3, "linear", optimizer="sgd", loss=own, metrics=["accuracy"])
        task = infer_task(model, targets)
        assert (task.kind, task.from_logits) == (kind, True)


def test_a_metric_that_is_no_mean_is_passed_over_and_said(dense):
    import tf_keras

    model = dense(
        1, "sigmoid", optimizer="sgd", loss="binary_crossentropy", metrics=[tf_keras.metrics.AUC()]
    )
    metric = infer_metric(model, infer_task(model, BITS))
    assert metric.name == "accuracy"
    assert "auc" in metric.note


@pytest.mark.parametrize(
    ("outputs", "activation", "targets", "outputs_given", "expected"),
    [
        (3, "softmax", CLASSES, np.eye(3)[[0, 2, 2, 1]], [1, 1, 0, 1]),
        (3, "softmax", ONE_HOT, np.eye(3)[[0, 2, 2, 1]], [1, 1, 0, 1]),
        (1, "sigmoid", BITS, np.array([[0.2], [0.7], [0.4], [0.6]]), [1, 1, 0, 0]),
        (1, "linear", BITS, np.array([[-1.0], [0.3], [-0.4], [0.6]]), [1, 1, 0, 0]),
        (3, "sigmoid", LABELS, np.full((4, 3), 0.9), [2 / 3, 2 / 3, 0, 2 / 3]),
    ],
)
def test_accuracy_by_hand(dense, outputs, activation, targets, outputs_given, expected):
    model = dense(outputs, activation)
    metric = infer_metric(model, infer_task(model, targets))
    assert metric.per_sample(targets, outputs_given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("outputs", "activation", "targets", "message"),
    [
        (3, "softmax", np.array([0, 3, 1]), "class numbers from 0 to 2"),
        (3, "softmax", np.array([-1, 2, 1]), "class numbers from 0 to 2"),
        (3, "softmax", np.eye(4)[CLASSES], "does not fit the targets"),
        (3, "softmax", VALUES, "does not fit the targets"),
        (1, "sigmoid", np.array([0, 1, 2]), "from 0 to 1"),
        (1, "softmax", VALUES, "softmax over one value"),
        (3, "sigmoid", CLASSES, "independent probabilities"),
        (3, "softmax", np.array(["a", "b"]), "must be numbers"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(dense, outputs, activation, targets, message):
    with pytest.raises(ok.DataError, match=message):
        infer_task(dense(outputs, activation), targets)


def test_widening_keeps_the_loss_the_same(dense):
    model = dense(3, "linear")
    task = infer_task(model, CLASSES)
    loss = infer_loss(model, task)
    wide_task, wide = dense_targets(task, loss)
    outputs = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    assert not wide_task.sparse
    assert float(wide.function(ONE_HOT, outputs)) == pytest.approx(
        float(loss.function(CLASSES, outputs)), rel=1e-5
    )


def test_a_sparse_loss_of_the_users_own_cannot_be_widened(dense):
    def my_loss(y_true, y_pred):
        return y_pred[:, 0]

    model = dense(3, "softmax")
    task = infer_task(model, CLASSES, my_loss)
    with pytest.raises(ok.PipelineError, match="one-hot"):
        dense_targets(task, infer_loss(model, task, my_loss))


def test_unknown_losses_are_refused(dense):
    for loss in ("no_such_loss", 3, ["mse", "mae"]):
        with pytest.raises(ok.PipelineError, match="loss"):
            infer_task(dense(1, "linear"), VALUES, loss)


def test_the_last_activation_is_found_behind_passive_layers():
    import tf_keras as keras

    x = keras.Input((4,))
    softmax = keras.layers.Dense(3, activation="softmax")(x)
    behind = keras.layers.Reshape((3, 1))(keras.layers.Dropout(0.1)(softmax))
    assert final_activation(keras.Model(x, behind)) == "softmax"
    assert final_activation(keras.Model(x, keras.layers.Softmax()(x))) == "softmax"
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    assert final_activation(keras.Model(x, inner(x))) == "sigmoid"
    assert final_activation(keras.Model(x, keras.layers.Dense(2)(x))) == "linear"
    assert final_activation(keras.Model(x, keras.activations.softmax(x))) == "softmax"


@pytest.mark.parametrize(
    ("outputs", "activation", "loss"),
    [
        (3, "softmax", "categorical_crossentropy"),
        (3, "softmax", None),
        (3, "sigmoid", "binary_crossentropy"),
        (3, "sigmoid", None),
        (1, "sigmoid", None),
    ],
)
def test_targets_that_are_no_probabilities_are_refused(dense, outputs, activation, loss):
    targets = (LABELS if outputs > 1 else BITS) * 255
    with pytest.raises(ok.DataError, match="targets from 0 to 1"):
        infer_task(dense(outputs, activation), targets.astype("uint8"), loss)
    soft = targets / 255 * 0.9 + 0.05
    assert infer_task(dense(outputs, activation), soft, loss).is_classification


def test_values_out_of_a_bounded_output_are_for_a_loss_of_ones_own(dense):
    assert infer_task(dense(3, "sigmoid"), LABELS * 255.0, "mse").kind == "regression"
