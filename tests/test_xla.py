"""`CompileXLA`: compiled where it can be and helps, and as before where not."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from test_accumulation import apart, context_for, in_order

import optkit as ok
from optkit.artifact import KerasArtifact
from optkit.artifact.keras import inference_function
from optkit.models import clone
from optkit.passes import compile_xla
from optkit.recipe import Recipe
from optkit.runtime import isolated
from optkit.testing import digits, small_model
from optkit.training.speed import StepSpeed
from optkit.training.xla import hindrance

layers = tf_keras.layers
QUICK = ok.Measure(latency_seconds=0, memory=False)


def _batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, 4)).astype("float32")
    return x, np.arange(22) % 3


def _dropping():
    with isolated(2):
        return tf_keras.Sequential(
            [
                tf_keras.Input((4,)),
                layers.Dense(8, "relu", name="hidden"),
                layers.Dropout(0.5, name="drop"),
                layers.Dense(3, "softmax", name="out"),
            ]
        )


class Doubling(layers.Layer):
    """Doubles in Python, of which XLA knows nothing."""

    def call(self, inputs):
        @tf.custom_gradient
        def double(value):
            found = tf.numpy_function(lambda array: array * np.float32(2), [value], tf.float32)
            return tf.ensure_shape(found, value.shape), lambda back: back * 2

        return double(inputs)


def _with_python():
    with isolated(2):
        return tf_keras.Sequential(
            [
                tf_keras.Input((4,)),
                Doubling(name="python"),
                layers.Dense(3, "softmax", name="out"),
            ]
        )


def fit(
    model: Any, recipe: Recipe, size: int = 10, **settings: Any
) -> tuple[list[np.ndarray], list[str]]:
    """The weights after a training of a copy, and what was noted."""
    trained, context = clone(model), context_for(model, in_order(_batches(), size))
    with isolated(5):
        context.fit(trained, recipe, epochs=2, optimizer="adam", **settings)
    return trained.get_weights(), context.notes


# --------------------------------------------------------------------------------------- training


def test_compiled_steps_give_the_same_up_to_rounding(dense):
    """With a short last batch, and accumulated gradients."""
    model = dense()
    recipe = Recipe(accumulate=2)
    plain, _ = fit(model, recipe)
    compiled, notes = fit(model, replace(recipe, jit=True))
    assert notes == []
    assert apart(plain, compiled) < 1e-4
    assert apart(model.get_weights(), compiled) > 1e-3


def test_compiled_steps_are_repeatable():
    """XLA's own random numbers are not: dropout has to draw from seeded generators."""
    model = _dropping()
    one, _ = fit(model, Recipe(jit=True), size=22)
    other, _ = fit(model, Recipe(jit=True), size=22)
    assert apart(one, other) == 0
    assert apart(model.get_weights(), one) > 1e-3


