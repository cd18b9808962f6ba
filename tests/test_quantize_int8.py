"""`QuantizeINT8` end to end: what the file computes, hard models, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import optkit as ok
from optkit.quantize import float_operations

pytestmark = pytest.mark.usefixtures("untimed")
layers = keras.layers


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def noise(*shape, seed=0, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("f")


def notes_of(result):
    return result.report.rows[-1].notes


def said(result, words):
    return [note for note in notes_of(result) if words in note]


def run(model, data, *samples, **settings):
    return ok.Pipeline([ok.QuantizeINT8(*samples, **settings)]).run(model, data)


def data_of(x, y, **others):
    """All of the samples for everything, so that nothing is clipped that was not calibrated on."""
    return ok.Data(train=(x, y), validation=(x, y), test=(x, y), **others)


def in_float(result):
    """The kinds of operators that compute in float, but for what takes shapes and types alone."""
    return set(float_operations(result.artifact.content)) - {"CAST", "SHAPE"}


def assert_all_integers_but_what_is_said(result):
    """Nothing computes in float that the row does not name."""
    found = said(result, "in float, as no quantizer treats them: ")
    named = {kind for note in found for kind in note.partition("them: ")[2].split(", ")}
    assert in_float(result) == named
    return named


# --------------------------------------------------------------------- as a bare interpreter does


def bare(content, inputs):
    """What LiteRT gives for inputs as they are stored, one sample after another."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    signature = next(iter(interpreter._get_full_signature_list().values()))
    ports = {d["index"]: d for d in interpreter.get_input_details()}
    interpreter.allocate_tensors()
    found = {name: [] for name in signature["outputs"]}
    for place in range(len(next(iter(inputs.values())))):
        for name, index in signature["inputs"].items():
            value = inputs[name][place : place + 1]
            scale, zero = ports[index]["quantization"]
            kind = ports[index]["dtype"]
            if scale:
                limits = np.iinfo(kind)
                value = np.clip(np.round(value / np.float32(scale)) + zero, limits.min, limits.max)
            interpreter.set_tensor(index, value.astype(kind))
        interpreter.invoke()
        for name, index in signature["outputs"].items():
            found[name].append(interpreter.get_tensor(index).copy())
    quantized = {d["index"]: d["quantization"] for d in interpreter.get_output_details()}
    return {
        name: (np.concatenate(parts), quantized[signature["outputs"][name]])
        for name, parts in found.items()
    }


def mixed_ranks():
    """An image and a vector in; outputs of every rank from none to four a sample."""
    image, vector = keras.Input((6, 6, 2), name="z_image"), keras.Input((5,), name="a_vector")
    y = layers.Conv2D(3, 3, activation="relu", name="conv")(image)
    pooled = layers.GlobalAveragePooling2D(name="pool")(y)
    both = layers.Concatenate(name="join")([pooled, layers.Dense(3, name="d")(vector)])
    row = layers.Dense(4, name="row")(both)
    outputs = {
        "scalar": layers.Lambda(lambda t: tf.reduce_sum(t, -1), name="sum")(row),
        "row": row,
        "table": layers.Reshape((2, 2), name="table")(layers.Dense(4, name="d2")(both)),
        "map": layers.Conv2D(2, 1, name="map")(y),
        "box": layers.Reshape((2, 2, 2, 1), name="box")(layers.Dense(8, name="d3")(both)),
    }
    return keras.Model([image, vector], outputs)


@pytest.mark.parametrize("io", ["int8", "float32"])
def test_predictions_are_those_of_a_bare_interpreter(io):
    model = mixed_ranks()
    x = {"z_image": noise(40, 6, 6, 2), "a_vector": noise(40, 5, seed=1)}
    wanted = model.predict(x, verbose=0)
    result = run(model, data_of(x, wanted), io=io)
    artifact = result.artifact
    assert {str(port.dtype) for port in (*artifact.inputs, *artifact.outputs)} == {io}
    assert in_float(result) == set()
    alone = bare(artifact.content, x)
    for batch_size in (1, 7, 64):
        found = artifact.predict(x, batch_size)
        assert set(found) == set(wanted) == set(alone)
        for name, (stored, (scale, zero)) in alone.items():
            assert found[name].dtype == np.float32
            assert found[name].shape == wanted[name].shape
            real = (stored.astype("f") - zero) * np.float32(scale) if scale else stored
            assert np.array_equal(found[name], real)
            spread = np.ptp(wanted[name])
            assert np.abs(found[name] - wanted[name]).max() < 0.05 * spread


