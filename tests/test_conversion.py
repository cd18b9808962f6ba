"""Every kind of model through TFLite's converter: equal outputs in float32, close ones in INT8."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import optkit as ok
from optkit.convert import convert
from optkit.errors import ModelError, OptkitError
from optkit.isolate import run_module
from optkit.lookups import split_lookups
from optkit.models import signature, variables_by_path

pytestmark = pytest.mark.usefixtures("untimed")


def kinds():
    """Layers between an input of shape (8, 8) and a dense end, or whole models, by name."""
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers

    def image():
        return layers.Reshape((8, 8, 1))

    def video():
        return layers.Reshape((4, 4, 4, 1))

    def attention():
        x = keras.Input((8, 8))
        y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        y = layers.AdditiveAttention()([y, layers.Attention()([y, y])])
        return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))

    def operators():
        x = keras.Input((8, 8))
        y = tf.reduce_mean(tf.nn.relu(x) * 2 - 1, axis=1, keepdims=True) + tf.transpose(
            x, (0, 2, 1)
        )
        y = tf.pad(tf.image.resize(y[..., None], (4, 4)), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return keras.Model(x, layers.Dense(10)(layers.Flatten()(y)))

    def normalization():
        layer = layers.Normalization()
        layer.adapt(np.random.default_rng(0).normal(3, 2, (50, 8, 8)))
        return layer

    def inside():
        return keras.Sequential([keras.Input((None, 8)), layers.GRU(5, return_sequences=True)])

    def recurrent_own():
        class Own(layers.Layer):
            def __init__(self):
                super().__init__()
                self.first = layers.LSTM(5)

            def call(self, x):
                return self.first(x)

        return Own()

    return {
        "lstm": [layers.LSTM(6, return_sequences=True), layers.LSTM(5)],
        "gru": [layers.GRU(6)],
        "gru, other order": [layers.GRU(6, reset_after=False)],
        "simple": [layers.SimpleRNN(6)],
        "both ways": [layers.Bidirectional(layers.GRU(6))],
        "cells": [layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])],
        "convolutional loop": [video(), layers.ConvLSTM2D(2, 2), layers.Flatten()],
        "loop in a model": [inside(), layers.LSTM(4)],
        "loop in a layer": [recurrent_own()],
        "1d": [layers.Conv1D(4, 3), layers.Conv1DTranspose(4, 3), layers.Flatten()],
        "2d": [
            image(),
            layers.SeparableConv2D(4, 3),
            layers.DepthwiseConv2D(3),
            layers.Conv2DTranspose(4, 3, strides=2),
            layers.Flatten(),
        ],
        "3d": [video(), layers.Conv3D(3, 2), layers.Conv3DTranspose(2, 2), layers.Flatten()],
        "norms": [
            layers.GroupNormalization(2),
            layers.LayerNormalization(),
            layers.UnitNormalization(),
            layers.Flatten(),
        ],
        "augmenting": [
            image(),
            layers.RandomFlip(),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomTranslation(0.2, 0.2),
            layers.RandomContrast(0.2),
            layers.RandomCrop(5, 6),
            layers.Flatten(),
        ],
        "sizes": [
            layers.Rescaling(2.0, -1.0),
            image(),
            layers.Resizing(12, 12),
            layers.CenterCrop(9, 9),
            layers.Flatten(),
        ],
        "normalization": [normalization(), layers.Flatten()],
        "einsum": [layers.EinsumDense("abc,cd->abd", (None, 5)), layers.Flatten()],
        "over time": [layers.TimeDistributed(layers.Dense(5)), layers.Flatten()],
        "function": [layers.Lambda(lambda x: tf.abs(x) + tf.sin(x)), layers.Flatten()],
        "attention": attention,
        "operators": operators,
    }


def build(kind):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    parts = kinds()[kind]
    if callable(parts):
        return parts()
    return keras.Sequential([keras.Input((8, 8), name="x"), *parts, keras.layers.Dense(10)])


def rows(count=24, shape=(8, 8)):
    return np.random.default_rng(0).random((count, *shape)).astype("float32")


def apart(artifact, model, x):
    """Largest difference of outputs, relative to the largest output."""
    wanted = np.asarray(model(x, training=False))
    return np.abs(artifact.predict(x) - wanted).max() / np.abs(wanted).max()


def samples(x):
    return lambda: iter([[row[None]] for row in x])


@pytest.mark.parametrize("kind", list(kinds()))
def test_a_float_file_is_equal_and_a_full_integer_one_close(kind):
    model, x = build(kind), rows()
    assert apart(convert(model).artifact, model, x) < 1e-5
    quantized = convert(model, samples=samples(x), io="int8").artifact
    assert apart(quantized, model, x) < 0.12
    assert quantized.inputs[0].dtype == np.int8
    assert quantized.predict(x[:1]).shape == (1, 10)


def masked(layer, value=0.0, kind=None):
    """A model that masks steps, and samples in which some are."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    rng = np.random.default_rng(0)
    hidden = np.ones((24, 8), bool)
    hidden[::2, 5:] = hidden[::3, :2] = False
    if kind == "tokens":
        first = [keras.Input((8,), dtype="int32"), layers.Embedding(9, 8, mask_zero=True)]
        first[1].build(None)
        first[1].set_weights([rng.normal(size=(9, 8))])
        x = (rng.integers(1, 9, (24, 8)) * hidden).astype("int32")
    else:
        first = [keras.Input((8, 8)), layers.Masking(value)]
        x = np.where(hidden[..., None], rng.normal(size=(24, 8, 8)), value).astype("float32")
    model = keras.Sequential([*first, layer])
    if len(model.output_shape) > 2:
        model.add(layers.Flatten())
    model.add(layers.Dense(10))
    return model, x


