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
    """The kinds of operators that compute in float, but for those of shapes, types and zeros."""
    return set(float_operations(result.artifact.content)) - {"CAST", "FILL", "SHAPE", "ZEROS_LIKE"}


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
    assert assert_all_integers_but_what_is_said(result) == set()


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


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_images_beside_token_ids_that_stay_floats_are_said(dtype):
    """Inputs are taken as floats all together or not at all; whole numbers in floats decide."""
    image, ids = keras.Input((4, 4, 2), name="image"), keras.Input((3,), name="ids", dtype=dtype)
    seen = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(image))
    read = layers.Flatten()(layers.Embedding(9, 2, name="words")(ids))
    model = keras.Model([image, ids], layers.Dense(3)(layers.Concatenate()([seen, read])))
    x = {"image": noise(60, 4, 4, 2), "ids": np.arange(180).reshape(60, 3).astype(dtype) % 9}
    result = run(model, data_of(x, model.predict(x, verbose=0)))
    taken = {port.name: str(port.dtype) for port in result.artifact.inputs}
    notes = said(result, "taken as float32, as other inputs are whole numbers: ")
    if dtype == "float32":
        assert taken == {"image": "float32", "ids": "float32"}
        assert [note.partition(": ")[2] for note in notes] == ["image"]
    else:
        assert taken == {"image": "int8", "ids": "int32"}
        assert not notes


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


# ------------------------------------------------------------------------------- bad input


X = noise(120, 6, 6, 2)
Y = np.arange(120) % 3


def cnn(outputs=3, activation="softmax"):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(outputs, activation=activation, name="out"),
        ],
        name="cnn",
    )


def splits(**others):
    return ok.Data(**({"train": (X, Y), "validation": (X, Y), "test": (X, Y)} | others))


def spoiled(value):
    x = X.copy()
    x[7, 0, 0, 0] = value
    return x


def batches(x, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y[: len(x)])).batch(16)


def generated(x):
    def generate():
        for start in range(0, 120, 20):
            yield x[start : start + 20], Y[start : start + 20]

    return generate


REFUSED_DATA = {
    "constant": (lambda: splits(calibration=np.ones_like(X)), "calibration samples looked at are"),
    "zeros": (lambda: splits(calibration=np.zeros_like(X)), "calibration samples looked at are"),
    "a constant stream": (lambda: splits(calibration=batches(X * 0 + 1)), "looked at are the same"),
    "empty": (lambda: splits(calibration=X[:0]), "`calibration` is empty"),
    "an empty stream": (lambda: splits(calibration=batches(X[:0])), "`calibration` is empty"),
    "NaN": (lambda: splits(calibration=spoiled(np.nan)), "hold NaN or infinite"),
    "infinite": (lambda: splits(calibration=spoiled(np.inf)), "hold NaN or infinite"),
    "a stream with NaN": (lambda: splits(calibration=batches(spoiled(np.nan))), "hold NaN or inf"),
    "NaN in train": (lambda: splits(train=(spoiled(np.nan), Y)), "hold NaN or infinite"),
    "a generator with NaN": (
        lambda: splits(train=generated(spoiled(np.nan)), steps=6),
        "hold NaN or infinite",
    ),
    "another shape": (lambda: splits(calibration=noise(30, 5, 5, 2)), "expected shape"),
}


@pytest.mark.parametrize("case", list(REFUSED_DATA))
def test_bad_calibration_data_is_refused_before_any_training(case):
    make, message = REFUSED_DATA[case]
    with pytest.raises(ok.DataError, match=message):
        ok.Pipeline([ok.FineTune(1, 1e-3), ok.QuantizeINT8()]).check(cnn(), make())


def test_nothing_to_calibrate_on_is_refused():
    with pytest.raises(ok.OptkitError, match="calibration"):
        run(cnn(), ok.Data(test=(X, Y)))
    with pytest.raises(ok.OptkitError, match="no split with targets"):
        run(cnn(), ok.Data(calibration=X))


def test_calibration_of_another_scale_is_said():
    result = run(cnn(), splits(calibration=X * 255))
    assert said(result, "outside the training data's -")
    (wide,) = said(result, "times as wide as validation needs")
    assert 200 < float(wide.split()[3]) < 320
    assert not said(result, "does not cover")
    narrow = run(cnn(), splits(calibration=X / 255))
    (clipped,) = said(narrow, "calibration does not cover validation")
    assert 50 < float(clipped.partition("validation: ")[2].split()[0]) <= 100
    assert not said(narrow, "times as wide")
    good = run(cnn(), splits())
    for words in ("scaled alike", "does not cover", "few calibration", "classes of calibration"):
        assert not said(good, words)