# ------------------------------------------------------------------------------- hard models


def series(count=120, steps=6, width=3, seed=0):
    """Sequences and the class of the largest sum; the last steps of some are 0."""
    x = noise(count, steps, width, seed=seed)
    x[: count // 2, steps - 2 :] = 0
    return x, x.sum(1).argmax(-1)


RECURRENT = {
    "LSTM": lambda: [layers.LSTM(5, name="rnn")],
    "GRU": lambda: [layers.GRU(5, name="rnn")],
    "masked GRU": lambda: [layers.Masking(0.0, name="mask"), layers.GRU(5, name="rnn")],
    "bidirectional": lambda: [layers.Bidirectional(layers.LSTM(3), name="rnn")],
    "convolution before": lambda: [
        layers.Conv1D(6, 3, padding="same", activation="relu", name="conv"),
        layers.GRU(5, name="rnn"),
    ],
}


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_recurrent_models(kind):
    x, y = series()
    model = keras.Sequential(
        [keras.Input((6, 3)), *RECURRENT[kind](), layers.Dense(3, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x, y, epochs=12, verbose=0)
    result = run(model, data_of(x, y), ranges="minmax")
    wanted, found = model.predict(x, verbose=0), result.artifact.predict(x)
    assert (wanted.argmax(1) == y).mean() > 0.6  # it learned, so that there is something to lose
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.93
    assert np.abs(found - wanted).max() < 0.15
    named = assert_all_integers_but_what_is_said(result)
    assert not {"FULLY_CONNECTED", "ADD", "MUL", "LOGISTIC", "TANH"} & named
    assert bool(named) == (kind == "masked GRU")  # whose mask is made of floats


@pytest.mark.parametrize("kind", ["LeakyReLU", "PReLU", "ELU"])
def test_activations_that_the_first_engine_may_not_know(kind):
    x, y = noise(80, 6, 6, 2), np.arange(80) % 3
    layer = getattr(layers, kind)(name="act")
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, name="conv"),
            layer,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="out"),
        ]
    )
    if kind == "PReLU":
        layer.alpha.assign(np.random.default_rng(0).uniform(0.1, 0.9, layer.alpha.shape))
    result = run(model, data_of(x, y))
    wanted, found = model.predict(x, verbose=0), result.artifact.predict(x)
    assert np.abs(found - wanted).max() < 0.04 * np.ptp(wanted)
    assert assert_all_integers_but_what_is_said(result) == ({"ELU"} if kind == "ELU" else set())
    # Kept in float, it and nothing else is.
    kept = run(model, data_of(x, y), keep_float=["act"], ranges="minmax")
    assert in_float(kept) == {{"LeakyReLU": "LEAKY_RELU"}.get(kind, kind.upper())}


def test_a_model_with_a_branch_left():
    """It is calibrated in a process of its own, where a crash would be an error and no more."""

    def branch(inputs):
        return tf.cond(tf.reduce_sum(inputs) > 0, lambda: inputs, lambda: -inputs)

    x = keras.Input((4,))
    hidden = layers.Dense(6, name="before")(x)
    end = layers.Dense(3, name="after")
    model = keras.Model(x, end(layers.Lambda(branch, name="branch")(hidden)))
    samples = noise(60, 4)
    data = data_of(samples, np.arange(60) % 3)
    result = run(model, data, 20)
    assert said(result, "in a process of its own")
    wanted = np.concatenate([model(samples[i : i + 1]) for i in range(60)])
    found = np.concatenate([result.artifact.predict(samples[i : i + 1]) for i in range(60)])
    assert np.median(np.abs(found - wanted)) < 0.05 * np.ptp(wanted)
    for asked in ({"keep_float": ["after"]}, {"keep_float": "auto"}):
        with pytest.raises(ok.PipelineError, match="`keep_float` cannot be had"):
            ok.Pipeline([ok.QuantizeINT8(20, **asked)]).check(model, data)


