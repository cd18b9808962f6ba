"""Ways of building a model: what is traced, what is taken as a whole, what passes do with it."""

from __future__ import annotations

import numpy as np
import pytest

import optkit as ok
from optkit import trace
from optkit.models import (
    batch_norms,
    check_treatable,
    clone,
    flat_copy,
    is_graph,
    layers_by_path,
    variables_by_path,
)
from optkit.runtime import tf_keras
from optkit.testing import small_model

pytestmark = pytest.mark.usefixtures("untimed")


def rows(count=12, shape=(6,)):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


def is_opaque(model):
    """Whether a functional model holds a subclassed one as a layer, as `trace.opaque` makes it."""
    library = tf_keras()
    return any(isinstance(layer, library.Model) and not is_graph(layer) for layer in model.layers)


def outputs(model, x, **keywords):
    import tensorflow as tf

    return [np.asarray(value) for value in tf.nest.flatten(model(x, **keywords))]


def exact():
    """Subclassed models that are their layers wired together, each with an example."""
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()
            self.drop = layers.Dropout(0.5)
            self.hidden = layers.Dense(5, "relu")
            self.scores = layers.Dense(3)

        def call(self, x, training=False):
            x = self.norm(self.hidden(x), training=training)
            return self.scores(self.drop(x, training=training))

    class Block(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(6), layers.Dense(6)
            self.drop = layers.Dropout(0.3)

        def call(self, x):
            return tf.nn.relu(self.one(x)) + self.drop(self.two(x))

    class Nested(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.scores = Block(), layers.Dense(2)
            self.blocks = [Block(), Block()]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.scores(self.block(x))

    class Shared(keras.Model):
        def __init__(self):
            super().__init__()
            self.twice = layers.Dense(6, activity_regularizer="l2", kernel_regularizer="l2")

        @tf.function
        def call(self, x):
            return self.twice(self.twice(x))

    class Several(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(3), layers.Dense(2)

        def call(self, inputs):
            joined = tf.concat([inputs["a"], inputs["b"] * 2.0], axis=-1)
            return {"one": self.first(joined), "two": self.second(joined)}

    class Augmenting(keras.Model):
        def __init__(self):
            super().__init__()
            self.flip, self.conv = layers.RandomFlip(), layers.Conv2D(2, 3)
            self.pool = layers.GlobalMaxPooling2D()

        def call(self, x, training=None):
            return self.pool(self.conv(self.flip(x, training=training)))

    return {
        "plain": (Plain(), rows()),
        "nested": (Nested(), rows()),
        "shared": (Shared(), rows()),
        "several": (Several(), {"a": rows(), "b": rows(shape=(2,))}),
        "augmenting": (Augmenting(), rows(shape=(5, 5, 1))),
    }


@pytest.mark.parametrize("name", list(exact()))
def test_a_subclassed_model_becomes_functional_where_that_is_exact(name):
    model, x = exact()[name]
    trace.build(model, x)
    before = [weight.copy() for weight in model.get_weights()]
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    functional = trace.to_functional(model, x)
    check_treatable(functional)
    assert functional._is_graph_network
    assert not is_opaque(functional)
    assert functional.count_params() == model.count_params()
    for one, other in zip(
        outputs(model, x, training=False), outputs(functional, x, training=False), strict=True
    ):
        assert np.allclose(one, other, atol=1e-6)
    own = {id(weight) for weight in model.weights}
    assert not own & {id(weight) for weight in functional.weights}
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
    for one, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, other), "comparing left the weights as they were"


def test_training_trains_what_was_traced_as_the_model_itself_is_trained():
    import tf_keras as keras

    model, x = exact()["nested"]
    trace.build(model, x)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    functional = trace.to_functional(model, x)
    for one in (model, functional):
        one.compile(keras.optimizers.SGD(0.1), "mse")
        one.fit(x, x[:, :2], batch_size=12, epochs=2, verbose=0)
    for one, other in zip(outputs(model, x), outputs(functional, x), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def not_exact():
    """Subclassed models that are more than a graph, with the reason that is given."""
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers

    class Base(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

    class Mode(Base):
        def call(self, x, training=False):
            return self.dense(x) * (2.0 if training else 1.0)

    class Depends(Base):
        def call(self, x):
            return self.dense(x) if tf.reduce_mean(x) > 0 else self.dense(-x)

    class Holds(Base):
        def build(self, shape):
            self.shift = self.add_weight("shift", (3,), initializer="ones")
            super().build(shape)

        def call(self, x):
            return self.dense(x) + self.shift

    class Size(Base):
        def call(self, x):
            y = self.dense(x)
            return y * 2.0 if x.shape[0] == 1 else y

    class Counts(Base):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def call(self, x):
            self.calls += 1
            return self.dense(x) * float(self.calls)

    class Loses(Base):
        def call(self, x, training=False):
            y = self.dense(x)
            if training:
                self.add_loss(tf.reduce_sum(y**2))
            return y

    return {
        "mode": (Mode(), "in training mode its graph gives something else"),
        "data": (Depends(), "cannot be wired into a graph"),
        "own weights": (Holds(), "weights that are not in its graph: .*shift"),
        "batch size": (Size(), "in inference mode its graph gives something else"),
        "state": (Counts(), "its graph gives something else"),
        "loss": (Loses(), "in training mode its graph gives something else"),
    }


@pytest.mark.parametrize("name", list(not_exact()))
def test_what_is_more_than_a_graph_is_found_out(name):
    model, reason = not_exact()[name]
    trace.build(model, rows())
    weights = model.get_weights()
    with pytest.raises(trace.NotTraceableError, match=reason):
        trace.to_functional(model, rows())
    for one, other in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(one, other)


def keras3_models():
    import keras

    layers = keras.layers

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.5)
            self.hidden, self.scores = layers.Dense(5, "relu"), layers.Dense(3)

        def call(self, x, training=False):
            x = self.norm(keras.ops.tanh(self.hidden(x)) * 2.0, training=training)
            return self.scores(self.drop(x, training=training))

    class Mode(Plain):
        def call(self, x, training=False):
            return super().call(x, training=training) * (2.0 if training else 1.0)

    return Plain(), Mode()


def test_a_subclassed_keras_3_model_becomes_functional():
    import keras

    model, mode = keras3_models()
    x = rows()
    for one in (model, mode):
        trace.build(one, x)
    functional = trace.to_functional(model, x)
    assert isinstance(functional, keras.Model)
    for one, other in zip(outputs(model, x), outputs(functional, x), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert not {id(w) for w in model.weights} & {id(w) for w in functional.weights}
    with pytest.raises(trace.NotTraceableError, match="in training mode"):
        trace.to_functional(mode, x)


def gated():
    """A subclassed model that has to be taken as a whole, and can be copied."""
    import tf_keras as keras

    layers = keras.layers

    class Gated(keras.Model):
        def __init__(self, units, classes=10):
            super().__init__()
            self.flat = layers.Flatten()
            self.hidden = layers.Dense(units, "relu")
            self.norm = layers.BatchNormalization()
            self.scores = layers.Dense(classes, "softmax")

        def call(self, x, training=False):
            hidden = self.norm(self.hidden(self.flat(x)), training=training)
            return self.scores(hidden * (1.1 if training else 1.0))

    keras.utils.set_random_seed(0)
    return Gated(units=12)


def test_what_is_no_graph_is_taken_as_a_whole(data):
    model, x = gated(), data.train[0][:8]
    trace.build(model, x)
    whole = trace.opaque(model, x)
    check_treatable(whole)
    assert is_opaque(whole)
    copy = clone(whole)
    for one, other in zip(outputs(model, x), outputs(copy, x), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    for one, other in zip(
        outputs(model, x, training=True), outputs(copy, x, training=True), strict=True
    ):
        assert np.allclose(one, other, atol=1e-5)
    assert not {id(w) for w in copy.weights} & {id(w) for w in model.weights}
    assert set(variables_by_path(copy)) == set(variables_by_path(whole))
    assert len(variables_by_path(whole)) == len(model.weights)
    assert [layer.name for layer in batch_norms(whole)] == [model.norm.name]


def test_passes_treat_a_model_that_is_taken_as_a_whole(data):
    model, x = gated(), data.train[0][:8]
    trace.build(model, x)
    whole = trace.opaque(model, x)
    passes = [
        ok.FineTune(4, 0.01),
        ok.SWA(2, 0.005),
        ok.Prune(0.5, 1),
        ok.BNReestimate(),
        ok.QuantizeINT8(),
    ]
    result = ok.Pipeline(passes).run(whole, data)
    pruned = variables_by_path(result.stages["Prune"].model)
    kernels = [value.numpy() for path, value in pruned.items() if path.endswith("kernel")]
    assert [np.mean(kernel == 0) for kernel in kernels] == pytest.approx([0.5, 0.5], abs=0.01)
    assert result.report.final.accuracy > 0.7
    assert "agrees with the float model on 9" in " ".join(result.report.rows[-1].notes) or (
        "agrees with the float model on 100" in " ".join(result.report.rows[-1].notes)
    )
    with pytest.raises(ok.OptkitError, match="does not end in a dense layer"):
        ok.Pipeline([ok.TransferLearn()]).check(whole, data)


def test_what_cannot_be_copied_is_said():
    import tf_keras as keras

    class Odd(keras.Model):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def call(self, x, training=False):
            return self.part(x) * (2.0 if training else 1.0)

    class OwnStep(Odd):
        def train_step(self, batch):
            raise AssertionError

    for kind, message in ((Odd, r"cannot be copied.*get_config"), (OwnStep, r"`train_step\(\)`")):
        model = trace.build(kind(keras.layers.Dense(2)), rows())
        with pytest.raises(ok.ModelError, match=message):
            trace.opaque(model, rows())


@pytest.mark.parametrize("kind", ["tf_keras", "keras"])
def test_an_unbuilt_sequential_is_built_on_layers_of_its_own(kind):
    import importlib

    keras = importlib.import_module(kind)
    scale = keras.layers.Normalization()
    scale.adapt(rows() * 5)
    model = keras.Sequential([keras.layers.Activation("linear"), scale, keras.layers.Dense(3)])
    built = trace.build(model, rows())
    assert built.built
    assert not model.built
    assert not model.layers[2].weights, "nothing of the model was built"
    assert np.allclose(outputs(built.layers[1], rows()), outputs(scale, rows()), atol=1e-6)
    assert trace.build(built, rows()) is built


# --------------------------------------------------------------------------- passes and what is odd


def nested_model():
    """A model within a model within a model, one used twice, and two layers of one name."""
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    block = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="conv")], name="block"
    )
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    body = keras.Model(image, block(layers.ReLU()(block(x))), name="body")
    outer = keras.Input((8, 8, 1), name="image")
    pooled = layers.GlobalAveragePooling2D()(body(outer, training=False))
    return keras.Model(outer, layers.Dense(10, "softmax", name="classes")(pooled), name="outer")


def test_models_within_models_are_pruned_where_they_stand(data):
    model = nested_model()
    item = ok.Prune(0.5, 1, layers={"body/block": 0.75}, exclude=["classes"])
    result = ok.Pipeline([item]).run(model, data)
    pruned = result.model
    assert list(layers_by_path(pruned)) == list(layers_by_path(model)), "the structure stays"
    shares = {p: np.mean(v.numpy() == 0) for p, v in variables_by_path(pruned).items()}
    assert shares["body/conv/kernel"] == pytest.approx(0.5, abs=0.02)
    assert shares["body/block/conv/kernel"] == pytest.approx(0.75, abs=0.01)
    assert shares["classes/kernel"] == 0
    assert "body/block/conv 75" in result.report.rows[0].notes[0]
    for item, message in (
        (
            ok.Prune(layers={"conv": 0.5}),
            r"several layers 'conv'. Say which: body/conv, body/block",
        ),
        (ok.Prune(exclude=["bod"]), r"no layers \['bod'\]"),
    ):
        with pytest.raises(ok.PipelineError, match=message):
            ok.Pipeline([item]).check(model, data)


def test_a_flat_copy_has_names_of_its_own_and_keeps_the_mode_of_inner_models():
    import tf_keras as keras

    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(name="a"), layers.Dense(3, name="b")],
        name="inner",
    )
    x = keras.Input((4,))
    hidden = inner(layers.Dense(4, name="b")(x), training=False)
    model = keras.Model(x, [hidden, layers.Dense(2)(hidden)])
    values, fresh = rows(shape=(4,)), keras.Input((4,))
    flat = keras.Model(fresh, flat_copy(model, [fresh])[0])
    assert {layer.name for layer in flat.layers} >= {"a", "b", "inner_b"}
    for training in (False, True):
        wanted = outputs(model, values, training=training)
        found = outputs(flat, values, training=training)
        for one, other in zip(wanted, found, strict=True):
            assert np.allclose(one, other, atol=1e-6)


