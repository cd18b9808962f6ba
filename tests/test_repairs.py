"""Repairs before quantizing change weights and never outputs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optkit.models import batch_norms, is_batch_norm
from optkit.quantize.repairs import equalize, fold_batch_norms

layers = keras.layers


def randomize(model, seed=0, *, negative=True):
    """Weights as training leaves them, no two alike: also of batch norms, some factors negative."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        if is_batch_norm(layer):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(size=size))
            layer.moving_variance.assign(rng.uniform(0.05, 3, size))
            if layer.gamma is not None:
                signs = rng.choice([-1.0, 1.0], size) if negative else 1.0
                layer.gamma.assign(signs * rng.uniform(0.2, 2, size))
            if layer.beta is not None:
                layer.beta.assign(rng.normal(size=size))
            continue
        for weight in layer._trainable_weights:
            fan = max(1, int(np.prod(weight.shape[:-1])))
            weight.assign(rng.normal(scale=fan**-0.5, size=weight.shape))
    return model


def sequential(*parts, shape, **keywords):
    return randomize(keras.Sequential([keras.Input(shape), *parts]), **keywords)


def samples(model, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=[3, *(6 if size is None else size for size in tensor.shape[1:])]).astype(
            "float32"
        )
        for tensor in model.inputs
    ]


def outputs(model, inputs):
    packed = tf.nest.pack_sequence_as(model._nested_inputs, [tf.constant(x) for x in inputs])
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), model(packed, training=False))


def assert_same(model, repaired, tolerance=2e-5, *, alive=True):
    """On several inputs, relative to the largest value of an output."""
    for seed in range(2):
        inputs = samples(model, seed)
        expected, found = outputs(model, inputs), outputs(repaired.model, inputs)
        tf.nest.assert_same_structure(expected, found)
        for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
            assert one.shape == other.shape
            largest = np.abs(one).max()
            assert largest > 1e-3 or not alive  # or the comparison would say nothing
            assert np.abs(one - other).max() <= tolerance * max(largest, 1e-2)


def names(model):
    kept = (layer for layer in model.layers if not isinstance(layer, layers.InputLayer))
    return {layer.name for layer in kept}


def norm(**keywords):
    return layers.BatchNormalization(name="norm", **keywords)


KINDS = {
    "dense": (lambda **k: layers.Dense(6, **k), (5,)),
    "dense of a sequence": (lambda **k: layers.Dense(6, **k), (7, 5)),
    "convolution 1": (lambda **k: layers.Conv1D(6, 3, **k), (9, 5)),
    "convolution 2": (lambda **k: layers.Conv2D(6, 3, **k), (9, 8, 4)),
    "convolution 3": (lambda **k: layers.Conv3D(6, 2, **k), (5, 4, 5, 3)),
    "strided": (lambda **k: layers.Conv2D(6, (3, 2), strides=2, **k), (9, 8, 4)),
    "dilated": (lambda **k: layers.Conv2D(6, 2, dilation_rate=2, **k), (9, 8, 4)),
    "grouped": (lambda **k: layers.Conv2D(6, 3, groups=2, **k), (7, 7, 4)),
    "depthwise 1": (lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k), (9, 5)),
    "depthwise 2": (lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), (8, 8, 4)),
    "depthwise, one": (lambda **k: layers.DepthwiseConv2D(3, **k), (8, 8, 4)),
    "separable 1": (lambda **k: layers.SeparableConv1D(6, 3, **k), (9, 4)),
    "separable 2": (
        lambda **k: layers.SeparableConv2D(6, 3, depth_multiplier=2, **k),
        (8, 8, 3),
    ),
    "transposed 1": (lambda **k: layers.Conv1DTranspose(6, 3, strides=2, **k), (9, 5)),
    "transposed 2": (lambda **k: layers.Conv2DTranspose(6, 3, **k), (6, 6, 4)),
    "transposed 3": (lambda **k: layers.Conv3DTranspose(3, 2, **k), (3, 3, 3, 2)),
}
#: Those whose output is the same sum of inputs everywhere, so that a summand can go in.
UNIFORM = [name for name in KINDS if not name.startswith("transposed")]


# --------------------------------------------------------------------------- batch norms, backward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_linear_layer_a_batch_norm_goes_back_into_it(kind, bias):
    make, shape = KINDS[kind]
    first = make(use_bias=bias, name="first")
    model = sequential(first, norm(), layers.Activation("tanh"), shape=shape)
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'first'",)
    assert not repaired.left
    assert names(repaired.model) == names(model) - {"norm"}
    assert_same(model, repaired)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 1e-7}])
def test_batch_norms_without_factor_or_summand(options):
    model = sequential(layers.Dense(6), norm(**options), layers.ReLU(), shape=(5,))
    repaired = fold_batch_norms(model)
    assert not batch_norms(repaired.model)
    assert_same(model, repaired)


def test_an_epsilon_below_what_gpus_take_counts_as_it_is():
    model = sequential(layers.Conv2D(6, 3), norm(epsilon=1e-7), layers.ReLU(), shape=(6, 6, 3))
    model.get_layer("norm").moving_variance.assign(np.full(6, 1e-6))
    repaired = fold_batch_norms(model)
    assert not batch_norms(repaired.model)
    assert_same(model, repaired)


