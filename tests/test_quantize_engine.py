"""The engine of quantizing: which operator is which layer, what stays float, and the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

import optkit as ok
from optkit.flatbuffer import operator_name, unpacked
from optkit.models import layers_by_path, nested_models
from optkit.quantize import calibrate, float_file, quantize
from optkit.quantize.select import groups, operations_of, resolve

pytestmark = pytest.mark.usefixtures("untimed")
layers = keras.layers
FLOAT, INT8, INT32 = 0, 9, 2


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def randomize(model, seed=0):
    """Weights as training leaves them, batch norms included."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            layer.moving_mean.assign(rng.normal(size=size) / 3)
            layer.moving_variance.assign(rng.uniform(0.5, 2, size))
            layer.gamma.assign(rng.uniform(0.5, 2, size))
            layer.beta.assign(rng.normal(size=size) / 3)
    return model


def samples_of(model, count=8, seed=1):
    """Calibration samples of normal noise."""

    def samples():
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield [rng.normal(size=(1, *t.shape[1:])).astype("f") for t in model.inputs]

    return samples


def kept_by(model, *wanted, file=None):
    """Indices of the operators that these names stand for."""
    kinds = {path: type(layer).__name__ for path, layer in layers_by_path(model).items()}
    paths = resolve(wanted, kinds, nested_models(model), model.name)
    return operations_of(file or float_file(model), paths)


def of_layers(file, path):
    return [item.index for item in file.operations if path in item.layers]


def in_float(content):
    """For each operator, but those between floats and integers: its kind, and if it takes floats."""
    model = unpacked(content)
    graph = model.subgraphs[0]
    found = []
    for operator in graph.operators:
        kind = operator_name(model.operatorCodes[operator.opcodeIndex])
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            continue
        kinds = {
            graph.tensors[int(t)].type for t in (*operator.inputs, *operator.outputs) if t >= 0
        }
        assert kinds <= {FLOAT, INT8, INT32}
        assert not {FLOAT, INT8} <= kinds  # never half and half
        found.append((kind, FLOAT in kinds))
    return found


def assert_kept(model, *wanted, expected, **scheme):
    """Quantizes but for what is named; what is named is float in the file, and nothing else is."""
    file = float_file(model)
    kept = kept_by(model, *wanted, file=file)
    assert sorted(kept) == sorted(expected)
    content = quantize(file, calibrate(file, samples_of(model)), keep_float=kept, **scheme)
    found = in_float(content)
    assert [kind for kind, _ in found] == [item.kind for item in file.operations]
    assert [index for index, (_, floats) in enumerate(found) if floats] == sorted(kept)
    assert ok.TFLiteArtifact(content).predict(next(samples_of(model)())[0]) is not None
    return file


# ----------------------------------------------------------------------------- names of layers


def chain():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, use_bias=False, name="conv2d")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(y))
    y = layers.Conv2D(4, 3, activation="relu", name="conv2d_1")(y)
    y = layers.BatchNormalization(name="bn_1")(y)
    y = layers.Dropout(0.1, name="drop")(y)
    y = layers.Conv2D(4, 3, name="conv2d_10")(y)
    y = layers.Flatten(name="flat")(y)
    return randomize(keras.Model(x, layers.Dense(3, activation="softmax", name="dense")(y)))


def test_names_are_whole_names():
    """`conv2d` is neither `conv2d_1` nor `conv2d_10`."""
    model = chain()
    file = float_file(model)
    assert of_layers(file, "conv2d") == [0]
    assert of_layers(file, "conv2d_1") == [1]
    assert [file.operations[i].kind for i in of_layers(file, "conv2d_10")] == ["CONV_2D"]
    ends = [file.operations[i].kind for i in of_layers(file, "dense")]
    assert ends == ["FULLY_CONNECTED", "SOFTMAX"]
    assert_kept(model, "conv2d", expected=[0])
    assert_kept(model, "conv2d_1", expected=[1])


def test_what_is_fused_is_listed_with_all_of_its_layers():
    """Of a batch norm that the converter works into a convolution, no name is left in the file."""
    file = float_file(chain())
    assert file.operations[0].layers == ("relu", "bn", "conv2d")
    assert_kept(chain(), "bn", expected=[0])
    assert_kept(chain(), "bn_1", expected=of_layers(file, "bn_1"))
    assert [file.operations[i].kind for i in of_layers(file, "bn_1")] in (["MUL", "ADD"], ["MUL"])
    assert of_layers(file, "drop") == []
    assert list(groups(file))[:2] == ["conv2d", "conv2d_1"]


def test_batch_norms_go_into_what_is_before_or_behind():
    def model(*parts):
        return randomize(keras.Sequential([keras.Input((6, 6, 2)), *parts]))

    pooled = model(
        layers.Conv2D(3, 1, name="one"),
        layers.BatchNormalization(name="n1"),
        layers.Dropout(0.2, name="d"),
        layers.Conv2D(3, 1, name="two"),
        layers.Dropout(0.2, name="d2"),
        layers.BatchNormalization(name="n2"),
    )
    file = float_file(pooled)
    for name, host in (("n1", "one"), ("n2", "two")):
        (index,) = of_layers(file, name)
        assert host in file.operations[index].layers or name == file.operations[index].layers[0]
    # Between dense layers the converter works it into the weights behind it, under its own name.
    flat = randomize(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(5, name="before"),
                layers.BatchNormalization(name="norm"),
                layers.Dense(4, name="after"),
            ]
        )
    )
    file = float_file(flat)
    assert of_layers(file, "norm") != []
    assert set(groups(file)) == {"before", "after"}  # never listed under the batch norm


