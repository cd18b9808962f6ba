"""Float16, dynamic range, weights only and 16x8, against formulas in NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tf_keras as keras

import optkit as ok
from optkit.convert import convert
from optkit.flatbuffer import operator_name, packed, unpacked
from optkit.measuring.turns import in_turns
from optkit.quantize import Scheme, calibrate, float_file, quantize
from optkit.quantize.weights import quantize_symmetric, store_weights

layers = keras.layers
QUIET = ok.Measure(latency_seconds=0, memory=False)


def _rounded(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """What is left of weights in so many bits, by the formula."""
    if bits == 16:
        return values.astype(np.float16).astype(np.float32)
    most = {8: 127, 4: 7}[bits]
    others = tuple(k for k in range(values.ndim) if k != axis % values.ndim)
    scale = np.abs(values).max(axis=others, keepdims=True) / most
    return (np.clip(np.rint(values / scale), -most, most) * scale).astype(np.float32)


def _seeded(model: keras.Model) -> keras.Model:
    """Small random numbers in every weight, biases included."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.2, weight.shape).astype("float32"))
    return model


def _dense() -> keras.Model:
    return _seeded(keras.Sequential([keras.Input((64,), name="x"), layers.Dense(48)]))


def _convolutions() -> keras.Model:
    image = keras.Input((12, 12, 16), name="image")
    x = layers.Conv2D(32, 3, name="conv", activation="relu")(image)
    x = layers.DepthwiseConv2D(5, name="depth")(x)
    x = layers.Conv2DTranspose(16, 3, name="turned")(x)
    return _seeded(keras.Model(image, layers.Dense(10, name="classes")(layers.Flatten()(x))))


def _volumes() -> keras.Model:
    volume = keras.Input((6, 6, 6, 4), name="volume")
    x = layers.Conv3D(16, 3, name="conv", activation="relu")(volume)
    return _seeded(keras.Model(volume, layers.Dense(10, name="classes")(layers.Flatten()(x))))


def _words(layer: keras.layers.Layer, length: int | None = 12) -> keras.Model:
    words = keras.Input((length,), dtype="int32", name="words")
    x = layer(layers.Embedding(200, 40, name="table")(words))
    x = layers.GlobalMaxPooling1D()(x) if len(x.shape) == 3 else x
    return _seeded(keras.Model(words, layers.Dense(16, name="classes")(x)))


def _attention() -> keras.Model:
    rows = keras.Input((6, 32), name="rows")
    x = layers.MultiHeadAttention(4, 8, name="attention")(rows, rows)
    x = layers.Add()([rows, x])
    return _seeded(keras.Model(rows, layers.Dense(10, name="classes")(layers.Flatten()(x))))


MODELS = {
    "dense": _dense,
    "convolutions": _convolutions,
    "volumes": _volumes,
    "LSTM": lambda: _words(layers.LSTM(24, name="memory")),
    "GRU": lambda: _words(layers.GRU(24, name="memory")),
    "Conv1D": lambda: _words(layers.Conv1D(24, 3, name="conv")),
    "open length": lambda: _words(layers.Bidirectional(layers.GRU(24), name="memory"), None),
    "attention": _attention,
}

#: The axis of channels of weights as Keras holds them, the last one but for these.
_AXES = {"depthwise_kernel": 2, "embeddings": 0}


def _axis(name: str) -> int:
    if name.startswith("turned/kernel"):
        return 2
    return _AXES.get(name.rsplit("/", maxsplit=1)[-1].split(":", maxsplit=1)[0], -1)


def _twin(model: keras.Model, bits: int) -> keras.Model:
    """The model with weights of two and more dimensions as they are left by so many bits."""
    twin = keras.models.clone_model(model)
    for one, other in zip(model.weights, twin.weights, strict=True):
        value = one.numpy()
        name = one.name
        if value.ndim > 1 and "bias" not in name:
            few = 8 if "depthwise" in name and bits == 4 else bits
            if "attention" in name:  # (width, heads, size) is a matrix, as (heads, size, width) is
                shape = (-1, value.shape[-1]) if "attention_output" in name else (len(value), -1)
                value = _rounded(value.reshape(shape), few, -1).reshape(value.shape)
            else:
                value = _rounded(value, few, _axis(name))
        other.assign(value)
    return twin


