"""Balancing brings activations into better shape, and outputs stay what they were."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_repairs import (
    KINDS,
    UNIFORM,
    assert_same,
    names,
    norm,
    outputs,
    randomize,
    samples,
    sequential,
)

from optkit.errors import DataError
from optkit.models import is_batch_norm
from optkit.quantize import calibrate, float_file, quantize
from optkit.quantize.judge import relative_error
from optkit.quantize.repairs import balance

layers = keras.layers


def batches(model, count=4):
    """What activations are looked at on; `assert_same` has the first two among its own."""
    return [samples(model, seed) for seed in range(count)]


def values_of(model, name, inputs):
    """All values of a layer, a row for each place and a column for each channel."""
    probe = keras.Model(model.inputs, model.get_layer(name).output)
    found = np.concatenate([probe(leaves, training=False).numpy() for leaves in inputs])
    return found.reshape(-1, found.shape[-1]).astype(np.float64)


def offsets(values):
    """Independent of the library: the mean, moved until all channels lie within the widest one."""
    low, high, mean = values.min(0), values.max(0), values.mean(0)
    widest = np.argmax(high - low)
    found = []
    for channel in range(values.shape[1]):
        offset = mean[channel]
        if low[channel] - offset < low[widest] - mean[widest]:
            offset = low[channel] - low[widest] + mean[widest]
        if high[channel] - offset > high[widest] - mean[widest]:
            offset = high[channel] - high[widest] + mean[widest]
        found.append(offset)
    return np.array(found)


def biases(layer, values):
    layer.bias.assign(values)


# ------------------------------------------------------------------------------------------- centers


def off_center(*behind, shape=(8, 8, 3), channels=5):
    model = sequential(layers.Conv2D(channels, 3, name="first"), *behind, shape=shape)
    biases(model.get_layer("first"), np.linspace(-4, 6, channels))
    return model


def test_means_go_into_the_biases_behind():
    model = off_center(layers.Conv2D(4, 3, activation="relu", name="second"))
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert repaired.done == ("first: centered",)
    assert repaired.exact
    assert not repaired.left
    assert_same(model, repaired)
    offset = offsets(values_of(model, "first", given_to))
    for name in ("first", "second"):
        old, new = model.get_layer(name), repaired.model.get_layer(name)
        np.testing.assert_array_equal(old.kernel, new.kernel)
        moved = -offset if name == "first" else old.kernel.numpy().sum((0, 1)).T @ offset
        np.testing.assert_allclose(new.bias, old.bias.numpy() + moved, rtol=1e-4, atol=1e-5)
    before, after = (values_of(m, "first", given_to) for m in (model, repaired.model))
    assert np.ptp(after) == pytest.approx(np.ptp(before, axis=0).max(), rel=1e-4)
    assert np.ptp(after) < 0.5 * np.ptp(before)
    again = balance(repaired.model, given_to)
    assert again.model is repaired.model
    assert not again.done


def test_a_skewed_channel_does_not_make_the_tensor_wider():
    model = sequential(
        layers.Dense(2, name="first"), layers.Dense(2, activation="relu"), shape=(2,)
    )
    model.get_layer("first").set_weights([np.eye(2), np.zeros(2)])
    values = np.full((10, 2), [10.0, 0.0], np.float32)
    values[0], values[1] = [0, 10], [0, 0]
    before = values_of(model, "first", [[values]])
    after = values_of(balance(model, [[values]]).model, "first", [[values]])
    assert np.ptp(before) == pytest.approx(10)
    assert np.ptp(before - before.mean(0)) > 16  # what the means alone would make of it
    assert np.ptp(after) == pytest.approx(10)


@pytest.mark.parametrize("kind", UNIFORM)
def test_every_kind_of_layer_makes_up_for_means(kind):
    make, shape = KINDS[kind]
    model = sequential(
        layers.Dense(shape[-1], name="first"),
        make(name="second"),
        layers.Activation("tanh"),
        shape=shape,
    )
    biases(model.get_layer("first"), np.linspace(-4, 6, shape[-1]))
    repaired = balance(model, batches(model))
    assert "first: centered" in repaired.done
    assert_same(model, repaired)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_centered(kind):
    make, shape = KINDS[kind]
    model = sequential(make(name="first"), layers.Flatten(), layers.Dense(4), shape=shape)
    biases(model.get_layer("first"), np.linspace(-4, 6, model.get_layer("first").bias.shape[0]))
    repaired = balance(model, batches(model))
    assert "first: centered" in repaired.done
    assert_same(model, repaired)


def test_layers_without_a_bias_get_one():
    model = sequential(
        layers.Dense(3, use_bias=False, name="first"),
        layers.Dense(4, use_bias=False, name="second"),
        layers.Softmax(),
        shape=(2,),
    )
    given_to = [np.random.default_rng(0).uniform(2, 3, (20, 2)).astype("float32")]
    repaired = balance(model, given_to)
    assert repaired.done == ("first: centered",)
    np.testing.assert_allclose(
        repaired.model.get_layer("first").bias, -offsets(values_of(model, "first", given_to)), 1e-5
    )
    assert_same(model, repaired)


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (lambda: [layers.Conv2D(4, 3, padding="same", name="pads")], "'pads' behind it pads"),
        (lambda: [layers.ZeroPadding2D(1, name="zeros"), layers.Conv2D(4, 3)], "'zeros'"),
        (lambda: [layers.Conv2DTranspose(4, 3, name="across")], "'across' behind it pads"),
        (lambda: [layers.LayerNormalization(name="other")], "LayerNormalization"),
        (lambda: [layers.Flatten()], "an output of the model needs it"),
    ],
)
def test_means_stay_where_something_does_not_let_them_through(behind, reason):
    model = off_center(*behind())
    repaired = balance(model, batches(model))
    assert repaired.model is model
    assert not repaired.done
    assert reason in repaired.left["first"]


@pytest.mark.parametrize("bend", [layers.ReLU, lambda: layers.ReLU(6.0), layers.Softmax])
def test_a_layer_with_its_activation_behind_it_is_nothing_left(bend):
    model = off_center(bend(), layers.Conv2D(4, 3, activation="relu", name="second"))
    repaired = balance(model, batches(model))
    assert repaired.model is model
    assert not repaired.left


def test_same_padding_that_pads_nothing_is_no_obstacle():
    model = off_center(layers.Conv2D(4, 1, padding="same", activation="relu"))
    assert balance(model, batches(model)).done == ("first: centered",)


def test_means_pass_pooling_dropout_and_flattening():
    model = off_center(
        layers.AveragePooling2D(2, padding="same"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.2),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    )
    repaired = balance(model, batches(model))
    assert repaired.done == ("first: centered",)
    assert_same(model, repaired)


def residual():
    image = keras.Input((8, 8, 3))
    make = layers.Conv2D
    one = make(4, 1, name="one")(image)
    seen = make(6, 3, padding="same", activation="relu", name="wide")(make(5, 1, name="in")(one))
    return image, one, make(4, 1, name="two")(seen)


def test_residual_streams_are_centered_as_a_whole():
    image, one, two = residual()
    summed = layers.Add()([one, two])
    three = layers.Conv2D(4, 1, name="three")(
        layers.Conv2D(6, 3, padding="same", activation="relu")(
            layers.Conv2D(6, 1, activation="relu", name="inside")(summed)
        )
    )
    whole = layers.Add()([summed, three, two])
    last = layers.Dense(3, name="last")(layers.GlobalAveragePooling2D()(whole))
    model = randomize(keras.Model(image, last))
    for name, shift in (("one", 5.0), ("two", -3.0), ("three", 8.0)):
        biases(model.get_layer(name), shift * np.arange(1, 5))
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert {text.partition(":")[0] for text in repaired.done} == {"one", "two", "three"}
    assert "pads with zeros" in repaired.left["in"]
    assert_same(model, repaired)
    moved = {name: offsets(values_of(model, name, given_to)) for name in ("one", "two", "three")}
    kernel = model.get_layer("last").kernel.numpy()
    # 'two' is in the sum and once more behind it.
    added = kernel.T @ (moved["one"] + 2 * moved["two"] + moved["three"])
    np.testing.assert_allclose(
        repaired.model.get_layer("last").bias, model.get_layer("last").bias + added, rtol=1e-4
    )


@pytest.mark.parametrize("join", ["Add", "Average", "Subtract", "Concatenate"])
@pytest.mark.parametrize("twice", [True, False])
def test_means_pass_joins(join, twice):
    image, one, two = residual()
    joined = getattr(layers, join)()([one, one] if twice else [one, two])
    joined = layers.Concatenate()([joined, layers.LayerNormalization(name="other")(two)])
    last = layers.Conv2D(3, 3, activation="tanh")(joined)
    model = randomize(keras.Model(image, last))
    biases(model.get_layer("one"), [5, -5, 10, 1])
    repaired = balance(model, batches(model))
    assert "one: centered" in repaired.done
    assert "two: centered" not in repaired.done
    assert "'other' (LayerNormalization)" in repaired.left["two"]
    assert_same(model, repaired)


@pytest.mark.parametrize("add", [lambda a, b: a + b, tf.add])
def test_a_sum_by_an_operator_is_a_sum(add):
    image, one, two = residual()
    model = randomize(keras.Model(image, layers.Dense(3, activation="tanh")(add(one, two))))
    repaired = balance(model, batches(model))
    assert {"one: centered", "two: centered"} <= set(repaired.done)
    assert_same(model, repaired)
    more = randomize(keras.Model(image, layers.Dense(3, activation="tanh")(add(one, 1.0))))
    assert "TFOpLambda" in balance(more, batches(more)).left["one"]


def test_sums_of_other_shapes_and_joins_that_know_no_summand():
    image, one, two = residual()
    gate = layers.Dense(4, name="gate")(layers.GlobalAveragePooling2D()(one))
    summed = layers.Add()([two, gate])
    model = randomize(keras.Model(image, layers.Conv2D(2, 3, activation="tanh")(summed)))
    biases(model.get_layer("gate"), [9, 1, 1, 4])
    repaired = balance(model, batches(model))
    assert {"gate: centered", "two: centered"} <= set(repaired.done)
    assert_same(model, repaired)
    for join in (layers.Maximum(), layers.Multiply()):
        model = randomize(keras.Model(image, layers.Conv2D(2, 3)(join([one, two]))))
        repaired = balance(model, batches(model))
        assert repaired.model is model
        assert type(join).__name__ in repaired.left["two"]


def test_batch_norms_that_stay_make_up_for_means():
    image, one, two = residual()
    summed = layers.Add()([one, two])
    normed = layers.ReLU()(norm()(summed))
    three = layers.Conv2D(4, 1, name="three")(normed)
    last = layers.Dense(2)(layers.Add()([summed, three]))
    model = randomize(keras.Model(image, last))
    biases(model.get_layer("one"), [5, -5, 10, 1])
    repaired = balance(model, batches(model))
    assert {"one: centered", "two: centered", "three: centered"} <= set(repaired.done)
    assert "norm" in repaired.left  # of folding it
    assert any(is_batch_norm(layer) for layer in repaired.model.layers)
    assert_same(model, repaired)


def test_what_one_of_several_does_not_take_stays():
    model = off_center(layers.Conv2D(4, 1, activation="relu"))
    inside = model.get_layer("first").output
    more = keras.Model(model.input, [model.output, layers.Activation("tanh")(inside)])
    assert balance(more, batches(more)).model is more
    shared = layers.Conv2D(5, 1, activation="relu", name="shared")
    more = keras.Model(model.input, [model.output, shared(shared(inside))])
    repaired = balance(more, batches(more))
    assert repaired.model is more
    assert "'shared' is used in several places" in repaired.left["first"]


# ------------------------------------------------------------------------------------------- widens


def narrow(*between, behind=None, shape=(8, 8, 3), channels=5, first=None):
    """A layer of channels of different ranges, and what is given in front of a depthwise one."""
    model = sequential(
        first or layers.Conv2D(channels, 3, name="first"),
        *between,
        behind or layers.DepthwiseConv2D(3, padding="same", name="behind"),
        layers.Activation("tanh"),
        shape=shape,
    )
    spread(model.get_layer("first"))
    return model


def spread(layer):
    weights = layer.get_weights()
    for place in (-2, -1) if len(weights) > 1 else (-1,):
        values = weights[place]
        scale = np.geomspace(0.1, 3, values.shape[-1])
        weights[place] = values * scale
    layer.set_weights(weights)


def test_narrow_channels_come_to_the_range_of_the_widest():
    model = narrow(layers.ReLU(name="relu"))
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert repaired.done == ("first: widened for 'behind'",)
    assert repaired.exact
    assert_same(model, repaired)
    largest = values_of(model, "relu", given_to).max(0)
    factor = largest.max() / largest
    assert factor.max() > 3
    for name, scale in (("first", factor), ("behind", 1 / factor)):
        old, new = model.get_layer(name), repaired.model.get_layer(name)
        along = scale if name == "first" else scale[:, np.newaxis]
        np.testing.assert_allclose(
            new.get_weights()[0], old.get_weights()[0] * along, rtol=1e-5, atol=1e-7
        )
        bias = old.bias.numpy() * (scale if name == "first" else 1)
        np.testing.assert_allclose(new.bias, bias, rtol=1e-5, atol=1e-7)
    now = values_of(repaired.model, "relu", given_to).max(0)
    np.testing.assert_allclose(now, largest.max(), rtol=1e-4)
    assert balance(repaired.model, given_to).model is repaired.model


def test_ranges_below_zero_count_as_well():
    model = narrow(layers.LeakyReLU(0.5, name="leaky"))
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert repaired.done == ("first: widened for 'behind'",)
    before, after = (values_of(m, "leaky", given_to) for m in (model, repaired.model))
    room = np.minimum(before.max() / before.max(0), before.min() / before.min(0))
    np.testing.assert_allclose(after, before * room, rtol=1e-3, atol=1e-4)
    assert_same(model, repaired)


def test_at_most_64_times_and_dead_channels_not_at_all():
    model = narrow(layers.ReLU(name="relu"))
    first = model.get_layer("first")
    first.set_weights([part * [0, 1, 1e-6, 1e-3, 1] for part in first.get_weights()])
    first.bias.assign([-1, 1, 0, 1e-3, 2])
    given_to = batches(model)
    repaired = balance(model, given_to)
    before, after = (values_of(m, "relu", given_to).max(0) for m in (model, repaired.model))
    assert before[0] == 0
    assert before[3] < before.max() / 70
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(after[3], 64 * before[3], rtol=1e-5)
    np.testing.assert_allclose(after[[1, 4]], before.max(), rtol=1e-5)
    assert_same(model, repaired)


DEPTHWISE = [name for name in KINDS if name.startswith(("depthwise", "separable"))]


@pytest.mark.parametrize("kind", DEPTHWISE)
def test_widened_in_front_of_every_kind(kind):
    make, shape = KINDS[kind]
    model = sequential(
        layers.Dense(shape[-1], activation="relu", name="first"), make(name="one"), shape=shape
    )
    spread(model.get_layer("first"))
    repaired = balance(model, batches(model))
    assert repaired.done == ("first: widened for 'one'",)
    assert repaired.exact
    assert_same(model, repaired)


@pytest.mark.parametrize("kind", [name for name in KINDS if len(KINDS[name][1]) == 3])
def test_every_kind_of_layer_is_widened(kind):
    make, shape = KINDS[kind]
    model = narrow(layers.ReLU(), first=make(name="first"), shape=shape)
    repaired = balance(model, batches(model))
    assert "first: widened for 'behind'" in repaired.done
    assert_same(model, repaired)


@pytest.mark.parametrize(
    "between",
    [
        lambda: [layers.ReLU(), layers.ZeroPadding2D(1)],
        lambda: [layers.PReLU(shared_axes=[1, 2]), layers.MaxPooling2D(2)],
        lambda: [layers.AveragePooling2D(2), layers.ReLU(), layers.Dropout(0.3)],
        lambda: [layers.ReLU(), layers.BatchNormalization(name="norm")],
        lambda: [layers.Activation("relu")],
        list,
    ],
)
def test_widened_through_what_lets_positive_factors_through(between):
    model = narrow(*between())
    repaired = balance(model, batches(model))
    assert "first: widened for 'behind'" in repaired.done
    assert repaired.exact
    assert_same(model, repaired)


@pytest.mark.parametrize("within", [True, False])
def test_through_relu6_it_is_exact_within_twice_what_was_seen(within):
    cut = {"activation": tf.nn.relu6} if within else {}
    model = sequential(
        layers.Dense(3, name="first", **cut),
        *([] if within else [layers.ReLU(6.0)]),
        layers.DepthwiseConv2D(1, name="behind"),
        shape=(1, 1, 3),
    )
    model.get_layer("first").set_weights([np.eye(3), np.zeros(3)])
    model.get_layer("behind").set_weights([np.ones((1, 1, 3, 1)), np.zeros(3)])
    seen = np.array([[0.5, 2.0, 10.0], [0.1, 1.0, 4.0]], np.float32).reshape(2, 1, 1, 3)
    repaired = balance(model, [seen])
    assert not repaired.exact
    assert repaired.done == ("first: widened for 'behind', exact within 2 times what was seen",)
    # Up to 3, half of what the ReLU6 lets through; the third one reaches 6 and stays.
    factor = np.array([3 / 0.5, 3 / 2, 1])
    np.testing.assert_allclose(repaired.model.get_layer("first").kernel, np.diag(factor), 1e-6)
    more = np.random.default_rng(0).uniform(0, [1.0, 4.0, 20.0], (50, 1, 1, 3)).astype("float32")
    np.testing.assert_allclose(repaired.model(more), model(more), rtol=1e-5)
    beyond = (more * 4).astype("float32")
    expected = np.minimum(beyond, 6 / factor)
    assert np.abs(expected - model(beyond)).max() > 1  # it does differ
    np.testing.assert_allclose(repaired.model(beyond), expected, rtol=1e-5)


def test_a_relu6_that_has_no_room_left_is_left_and_exact():
    model = narrow(layers.ReLU(6.0))
    biases(model.get_layer("first"), np.full(5, 20.0))
    repaired = balance(model, batches(model))
    assert repaired.model is model
    assert repaired.exact


def test_a_threshold_and_other_activations_end_it():
    for bend in (layers.ReLU(threshold=0.5), layers.Activation("tanh"), layers.ELU()):
        model = narrow(bend)
        repaired = balance(model, batches(model))
        assert repaired.model is model
        assert repaired.left["behind"] == (
            f"its channels are not widened: it follows {bend.name!r} ({type(bend).__name__})"
        )
    model = narrow(first=layers.Conv2D(5, 3, activation="sigmoid", name="first"))
    assert "factors do not pass" in balance(model, batches(model)).left["behind"]
    model = sequential(layers.DepthwiseConv2D(3, name="behind"), shape=(8, 8, 3))
    assert "an input of the model" in balance(model, batches(model)).left["behind"]


def test_what_others_take_is_widened_where_all_of_them_are_depthwise():
    image = keras.Input((8, 8, 3))
    base = layers.Conv2D(5, 3, activation="relu", name="base")(image)
    one = layers.DepthwiseConv2D(3, name="one", activation="tanh")(base)
    other = layers.SeparableConv2D(4, 3, name="other", activation="tanh")(base)
    model = randomize(keras.Model(image, [one, other]))
    spread(model.get_layer("base"))
    repaired = balance(model, batches(model))
    assert repaired.done[0].partition(" for ")[0] == "base: widened"
    assert {"'one'", "'other'"} <= set(repaired.done[0].split())
    assert_same(model, repaired)
    plain = layers.Conv2D(4, 1, name="plain")(base)
    for more, why in ((plain, "'plain' has one scale"), (base, "an output of the model")):
        model = randomize(keras.Model(image, [one, more]))
        repaired = balance(model, batches(model))
        assert repaired.model is model
        assert why in repaired.left["one"]


def test_channels_that_are_added_share_a_factor():
    image = keras.Input((8, 8, 3))
    one = layers.Conv2D(4, 1, activation="relu", name="one")(image)
    two = layers.DepthwiseConv2D(3, padding="same", name="depth", activation="relu")(one)
    summed = layers.Add(name="sum")([one, two])
    last = layers.DepthwiseConv2D(3, name="last", activation="tanh")(summed)
    model = randomize(keras.Model(image, last))
    for name in ("one", "depth"):  # so that no channel is silent
        biases(model.get_layer(name), np.full(4, 2.0))
    spread(model.get_layer("one"))
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert repaired.done == (
        "one: widened for 'depth' and 'last'",
        "depth: widened for 'depth' and 'last'",
    )
    assert_same(model, repaired)
    room = [values_of(model, name, given_to).max(0) for name in ("one", "depth", "sum")]
    factor = np.min([largest.max() / largest for largest in room], axis=0)
    assert factor.max() > 1.5
    np.testing.assert_allclose(
        repaired.model.get_layer("one").bias, model.get_layer("one").bias * factor, rtol=1e-4
    )
    # With a product in the stream there is no factor that all of them share.
    gated = layers.Multiply()([one, two])
    model = randomize(keras.Model(image, layers.DepthwiseConv2D(3, name="last")(gated)))
    assert balance(model, batches(model)).model is model


def test_side_by_side_the_widest_of_all_is_the_measure():
    image = keras.Input((8, 8, 3))
    one = layers.Conv2D(4, 1, activation="relu", name="one")(image)
    other = layers.Conv2D(3, 1, name="other")(image)
    both = layers.Concatenate(name="both")([one, layers.ReLU()(other)])
    last = layers.DepthwiseConv2D(3, depth_multiplier=2, name="last", activation="tanh")(both)
    model = randomize(keras.Model(image, last))
    weights = model.get_layer("other").get_weights()
    model.get_layer("other").set_weights([part / 5 for part in weights])
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert set(repaired.done) == {"one: widened for 'last'", "other: widened for 'last'"}
    assert_same(model, repaired)
    before, after = (values_of(m, "both", given_to).max(0) for m in (model, repaired.model))
    np.testing.assert_allclose(after, before.max(), rtol=1e-4)


def test_centered_and_widened_at_once():
    model = narrow(behind=layers.DepthwiseConv2D(3, name="behind"))
    biases(model.get_layer("first"), [5, -4, 3, 2, 1])
    given_to = batches(model)
    repaired = balance(model, given_to)
    assert repaired.done == ("first: centered", "first: widened for 'behind'")
    assert_same(model, repaired)
    before, after = (values_of(m, "first", given_to) for m in (model, repaired.model))
    assert np.ptp(after, axis=0).min() > 3 * np.ptp(before, axis=0).min()
    assert np.ptp(after) == pytest.approx(np.ptp(before, axis=0).max(), rel=1e-4)


# ------------------------------------------------------------------------------------- models, data


def test_models_within_models_are_opened():
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, name="first"),
            layers.Conv2D(4, 1, activation="relu", name="second"),
            layers.DepthwiseConv2D(3, name="third"),
        ],
        name="inner",
    )
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model({"image": image}, {"b": layers.Flatten(name="flat")(inner(image))})
    randomize(model)
    spread(inner.get_layer("second"))
    given_to = [{"image": samples(model, seed)[0]} for seed in range(3)]
    repaired = balance(model, given_to)
    assert set(repaired.names) == {f"inner/{name}" for name in ("first", "second", "third")} | {
        "image",
        "flat",
    }
    assert len(repaired.done) == 2
    assert_same(model, repaired)
    inner = keras.Sequential([*inner.layers[:2], norm(), *inner.layers[2:]], name="inner")
    model = randomize(keras.Model(image, inner(image)))
    repaired = balance(model, batches(model))
    assert repaired.done[0].startswith("norm: into ")
    assert repaired.names["inner/second"] == "second"
    assert_same(model, repaired)


def test_masks_integers_and_open_sizes():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    seen = layers.Embedding(10, 5, mask_zero=True)(tokens)
    seen = layers.Dense(4, name="first")(seen)
    seen = layers.Dense(4, activation="relu", name="second")(seen)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(seen)))
    randomize(model)
    biases(model.get_layer("first"), [5, -4, 3, 2])
    given_to = [np.random.default_rng(n).integers(0, 10, (4, 3 + n)) for n in range(3)]
    repaired = balance(model, given_to)  # int64, and of several lengths
    assert repaired.done == ("first: centered",)
    for words in given_to:
        np.testing.assert_allclose(
            outputs(model, [words]), outputs(repaired.model, [words]), rtol=1e-4, atol=1e-5
        )


def test_batches_may_come_one_by_one_or_from_a_function():
    model = off_center(layers.Conv2D(4, 1, activation="relu", name="second"))
    rows = np.concatenate([leaves[0] for leaves in batches(model, 14)])
    assert len(rows) > 32
    expected = balance(model, [rows]).model.get_layer("first").bias
    for same in (
        [[rows[i : i + 1]] for i in range(len(rows))],
        lambda: iter([[rows[:7]], [rows[7:7]], [rows[7:]]]),
    ):
        found = balance(model, same).model.get_layer("first").bias
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    fixed = keras.Sequential([keras.Input(batch_shape=(3, 8, 8, 3)), *model.layers])
    assert balance(fixed, [[rows[i : i + 3]] for i in range(0, 12, 3)]).done == ("first: centered",)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "no sample"),
        ([[np.zeros((0, 8, 8, 3), np.float32)]], "no sample"),
        ([[np.zeros((2, 8, 8, 3), np.float32)] * 2], "one array for each of the 1"),
        ([[np.float32(1)]], "no sample"),
        ([[np.zeros((2, 8, 8, 4), np.float32)]], r"shapes \[\(2, 8, 8, 4\)\]"),
        ([[np.full((2, 8, 8, 3), np.nan, np.float32)]], "NaN or infinite"),
    ],
)
def test_batches_that_do_not_fit_are_refused(wrong, said):
    model = off_center(layers.Conv2D(4, 1, activation="relu"))
    with pytest.raises(DataError, match=said):
        balance(model, wrong)


def test_constant_activations_and_models_with_nothing_to_do():
    model = off_center(layers.Conv2D(4, 1, activation="relu", name="second"))
    first = model.get_layer("first")
    first.set_weights([first.kernel.numpy() * 0, np.arange(5.0)])
    biases(model.get_layer("second"), np.full(4, 9.0))
    repaired = balance(model, batches(model))
    np.testing.assert_allclose(repaired.model.get_layer("first").bias, 0, atol=1e-6)
    assert_same(model, repaired)
    assert balance(repaired.model, batches(model)).model is repaired.model
    model = sequential(layers.Dense(4, activation="relu"), layers.Dense(3), shape=(5,))
    repaired = balance(model, [])  # nothing to look at
    assert repaired.model is model
    assert [*repaired.left.values()] == ["not centered: an output of the model needs it"]


def test_the_model_that_was_given_stays_as_it_was():
    model = off_center(layers.Conv2D(4, 1, name="second"), layers.ReLU())
    model.get_layer("second").trainable = False
    before = [value.copy() for value in model.get_weights()]
    repaired = balance(model, batches(model))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert names(repaired.model) == names(model)
    assert not repaired.model.get_layer("second").trainable


# ----------------------------------------------------------------------------------- random models


def random_graph(draw):
    """Models of random layers, with branches that are summed or put side by side."""
    image = keras.Input((draw(st.sampled_from([6, 7])), 6, draw(st.integers(1, 3))))
    tensors = [image]
    for _ in range(draw(st.integers(3, 9))):
        tensor = tensors[-1] if draw(st.booleans()) else draw(st.sampled_from(tensors))
        kind = draw(st.sampled_from("cccddrrnajspmbb"))
        padding = draw(st.sampled_from(["same", "valid"]))
        if kind == "c":
            bend = draw(st.sampled_from([None, None, "relu", tf.nn.relu6, "tanh"]))
            width = draw(st.sampled_from([1, 2])) if tensor.shape[1] > 2 else 1
            tensor = layers.Conv2D(3, width, padding=padding, activation=bend)(tensor)
        elif kind == "b":  # what this is about: a few channels, cut off or not, and depthwise
            bend = draw(st.sampled_from([layers.ReLU, lambda: layers.ReLU(20.0)]))
            made = layers.Conv2D(4, 1, padding=padding)(tensor)
            tensor = layers.DepthwiseConv2D(2, padding=padding)(bend()(made))
            tensors += [made] * draw(st.integers(0, 1))
        elif kind == "d":
            bend = draw(st.sampled_from([None, "relu"]))
            tensor = layers.DepthwiseConv2D(2, padding=padding, activation=bend)(tensor)
        elif kind == "r":
            bends = [layers.ReLU, lambda: layers.ReLU(draw(st.sampled_from([1.0, 6.0])))]
            tensor = draw(st.sampled_from([*bends, layers.LeakyReLU]))()(tensor)
        elif kind == "n":
            tensor = layers.BatchNormalization()(tensor)
        elif kind == "a":
            tensor = layers.AveragePooling2D(2, strides=1, padding=padding)(tensor)
        elif kind == "p":
            tensor = layers.ZeroPadding2D(1)(tensor)
        elif kind == "m":
            tensor = layers.MaxPooling2D(2, strides=1, padding=padding)(tensor)
        else:
            alike = [
                other
                for other in tensors
                if other.shape[1:3] == tensor.shape[1:3]
                and (kind == "j" or other.shape[-1] == tensor.shape[-1])
            ]
            joins = [layers.Add, layers.Average, layers.Subtract, layers.Maximum]
            join = layers.Concatenate if kind == "j" else draw(st.sampled_from(joins))
            if alike:
                tensor = join()([tensor, draw(st.sampled_from(alike))])
        if min(tensor.shape[1:3]) >= 2:
            tensors.append(tensor)
    ends = [layers.Dense(3)(layers.Flatten()(tensors[-1]))]
    if draw(st.booleans()):
        ends.append(layers.Activation("linear")(draw(st.sampled_from(tensors))))
    return randomize(keras.Model(image, ends), draw(st.integers(0, 99)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_random_graphs_keep_their_outputs(data):
    model = random_graph(data.draw)
    given_to = batches(model, 2)
    repaired = balance(model, given_to)
    event(", ".join(sorted({text.partition(": ")[2].split()[0] for text in repaired.done})))
    event(f"exact for every input: {repaired.exact}")
    assert_same(model, repaired, 1e-4, alive=False)  # on the samples that it has seen
    if repaired.exact:  # on others as well, and far from them
        inputs = [10 * leaf for leaf in samples(model, 50)]
        expected, found = (tf.nest.flatten(outputs(m, inputs)) for m in (model, repaired.model))
        for one, other in zip(expected, found, strict=True):
            assert np.abs(one - other).max() <= 1e-4 * max(np.abs(one).max(), 1e-1)
    assert repaired.exact == (not any("exact within" in text for text in repaired.done))


# --------------------------------------------------------------------------------------- quantized


def eight_bits(model, x):
    """What the INT8 file of a model gives, calibrated on the inputs themselves."""
    from optkit.artifact import TFLiteArtifact

    file = float_file(model)
    ranges = calibrate(file, lambda: ([x[i : i + 1]] for i in range(len(x))))
    return TFLiteArtifact(quantize(file, ranges)).predict(x)


def test_a_mobile_digits_cnn_loses_less_in_8_bits(data):
    """Trained, then made hard to quantize as ImageNet's MobileNets are, without other outputs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, padding="same", name="depth", activation="relu"),
            layers.Conv2D(12, 1, name="project"),
            layers.Conv2D(24, 1, activation="relu", name="expand"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    x, y = data.train
    model.fit(x, y, batch_size=16, epochs=20, verbose=0)
    factors = np.geomspace(0.02, 1, 16).astype("float32")
    stem, norms, depth = model.layers[0], model.layers[1], model.get_layer("depth")
    assert stem.name == "stem"
    norms.gamma.assign(norms.gamma * factors)
    norms.beta.assign(norms.beta * factors)
    depth.depthwise_kernel.assign(depth.depthwise_kernel / factors[:, np.newaxis])
    project, expand = model.get_layer("project"), model.get_layer("expand")
    means = np.random.default_rng(0).normal(scale=60, size=12)
    project.bias.assign(project.bias + means)
    expand.bias.assign(expand.bias - means @ expand.kernel.numpy()[0, 0])
    x_test, _ = data.test
    repaired = balance(model, [[x[i : i + 50]] for i in range(0, 200, 50)])
    wanted = model.predict(x_test, verbose=0)
    assert relative_error(wanted, repaired.model.predict(x_test, verbose=0)) < 1e-3
    before, after = (eight_bits(one, x_test) for one in (model, repaired.model))
    assert relative_error(wanted, before) > 3 * relative_error(wanted, after)
    assert relative_error(wanted, after) < 0.05


def test_the_digits_cnn_stays_as_good(trained, data):
    x, _ = data.test
    repaired = balance(trained, [data.train[0][:100]])
    wanted = trained.predict(x, verbose=0)
    np.testing.assert_allclose(repaired.model.predict(x, verbose=0), wanted, atol=1e-4)
    before, after = (eight_bits(one, x) for one in (trained, repaired.model))
    assert relative_error(wanted, after) <= 1.2 * relative_error(wanted, before)
