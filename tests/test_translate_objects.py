"""Losses, metrics, optimizers and the other small objects, from each Keras to the other."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from optkit.translate import is_keras3, object_to_keras3, object_to_tf_keras

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet(np.ones(4), 6).astype("float32")
ONE_HOT = np.eye(4, dtype="float32")[RNG.integers(0, 4, 6)]
CLASSES = RNG.integers(0, 4, 6).astype("int32")
REALS = (RNG.normal(size=(6, 3)).astype("float32"), RNG.normal(size=(6, 3)).astype("float32"))
POSITIVE = tuple(np.abs(values) + 0.1 for values in REALS)
BINARY = (
    (RNG.uniform(size=(6, 3)) > 0.5).astype("float32"),
    RNG.uniform(0.05, 0.95, (6, 3)).astype("float32"),
)
CATEGORICAL = (ONE_HOT, PROBABILITIES)
SPARSE = (CLASSES, PROBABILITIES)
IMAGES = tuple(RNG.uniform(0.1, 0.9, (2, 4, 4, 3)).astype("float32") for _ in range(2))
EMBEDDED = (CLASSES, (PROBABILITIES / np.linalg.norm(PROBABILITIES, axis=1, keepdims=True)))
SIGNS = (np.sign(REALS[0]), REALS[1])

LOSSES = {
    "BinaryCrossentropy": ({"label_smoothing": 0.1, "from_logits": True}, BINARY),
    "BinaryFocalCrossentropy": ({"gamma": 1.5, "apply_class_balancing": True}, BINARY),
    "CTC": ({}, (np.array([[1, 2], [3, 1]], "int32"), RNG.normal(size=(2, 6, 5)).astype("f"))),
    "CategoricalCrossentropy": ({"label_smoothing": 0.1}, CATEGORICAL),
    "CategoricalFocalCrossentropy": ({"alpha": 0.3, "gamma": 1.5}, CATEGORICAL),
    "CategoricalGeneralizedCrossEntropy": ({"q": 0.6}, SPARSE),
    "CategoricalHinge": ({}, CATEGORICAL),
    "Circle": ({"gamma": 10.0}, EMBEDDED),
    "CosineSimilarity": ({"axis": -1}, REALS),
    "Dice": ({}, IMAGES),
    "Hinge": ({}, SIGNS),
    "Huber": ({"delta": 0.4}, REALS),
    "KLDivergence": ({}, CATEGORICAL),
    "LogCosh": ({}, REALS),
    "MeanAbsoluteError": ({}, REALS),
    "MeanAbsolutePercentageError": ({}, POSITIVE),
    "MeanSquaredError": ({"reduction": "sum"}, REALS),
    "MeanSquaredLogarithmicError": ({}, POSITIVE),
    "Poisson": ({}, POSITIVE),
    "SparseCategoricalCrossentropy": ({"ignore_class": 2}, SPARSE),
    "SquaredHinge": ({}, SIGNS),
    "Tversky": ({"alpha": 0.3}, IMAGES),
}

METRICS = {
    "AUC": ({"num_thresholds": 50}, BINARY),
    "Accuracy": ({}, (CLASSES, CLASSES[::-1].copy())),
    "BinaryAccuracy": ({"threshold": 0.6}, BINARY),
    "BinaryCrossentropy": ({"label_smoothing": 0.1}, BINARY),
    "BinaryIoU": ({"target_class_ids": [1], "threshold": 0.4}, BINARY),
    "CategoricalAccuracy": ({}, CATEGORICAL),
    "CategoricalCrossentropy": ({}, CATEGORICAL),
    "CategoricalHinge": ({}, CATEGORICAL),
    "ConcordanceCorrelation": ({}, REALS),
    "CosineSimilarity": ({"axis": -1}, REALS),
    "F1Score": ({"average": "macro"}, CATEGORICAL),
    "FBetaScore": ({"beta": 0.5, "average": "micro"}, CATEGORICAL),
    "FalseNegatives": ({"thresholds": 0.3}, BINARY),
    "FalsePositives": ({}, BINARY),
    "Hinge": ({}, SIGNS),
    "IoU": ({"num_classes": 4, "target_class_ids": [0, 2]}, (CLASSES, CLASSES[::-1].copy())),
    "KLDivergence": ({}, CATEGORICAL),
    "LogCoshError": ({}, REALS),
    "Mean": ({}, (REALS[0],)),
    "MeanAbsoluteError": ({}, REALS),
    "MeanAbsolutePercentageError": ({}, POSITIVE),
    "MeanIoU": ({"num_classes": 4}, (CLASSES, CLASSES[::-1].copy())),
    "MeanMetricWrapper": ({"fn": "mse"}, REALS),
    "MeanSquaredError": ({}, REALS),
    "MeanSquaredLogarithmicError": ({}, POSITIVE),
    "OneHotIoU": ({"num_classes": 4, "target_class_ids": [1]}, CATEGORICAL),
    "OneHotMeanIoU": ({"num_classes": 4}, CATEGORICAL),
    "PearsonCorrelation": ({}, REALS),
    "Poisson": ({}, POSITIVE),
    "Precision": ({"thresholds": 0.4}, BINARY),
    "PrecisionAtRecall": ({"recall": 0.5, "num_thresholds": 20}, BINARY),
    "R2Score": ({}, REALS),
    "Recall": ({"class_id": 1}, BINARY),
    "RecallAtPrecision": ({"precision": 0.5, "num_thresholds": 20}, BINARY),
    "RootMeanSquaredError": ({}, REALS),
    "SensitivityAtSpecificity": ({"specificity": 0.5, "num_thresholds": 20}, BINARY),
    "SparseCategoricalAccuracy": ({}, SPARSE),
    "SparseCategoricalCrossentropy": ({}, SPARSE),
    "SparseTopKCategoricalAccuracy": ({"k": 2}, SPARSE),
    "SpecificityAtSensitivity": ({"sensitivity": 0.5, "num_thresholds": 20}, BINARY),
    "SquaredHinge": ({}, SIGNS),
    "Sum": ({}, (REALS[0],)),
    "TopKCategoricalAccuracy": ({"k": 2}, CATEGORICAL),
    "TrueNegatives": ({}, BINARY),
    "TruePositives": ({"thresholds": [0.3, 0.6]}, BINARY),
}

OPTIMIZERS = {
    "Adadelta": {"learning_rate": 0.5, "rho": 0.9},
    "Adafactor": {"learning_rate": 0.02},
    "Adagrad": {"learning_rate": 0.1, "initial_accumulator_value": 0.2},
    "Adam": {"learning_rate": 0.05, "beta_1": 0.8, "amsgrad": True, "clipnorm": 0.5},
    "AdamW": {"learning_rate": 0.05, "weight_decay": 0.1},
    "Adamax": {"learning_rate": 0.05, "epsilon": 1e-4},
    "Ftrl": {"learning_rate": 0.1, "l1_regularization_strength": 0.01},
    "Lamb": {"learning_rate": 0.05},
    "Lion": {"learning_rate": 0.01, "weight_decay": 0.01},
    "Muon": {"learning_rate": 0.01},
    "Nadam": {"learning_rate": 0.05, "global_clipnorm": 0.7},
    "RMSprop": {"learning_rate": 0.05, "momentum": 0.5, "centered": True},
    "SGD": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "clipvalue": 0.3},
    "ScheduleFreeAdamW": {"learning_rate": 0.05},
}


def _classes(module, base):
    return {
        name
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, base) and found is not base
    }


def test_no_loss_metric_or_optimizer_is_forgotten():
    assert _classes(keras.losses, keras.losses.Loss) == set(LOSSES)
    assert _classes(keras.metrics, keras.metrics.Metric) == set(METRICS)
    # These hold or map other optimizers, and have tests of their own.
    others = {"LossScaleOptimizer", "MultiOptimizer"}
    found = _classes(keras.optimizers, keras.optimizers.Optimizer)
    assert found - others == set(OPTIMIZERS)


def _weights(values):
    return np.linspace(0.5, 1.5, len(values[0])).astype("float32")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_equal_both_ways(name):
    options, values = LOSSES[name]
    loss = getattr(keras.losses, name)(**options)
    expected = loss(*values).numpy()
    weighted = loss(*values, sample_weight=_weights(values)).numpy() if name != "Circle" else None
    legacy = object_to_tf_keras(loss)
    assert isinstance(legacy, tf_keras.losses.Loss)
    back = object_to_keras3(legacy)
    assert type(back) is type(loss)
    again = tf_keras.losses.deserialize(tf_keras.losses.serialize(legacy))
    for other in (legacy, back, again):
        np.testing.assert_allclose(other(*values), expected, rtol=1e-5)
        if weighted is not None:
            received = other(*values, sample_weight=_weights(values))
            np.testing.assert_allclose(received, weighted, rtol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_equal_both_ways(name):
    options, values = METRICS[name]
    options = dict(options)
    if options.get("fn") == "mse":
        options["fn"] = keras.losses.mean_squared_error
    metric = getattr(keras.metrics, name)(**options)
    metric.update_state(*values)
    expected = np.asarray(metric.result())
    legacy = object_to_tf_keras(metric)
    assert isinstance(legacy, tf_keras.metrics.Metric)
    assert legacy.name == metric.name
    back = object_to_keras3(legacy)
    assert type(back) is type(metric)
    for other in (legacy, back):
        other.reset_state()
        other.update_state(*values)
        other.update_state(*values)
        twice = expected * (2 if name in ("Sum", *_COUNTS) else 1)
        np.testing.assert_allclose(np.asarray(other.result()), twice, rtol=1e-5, atol=1e-6)


_COUNTS = ("FalseNegatives", "FalsePositives", "TrueNegatives", "TruePositives")


def _steps(optimizer, gradients, library):
    start = [np.linspace(-1, 1, 12).reshape(4, 3), np.linspace(0.2, 0.6, 3)]
    if library is keras:
        variables = [keras.Variable(value.astype("float32")) for value in start]
        for gradient in gradients:
            optimizer.apply([tf.constant(part) for part in gradient], variables)
    else:
        variables = [tf.Variable(value.astype("float32")) for value in start]
        for gradient in gradients:
            parts = [tf.constant(part) for part in gradient]
            optimizer.apply_gradients(zip(parts, variables, strict=True))
    return [variable.numpy() for variable in variables]


def _gradients():
    rng = np.random.default_rng(4)
    return [[rng.normal(size=s).astype("float32") for s in ((4, 3), (3,))] for _ in range(3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_of_an_optimizer_are_equal_both_ways(name):
    optimizer = getattr(keras.optimizers, name)(**OPTIMIZERS[name])
    legacy = object_to_tf_keras(optimizer)
    assert isinstance(legacy, tf_keras.optimizers.Optimizer)
    back = object_to_keras3(legacy)
    assert type(back) is type(optimizer)
    again = type(legacy).from_config(legacy.get_config())
    expected = _steps(optimizer, _gradients(), keras)
    for other, library in ((legacy, tf_keras), (back, keras), (again, tf_keras)):
        for one, two in zip(expected, _steps(other, _gradients(), library), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_schedules_are_equal_and_stay_in_the_optimizer():
    schedules = {
        "CosineDecay": {
            "initial_learning_rate": 0.1,
            "decay_steps": 10,
            "warmup_target": 0.5,
            "warmup_steps": 3,
        },
        "CosineDecayRestarts": {"initial_learning_rate": 0.1, "first_decay_steps": 4},
        "ExponentialDecay": {
            "initial_learning_rate": 0.1,
            "decay_steps": 3,
            "decay_rate": 0.5,
            "staircase": True,
        },
        "InverseTimeDecay": {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5},
        "PiecewiseConstantDecay": {"boundaries": [2, 5], "values": [0.3, 0.2, 0.1]},
        "PolynomialDecay": {"initial_learning_rate": 0.1, "decay_steps": 6, "power": 2.0},
    }
    base = keras.optimizers.schedules.LearningRateSchedule
    assert _classes(keras.optimizers.schedules, base) == set(schedules)
    for name, options in schedules.items():
        schedule = getattr(keras.optimizers.schedules, name)(**options)
        optimizer = keras.optimizers.SGD(schedule)
        legacy = object_to_tf_keras(optimizer)
        back = object_to_keras3(legacy)
        for step in range(8):
            rates = [
                float(one._learning_rate(tf.constant(step))) for one in (optimizer, legacy, back)
            ]
            np.testing.assert_allclose(rates, rates[0], rtol=1e-6)


def test_a_carried_optimizer_obeys_the_learning_rate_that_is_set():
    legacy = object_to_tf_keras(keras.optimizers.Lamb(0.05))
    legacy.learning_rate = 0.0
    start = [np.linspace(-1, 1, 12).reshape(4, 3), np.linspace(0.2, 0.6, 3)]
    for one, two in zip(start, _steps(legacy, _gradients(), tf_keras), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    assert float(object_to_keras3(legacy).learning_rate) == 0.0


def test_legacy_optimizers_get_their_new_counterpart():
    with_decay = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.5, decay=0.1)
    translated = object_to_keras3(with_decay)
    assert type(translated) is keras.optimizers.SGD
    assert translated.momentum == 0.5
    for one, two in zip(
        _steps(with_decay, _gradients(), tf_keras),
        _steps(translated, _gradients(), keras),
        strict=True,
    ):
        np.testing.assert_allclose(two, one, rtol=1e-5)


def test_loss_scaling_is_kept():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02), 256.0)
    legacy = object_to_tf_keras(optimizer)
    assert type(legacy).__name__ == "LossScaleOptimizerV3"  # what tf_keras makes of it
    assert float(legacy.loss_scale) == 256.0
    back = object_to_keras3(legacy)
    assert isinstance(back, keras.optimizers.LossScaleOptimizer)
    assert back.initial_scale == 256.0
    assert type(back.inner_optimizer) is keras.optimizers.Adam


@pytest.mark.parametrize("kind", ["initializers", "regularizers", "constraints"])
def test_initializers_regularizers_and_constraints(kind):
    base = {"initializers": "Initializer", "regularizers": "Regularizer"}.get(kind, "Constraint")
    module, legacy_module = getattr(keras, kind), getattr(tf_keras, kind)
    arguments = {
        "Constant": {"value": 0.3},
        "STFT": {},
        "MinMaxNorm": {"min_value": 0.2, "rate": 0.5},
        "MaxNorm": {"max_value": 0.4},
    }
    names = _classes(module, getattr(module, base))
    assert len(names) > 2
    values = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    for name in sorted(names):
        found = getattr(module, name)
        original = found(**arguments.get(found.__name__, {}))
        translated = object_to_tf_keras(original)
        assert isinstance(translated, getattr(legacy_module, base)), name
        back = object_to_keras3(translated)
        assert type(back) is type(original), name
        if kind != "initializers":
            for other in (translated, back):
                np.testing.assert_allclose(
                    np.asarray(other(tf.constant(values))),
                    np.asarray(original(tf.constant(values))),
                    rtol=1e-5,
                )
        elif found.__name__ in ("Constant", "Zeros", "Ones", "Identity", "STFT"):
            shape = (4, 4) if found.__name__ != "STFT" else (16, 1, 9)
            expected = np.asarray(original(shape))
            np.testing.assert_allclose(np.asarray(translated(shape)), expected, rtol=1e-6)


def test_activations_are_equal_or_carried_under_a_name_of_their_own():
    values = np.linspace(-4, 4, 24).reshape(4, 6).astype("float32")
    names = [
        name
        for name, found in vars(keras.activations).items()
        if inspect.isfunction(found)
        and name not in ("get", "serialize", "deserialize", "threshold")
    ]
    assert {"hard_sigmoid", "hard_silu", "log_softmax", "squareplus"} <= set(names)
    for name in names:
        function = getattr(keras.activations, name)
        translated = object_to_tf_keras(function)
        np.testing.assert_allclose(
            translated(tf.constant(values)), function(values), atol=1e-6, err_msg=name
        )
        assert object_to_keras3(translated) is function, name
        config = tf_keras.activations.serialize(translated)
        again = tf_keras.activations.deserialize(config)
        np.testing.assert_allclose(again(tf.constant(values)), function(values), atol=1e-6)


def test_tf_keras_hard_sigmoid_stays_what_it_is():
    values = np.linspace(-4, 4, 9).astype("float32")
    translated = object_to_keras3(tf_keras.activations.hard_sigmoid)
    np.testing.assert_allclose(translated(values), np.clip(0.2 * values + 0.5, 0, 1), atol=1e-6)
    assert object_to_tf_keras(translated) is tf_keras.activations.hard_sigmoid


def test_containers_are_looked_through_and_other_values_come_back():
    loss = keras.losses.Huber(2.0)
    found = object_to_tf_keras({"a": [loss, 3], "b": ("x", None)})
    assert isinstance(found["a"][0], tf_keras.losses.Huber)
    assert found["a"][0].get_config()["delta"] == 2.0
    assert (found["a"][1], found["b"]) == (3, ("x", None))
    plain = {"a": [1, 2]}
    assert object_to_tf_keras(plain) is plain
    assert object_to_tf_keras(np.sum) is np.sum


def test_is_keras3():
    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return y_pred

    assert is_keras3(keras.layers.Dense(2))
    assert is_keras3(Own())
    assert is_keras3(keras.activations.relu)
    assert not is_keras3(tf_keras.layers.Dense(2))
    assert not is_keras3(tf_keras.activations.relu)
    assert not is_keras3(tf.constant(1.0))
    assert not is_keras3({"a": 1})


def test_a_loss_of_ones_own_is_carried_and_comes_back():
    class Weighted(keras.losses.Loss):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, y_true, y_pred):
            return self.factor * keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    legacy = object_to_tf_keras(Weighted(3.0))
    np.testing.assert_allclose(legacy(*REALS), 3 * np.mean((REALS[0] - REALS[1]) ** 2), rtol=1e-5)
    copied = type(legacy).from_config(legacy.get_config())
    np.testing.assert_allclose(copied(*REALS), legacy(*REALS), rtol=1e-6)
    back = object_to_keras3(copied)
    assert type(back) is Weighted
    assert back.factor == 3.0


def test_callbacks_run_in_the_other_library():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, "loss" in logs, type(self.model).__module__.split(".")[0]))

    model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9)
    callbacks = object_to_tf_keras([Watch(), stop])
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=5, verbose=0, callbacks=callbacks)
    assert seen == [(0, True, "tf_keras"), (1, True, "tf_keras")]
