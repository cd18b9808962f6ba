"""`QuantizeAware`: the twin against formulas, what is rounded, what comes out and is handed on."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

import optkit as ok
from optkit.learned import LearnedRanges
from optkit.models import signature
from optkit.quantize import Scheme, aware, calibrate, float_file, quantize
from optkit.quantize.aware import addressed, make_plan, make_twin
from optkit.quantize.trained import learned_bits, with_learned
from optkit.testing import digits, small_model

layers = tf_keras.layers
pytestmark = pytest.mark.usefixtures("untimed")


class Listening(ok.ConvertPass):
    """Takes down what was learned, and lets the model through."""

    heard: LearnedRanges | None = None

    def convert(self, artifact, context):
        Listening.heard = context.learned
        return artifact


def rounded(x, low, high):
    """What eight bits make of values in a range, by the book."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def rounded_weights(kernel, bits=8):
    """What few bits make of weights, symmetrically, with a scale for each of the last axis."""
    most = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / most
    return np.rint(kernel / scale) * scale


def set_range(twin, path, low, high):
    for variable, value in zip(twin.ranges[path], (low, high), strict=True):
        variable.assign(value)


def built(*parts, shape=(8, 8, 1), seed=3):
    tf_keras.utils.set_random_seed(seed)
    return tf_keras.Sequential([tf_keras.Input(shape, name="image"), *parts])


# -------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dense_layer_computes_as_the_formula_says(bits):
    model = built(layers.Dense(5, activation="relu", name="out"), shape=(7,))
    model.layers[0].bias.assign(np.linspace(-0.5, 0.5, 5))
    twin = make_twin(model, bits=bits)
    set_range(twin, "image", -1.0, 2.0)
    set_range(twin, "out", 0.0, 1.5)
    x = np.random.default_rng(0).normal(size=(40, 7)).astype("float32")
    kernel, bias = (weight.numpy() for weight in model.weights)
    sums = rounded(x, -1.0, 2.0) @ rounded_weights(kernel, bits) + bias
    wanted = rounded(np.maximum(sums, 0), 0.0, 1.5)
    np.testing.assert_allclose(twin.model(x).numpy(), wanted, atol=1e-5)
    assert np.abs(wanted - model(x).numpy()).max() > 1e-3  # it is not float