def test_synchronized_batch_norms_are_folded_too():
    synchronized = layers.BatchNormalization(synchronized=True, name="norm")
    model = sequential(layers.Dense(6), synchronized, layers.ReLU(), shape=(5,))
    repaired = fold_batch_norms(model)
    assert not batch_norms(repaired.model)
    assert_same(model, repaired)


@pytest.mark.parametrize(
    "between",
    [
        lambda: layers.Dropout(0.5),
        lambda: layers.AveragePooling2D(2, padding="same"),
        layers.GlobalAveragePooling2D,
        lambda: layers.Cropping2D(1),
        lambda: layers.UpSampling2D(2),
        lambda: layers.Permute((2, 1, 3)),
        lambda: layers.Reshape((-1, 6)),
        lambda: layers.SpatialDropout2D(0.3),
        lambda: layers.GaussianNoise(0.3),
    ],
)
def test_it_goes_back_past_what_treats_all_values_of_a_channel_alike(between):
    model = sequential(
        layers.Conv2D(6, 3, name="first"),
        between(),
        norm(),
        layers.Activation("tanh"),
        shape=(9, 9, 2),
    )
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'first'",)
    assert_same(model, repaired)


def test_past_the_largest_only_positive_factors():
    def build(negative):
        return sequential(
            layers.Conv2D(6, 3, name="first"),
            layers.MaxPooling2D(2),
            norm(),
            layers.Activation("tanh"),
            shape=(9, 9, 2),
            negative=negative,
        )

    repaired = fold_batch_norms(build(False))
    assert repaired.done == ("norm: into 'first'",)
    assert_same(build(False), repaired)
    stays = build(True)
    repaired = fold_batch_norms(stays)
    assert repaired.model is stays
    assert "comes behind it" in repaired.left["norm"]


def test_a_batch_norm_of_channels_side_by_side_goes_to_each():
    image = keras.Input((6, 6, 3))
    one = layers.Conv2D(4, 3, name="one")(image)
    other = layers.Conv2D(2, 3, name="other", use_bias=False)(image)
    joined = norm()(layers.Concatenate()([one, other]))
    model = randomize(keras.Model(image, layers.Activation("tanh")(joined)))
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'one' and 'other'",)
    assert_same(model, repaired)


def test_channels_that_lie_side_by_side_with_themselves_are_not_scaled_twice():
    image = keras.Input((6, 6, 3))
    one = layers.Conv2D(4, 3, name="one")(image)
    joined = norm()(layers.Concatenate()([one, one]))
    model = randomize(keras.Model(image, layers.Activation("tanh")(joined)))
    assert fold_batch_norms(model).model is model


# ---------------------------------------------------------------------------- batch norms, forward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", UNIFORM)
def test_behind_an_activation_a_batch_norm_goes_into_the_next_layer(kind, bias):
    make, shape = KINDS[kind]
    model = sequential(
        layers.Activation("sigmoid"), norm(), make(use_bias=bias, name="second"), shape=shape
    )
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'second'",)
    assert names(repaired.model) == names(model) - {"norm"}
    assert_same(model, repaired)


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in UNIFORM])
def test_into_a_transposed_convolution_factors_alone(kind):
    make, shape = KINDS[kind]
    model = sequential(layers.Activation("sigmoid"), norm(), make(name="second"), shape=shape)
    repaired = fold_batch_norms(model)
    assert_same(model, repaired)
    assert "norm" in names(repaired.model)
    assert "'second' behind it pads with zeros" in repaired.left["norm"]
    layer = model.get_layer("norm")
    layer.beta.assign(np.zeros(shape[-1]))
    layer.moving_mean.assign(np.zeros(shape[-1]))
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'second'",)
    assert_same(model, repaired)


def test_behind_a_relu_the_factor_goes_back_and_the_rest_forward():
    model = sequential(
        layers.Conv2D(6, 3, activation="relu", padding="same", name="first"),
        norm(),
        layers.Conv2D(4, 3, name="second"),
        shape=(8, 8, 3),
    )
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'first' and 'second'",)
    assert_same(model, repaired)
    norms, kernel = model.get_layer("norm"), model.get_layer("first").kernel.numpy()
    factor = norms.gamma.numpy() / np.sqrt(norms.moving_variance.numpy() + norms.epsilon)
    np.testing.assert_allclose(
        repaired.model.get_layer("first").kernel, kernel * np.abs(factor), rtol=1e-6
    )
    np.testing.assert_allclose(
        repaired.model.get_layer("second").kernel,
        model.get_layer("second").kernel.numpy() * np.sign(factor)[:, np.newaxis],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "bent",
    [
        layers.ReLU,
        lambda: layers.ReLU(negative_slope=0.1),
        layers.LeakyReLU,
        lambda: layers.PReLU(shared_axes=[1, 2]),
        layers.PReLU,
        lambda: layers.Activation("relu"),
        lambda: layers.Activation(tf.nn.relu),
    ],
)
def test_layers_that_let_positive_factors_through(bent):
    model = sequential(
        layers.Conv2D(6, 3, name="first"), bent(), norm(), layers.Conv2D(4, 2), shape=(7, 7, 3)
    )
    repaired = fold_batch_norms(model)
    assert repaired.done[0].startswith("norm: into 'first' and ")
    assert_same(model, repaired)