def _inputs(model: keras.Model, n: int = 5) -> np.ndarray:
    rng = np.random.default_rng(7)
    shape = [12 if size is None else size for size in model.input_shape[1:]]
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 200, (n, *shape)).astype("int32")
    return rng.normal(size=(n, *shape)).astype("float32")


def _stored(model: keras.Model, bits: int, computes: str = "float") -> ok.TFLiteArtifact:
    return ok.TFLiteArtifact(
        store_weights(convert(model).artifact.content, bits, computes=computes).content
    )


def _kinds(artifact: ok.TFLiteArtifact) -> list[str]:
    model = unpacked(artifact.content)
    return [
        operator_name(model.operatorCodes[operator.opcodeIndex])
        for graph in model.subgraphs
        for operator in graph.operators
    ]


# --------------------------------------------------------------------------------- weights alone


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_stored_weights_compute_as_a_model_of_rounded_ones(kind, bits):
    model = MODELS[kind]()
    x = _inputs(model)
    file = _stored(model, bits)
    expected = _twin(model, bits).predict(x, verbose=0)
    found = file.predict(x)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 2e-5 * scale
    assert np.abs(found - model.predict(x, verbose=0)).max() > 1e-4 * scale * (bits != 16)


def test_the_numbers_are_those_of_ai_edge_quantizer():
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.qtyping import TFLOperationName

    content = convert(_convolutions()).artifact.content
    recipe = recipe_manager.RecipeManager()
    recipe.add_weight_only_config(".*", TFLOperationName.ALL_SUPPORTED, 8)
    other = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
        enable_progress_bar=False, enable_progress_report=False
    )

    def weights(file: bytes) -> dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
        model = unpacked(file)
        return {
            tuple(map(int, tensor.shape)): (
                np.asarray(model.buffers[tensor.buffer].data).view(np.int8),
                np.asarray(tensor.quantization.scale),
            )
            for tensor in model.subgraphs[0].tensors
            if tensor.type == 9
        }

    own, theirs = weights(store_weights(content, 8).content), weights(bytes(other.quantized_model))
    assert set(own) == set(theirs)
    assert len(own) == 4
    for shape, (numbers, scale) in own.items():
        np.testing.assert_allclose(scale, theirs[shape][1], rtol=1e-6)
        apart = numbers.astype(int) - theirs[shape][0]
        assert np.abs(apart).max() <= 1
        assert (apart != 0).mean() < 0.001


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_symmetric_takes_channels_of_zeros_and_of_tiny_numbers(bits):
    values = np.array([[0, 0, 0], [1e-44, 0, -1e-44], [3, -1, 0.5]], np.float32)
    numbers, scale = quantize_symmetric(values, bits, 0)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert not numbers[:2].any()
    np.testing.assert_allclose(numbers[2] * scale[2], values[2], atol=3 / (2 ** (bits - 1) - 1) / 2)


def test_embeddings_of_ids_in_several_dimensions_and_of_open_lengths():
    ids = keras.Input((None, None), dtype="int32", name="ids")
    model = _seeded(keras.Model(ids, layers.Embedding(300, 32, name="table")(ids)))
    table = _rounded(model.weights[0].numpy(), 4, 0)
    file = _stored(model, 4)
    assert "EMBEDDING_LOOKUP" in _kinds(file)
    assert "GATHER" not in _kinds(file)
    rng = np.random.default_rng(1)
    for shape in ((2, 3, 4), (1, 7, 1), (5, 1, 9)):
        x = rng.integers(0, 300, shape).astype("int32")
        np.testing.assert_allclose(file.predict(x), table[x], atol=1e-6)