def masked_kinds():
    import tf_keras as keras

    layers = keras.layers
    return {
        "lstm": (layers.LSTM(4), None),
        "gru": (layers.GRU(4), None),
        "all steps, backwards": (layers.LSTM(4, return_sequences=True, go_backwards=True), None),
        "zeros for masked ones": (
            layers.GRU(4, return_sequences=True, zero_output_for_mask=True),
            None,
        ),
        "both ways": (layers.Bidirectional(layers.LSTM(4)), None),
        "cells": (layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]), None),
        "tokens": (layers.LSTM(4, return_sequences=True), "tokens"),
    }


@pytest.mark.parametrize("case", list(masked_kinds()))
def test_masked_steps_are_left_out_of_a_full_integer_file(case):
    layer, kind = masked_kinds()[case]
    model, x = masked(layer, kind=kind)
    artifact = convert(model, samples=lambda: iter([[row[None]] for row in x]), io="int8").artifact
    assert apart(artifact, model, x) < 0.07

    def unmasked(x, training):
        hidden = np.asarray(model.layers[0](x))  # an array carries no mask
        for layer in model.layers[1:]:
            hidden = layer(hidden)
        return hidden

    assert apart(artifact, unmasked, x) > 0.15


def test_masks_by_a_value_that_8_bits_do_not_hold():
    import tf_keras as keras

    model, x = masked(keras.layers.LSTM(4), value=-1.0)
    data = ok.Data(train=(x, np.random.default_rng(0).random((24, 10))))
    with pytest.raises(ok.PipelineError, match="8 bits do not hold exactly"):
        ok.Pipeline([ok.QuantizeINT8()]).check(model, data)
    result = ok.Pipeline([ok.QuantizeINT8(io="float32")]).run(model, data)
    assert apart(result.artifact, model, x) < 0.15, "without its masks it would be 1"
    inside = keras.Sequential([keras.Input((8, 8)), keras.layers.ReLU(), *model.layers])
    with pytest.raises(ok.PipelineError, match="8 bits do not hold exactly"):
        ok.Pipeline([ok.QuantizeINT8(io="float32")]).check(inside, data)


def test_looping_unrolled_changes_nothing_of_keras():
    from tf_keras.src import backend

    loop = backend.rnn
    convert(build("gru"), samples=samples(rows(4)))
    assert backend.rnn is loop


@pytest.mark.parametrize("steps", [3, 11])
def test_open_lengths_stay_open_in_a_float_file(steps):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((None, 8)), keras.layers.LSTM(5), keras.layers.Dense(2)])
    artifact = convert(model).artifact
    assert apart(artifact, model, rows(6, (steps, 8))) < 1e-5


def test_open_image_sizes_stay_open_in_a_float_file():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(3, 3), layers.GlobalMaxPooling2D()]
    )
    artifact = convert(model).artifact
    for size in (5, 9):
        assert apart(artifact, model, rows(4, (size, size, 1))) < 1e-5