@pytest.mark.parametrize(
    "bent",
    [
        lambda: layers.ReLU(6.0),
        lambda: layers.ReLU(threshold=0.5),
        layers.ELU,
        lambda: layers.Activation("tanh"),
    ],
)
def test_layers_that_let_no_factors_through_leave_the_way_forward(bent):
    model = sequential(
        layers.Conv2D(6, 3, name="first"), bent(), norm(), layers.Conv2D(4, 2, name="second"),
        shape=(7, 7, 3),
    )  # fmt: skip
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'second'",)
    assert_same(model, repaired)


@pytest.mark.parametrize(
    ("second", "shape", "gone"),
    [
        (lambda: layers.Conv2D(4, 1, padding="same"), (8, 8, 3), True),
        (lambda: layers.Conv2D(4, 1, strides=2, padding="same"), (None, None, 3), True),
        (lambda: layers.Conv2D(4, 2, strides=2, padding="same"), (8, 6, 3), True),
        (lambda: layers.Conv2D(4, 2, strides=2, padding="same"), (8, 7, 3), False),
        (lambda: layers.Conv2D(4, 2, strides=2, padding="same"), (None, None, 3), False),
        (lambda: layers.Conv2D(4, 3, padding="same"), (8, 8, 3), False),
        (lambda: layers.Conv2D(4, 3), (None, None, 3), True),
        (lambda: layers.DepthwiseConv2D(3, padding="same"), (8, 8, 3), False),
        (lambda: layers.SeparableConv2D(4, 3, padding="same"), (8, 8, 3), False),
        (lambda: layers.Conv1D(4, 3, padding="causal"), (8, 3), False),
        (lambda: layers.Conv1D(4, 1, padding="causal"), (8, 3), True),
        (lambda: layers.Conv2DTranspose(4, 1), (8, 8, 3), True),
        (lambda: layers.Conv2DTranspose(4, 1, strides=2), (8, 8, 3), False),
    ],
)
def test_where_zeros_are_padded_the_summand_stays(second, shape, gone):
    first = layers.Conv1D if len(shape) == 2 else layers.Conv2D
    model = sequential(first(6, 1, activation="relu", name="first"), norm(), second(), shape=shape)
    repaired = fold_batch_norms(model)
    assert_same(model, repaired)
    assert ("norm" not in names(repaired.model)) is gone
    assert ("norm" in repaired.left) is not gone
    if gone:
        return
    assert repaired.done[0].startswith("norm: its factors into 'first' and ")
    rest = repaired.model.get_layer("norm")
    x = np.random.default_rng(1).normal(size=(50, *(size or 5 for size in shape[:-1]), 6))
    added = rest(x.astype("float32")).numpy() - x
    np.testing.assert_allclose(added, np.broadcast_to(added[:1], added.shape), atol=1e-5)
    assert not rest.trainable  # in training it would divide by the deviation of the batch
    again = fold_batch_norms(repaired.model)
    assert again.model is repaired.model


def test_behind_other_activations_the_factor_goes_forward_where_the_summand_stays():
    def build():
        return sequential(
            layers.Conv2D(6, 3, activation="swish", name="first"),
            norm(),
            layers.Conv2D(4, 3, padding="same", name="second"),
            shape=(8, 8, 3),
        )

    model = build()
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: its factors into 'second'",)
    assert "'second' behind it pads" in repaired.left["norm"]
    assert_same(model, repaired)
    kept, given = repaired.model.get_layer("norm"), model.get_layer("norm")
    factor = given.gamma.numpy() / np.sqrt(given.moving_variance.numpy() + given.epsilon)
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 6)).astype("float32")
    np.testing.assert_allclose(kept(x), given(x).numpy() / factor, rtol=1e-4, atol=1e-5)
    assert fold_batch_norms(repaired.model).model is repaired.model
    # The summand of a channel that is nearly switched off would have to be enormous.
    model = build()
    gamma = model.get_layer("norm").gamma
    gamma.assign(gamma.numpy() * [1, 1, 1e-4, 1, 1, 1])
    assert fold_batch_norms(model).model is model
    gamma.assign(gamma.numpy() * [1, 1, 0, 1, 1, 1])
    assert fold_batch_norms(model).model is model


def test_padded_zeros_do_not_matter_without_a_summand():
    model = sequential(
        layers.Activation("sigmoid"),
        norm(center=False),
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, padding="same"),
        shape=(6, 6, 3),
    )
    model.get_layer("norm").moving_mean.assign(np.zeros(3))
    repaired = fold_batch_norms(model)
    assert "norm" not in names(repaired.model)
    assert_same(model, repaired)


def test_a_padding_layer_keeps_the_summand():
    model = sequential(
        layers.Conv2D(6, 3, activation="relu", name="first"),
        norm(),
        layers.ZeroPadding2D(1, name="pad"),
        layers.Conv2D(4, 3),
        shape=(6, 6, 3),
    )
    repaired = fold_batch_norms(model)
    assert "no summand passes 'pad'" in repaired.left["norm"]
    assert "norm" in names(repaired.model)
    assert_same(model, repaired)