def test_a_table_that_is_also_a_kernel_is_stored_once():
    import tensorflow as tf

    class Tied(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight("table", (150, 32))

        def call(self, ids):
            return tf.matmul(
                tf.reduce_mean(tf.gather(self.table, ids), 1), self.table, transpose_b=True
            )

    ids = keras.Input((6,), dtype="int32", name="ids")
    model = _seeded(keras.Model(ids, Tied(name="tied")(ids)))
    table = _rounded(model.weights[0].numpy(), 8, 0)
    x = np.random.default_rng(1).integers(0, 150, (3, 6)).astype("int32")
    expected = table[x].mean(1) @ table.T
    for computes, share in (("float", 1e-5), ("integer", 0.01)):
        file = _stored(model, 8, computes)
        assert [item.dtype for item in file.layers() if item.parameters >= 150 * 32] == ["int8"]
        assert file.size_bytes < 0.5 * convert(model).artifact.size_bytes
        assert np.abs(file.predict(x) - expected).max() <= share * np.abs(expected).max()


def test_what_float16_does_not_hold_stays_float32(data):
    model = _dense()
    kernel = model.weights[0].numpy()
    kernel[0, 0] = 1e5
    model.weights[0].assign(kernel)
    x = _inputs(model)
    stored = store_weights(convert(model).artifact.content, 16)
    assert len(stored.overflowing) == 1
    assert not stored.values
    found = ok.TFLiteArtifact(stored.content).predict(x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-3)


def test_small_kernels_stay_as_they_are():
    image = keras.Input((4, 4, 1), name="image")
    model = keras.Model(image, layers.Conv2D(4, 3)(image))
    stored = store_weights(convert(model).artifact.content, 8)
    assert not stored.values
    before = convert(model).artifact
    x = np.ones((1, 4, 4, 1), np.float32)
    assert np.array_equal(ok.TFLiteArtifact(stored.content).predict(x), before.predict(x))


def test_zeros_stay_zeros():
    model = _dense()
    kernel = model.weights[0].numpy()
    kernel[np.abs(kernel) < 0.1] = 0
    model.weights[0].assign(kernel)
    share = float((kernel == 0).mean())
    for bits, computes in ((16, "float"), (8, "float"), (8, "integer")):
        assert _stored(model, bits, computes).sparsity == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("bits", "most"), [(16, 0.51), (8, 0.27), (4, 0.15)])
@pytest.mark.parametrize("computes", ["float", "integer"])
def test_sizes_above_a_million_parameters(bits, most, computes):
    model = keras.Sequential(
        [
            keras.Input((784,), name="x"),
            layers.Dense(1024, "relu"),
            layers.Dense(300, "relu"),
            layers.Dense(10),
        ]
    )
    before = convert(model).artifact
    after = store_weights(before.content, bits, computes=computes).content
    assert len(after) <= most * before.size_bytes
    assert ok.TFLiteArtifact(after).parameters >= 784 * 1024


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_of_few_values_are_smaller_as_float16(bits):
    image = keras.Input((12, 12, 64), name="image")
    model = _seeded(keras.Model(image, layers.DepthwiseConv2D(3, name="depth")(image)))
    stored = store_weights(convert(model).artifact.content, bits)
    assert stored.kinds == {"float16": {"DEPTHWISE_CONV_2D": 1}}
    x = _inputs(model)
    expected = _twin(model, 16).predict(x, verbose=0)
    found = ok.TFLiteArtifact(stored.content).predict(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --------------------------------------------------------------------------------- dynamic range


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dynamic_product_is_within_the_bound_of_its_steps(bits):
    model = _dense()
    x = _inputs(model, 20)
    kernel = _rounded(model.weights[0].numpy(), bits, -1)
    exact = x @ kernel + model.weights[1].numpy()
    found = _stored(model, bits, "integer").predict(x)
    # Each row is spread over 255 steps; the zero point is rounded, too.
    step = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / 255
    bound = step[:, None] * np.abs(kernel).sum(0) + 1e-4
    assert (np.abs(found - exact) <= bound).all()
    assert np.abs(found - exact).max() > 1e-4  # computed in integers indeed


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_dynamic_range_is_near_weights_alone(kind, bits):
    model = MODELS[kind]()
    x = _inputs(model)
    stored = store_weights(convert(model).artifact.content, bits, computes="integer")
    found = ok.TFLiteArtifact(stored.content).predict(x)
    expected = _twin(model, bits).predict(x, verbose=0)
    error = np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected)
    assert 0 < error < 0.05
    assert set(stored.dynamic) <= {"FULLY_CONNECTED", "CONV_2D"}
    assert stored.dynamic


