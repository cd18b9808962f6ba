"""Whatever Keras model comes in, its own kind goes out: results, stages, files, kept runs."""

from __future__ import annotations

import pickle

import keras
import numpy as np
import pytest
import tf_keras

import optkit as ok
from optkit.entrance import admit
from optkit.quickstart import build_model
from optkit.testing import digits

QUICK = ok.Measure(latency_seconds=0, memory=False)


def three(name="three"):
    """A compiled Keras 3 classifier of the digits."""
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.ops.relu(x)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(10, activation="softmax", name="classes")(x)
    model = keras.Model(image, x, name=name)
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    return model


@pytest.fixture(scope="module")
def run():
    model, data = three(), digits(400)
    model.fit(*data.train, epochs=3, verbose=0)
    before = [value.copy() for value in model.get_weights()]
    pipeline = ok.Pipeline(
        [ok.LabelSmooth(0.1), ok.FineTune(epochs=1), ok.Prune(0.5, epochs=2), ok.QuantizeINT8(50)],
        seed=2,
    )
    result = pipeline.run(model, data, progress=False, measure=QUICK)
    for one, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    return model, data, result


def test_the_stages_of_a_keras_3_model_are_keras_3_models(run):
    model, data, result = run
    assert list(result.stages) == ["FineTune", "Prune", "QuantizeINT8"]
    for name in ("FineTune", "Prune"):
        stage = result.stages[name]
        assert isinstance(stage.model, keras.Model)
        assert [layer.name for layer in stage.model.layers] == [
            layer.name for layer in model.layers
        ]
        outputs = stage.model.predict(data.test[0], verbose=0)
        assert np.abs(outputs - stage.predict(data.test[0])).max() < 1e-6
        assert stage.parameters == model.count_params()
    assert isinstance(result.artifact, ok.TFLiteArtifact)


def test_figures_of_a_keras_3_stage_are_those_of_its_file(run, tmp_path):
    _, _, result = run
    stage, row = result.stages["Prune"], result.report.rows[2]
    path = stage.save(tmp_path / "prune.keras")
    assert path.stat().st_size == row.after.size_bytes == stage.size_bytes
    again = keras.models.load_model(path)
    assert isinstance(again, keras.Model)
    for one, other in zip(again.get_weights(), stage.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert ok.load(path).parameters == stage.parameters


def test_the_result_is_compiled_like_the_model_that_came():
    model, data = three(), digits(200)
    result = ok.Pipeline([ok.FineTune(epochs=1)]).run(model, data, progress=False, measure=QUICK)
    again = result.model
    assert isinstance(again, keras.Model)
    assert again is not result.artifact.model
    assert type(again.optimizer) is keras.optimizers.SGD
    assert again.optimizer is not model.optimizer
    assert float(again.optimizer.momentum) == 0.9
    assert isinstance(again.loss, keras.losses.SparseCategoricalCrossentropy)
    loss, accuracy = again.evaluate(*data.test, verbose=0)
    assert accuracy == pytest.approx(result.report.final.accuracy, abs=1e-6)
    assert np.isfinite(loss)


def test_a_keras_3_artifact_can_be_measured_and_pickled(run):
    model, data, result = run
    stage = pickle.loads(pickle.dumps(result.stages["FineTune"]))
    assert isinstance(stage.model, keras.Model)
    x = data.test[0]
    assert np.array_equal(stage.predict(x), result.stages["FineTune"].predict(x))
    found = ok.measure(model, data, measure=QUICK)
    assert found.figures.accuracy == result.report.baseline.accuracy


def test_a_kept_run_of_a_keras_3_model_is_reused_and_shown_as_keras_3(tmp_path):
    data, events = digits(200), []
    pipeline = ok.Pipeline([ok.FineTune(epochs=1), ok.Prune(0.4, epochs=1)])
    model = three()
    first = pipeline.run(model, data, workdir=tmp_path, progress=False, measure=QUICK)
    second = pipeline.run(
        model,
        data,
        workdir=tmp_path,
        progress=lambda event: events.append(event.kind),
        measure=QUICK,
    )
    assert events.count("reused") == 2
    for name, stage in first.stages.items():
        shown = ok.Run(tmp_path).load(name)
        for other in (second.stages[name], shown):
            assert isinstance(other.model, keras.Model)
            for one, two in zip(stage.model.get_weights(), other.model.get_weights(), strict=True):
                assert np.array_equal(one, two)


def test_a_tf_keras_twin_does_not_find_the_stages_of_a_keras_3_model(tmp_path):
    data, events = digits(200), []
    pipeline = ok.Pipeline([ok.BNReestimate()])
    model = three()
    pipeline.run(model, data, workdir=tmp_path, progress=False, measure=QUICK)
    result = pipeline.run(
        admit(model, data).model,
        data,
        workdir=tmp_path,
        progress=lambda event: events.append(event.kind),
        measure=QUICK,
    )
    assert "reused" not in events
    assert isinstance(result.artifact.model, tf_keras.Model)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_paths_are_read_and_results_are_of_the_keras_of_the_file(tmp_path):
    data = digits(200)
    three().save(tmp_path / "three.keras")
    build_model().save(tmp_path / "two.keras")
    build_model().save(tmp_path / "two.h5")
    pipeline = ok.Pipeline([ok.BNReestimate()])
    for name, library in (("three.keras", keras), ("two.keras", tf_keras), ("two.h5", tf_keras)):
        result = pipeline.run(tmp_path / name, data, progress=False, measure=QUICK)
        assert isinstance(result.model, library.Model), name
        result = pipeline.run(str(tmp_path / name), data, progress=False, measure=QUICK)
        assert isinstance(result.model, library.Model), name


def test_keras_3_objects_are_taken_where_passes_take_objects():
    data = digits(200)
    passes = [
        ok.Augment([keras.layers.RandomTranslation(0.1, 0.1, seed=3)]),
        ok.TransferLearn(backbone(), epochs=1),
        ok.FineTune(epochs=1, optimizer=keras.optimizers.RMSprop(1e-3)),
    ]
    pipeline = ok.Pipeline(passes, loss=keras.losses.SparseCategoricalCrossentropy())
    model = three()
    result = pipeline.run(
        model,
        data,
        progress=False,
        measure=ok.Measure(
            metric=keras.metrics.SparseTopKCategoricalAccuracy(3),
            latency_seconds=0,
            memory=False,
        ),
    )
    assert isinstance(result.model, keras.Model)
    assert isinstance(passes[2].optimizer, keras.optimizers.RMSprop)
    assert result.report.metric == "sparse_top_k_categorical_accuracy"


def backbone():
    """Features of the digits, as a Keras 3 model."""
    image = keras.Input((8, 8, 1), name="pixels")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="features")(image)
    return keras.Model(image, keras.layers.GlobalMaxPooling2D(name="most")(x), name="backbone")