def test_training_goes_on_without_xla_where_that_has_no_such_operation():
    """As if it had not been asked for: no batch is lost, no weight moved, and callbacks see all."""
    seen = []

    class Watching(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    model = _with_python()
    plain, _ = fit(model, Recipe(accumulate=2))
    found, notes = fit(model, Recipe(accumulate=2, jit=True), callbacks=[Watching()])
    assert apart(plain, found) == 0
    assert notes == ["trained without XLA: XLA has no operation PyFunc"]
    assert seen == [0, 1, 2, 0, 1, 2]


def test_texts_are_never_given_to_xla(untimed):
    """It would end the process."""
    vectorize = layers.TextVectorization(output_sequence_length=4, name="words")
    vectorize.adapt(np.array(["good film", "bad film"]))
    text = tf_keras.Input((), dtype="string")
    x = layers.Flatten()(layers.Embedding(6, 4)(vectorize(text)))
    model = tf_keras.Model(text, layers.Dense(2, "softmax")(x))
    x, y = np.array(["good film", "bad film"] * 20), np.array([0, 1] * 20)
    data = ok.Data(train=(x, y), validation=(x, y), test=(x, y))
    passes = [ok.CompileXLA(training=True, inference=True), ok.FineTune(epochs=1)]
    result = ok.Pipeline(passes).run(model, data, progress=False)
    first, _ = result.report.rows
    reason = "the model takes texts, of which XLA knows nothing"
    assert first.notes == (
        f"training goes on without XLA: {reason}",
        f"inference goes on without XLA: {reason}",
    )
    assert not result.artifact.jit


@pytest.mark.parametrize(("device", "tried"), [("GPU", True), ("CPU", False)])
def test_replicas_on_processors_are_never_given_to_xla(device, tried):
    """Their sums would not compile, and the batch that was tried would be lost."""
    strategy = SimpleNamespace(
        num_replicas_in_sync=2,
        extended=SimpleNamespace(worker_devices=[f"/device:{device}:0", f"/device:{device}:1"]),
    )
    assert (hindrance(small_model(), strategy) is None) == tried
    strategy.num_replicas_in_sync = 1
    assert hindrance(small_model(), strategy) is None


def test_the_pass_tries_before_it_asks(untimed):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    data = ok.Data(train=(x, y), validation=(x, y), test=(x, y))
    passes = [ok.CompileXLA(training=True, inference=True), ok.FineTune(epochs=1)]
    result = ok.Pipeline(passes).run(_with_python(), data, progress=False)
    first, second = result.report.rows
    assert first.notes == (
        "training goes on without XLA: XLA has no operation PyFunc",
        "inference goes on without XLA: XLA has no operation PyFunc",
    )
    assert not result.artifact.jit
    assert second.notes == ()  # it was not tried again


# -------------------------------------------------------------------------------------- inference


def test_a_compiled_artifact_is_kept_through_files_and_passes(tmp_path):
    data = digits(200)
    passes = [ok.CompileXLA(training=False, inference=True), ok.BNReestimate()]
    pipeline = ok.Pipeline([*passes, ok.QuantizeFloat16()])
    measure = ok.Measure(latency_seconds=0.05, memory=False)
    result = pipeline.run(
        small_model(), data, progress=False, measure=measure, workdir=tmp_path / "run"
    )
    row = result.report.rows[0]
    assert row.notes[0].startswith("inference with XLA: one sample is ")
    assert row.status == "ok"
    assert row.speedup > 0
    kept = result.stages["BNReestimate"]
    assert kept.jit
    assert result.artifact.kind == "tflite"
    x = data.test[0]
    plain = KerasArtifact(kept.model)
    np.testing.assert_allclose(kept.predict(x), plain.predict(x), atol=1e-6)
    for loaded in (
        ok.load(kept.save(tmp_path / "model.keras")),
        pickle.loads(pickle.dumps(kept)),
    ):
        assert loaded.jit
        np.testing.assert_allclose(loaded.predict(x), plain.predict(x), atol=1e-6)
    assert not ok.load(plain.save(tmp_path / "plain.keras")).jit
    assert tf_keras.models.load_model(tmp_path / "model.keras").count_params() == kept.parameters
    again = pipeline.run(
        small_model(), data, progress=False, measure=measure, workdir=tmp_path / "run"
    )
    assert again.stages["BNReestimate"].jit
    assert again.report.rows[0].notes == row.notes


def test_what_a_compiled_artifact_runs_is_compiled():
    model = small_model()
    x = tf.constant(digits(100).test[0][:1])
    for jit in (False, True):
        function = inference_function(model, batch=1, jit=jit)
        definition = function.get_concrete_function().function_def
        assert definition.attr["_XlaMustCompile"].b is jit
        assert np.isfinite(function(x)).all()


def test_an_artifact_of_keras_3_keeps_it_too(tmp_path, untimed):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    data = ok.Data(train=(x, y), validation=(x, y), test=(x, y))
    result = ok.Pipeline([ok.CompileXLA(training=False, inference=True)]).run(
        model, data, progress=False
    )
    assert isinstance(result.model, keras.Model)
    assert result.artifact.jit
    assert ok.load(result.artifact.save(tmp_path / "model.keras")).jit


@pytest.mark.parametrize(("ratio", "helps"), [(1.5, True), (0.8, False)])
def test_auto_goes_by_what_was_measured(monkeypatch, untimed, ratio, helps):
    from optkit.measuring.latency import Speedup

    found = Speedup(ratio, (0.9 * ratio, 1.1 * ratio))
    monkeypatch.setattr(compile_xla, "compare_inference", lambda *_: (found, 1e-7, 0.5))
    monkeypatch.setattr(compile_xla, "compare_steps", lambda *_, **__: StepSpeed(found, 3.0, 2.0))
    seen = []

    class Looking(ok.TrainPass):
        def train(self, model, recipe, context):
            seen.append(recipe.jit)
            return model

    result = ok.Pipeline([ok.CompileXLA(), Looking()]).run(
        small_model(), digits(200), progress=False
    )
    assert seen == [True if helps else None]
    assert result.artifact.jit is helps
    word = "with" if helps else "stays without"
    assert [note.partition(" XLA")[0] for note in result.report.rows[0].notes] == [
        f"training {word}",
        f"inference {word}",
    ]


def test_outputs_that_differ_are_not_taken(monkeypatch, untimed):
    from optkit.measuring.latency import Speedup

    found = (Speedup(3.0, (2.9, 3.1)), 0.02, 0.5)
    monkeypatch.setattr(compile_xla, "compare_inference", lambda *_: found)
    result = ok.Pipeline([ok.CompileXLA(training=False, inference=True)]).run(
        small_model(), digits(200), progress=False
    )
    assert not result.artifact.jit
    assert "its outputs are 0.02 of the largest one apart" in result.report.rows[0].notes[0]


def test_the_flag_is_read_from_files_that_others_wrote(tmp_path):
    """Whatever stands at its place."""
    path = KerasArtifact(small_model()).save(tmp_path / "model.keras")
    changed = tmp_path / "changed.keras"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = content.replace(b"{", b'{"optkit": "jit", ', 1)
            target.writestr(name, content)
    assert not ok.load(changed).jit


def test_what_it_refuses():
    with pytest.raises(ok.PipelineError, match="does nothing"):
        ok.CompileXLA(training=False, inference=False)
    with pytest.raises(ok.PipelineError, match="`inference` must be one of 'auto'"):
        ok.CompileXLA(inference="yes")
    with pytest.raises(TypeError, match="`training` must be True, False or 'auto'"):
        ok.CompileXLA(training=1)


def test_a_model_that_is_to_go_is_not_compiled():
    transfer = ok.TransferLearn(small_model())
    ok.Pipeline([ok.CompileXLA(inference=False), transfer])
    with pytest.raises(ok.PipelineError, match="TransferLearn, puts another model in the place"):
        ok.Pipeline([ok.CompileXLA(), transfer])


def test_a_training_that_was_compiled_is_not_taken_for_one_that_was_not(tmp_path, untimed):
    data = digits(200)

    def reused(training):
        events = []
        passes = [ok.CompileXLA(training=training, inference=True), ok.FineTune(1, patience=None)]
        ok.Pipeline(passes).run(
            small_model(), data, workdir=tmp_path, progress=events.append, measure=QUICK
        )
        return ("reused", "FineTune") in [(event.kind, event.name) for event in events]

    assert [reused(training) for training in (True, False, True)] == [False, False, True]