def test_depthwise_convolutions_compute_in_float_where_that_is_faster():
    stored = store_weights(convert(_convolutions()).artifact.content, 8, computes="integer")
    assert stored.unpacked == {"DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1}
    assert stored.dynamic == {"CONV_2D": 1, "FULLY_CONNECTED": 1}


# ----------------------------------------------------------------------------------------- 16x8


def _run16(model: keras.Model, data: ok.Data, **settings) -> ok.Result:
    return ok.Pipeline([ok.QuantizeINT16x8(60, **settings)]).run(model, data, measure=QUIET)


def _regression(model: keras.Model, x: np.ndarray) -> ok.Data:
    y = model.predict(x, verbose=0)
    return ok.Data(train=(x, y), validation=(x[:20], y[:20]), test=(x[20:40], y[20:40]))


def test_16x8_is_within_the_bound_of_its_steps():
    model = _dense()
    model.compile(loss="mse")
    x = _inputs(model, 60)
    file = _run16(model, _regression(model, x)).artifact
    (taken,), (given,) = file.inputs, file.outputs
    assert taken.dtype == given.dtype == np.int16
    assert taken.zero_point == given.zero_point == 0
    kernel = _rounded(model.weights[0].numpy(), 8, -1)
    exact = x @ kernel + model.weights[1].numpy()
    weight_step = np.abs(model.weights[0].numpy()).max(0) / 127
    bound = taken.scale / 2 * np.abs(kernel).sum(0) + given.scale + taken.scale * weight_step
    found = file.predict(x)
    assert (np.abs(found - exact) <= bound + 1e-6).all()
    assert np.abs(found - exact).max() < 0.01 * np.abs(exact).max() / 10


def test_16x8_stores_tables_in_8_bits_and_says_what_stays_float():
    model = _words(layers.Conv1D(24, 3, name="conv"))
    model.compile(loss="mse")
    x = _inputs(model, 60)
    result = _run16(model, _regression(model, x))
    row = result.report.rows[0]
    assert any("EMBEDDING_LOOKUP" in note for note in row.notes), row.notes
    table = max(result.artifact.layers(), key=lambda item: item.parameters)
    assert (table.parameters, table.dtype) == (200 * 40, "int8")
    expected = _twin(model, 8).predict(x, verbose=0)
    error = np.sqrt(np.mean((result.artifact.predict(x) - expected) ** 2)) / np.std(expected)
    assert error < 0.01


def test_16x8_of_recurrent_layers_draws_no_bar_and_needs_a_length(capfd):
    model = _words(layers.LSTM(24, name="memory"))
    model.compile(loss="mse")
    x = _inputs(model, 40)
    result = _run16(model, _regression(model, x))
    assert "Applying" not in "".join(capfd.readouterr())
    error = np.abs(result.artifact.predict(x) - model.predict(x, verbose=0)).max()
    assert error < 0.05 * np.abs(model.predict(x, verbose=0)).max()
    opened = _words(layers.LSTM(24, name="memory"), None)
    opened.compile(loss="mse")
    data = _regression(opened, x)
    with pytest.raises(ok.PipelineError, match=r"\['words'\] leave sizes open.*input_shape"):
        _run16(opened, data)
    assert _run16(opened, data, input_shape=(12,)).report.rows[0].status == "ok"


def test_16x8_of_activations_that_are_always_zero():
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = layers.ReLU(6.0, name="six")(x)
    model = _seeded(keras.Model(image, layers.Dense(4, name="out")(layers.Flatten()(x))))
    model.get_layer("conv").kernel.assign(np.zeros((3, 3, 4, 8)))
    model.get_layer("conv").bias.assign(np.full(8, -1.0))
    model.compile(loss="mse")
    x = np.random.default_rng(0).random((60, 8, 8, 4)).astype("float32")
    found = _run16(model, _regression(model, x)).artifact.predict(x)
    assert np.abs(found - model.predict(x, verbose=0)).max() < 1e-3


@pytest.mark.parametrize("activations", [8, 16])
@pytest.mark.parametrize("weights", [8, 4])
def test_biases_of_channels_without_weights_are_kept(activations, weights):
    """ai-edge-quantizer cuts them off, as steps of such channels are next to nothing."""
    model = _convolutions()
    for name, axis in (("conv", -1), ("depth", 2), ("turned", 2), ("classes", -1)):
        kernel, bias = model.get_layer(name).get_weights()
        kernel = np.moveaxis(kernel, axis, 0)
        kernel[0], kernel[1] = 0, 1e-9 * kernel[1]
        bias[0], bias[1] = 2.0, -1.5
        model.get_layer(name).set_weights([np.moveaxis(kernel, 0, axis), bias])
    x = _inputs(model, 40)
    file = float_file(model)
    ranges = calibrate(file, lambda: iter([[row[None]] for row in x]))
    content = quantize(file, ranges, scheme=Scheme(weights=weights, activations=activations))
    made = ok.TFLiteArtifact(file.finish(content))
    found = made.predict(x)
    assert np.abs(found[:, 0] - 2.0).max() <= 0.51 * made.outputs[0].scale
    assert np.abs(found[:, 1] + 1.5).max() <= 0.51 * made.outputs[0].scale
    expected = model.predict(x, verbose=0)
    error = np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected)
    assert error < (0.05 if weights == 8 else 0.3)