def prunable():
    """Layers between rows of 8 and a dense end, with the number of kernels that are pruned."""
    import tf_keras as keras

    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            self.first, self.second = layers.Dense(8), layers.Dense(8)

        def build(self, shape):
            self.table = self.add_weight("table", (8, 8))
            self.gain = self.add_weight("gain", (8,))

        def call(self, x):
            return self.second(self.first(x)) @ self.table * self.gain

    return {
        "1d": ([layers.Conv1D(4, 3), layers.Conv1DTranspose(4, 3)], 2),
        "3d": (
            [layers.Reshape((4, 4, 4, 1)), layers.Conv3D(4, 2), layers.Conv3DTranspose(2, 2)],
            2,
        ),
        "2d": (
            [
                layers.Reshape((8, 8, 1)),
                layers.SeparableConv2D(4, 3),
                layers.DepthwiseConv2D(3),
                layers.Conv2DTranspose(4, 3),
            ],
            2,
        ),
        "recurrent": ([layers.Bidirectional(layers.LSTM(4, return_sequences=True))], 4),
        "gru": ([layers.GRU(4, return_sequences=True), layers.SimpleRNN(4)], 4),
        "loop": ([layers.Reshape((4, 4, 4, 1)), layers.ConvLSTM2D(2, 2)], 2),
        "einsum": ([layers.EinsumDense("abc,cd->abd", (None, 5))], 1),
        "over time": ([layers.TimeDistributed(layers.Dense(5))], 1),
        "own": ([Block()], 2),
        "16 bits": ([layers.Dense(6, dtype="mixed_float16"), layers.Dense(3)], 2),
    }


