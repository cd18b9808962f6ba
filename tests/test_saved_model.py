"""`SavedModelArtifact`: what has no layers any more runs, is saved, measured and converted."""

from __future__ import annotations

import gzip
import pickle
import shutil
import tarfile
import warnings

import numpy as np
import pytest
from test_model_files import functional, library, randomize, several

import optkit as ok
from optkit.convert import convert_to_tflite


def exported(model, path):
    """What Keras 3 exports for serving."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(path, verbose=False)
    return path


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A Keras 3 model, and the artifact of what it exports."""
    import keras

    model = functional(keras)
    randomize(model)
    path = exported(model, tmp_path_factory.mktemp("exported") / "cnn")
    return model, path, ok.load_model(path)


def images(n):
    return np.random.default_rng(0).random((n, 8, 8, 1), dtype=np.float32)


def test_predictions_are_those_of_the_model(cnn):
    model, _, artifact = cnn
    assert isinstance(artifact, ok.SavedModelArtifact)
    x = images(9)
    expected = model.predict(x, verbose=0)
    for size in (1, 4, 100):
        np.testing.assert_allclose(artifact.predict(x, size), expected, atol=1e-6)
    np.testing.assert_allclose(artifact.predict(x.astype("float64")), expected, atol=1e-6)
    assert artifact.predict(x[:0]).shape == (0, 3)
    with pytest.raises(ok.DataError, match="has shape"):
        artifact.predict(x[..., 0])
    with pytest.raises(ok.DataError, match="Expected inputs"):
        artifact.predict({"other": x})


def test_counts_and_layers(cnn):
    model, _, artifact = cnn
    assert artifact.parameters == model.count_params()
    assert artifact.sparsity == 0
    layers = {layer.name: layer for layer in artifact.layers()}
    assert layers["norm"].parameters == 16
    assert sum(layer.parameters for layer in layers.values()) == artifact.parameters
    assert sum(layer.bytes for layer in layers.values()) == 4 * artifact.parameters


def test_the_folder_is_saved_whole_and_weighs_what_it_weighs(cnn, tmp_path):
    _, path, artifact = cnn
    x = images(3)
    target = artifact.save(tmp_path / "models" / "1")
    assert target == tmp_path / "models" / "1"
    files = [file for file in target.rglob("*") if file.is_file()]
    assert {file.relative_to(target) for file in files} == {
        file.relative_to(path) for file in path.rglob("*") if file.is_file()
    }
    assert artifact.size_bytes == sum(file.stat().st_size for file in files)
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(target, "model")
    packed = len(gzip.compress((tmp_path / "packed.tar").read_bytes(), 6))
    assert artifact.compressed_bytes == pytest.approx(packed, rel=0.05)
    for loaded in (ok.load(target), ok.load_model(target), pickle.loads(pickle.dumps(artifact))):
        np.testing.assert_array_equal(loaded.predict(x), artifact.predict(x))
        assert loaded.compressed_bytes == artifact.compressed_bytes
    artifact.save(target)  # in the place of a SavedModel
    (tmp_path / "other").mkdir()
    artifact.save(tmp_path / "other")  # an empty folder
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    with pytest.raises(ok.OptkitError, match="holds something else"):
        artifact.save(tmp_path / "taken")
    assert (tmp_path / "taken" / "diary.txt").read_text() == "mine"
    with pytest.raises(ok.OptkitError, match="holds something else"):
        artifact.save(tmp_path / "taken" / "diary.txt")


def test_a_result_folder_gives_it_back(cnn, tmp_path):
    artifact = cnn[2]
    artifact.save(tmp_path / "artifact")
    assert isinstance(ok.load(tmp_path), ok.SavedModelArtifact)


def test_later_changes_of_the_folder_change_nothing(tmp_path):
    import keras

    path = exported(functional(keras), tmp_path / "model")
    artifact = ok.SavedModelArtifact(path)
    expected = artifact.predict(images(2))
    shutil.rmtree(path)
    np.testing.assert_array_equal(artifact.predict(images(2)), expected)
    assert (artifact.save(tmp_path / "again") / "saved_model.pb").is_file()