@pytest.mark.parametrize("io", ["int16", "float32"])
def test_16x8_takes_what_io_says(io):
    model = _dense()
    model.compile(loss="mse")
    file = _run16(model, _regression(model, _inputs(model, 60)), io=io).artifact
    assert (file.inputs[0].dtype, file.outputs[0].dtype) == (np.dtype(io), np.dtype(io))


def test_calibration_samples_that_are_no_numbers_are_refused():
    model = _dense()
    model.compile(loss="mse")
    x = _inputs(model, 60)
    data = _regression(model, x)
    broken = x.copy()
    broken[3] = np.nan
    data = ok.Data(
        train=data.train,
        validation=data.validation,
        test=data.test,
        calibration=(broken, data.train[1]),
    )
    with pytest.raises(ok.OptkitError, match="`calibration` hold NaN or infinite"):
        _run16(model, data)


# ------------------------------------------------------------------------------------ the passes


PASSES = {
    "QuantizeFloat16": (ok.QuantizeFloat16, 0.0, "float16"),
    "QuantizeDynamic": (ok.QuantizeDynamic, 0.02, "int8"),
    "QuantizeDynamic(4)": (lambda: ok.QuantizeDynamic(4), 0.05, "int4"),
    "QuantizeWeights": (ok.QuantizeWeights, 0.02, "int8"),
    "QuantizeWeights(4)": (lambda: ok.QuantizeWeights(bits=4), 0.05, "int4"),
    "QuantizeINT16x8": (ok.QuantizeINT16x8, 0.02, "int8"),
}


@pytest.mark.parametrize("name", PASSES)
def test_digits_stay_known(trained, data, name):
    make, drop, dtype = PASSES[name]
    result = ok.Pipeline([make()]).run(trained, data, measure=QUIET)
    row = result.report.rows[0]
    assert row.status == "ok"
    assert row.before.accuracy > 0.9
    assert row.after.accuracy >= row.before.accuracy - drop
    assert row.after.size_bytes < row.before.size_bytes * {"float16": 0.55, "int8": 0.35}.get(
        dtype, 0.25
    )
    assert max(result.artifact.layers(), key=lambda item: item.parameters).dtype == dtype
    agreed = next(note for note in row.notes if note.startswith("read back"))
    assert float(re.search(r"on ([\d.]+) %", agreed)[1]) >= 100 * (1 - drop)
    assert any("the float32 file in LiteRT" in note for note in row.notes)


def test_notes_say_what_is_stored_how_and_what_stays(data):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(64, 3, name="conv")(image)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.Dense(10, activation="softmax", name="classes")(layers.Flatten()(x))
    model = keras.Model(image, x)
    (row,) = ok.Pipeline([ok.QuantizeDynamic(4)]).run(model, data, measure=QUIET).report.rows
    text = "; ".join(row.notes)
    assert re.search(r"values in weights, stored .* % as int4.*; the rest stays float32", text)
    assert "or as they are no kernels: 1 DEPTHWISE_CONV_2D" in text
    assert "are missing or slower: 1 DEPTHWISE_CONV_2D" in text