@pytest.mark.parametrize("kind", list(prunable()))
def test_kernels_of_every_kind_are_pruned(kind, rows_of_digits):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    parts, expected = prunable()[kind]
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            *parts,
            layers.Flatten(),
            layers.Dense(10, "softmax", name="end", dtype="float32"),
        ]
    )
    result = ok.Pipeline([ok.Prune(0.5, 1, exclude=["end"])]).run(model, rows_of_digits)
    found = {p: v.numpy() for p, v in variables_by_path(result.model).items()}
    pruned = {p: np.mean(v == 0) for p, v in found.items() if "kernel" in p}
    halved = [path for path, share in pruned.items() if share == pytest.approx(0.5, abs=0.05)]
    assert len(halved) == expected
    assert all(path.startswith("end") or "depthwise" in path for path in set(pruned) - set(halved))


@pytest.fixture(scope="module")
def rows_of_digits():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = (loaded.images / 16).astype("float32"), loaded.target.astype("int64")
    return ok.Data(train=(x[:200], y[:200]), test=(x[200:300], y[200:300]))


def test_attention_is_pruned_and_what_is_named_in_all_its_weights(rows_of_digits):
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8))
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = layers.PReLU(name="slopes")(y)
    model = keras.Model(x, layers.Dense(10, "softmax")(layers.Flatten()(y)))
    item = ok.Prune(0.5, 1, layers={"slopes": 0.25})
    result = ok.Pipeline([item]).run(model, rows_of_digits)
    found = {p: np.mean(v.numpy() == 0) for p, v in variables_by_path(result.model).items()}
    assert sum(p.startswith("attention") and s == 0.5 for p, s in found.items()) == 4
    assert found["slopes/alpha"] >= 0.25, "its zeros from the start count as pruned"


