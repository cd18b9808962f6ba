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


def test_weights_are_constants_of_two_dimensions_and_more():
    """Biases are none: equal ones are stored once, and kernels are told apart by theirs."""
    biased = [layers.Dense(4, "relu", bias_initializer="ones") for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *biased])
    for operation in float_file(model).operations:
        assert operation.kind == "FULLY_CONNECTED"
        assert len(operation.inputs) == 3
        assert operation.weights == operation.inputs[1:2]


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
    assert any(note.startswith("batch norm folded: norm: into ") for note in notes)
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


# ------------------------------------------------------------------------------ the arithmetic


def constants(content):
    """By name: type, scales, zero points and values of every tensor of a file."""
    model = unpacked(content)
    found = {}
    numpy_of = {FLOAT: np.float32, INT8: np.int8, INT32: np.int32}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        values = None
        if data is not None and len(data):
            values = np.asarray(data, np.uint8).view(numpy_of[tensor.type]).reshape(tensor.shape)
        entry = tensor.quantization
        scale = None if entry is None or entry.scale is None else np.asarray(entry.scale)
        zero = None if entry is None or entry.zeroPoint is None else np.asarray(entry.zeroPoint)
        found[tensor.name.decode()] = (tensor.type, scale, zero, values)
    return found


def of_operator(content, place):
    """What `constants` says of the inputs and the output of an operator."""
    model = unpacked(content)
    graph = model.subgraphs[0]
    known = constants(content)
    operators = [
        operator
        for operator in graph.operators
        if operator_name(model.operatorCodes[operator.opcodeIndex])
        not in ("QUANTIZE", "DEQUANTIZE")
    ]
    operator = operators[place]
    names = [graph.tensors[int(t)].name.decode() for t in (*operator.inputs, operator.outputs[0])]
    return [known[name] for name in names]