def test_token_ids_given_as_floats_are_not_rounded():
    """A float input into an embedding of 5,000 words: 8 bits cannot tell so many apart."""
    words = 5000
    model = keras.Sequential(
        [
            keras.Input((8,), name="tokens"),
            layers.Embedding(words, 4, name="words"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(2, activation="softmax", name="out"),
        ]
    )
    table = np.zeros((words, 4), "f")
    table[:, 0] = np.where(np.arange(words) % 2 == 0, 1.0, -1.0)  # neighbours differ
    model.get_layer("words").set_weights([table])
    model.get_layer("out").set_weights([np.eye(4, 2, dtype="f") * 20, np.array([0.3, 0], "f")])
    x = np.random.default_rng(0).integers(0, words, (300, 8)).astype("f")
    y = model.predict(x, verbose=0).argmax(1)
    assert 0.2 < y.mean() < 0.8
    for io in ("int8", "float32"):
        result = run(model, ok.Data(train=(x, y), test=(x, y)), io=io)
        assert result.report.baseline.accuracy == 1.0
        assert result.report.final.accuracy == 1.0
        assert result.artifact.inputs[0].scale == 0


def test_text_behind_lookups():
    words = np.array([[f"w{i % 7} w{i % 5}"] for i in range(60)], dtype=object)
    vectorize = layers.TextVectorization(max_tokens=20, output_sequence_length=4)
    vectorize.adapt(words[:, 0])
    text = keras.Input((1,), dtype="string", name="text")
    hidden = layers.GlobalAveragePooling1D(name="gap")(
        layers.Embedding(20, 4, name="e")(vectorize(text))
    )
    model = keras.Model(text, layers.Dense(2, activation="softmax", name="out")(hidden))
    data = data_of(words, np.arange(60) % 2)
    result = run(model, data)
    wanted = model.predict(tf.constant(words.tolist()), verbose=0)
    assert result.artifact.front is not None
    assert np.abs(result.artifact.predict(words) - wanted).max() < 0.03
    assert said(result, "split off, as TFLite has no lookups")
    kept = run(model, data, keep_float=["out"], ranges="minmax")
    assert in_float(kept) == {"FULLY_CONNECTED", "SOFTMAX"}


def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(4, 3, activation="relu", name="conv"),
                layers.BatchNormalization(name="bn"),
                layers.GlobalAveragePooling2D(name="pool"),
                layers.Dense(3, dtype="float32", name="out"),
            ]
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x = noise(60, 6, 6, 2)
    result = run(model, data_of(x, np.arange(60) % 3), keep_float=["out"])
    wanted = model.predict(x, verbose=0)
    assert np.abs(result.artifact.predict(x) - wanted).max() < 0.05 * np.ptp(wanted)
    assert said(result, "float32 twin")
    assert in_float(result) == {"FULLY_CONNECTED"}


def test_a_saved_model(tmp_path, dense):
    model = dense()
    tf.saved_model.save(model, str(tmp_path / "saved"))
    x = noise(80, 4)
    y = model.predict(x, verbose=0).argmax(1)
    data = ok.Data(train=(x, y), test=(x, y))
    result = run(str(tmp_path / "saved"), data)
    assert result.report.baseline.accuracy - result.report.final.accuracy < 0.06
    assert in_float(result) == set()
    # Without layers there are no names of theirs; a search goes by what TensorFlow left.
    with pytest.raises(ok.PipelineError, match="traced graph without layers"):
        run(str(tmp_path / "saved"), data, keep_float=["hidden"])
    searched = run(str(tmp_path / "saved"), data, keep_float="auto", max_drop=0.5)
    assert said(searched, "keep_float='auto': no layer in float")