def test_objects_of_keras_3_are_stored_with_a_pipeline(tmp_path):
    pipeline = ok.Pipeline(
        [ok.FineTune(epochs=1, optimizer=keras.optimizers.RMSprop(0.01))],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    pipeline.to_json(tmp_path / "p.json")
    again = ok.Pipeline.from_json(tmp_path / "p.json")
    optimizer = again[0].optimizer
    assert type(optimizer) is keras.optimizers.RMSprop
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    assert again.loss.get_config()["from_logits"] is True


def test_the_policies_of_both_libraries_stay_as_they_were():
    keras.config.set_dtype_policy("mixed_bfloat16")
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = build_plain()
        ok.Pipeline([ok.FineTune(epochs=1)]).run(model, digits(200), progress=False, measure=QUICK)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert tf_keras.mixed_precision.global_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
        tf_keras.mixed_precision.set_global_policy("float32")


def build_plain():
    """A Keras 3 model whose layers say that they compute in float32."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="float32"),
            keras.layers.Flatten(dtype="float32"),
            keras.layers.Dense(10, activation="softmax", dtype="float32"),
        ]
    )


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], keras.layers.Dense(2), object()])
def test_what_is_no_model_is_refused(wrong):
    with pytest.raises(ok.ModelError, match="Expected a Keras model"):
        ok.Pipeline([ok.BNReestimate()]).run(wrong, digits(200))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder that Keras 3 exported: a graph without layers."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = three()
    model.export(folder, verbose=False)
    return model, folder


def test_a_saved_model_without_layers_is_converted(exported):
    model, folder = exported
    data = digits(400)
    result = ok.Pipeline([ok.QuantizeINT8(50)]).run(folder, data, progress=False, measure=QUICK)
    assert isinstance(result.artifact, ok.TFLiteArtifact)
    x, y = data.test
    wanted = model.predict(x, verbose=0)
    assert result.report.baseline.accuracy == pytest.approx((wanted.argmax(1) == y).mean())
    assert np.abs(result.artifact.predict(x) - wanted).max() < 0.1
    assert result.report.environment["model"] == "a graph without layers"
    artifact = ok.SavedModelArtifact(folder)
    again = ok.Pipeline([ok.QuantizeINT8(50)]).run(artifact, data, progress=False, measure=QUICK)
    assert again.artifact.content == result.artifact.content


def test_a_saved_model_without_layers_is_not_trained(exported):
    with pytest.raises(ok.PipelineError, match="Step 2, Prune, takes a keras artifact, and there"):
        ok.Pipeline([ok.LabelSmooth(), ok.Prune()]).run(exported[1], digits(200))


def test_subclassed_models_come_back_as_functional_ones_of_their_keras():
    from matrix import KINDS, cell

    assert cell("subclassed", "FineTune", "keras") is None
    model = KINDS["subclassed"].model(keras)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    result = ok.Pipeline([ok.FineTune(epochs=1)]).run(
        model, digits(200), progress=False, measure=QUICK
    )
    assert type(result.model.optimizer) is keras.optimizers.SGD
    assert [layer.name for layer in result.model.layers[1:]] == ["conv", "pool", "drop", "classes"]
    assert any("is subclassed" in note for note in result.report.notes)


def own_layer(factor):
    """A Keras 3 layer of the user's, not registered, whose code multiplies by a number."""

    class Own(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, x):
            return x * self.scale * factor

    return Own


def with_own_layer(kind):
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 1), name="image")
    x = kind(name="own")(keras.layers.Flatten(name="flat")(image))
    out = keras.layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(image, out, name="with_own")