def scale_and_zero(low, high):
    """Of 8 bits over a range with zero in it: Jacob et al., 2018, section 2.1."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def one_layer(layer, shape, activation=None):
    parts = [keras.Input(shape, name="x"), layer]
    model = keras.Sequential(parts)
    layer.bias.assign(np.random.default_rng(5).normal(size=layer.bias.shape))
    return model


@pytest.mark.parametrize("kind", ["dense", "convolution", "depthwise"])
def test_scales_and_zero_points_equal_the_formula(kind):
    layer, shape, axis = {
        "dense": (layers.Dense(4, activation="relu"), (6,), 1),
        "convolution": (layers.Conv2D(4, 3), (7, 6, 3), 3),
        "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), (7, 6, 3), None),
    }[kind]
    model = one_layer(layer, shape)
    file = float_file(model)
    seen = [sample[0] for sample in samples_of(model, 30)()]
    ranges = calibrate(file, samples_of(model, 30))
    inputs = np.concatenate(seen)
    outputs = model.predict(inputs, verbose=0)
    x, weights, bias, y = of_operator(quantize(file, ranges), 0)
    for (_, scale, zero, _), values in ((x, inputs), (y, outputs)):
        wanted = scale_and_zero(float(values.min()), float(values.max()))
        assert scale == pytest.approx([wanted[0]], rel=1e-5)
        assert abs(int(zero[0]) - wanted[1]) <= (
            0 if abs(values.min() / scale[0] % 1 - 0.5) > 1e-3 else 1
        )
    kernel = layer.get_weights()[0]
    channels = kernel.reshape(*kernel.shape[:2], -1) if kind == "depthwise" else kernel
    largest = np.abs(channels).reshape(-1, channels.shape[-1]).max(axis=0)
    _, scale, zero, stored = weights
    assert scale == pytest.approx(largest / 127, rel=1e-5)
    assert not zero.any()
    wanted = np.rint(channels / (largest / 127))
    laid = {"dense": stored.T, "convolution": np.moveaxis(stored, 0, -1)}.get(kind, stored)
    assert np.abs(laid.reshape(wanted.shape) - wanted).max() <= 1
    assert (laid.reshape(wanted.shape) == wanted).mean() > 0.98  # but where it is a tie in float32
    _, scale, _, stored = bias
    assert scale == pytest.approx(x[1] * weights[1], rel=1e-5)
    assert np.abs(stored - layer.get_weights()[1] / scale).max() <= 0.51
    assert axis is None or kernel.shape[axis] == len(scale)


def test_packing_shares_equal_zero_points_and_changes_nothing():
    import flatbuffers

    from optkit.flatbuffer import packed

    model = keras.Sequential([keras.Input((6, 6, 2))])
    for k in range(6):
        model.add(layers.Conv2D(16, 3, padding="same", activation="relu", name=f"c{k}"))
    file = float_file(model)
    content = quantize(file, calibrate(file, samples_of(model)))
    again = packed(unpacked(content), len(content))

    def described(part):
        read = unpacked(part)
        found = []
        for tensor in read.subgraphs[0].tensors:
            entry = tensor.quantization
            told = (entry.scale, entry.zeroPoint, [entry.quantizedDimension])
            data = read.buffers[tensor.buffer].data
            found.append(
                (
                    tensor.name,
                    [list(np.ravel(x)) for x in told if x is not None],
                    None if data is None else bytes(data),
                )
            )
        return found

    assert described(again) == described(content)
    zeros = {tuple(told[1]) for _, told, _ in described(content) if len(told) == 3}
    assert len(zeros) > 2  # those of activations differ
    builder = flatbuffers.Builder(len(content))
    builder.Finish(unpacked(content).Pack(builder), b"TFL3")
    assert len(again) <= len(builder.Output()) - 8 * 16 * 4  # of 5 vectors and more one is left


def test_an_integer_dense_layer_computes_what_numpy_does():
    """Bit for bit: sums of products in 32 bits, brought to the scale of the output, rounded."""
    layer = layers.Dense(16, activation="relu")
    model = one_layer(layer, (24,))
    file = float_file(model)
    content = quantize(file, calibrate(file, samples_of(model, 50)))
    (_, sx, zx, _), (_, sw, _, weights), (_, _, _, bias), (_, sy, zy, _) = of_operator(content, 0)
    rng = np.random.default_rng(0)
    stored = rng.integers(-128, 128, (200, 24)).astype(np.int8)
    artifact = ok.TFLiteArtifact(content)
    (port,), (end,) = artifact.inputs, artifact.outputs
    found = artifact.predict(port.dequantize(stored))
    sums = (stored.astype(np.int64) - zx[0]) @ weights.T.astype(np.int64) + bias
    factors = (sx.astype("f") * sw.astype("f") / sy.astype("f")).astype(np.float32)
    wanted = np.rint(sums.astype(np.float32) * factors) + zy[0]
    wanted = np.clip(wanted, max(-128, zy[0]), 127)  # 0 and above: the ReLU
    assert np.array_equal(np.rint(found / np.float32(end.scale)) + end.zero_point, wanted)
    assert len(np.unique(wanted)) > 50


def histogram(values):
    from optkit.quantize.calibrate import _BINS, Histogram

    counts, edges = np.histogram(values, _BINS)
    return Histogram(float(edges[0]), float(edges[-1]), counts)


def test_histograms_count_the_values_that_there_were():
    """Against those of Keras' own outputs of the layer."""
    from optkit.quantize import histograms

    model = one_layer(layers.Dense(7, activation="relu", name="d"), (5,))
    file = float_file(model)
    ranges = calibrate(file, samples_of(model, 40))
    seen = histograms(file, samples_of(model, 40), ranges)
    outputs = model.predict(np.concatenate([s[0] for s in samples_of(model, 40)()]), verbose=0)
    counted = seen[file.operations[0].outputs[0]]
    assert counted.counts.sum() == outputs.size
    assert (counted.low, counted.high) == pytest.approx((0, outputs.max()), abs=1e-5)
    zero = (outputs == 0).sum()
    assert counted.counts[0] >= zero > 0
    cut = counted.centers[1000] + (counted.high - counted.low) / len(counted.counts) / 2
    assert abs(int(counted.counts[:1001].sum()) - int((outputs <= cut).sum())) <= 1


def test_histograms_of_large_activations_see_every_channel():
    """Of 40,000 values a sample not all are counted; every second would be of one kind of channel."""
    from optkit.quantize import histograms

    model = one_layer(layers.Dense(40_000, name="d"), (2,))
    model.get_layer("d").set_weights([np.zeros((2, 40_000)), np.arange(40_000) % 2])
    file = float_file(model)
    seen = histograms(file, samples_of(model, 4), calibrate(file, samples_of(model, 4)))
    counts = seen[file.operations[0].outputs[0]].counts
    assert 4 * 10_000 < counts.sum() < 4 * 20_000
    assert counts[0] + counts[-1] == counts.sum()
    assert abs(int(counts[0]) - int(counts[-1])) <= 4


def test_histograms_of_the_smallest_numbers():
    """A width that 32 bits divide to infinity."""
    from optkit.quantize import histograms

    model = one_layer(layers.Dense(3, name="d"), (5,))
    model.get_layer("d").set_weights([1e-37 * np.eye(5, 3), np.zeros(3)])
    file = float_file(model)
    ranges = calibrate(file, samples_of(model, 40))
    (name,) = file.operations[0].outputs
    assert 0 < ranges[name][1] - ranges[name][0] < 1e-36
    counted = histograms(file, samples_of(model, 40), ranges)[name]
    assert counted.counts.sum() == 120
    assert counted.counts[0] < 60