@pytest.mark.parametrize(
    ("between", "negative"),
    [
        (lambda: [layers.MaxPooling2D(2)], False),
        (lambda: [layers.MaxPooling2D(3, strides=2, padding="same")], False),
        (lambda: [layers.GlobalMaxPooling2D()], False),
        (lambda: [layers.AveragePooling2D(2)], True),
        (lambda: [layers.AveragePooling2D(3, padding="same")], True),
        (lambda: [layers.GlobalAveragePooling2D(keepdims=True)], True),
        (lambda: [layers.Flatten()], True),
        (lambda: [layers.Dropout(0.5), layers.Flatten(), layers.Dropout(0.1)], True),
        (lambda: [layers.Reshape((4, 4, 12))], True),
        (lambda: [layers.Permute((2, 1, 3)), layers.Flatten()], True),
        (lambda: [layers.UpSampling2D(2, interpolation="bilinear")], True),
        (lambda: [layers.GlobalAveragePooling2D(), layers.RepeatVector(3)], True),
    ],
)
def test_forward_past_pooling_and_rearranging(between, negative):
    model = sequential(
        layers.Activation("sigmoid"), norm(), *between(), layers.Dense(5), shape=(8, 8, 3),
        negative=negative,
    )  # fmt: skip
    repaired = fold_batch_norms(model)
    assert not repaired.left
    assert names(repaired.model) == names(model) - {"norm"}
    assert_same(model, repaired)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_averages_of_other_ranks_do_not_count_padding(rank, padding):
    pool = getattr(layers, f"AveragePooling{rank}D")(2, padding=padding)
    model = sequential(
        layers.Activation("sigmoid"), norm(), pool, layers.Dense(5), shape=(*[5] * rank, 3)
    )
    repaired = fold_batch_norms(model)
    assert "norm" not in names(repaired.model)
    assert_same(model, repaired)


@pytest.mark.parametrize(
    "between",
    [
        lambda: [layers.MaxPooling2D(2)],  # a negative factor would make it the smallest
        lambda: [layers.UpSampling2D(2, interpolation="bicubic")],
        lambda: [layers.Permute((3, 1, 2))],
        lambda: [layers.Reshape((96, 2))],
        lambda: [layers.Activation("tanh")],
        lambda: [layers.LayerNormalization()],
        lambda: [layers.Lambda(lambda x: x * x)],
        lambda: [layers.Softmax()],
        lambda: [layers.Flatten(), layers.Reshape((8, 8, 3)), layers.Rescaling(2.0)],
        lambda: [layers.TimeDistributed(layers.Dense(4))],
        lambda: [layers.LocallyConnected2D(2, 3)],
    ],
)
def test_what_is_not_known_blocks_the_way(between):
    model = sequential(
        layers.Activation("sigmoid"), norm(), *between(), layers.Dense(5), shape=(8, 8, 3)
    )
    model.get_layer("norm").gamma.assign([-0.5, 1, 2])
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert repaired.done == ()
    assert set(repaired.left) == {"norm"}