def test_a_model_in_16_bits_is_converted_from_a_float32_twin():
    import tf_keras as keras

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8)),
                keras.layers.Bidirectional(keras.layers.LSTM(4)),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(10, dtype="float32"),
            ]
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    made = convert(model)
    assert "float32 twin" in made.notes[0]
    assert apart(made.artifact, model, rows()) < 5e-3  # what 16 bits round away
    before = [layer.compute_dtype for layer in model.layers]
    assert before == ["float16", "float16", "float32"], "the model itself stays as it is"


def test_names_and_outputs_of_several_inputs_and_outputs():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    left, right = keras.Input((3,), name="zeta"), keras.Input((2,), name="alpha")
    hidden = layers.Dense(6, "tanh")(layers.Concatenate()([left, right]))
    model = keras.Model(
        [left, right],
        [layers.Dense(4, name="z_out")(hidden), layers.Dense(1, name="a_out")(hidden)],
    )
    x = {"zeta": rows(5, (3,)), "alpha": rows(5, (2,))}
    wanted = dict(zip(model.output_names, model([x["zeta"], x["alpha"]]), strict=True))
    artifact = convert(model).artifact
    got = artifact.predict(x)
    assert list(got) == ["z_out", "a_out"]
    for name, value in wanted.items():
        assert np.allclose(got[name], value, atol=1e-5)


# ------------------------------------------------------------------------------------------ lookups


WORDS = np.array([["a b c"], ["b b"], ["c zzz a a"], [""]] * 6, dtype=object)


def texts(**settings):
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    vectorize = layers.TextVectorization(name="words", **settings)
    vectorize.adapt(WORDS[:, 0])
    kind = settings.get("output_mode", "int")
    behind = (
        [layers.Embedding(20, 4, name="embed"), layers.GlobalAveragePooling1D()]
        if kind == "int"
        else []
    )
    return keras.Sequential(
        [keras.Input((1,), dtype="string", name="text"), vectorize, *behind, layers.Dense(3)],
        name="texts",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"output_sequence_length": 5},
        {},
        {"output_mode": "multi_hot"},
        {"output_mode": "tf_idf"},
        {"ngrams": 2, "output_sequence_length": 6},
    ],
    ids=str,
)
def test_text_is_looked_up_before_the_file(settings):
    model = texts(**settings)
    made = convert(model)
    assert "split off, as TFLite has no lookups: words" in made.notes[0]
    wanted = np.asarray(model(WORDS))
    assert np.allclose(made.artifact.predict(WORDS), wanted, atol=1e-5)
    assert [port.name for port in made.artifact.inputs] == ["words"]
    shapes = {"words": (5,)} if settings == {} else None
    whole = convert(
        model, samples=lambda: iter([[row[None]] for row in WORDS]), input_shapes=shapes
    )
    if settings:
        assert np.abs(whole.artifact.predict(WORDS) - wanted).max() < 0.06 * np.abs(wanted).max()
    else:  # words that fill up to a fixed length count in the mean
        assert whole.artifact.inputs[0].shape == (-1, 5)


def test_a_front_is_saved_read_and_pickled_with_its_file(tmp_path):
    artifact = convert(texts(output_sequence_length=5)).artifact
    wanted = artifact.predict(WORDS)
    path = artifact.save(tmp_path / "model.tflite")
    assert (tmp_path / "model.front.keras").is_file()
    assert artifact.size_bytes == path.stat().st_size
    for again in (ok.TFLiteArtifact.read(path), pickle.loads(pickle.dumps(artifact))):
        assert np.array_equal(again.predict(WORDS), wanted)
        assert again.content == artifact.content
    (tmp_path / "model.front.keras").unlink()
    with pytest.raises(ModelError, match="Copy both"):
        ok.TFLiteArtifact.read(path)
    other = convert(texts(output_mode="multi_hot")).artifact.save(tmp_path / "other.tflite")
    other.with_suffix(".front.keras").rename(tmp_path / "model.front.keras")
    with pytest.raises(ModelError, match="does not belong to"):
        ok.TFLiteArtifact.read(path)