@pytest.mark.parametrize("seed", range(4))
def test_percentiles_against_sorting(seed):
    from optkit.quantize import estimate

    rng = np.random.default_rng(seed)
    values = [rng.normal(size=200_000), rng.standard_t(3, 200_000)][seed % 2]
    seen = histogram(values)
    low, high = estimate("percentile", {"t": (seen.low, seen.high)}, {"t": seen})["t"]
    width = (seen.high - seen.low) / len(seen.counts)
    # 0.01 % of the values are 20: up to 10 are left out on each side, and no bin more would do.
    assert (values < low).sum() <= 10 <= (values < low + width).sum()
    assert (values > high).sum() <= 10 <= (values > high - width).sum()
    assert low > values.min()
    assert high < values.max()
    few = histogram(values[:5000])
    extremes = (few.low, few.high)
    assert estimate("percentile", {"t": extremes}, {"t": few})["t"] == pytest.approx(extremes)


@pytest.mark.parametrize("kind", ["normal", "outliers", "one-sided", "uniform"])
def test_least_squared_error_against_trying_everything(kind):
    from optkit.quantize import estimate
    from optkit.quantize.ranges import squared_error

    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=20_000),
        "outliers": np.append(rng.normal(size=20_000), [60.0, -45.0]),
        "one-sided": np.maximum(rng.standard_t(3, 20_000), 0),
        "uniform": rng.uniform(-1, 2, 20_000),
    }[kind]

    def error(low, high):
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        stored = np.clip(np.rint(values / scale) + zero, 0, 255)
        return (((stored - zero) * scale - values) ** 2).sum()

    seen = histogram(values)
    extremes = (min(seen.low, 0.0), max(seen.high, 0.0))
    low, high = estimate("mse", {"t": (seen.low, seen.high)}, {"t": seen})["t"]
    assert extremes[0] <= low <= 0 <= high <= extremes[1]
    counted = squared_error(low, high, seen.centers, seen.counts)
    assert counted == pytest.approx(error(low, high), rel=0.15)  # the bins blur it a little
    shares = np.linspace(1, 0.05, 39)
    ends = [
        (extremes[0] * a, extremes[1] * b)
        for a in (shares if extremes[0] < 0 else [0.0])
        for b in shares
    ]
    best = min(error(*pair) for pair in ends if pair[1] > pair[0])
    assert error(low, high) <= 1.1 * best
    assert error(low, high) <= 1.01 * error(*extremes)