class _Doubling(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class _Opinionated(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training) + 1.0


def test_subclasses_of_known_layers_are_not_known():
    model = sequential(_Doubling(4), norm(), _Doubling(3), shape=(5,))
    assert fold_batch_norms(model).model is model
    model = sequential(layers.Dense(4), _Opinionated(), layers.Dense(3), shape=(5,))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert len(repaired.left) == 1


def test_forward_into_a_part_of_what_lies_side_by_side():
    image = keras.Input((6, 6, 3))
    one = norm()(layers.Conv2D(4, 3, activation="sigmoid")(image))
    other = layers.Conv2D(2, 3, activation="relu", name="other")(image)
    joined = layers.Concatenate()([other, one, other, one])
    joined = layers.Conv2D(5, 2, name="second")(joined)
    model = randomize(keras.Model(image, joined))
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'second'",)
    assert_same(model, repaired)


def test_side_by_side_along_another_axis_is_not():
    image = keras.Input((6, 6, 3))
    one = norm()(layers.Activation("sigmoid")(image))
    joined = layers.Concatenate(axis=1)([one, image])
    model = randomize(keras.Model(image, layers.Conv2D(5, 2)(joined)))
    assert fold_batch_norms(model).model is model


def test_all_that_take_it_or_none():
    image = keras.Input((6, 6, 3))
    base = norm()(layers.Activation("sigmoid")(image))
    takers = [
        layers.Conv2D(5, 2, name="one")(base),
        layers.Dense(4, name="other")(layers.Flatten()(base)),
    ]
    model = randomize(keras.Model(image, takers))
    repaired = fold_batch_norms(model)
    assert set(repaired.done[0][len("norm: into ") :].split(" and ")) == {"'one'", "'other'"}
    assert_same(model, repaired)
    model = randomize(keras.Model(image, [*takers, layers.Activation("tanh", name="x")(base)]))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "'x' (Activation)" in repaired.left["norm"]


def test_one_by_two_ways():
    image = keras.Input((6, 6, 3))
    base = norm()(layers.Activation("sigmoid")(image))
    ways = [layers.AveragePooling2D(2, strides=1, padding="same")(base), layers.Dropout(0.2)(base)]
    model = randomize(keras.Model(image, layers.Conv2D(5, 2)(layers.Concatenate()(ways))))
    repaired = fold_batch_norms(model)
    assert "norm" not in names(repaired.model)
    assert_same(model, repaired)


# ------------------------------------------------------------------------------ what is left alone


def test_outputs_of_the_model_are_not_touched():
    def build(*places):
        image = keras.Input((6, 6, 3))
        first = layers.Conv2D(4, 3, name="first")(image)
        normed = norm()(first)
        second = layers.Conv2D(4, 3, name="second")(normed)
        tensors = {"first": first, "norm": normed, "second": second}
        return randomize(keras.Model(image, [tensors[place] for place in places]))

    for places in (["norm"], ["norm", "second"], ["second", "norm"]):
        model = build(*places)
        repaired = fold_batch_norms(model)
        assert repaired.model is model
        assert "output of the model" in repaired.left["norm"]
    model = build("first", "second")
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'second'",)  # only the way back is closed
    assert repaired.model.output_names == ["first", "second"]
    assert_same(model, repaired)


def test_shared_layers_are_refused():
    image = keras.Input((6, 6, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    behind = norm()(shared(shared(image)))
    model = randomize(keras.Model(image, layers.Activation("tanh")(behind)))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "'shared' is used in several places" in repaired.left["norm"]
    both = norm()
    results = [both(layers.Conv2D(4, 3)(image)), both(layers.Conv2D(4, 3)(image))]
    model = randomize(keras.Model(image, [layers.ReLU()(result) for result in results]))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "'norm' is used in several places" in repaired.left["norm"]


def test_a_layer_whose_kernel_another_uses_is_refused():
    class Tied(layers.Layer):
        def __init__(self, other, **keywords):
            super().__init__(**keywords)
            self.other = other

        def call(self, inputs):
            return tf.matmul(inputs, self.other.kernel, transpose_b=True)

    vector = keras.Input((5,))
    first = layers.Dense(4, name="first")
    code = norm()(first(vector))
    model = randomize(keras.Model(vector, Tied(first)(layers.ReLU()(code))))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "shares weights" in repaired.left["norm"]


def test_what_was_called_in_training_mode_is_left_alone():
    vector = keras.Input((5,))
    first = layers.Dense(4)(vector)
    normed = norm()(first, training=True)
    model = randomize(keras.Model(vector, layers.ReLU()(normed)))
    assert "arguments of its own" in fold_batch_norms(model).left["norm"]
    dropped = layers.Dropout(0.5, name="always")(layers.Activation("tanh")(vector), training=True)
    model = randomize(keras.Model(vector, layers.Dense(4)(layers.Dropout(0.5, name="x")(
        norm()(layers.Activation("tanh")(vector)), training=True))))  # fmt: skip
    assert "'x' (Dropout)" in fold_batch_norms(model).left["norm"]
    model = randomize(keras.Model(vector, layers.Dense(4)(norm()(dropped))))
    assert fold_batch_norms(model).done  # what comes before does not matter


def test_batch_norms_of_other_kinds_are_left_alone():
    for unusual in (norm(axis=1), norm(renorm=True), norm(axis=[1, 2, 3])):
        model = sequential(layers.Conv2D(4, 3), unusual, layers.ReLU(), shape=(6, 6, 3))
        repaired = fold_batch_norms(model)
        assert repaired.model is model
        assert "over the last axis" in repaired.left["norm"]


@pytest.mark.parametrize("variance", [-1.0, float("nan"), -1e-3])
def test_statistics_that_are_no_numbers_are_left_alone(variance):
    model = sequential(layers.Dense(4), norm(), layers.ReLU(), shape=(5,))
    model.get_layer("norm").moving_variance.assign(np.full(4, variance))
    model.get_layer("norm").epsilon = 1e-3
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "not finite" in repaired.left["norm"]


def test_layers_that_compute_in_16_bits_are_left_alone():
    half = keras.mixed_precision.Policy("mixed_float16")
    model = sequential(
        layers.Conv2D(4, 3, dtype=half), norm(dtype=half), layers.ReLU(dtype=half), shape=(6, 6, 3)
    )
    assert fold_batch_norms(model).model is model
    model = sequential(layers.Conv2D(4, 3, dtype=half), norm(), layers.ReLU(), shape=(6, 6, 3))
    assert fold_batch_norms(model).model is model


def test_a_channel_that_is_switched_off_stays_so():
    model = sequential(
        layers.Conv2D(4, 3, activation="relu"), norm(), layers.Conv2D(3, 2), shape=(6, 6, 3)
    )
    gamma = model.get_layer("norm").gamma
    gamma.assign(gamma.numpy() * [1, 0, 0, 1])
    repaired = fold_batch_norms(model)
    assert "norm" not in names(repaired.model)
    assert_same(model, repaired)


def test_one_after_another():
    model = sequential(
        layers.Activation("sigmoid"),
        norm(),
        layers.BatchNormalization(name="behind"),
        layers.Conv2D(4, 2, name="second"),
        layers.BatchNormalization(name="last"),
        layers.ReLU(),
        shape=(6, 6, 3),
    )
    repaired = fold_batch_norms(model)
    assert not batch_norms(repaired.model)
    assert len(repaired.done) == 3
    assert not repaired.left
    assert_same(model, repaired)


# ------------------------------------------------------------------------------- models of all kinds


def _cnn(size=8, negative=True):
    return sequential(
        layers.Conv2D(6, 3, padding="same", activation="relu", name="first"),
        layers.BatchNormalization(name="norm_1"),
        layers.Conv2D(8, 3, use_bias=False, name="second"),
        layers.BatchNormalization(name="norm_2"),
        layers.ReLU(),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(4, activation="softmax", name="last"),
        shape=(size, size, 3),
        negative=negative,
    )


def test_the_given_model_stays_as_it_was():
    model = _cnn()
    before = [weight.copy() for weight in model.get_weights()]
    nodes = [len(layer._inbound_nodes) + len(layer._outbound_nodes) for layer in model.layers]
    config = model.get_config()
    for repair in (fold_batch_norms, equalize):
        repaired = repair(model)
        assert repaired.model is not model
        held = {id(weight) for weight in model.weights}
        assert not any(id(weight) in held for weight in repaired.model.weights)
        assert model.get_config() == config
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    after = [len(layer._inbound_nodes) + len(layer._outbound_nodes) for layer in model.layers]
    assert after == nodes


def test_where_there_is_nothing_to_do_the_same_model_comes_back():
    model = sequential(layers.Conv2D(4, 3, activation="tanh"), layers.Flatten(), shape=(6, 6, 3))
    for repair in (fold_batch_norms, equalize):
        repaired = repair(model)
        assert repaired.model is model
        assert (repaired.done, dict(repaired.left), dict(repaired.names)) == ((), {}, {})


def test_flags_survive_and_constraints_of_changed_kernels_do_not():
    model = sequential(
        layers.Conv2D(4, 3, kernel_constraint="unit_norm", name="first"),
        norm(),
        layers.ReLU(),
        layers.Dense(3, kernel_constraint="unit_norm", trainable=False, name="last"),
        shape=(6, 6, 3),
    )
    repaired = fold_batch_norms(model).model
    assert repaired.get_layer("first").kernel_constraint is None
    assert repaired.get_layer("first").trainable
    assert repaired.get_layer("last").kernel_constraint is not None
    assert not repaired.get_layer("last").trainable


def test_models_within_models_are_opened():
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    image = keras.Input((8, 8, 3), name="image")
    behind = layers.Conv2D(4, 3, name="first")(inner(image))
    model = keras.Model({"image": image}, {"b": layers.Flatten(name="flat")(behind)}, name="whole")
    randomize(model)
    for repair in (fold_batch_norms, equalize):
        repaired = repair(model)
        assert_same(model, repaired)
        assert not batch_norms(repaired.model)
        assert repaired.model.name == "whole"
        now = repaired.names
        assert now["first"] == "first"
        assert repaired.model.get_layer(now["inner/first"]).kernel.shape == (3, 3, 3, 4)
        assert set(now) == {"image", "first", "inner/first", "flat"}


def test_a_model_within_that_is_used_twice_is_left_alone():
    inner = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(5, name="second"),
        ],
        name="inner",
    )
    vector = keras.Input((5,))
    model = randomize(keras.Model(vector, inner(inner(vector))))
    repaired = fold_batch_norms(model)
    assert repaired.model is model
    assert "several places" in repaired.left["norm"]


def test_several_inputs_and_outputs_by_name():
    image, words = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="vector")
    seen = layers.Conv2D(4, 3, activation="relu", name="first")(image)
    seen = layers.GlobalAveragePooling2D()(norm()(seen))
    read = layers.BatchNormalization(name="normed")(layers.Dense(4, name="read")(words))
    both = layers.Add()([seen, read])
    joined = layers.Concatenate()([seen, layers.ReLU()(read)])
    results = {"sum": both, "class": layers.Dense(3, name="class")(joined)}
    model = randomize(keras.Model({"v": words, "i": image}, results))
    repaired = fold_batch_norms(model)
    assert "normed: into 'read'" in repaired.done
    assert "Add" in repaired.left["norm"]
    assert_same(model, repaired)
    assert repaired.model.input_names == model.input_names
    assert repaired.model.output_names == model.output_names