def test_shared_layers_are_kept_wherever_they_are_called():
    shared = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(3, 1, name="c"),
            layers.BatchNormalization(name="b"),
        ],
        name="twice",
    )
    x = keras.Input((6, 6, 3))
    y = layers.ReLU(name="between")(shared(x))
    y = layers.GlobalAveragePooling2D(name="pool")(shared(y))
    model = randomize(keras.Model(x, layers.Dense(2, name="c_1")(y)))
    file = float_file(model)
    convolutions = [item.index for item in file.operations if item.kind == "CONV_2D"]
    assert len(convolutions) == 2
    assert of_layers(file, "twice/c") == of_layers(file, "twice/b") == convolutions
    assert_kept(model, "c", expected=convolutions)
    assert_kept(model, "twice/b", expected=convolutions)
    assert_kept(model, "c_1", expected=of_layers(file, "c_1"))


def test_nested_models_by_path_and_by_name():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, activation="relu", name="dense")], name="inner"
    )
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2, name="dense")(inner(x)))
    assert_kept(model, "inner/dense", expected=[0])
    assert_kept(model, "inner", expected=[0])
    assert_kept(model, "dense", expected=[0, 1])  # both are called so
    assert_kept(model, "Dense", expected=[0, 1])
    assert_kept(model, layers.Dense, expected=[0, 1])
    assert list(groups(float_file(model))) == ["inner/dense", "dense"]


def test_layers_that_are_called_like_marks_and_like_ends():
    x = keras.Input((6,))
    y = layers.Dense(5, name="L000001L")(x)
    y = layers.Dense(4, name="L000000L")(y)
    model = keras.Model(x, layers.Dense(3, name="Identity")(y))
    for place, name in enumerate(("L000001L", "L000000L", "Identity")):
        file = assert_kept(model, name, expected=[place])
    content = file.finish(quantize(file, calibrate(file, samples_of(model))))
    names = [t.name.decode() for t in unpacked(content).subgraphs[0].tensors]
    assert any(n.startswith("model/L000001L") or "/L000001L/" in n for n in names)
    assert any("/L000000L/" in name for name in names)
    assert [layer.name for layer in model.layers][1:] == ["L000001L", "L000000L", "Identity"]


def test_tensors_of_the_result_carry_names_of_layers():
    import re

    model = chain()
    for content in (
        ok.Pipeline([ok.QuantizeINT8(8, repairs="none", ranges="minmax")])
        .run(model, _noise((8, 8, 3)))
        .artifact.content,
    ):
        names = [t.name.decode() for t in unpacked(content).subgraphs[0].tensors]
        assert not any(re.search(r"L\d{6}L", name) for name in names)
        for layer in ("conv2d/", "conv2d_1/", "relu/", "dense/"):
            assert any(f"/{layer}" in name for name in names)
        assert len(set(names)) == len(names)


def test_wrappers_and_attention_are_one_layer():
    x = keras.Input((3, 4))
    y = layers.Bidirectional(layers.LSTM(2, return_sequences=True, name="lstm"), name="both")(x)
    y = layers.TimeDistributed(layers.Dense(3, name="step"), name="steps")(y)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = layers.GlobalAveragePooling1D(name="pool")(y)
    file = float_file(keras.Model(x, layers.Dense(2, name="end")(y)))
    assert {item.layers for item in file.operations} == {
        ("both",),
        ("steps",),
        ("attention",),
        ("pool",),
        ("end",),
    }
    assert list(groups(file)) == ["both", "steps", "attention", "pool", "end"]


def test_several_outputs_are_told_apart():
    x = keras.Input((6,))
    hidden = layers.Dense(5, name="hidden", activation="relu")(x)
    heads = {
        "b": layers.Dense(2, name="one")(hidden),
        "a": layers.Dense(3, name="two", activation="relu")(hidden),
        "c": layers.Activation("sigmoid", name="three")(layers.Dense(1, name="four")(hidden)),
    }
    model = keras.Model(x, heads)
    file = float_file(model)
    assert [info.name for info in file.signature.outputs] == ["a", "b", "c"]
    for name in ("one", "two", "four"):
        (index,) = of_layers(file, name)
        assert file.operations[index].kind == "FULLY_CONNECTED"
    (index,) = of_layers(file, "three")
    assert file.operations[index].kind == "LOGISTIC"
    assert_kept(model, "two", expected=of_layers(file, "two"))