ACTIVATIONS = {
    "RELU": (lambda x: np.maximum(x, 0), 0.0),
    "RELU6": (lambda x: np.clip(x, 0, 6), 0.0),
    "RELU_N1_TO_1": (lambda x: np.clip(x, -1, 1), 0.0),
    "RELU_0_TO_1": (lambda x: np.clip(x, 0, 1), 0.0),
    "HARD_SWISH": (lambda x: x * np.clip(x + 3, 0, 6) / 6, 0.0),
    "LOGISTIC": (lambda x: 1 / (1 + np.exp(-x)), 0.5 / 256),
    "TANH": (np.tanh, 0.5 / 128),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_beyond_the_limits_an_operator_tells_nothing_apart(kind):
    """By less than half a step of its output, which for a sigmoid is 1/256; right within it does."""
    from types import SimpleNamespace

    from optkit.quantize import Operation, clip_aware
    from optkit.quantize.ranges import _TOLD_APART

    assert set(_TOLD_APART) == set(ACTIVATIONS)
    computes, half_a_step = ACTIVATIONS[kind]
    file = SimpleNamespace(
        operations=[Operation(0, kind, ("x",), ("y",), (), ())], inputs=(), outputs=("y",)
    )
    low, high = clip_aware(file, {"x": (-20.0, 20.0)})["x"]
    assert (low, high) != (-20, 20)
    for limit, beyond in ((low, np.linspace(-20, low)), (high, np.linspace(high, 20))):
        assert np.abs(computes(beyond) - computes(np.float64(limit))).max() <= half_a_step
        if abs(limit) < 20:
            within = limit - 0.3 * np.sign(limit) if limit else 0.3
            assert computes(np.float64(within)) != computes(np.float64(limit))


def test_clip_aware_ranges_leave_inputs_and_outputs_as_they_are():
    from types import SimpleNamespace

    from optkit.quantize import Operation, clip_aware

    readers = [Operation(k, "RELU", (name,), (f"{name}+",), (), ()) for k, name in enumerate("ioh")]
    file = SimpleNamespace(operations=readers, inputs=("i",), outputs=("o", "h+"))
    ranges = dict.fromkeys("ioh", (-5.0, 4.0))
    assert clip_aware(file, ranges) == {"i": (-5, 4), "o": (-5, 4), "h": (0, 4)}
    # Another reader that tells everything apart counts as well.
    file.operations.append(Operation(3, "ADD", ("h",), ("z",), (), ()))
    assert clip_aware(file, ranges) == ranges


def test_clip_aware_ranges_change_no_output():
    """Beyond what the readers tell apart: a sigmoid's input to 8, nothing else."""
    from optkit.quantize import clip_aware

    x = keras.Input((6,), name="x")
    hidden = layers.Dense(5, name="hidden")(x)
    gate = layers.Activation("sigmoid", name="gate")(hidden)
    other = layers.Dense(5, name="other")(x)
    both = layers.Activation("tanh", name="t")(other)
    joined = layers.Concatenate(name="join")([gate, both, other])
    model = keras.Model(x, layers.Dense(2, name="end")(joined))
    model.get_layer("hidden").kernel.assign(20 * model.get_layer("hidden").kernel)
    model.get_layer("other").kernel.assign(20 * model.get_layer("other").kernel)
    file = float_file(model)
    ranges = calibrate(file, samples_of(model, 30))
    narrowed = clip_aware(file, ranges)
    changed = {name for name in ranges if ranges[name] != narrowed[name]}
    (place,) = of_layers(file, "hidden")
    (name,) = file.operations[place].outputs
    assert changed == {name}  # what `other` gives is read by a concatenation as well
    assert ranges[name][1] > 8
    assert ranges[name][0] < -8
    assert narrowed[name] == (-8.0, 8.0)


@pytest.mark.parametrize("kind", ["dense", "depthwise", "convolution"])
def test_bias_correction_equals_the_formula(kind):
    """b - E[(W_q - W) x], Nagel et al. (2019), section 4.2; the mean over samples and places."""
    from optkit.quantize.bias import correct_biases, rounded_weights

    layer, shape = {
        "dense": (layers.Dense(6), (20,)),
        "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), (9, 9, 4)),
        "convolution": (layers.Conv2D(6, 1), (5, 5, 8)),
    }[kind]
    model = one_layer(layer, shape)
    rng = np.random.default_rng(4)
    kernel = layer.get_weights()[0]
    # A few large weights, so that the rest are rounded coarsely and shift the mean.
    kernel = kernel * np.where(rng.random(kernel.shape) < 0.1, 30, 1)
    layer.set_weights([kernel, layer.get_weights()[1]])
    x = (rng.normal(size=(64, *shape)) + 2).astype("f")  # far from zero on average

    def samples():
        return iter([x[i : i + 1]] for i in range(len(x)))

    file = float_file(model)
    bits = 4
    corrected = correct_biases(file, samples, bits)
    old = of_operator(file.content, 0)[2][3]
    new = of_operator(corrected.content, 0)[2][3]
    mean = x.astype(np.float64).reshape(-1, shape[-1]).mean(0)
    if kind == "depthwise":
        flat = kernel.reshape(9, -1)
        scale = np.abs(flat).max(0) / 7
        error = (np.rint(flat / scale) * scale - flat).sum(0)
        shift = error * np.repeat(mean, 2)
    else:
        flat = kernel.reshape(-1, 6)
        scale = np.abs(flat).max(0) / 7
        shift = mean @ (np.rint(flat / scale) * scale - flat)
    assert np.abs(shift).max() > 0.05
    assert new == pytest.approx(old - shift, abs=1e-4)
    # With the weights rounded, the outputs are nearer to the float ones on average.
    stored = rounded_weights(kernel.reshape(-1, kernel.shape[-1]), 1, bits).reshape(kernel.shape)
    if kind == "depthwise":
        laid = kernel.reshape(9, -1)
        stored = rounded_weights(laid, 1, bits).reshape(kernel.shape)
    wanted = model.predict(x, verbose=0)
    axes = tuple(range(wanted.ndim - 1))
    off = []
    for bias in (old, new):
        layer.set_weights([stored, bias.ravel()])
        off.append(np.abs((model.predict(x, verbose=0) - wanted).mean(axes)))
    assert off[1].max() < 0.25 * off[0].max()


def test_measured_bias_correction_brings_means_back():
    """Of every layer, behind those that were already corrected, over all batches."""
    from optkit.quantize.bias import settle_biases
    from optkit.quantize.calibrate import batches, runs

    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, name="one"),
            layers.Dense(4, name="two"),
            layers.Dense(3, name="three"),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:  # one large weight a channel: the others are rounded far
        kernel = rng.uniform(-1, 1, layer.kernel.shape)
        kernel[rng.integers(0, len(kernel), kernel.shape[1]), range(kernel.shape[1])] = 60
        layer.set_weights([kernel, rng.normal(size=kernel.shape[1])])
    file = float_file(model)

    def samples():
        drawn = np.random.default_rng(1)
        for _ in range(32):
            yield [drawn.uniform(0.3, 1, (1, 6)).astype("f")]

    ranges = calibrate(file, samples)
    assert len(list(batches(file, samples))) == 2

    def away(content):
        """The distance of the mean of each output of the last layer to that in the float model."""
        (name,) = file.operations[-1].outputs
        parts = []
        for interpreter in runs(file, batches(file, samples), content):
            (detail,) = [d for d in interpreter.get_tensor_details() if d["name"] == name]
            scale, zero = detail["quantization"]
            stored = interpreter.get_tensor(detail["index"]).astype(np.float64)
            parts.append((stored - zero) * scale)
        wanted = model.predict(np.concatenate([s[0] for s in samples()]), verbose=0)
        return np.abs(np.concatenate(parts).mean(0) - wanted.mean(0)), scale

    before, _ = away(quantize(file, ranges))
    settled = settle_biases(file, lambda part: quantize(part, ranges), samples)
    after, step = away(quantize(settled, ranges))
    assert before.max() > 0.8 * step
    assert after.max() < 0.3 * step
    kept = settle_biases(
        file, lambda part: quantize(part, ranges), samples, [item.index for item in file.operations]
    )
    assert away(quantize(kept, ranges))[0] == pytest.approx(before)