def test_masks_go_on():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    seen = layers.Embedding(10, 5, mask_zero=True)(tokens)
    seen = layers.Dense(4, activation="relu", name="first")(seen)
    seen = norm(fused=False)(seen)
    whole = layers.GlobalAveragePooling1D()(seen)
    model = randomize(keras.Model(tokens, layers.Dense(3, name="last")(whole)))
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'first' and 'last'",)
    for seed in range(3):
        words = np.random.default_rng(seed).integers(1, 10, (4, 7))
        words[1, 3:] = 0
        words[2, 5:] = 0
        one, other = outputs(model, [words])[:], outputs(repaired.model, [words])
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_recurrent_layers_operations_and_open_sizes_come_along():
    series = keras.Input((None, 3))
    seen = norm()(layers.Conv1D(4, 3, name="first")(series))
    seen = tf.nn.relu(seen) * 2.0
    seen = layers.Bidirectional(layers.GRU(3), name="both")(seen)
    model = randomize(keras.Model(series, seen))
    repaired = fold_batch_norms(model)
    assert repaired.done == ("norm: into 'first'",)
    assert_same(model, repaired)


def test_preprocessing_keeps_what_it_learned():
    image = keras.Input((4,))
    known = layers.Normalization(name="known")
    known.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    mean = known.mean.numpy()
    seen = norm()(layers.Dense(4)(known(image)))
    model = keras.Model(image, layers.ReLU()(seen))
    randomize_norms = model.get_layer("norm")
    randomize_norms.beta.assign([1.0, 2.0, 3.0, 4.0])
    repaired = fold_batch_norms(model)
    np.testing.assert_array_equal(repaired.model.get_layer("known").mean, mean)
    assert_same(model, repaired)


# ---------------------------------------------------------------------------------------- equalizing


def _largest(kernel, axis):
    axis %= kernel.ndim
    return np.abs(kernel).max(tuple(other for other in range(kernel.ndim) if other != axis))


