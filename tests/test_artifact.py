"""Artifacts: predictions on the model's own scale, files, sizes, counts."""

from __future__ import annotations

import gzip
import time

import numpy as np
import pytest

import optkit as ok
from optkit.convert import convert_to_tflite
from optkit.models import clone
from optkit.testing import small_model


@pytest.fixture(scope="module")
def flat():
    """A float32 flatbuffer and the model it is of."""
    model = small_model()
    # Other than zero, as the converter leaves out biases that are.
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.random(w.shape) for w in model.get_weights()])
    return model, ok.TFLiteArtifact(convert_to_tflite(model))


def images(n):
    return np.random.default_rng(0).random((n, 8, 8, 1), dtype=np.float32)


def test_predictions_are_those_of_the_model(flat):
    model, artifact = flat
    x = images(37)
    expected = model.predict(x, verbose=0)
    for batch_size in (1, 8, 100):
        assert np.allclose(ok.KerasArtifact(model).predict(x, batch_size), expected, atol=1e-6)
        assert np.allclose(artifact.predict(x, batch_size), expected, atol=1e-6)
    assert artifact.predict(x[:0]).shape == ok.KerasArtifact(model).predict(x[:0]).shape == (0, 10)


def test_float64_and_uint8_come_in_too(flat):
    model, artifact = flat
    x = (images(5) * 255).astype("uint8")
    expected = model.predict(x.astype("float32"), verbose=0)
    for item in (artifact, ok.KerasArtifact(model)):
        assert np.allclose(item.predict(x), expected, atol=1e-5)
        assert np.allclose(item.predict(x.astype("float64")), expected, atol=1e-5)


def test_bad_inputs_are_refused(flat):
    model, artifact = flat
    for item in (artifact, ok.KerasArtifact(model)):
        with pytest.raises(ok.DataError, match="has shape"):
            item.predict(images(3)[..., 0])
        with pytest.raises(ok.DataError, match="Expected inputs"):
            item.predict({"other": images(3)})
        with pytest.raises(ok.DataError, match="at least 1"):
            item.predict(images(3), batch_size=0)


def test_the_float_file_carries_the_names_of_the_model(flat):
    model, artifact = flat
    assert [port.name for port in artifact.inputs] == model.input_names
    assert artifact.inputs[0].shape == (-1, 8, 8, 1)


def test_sizes_are_those_of_the_saved_file(flat, tmp_path):
    model, artifact = flat
    for item in (artifact, ok.KerasArtifact(model)):
        path = item.save(tmp_path / "model")
        assert path.suffix == item.suffix
        assert abs(item.size_bytes - path.stat().st_size) <= 16
        compressed = len(gzip.compress(path.read_bytes(), 6))
        assert item.compressed_bytes == pytest.approx(compressed, rel=0.01)


def test_optimizer_state_is_not_saved(tmp_path):
    model = small_model()
    plain = ok.KerasArtifact(model).size_bytes
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images(32), np.arange(32) % 10, verbose=0)
    assert ok.KerasArtifact(model).size_bytes == pytest.approx(plain, rel=0.1)
    path = ok.KerasArtifact(model).save(tmp_path / "model.keras")
    assert ok.load(path).model.optimizer is None


def test_counts(flat):
    model, artifact = flat
    keras = ok.KerasArtifact(model)
    assert keras.parameters == model.count_params()
    # Batch norm is folded: kernels, and a bias a channel.
    assert artifact.parameters == 8 * 9 + 8 + 8 * 10 + 10
    assert keras.sparsity == artifact.sparsity == 0
    kernel = model.layers[0].kernel.numpy()
    kernel[..., :4] = 0
    sparse = clone(model)
    sparse.layers[0].kernel.assign(kernel)
    assert ok.KerasArtifact(sparse).sparsity == pytest.approx(36 / 152)
    converted = ok.TFLiteArtifact(convert_to_tflite(sparse))
    assert converted.sparsity == pytest.approx(36 / 152)


def test_save_and_load(flat, tmp_path):
    model, artifact = flat
    x = images(5)
    for item in (artifact, ok.KerasArtifact(model)):
        path = item.save(tmp_path / "deep" / f"m{item.suffix}")
        loaded = ok.load(path)
        assert type(loaded) is type(item)
        assert np.array_equal(loaded.predict(x), item.predict(x))
    with pytest.raises(ok.OptkitError, match="is saved as"):
        artifact.save(tmp_path / "m.keras")


def test_a_failed_save_leaves_the_old_file(flat, tmp_path, monkeypatch):
    _, artifact = flat
    path = artifact.save(tmp_path / "m.tflite")
    before = path.read_bytes()

    def half(self, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ok.TFLiteArtifact, "_write", half)
    with pytest.raises(OSError, match="disk full"):
        artifact.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.keras", None, "There is no file"),
        ("bad.keras", b"nonsense", "cannot be read as a Keras model"),
        ("bad.tflite", b"nonsense", "no TFLite flatbuffer"),
        ("half.tflite", b"\x1c\0\0\0TFL3" + b"\0" * 20, "cannot"),
        ("model.onnx", b"", "an ONNX file"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ok.ModelError, match=message):
        ok.load(path).predict(images(1))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ok.ModelError, match="holds 0 files"):
        ok.load(tmp_path)