def test_what_stays_in_float_has_its_own_biases(monkeypatch):
    """A correction is for rounded numbers; without them it would be an error."""
    from optkit.quantize import int8

    monkeypatch.setattr(int8, "_LOOK_CLOSER", 0.0)
    monkeypatch.setattr(int8, "_HELPS", np.inf)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", name="one"),
            layers.Dense(5, activation="relu", name="two"),
            layers.Dense(3, name="out"),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([w + rng.normal(size=w.shape) for w in layer.get_weights()])
    x = rng.uniform(0.3, 1, (80, 6)).astype("f")
    data = ok.Data(train=(x, model.predict(x, verbose=0)))
    result = run(model, data, keep_float=["two"], repairs=["bias"], ranges="minmax", io="float32")
    notes = result.report.rows[0].notes
    assert any(note.startswith("bias correction, worked out: kept") for note in notes)
    found = unpacked(result.artifact.content)
    graph = found.subgraphs[0]
    corrected = []
    products = [
        operator
        for operator in graph.operators
        if operator_name(found.operatorCodes[operator.opcodeIndex]) == "FULLY_CONNECTED"
    ]
    for operator, layer in zip(products, model.layers, strict=True):
        bias = graph.tensors[operator.inputs[2]]
        stored = np.asarray(found.buffers[bias.buffer].data, np.uint8)
        if bias.type == FLOAT:
            assert layer.name == "two"
            assert np.array_equal(stored.view(np.float32), layer.bias.numpy())
        else:
            real = stored.view(np.int32) * bias.quantization.scale
            corrected.append(
                np.abs(real - layer.bias.numpy()).max() > bias.quantization.scale.max()
            )
    assert corrected == [True, True]


def test_the_relative_error_is_that_of_the_formula():
    from optkit.quantize.judge import relative_error

    rng = np.random.default_rng(0)
    wanted, found = rng.normal(3, 2, (50, 4)), rng.normal(3, 2, (50, 4))
    expected = np.sqrt(((wanted - found) ** 2).mean()) / wanted.std()
    assert relative_error(wanted, found) == pytest.approx(expected)
    assert relative_error(wanted, wanted) == 0
    assert relative_error(np.ones(3), np.full(3, 1.5)) == 0.5  # nothing to compare with


# ------------------------------------------------------------------- searching for layers to keep


def spoiled(*, tail=3):
    """A model with one layer that 8 bits spoil, and inputs and targets.

    Channel 0 of `start` is always 0 behind its ReLU, and `bad` takes it with weights a thousand
    times those of the others: they cost nothing in float, and in 8 bits all other weights of `bad`
    round to (nearly) nothing.
    """
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, activation="relu", name="start"),
            layers.Conv2D(8, 3, activation="relu", padding="same", name="bad"),
            layers.Conv2D(8, 3, activation="relu", padding="same", name="good"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(tail, activation="softmax", name="out"),
        ]
    )
    start, bad, out = (model.get_layer(name) for name in ("start", "bad", "out"))
    bias = start.bias.numpy()
    bias[0] = -100
    start.bias.assign(bias)
    kernel = bad.kernel.numpy()
    kernel[:, :, 0] *= 300
    bad.kernel.assign(kernel)
    out.kernel.assign(40 * out.kernel)
    x = np.random.default_rng(0).normal(size=(400, 6, 6, 2)).astype("f")
    found = model.predict(x, verbose=0)
    out.bias.assign(-np.median(np.log(found + 1e-9), axis=0))  # so that all classes occur
    return model, x, model.predict(x, verbose=0).argmax(1)