def test_a_frozen_part_of_a_layer_is_left_alone(rows_of_digits):
    import tf_keras as keras

    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Bidirectional(keras.layers.GRU(4), name="both"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.layers[0].forward_layer.trainable = False
    result = ok.Pipeline([ok.Prune(0.5, 1)]).run(model, rows_of_digits)
    for path, variable in variables_by_path(result.model).items():
        if "forward" in path:
            assert np.array_equal(variable, variables_by_path(model)[path])
        elif path.endswith("kernel"):
            assert np.mean(variable.numpy() == 0) == pytest.approx(0.5, abs=0.02)


def test_paths_of_layers_that_layers_make_survive_copying():
    """Keras numbers them through the whole process."""
    import tf_keras as keras

    class Block(keras.layers.Layer):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(4)

        def call(self, x):
            return self.second(self.first(x))

    model = keras.Sequential([keras.Input((4,)), Block(name="block")])
    paths = variables_by_path(model)
    assert len(paths) == 4
    again = variables_by_path(clone(clone(model)))
    assert {p: v.shape for p, v in again.items()} == {p: v.shape for p, v in paths.items()}
    model.layers[0].first.trainable = False
    assert list(variables_by_path(model)) == list(paths), "flags change no path"


def test_what_lookups_have_learned_is_copied():
    import tf_keras as keras

    layers = keras.layers
    words = np.array([["a b"], ["b c c"]], dtype=object)
    vectorize = layers.TextVectorization(output_mode="tf_idf")
    vectorize.adapt(words[:, 0])
    number = keras.Input((2,), name="number")
    edges = layers.Discretization(num_bins=3)
    edges.adapt(rows(50, (2,)))
    text = keras.Input((1,), dtype="string", name="text")
    parts = [vectorize(text), layers.CategoryEncoding(3, "multi_hot")(edges(number))]
    model = keras.Model([text, number], layers.Dense(2)(layers.Concatenate()(parts)))
    x = [words, rows(2, (2,))]
    assert np.allclose(clone(model)(x), model(x), atol=1e-6)


def odd():
    """Models with something beside their layers, and how that is refused."""
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers
    x = keras.Input((6,))
    hidden = layers.Dense(4)(x)
    lost = keras.Model(x, layers.Dense(2)(hidden))
    lost.add_loss(tf.reduce_mean(hidden**2))
    counted = keras.Model(x, layers.Dense(2)(hidden))
    counted.add_metric(tf.reduce_mean(hidden), "size")

    class Tied(layers.Layer):
        def __init__(self, other, **keywords):
            super().__init__(**keywords)
            self.other = other

        def call(self, x):
            return x @ tf.transpose(self.other.kernel)

    first = layers.Dense(4)
    tied = keras.Model(x, Tied(first)(first(x)))
    stateful = keras.Sequential(
        [
            keras.Input((3, 2), batch_size=1),
            layers.Bidirectional(layers.LSTM(2, stateful=True)),
        ]
    )
    return {
        "loss": (lost, "`model.add_loss"),
        "metric": (counted, "`model.add_metric"),
        "tied": (tied, "cannot be copied"),
        "stateful": (stateful, "stateful"),
    }


@pytest.mark.parametrize("name", list(odd()))
def test_what_hangs_beside_the_layers_is_refused(name):
    model, message = odd()[name]
    treat = clone if name == "tied" else check_treatable
    with pytest.raises(ok.ModelError, match=message):
        treat(model)


def test_regularizers_of_activations_act_in_training_as_in_keras():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, activity_regularizer=keras.regularizers.L2(1.0))
    model = keras.Sequential([keras.Input((6,)), layer])
    x, y = rows(16), rows(16, (3,)) * 2
    twin = clone(model)
    twin.compile(keras.optimizers.SGD(0.1), "mse")
    twin.fit(x, y, batch_size=16, epochs=1, verbose=0)
    optimizer = keras.optimizers.SGD(0.1)
    item = ok.FineTune(1, 0.1, optimizer=optimizer, patience=None)
    data = ok.Data(train=(x, y), test=(x, y), batch_size=16)
    result = ok.Pipeline([item]).run(model, data)
    for one, other in zip(result.model.get_weights(), twin.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_batch_norm_of_16_bit_models_is_re_estimated(rows_of_digits):
    """And comes to what a float32 model of the same weights comes to."""
    import tf_keras as keras

    def build(policy):
        keras.utils.set_random_seed(0)
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((8, 8)),
                layers.Flatten(),
                layers.BatchNormalization(dtype=policy),
                layers.Dense(6, "relu", dtype=policy),
                layers.BatchNormalization(dtype=policy, name="norm"),
                layers.Dense(10, "softmax"),
            ]
        )

    found = [
        ok.Pipeline([ok.BNReestimate()]).run(build(policy), rows_of_digits).model.get_layer("norm")
        for policy in ("float32", "mixed_float16")
    ]
    assert np.allclose(found[0].moving_mean, found[1].moving_mean, atol=5e-3)
    assert np.allclose(found[0].moving_variance, found[1].moving_variance, rtol=1e-2)


def test_a_keras_3_backbone_in_memory_and_from_its_file(data, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    maps = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    backbone = keras.Model(image, layers.GlobalAveragePooling2D()(maps), name="three")
    backbone.save(tmp_path / "three.keras")
    settings = {"epochs": 1, "fine_tune_epochs": 0}
    for given in (backbone, tmp_path / "three.keras"):
        result = ok.Pipeline([ok.TransferLearn(given, **settings)]).run(small_model(), data)
        kernel = result.model.get_layer("conv").kernel
        assert np.allclose(kernel, backbone.get_layer("conv").kernel), "frozen in stage one"


def test_a_head_for_several_outputs_is_refused():
    import tf_keras as keras

    x = keras.Input((6,))
    parts = [keras.layers.Dense(n, "softmax", name=f"of_{n}")(x) for n in (2, 3)]
    model = keras.Model(x, parts)
    y = {"of_2": np.arange(12) % 2, "of_3": np.arange(12) % 3}
    with pytest.raises(ok.PipelineError, match=r"2 outputs \(of_2, of_3\)"):
        ok.Pipeline([ok.TransferLearn()]).check(model, ok.Data(train=(rows(), y)))