def test_the_frozen_path_gives_what_the_stock_converter_gives(flat):
    import tensorflow as tf

    model, artifact = flat
    stock = ok.TFLiteArtifact(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    x = images(20)
    assert np.array_equal(stock.predict(x), artifact.predict(x))
    assert artifact.size_bytes == pytest.approx(stock.size_bytes, rel=0.05)


def test_converting_is_quiet_in_the_log(caplog):
    import logging

    caplog.set_level(logging.DEBUG, "absl")
    convert_to_tflite(small_model())
    assert not [record for record in caplog.records if "trackable_obj" in record.getMessage()]
    assert not logging.getLogger("absl").filters


def test_the_layers_of_a_model_are_those_that_keras_counts():
    import tf_keras as keras

    inner = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4, name="dense"), keras.layers.ReLU(name="relu")],
        name="inner",
    )
    shared = keras.layers.Dense(4, use_bias=False, name="shared")
    inputs = keras.Input((8,), name="in")
    outputs = keras.layers.BatchNormalization(name="norm")(shared(shared(inner(inputs))))
    model = keras.Model(inputs, outputs)
    kernel = inner.get_layer("dense").kernel
    kernel.assign(np.where(np.arange(32).reshape(8, 4) < 8, 0, 1).astype("float32"))
    artifact = ok.KerasArtifact(model)
    layers = {layer.name: layer for layer in artifact.layers()}
    assert list(layers) == ["in", "inner/dense", "inner/relu", "shared", "norm"]
    assert layers["inner/dense"].kind == "Dense"
    assert layers["inner/dense"].sparsity == 0.25
    for name, layer in (("shared", shared), ("norm", model.get_layer("norm"))):
        assert layers[name].parameters == layer.count_params()
        assert layers[name].bytes == sum(weight.numpy().nbytes for weight in layer.weights)
    assert layers["norm"].sparsity is None
    assert (layers["inner/relu"].parameters, layers["inner/relu"].dtype) == (0, None)
    assert sum(layer.parameters for layer in layers.values()) == artifact.parameters
    assert artifact.sparsity == pytest.approx(0.25 * 32 / 48)  # of both kernels


def test_a_weight_that_a_model_holds_itself_is_listed_under_its_name():
    import tf_keras as keras

    class Scaled(keras.Model):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.factor = self.add_weight(shape=(3,), name="factor")

    inputs = keras.Input((4,))
    model = Scaled(inputs, keras.layers.Dense(2, name="dense")(inputs), name="scaled")
    artifact = ok.KerasArtifact(model)
    assert [(layer.name, layer.parameters) for layer in artifact.layers()][1:] == [
        ("dense", 10),
        ("scaled", 3),
    ]
    assert artifact.parameters == 13


def test_the_layers_of_a_file_are_its_operators(flat):
    _, artifact = flat
    layers = artifact.layers()
    weighty = [layer for layer in layers if layer.parameters]
    assert [(layer.kind, layer.parameters, layer.dtype) for layer in weighty] == [
        ("CONV_2D", 8 * 9 + 8, "float32"),
        ("FULLY_CONNECTED", 8 * 10 + 10, "float32"),
    ]
    assert all(layer.bytes == 4 * layer.parameters and layer.sparsity == 0 for layer in weighty)
    assert len({layer.name for layer in layers}) == len(layers)
    assert {layer.kind for layer in layers} >= {"MEAN", "SOFTMAX"}
    assert sum(layer.parameters for layer in layers) == artifact.parameters


def test_the_layers_of_an_integer_file_count_bytes_and_zeros_as_stored(trained, data):
    kernel = trained.layers[0].kernel.numpy()
    filters = kernel.shape[-1]
    kernel[..., : filters // 2] = 0
    sparse = clone(trained)
    sparse.layers[0].kernel.assign(kernel)
    result = ok.Pipeline([ok.QuantizeINT8()]).run(sparse, data, progress=False)
    interpreter = result.artifact._interpreter
    stored = next(
        interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if tuple(detail["shape"]) == (filters, 3, 3, 1)
    )
    conv = next(layer for layer in result.artifact.layers() if layer.kind == "CONV_2D")
    assert conv.dtype == "int8"
    assert conv.bytes == stored.size + 4 * filters  # biases are int32
    assert conv.parameters == stored.size + filters
    assert conv.sparsity == np.mean(stored == 0) >= 0.5
    assert sum(layer.parameters for layer in result.artifact.layers()) == result.artifact.parameters


def test_unpacked_weights_are_those_of_the_operator_that_reads_them(trained):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(trained)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    artifact = ok.TFLiteArtifact(converter.convert())
    layers = artifact.layers()
    assert "DEQUANTIZE" not in {layer.kind for layer in layers}
    conv = next(layer for layer in layers if layer.kind == "CONV_2D")
    values = 10 * trained.layers[0].filters  # kernels of 3 by 3 and a bias
    assert (conv.parameters, conv.bytes, conv.dtype) == (values, 2 * values, "float16")
    assert sum(layer.parameters for layer in layers) == artifact.parameters


def test_equal_models_give_equal_files(trained, tmp_path):
    one = ok.KerasArtifact(trained).save(tmp_path / "one.keras")
    time.sleep(2.1)  # the dates in a zip file are two seconds apart
    other = ok.KerasArtifact(trained).save(tmp_path / "other.keras")
    assert one.read_bytes() == other.read_bytes()
    assert sorted(tmp_path.iterdir()) == [one, other]