def search_run(model, x, y, **settings):
    data = ok.Data(
        train=(x[:200], y[:200]), validation=(x[200:300], y[200:300]), test=(x[300:], y[300:])
    )
    settings = {"ranges": "minmax", "repairs": "none", "keep_float": "auto"} | settings
    return ok.Pipeline([ok.QuantizeINT8(60, **settings)]).run(model, data)


def study(row, title):
    (found,) = [item for item in row.studies if item.title == title]
    return found.to_frame()


def test_the_scan_finds_the_layer_that_is_bad_and_the_search_stops_at_the_budget():
    model, x, y = spoiled()
    plain = search_run(model, x, y, keep_float=None)
    result = search_run(model, x, y, max_drop=0.05)
    row = result.report.rows[0]
    table = study(row, "Layers in float, one at a time")
    assert table["layer in float"][0] == "bad"
    assert set(table["layer in float"]) == {"start", "bad", "good", "pool", "out"}
    assert table["output error"][0] < 0.3 * table["output error"][1:].min()
    assert list(table["layer in float"][table["kept in float"]]) == ["bad"]
    assert kinds_in_float(result) == ["CONV_2D"]
    assert any("bad kept in float for a drop of" in note for note in row.notes)
    assert result.report.final.accuracy > plain.report.final.accuracy + 0.05
    assert np.ptp(table["error saved"] + table["output error"]) < 1e-6
    # Within the budget from the start, nothing is returned.
    easy = search_run(model, x, y, max_drop=1.0)
    assert kinds_in_float(easy) == []
    assert any("no layer in float for a drop of" in note for note in easy.report.rows[0].notes)


class Drops:
    """A judge of files that are nothing but the layers in float, by a table of drops."""

    def __init__(self, drops):
        self.drops = drops

    def __call__(self, content):
        from optkit.quantize.judge import Judgement

        return Judgement(self.drops[content], None, None)

    def drop(self, judged):
        return judged.error


DROPS = {"": 0.5, "a": 0.3, "b": 0.35, "c": 0.4, "ab": 0.25, "ac": 0.28, "bc": 0.05}


@pytest.mark.parametrize(
    ("all_three", "budget", "kept", "drop"),
    [
        (0.04, 0.3, "a", 0.3),  # the best by itself will do
        (0.04, 0.25, "ab", 0.25),
        (0.04, 0.05, "bc", 0.05),  # the first choice is needless behind the other two
        (0.04, 0.045, "abc", 0.04),
        (0.04, 0.01, "abc", 0.04),  # not met: the best that was seen
        (0.3, 0.01, "ab", 0.25),
    ],
)
def test_a_search_takes_the_best_and_gives_back_what_it_need_not_keep(
    all_three, budget, kept, drop
):
    from optkit.quantize.scan import search

    judge = Drops({**DROPS, "abc": all_three})
    layers_of = {name: frozenset({k}) for k, name in enumerate("abc")}
    found = search(lambda keep: "".join("abc"[k] for k in sorted(keep)), judge, layers_of, budget)
    assert "".join(sorted(found.kept)) == kept
    assert sorted(found.operations) == ["abc".index(name) for name in kept]
    assert found.judged.error == drop
    assert found.met == (drop <= budget)
    assert [item.layer for item in found.scanned] == ["a", "b", "c"]