def test_an_output_that_is_also_used():
    x = keras.Input((6,))
    hidden = layers.Dense(5, name="hidden")(x)
    model = keras.Model(x, [hidden, layers.Dense(2, name="end")(hidden)])
    assert_kept(model, "hidden", expected=[0])
    assert_kept(model, "end", expected=[1])


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda: keras.activations.relu, "relu"),
        (lambda: keras.activations.swish, "swish"),
        (lambda: keras.activations.sigmoid, "sigmoid"),
    ],
)
def test_activations_by_name(make, kept):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 2, name="conv"),
            layers.Activation(make(), name="act"),
            layers.GlobalAveragePooling2D(name="pool"),
        ],
    )
    file = float_file(model)
    found = [file.operations[i].kind for i in of_layers(file, "act")]
    assert (
        found
        == {
            "relu": ["CONV_2D"],
            "swish": ["LOGISTIC", "MUL"],
            "sigmoid": ["LOGISTIC"],
        }[kept]
    )
    assert_kept(model, "act", expected=of_layers(file, "act"))


# ------------------------------------------------------------- layers that went into others


def _noise(*shapes, classes=3, count=40, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shapes[0])).astype("f")
    y = np.arange(count) % classes
    return ok.Data(train=(x, y), validation=(x[:20], y[:20]), test=(x[20:], y[20:]))


def kinds_in_float(result):
    return [kind for kind, floats in in_float(result.artifact.content) if floats]


def run(model, data=None, **settings):
    data = data or _noise(*[tuple(t.shape[1:]) for t in model.inputs])
    settings = {"ranges": "minmax", "repairs": "exact"} | settings
    return ok.Pipeline([ok.QuantizeINT8(8, **settings)]).run(model, data)


@pytest.mark.parametrize("repairs", ["none", "exact"])
def test_a_batch_norm_that_went_into_a_convolution_keeps_that_in_float(repairs):
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(y))
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    model = randomize(keras.Model(x, layers.Dense(3, name="out")(y)))
    result = run(model, keep_float=["bn"], repairs=repairs)
    assert kinds_in_float(result) == ["CONV_2D"]
    assert not any("nothing is left" in note for note in result.report.rows[0].notes)


def behind_relu(sign=1.0, nested=False):
    """A batch norm behind a ReLU: folding takes it forward, positive factors back as well."""
    first = [
        layers.Conv2D(4, 3, activation="relu", name="first"),
        layers.BatchNormalization(name="norm"),
    ]
    if nested:
        first = [keras.Sequential([keras.Input((8, 8, 2)), *first], name="inner")]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            *first,
            layers.MaxPooling2D(name="pool") if sign > 0 else layers.AveragePooling2D(name="pool"),
            layers.Conv2D(5, 2, activation="relu", name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="out"),
        ]
    )
    randomize(model)
    norm = layers_by_path(model)["inner/norm" if nested else "norm"]
    norm.gamma.assign(sign * norm.gamma)
    return model


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("nested", [False, True])
def test_a_batch_norm_that_a_repair_moved_keeps_what_it_went_into(sign, nested):
    model = behind_relu(sign, nested)
    name = "inner/norm" if nested else "norm"
    result = run(model, keep_float=[name])
    notes = result.report.rows[0].notes
    assert any(note.startswith("batch norm: norm: into ") for note in notes)
    assert not any("nothing is left" in note for note in notes)
    assert kinds_in_float(result) == ["CONV_2D", "CONV_2D"]
    # Unrepaired, it is an operator of its own, and that alone stays.
    assert set(kinds_in_float(run(model, keep_float=[name], repairs="none"))) <= {"MUL", "ADD"}


def test_layers_within_a_model_that_a_repair_opened_are_still_found():
    model = behind_relu(nested=True)
    assert kinds_in_float(run(model, keep_float=["inner/first"])) == ["CONV_2D"]
    assert kinds_in_float(run(model, keep_float=["inner"])) == ["CONV_2D", "CONV_2D"]
    assert kinds_in_float(run(model, keep_float=["out"])) == ["FULLY_CONNECTED"]


def test_what_does_nothing_is_said_to_be_gone():
    result = run(chain(), keep_float=["drop"])
    assert kinds_in_float(result) == []
    assert any("nothing is left in the file of drop" in n for n in result.report.rows[0].notes)


def test_keras_3_layers_by_their_names():
    import keras as keras3

    keras3.utils.set_random_seed(0)
    x = keras3.Input((6, 6, 2))
    y = keras3.layers.Conv2D(3, 3, name="conv2d")(x)
    y = keras3.layers.BatchNormalization(name="bn")(y)
    y = keras3.layers.Conv2D(3, 3, activation="relu", name="conv2d_1")(y)
    y = keras3.layers.GlobalAveragePooling2D(name="pool")(y)
    model = keras3.Model(x, keras3.layers.Dense(3, name="end")(y))
    data = _noise((6, 6, 2))
    for wanted in (["conv2d_1"], ["end", "bn"], ["Dense"], [keras3.layers.Dense]):
        result = run(model, data, keep_float=wanted)
        expected = {
            "conv2d_1": ["CONV_2D"],
            "end": ["CONV_2D", "FULLY_CONNECTED"],
        }.get(str(wanted[0]), ["FULLY_CONNECTED"])
        assert kinds_in_float(result) == expected