def test_two_layers_come_to_the_geometric_mean_of_their_ranges():
    model = sequential(
        layers.Conv2D(6, 3, activation="relu", name="first"),
        layers.Conv2D(4, 3, padding="same", name="second"),
        shape=(8, 8, 3),
    )
    first, second = model.get_layer("first"), model.get_layer("second")
    first.kernel.assign(first.kernel.numpy() * [1, 10, 0.1, 3, 100, 0.5])
    repaired = equalize(model)
    assert repaired.done == ("first: with 'second'",)
    assert_same(model, repaired)
    made, used = _largest(first.kernel.numpy(), -1), _largest(second.kernel.numpy(), -2)
    scale = np.sqrt(made * used) / used
    one, other = (repaired.model.get_layer(name) for name in ("first", "second"))
    np.testing.assert_allclose(one.kernel, first.kernel.numpy() / scale, rtol=1e-6)
    np.testing.assert_allclose(one.bias, first.bias.numpy() / scale, rtol=1e-6)
    np.testing.assert_allclose(
        other.kernel, second.kernel.numpy() * scale[:, np.newaxis], rtol=1e-6
    )
    np.testing.assert_array_equal(other.bias, second.bias)
    np.testing.assert_allclose(_largest(one.kernel.numpy(), -1), np.sqrt(made * used), rtol=1e-5)
    np.testing.assert_allclose(_largest(other.kernel.numpy(), -2), np.sqrt(made * used), rtol=1e-5)