def test_a_slow_file_is_called_slow(data):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, name="one", padding="same")(image)
    x = layers.Conv2D(32, 3, name="two", padding="same")(x)
    x = layers.Dense(10, activation="softmax", name="classes")(layers.Flatten()(x))
    (row,) = (
        ok.Pipeline([ok.QuantizeINT16x8(20)])
        .run(keras.Model(image, x), data, measure=QUIET)
        .report.rows
    )
    (slow,) = [note for note in row.notes if "slower than the float32 file" in note]
    assert float(re.search(r"([\d.]+) times its time", slow)[1]) > 1.5


def test_answers_of_several_labels_are_not_called_samples():
    """Of four labels of two samples, one is told otherwise."""
    from optkit.quantize.sources import agrees
    from optkit.task import Task

    one = np.array([[0.9, 0.1], [0.2, 0.8]])
    other = np.array([[0.9, 0.6], [0.2, 0.8]])
    said = agrees(Task("multilabel", 2, False, False, 2), one, other)
    assert said == "agrees with the float model on 75.0 % of the answers for 2 samples"
    said = agrees(Task("multiclass", 2, True, False, 2), one, other[:, ::-1])
    assert said == "agrees with the float model on 0.0 % of 2 samples"


def test_a_file_is_as_fast_as_itself():
    file = convert(_convolutions()).artifact
    sample = _inputs(_convolutions(), 1)
    found = in_turns(file, file, sample)
    assert found.ci[0] < found.ratio < found.ci[1]
    assert 0.5 < found.ratio < 2


def test_lookups_run_before_the_file():
    words = keras.Input((1,), dtype="string", name="words")
    numbers = layers.TextVectorization(
        vocabulary=[f"w{k}" for k in range(300)], output_sequence_length=6, name="lookup"
    )(words)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(302, 32, name="table")(numbers))
    model = keras.Model(words, layers.Dense(3, activation="softmax", name="classes")(x))
    rng = np.random.default_rng(0)
    texts = np.array([[" ".join(f"w{k}" for k in row)] for row in rng.integers(0, 300, (60, 4))])
    y = rng.integers(0, 3, 60)
    data = ok.Data(train=(texts, y), validation=(texts[:30], y[:30]), test=(texts[30:], y[30:]))
    for item in (ok.QuantizeFloat16(), ok.QuantizeDynamic(4), ok.QuantizeINT16x8(20)):
        result = ok.Pipeline([item]).run(model, data, measure=QUIET)
        assert result.artifact.front is not None
        expected = model.predict(texts, verbose=0)
        assert np.abs(result.artifact.predict(texts) - expected).max() < 0.02


@pytest.mark.parametrize("make", [ok.QuantizeFloat16, ok.QuantizeDynamic, ok.QuantizeWeights])
def test_data_of_test_alone_are_enough(make, dense):
    model = dense(features=64, units=64)
    rng = np.random.default_rng(0)
    data = ok.Data(test=(rng.normal(size=(30, 64)).astype("float32"), rng.integers(0, 3, 30)))
    result = ok.Pipeline([make()]).run(model, data, measure=QUIET)
    assert result.report.rows[0].status == "ok"


def test_what_was_timed_on_another_machine_is_not_told_of_this_one(tmp_path, monkeypatch):
    from optkit.testing import digits

    x, y = digits(80).train
    data = ok.Data(train=(x.reshape(len(x), -1), y))
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(48), layers.Dense(10, activation="softmax")]
    )

    def reused(item):
        events = []
        ok.Pipeline([item]).run(
            model, data, measure=QUIET, workdir=tmp_path, progress=events.append
        )
        return "reused" in [event.kind for event in events]

    goals = ok.Goals(max_size_mb=1)
    tried = ok.FirstThatMeets([ok.QuantizeFloat16(), ok.QuantizeDynamic()], goals)
    for item in (ok.QuantizeFloat16(), tried):
        assert not reused(item)
        assert reused(item)
    monkeypatch.setattr("optkit.keep.describe_system", lambda: {"processor": "another"})
    for item in (ok.QuantizeFloat16(), tried):
        assert not reused(item)
        assert reused(item)