def run_kept(model, folder):
    events = []
    result = ok.Pipeline([ok.FineTune(epochs=1), ok.QuantizeINT8(20)]).run(
        model,
        digits(200),
        workdir=folder,
        progress=lambda event: events.append(event.kind),
        measure=QUICK,
    )
    return result, events.count("reused")


def test_stages_of_carried_layers_are_reused_until_their_code_changes(tmp_path):
    kind = own_layer(1.0)
    first, _ = run_kept(with_own_layer(kind), tmp_path)
    again, reused = run_kept(with_own_layer(kind), tmp_path)
    assert reused == 2
    assert again.artifact.content == first.artifact.content
    other, reused = run_kept(with_own_layer(own_layer(3.0)), tmp_path)
    assert reused == 0
    assert other.artifact.content != first.artifact.content


@pytest.mark.parametrize("kind", ["attention", "strings", "subclassed", "branching", "unbuilt"])
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_stages_of_every_kind_of_model_are_reused(kind, library, tmp_path):
    from matrix import KINDS

    model, data = KINDS[kind].model(library), KINDS[kind].data()
    counts = []
    for _ in range(2):
        events = []
        ok.Pipeline([ok.FineTune(epochs=1)]).run(
            model,
            data,
            workdir=tmp_path,
            progress=lambda event, events=events: events.append(event.kind),
            measure=QUICK,
        )
        counts.append(events.count("reused"))
    assert counts == [0, 1]


def test_a_model_taken_as_a_whole_keeps_its_frozen_part_and_its_dropout():
    class Whole(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.frozen = keras.layers.Dense(8, name="frozen")
            self.drop = keras.layers.Dropout(0.3)
            self.classes = keras.layers.Dense(10, activation="softmax", name="classes")

        def call(self, x, training=False):
            x = self.frozen(keras.ops.reshape(x, (-1, 64)))
            if training:
                x = self.drop(x, training=True)
            return self.classes(x)

    data, model = digits(200), Whole()
    model(data.train[0][:2])
    model.frozen.trainable = False
    before = [weight.copy() for weight in model.frozen.get_weights()]
    result = ok.Pipeline([ok.FineTune(epochs=1), ok.Prune(0.5, epochs=1)]).run(
        model, data, progress=False, measure=QUICK
    )
    after = result.model.get_layer("mine").frozen
    assert not after.trainable
    for one, other in zip(before, after.get_weights(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", [keras.Model, keras.Sequential])
def test_steps_of_ones_own_are_refused_instead_of_dropped(kind):
    class Own(kind):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    if kind is keras.Sequential:
        model = Own([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    else:
        image = keras.Input((8, 8, 1))
        model = Own(image, keras.layers.Dense(10)(keras.layers.Flatten()(image)))
    with pytest.raises(ok.ModelError, match=r"has its own `train_step\(\)`"):
        ok.Pipeline([ok.FineTune(epochs=1)]).run(model, digits(100))


def test_metrics_in_the_place_of_loss_weights_are_named():
    model = three()
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    with pytest.raises(ok.PipelineError, match="which are not numbers"):
        ok.Pipeline([ok.FineTune(epochs=1)]).run(model, digits(100))


def test_stages_with_code_in_them_are_done_again_and_loaded_on_trust(tmp_path):
    image = tf_keras.Input((8, 8, 1), name="image")
    x = tf_keras.layers.Lambda(lambda x: 2.0 * x, name="code")(image)
    x = tf_keras.layers.Flatten(name="flat")(x)
    model = tf_keras.Model(image, tf_keras.layers.Dense(10, "softmax", name="classes")(x))
    _, reused = run_kept(model, tmp_path)
    result, reused = run_kept(model, tmp_path)
    assert reused == 1  # the flatbuffer
    run = ok.Run(tmp_path)
    with pytest.raises(ok.ModelError, match="code"):
        run.load("FineTune")
    x = digits(200).test[0]
    loaded = run.load("FineTune", trust=True)
    assert np.array_equal(loaded.predict(x), result.stages["FineTune"].predict(x))