def test_three_layers_come_to_the_cube_root_of_their_ranges():
    model = sequential(
        layers.Conv2D(5, 1, name="first"),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, padding="same", name="depth"),
        layers.ReLU(),
        layers.Conv2D(4, 1, name="last"),
        shape=(8, 8, 3),
    )
    kernel = model.get_layer("first").kernel
    kernel.assign(kernel.numpy() * [1, 20, 0.1, 3, 50])
    product = (
        _largest(kernel.numpy(), -1)
        * _largest(model.get_layer("depth").depthwise_kernel.numpy(), -2)
        * _largest(model.get_layer("last").kernel.numpy(), -2)
    )
    repaired = equalize(model)
    assert_same(model, repaired)
    new = repaired.model
    for ranges in (
        _largest(new.get_layer("first").kernel.numpy(), -1),
        _largest(new.get_layer("depth").depthwise_kernel.numpy(), -2),
        _largest(new.get_layer("last").kernel.numpy(), -2),
    ):
        np.testing.assert_allclose(ranges, np.cbrt(product), rtol=3e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_every_kind_of_layer_is_equalized(kind, place):
    make, shape = KINDS[kind]
    if place == "before":
        model = sequential(make(name="one"), layers.LeakyReLU(), layers.Dense(4), shape=shape)
    else:
        model = sequential(layers.Dense(shape[-1]), layers.ReLU(), make(name="one"), shape=shape)
    repaired = equalize(model)
    assert len(repaired.done) == 1
    assert_same(model, repaired)
    again = equalize(repaired.model)
    assert again.model is repaired.model  # settled


@pytest.mark.parametrize(
    "between",
    [
        lambda: [layers.MaxPooling2D(2), layers.Flatten()],
        lambda: [layers.ZeroPadding2D(1), layers.AveragePooling2D(2)],
        lambda: [layers.PReLU(shared_axes=[1, 2]), layers.Dropout(0.2)],
        lambda: [layers.GlobalMaxPooling2D()],
        lambda: [layers.BatchNormalization(), layers.ZeroPadding2D(1)],
        lambda: [layers.ReLU(), layers.BatchNormalization(), layers.ZeroPadding2D(1)],
    ],
)
def test_equalized_through_what_lets_positive_factors_through(between):
    model = sequential(
        layers.Conv2D(5, 3, name="first"), *between(), layers.Dense(4), shape=(8, 8, 3)
    )
    repaired = equalize(model)
    assert any(text.startswith("first: with ") for text in repaired.done)
    assert_same(model, repaired)


def test_a_batch_norm_that_stays_is_equalized_through():
    model = sequential(
        layers.Conv2D(5, 3, name="first"),
        norm(),
        layers.MaxPooling2D(2),
        layers.Dense(4),
        layers.ReLU(6.0),
        layers.BatchNormalization(name="second"),
        layers.Conv2D(4, 3, padding="same", name="last"),
        shape=(9, 9, 3),
    )
    image = model.inputs[0]
    alike = model.get_layer("first").output
    model = keras.Model(image, [model.output, layers.Activation("tanh")(alike)])
    repaired = equalize(model)
    assert_same(model, repaired)
    # Now with one whose way back is closed by a clip, and the way forward by padding.
    model = sequential(
        layers.Conv2D(5, 3, activation="relu", name="first"),
        norm(),
        layers.Conv2D(4, 3, padding="same", name="last"),
        shape=(9, 9, 3),
    )
    repaired = equalize(model)
    assert repaired.done[-1] == "first: with 'last'"
    assert "norm" in repaired.left
    assert_same(model, repaired)


@pytest.mark.parametrize("clip", [lambda: layers.ReLU(6.0), lambda: layers.Activation("tanh")])
def test_clips_end_it(clip):
    model = sequential(layers.Conv2D(5, 3), clip(), layers.Conv2D(4, 3), shape=(8, 8, 3))
    assert equalize(model).model is model
    model = sequential(
        layers.Conv2D(5, 3, activation=tf.nn.relu6), layers.Dense(4), shape=(8, 8, 3)
    )
    assert equalize(model).model is model


def test_dead_channels_are_left_alone():
    model = sequential(
        layers.Conv2D(5, 3, activation="relu", name="first"),
        layers.Conv2D(4, 3, name="second"),
        shape=(8, 8, 3),
    )
    first, second = model.get_layer("first"), model.get_layer("second")
    first.kernel.assign(first.kernel.numpy() * [0, 1, 1, 1e-12, 30])
    unused = np.array([1, 1, 0, 1, 1.0])[:, np.newaxis]
    second.kernel.assign(second.kernel.numpy() * unused)
    repaired = equalize(model)
    assert_same(model, repaired)
    one = repaired.model.get_layer("first")
    for dead in (0, 2, 3):
        np.testing.assert_array_equal(one.kernel[..., dead], first.kernel[..., dead])
        np.testing.assert_array_equal(one.bias[dead], first.bias[dead])
    assert np.isfinite(one.kernel).all()


def test_what_several_use_is_equalized_with_all_of_them():
    image = keras.Input((8, 8, 3))
    base = layers.Conv2D(5, 3, activation="relu", name="base")(image)
    one = layers.Conv2D(4, 1, name="one")(base)
    other = layers.Dense(2, name="other")(layers.GlobalAveragePooling2D()(base))
    model = randomize(keras.Model(image, [one, other]))
    repaired = equalize(model)
    assert len(repaired.done) == 1
    assert set(repaired.done[0][len("base: with ") :].split(" and ")) == {"'one'", "'other'"}
    assert_same(model, repaired)
    used = np.maximum(
        _largest(repaired.model.get_layer("one").kernel.numpy(), -2),
        _largest(repaired.model.get_layer("other").kernel.numpy(), -2),
    )
    made = _largest(repaired.model.get_layer("base").kernel.numpy(), -1)
    np.testing.assert_allclose(made, used, rtol=3e-3)
    model = randomize(keras.Model(image, [one, other, base]))
    assert equalize(model).model is model


def test_residual_sums_are_left_alone():
    image = keras.Input((8, 8, 3))
    base = layers.Conv2D(5, 3, padding="same", activation="relu", name="base")(image)
    seen = layers.Conv2D(5, 3, padding="same", activation="relu", name="one")(base)
    seen = layers.Conv2D(5, 3, padding="same", name="two")(seen)
    summed = layers.Add()([base, seen])
    model = randomize(keras.Model(image, layers.Conv2D(2, 3)(summed)))
    repaired = equalize(model)
    assert repaired.done == ("one: with 'two'",)
    assert_same(model, repaired)


# ------------------------------------------------------------------------------------- random models


def random_graph(draw):
    """Models of random layers, some with branches that are summed or put side by side."""
    image = keras.Input((draw(st.sampled_from([6, 7])), 6, draw(st.integers(1, 3))))
    tensors = [image]
    for _ in range(draw(st.integers(3, 8))):
        tensor = tensors[-1] if draw(st.booleans()) else draw(st.sampled_from(tensors))
        size, channels = tensor.shape[1], tensor.shape[-1]
        kind = draw(st.sampled_from("cccnnnnradpmkju"))
        padding = draw(st.sampled_from(["same", "valid"]))
        if kind == "c" and size >= 3:
            activation = draw(st.sampled_from([None, "relu", "sigmoid"]))
            width = draw(st.sampled_from([1, 3]))
            tensor = layers.Conv2D(
                draw(st.integers(2, 4)), width, padding=padding, activation=activation
            )(tensor)
        elif kind == "d" and size >= 2:
            tensor = layers.DepthwiseConv2D(2, padding=padding)(tensor)
        elif kind == "n":
            tensor = layers.BatchNormalization()(tensor)
        elif kind == "r":
            tensor = draw(st.sampled_from([layers.ReLU, layers.LeakyReLU, layers.ELU]))()(tensor)
        elif kind == "a":
            tensor = layers.AveragePooling2D(2, strides=1, padding=padding)(tensor)
        elif kind == "m":
            tensor = layers.MaxPooling2D(2, strides=1, padding=padding)(tensor)
        elif kind == "p":
            tensor = layers.ZeroPadding2D(1)(tensor)
        elif kind == "k":
            tensor = layers.Dense(draw(st.integers(2, 4)))(tensor)
        elif kind in "ju":
            alike = [
                other
                for other in tensors
                if other.shape[1:3] == tensor.shape[1:3]
                and (kind == "j" or other.shape[-1] == channels)
            ]
            join = layers.Concatenate() if kind == "j" else layers.Add()
            tensor = join([tensor, draw(st.sampled_from(alike))]) if alike else tensor
        if min(tensor.shape[1:3]) >= 2:
            tensors.append(tensor)
    last = layers.Flatten()(tensors[-1])
    results = [layers.Dense(3)(last)]
    if draw(st.booleans()):
        results.append(layers.Activation("linear")(draw(st.sampled_from(tensors))))
    return randomize(
        keras.Model(image, results), draw(st.integers(0, 99)), negative=draw(st.booleans())
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_random_graphs_keep_their_outputs(data):
    model = random_graph(data.draw)
    repaired = fold_batch_norms(model)
    assert_same(model, repaired, 1e-4, alive=False)  # a random ReLU may let nothing through
    left = {layer.name for layer in batch_norms(repaired.model)}
    assert left == set(repaired.left)
    assert fold_batch_norms(repaired.model).model is repaired.model
    assert_same(model, equalize(model), 1e-4, alive=False)