def test_several_inputs_and_outputs_by_name(tmp_path):
    import keras

    model = several(keras)
    randomize(model)
    artifact = ok.load_model(exported(model, tmp_path / "model"))
    x = np.random.default_rng(0).random((2, 5, 4)).astype("float32")
    found = artifact.predict({"one": x[0], "two": x[1]})
    assert [info.name for info in artifact.signature.inputs] == ["one", "two"]
    for name, expected in zip(found, model.predict(list(x), verbose=0), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_named_signatures(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2, 3), name="x")])
        def double(self, x):
            return {"y": 2 * x}

        @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
        def half(self, x):
            return {"y": x / 2}

        @tf.function(input_signature=[tf.TensorSpec(None, name="x")])
        def shapeless(self, x):
            return {"y": x}

    module = Module()
    path = tmp_path / "two"
    tf.saved_model.save(module, path, {"double": module.double, "half": module.half})
    with pytest.raises(ok.ModelError, match=r"a default signature\. It has: 'double', 'half'"):
        ok.load_model(path)
    with pytest.raises(ok.ModelError, match="the signature 'third'"):
        ok.SavedModelArtifact(path, signature="third")
    x = np.ones((4, 3))
    assert ok.SavedModelArtifact(path, signature="half").predict(x)[0, 0] == 0.5
    double = ok.SavedModelArtifact(path, signature="double")
    assert double.predict(x, batch_size=3).shape == (4, 3)  # in twos, as it was traced
    with pytest.raises(ok.ModelError, match="could not run"):
        double.predict(x[:3])
    tf.saved_model.save(module, tmp_path / "none")
    with pytest.raises(ok.ModelError, match="It has: none"):
        ok.load_model(tmp_path / "none")
    tf.saved_model.save(module, tmp_path / "any", {"any": module.shapeless})
    with pytest.raises(ok.ModelError, match="a shape of any length"):
        ok.load_model(tmp_path / "any").predict(x)


def test_frozen_weights_count(tmp_path):
    import tensorflow as tf

    kernel = np.zeros((4, 3), np.float32)
    kernel[0] = 1

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x):
            return {"y": tf.matmul(x, tf.constant(kernel))}

    module = Module()
    tf.saved_model.save(module, tmp_path / "frozen", module.__call__)
    artifact = ok.load_model(tmp_path / "frozen")
    assert artifact.parameters == 12
    assert artifact.sparsity == pytest.approx(0.75)


def test_it_converts(cnn):
    _, _, artifact = cnn
    x = images(20)
    flat = ok.TFLiteArtifact(convert_to_tflite(artifact))
    np.testing.assert_allclose(flat.predict(x), artifact.predict(x), atol=1e-5)
    small = ok.TFLiteArtifact(
        convert_to_tflite(artifact, representative=lambda: ([one[None]] for one in x))
    )
    assert "int8" in {layer.dtype for layer in small.layers()}
    assert np.max(np.abs(small.predict(x) - artifact.predict(x))) < 0.05


def test_it_is_timed(cnn):
    from optkit.measuring import Device
    from optkit.measuring.latency import LatencyProcess

    _, _, artifact = cnn
    with LatencyProcess(Device(threads=1), images(1), seconds=0.1) as process:
        process.load("graph", artifact)
        found = process.time("graph")
        assert 0 < found.median_ms <= found.p90_ms
        assert process.memory("graph", artifact).peak_bytes > 0


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_load_gives_artifacts_of_either_keras(tmp_path, name):
    keras = library(name)
    model = functional(keras)
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = ok.load(tmp_path / "model.keras")
    assert isinstance(loaded.model, keras.Model)
    np.testing.assert_allclose(
        loaded.predict(images(3)), model.predict(images(3), verbose=0), atol=1e-6
    )


def test_it_is_measured_alone_and_against_a_keras_model(cnn, tmp_path):
    model, path, _ = cnn
    x, y = images(40), np.arange(40) % 3
    quick = ok.Measure(latency_seconds=0.1)
    found = ok.measure(path, (x, y), measure=quick)
    hits = np.argmax(model.predict(x, verbose=0), axis=1) == y
    assert found.figures.accuracy == pytest.approx(hits.mean())
    assert found.figures.parameters == model.count_params()
    assert found.figures.latency_ms > 0
    model.save(tmp_path / "model.keras")
    both = ok.measure(path, (x, y), baseline=tmp_path / "model.keras", measure=quick)
    assert both.comparison.accuracy_change == 0
    assert both.comparison.speedup > 0