def test_inputs_that_need_no_lookup_go_past_the_front():
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    amount = keras.Input((2,), name="amount")
    kind = keras.Input((1,), dtype="string", name="kind")
    code = keras.Input((1,), dtype="int64", name="code")
    looked = layers.StringLookup(vocabulary=["x", "y"], output_mode="one_hot", name="look")(kind)
    hashed = layers.Flatten()(layers.Embedding(7, 3)(layers.Hashing(7, name="hash")(code)))
    joined = layers.Concatenate()([looked, amount, hashed])
    model = keras.Model([amount, kind, code], layers.Dense(2)(joined))
    x = {
        "amount": rows(4, (2,)),
        "kind": np.array([["x"], ["y"], ["q"], ["x"]], dtype=object),
        "code": np.arange(4)[:, None],
    }
    made = convert(model)
    wanted = np.asarray(model([x["amount"], x["kind"], x["code"]]))
    assert np.allclose(made.artifact.predict(x), wanted, atol=1e-5)
    in_order = [x["amount"], x["kind"], x["code"]]
    assert np.allclose(made.artifact.predict(in_order), wanted, atol=1e-5)
    assert {port.name for port in made.artifact.inputs} == {"look", "amount", "hash"}


def test_the_parts_of_a_split_are_copies_and_make_up_the_model():
    model = texts(output_sequence_length=5)
    split = split_lookups(model)
    assert split.layers == ("words",)
    assert np.allclose(split.rest(split.front(WORDS)), model(WORDS), atol=1e-6)
    own = {id(weight) for weight in model.weights}
    assert not own & {id(w) for part in (split.front, split.rest) for w in part.weights}
    assert [info.name for info in signature(split.rest).inputs] == ["words"]
    assert split_lookups(build("gru")) is None


def test_lookups_within_a_model_within_the_model():
    import tf_keras as keras

    layers = keras.layers
    inner = texts(output_sequence_length=5)
    text = keras.Input((1,), dtype="string", name="raw")
    model = keras.Model(text, layers.Dense(2)(inner(text)))
    made = convert(model)
    assert np.allclose(made.artifact.predict(WORDS), np.asarray(model(WORDS)), atol=1e-5)


def test_a_model_in_16_bits_behind_a_lookup_is_quantized():
    import keras

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(0)
        vectorize = keras.layers.TextVectorization(max_tokens=9, output_sequence_length=4)
        vectorize.adapt(WORDS[:, 0])
        text = keras.Input((1,), dtype="string", name="text")
        hidden = keras.layers.Embedding(9, 8)(vectorize(text))
        hidden = keras.layers.GlobalAveragePooling1D()(hidden)
        model = keras.Model(text, keras.layers.Dense(3, activation="softmax")(hidden))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    data = ok.Data(train=(WORDS, np.arange(24) % 3))
    result = ok.Pipeline([ok.QuantizeINT8()]).run(model, data)
    wanted = np.asarray(model(WORDS), np.float32)
    assert np.abs(result.artifact.predict(WORDS) - wanted).max() < 0.02
    assert any("float32 twin" in note for note in result.report.rows[-1].notes)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layers_in_16_bits_are_quantized(dtype):
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((8, 8), dtype=dtype, name="x")
    y = layers.GlobalAveragePooling1D(dtype="float16")(layers.Conv1D(3, 3, dtype="float16")(x))
    model = keras.Model(x, layers.Dense(3, activation="softmax", dtype="float16")(y))
    data = ok.Data(train=(rows(), np.arange(24) % 3))
    artifact = ok.Pipeline([ok.QuantizeINT8()]).run(model, data).artifact
    assert np.abs(artifact.predict(rows()) - np.asarray(model(rows()), np.float32)).max() < 0.02


def test_outputs_behind_a_lookup_keep_their_names():
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layers = keras.layers
    code = keras.Input((1,), dtype="string", name="code")
    amount = keras.Input((2,), name="amount")
    looked = layers.StringLookup(vocabulary=["x", "y"], output_mode="one_hot")(code)
    joined = layers.Concatenate()([looked, amount])
    heads = {
        "sure": layers.Dense(1, activation="sigmoid", name="first")(joined),
        "size": layers.Dense(1, name="second")(joined),
    }
    model = keras.Model({"code": code, "amount": amount}, heads)
    x = {"code": np.array([["x"], ["y"]] * 12, dtype=object), "amount": rows(24, (2,))}
    y = {"sure": np.arange(24) % 2, "size": rows(24, (1,))}
    artifact = (
        ok.Pipeline([ok.QuantizeINT8()]).run(model, ok.Data(train=(x, y), calibration=x)).artifact
    )
    got = artifact.predict(x)
    wanted = model({"code": tf.constant(x["code"].tolist()), "amount": tf.constant(x["amount"])})
    assert sorted(got) == ["size", "sure"]
    for name in got:
        assert np.abs(got[name] - np.asarray(wanted[name])).max() < 0.05