def test_saved_models_convert(tmp_path):
    model = _dense()
    x = _inputs(model, 40)
    model.export(str(tmp_path / "graph"))
    source = ok.SavedModelArtifact(tmp_path / "graph")
    y = model.predict(x, verbose=0)
    data = ok.Data(train=(x, y), validation=(x, y), test=(x, y))
    for item, share in ((ok.QuantizeWeights(8), 0.02), (ok.QuantizeINT16x8(40), 0.02)):
        result = ok.Pipeline([item], loss="mse").run(source, data, measure=QUIET)
        assert np.abs(result.artifact.predict(x) - y).max() < share * np.abs(y).max()


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("make", [ok.QuantizeDynamic, ok.QuantizeWeights])
@pytest.mark.parametrize("bits", [2, 16, 5, -8])
def test_other_bits_are_refused(make, bits):
    with pytest.raises(ok.PipelineError, match="`bits` must be 8 or 4"):
        make(bits=bits)


@pytest.mark.parametrize("bits", ["8", True, 8.0, None])
def test_bits_that_are_no_whole_number(bits):
    with pytest.raises(ok.ArgumentTypeError, match="`bits`"):
        ok.QuantizeWeights(bits)


def test_arguments_of_16x8():
    with pytest.raises(ok.PipelineError, match="calibration_samples"):
        ok.QuantizeINT16x8(0)
    with pytest.raises(ok.PipelineError, match="`io` must be one of 'int16', 'float32'"):
        ok.QuantizeINT16x8(io="int8")
    with pytest.raises(ok.ArgumentTypeError, match="input_shape"):
        ok.QuantizeINT16x8(input_shape=8)


@pytest.mark.parametrize("item", [ok.QuantizeFloat16(), ok.QuantizeDynamic(), ok.QuantizeWeights()])
def test_a_model_without_weights_is_refused(item, data):
    image = keras.Input((8, 8, 1), name="image")
    model = keras.Model(image, layers.Softmax()(layers.Flatten()(image)), name="bare")
    with pytest.raises(ok.PipelineError, match=r"'bare' has no weights.*Leave this pass out"):
        ok.Pipeline([item]).check(model, data)


@pytest.mark.parametrize("name", PASSES)
def test_files_are_not_quantized_again(name):
    item = PASSES[name][0]()
    with pytest.raises(
        ok.PipelineError, match=rf"{type(item).__name__}.*QuantizeFloat16|QuantizeFloat16"
    ):
        ok.Pipeline([ok.QuantizeFloat16(), item])


def test_layers_that_do_not_convert_are_refused_before_anything_runs(data):
    import tensorflow as tf

    class Odd(layers.Layer):
        def call(self, x):
            return tf.raw_ops.Digamma(x=x + 1.0)

    image = keras.Input((8, 8, 1), name="image")
    x = layers.Dense(10, activation="softmax")(layers.Flatten()(Odd(name="odd")(image)))
    for item in (ok.QuantizeFloat16(), ok.QuantizeDynamic(4), ok.QuantizeINT16x8()):
        with pytest.raises(ok.PipelineError, match=r"was tried out and does not convert.*Digamma"):
            ok.Pipeline([item]).check(keras.Model(image, x, name="odd_one"), data)


# ---------------------------------------------------------------------------------- large files


def test_what_lies_behind_a_flatbuffer_is_read():
    """ai-edge-quantizer writes large constants behind the flatbuffer."""
    model = _seeded(keras.Sequential([keras.Input((512,), name="x"), layers.Dense(800)]))
    x = _inputs(model, 8)
    file = float_file(model)
    ranges = calibrate(file, lambda: iter([[row[None]] for row in x]))
    raw = quantize(file, ranges, scheme=Scheme(weights=8, activations=16))
    for content in (raw, packed(unpacked(raw), len(raw)), file.finish(raw)):
        artifact = ok.TFLiteArtifact(content)
        assert artifact.parameters >= 512 * 800
        np.testing.assert_array_equal(artifact.predict(x), ok.TFLiteArtifact(raw).predict(x))
