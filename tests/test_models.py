"""Copies, paths and refusals of models."""

from __future__ import annotations

import numpy as np
import pytest

import optkit as ok
from optkit import models
from optkit.artifact import KerasArtifact


def zoo():
    """Models of many shapes, with the shape of one input."""
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2), name="image")
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    residual = layers.Add()([x, shared(layers.ReLU()(shared(x)))])
    normalization = layers.Normalization(name="scale")
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d")], name="inner")
    deep = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)], name="deep")
    y = keras.Input((4,), name="vector")
    frozen = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, trainable=False), layers.BatchNormalization()]
    )
    frozen.layers[-1].trainable = False
    return {
        "shared": keras.Model(x, layers.GlobalAveragePooling2D()(residual)),
        "normalization": keras.Sequential([keras.Input((4,)), normalization, layers.Dense(2)]),
        "nested": keras.Model(y, layers.Concatenate()([deep(y), inner(y)])),
        "frozen": frozen,
        "recurrent": keras.Sequential(
            [keras.Input((5, 3)), layers.Bidirectional(layers.LSTM(2)), layers.Dense(1)]
        ),
        "operators": keras.Model(y, (y * 2.0 + 1.0)[:, :2] - y[:, 2:]),
    }


@pytest.mark.parametrize("name", list(zoo()))
def test_a_clone_is_equal_and_independent(name):
    model = zoo()[name]
    copy = models.clone(model)
    shape = (6, *model.input_shape[1:])
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    expected = KerasArtifact(model).predict(x)
    assert np.array_equal(KerasArtifact(copy).predict(x), expected)
    assert len(copy.weights) == len(model.weights), "what is shared stays shared"
    flags = [layer.trainable for layer in models.walk_layers(model)]
    assert [layer.trainable for layer in models.walk_layers(copy)] == flags
    assert len(copy.trainable_weights) == len(model.trainable_weights)
    for weight in copy.weights:
        weight.assign(weight + 1)
    assert np.array_equal(KerasArtifact(model).predict(x), expected)


@pytest.mark.parametrize("name", list(zoo()))
def test_a_flat_copy_is_equal_and_has_no_models_within(name):
    import tf_keras as keras

    model = zoo()[name]
    inputs = [keras.Input(info.shape[1:]) for info in models.signature(model).inputs]
    output, layers = models.flat_copy(model, inputs)
    flat = keras.Model(inputs, output)
    x = np.random.default_rng(1).normal(size=(6, *model.input_shape[1:])).astype("float32")
    assert not models.nested_models(flat)
    assert np.allclose(
        KerasArtifact(flat).predict(x), KerasArtifact(model).predict(x), rtol=0, atol=1e-6
    )
    own = {id(weight) for weight in model.weights}
    assert not own & {id(weight) for layer in layers for weight in layer.weights}


@pytest.mark.parametrize("name", list(zoo()))
def test_paths_are_unique_and_survive_copying(name):
    model = zoo()[name]
    paths = models.variables_by_path(model)
    assert len(paths) == len({id(variable) for variable in model.weights})
    copied = models.variables_by_path(models.clone(model))
    assert {p: tuple(v.shape) for p, v in copied.items()} == {
        p: tuple(v.shape) for p, v in paths.items()
    }
    for path, variable in paths.items():
        assert np.array_equal(copied[path].numpy(), variable.numpy())


def test_paths_look_through_the_wrappers_of_pruning():
    from optkit.runtime import tfmot
    from optkit.testing import small_model

    prune = tfmot().sparsity.keras.prune_low_magnitude
    model = small_model()

    def wrap(layer):
        copy = type(layer).from_config(layer.get_config())
        return prune(copy) if layer.name in ("conv", "classes") else copy

    assert set(models.variables_by_path(models.clone(model, replace=wrap))) == set(
        models.variables_by_path(model)
    )


def test_all_of_the_compile_state_is_carried_over(dense):
    source = dense(3, optimizer="sgd", loss="mse", jit_compile=True, steps_per_execution=2)
    copy = models.clone(source)
    models.compile_like(copy, source)
    assert copy._jit_compile
    assert int(copy._steps_per_execution) == 2


def test_compile_state_is_carried_over(dense):
    import tf_keras as keras

    source = dense(
        3,
        optimizer=keras.optimizers.SGD(0.25, momentum=0.5),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy()],
    )
    copy = models.clone(source)
    assert not models.is_compiled(copy)
    models.compile_like(copy, source)
    assert isinstance(copy.optimizer, keras.optimizers.SGD)
    assert copy.optimizer is not source.optimizer
    assert float(copy.optimizer.learning_rate) == 0.25
    x, y = np.ones((4, 4), "float32"), np.array([0, 1, 2, 0])
    assert copy.evaluate(x, y, verbose=0) == pytest.approx(source.evaluate(x, y, verbose=0))


def test_layers_within_layers_keep_their_flags_and_weights():
    """Keras lists trainable weights first, so a frozen part changes the order of weights."""
    import tf_keras as keras

    class Block(keras.layers.Layer):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(4)

        def call(self, x):
            return self.second(self.first(x))

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), Block(), keras.layers.Dense(3)])
    model.layers[0].first.trainable = False
    copy = models.clone(model)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    assert np.array_equal(KerasArtifact(copy).predict(x), KerasArtifact(model).predict(x))
    assert not copy.layers[0].first.trainable
    assert copy.layers[0].second.trainable
    assert len(copy.trainable_weights) == len(model.trainable_weights) == 4


def test_what_never_came_through_the_door_is_refused():
    import keras as keras3
    import tf_keras as keras

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for model, message in (
        (keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(1)]), "Keras 3"),
        (Subclassed(), "subclassed"),
        (keras.Sequential([keras.layers.Dense(1)]), "not built"),
        (np.zeros(3), "Expected a tf_keras model"),
    ):
        with pytest.raises(ok.ModelError, match=message):
            models.check_treatable(model)


def refused():
    import tf_keras as keras

    x = keras.Input((4,))
    stateful = keras.Sequential(
        [keras.Input((3, 2), batch_size=1), keras.layers.LSTM(2, stateful=True)]
    )

    class OwnStep(keras.Model):
        def train_step(self, data):
            raise AssertionError

    return {
        "own train_step": (OwnStep(x, keras.layers.Dense(1)(x)), r"own `train_step\(\)`"),
        "stateful": (stateful, "stateful"),
        "no model": (np.zeros(3), "Expected a Keras model"),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_what_cannot_be_treated_is_refused_before_anything_trains(name, data):
    model, message = refused()[name]
    pipeline = ok.Pipeline([ok.FineTune(epochs=1)])
    for call in (lambda: pipeline.check(model), lambda: pipeline.run(model, data)):
        with pytest.raises(ok.ModelError, match=message):
            call()