def test_a_budget_that_cannot_be_met_is_said_and_the_best_is_returned():
    """Inputs that 8 bits cannot hold: with all layers in float they still are rounded."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype("f")
    x[:, 5] *= 5000  # of no use to the model, and decides the scale of the input
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", name="one"),
            layers.Dense(2, activation="softmax", name="two"),
        ]
    )
    kernel = model.get_layer("one").kernel.numpy()
    kernel[5] = 0
    model.get_layer("one").kernel.assign(kernel)
    y = model.predict(x, verbose=0).argmax(1)
    result = search_run(model, x, y, max_drop=0.0)
    row = result.report.rows[0]
    (said,) = [note for note in row.notes if "THE BUDGET IS NOT MET" in note]
    assert said.startswith("keep_float='auto': THE BUDGET IS NOT MET: the least drop found is ")
    table = study(row, "Layers in float, one at a time")
    least = float(said.partition("found is ")[2].partition(",")[0])
    assert 0 < least <= 1 - table["accuracy"].max() + 1e-6
    assert said.endswith("; inputs and outputs are rounded as well, unless `io='float32'`")
    assert any("on the half of validation that the search did not see" in n for n in row.notes)
    assert isinstance(result.artifact, ok.TFLiteArtifact)


def test_what_is_searched_on_and_what_is_reported_share_no_sample(monkeypatch):
    from optkit.passes import quantize_int8
    from optkit.quantize.judge import Judge

    model, x, y = spoiled()
    searched, reported = [], []
    whole, scored = Judge.__init__, quantize_int8.score

    def watched(self, file, taken, metric):
        searched.append(taken.x)
        whole(self, file, taken, metric)

    def watched_score(artifact, split, *others):
        reported.extend(batch for batch, _ in split.iterate())
        return scored(artifact, split, *others)

    monkeypatch.setattr(Judge, "__init__", watched)
    monkeypatch.setattr(quantize_int8, "score", watched_score)
    search_run(model, x, y, max_drop=0.02, search_samples=40)

    def rows(arrays):
        return {sample.tobytes() for array in arrays for sample in array}

    validation = rows([x[200:300]])
    assert len(rows(searched)) == 40
    assert len(rows(reported)) == 50
    assert not rows(searched) & rows(reported)
    assert rows(searched) | rows(reported) <= validation


def two_blocks(library):
    """Two models within a model, with layers of the same names, that folding opens."""

    def block(name, size):
        x = library.Input((size, size, 2))
        y = library.layers.Conv2D(2, 3, padding="same", activation="relu", name="conv")(x)
        y = library.layers.BatchNormalization(name="norm")(y)
        return library.Model(x, library.layers.MaxPooling2D(2, 1, name="pool")(y), name=name)

    x = library.Input((8, 8, 2))
    y = block("b", 7)(block("a", 8)(x))
    y = library.layers.Conv2D(3, 2, activation="relu", name="conv")(y)
    y = library.layers.GlobalAveragePooling2D(name="mean")(y)
    model = library.Model(x, library.layers.Dense(3, name="out")(y))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        norm = model.get_layer(name).get_layer("norm")
        norm.set_weights([rng.uniform(0.5, 2, 2) for _ in range(4)])
    return model


@pytest.mark.parametrize("keras_name", ["keras", "tf_keras"])
@pytest.mark.parametrize("repairs", ["none", "exact"])
def test_layers_of_equal_names_in_models_that_are_opened(keras_name, repairs):
    import importlib

    library = importlib.import_module(keras_name)
    library.utils.set_random_seed(0)
    model = two_blocks(library)
    data = _noise((8, 8, 2))
    wanted = np.asarray(model(data.train[0]))

    def places(*names):
        """Which of the three convolutions, in their order, stay in float."""
        result = run(model, data, keep_float=list(names), repairs=repairs)
        found = result.artifact.predict(data.train[0])
        assert np.median(np.abs(found - wanted)) < 0.02 * np.ptp(wanted)
        kinds = [floats for kind, floats in in_float(result.artifact.content) if kind == "CONV_2D"]
        assert len(kinds) == 3
        return [place for place, floats in enumerate(kinds) if floats]

    assert places("a/conv") == [0]
    assert places("b/conv") == [1]
    assert places("conv") == [0, 1, 2]
    if repairs == "none":
        assert places("b") == [1]
    else:
        assert places("b/norm") == [1, 2]  # its factors went back, its summands forward
        assert places("b") == [1, 2]
        # Behind `a/norm` is a convolution that pads with zeros: its summands stay an operator.
        assert places("a/norm") == []
        assert kinds_in_float(run(model, data, keep_float=["a/norm"])) == ["ADD"]


def test_a_search_speaks_of_the_layers_that_came_in():
    """Folding opens models within the model, and calls their layers otherwise."""
    model = two_blocks(keras)
    x = np.random.default_rng(0).normal(size=(60, 8, 8, 2)).astype("f")
    data = ok.Data(train=(x, model.predict(x, verbose=0)))
    result = run(model, data, keep_float="auto", max_drop=0.0, repairs="exact")
    row = result.report.rows[0]
    listed = list(study(row, "Layers in float, one at a time")["layer in float"])
    assert {"a/conv", "b/conv", "conv", "out"} <= set(listed)
    paths = set(layers_by_path(model))
    assert set(listed) <= paths
    ok.Pipeline([ok.QuantizeINT8(keep_float=listed)]).check(model, data)
    named = run(model, data, keep_float=["b/conv"])
    assert "in float: b/conv" in named.report.rows[0].notes


# --------------------------------------------------------------------------- what is chosen on


def judged_on(monkeypatch):
    """Collects the samples that judges are made with."""
    from optkit.quantize.judge import Judge

    seen, whole = [], Judge.__init__

    def watched(self, file, taken, metric):
        seen.append(taken)
        whole(self, file, taken, metric)

    monkeypatch.setattr(Judge, "__init__", watched)
    return seen


def test_choosing_sees_all_classes_of_a_sorted_validation(monkeypatch):
    seen = judged_on(monkeypatch)
    model = one_layer(layers.Dense(4, activation="softmax", name="d"), (5,))
    x = np.random.default_rng(0).normal(size=(800, 5)).astype("f")
    y = np.repeat([0, 1, 2, 3], 200)
    run(model, ok.Data(train=(x, y), validation=(x, y)), search_samples=80)
    assert np.bincount(seen[0].y).tolist() == [20, 20, 20, 20]
    assert seen[0].count == 80


def test_choosing_counts_samples_by_their_weights():
    from optkit.errors import DataError
    from optkit.metric import Metric
    from optkit.quantize.judge import Judge
    from optkit.quantize.sources import Taken

    model = one_layer(layers.Dense(3, name="d"), (5,))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 5)).astype("f"), rng.integers(0, 3, 50)
    weights = rng.uniform(0, 5, 50)
    file = float_file(model)

    def hits(y_true, y_pred):
        return (y_pred.argmax(-1) == y_true).astype("f")

    right = hits(y, model.predict(x, verbose=0))
    counting = Metric("accuracy", True, hits, weighted=True)
    judge = Judge(file, Taken(x, y, weights, 50), counting)
    assert judge.float.score == pytest.approx(np.average(right, weights=weights))
    assert judge.float.values.mean() == pytest.approx(judge.float.score)
    plain = Judge(file, Taken(x, y, weights, 50), Metric("accuracy", True, hits))
    assert plain.float.score == pytest.approx(right.mean())
    assert plain.float.score != pytest.approx(judge.float.score)
    with pytest.raises(DataError, match="All of the 50 samples to choose on have weight 0"):
        Judge(file, Taken(x, y, 0 * weights, 50), counting)


def test_errors_are_counted_from_another_model_and_drops_from_the_first():
    from optkit.metric import Metric
    from optkit.quantize.judge import Judge
    from optkit.quantize.sources import Taken

    first = one_layer(layers.Dense(3, name="d"), (5,))
    second = one_layer(layers.Dense(3, name="d"), (5,))
    x = np.random.default_rng(0).normal(size=(50, 5)).astype("f")
    y = first.predict(x, verbose=0).argmax(-1)

    def hits(y_true, y_pred):
        return (y_pred.argmax(-1) == y_true).astype("f")

    judge = Judge(float_file(first), Taken(x, y, None, 50), Metric("accuracy", True, hits))
    other = float_file(second)
    before = judge(other.content)
    assert before.error > 0.1
    assert judge.drop(before) > 0.1
    judge.compare_with(other)
    after = judge(other.content)
    assert after.error == 0
    assert judge.drop(after) == judge.drop(before)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_statistics_measured_anew_must_gain_more_than_chance(higher_is_better):
    """Two standard errors of the gain of single samples; nearness to the first model says nothing."""
    from types import SimpleNamespace

    from optkit.metric import Metric
    from optkit.quantize.int8 import _is_better
    from optkit.quantize.judge import Judgement

    judge = SimpleNamespace(metric=Metric("figure", higher_is_better, None))
    sign = 1 if higher_is_better else -1
    spread = np.tile([1.0, -1.0], 50)  # standard error of the mean: 0.1

    def better(gain, values=True):
        before, after = np.zeros(100), sign * (gain + spread)
        pair = [
            Judgement(error, float(part.mean()), part if values else None)
            for error, part in ((0.1, before), (0.9, after))
        ]
        return _is_better(judge, "batch_norm", *pair)

    assert better(0.21)
    assert not better(0.19)
    assert not better(-0.5)
    assert not better(0.5, values=False)


class Spoil(ok.RewritePass):
    """Moves the answers of a model for some samples, so that it loses accuracy."""

    def rewrite(self, model, context):
        bias = model.layers[-1].bias
        bias.assign(bias.numpy() + np.array([0.3, 0.0, 0.0], "f"))
        return model


@pytest.mark.parametrize("spoilt", [True, False])
def test_a_search_leaves_what_is_left_of_the_goal(spoilt):
    """The goal is about the model that came into the pipeline, not about what comes to the pass."""
    model = one_layer(layers.Dense(3, name="d"), (5,))
    x = np.random.default_rng(0).normal(size=(300, 5)).astype("f")
    y = model.predict(x, verbose=0).argmax(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    passes = [Spoil()] * spoilt + [ok.QuantizeINT8(60, keep_float="auto")]
    goals = ok.Goals(max_accuracy_drop=0.2)
    result = ok.Pipeline(passes, goals=goals, loss=loss).run(
        model, ok.Data(train=(x, y), validation=(x, y), test=(x, y))
    )
    notes = result.report.rows[-1].notes
    (search,) = [note for note in notes if "on the samples that the search saw" in note]
    left = [note for note in notes if "is left of the drop of 0.2 that the goal allows" in note]
    if not spoilt:
        assert not left
        assert search.endswith("; 0.2 is allowed")
        return
    lost = 1 - result.report.rows[0].validation_after
    assert 0.02 < lost < 0.2
    assert len(left) == 1
    assert search.endswith(f"; {0.2 - lost:g} is allowed")