def test_a_convolution_with_batch_norm_and_relu_is_rounded_once():
    model = built(
        layers.Conv2D(3, 2, use_bias=False, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        shape=(4, 4, 2),
    )
    norm = model.get_layer("norm")
    for variable, value in zip(
        norm.weights, ([0.5, 2, 1], [0.1, 0, -0.2], [0.2, 0, 0.1], [1, 2, 0.5]), strict=True
    ):
        variable.assign(value)
    twin = make_twin(model)
    set_range(twin, "image", -2.0, 2.0)
    set_range(twin, "relu", 0.0, 2.0)
    assert set(twin.ranges) == {"image", "relu"}
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 2)).astype("float32")
    kernel = rounded_weights(model.get_layer("conv").kernel.numpy())
    taken = rounded(x, -2.0, 2.0)
    sums = np.zeros((2, 3, 3, 3))
    for row in range(3):
        for column in range(3):
            patch = taken[:, row : row + 2, column : column + 2]
            sums[:, row, column] = np.einsum("nhwi,hwio->no", patch, kernel)
    gamma, beta, mean, variance = (weight.numpy() for weight in norm.weights)
    normed = (sums - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    np.testing.assert_allclose(
        twin.model(x).numpy(), rounded(np.maximum(normed, 0), 0.0, 2.0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.DepthwiseConv2D(2, name="layer"), (6, 6, 2)),
        (layers.DepthwiseConv1D(2, depth_multiplier=2, name="layer"), (6, 2)),
        (layers.Conv2DTranspose(4, 2, name="layer"), (6, 6, 2)),
        (layers.Conv1D(4, 2, name="layer"), (6, 2)),
        (layers.Conv2D(4, 2, name="layer"), (6, 6, 2)),
        (layers.Dense(4, name="layer"), (2,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_channel_has_a_scale_of_its_own(layer, shape):
    model = built(layer, shape=shape)
    kernel = model.weights[0]
    # The channels that come out, wherever they stand in the kernel, from small to large.
    small = np.logspace(-4, 0, model.output_shape[-1])
    value = kernel.numpy()
    if type(layer).__name__ == "Conv2DTranspose":
        value *= small[:, None]
    else:
        value *= small.reshape(value.shape[-2:] if "Depthwise" in type(layer).__name__ else (-1,))
    kernel.assign(value)
    twin = make_twin(model)
    x = np.random.default_rng(2).uniform(size=(64, *shape)).astype("float32")
    twin._mode.observing = True  # weights are rounded alone
    wanted, found = model(x).numpy(), twin.model(x).numpy()
    axes = tuple(range(wanted.ndim - 1))
    error = np.sqrt(np.mean((wanted - found) ** 2, axes)) / np.sqrt(np.mean(wanted**2, axes))
    assert 0 < error.max() < 0.02


def test_channels_of_zeros_stay_zeros():
    model = built(layers.Dense(3, name="out"), shape=(4,))
    model.layers[0].kernel.assign(np.eye(4, 3) * [1, 0, 2])
    twin = make_twin(model)
    twin._mode.observing = True
    found = twin.model(np.ones((1, 4), "float32")).numpy()
    np.testing.assert_allclose(found, [[1, 0, 2]], atol=1e-6)


def test_ranges_begin_with_what_the_data_fill_and_follow_in_training():
    model = built(layers.Dense(2, use_bias=False, name="out"), shape=(2,))
    model.layers[0].kernel.assign([[1.0, 0], [0, -1]])
    x = np.array([[0.0, 1], [3, 2], [1, 4], [2, 0]], "float32")
    data = ok.Data(train=(x, x), batch_size=2)
    twin = make_twin(model)
    twin.observe(data.bind(signature(model)).train, 0, 20)
    assert twin.learned() == {"image": (0.0, 4.0), "out": (-4.0, 3.0)}
    twin.model(x / 2, training=True)
    # Half of what it was and half of the batch's, by the share that twenty steps give: 0.9 is the
    # least that is kept, as of a longer training.
    low, high = (-4 * 0.9 - 2 * 0.1), (3 * 0.9 + 1.5 * 0.1)
    np.testing.assert_allclose(twin.learned()["out"], (low, high), atol=0.02)
    assert twin.learned()["image"] == (0.0, 4.0)


# --------------------------------------------------------------------------------- what is rounded


def roles(*parts, shape=(8, 8, 1), **arguments):
    """Which outputs are rounded."""
    plan = make_plan(built(*parts, shape=shape), **arguments)
    return {path for path, role in plan.roles.items() if role.after or role.before}, plan


def test_what_a_kernel_computes_at_once_is_rounded_once():
    after, plan = roles(
        layers.Conv2D(4, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Activation("relu", name="relu"),
        layers.Conv2D(4, 3, activation="relu", name="conv2"),
        layers.BatchNormalization(name="norm2"),  # behind a ReLU: an operation of its own
        layers.MaxPooling2D(name="pool"),
        layers.Flatten(name="flat"),
        layers.Dense(4, name="hidden"),
        layers.ReLU(6.0, name="relu6"),
        layers.Dense(4, name="slanted"),
        layers.LeakyReLU(name="leaky"),
        layers.Dense(3, activation="softmax", name="classes"),
    )
    assert after == {"relu", "conv2", "norm2", "relu6", "slanted", "leaky", "classes"}
    assert plan.weight_bits == dict.fromkeys(("conv", "conv2", "hidden", "slanted", "classes"), 8)
    assert not plan.left_out
    assert plan.roles["classes"].before
    assert not plan.roles["classes"].after


def test_a_layer_whose_output_others_see_is_rounded_before_its_relu():
    image = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    y = layers.ReLU(name="relu")(x)
    z = layers.Add(name="skip")([x, y])
    out = layers.ReLU(name="end")(z)
    both = layers.Concatenate(name="both")([out, layers.Conv2D(2, 3, padding="same", name="c2")(z)])
    plan = make_plan(tf_keras.Model(image, layers.GlobalAveragePooling2D(name="pool")(both)))
    after = {path for path, role in plan.roles.items() if role.after}
    assert after == {"conv", "relu", "skip", "both", "pool"}


def test_four_bits_only_where_kernels_take_them():
    _, plan = roles(
        layers.Conv2D(4, 3, name="conv"),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.Flatten(),
        layers.Dense(3, name="classes"),
        bits=4,
    )
    assert plan.weight_bits == {"conv": 4, "depthwise": 8, "classes": 4}


def test_what_tfmot_does_not_round_is_listed():
    rows = tf_keras.Input((8, 8), name="rows")
    x = layers.GRU(4, return_sequences=True, name="memory")(rows)
    x = layers.LayerNormalization(name="norm")(x) * 2.0
    x = layers.Flatten(name="flat")(layers.Dropout(0.1, name="drop")(x))
    x = layers.Dense(4, activation="elu", name="hidden")(x)
    model = tf_keras.Model(rows, layers.Activation("selu", name="selu")(x), name="mixed")
    plan = make_plan(model, frozenset(), 8)
    times = next(layer.name for layer in model.layers if "multiply" in layer.name)
    assert list(plan.describe()) == [
        "rounded in training: weights of 1 layer to 8 bits, outputs of 1 layer to 8 bits",
        "left in float, as tfmot does not round such layers: memory (GRU), norm (LayerNormalization)",
        f"left in float, code of its own: {times} (TFOpLambda)",
        "left in float, as tfmot does not round such activations: selu (Activation)",
    ]


def test_masks_are_kept():
    tokens = tf_keras.Input((8,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 4, mask_zero=True, name="words")(tokens)
    x = layers.Dense(4, name="each")(x)
    out = layers.Dense(3, name="classes")(layers.GRU(4, name="memory")(x))
    model = tf_keras.Model(tokens, out)
    plan = make_plan(model)
    assert set(plan.roles) == {"classes"}
    assert plan.left_out["words"] == plan.left_out["each"] == "as tfmot's wrapper drops masks"
    ids = np.array([[1, 2, 0, 0, 0, 0, 0, 0]])
    twin = make_twin(model)
    set_range(twin, "classes", -8.0, 8.0)
    assert np.abs(twin.model(ids).numpy() - model(ids).numpy()).max() < 0.05


def test_what_tfmot_refuses_is_left_out(monkeypatch):
    parts = aware._parts()
    wrap = type(parts).wrap

    def refusing(self, layer, role, mode):
        if layer.name == "conv":
            raise ValueError("not this one\nat all")
        return wrap(self, layer, role, mode)

    monkeypatch.setattr(type(parts), "wrap", refusing)
    plan = make_twin(small_model()).plan
    assert plan.left_out == {"conv": "as tfmot refuses it (ValueError: not this one)"}
    assert "classes" in plan.roles


def test_names_of_layers():
    inside = tf_keras.Input((8, 8, 1))
    inner = tf_keras.Model(inside, layers.Conv2D(2, 3, name="conv")(inside), name="inner")
    image = tf_keras.Input((8, 8, 1))
    x = layers.Flatten(name="flat")(inner(image))
    model = tf_keras.Model(image, layers.Dense(3, name="classes")(x), name="outer")
    for name in ("inner/conv", "conv", "inner", "Conv2D"):
        assert "inner/conv" in addressed([name], model, "skip")
    with pytest.raises(ok.PipelineError, match=r"`skip` names 'clases'.*classes"):
        addressed(["clases"], model, "skip")
    with pytest.raises(ok.PipelineError, match=r"no layer of that name"):
        addressed(["con"], model, "skip")  # names are whole


# -------------------------------------------------------------------------------------- from the row


def run(passes, model, data, **settings):
    result = ok.Pipeline([*passes, Listening()], **settings).run(model, data, progress=False)
    return result, result.report.rows[len(passes) - 1], Listening.heard


def test_on_the_digits(trained, data):
    before = [type(layer) for layer in trained.layers]
    result, row, learned = run([ok.QuantizeAware(1, 1e-3, patience=1)], trained, data)
    assert [type(layer) for layer in result.model.layers] == before
    assert [layer.name for layer in result.model.layers] == [x.name for x in trained.layers]
    assert (
        row.notes[0]
        == "rounded in training: weights of 5 layers to 8 bits, outputs of 5 layers to 8 bits"
    )
    study = row.studies[0]
    kinds = [line[0] for line in study.rows]
    assert kinds == ["float", "rounded in training", "full-integer file"]
    assert study.rows[1][2] == 0.0
    assert 0 < study.rows[2][2] < 0.05
    for line in study.rows:
        assert line[1] > 0.9
    assert study.rows[0][1] == pytest.approx(row.validation_after)
    assert set(learned.activations) == {
        "image",
        *(f"digits_cnn_relu{number}" for number in (1, 2, 3)),
        *("digits_cnn_dense", "digits_cnn_classes"),
    }
    assert learned.activations["image"] == (0.0, 1.0)
    assert all(low <= 0 < high for low, high in learned.activations.values())
    assert set(learned.weight_bits.values()) == {8}


def test_statistics_of_batch_norm_fit_the_weights_at_the_end(data):
    model = small_model()
    norm = model.get_layer("norm")
    norm.moving_mean.assign(5 + norm.moving_mean)
    trained = run([ok.QuantizeAware(1, 1e-3)], model, data)[0].model
    given = trained.get_layer("conv")(data.train[0]).numpy()
    found = trained.get_layer("norm").moving_mean.numpy()
    # Of rounded inputs and weights, and so not to the last digit.
    np.testing.assert_allclose(found, given.mean((0, 1, 2)), atol=0.02 * given.std())


def test_zeros_of_pruning_stay(trained, data):
    result, _, _ = run([ok.Prune(0.7, epochs=1), ok.QuantizeAware(1, 1e-2)], trained, data)
    pruned, after = (result.stages[name].model for name in ("Prune", "QuantizeAware"))
    for old, new in zip(pruned.weights, after.weights, strict=True):
        if "kernel" in old.name:
            assert not new.numpy()[old.numpy() == 0].any()
            assert np.abs(new.numpy() - old.numpy()).max() > 1e-3  # and the others moved
    kernel = after.get_layer("digits_cnn_conv2").kernel.numpy()
    assert (kernel == 0).mean() == pytest.approx(0.7, abs=0.01)


def test_models_within_models_constraints_there_and_frozen_layers():
    inside = tf_keras.Input((8, 8, 1), name="inside")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inside)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    inner = tf_keras.Model(inside, layers.Conv2D(4, 3, name="fixed")(x), name="inner")
    inner.get_layer("fixed").trainable = False
    image = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Flatten(name="flat")(inner(image))
    model = tf_keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(x))
    passes = [ok.Prune(0.5, epochs=1), ok.QuantizeAware(1, 1e-2)]
    result, _, learned = run(passes, model, digits(200))
    after = result.model.get_layer("inner")
    assert (after.get_layer("conv").kernel.numpy() == 0).mean() == pytest.approx(0.5, abs=0.03)
    same = zip(after.get_layer("fixed").weights, inner.get_layer("fixed").weights, strict=True)
    assert all(np.array_equal(one.numpy(), other.numpy()) for one, other in same)
    assert not after.get_layer("fixed").trainable
    assert {"image", "inner/relu", "inner/fixed", "classes"} == set(learned.activations)
    assert {"inner/conv", "inner/fixed", "classes"} == set(learned.weight_bits)


def test_several_inputs_and_outputs_through_shared_layers():
    left, right = (tf_keras.Input((8, 4, 1), name=name) for name in ("left", "right"))
    conv, flat = layers.Conv2D(4, 3, activation="relu", name="conv"), layers.Flatten(name="flat")
    x = layers.Concatenate(name="join")([flat(conv(part)) for part in (left, right)])
    y = layers.Dense(x.shape[-1], name="back")(x)
    x = layers.Add(name="skip")([x, y])
    outputs = [
        layers.Dense(10, activation="softmax", name="classes")(x),
        layers.Dense(1, activation="sigmoid", name="odd")(x),
    ]
    model = tf_keras.Model([left, right], outputs)
    plain = digits(200)
    splits = {
        name: ({"left": x[:, :, :4], "right": x[:, :, 4:]}, {"classes": y, "odd": y % 2})
        for name in ("train", "validation", "test")
        for x, y in [getattr(plain, name)]
    }
    result, row, learned = run([ok.QuantizeAware(2, 3e-3)], model, ok.Data(**splits))
    assert set(learned.activations) == {
        *("left", "right", "conv", "join", "back", "skip", "classes", "odd"),
    }
    assert row.studies[0].rows[2][0] == "full-integer file"
    moved = zip(result.model.weights, model.weights, strict=True)
    assert all(np.abs(one.numpy() - other.numpy()).max() > 0 for one, other in moved)


def test_four_bits_are_better_learned_than_rounded_to():
    data = digits(1200)
    model = built(
        layers.Conv2D(2, 3, activation="relu", name="conv"),
        layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
        layers.Conv2D(4, 3, activation="relu", name="conv2"),
        layers.Flatten(name="flat"),
        layers.Dense(10, activation="softmax", name="classes"),
        seed=1,
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.learning_rate.assign(0.01)
    model.fit(*data.train, epochs=20, verbose=0)
    x, y = (np.concatenate(parts) for parts in zip(data.validation, data.test, strict=True))
    bits = LearnedRanges({}, {"conv": 4, "conv2": 4, "classes": 4})

    def accuracy(source, learned):
        found = ok.TFLiteArtifact(four_bit_file(source, learned, data)).predict(x)
        return (found.argmax(-1) == y).mean()

    result, _, learned = run([ok.QuantizeAware(4, 2e-3, weight_bits=4)], model, data)
    tuned, _, _ = run([ok.FineTune(4, 2e-3, patience=None)], model, data)
    assert {path: learned.weight_bits[path] for path in bits.weight_bits} == bits.weight_bits
    reached = accuracy(result.model, learned)
    assert reached > accuracy(model, bits) + 0.02
    assert reached > accuracy(tuned.model, bits) + 0.02  # it is not the further training


def four_bit_file(model, learned, data):
    file = float_file(model)
    samples = [[x[None]] for x in data.train[0][:50]]
    ranges = with_learned(file, calibrate(file, lambda: iter(samples)), learned)
    return quantize(file, ranges, scheme=Scheme(layer_weights=learned_bits(file, learned)))


def test_learned_ranges_find_their_tensors():
    model = small_model()
    file = float_file(model)
    samples = [[np.random.default_rng(0).uniform(size=(1, 8, 8, 1)).astype("float32")]]
    measured = calibrate(file, lambda: iter(samples))
    learned = LearnedRanges({"image": (-1.0, 2.0), "relu": (0.0, 9.0), "classes": (-7.0, 7.0)})
    found = with_learned(file, measured, learned)
    by_kind = {item.kind: item.outputs[0] for item in file.operations}
    changed = {name for name in found if found[name] != measured[name]}
    assert changed == {file.inputs[0], by_kind["CONV_2D"], by_kind["FULLY_CONNECTED"]}
    assert found[by_kind["CONV_2D"]] == (0.0, 9.0)
    assert found[by_kind["FULLY_CONNECTED"]] == (-7.0, 7.0)  # what goes into the softmax
    bits = learned_bits(file, LearnedRanges({}, {"conv": 4, "classes": 8}))
    assert [file.operations[index].kind for index in bits] == ["CONV_2D"]


def test_where_the_file_fuses_more_than_the_twin_the_last_layer_says():
    layers = tf_keras.layers
    pool, relu = layers.AveragePooling2D(name="pool"), layers.ReLU(name="relu")
    model = built(layers.Conv2D(4, 3), pool, relu, layers.Flatten(), layers.Dense(3))
    assert {"pool", "relu"} <= set(make_plan(model).roles)
    file = float_file(model)
    (fused,) = [item for item in file.operations if "pool" in item.layers]
    assert fused.layers == ("relu", "pool")
    measured = dict.fromkeys(
        (name for item in file.operations for name in item.outputs), (0.0, 1.0)
    )
    learned = LearnedRanges({"pool": (-5.0, 5.0), "relu": (0.0, 4.0)})
    assert with_learned(file, measured, learned)[fused.outputs[0]] == (0.0, 4.0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(4, name="layer"), (6,)),
        (layers.Dense(4, name="layer"), (6, 2)),
        (layers.Conv1D(4, 2, name="layer"), (6, 2)),
        (layers.SeparableConv2D(4, 2, name="layer"), (6, 6, 2)),
        (layers.DepthwiseConv2D(2, name="layer"), (6, 6, 2)),
        (layers.Conv2DTranspose(4, 2, name="layer"), (6, 6, 2)),
        (layers.Dense(4, activation="swish", name="layer"), (6,)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_the_file_rounds_where_the_twin_does(layer, shape, norm):
    tail = [layers.BatchNormalization(name="norm")] if norm else []
    copy = type(layer).from_config(layer.get_config())
    model = built(
        copy, *tail, layers.Flatten(name="flat"), layers.Dense(3, name="end"), shape=shape
    )
    random = np.random.default_rng(4)
    for weight in model.weights:
        low, high = (0.5, 1.5) if "norm" in weight.name else (-1, 1)
        weight.assign(random.uniform(low, high, weight.shape))
    x = random.uniform(size=(64, *shape)).astype("float32")
    data = ok.Data(train=(x, np.zeros(64)), batch_size=16)
    twin = make_twin(model)
    twin.observe(data.bind(signature(model)).train, 0, 100)
    learned = LearnedRanges(twin.learned(), twin.plan.weight_bits)
    file = float_file(model)
    measured = calibrate(file, lambda: iter([[row[None]] for row in x]))
    # Other ranges than were measured, so that it shows which are taken.
    odd = {path: (low * 1.7, high * 1.7) for path, (low, high) in learned.activations.items()}
    found = with_learned(file, measured, LearnedRanges(odd, learned.weight_bits))
    assert sum(found[name] != measured[name] for name in found) == len(odd)
    for path, ends in odd.items():
        set_range(twin, path, *ends)
    file_outputs = ok.TFLiteArtifact(quantize(file, found)).predict(x)
    twin_outputs, plain = twin.model(x).numpy(), model(x).numpy()
    step = (odd["end"][1] - odd["end"][0]) / 255
    assert np.abs(file_outputs - twin_outputs).max() < 4 * step
    assert np.abs(plain - twin_outputs).max() > 0


# ----------------------------------------------------------------------------------------- refusals


def test_nothing_to_round_is_refused_before_anything_trains():
    rows = tf_keras.Input((8, 8), name="rows")
    model = tf_keras.Model(rows, layers.GRU(10, activation="softmax", name="memory")(rows))
    data = ok.Data(train=(np.zeros((8, 8, 8), "float32"), np.arange(8)))
    with pytest.raises(ok.PipelineError, match=r"no layer whose weights can be rounded.*GRU"):
        ok.Pipeline([ok.QuantizeAware(1)]).check(model, data)


def test_everything_skipped_is_refused(data):
    with pytest.raises(ok.PipelineError, match=r"as `skip` says: conv"):
        ok.Pipeline([ok.QuantizeAware(1, skip=["Conv2D", "classes"])]).check(small_model(), data)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_bits": 5}, "must be 8 or 4"),
        ({"skip": "conv"}, "list of strings"),
        ({"optimizer": "fastest"}, "optimizer"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ok.OptkitError, match=said):
        ok.QuantizeAware(**arguments)


def test_from_json(tmp_path):
    pipeline = ok.Pipeline([ok.QuantizeAware(2, 1e-3, weight_bits=4, skip=["conv"], patience=2)])
    pipeline.to_json(tmp_path / "pipeline.json")
    assert repr(ok.Pipeline.from_json(tmp_path / "pipeline.json")) == repr(pipeline)