def test_what_readers_do_not_tell_apart_does_not_count_as_clipped():
    """The inputs of a sigmoid go far beyond 8, and nothing is lost by that."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="conv", kernel_initializer="zeros"),
            layers.Activation("sigmoid", name="gate"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="out"),
        ]
    )
    model.get_layer("conv").kernel.assign(20 * noise(3, 3, 2, 4))
    assert not said(run(model, splits(), ranges="minmax"), "does not cover")
    assert not said(run(model, splits(), ranges="mse"), "does not cover")


def test_few_samples_are_said():
    result = run(cnn(), splits(calibration=X[:5]))
    assert said(result, "few calibration samples (5 < 50)")
    assert said(run(cnn(), splits(), 10), "few calibration samples (10 < 50)")
    (alone,) = said(run(cnn(), splits(), 1), "calibrated on")
    assert alone == "calibrated on 1 sample, drawn from train"


def test_classes_out_of_proportion_are_said():
    ones = (X[:60], np.zeros(60, int))
    for data in (splits(calibration=ones), splits(calibration=batches(*ones))):
        (note,) = said(run(cnn(), data), "classes of calibration are not those of validation")
        assert "67 % of the samples would have to change class" in note
        assert "class 0 (100 % against 33 %)" in note
    even = splits(calibration=(X[:60], Y[:60]))
    assert not said(run(cnn(), even), "classes of calibration")
    # Without targets nothing is known of its classes.
    assert not said(run(cnn(), splits(calibration=X)), "classes of calibration")


def test_a_model_that_overflows_on_the_samples():
    with pytest.raises(ok.PassError, match=r"'cnn/conv/Relu' reaches .* the model overflows"):
        run(cnn(), splits(calibration=X * 3e38))
    broken = cnn()
    broken.get_layer("conv").kernel.assign(np.full((3, 3, 2, 6), 1e38))
    with pytest.raises(ok.ModelError, match="NaN or infinite outputs"):
        run(broken, splits(test=(X + 9, Y)))


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [("conv2", "conv, Conv2D"), ("Conv2DTranspos", "Conv2D"), ("outt", "out"), ("zzzz", "None is")],
)
def test_unknown_layers_are_refused_with_the_nearest_names(wanted, nearest):
    with pytest.raises(ok.PipelineError, match=f"{wanted}.*has no layer.*{nearest}"):
        ok.Pipeline([ok.FineTune(1), ok.QuantizeINT8(keep_float=[wanted])]).check(cnn(), splits())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1, "keep_float": "auto"}, "max_drop"),
        ({"max_drop": float("nan"), "keep_float": "auto"}, "max_drop"),
        ({"max_drop": "much", "keep_float": "auto"}, "max_drop"),
        ({"max_drop": 0.1}, 'Pass `keep_float="auto"`'),
        ({"max_drop": 0.1, "keep_float": ["conv"]}, 'Pass `keep_float="auto"`'),
        ({"repairs": "all"}, "repairs"),
        ({"repairs": ["fold", "mend"]}, "'mend'"),
        ({"repairs": 3}, "repairs"),
        ({"ranges": "kl"}, "ranges"),
        ({"io": "uint8"}, "io"),
        ({"keep_float": "conv"}, "a list of names or classes"),
        ({"keep_float": 3}, "a list of names or classes"),
        ({"keep_float": {"conv"}}, "a list of names or classes"),
        ({"keep_float": ["conv", 3]}, "names or classes of layers"),
        ({"keep_float": [""]}, "names or classes of layers"),
        ({"keep_float": [layers.Dense(2)]}, "names or classes of layers"),
        ({"calibration_samples": 0}, "at least 1"),
        ({"calibration_samples": 2.5}, "whole number"),
        ({"calibration_samples": True}, "whole number"),
        ({"search_samples": 0}, "at least 1"),
        ({"calibration_study": 1}, "True or False"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.QuantizeINT8(**settings)


def test_what_is_in_integers_already_is_refused(tmp_path):
    with pytest.raises(ok.PipelineError, match="takes a keras artifact, and step 1, QuantizeINT8"):
        ok.Pipeline([ok.QuantizeINT8(), ok.QuantizeINT8()])
    made = run(cnn(), splits()).artifact
    path = made.save(tmp_path / "made.tflite")
    for given, message in ((made, "Expected a Keras model"), (path, "is a TFLite file")):
        with pytest.raises(ok.ModelError, match=message):
            run(given, splits())


# ------------------------------------------------------------------------------- odd models


def test_an_image_and_a_vector():
    image, vector = keras.Input((6, 6, 2), name="image"), keras.Input((4,), name="vector")
    flat = layers.Flatten(name="flat")(layers.Conv2D(3, 3, activation="relu", name="conv")(image))
    joined = layers.Concatenate(name="join")([flat, layers.Dense(4, name="dense")(vector)])
    model = keras.Model([image, vector], layers.Dense(3, name="out")(joined))
    x = {"image": X, "vector": 40 * noise(120, 4, seed=1)}  # each input has a scale of its own
    result = run(model, data_of(x, Y))
    scales = {port.name: port.scale for port in result.artifact.inputs}
    assert scales["vector"] > 20 * scales["image"]
    wanted = model.predict(x, verbose=0)
    assert np.abs(result.artifact.predict(x) - wanted).max() < 0.03 * np.ptp(wanted)
    with pytest.raises(ok.DataError, match="hold NaN"):
        run(model, data_of(x, Y, calibration=x | {"vector": np.full((120, 4), np.nan, "f")}))


@pytest.mark.parametrize("kind", ["a dead ReLU", "a dead ReLU6", "no weights", "a constant"])
def test_activations_that_never_leave_zero(kind):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, name="conv"),
            layers.ReLU(6.0 if "6" in kind else None, name="relu"),
            layers.Conv2D(3, 2, activation="relu", name="second"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(3, name="out"),
        ]
    )
    conv, out = model.get_layer("conv"), model.get_layer("out")
    out.bias.assign([0.5, -0.25, 1.0])
    if kind.startswith("a dead"):
        conv.bias.assign(np.full(6, -100.0))
    elif kind == "no weights":
        conv.kernel.assign(np.zeros_like(conv.kernel))
    else:
        out.kernel.assign(np.zeros_like(out.kernel))
    for io in ("int8", "float32"):
        result = run(model, splits(), io=io, keep_float="auto")
        found = result.artifact.predict(X)
        assert found == pytest.approx(model.predict(X, verbose=0), abs=1.25 / 255)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 2, 3), (2, 2, 2, 1)])
def test_outputs_of_any_rank(shape):
    width = int(np.prod(shape, initial=1))
    x = keras.Input((5,))
    y = layers.Dense(width, name="dense")(x)
    if shape == ():
        y = layers.Lambda(lambda t: t[:, 0], name="first")(y)
    elif len(shape) > 1:
        y = layers.Reshape(shape, name="shaped")(y)
    model = keras.Model(x, y)
    samples = noise(60, 5)
    targets = model.predict(samples, verbose=0)
    assert targets.shape == (60, *shape)
    result = run(model, data_of(samples, targets))
    found = result.artifact.predict(samples)
    assert found.shape == targets.shape
    assert np.abs(found - targets).max() < 0.03 * np.ptp(targets)
    assert result.artifact.predict(samples[:0]).shape == (0, *shape)


# ------------------------------------------------------------------------- odd ways to be judged


def test_one_sample_of_validation_is_no_ground_for_choosing():
    one = splits(validation=(X[:1], Y[:1]))
    result = run(cnn(), one, keep_float="auto")
    assert said(result, "keep_float='auto': NOT SEARCHED")
    assert not said(result, "allowed")
    assert not said(result, "times as wide")  # one sample never reaches far
    assert said(result, "of 1 samples")
    assert not said(run(cnn(), one), "SEARCHED")


def test_only_calibration_and_test():
    result = run(cnn(), ok.Data(calibration=X, test=(X, Y)), calibration_study=True)
    assert said(result, "calibrated on 120 samples")
    assert result.report.final.accuracy is not None
    with pytest.raises(ok.DataError, match="no `validation` split"):
        run(cnn(), ok.Data(calibration=X, test=(X, Y)), keep_float="auto")


TASKS = {
    "regression": (lambda: cnn(2, None), X[:, 0, 0], "mean_absolute_error"),
    "multi-label": (lambda: cnn(4, "sigmoid"), noise(120, 4) > 0, "accuracy"),
    "binary": (lambda: cnn(1, "sigmoid"), noise(120) > 0, "accuracy"),
    "one-hot": (lambda: cnn(3), np.eye(3, dtype="f")[Y], "accuracy"),
}


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("stream", [False, True])
def test_searching_by_any_metric(task, stream):
    make, y, metric = TASKS[task]
    y = y.astype("f")
    validation = batches(X, y) if stream else (X, y)
    data = ok.Data(train=(X, y), validation=validation, test=(X, y))
    result = run(make(), data, keep_float="auto", max_drop=10.0)
    assert result.report.metric == metric
    assert said(result, "no layer in float for a drop of")
    assert said(result, f"{metric} changed by")
    (table,) = [s for s in result.report.rows[0].studies if s.title.startswith("Layers in float")]
    assert table.columns[3] == metric
    assert {row[0] for row in table.rows} == {"conv", "pool", "out"}


def test_several_outputs_with_a_metric_on_one():
    x = keras.Input((6, 6, 2))
    hidden = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="conv")(x))
    heads = {
        "kind": layers.Dense(3, activation="softmax", name="first")(hidden),
        "size": layers.Dense(1, name="second")(hidden),
    }
    model = keras.Model(x, heads)
    data = data_of(X, {"kind": Y, "size": X[:, 0, 0, 0]})
    fast = {"latency_seconds": 0, "memory": False}
    for metric, columns in (({"size": "mae"}, "size"), (None, "kind")):
        measure = ok.Measure(metric=metric, **fast) if metric else ok.Measure(**fast)
        result = ok.Pipeline([ok.QuantizeINT8(keep_float="auto", max_drop=10.0)]).run(
            model, data, measure=measure
        )
        assert said(result, "kind: agrees with the float model on")
        assert said(result, "size: differs from the float model by")
        found = result.artifact.predict(X)
        wanted = model.predict(X, verbose=0)
        for name in heads:
            assert np.abs(found[name] - wanted[name]).max() < 0.06 * np.ptp(wanted[name])
        (table,) = [s for s in result.report.rows[0].studies if s.title.startswith("Layers")]
        assert len(table.rows) >= 4
        assert columns in found


def test_a_callable_metric():
    measure = ok.Measure(
        latency_seconds=0,
        memory=False,
        metric=lambda y, outputs: float((y == outputs.argmax(-1)).mean()),
        higher_is_better=True,
    )
    result = ok.Pipeline([ok.QuantizeINT8(keep_float="auto", max_drop=1.0)]).run(
        cnn(), splits(), measure=measure
    )
    assert said(result, "no layer in float for a drop of")


# ------------------------------------------------------------------------- configurations, stages


def test_stages_are_taken_from_the_workdir_with_their_studies(tmp_path):
    def once(**settings):
        passes = [ok.QuantizeINT8(keep_float="auto", calibration_study=True, **settings)]
        return ok.Pipeline(passes).run(cnn(), splits(), workdir=tmp_path)

    keras.utils.set_random_seed(3)
    first = once()
    keras.utils.set_random_seed(3)
    second = once()
    assert first.artifact.content == second.artifact.content
    one, other = first.report.rows[0], second.report.rows[0]
    assert [s.to_dict() for s in one.studies] == [s.to_dict() for s in other.studies]
    assert {"Calibration samples", "Layers in float, one at a time"} <= {
        s.title for s in other.studies
    }
    assert one.notes == other.notes


def test_the_study_of_calibration_samples_ends_with_all_of_them():
    result = run(cnn(), splits(), 50, calibration_study=True)
    (study,) = [s for s in result.report.rows[0].studies if s.title == "Calibration samples"]
    assert [row[0] for row in study.rows] == [8, 16, 32, 50]
    table = study.to_frame()
    assert table["output error"].iloc[-1] <= table["output error"].iloc[0]


@pytest.mark.parametrize("kept", [["conv", "Dense"], ("conv",), [], "auto", None])
def test_configurations_go_to_json_and_back(tmp_path, kept):
    item = ok.QuantizeINT8(64, io="float32", ranges="mse", repairs=["fold"], keep_float=kept)
    assert item.get_config() == {
        "calibration_samples": 64,
        "io": "float32",
        "input_shape": None,
        "ranges": "mse",
        "repairs": ["fold"],
        "keep_float": kept,
        "max_drop": None,
        "search_samples": 512,
        "calibration_study": False,
    }
    ok.Pipeline([item]).to_json(tmp_path / "pipeline.json")
    (again,) = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert again.get_config() == item.get_config()
    assert repr(again) == repr(item)


def test_classes_of_layers_are_no_json_but_their_names_are(tmp_path):
    item = ok.QuantizeINT8(keep_float=[layers.Dense])
    assert item.get_config()["keep_float"] == [layers.Dense]
    with pytest.raises(ok.PipelineError, match=r"`QuantizeINT8\.keep_float` cannot be stored"):
        ok.Pipeline([item]).to_json(tmp_path / "pipeline.json")
    model, data = cnn(), splits()
    by_class, by_name = (
        run(model, data, ranges="minmax", repairs="none", keep_float=[kept])
        for kept in (layers.Dense, "Dense")
    )
    assert by_class.artifact.content == by_name.artifact.content
    assert in_float(by_class) == {"FULLY_CONNECTED", "SOFTMAX"}


# ------------------------------------------------------------------------ found by looking for it


@pytest.mark.parametrize("io", ["int8", "float32"])
@pytest.mark.parametrize("kept", [None, ["hidden"]])
def test_inputs_that_are_outputs_and_outputs_that_are_there_twice(io, kept):
    """ai-edge-quantizer loses track of what these are called."""
    x = keras.Input((4,), name="x")
    hidden = layers.Dense(3, name="hidden")(x)
    model = keras.Model(x, {"d": x, "a": hidden, "c": hidden, "b": layers.Dense(2, name="e")(x)})
    samples = noise(60, 4)
    wanted = model.predict(samples, verbose=0)
    result = run(model, data_of(samples, wanted), io=io, keep_float=kept)
    found = result.artifact.predict(samples)
    assert sorted(found) == ["a", "b", "c", "d"]
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        assert np.abs(found[name] - values).max() < 0.02 * np.ptp(values)


def test_integers_alone_are_not_given_up_for_a_little():
    """An error of numbers always gets a little less when the last operator is in float."""
    model = cnn(1, None)
    y = model.predict(X, verbose=0)
    result = run(model, data_of(X, y + 0.01 * noise(120, 1)))
    assert in_float(result) == set()
    assert not said(result, "in float")


ZOO = {
    "uint8 images": (
        lambda: [keras.Input((6, 6, 2), dtype="uint8"), layers.Rescaling(1 / 255)],
        ((X + 1) * 127).astype("uint8"),
    ),
    "half precision": (lambda: [keras.Input((6, 6, 2), dtype="float16")], X.astype("float16")),
    "transposed": (lambda: [keras.Input((6, 6, 2)), layers.Conv2DTranspose(4, 3, 2)], X),
    "grouped": (
        lambda: [keras.Input((6, 6, 4)), layers.Conv2D(8, 3, groups=2, activation="relu")],
        noise(120, 6, 6, 4),
    ),
    "resized": (
        lambda: [keras.Input((6, 6, 2)), layers.UpSampling2D(interpolation="bilinear")],
        X,
    ),
    "dilated sequences": (
        lambda: [
            keras.Input((8, 2)),
            layers.SeparableConv1D(4, 3, activation="relu"),
            layers.Conv1D(3, 2, dilation_rate=2, padding="causal"),
        ],
        noise(120, 8, 2),
    ),
    "normalized layers": (
        lambda: [keras.Input((6, 4)), layers.LayerNormalization(), layers.Dense(4, "gelu")],
        noise(120, 6, 4),
    ),
    "unit vectors": (
        lambda: [keras.Input((6,)), layers.Dense(5), layers.UnitNormalization()],
        noise(120, 6),
    ),
}


@pytest.mark.parametrize("kind", list(ZOO))
def test_layers_of_many_kinds(kind):
    make, x = ZOO[kind]
    model = keras.Sequential([*make(), layers.Flatten(), layers.Dense(3, name="out")])
    wanted = model.predict(x, verbose=0)
    result = run(model, data_of(x, wanted))
    assert np.abs(result.artifact.predict(x) - wanted).max() < 0.04 * np.ptp(wanted)


# -------------------------------------------------------------------- behind training for it


class Learns(ok.TrainPass):
    """Hands on ranges without training."""

    def __init__(self, high: float = 1.0, bits: int = 8):
        self.high, self.bits = high, bits

    def train(self, model, recipe, context):
        from optkit.learned import LearnedRanges

        context.learn(LearnedRanges({"hidden": (0.0, self.high)}, {"hidden": self.bits}))
        return model


@pytest.mark.parametrize(("high", "bits", "left_out"), [(0.01, 8, True), (0.01, 4, False)])
def test_ranges_that_were_learned_badly_are_left_out(high, bits, left_out):
    x = noise(400, 6)
    y = (x @ noise(6, 3, seed=1)).argmax(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, verbose=0)
    result = ok.Pipeline([Learns(high, bits), ok.QuantizeINT8()]).run(model, data_of(x, y))
    assert bool(said(result, "ranges learned in training were left out")) == left_out
    change = result.report.rows[-1].accuracy_change
    # Weights of 4 bits were trained for the ranges that come with them, whatever these are.
    assert change > -0.03 if left_out else change < -0.1
