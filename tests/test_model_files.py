"""Files in: every format that a Keras writes gives the model back; the rest gives one clear error."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys

import h5py
import numpy as np
import pytest

import optkit as ok
from optkit.testing import small_model

FORMATS = {
    "tf_keras": ("keras", "h5", "saved_model"),
    "keras": ("keras", "h5", "folder"),
}
PAIRS = [(name, form) for name, forms in FORMATS.items() for form in forms]


def library(name):
    if name == "keras":
        import keras

        return keras
    import tf_keras

    return tf_keras


def save(model, name, form, folder):
    """Saves a model with its own Keras; gives the path."""
    if form == "folder":
        from keras.src.saving import saving_lib

        saving_lib.save_model(model, folder / "unzipped", zipped=False)
        return folder / "unzipped"
    path = folder / {"keras": "model.keras", "h5": "model.h5", "saved_model": "saved"}[form]
    if form == "h5":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that the format is an old one
            model.save(path)
    else:
        model.save(path)
    return path


def outputs(model, x):
    import tensorflow as tf

    found = model(x, training=False)
    return [np.asarray(part) for part in tf.nest.flatten(found)]


def same(one, other, x):
    for a, b in zip(outputs(one, x), outputs(other, x), strict=True):
        np.testing.assert_array_equal(a, b)


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.random(w.shape).astype(w.dtype) for w in model.get_weights()])


def functional(keras):
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.LeakyReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="out")(x), name="cnn")


def sequential(keras):
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True)),
            keras.layers.TimeDistributed(keras.layers.Dense(2)),
            keras.layers.GRU(3),
        ]
    )


def nested(keras):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "relu")], name="inner")
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))


def several(keras):
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    shared = keras.layers.Dense(3, name="shared")
    both = keras.layers.Concatenate()([shared(one), shared(two)])
    left = keras.layers.Dense(2, name="left")(both)
    return keras.Model([one, two], [left, keras.layers.Dense(1, name="right")(both)])


def text(keras):
    words = keras.layers.TextVectorization(max_tokens=12, output_sequence_length=4)
    words.adapt(["a b c", "b c d", "c d e"])
    return keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            words,
            keras.layers.Embedding(12, 3),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )


def scaled(keras):
    scale = keras.layers.Normalization()
    scale.adapt(np.random.default_rng(1).random((20, 4)) * 5)
    return keras.Sequential([keras.Input((4,)), scale, keras.layers.Dense(2)])


def sample(kind):
    import tensorflow as tf

    rng = np.random.default_rng(3)
    if kind is text:
        return tf.constant([["a b"], ["e e zebra"]])
    shape = {functional: (2, 8, 8, 1), sequential: (2, 6, 4)}.get(kind, (2, 4))
    x = rng.random(shape).astype("float32")
    return [x, x[::-1].copy()] if kind is several else x


@pytest.mark.parametrize(("name", "form"), PAIRS)
@pytest.mark.parametrize("kind", [functional, sequential, nested, several, text, scaled])
def test_what_a_keras_saved_comes_back(tmp_path, kind, name, form):
    keras = library(name)
    if kind is text and (name, form) in (("keras", "h5"), ("tf_keras", "h5")):
        pytest.skip("HDF5 files of either Keras do not hold learned vocabularies")
    model = kind(keras)
    if kind not in (text, scaled):
        randomize(model)
    loaded = ok.load_model(save(model, name, form, tmp_path))
    assert isinstance(loaded, keras.Model)
    same(loaded, model, sample(kind))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


def compiled_model(keras, **settings):
    model = functional(keras)
    model.compile(
        keras.optimizers.Adam(0.0125),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
        **settings,
    )
    x, y = np.random.default_rng(0).random((6, 8, 8, 1)), np.arange(6) % 3
    model.fit(x, y, verbose=0)
    return model, x, y


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_how_it_was_compiled_comes_back(tmp_path, name, form):
    keras = library(name)
    model, x, y = compiled_model(keras)
    loaded = ok.load_model(save(model, name, form, tmp_path))
    assert type(loaded.loss).__name__ == "SparseCategoricalCrossentropy"
    assert type(loaded.optimizer).__name__ == "Adam"
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.0125)
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))
    # The optimizer's moments came along (SavedModels of tf_keras hold them elsewhere).
    if form != "saved_model":
        assert int(loaded.optimizer.iterations) == 1


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_a_loss_that_is_not_known_leaves_it_uncompiled_and_says_so(tmp_path, caplog, name, form):
    keras = library(name)

    def odd(y, p):
        return keras.losses.mean_squared_error(y, p)

    model = nested(keras)
    model.compile("adam", odd)
    path = save(model, name, form, tmp_path)
    with caplog.at_level(logging.WARNING, "optkit"):
        loaded = ok.load_model(path)
    assert getattr(loaded, "optimizer", None) is None
    assert "without its loss, optimizer and metrics" in caplog.text
    assert "odd" in caplog.text
    caplog.clear()
    known = ok.load_model(path, custom_objects={"odd": odd})
    assert known.optimizer is not None
    assert not caplog.records
    same(known, model, np.ones((2, 4), "float32"))


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
def test_how_an_inner_model_was_compiled_does_not_matter(tmp_path, caplog, name):
    keras = library(name)

    def odd(y, p):
        return keras.losses.mean_squared_error(y, p)

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="inner")
    inner.compile("adam", odd)
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
    with caplog.at_level(logging.WARNING, "optkit"):
        same(ok.load_model(save(model, name, "keras", tmp_path)), model, np.ones((2, 4), "float32"))
    assert not caplog.records


def test_modules_of_keras_2_12_are_known(tmp_path):
    import json
    import zipfile

    import tf_keras

    model = functional(tf_keras)
    path = save(model, "tf_keras", "keras", tmp_path)
    old = tmp_path / "old.keras"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                assert config["module"] == "tf_keras.src.engine.functional"
                config["module"] = "keras.engine.functional"
                content = json.dumps(config).encode()
            target.writestr(name, content)
    same(ok.load_model(old), model, sample(functional))


def own_layer(keras):
    class Twice(keras.layers.Layer):
        def __init__(self, factor=2.0, **settings):
            super().__init__(**settings)
            self.factor = factor

        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return self.factor * self.scale * x

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    return Twice


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_own_layers_by_registration_or_custom_objects(tmp_path, caplog, name, form):
    keras = library(name)
    plain = own_layer(keras)
    model = keras.Sequential([keras.Input((4,)), plain(3.0, name="twice")])
    randomize(model)
    path = save(model, name, form, tmp_path)
    if form == "saved_model":
        with caplog.at_level(logging.WARNING, "optkit"):
            unknown = ok.load_model(path)
        assert isinstance(unknown, ok.SavedModelArtifact)
        assert "comes as a graph" in caplog.text
        x = np.random.default_rng(0).random((3, 4)).astype("float32")
        np.testing.assert_allclose(unknown.predict(x), model(x), rtol=1e-6)
    else:
        with pytest.raises(ok.ModelError, match=r"twice \(Twice\).*names 'Twice'"):
            ok.load_model(path)
    loaded = ok.load_model(path, custom_objects={"Twice": plain})
    assert type(loaded.layers[-1]) is plain
    same(loaded, model, np.ones((2, 4), "float32"))


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_registered_layers_need_no_more(tmp_path, name, form):
    keras = library(name)
    kind = keras.saving.register_keras_serializable("files")(own_layer(keras))
    model = keras.Sequential([keras.Input((4,)), kind(3.0)])
    randomize(model)
    loaded = ok.load_model(save(model, name, form, tmp_path))
    assert type(loaded.layers[-1]) is kind
    same(loaded, model, np.ones((2, 4), "float32"))


def test_the_content_decides_not_the_name(tmp_path):
    import keras
    import tf_keras

    for module in (keras, tf_keras):
        model = nested(module)
        for form in ("keras", "h5"):
            path = save(model, module.__name__, form, tmp_path)
            renamed = path.rename(tmp_path / f"{module.__name__}-{form}.bin")
            assert isinstance(ok.load_model(renamed), module.Model)
    wrong = tmp_path / "keras-h5.keras"
    (tmp_path / "keras-h5.bin").rename(wrong)
    assert isinstance(ok.load_model(wrong), keras.Model)


def test_a_file_that_may_not_be_written_is_read(tmp_path):
    import tf_keras

    path = save(nested(tf_keras), "tf_keras", "keras", tmp_path)
    before = path.read_bytes()
    path.chmod(stat.S_IRUSR)
    assert isinstance(ok.load_model(path), tf_keras.Model)
    assert path.read_bytes() == before


@pytest.mark.parametrize("everywhere", [False, True])
def test_vocabularies_are_read_beside_weights_also_where_python_loses_its_place(
    tmp_path, monkeypatch, everywhere
):
    import zipfile

    import tf_keras

    from optkit.artifact import archive

    if everywhere:
        monkeypatch.setattr(archive, "_loses_its_place", lambda: True)
    loses = archive._loses_its_place()
    model = text(tf_keras)
    path = save(model, "tf_keras", "keras", tmp_path)
    with zipfile.ZipFile(path) as given:
        archive.repack(given, tmp_path / "copy.keras", {})
    with zipfile.ZipFile(tmp_path / "copy.keras") as copy:
        assert copy.testzip() is None
        kinds = {entry.compress_type for entry in copy.infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED if loses else zipfile.ZIP_STORED}
    same(ok.load_model(path), model, sample(text))


# ----------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["keras", "tf_keras"])
@pytest.mark.parametrize("form", ["weights", "old", "checkpoint", "keras", "h5", "saved_model"])
def test_weights_go_into_what_the_builder_gives(tmp_path, name, form):
    keras = library(name)
    model = functional(keras)
    randomize(model)
    if form == "weights":
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
    elif name == "keras" and form not in ("keras", "h5"):
        pytest.skip("Keras 3 does not write it")
    elif form == "old":
        path = tmp_path / "weights.h5"
        model.save_weights(path)
    elif form == "checkpoint":
        path = tmp_path / "checkpoint"
        model.save_weights(path)
        assert (tmp_path / "checkpoint.index").exists()
    else:
        path = save(model, name, form, tmp_path)

    def build():
        fresh = functional(keras)
        randomize(fresh, seed=9)
        return fresh

    loaded = ok.load_model(path, builder=build)
    same(loaded, model, sample(functional))
    with pytest.raises(ok.ModelError, match="do not fit the model"):
        ok.load_model(path, builder=lambda: nested(keras))


def test_weights_alone_ask_for_a_builder(tmp_path):
    import tf_keras

    model = nested(tf_keras)
    model.save_weights(tmp_path / "model.weights.h5")
    model.save_weights(tmp_path / "checkpoint")
    with pytest.raises(ok.ModelError, match=r"weights alone.*builder="):
        ok.load_model(tmp_path / "model.weights.h5")
    with pytest.raises(ok.ModelError, match=r"weights alone.*builder="):
        ok.load_model(tmp_path / "checkpoint")


def test_what_is_no_builder(tmp_path):
    import keras
    import tf_keras

    path = save(nested(tf_keras), "tf_keras", "keras", tmp_path)
    with pytest.raises(ok.ModelError, match="lambda: model"):
        ok.load_model(path, builder=nested(tf_keras))
    with pytest.raises(ok.ModelError, match="must be a function"):
        ok.load_model(path, builder=3)
    with pytest.raises(ok.ModelError, match="`builder` failed: ZeroDivisionError"):
        ok.load_model(path, builder=lambda: 1 // 0)
    with pytest.raises(ok.ModelError, match="must give a Keras model"):
        ok.load_model(path, builder=lambda: 3)
    with pytest.raises(ok.ModelError, match="not built"):
        ok.load_model(path, builder=lambda: tf_keras.Sequential([tf_keras.layers.Dense(2)]))
    nested(tf_keras).save_weights(tmp_path / "checkpoint")
    with pytest.raises(ok.ModelError, match="Keras 3 does not read it"):
        ok.load_model(tmp_path / "checkpoint", builder=lambda: nested(keras))


# --------------------------------------------------------------------------------- what is no model


def test_a_place_with_nothing(tmp_path):
    with pytest.raises(ok.ModelError, match="There is no file"):
        ok.load_model(tmp_path / "missing.keras")
    with pytest.raises(ok.ModelError, match="is not there either"):
        ok.load_model(tmp_path / "no" / "folder.keras")
    with pytest.raises(ok.ModelError, match="downloads nothing"):
        ok.load_model("https://example.org/model.keras")
    with pytest.raises(ok.ModelError, match=r"is no SavedModel.*nothing in it"):
        ok.load_model(tmp_path)
    with pytest.raises(TypeError, match="`path`"):
        ok.load_model(3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.keras", b"", "it is empty"),
        ("empty.h5", b"", "it is empty"),
        ("noise.keras", b"\x93\x01 no model, only words", "begins with"),
        ("model.pt", b"PK\x03\x04 and then nothing", "damaged"),
        ("model.pkl", b"\x80\x04\x95", "a pickle"),
        ("model.onnx", b"\x08\x07", "an ONNX file"),
        ("model.json", b"{}", "without weights"),
        ("half.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "damaged"),
    ],
)
def test_what_is_no_model_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ok.ModelError, match=message) as caught:
        ok.load_model(path)
    assert name in str(caught.value)


def test_a_tflite_file_is_for_load(tmp_path):
    from optkit.convert import convert_to_tflite

    path = ok.TFLiteArtifact(convert_to_tflite(small_model())).save(tmp_path / "m.tflite")
    with pytest.raises(ok.ModelError, match=r"`optkit.load` reads it"):
        ok.load_model(path)
    assert ok.load(path).kind == "tflite"


def test_a_folder_of_a_result_is_for_load(tmp_path):
    ok.KerasArtifact(small_model()).save(tmp_path / "artifact.keras")
    with pytest.raises(ok.ModelError, match=r"`optkit.load` reads folders"):
        ok.load_model(tmp_path)
    assert ok.load(tmp_path).kind == "keras"
    (tmp_path / "artifact.front.keras").write_bytes(b"")
    assert ok.load(tmp_path).kind == "keras"


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.keras")
    with pytest.raises(ok.ModelError, match="pipe"):
        ok.load_model(tmp_path / "pipe.keras")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is kept from root")
def test_a_file_that_may_not_be_read(tmp_path):
    path = save(nested(library("keras")), "keras", "keras", tmp_path)
    path.chmod(0)
    with pytest.raises(ok.ModelError, match="may not be read"):
        ok.load_model(path)


@pytest.mark.parametrize(("name", "form"), [pair for pair in PAIRS if pair[1] in ("keras", "h5")])
def test_files_that_were_cut_off(tmp_path, name, form):
    keras = library(name)
    path = save(functional(keras), name, form, tmp_path)
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ok.ModelError, match=r"damaged|is no Keras file"):
            ok.load_model(path)


def test_a_saved_model_that_lacks_files(tmp_path):
    import tf_keras

    path = save(functional(tf_keras), "tf_keras", "saved_model", tmp_path)
    data = next((path / "variables").glob("*.data-*"))
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(ok.ModelError, match="incomplete or damaged"):
        ok.load_model(path)
    data.write_bytes(content)
    for name in ("variables/variables.index", "saved_model.pb", "keras_metadata.pb"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ok.ModelError, match=r"damaged|cannot be read"):
            ok.load_model(path)
        (path / name).write_bytes(whole)
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ok.ModelError):
        ok.load_model(path)


def test_another_backend_says_what_to_do(tmp_path, monkeypatch):
    import keras

    path = save(nested(keras), "keras", "keras", tmp_path)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ok.ModelError, match="KERAS_BACKEND=tensorflow"):
        ok.load_model(path)


def test_errors_of_keras_are_chained(tmp_path):
    import tf_keras

    path = save(nested(tf_keras), "tf_keras", "h5", tmp_path)
    with h5py.File(path, "a") as file:
        weights = file["model_weights"]
        del weights[next(iter(weights))]
    with pytest.raises(ok.ModelError, match=r"tf_keras \(Keras 2\) cannot build") as caught:
        ok.load_model(path)
    assert caught.value.__cause__ is not None


def test_translated_models_are_read_by_a_process_that_translated_nothing(tmp_path):
    import keras

    from optkit.translate import to_tf_keras

    inputs = keras.Input((4,))
    x = keras.ops.tanh(keras.layers.Dense(3, "hard_silu")(inputs)) + 1
    model = keras.Model(inputs, keras.layers.RMSNormalization()(x))
    to_tf_keras(model).save(tmp_path / "model.keras")
    script = (
        "import sys, numpy as np, optkit as ok\n"
        "assert 'optkit.translate.carrier2' not in sys.modules\n"
        f"model = ok.load_model({str(tmp_path / 'model.keras')!r})\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, model(np.ones((2, 4), 'float32')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, model(np.ones((2, 4), "float32")), rtol=1e-6)


def test_load_reads_both_keras(tmp_path):
    import tf_keras

    model = functional(tf_keras)
    randomize(model)
    loaded = ok.load(save(model, "tf_keras", "keras", tmp_path))
    assert loaded.kind == "keras"
    assert loaded.model.optimizer is None
    x = sample(functional)
    np.testing.assert_allclose(loaded.predict(x), outputs(model, x)[0], atol=1e-6)