@pytest.mark.parametrize("keras_name", ["keras", "tf_keras"])
def test_weighted_words_run_through_a_pipeline(keras_name):
    import importlib

    import tensorflow as tf

    keras = importlib.import_module(keras_name)
    keras.utils.set_random_seed(0)
    text = keras.Input((1,), dtype="string", name="text")
    vectorize = keras.layers.TextVectorization(max_tokens=9, output_mode="tf_idf")
    vectorize.adapt(WORDS[:, 0])
    model = keras.Model(text, keras.layers.Dense(3, activation="softmax")(vectorize(text)))
    data = ok.Data(train=(WORDS, np.arange(24) % 3))
    result = ok.Pipeline([ok.FineTune(epochs=1), ok.QuantizeINT8()]).run(model, data)
    wanted = np.asarray(result.stages["FineTune"].model(tf.constant(WORDS.tolist())))
    assert np.abs(result.artifact.predict(WORDS) - wanted).max() < 0.03


def test_no_samples_give_no_outputs():
    nothing = np.zeros((0, 1), dtype=object)
    for settings in ({"output_sequence_length": 5}, {}):
        assert convert(texts(**settings)).artifact.predict(nothing).shape == (0, 3)


def test_what_cannot_be_split_is_said():
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers
    number = keras.Input((4,), name="x")
    rounded = layers.Lambda(lambda x: tf.cast(x, tf.int64))(layers.Dense(3, name="first")(number))
    behind = keras.Model(number, layers.Dense(2)(layers.CategoryEncoding(9)(rounded)))
    with pytest.raises(ModelError, match=r"come behind layers with weights \(first\)"):
        split_lookups(behind)
    alone = keras.Sequential([keras.Input((1,), dtype="int64"), layers.CategoryEncoding(9)])
    with pytest.raises(ModelError, match="all there is"):
        split_lookups(alone)


# ---------------------------------------------------------------------------- processes of their own


def test_a_crash_is_an_error_and_no_end(tmp_path, monkeypatch):
    script = tmp_path / "crashing.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for line, message in (
        ("import ctypes; ctypes.string_at(0)", "crashed it with SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "where memory runs out"),
        ("import time; time.sleep(60)", "did not end within 2 seconds"),
        ("raise ValueError('no such thing')", r"exit status 1.*no such thing"),
    ):
        script.write_text(line)
        with pytest.raises(OptkitError, match=message):
            run_module("crashing", what="The work", seconds=2)


# ----------------------------------------------------------------------------------------- pipelines


def test_a_recurrent_model_is_pruned_and_quantized():
    import tf_keras as keras
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = (loaded.images / 16).astype("float32"), loaded.target.astype("int64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="rows"),
            keras.layers.Bidirectional(keras.layers.GRU(16)),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    data = ok.Data(train=(x[:1000], y[:1000]), test=(x[1000:1400], y[1000:1400]))
    passes = [ok.FineTune(8, 0.01), ok.Prune(0.5, 1), ok.QuantizeINT8()]
    result = ok.Pipeline(passes).run(model, data)
    kept = result.stages["Prune"].model
    kernels = [w.numpy() for p, w in variables_by_path(kept).items() if p.endswith("kernel")]
    assert len(kernels) == 5, "of both directions two, and that of the end"
    assert [np.mean(kernel == 0) for kernel in kernels] == pytest.approx([0.5] * 5, abs=0.01)
    agree = result.artifact.predict(x[:400]).argmax(1) == kept.predict(x[:400], verbose=0).argmax(1)
    assert agree.mean() > 0.97
    assert result.report.final.accuracy > 0.8


def test_open_sizes_are_asked_for_and_given(data):
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, None, 1), name="image"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    for shape in ((8, 8, 1), {"image": (8, 8, 1)}):
        result = ok.Pipeline([ok.QuantizeINT8(input_shape=shape)]).run(model, data)
        assert result.artifact.inputs[0].shape == (-1, 8, 8, 1)
    for shape, kind, message in (
        (None, ok.PipelineError, r"Pass `input_shape=…`"),
        ((8, 8, 3), ok.PipelineError, "does not fit input 'image'"),
        ((9, 9, 1), ok.DataError, "a sample has shape"),
        ({"picture": (8, 8, 1)}, ok.PipelineError, "names inputs"),
    ):
        with pytest.raises(kind, match=message):
            ok.Pipeline([ok.QuantizeINT8(input_shape=shape)]).check(model, data)
