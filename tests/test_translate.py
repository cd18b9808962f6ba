"""Models from Keras 3 to tf_keras and back: equal outputs, weights, names, flags, compile state."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers, ops
from translate_cases import CASES, build3, randomize

import optkit as ok
from benchmarks.translation import FAMILIES, LIMIT, measure
from optkit.errors import ArgumentTypeError, ModelError
from optkit.models import clone, signature, variables_by_path
from optkit.translate import (
    object_to_keras3,
    object_to_tf_keras,
    register_layer,
    to_keras3,
    to_tf_keras,
)
from optkit.translate.carrier2 import KerasOperation
from optkit.translate.carrier3 import TfKerasLayer, tensorflow_function

pytestmark = pytest.mark.usefixtures("untimed")

# Keras 3 says so where a layer without masks gets one; that is the case under test.
MASKS = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")
RNG = np.random.default_rng(5)


def outputs(model, x, **kwargs):
    return [np.asarray(part) for part in keras.tree.flatten(model(x, **kwargs))]


def assert_close(expected, received, limit=1e-5, dtypes=True):
    assert len(expected) == len(received)
    for one, other in zip(expected, received, strict=True):
        assert one.dtype == other.dtype or not dtypes
        assert one.shape == other.shape
        if one.dtype.kind == "f":
            scale = max(float(np.abs(np.nan_to_num(one)).max(initial=0)), 1e-6)
            np.testing.assert_allclose(other, one, atol=limit * scale, rtol=0)
        else:
            np.testing.assert_array_equal(one, other)


def there_and_back(model, x):
    """The translation; it, its copy, its file and the way back give what the model gives."""
    expected = outputs(model, x)
    translated = to_tf_keras(model)
    assert_close(expected, outputs(translated, x))
    assert_close(expected, outputs(clone(translated), x))
    back = to_keras3(translated)
    assert_close(expected, outputs(back, x))
    assert translated.count_params() == back.count_params() == model.count_params()
    assert len(translated.trainable_weights) == len(model.trainable_weights)
    assert len(back.trainable_weights) == len(model.trainable_weights)
    return translated, back


# -- every layer -----------------------------------------------------------------------------------

#: What is no layer to put into a model, or needs another library.
_NO_LAYERS = {"InputLayer", "InputSpec", "Layer", "Wrapper", "Pipeline"}
_OTHER_LIBRARIES = {"FlaxLayer", "JaxLayer", "TorchModuleWrapper", "TFSMLayer"}
#: Of object detection data, or broken as a part of a functional model in Keras 3.15.
_NOT_IN_GRAPHS = {"MaxNumBoundingBoxes", "Equalization"}


def test_every_layer_class_of_keras_3_has_its_cases():
    classes = {name: found for name, found in vars(layers).items() if inspect.isclass(found)}
    aliases = {name for name, found in classes.items() if found.__name__ in classes.keys() - {name}}
    assert set(classes) - aliases - _NO_LAYERS - _OTHER_LIBRARIES - _NOT_IN_GRAPHS == set(CASES)


_COUNTING = ("Discretization", "IntegerLookup", "TextVectorization")


@MASKS
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, cases in CASES.items() for n in range(len(cases))]
)
def test_layers_are_equal_both_ways(name, number):
    model, x = build3(CASES[name][number])
    expected = outputs(model, x, training=False)
    translated = to_tf_keras(model)
    # Of counts and indices, tf_keras makes other integers or floats.
    assert_close(expected, outputs(translated, x, training=False), dtypes=name not in _COUNTING)
    back = to_keras3(translated)
    assert_close(expected, outputs(back, x, training=False), dtypes=name not in _COUNTING)
    assert translated.count_params() == model.count_params() == back.count_params()
    assert {layer.name for layer in back.layers} == {layer.name for layer in model.layers}


@pytest.mark.parametrize(
    "name", ["Dense", "LSTM", "BatchNormalization", "RMSNormalization", "MultiHeadAttention"]
)
def test_gradients_are_equal(name):
    model, x = build3(CASES[name][0])
    translated = to_tf_keras(model)

    def gradients(network):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(network(x, training=True)))
        weights = network.trainable_weights
        values = [v.value if isinstance(v, keras.Variable) else v for v in weights]
        found = tape.gradient(loss, values)
        return sorted(float(tf.norm(part)) for part in found)

    np.testing.assert_allclose(gradients(translated), gradients(model), rtol=1e-4, atol=1e-4)


# -- operations ------------------------------------------------------------------------------------

OPERATIONS = {
    "arithmetic": lambda x: (1.0 - x) * 2.0 + x / 3.0 - ops.abs(x) ** 1.5,
    "modulo": lambda x: x % 2.0 + x // 0.7,
    "constant": lambda x: x * np.arange(6, dtype="float32"),
    "integers": lambda x: ops.cast(x, "int32") + np.arange(6, dtype="int32"),
    "reshape": lambda x: ops.reshape(x, (-1, 3, 8)),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1)),
    "concatenate": lambda x: ops.concatenate([x, x * 2.0], axis=-1),
    "stack": lambda x: ops.stack([x, x + 1.0], axis=1),
    "mean": lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
    "matmul": lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))),
    "softmax": lambda x: ops.softmax(x, axis=1),
    "slicing": lambda x: x[:, 1:3, ..., ::2],
    "new axis": lambda x: x[:, None, :, 0],
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=3.0),
    "resize": lambda x: ops.image.resize(x[..., None], (7, 5)),
    "split": lambda x: ops.split(x, 2, axis=-1)[1],
    "where": lambda x: ops.where(x > 0, x, 0.0),
    "clip": lambda x: ops.clip(x, -0.5, 0.5),
    "einsum": lambda x: ops.einsum("abc,adc->abd", x, x),
    "top k": lambda x: ops.top_k(x, 2)[0],
    "one hot": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 6),
    "take": lambda x: ops.take(x, np.array([0, 2]), axis=1),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "norm": lambda x: ops.norm(x, axis=-1),
    "expand and squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 1) * 2.0, 1),
    "tile and repeat": lambda x: ops.repeat(ops.tile(x, (1, 2, 1)), 2, axis=1),
    "conv": lambda x: ops.conv(x, np.ones((2, 6, 3), "float32")),
    "average pool": lambda x: ops.average_pool(x, 2),
    "logical": lambda x: ops.logical_and(x > 0, x < 1),
    "attention": lambda x: ops.dot_product_attention(*[ops.reshape(x, (-1, 4, 2, 3))] * 3),
    "dict": lambda x: {"b": x * 2.0, "a": x + 1.0},
    "fourier": lambda x: ops.rfft(x)[0],
    "several": lambda x: ops.moments(x, axes=(1,)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_equal_copied_saved_and_brought_back(name, tmp_path):
    inputs = keras.Input((4, 6), name="x")
    model = keras.Model(inputs, OPERATIONS[name](inputs))
    x = RNG.normal(size=(3, 4, 6)).astype("float32")
    translated, back = there_and_back(model, x)
    names = [operation.name for operation in model.operations]
    assert sorted(layer.name for layer in translated.layers) == sorted(names)
    assert sorted(operation.name for operation in back.operations) == sorted(names)
    translated.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    assert_close(outputs(model, x), outputs(again, x))


def test_a_file_is_read_in_another_process(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.RMSNormalization()(ops.tanh(inputs)))
    translated = to_tf_keras(model)
    translated.save(tmp_path / "model.keras")
    expected = float(translated(np.ones((1, 4)))[0, 0])
    script = (
        "import tf_keras, numpy as np\n"
        "from optkit.translate import register_carriers\n"
        "register_carriers()\n"
        f"model = tf_keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        "print(float(model(np.ones((1, 4)))[0, 0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)


def test_a_carrier_revives_no_module_that_a_file_names():
    stored = {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["true"]},
        "registered_name": "Popen",
    }
    with pytest.raises(ModelError, match="not known here"):
        KerasOperation.from_config({"name": "x", "operation": stored})
    with pytest.raises(ModelError, match="not known here"):
        TfKerasLayer.from_config({"name": "x", "layer": stored})
    nested = keras.saving.serialize_keras_object(layers.Dense(2))
    nested["config"]["kernel_initializer"] = stored
    with pytest.raises(ModelError, match="not known here"):
        KerasOperation.from_config({"name": "x", "operation": nested})
    for symbol in ("io.read_file", "py_function", "raw_ops.WriteFile", "keras.models.load_model"):
        with pytest.raises(ModelError, match="not among the functions"):
            tensorflow_function(symbol)


def test_a_lambda_in_a_carrier_is_refused():
    stored = keras.saving.serialize_keras_object(layers.Lambda(lambda x: x * 2))
    with pytest.raises(ValueError, match=r"lambda|Lambda"):
        KerasOperation.from_config({"name": "x", "operation": stored})


# -- models ----------------------------------------------------------------------------------------


def _images(**options):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="hard_silu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = ops.relu(x) * 2.0
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(10, "softmax", name="out")(x), name="digits")
    randomize(model)
    if options:
        model.compile(**options)
    return model


def test_names_weights_and_signature_are_kept():
    model = _images()
    translated, back = there_and_back(model, RNG.normal(size=(3, 8, 8, 1)).astype("float32"))
    shape = signature(translated)
    assert [info.name for info in shape.inputs] == ["image"]
    assert [info.name for info in shape.outputs] == ["out"]
    assert translated.name == back.name == "digits"
    assert list(variables_by_path(translated)) == list(variables_by_path(clone(translated)))
    assert "conv/kernel" in variables_by_path(translated)


def test_several_inputs_outputs_shared_layers_and_nested_models():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="first"), layers.BatchNormalization()],
        name="inner",
    )
    inner.layers[0].trainable = False
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    shared = layers.Dense(2, name="shared")
    left, right = shared(inner(one)), shared(inner(two))
    model = keras.Model(
        {"one": one, "two": two},
        {"both": layers.Concatenate(name="joined")([left, right]), "left": ops.tanh(left)},
        name="outer",
    )
    randomize(model)
    x = {name: RNG.normal(size=(3, 4)).astype("float32") for name in ("one", "two")}
    translated, _ = there_and_back(model, x)
    assert isinstance(translated.get_layer("inner"), tf_keras.Sequential)
    assert len(translated.get_layer("shared")._inbound_nodes) == 2
    assert not translated.get_layer("inner").layers[0].trainable
    assert set(translated(x)) == {"both", "left"}


def test_a_frozen_backbone_stays_frozen_and_in_inference_mode():
    backbone = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()], name="backbone"
    )
    backbone.trainable = False
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(backbone(inputs, training=False)))
    translated, _ = there_and_back(model, np.ones((2, 4), "float32"))
    assert not translated.get_layer("backbone").trainable
    assert len(translated.trainable_weights) == 2


def test_dropout_is_active_in_training_alone():
    inputs = keras.Input((5, 20))
    x = layers.LSTM(20, return_sequences=True, dropout=0.5)(layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, layers.RMSNormalization()(layers.GaussianNoise(1.0)(x)))
    x = RNG.normal(size=(3, 5, 20)).astype("float32")
    translated, back = there_and_back(model, x)
    for network in (translated, back):
        assert_close(outputs(network, x), outputs(network, x, training=False))
        assert np.abs(network(x, training=True) - network(x, training=False)).max() > 0.01


@MASKS
def test_masks_reach_the_layers_behind():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.Identity()(x)  # tf_keras' own Identity would drop it
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    pooled = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, pooled)
    randomize(model)
    x = np.array([[1, 2, 0, 0], [3, 1, 4, 0]])
    translated, _ = there_and_back(model, x)
    np.testing.assert_allclose(translated(x)[:1], translated(x[:1, :2]), atol=1e-5)


def test_initial_states_and_several_outputs_of_a_layer():
    inputs = keras.Input((5, 3))
    sequence, *states = layers.LSTM(4, return_state=True, return_sequences=True)(inputs)
    decoded = layers.LSTM(4)(sequence, initial_state=states)
    model = keras.Model(inputs, [decoded, states[0]])
    there_and_back(model, RNG.normal(size=(2, 5, 3)).astype("float32"))


def test_mixed_precision_is_kept():
    policy = keras.DTypePolicy("mixed_float16")
    inputs = keras.Input((8,))
    x = layers.RMSNormalization(dtype=policy)(layers.Dense(4, dtype=policy)(inputs))
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    x = RNG.normal(size=(2, 8)).astype("float32")
    translated = to_tf_keras(model)
    back = to_keras3(translated)
    names = [layer.dtype_policy.name for layer in model.layers[1:]]
    assert names == ["mixed_float16", "mixed_float16", "float32"]
    for other in (translated, back):
        assert [layer.dtype_policy.name for layer in other.layers[1:]] == names
        assert_close(outputs(model, x), outputs(other, x), limit=2e-3)


class _Scale(layers.Layer):
    """Of the tests' own: a weight, a layer inside, dropout, a penalty."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inside = layers.Dense(units, kernel_regularizer="l2")
        self.dropout = layers.Dropout(0.5)

    def build(self, shape):
        self.factor = self.add_weight(shape=(self.units,), initializer="ones", name="factor")
        self.inside.build(shape)

    def call(self, x, training=False):
        self.add_loss(ops.mean(x))
        return self.dropout(self.inside(x) * self.factor, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_layer_of_ones_own_is_carried_with_all_that_it_does():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, _Scale(2, name="two")(_Scale(5, name="five")(inputs)))
    model.get_layer("two").inside.trainable = False
    x = RNG.normal(size=(4, 4)).astype("float32")
    translated, back = there_and_back(model, x)
    assert type(back.get_layer("five")) is _Scale
    assert len(clone(translated).trainable_weights) == len(model.trainable_weights) == 4
    model(x)
    translated(x)
    assert float(sum(translated.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)
    names = [weight.name for weight in translated.get_layer("five").weights]
    assert names == ["five/factor:0", "five/dense/kernel:0", "five/dense/bias:0"]
    translated.compile("sgd", "mse")
    before = {path: v.numpy() for path, v in variables_by_path(translated).items()}
    translated.fit(x, np.ones((4, 2)), verbose=0)
    moved = {p for p, v in variables_by_path(translated).items() if (v.numpy() != before[p]).any()}
    assert "five/factor" in moved
    assert not any(path.startswith("two/dense") for path in moved)
    translated.get_layer("five").trainable = False
    assert len(translated.trainable_weights) == 1


def test_the_state_of_a_carried_layer_moves_in_training():
    inputs = keras.Input((3,))
    norm = layers.SpectralNormalization(layers.Dense(3))
    translated = to_tf_keras(keras.Model(inputs, norm(inputs)))
    carrier = translated.layers[-1]
    assert isinstance(carrier, KerasOperation)
    (vector,) = (v for v in carrier.non_trainable_weights if "vector" in v.name)
    before = vector.numpy()
    translated.compile("sgd", "mse")
    translated.fit(np.full((8, 3), 5.0), np.zeros((8, 3)), verbose=0)
    assert np.abs(vector.numpy() - before).max() > 1e-3


def test_weights_of_a_carrier_are_saved_whatever_is_frozen(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, _Scale(3, name="own")(inputs))
    randomize(model)
    translated = to_tf_keras(model)
    translated.get_layer("own").trainable = False
    translated.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    assert_close(outputs(model, np.ones((1, 4))), outputs(again, np.ones((1, 4))))
    assert not again.get_layer("own").trainable


# -- from tf_keras ---------------------------------------------------------------------------------


def test_functions_of_tensorflow_in_the_graph():
    inputs = tf_keras.Input((4, 6))
    x = tf.nn.softmax(inputs * 2.0 + 1.0, axis=1)[:, 1:, ::2]
    x = tf.concat([x, tf.abs(x)], axis=-1)
    x = tf.reshape(x, [-1, 3, 6]) / tf.cast(tf.shape(inputs)[1], tf.float32)
    model = tf_keras.Model(inputs, tf.reduce_mean(x, axis=1))
    x = RNG.normal(size=(3, 4, 6)).astype("float32")
    translated = to_keras3(model)
    assert_close(outputs(model, x), outputs(translated, x))
    back = to_tf_keras(translated)
    assert_close(outputs(model, x), outputs(back, x))
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
    assert_close(outputs(model, x), outputs(clone(back), x))


def test_a_keras_3_file_of_carried_functions_and_layers_is_read_back(tmp_path):
    inputs = tf_keras.Input((6,))
    x = tf_keras.layers.LocallyConnected1D(2, 3)(tf.expand_dims(inputs, -1))
    model = tf_keras.Model(inputs, tf_keras.layers.ThresholdedReLU(0.1)(x))
    translated = to_keras3(model)
    assert sum(isinstance(layer, TfKerasLayer) for layer in translated.layers) == 2
    assert translated.count_params() == model.count_params()
    x = RNG.normal(size=(3, 6)).astype("float32")
    assert_close(outputs(model, x), outputs(translated, x))
    translated.save(tmp_path / "model.keras")
    assert_close(outputs(model, x), outputs(keras.models.load_model(tmp_path / "model.keras"), x))
    translated.compile("sgd", "mse")
    before = translated.get_weights()
    translated.fit(x, np.ones((3, 4, 2)), verbose=0)
    assert any((a != b).any() for a, b in zip(before, translated.get_weights(), strict=True))
    back = to_tf_keras(translated)
    assert isinstance(back.layers[2], tf_keras.layers.LocallyConnected1D)
    assert_close(outputs(translated, x), outputs(back, x))


class _Normed(tf_keras.layers.Layer):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = tf_keras.layers.Dense(units)
        self.norm = tf_keras.layers.BatchNormalization(momentum=0.5)

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_tf_keras_layer_of_ones_own_is_carried_with_all_that_it_does(tmp_path):
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, _Normed(name="own")(inputs))
    model.get_layer("own").dense.trainable = False
    x = RNG.normal(size=(8, 4)).astype("float32")
    translated = to_keras3(model)
    assert_close(outputs(model, x), outputs(translated, x))
    assert len(translated.trainable_weights) == len(model.trainable_weights) == 2
    translated.compile("sgd", "mse")
    before = {v.path: v.numpy() for v in translated.weights}
    translated.fit(x, np.ones((8, 3)), verbose=0)
    moved = {v.path for v in translated.weights if (v.numpy() != before[v.path]).any()}
    assert moved == {"own/gamma", "own/beta", "own/moving_mean", "own/moving_variance"}
    translated.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert_close(outputs(translated, x), outputs(again, x))
    assert len(again.trainable_weights) == 2
    again.trainable = False
    again.trainable = True
    assert len(again.trainable_weights) == 4
    back = to_tf_keras(translated)
    assert type(back.get_layer("own")) is _Normed
    assert len(back.trainable_weights) == 2
    assert_close(outputs(translated, x), outputs(back, x))


def test_names_with_slashes_are_written_as_keras_3_takes_them():
    model = tf_keras.Sequential(
        [tf_keras.Input((3,), name="in"), tf_keras.layers.Dense(2, name="block/dense")]
    )
    assert to_keras3(model).layers[-1].name == "block_dense"


# -- what the user registers -----------------------------------------------------------------------


class _Shift3(layers.Layer):
    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel) + self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}


class _Shift2(tf_keras.layers.Layer):
    def __init__(self, amount=1.0, **kwargs):
        super().__init__(**kwargs)
        self.amount = amount

    def build(self, shape):
        self.kernel = self.add_weight(shape=(2, shape[-1]), name="kernel")

    def call(self, x):
        return tf.matmul(x, self.kernel, transpose_b=True) + self.amount

    def get_config(self):
        return {**super().get_config(), "amount": self.amount}


def _renamed(old, new):
    return lambda config: {(new if key == old else key): v for key, v in config.items()}


def test_a_registered_pair_wins_over_the_carrier():
    register_layer(
        keras3=_Shift3,
        tf_keras=_Shift2,
        to_tf_keras=_renamed("by", "amount"),
        to_keras3=_renamed("amount", "by"),
        weights_to_tf_keras=lambda values: [values[0].T],
        weights_to_keras3=lambda values: [values[0].T],
    )
    assert ok.register_layer is register_layer
    inputs = keras.Input((3,))
    model = keras.Model(inputs, _Shift3(2.0, name="shift")(inputs))
    translated, back = there_and_back(model, np.ones((2, 3), "float32"))
    assert type(translated.get_layer("shift")) is _Shift2
    assert type(back.get_layer("shift")) is _Shift3
    with pytest.raises(ArgumentTypeError, match=r"`tf_keras` must be a subclass of"):
        register_layer(keras3=_Shift3, tf_keras=layers.Dense)


# -- what is refused -------------------------------------------------------------------------------


class NoConfig(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return x


def test_all_that_cannot_be_translated_is_named_with_its_place():
    inner = keras.Sequential([keras.Input((4,)), NoConfig(np.sum)], name="inner")
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="two words")(inner(inputs))
    model = keras.Model(inputs, ops.vectorized_map(lambda row: row * 2, x), name="outer")
    with pytest.raises(ModelError) as caught:
        to_tf_keras(model)
    text = str(caught.value)
    assert "'outer' cannot be translated to tf_keras" in text
    assert "inner/no_config" in text
    assert "get_config" in text
    assert "register_layer" in text
    assert "two words (Dense)" in text
    assert "VectorizedMap" in text
    assert text.count("\n  - ") == 3


def test_models_without_a_graph_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="subclassed"):
        to_tf_keras(Own())
    with pytest.raises(ModelError, match=r"not built.*keras\.Input"):
        to_tf_keras(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ModelError, match="Expected a Keras 3 model"):
        to_tf_keras(tf_keras.Sequential([tf_keras.Input((2,))]))
    with pytest.raises(ModelError, match="Expected a tf_keras model"):
        to_keras3(keras.Sequential([keras.Input((2,))]))


def test_another_backend_gets_a_remedy(monkeypatch):
    model = _images()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="KERAS_BACKEND=tensorflow"):
        to_tf_keras(model)


# -- compile state ---------------------------------------------------------------------------------


def test_compile_state_of_one_output():
    model = _images(
        optimizer=keras.optimizers.AdamW(3e-3, weight_decay=0.02),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(3, name="top")],
        weighted_metrics=["mae"],
        steps_per_execution=2,
    )
    translated = to_tf_keras(model)
    back = to_keras3(translated)
    for other, library in ((translated, tf_keras), (back, keras)):
        assert type(other.optimizer) is library.optimizers.AdamW
        assert float(other.optimizer.learning_rate) == pytest.approx(3e-3)
        assert other.optimizer.weight_decay == 0.02
        assert isinstance(other.loss, library.losses.CategoricalCrossentropy)
    x = RNG.normal(size=(8, 8, 8, 1)).astype("float32")
    y = np.eye(10, dtype="float32")[RNG.integers(0, 10, 8)]
    weights = np.linspace(0.5, 2, 8)
    expected = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    for other in (translated, back):
        found = other.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4), name


def test_compile_state_of_several_outputs():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, [layers.Dense(3, name="a")(inputs), layers.Dense(1, name="b")(inputs)]
    )

    def own(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)

    model.compile(
        "sgd",
        loss={"a": keras.losses.Huber(0.5), "b": own},
        loss_weights={"a": 0.3, "b": 2.0},
        metrics={"a": ["mse"], "b": [keras.metrics.RootMeanSquaredError()]},
    )
    translated = to_tf_keras(model)
    back = to_keras3(translated)
    x = RNG.normal(size=(8, 4)).astype("float32")
    y = {"a": RNG.normal(size=(8, 3)), "b": RNG.normal(size=(8, 1))}
    y = {key: value.astype("float32") for key, value in y.items()}
    expected = model.evaluate(x, [y["a"], y["b"]], verbose=0, return_dict=True)["loss"]
    for other in (translated, back):
        found = (
            other.evaluate(x, y, verbose=0, return_dict=True)
            if other is translated
            else (other.evaluate(x, [y["a"], y["b"]], verbose=0, return_dict=True))
        )
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_an_uncompiled_model_stays_uncompiled():
    assert to_tf_keras(_images()).optimizer is None
    assert not to_keras3(to_tf_keras(_images())).compiled


def test_what_only_keras_3_knows():
    model = _images(optimizer=keras.optimizers.Lamb(), loss="dice", metrics=["pearson_correlation"])
    translated = to_tf_keras(model)
    x = RNG.normal(size=(4, 8, 8, 1)).astype("float32")
    y = np.eye(10, dtype="float32")[[1, 2, 3, 4]]
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    found = translated.evaluate(x, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    translated.fit(x, y, verbose=0)
    back = to_keras3(translated)
    assert type(back.optimizer) is keras.optimizers.Lamb


def test_lone_layers_are_translated_with_their_weights():
    layer = layers.Dense(3, activation="hard_sigmoid", name="head")
    layer.build((None, 4))
    translated = object_to_tf_keras(layer)
    x = RNG.normal(size=(2, 4)).astype("float32")
    np.testing.assert_allclose(translated(x), layer(x), atol=1e-6)
    np.testing.assert_allclose(object_to_keras3(translated)(x), layer(x), atol=1e-6)
    assert type(object_to_tf_keras(layers.RandomFlip())) is tf_keras.layers.RandomFlip
    model = object_to_tf_keras(_images())
    assert isinstance(model, tf_keras.Model)


# -- end to end ------------------------------------------------------------------------------------


def test_a_keras_3_model_is_pruned_converted_and_brought_back(data):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 16.0)(inputs)
    x = layers.Conv2D(8, 3, activation="hard_silu", name="conv")(x)
    x = ops.concatenate([x, ops.square(x)], axis=-1)
    x = layers.RMSNormalization(name="norm")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(10, "softmax", name="out")(x))
    model.compile(
        keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    images, labels = data.train
    model.fit(images, labels, batch_size=32, epochs=4, verbose=0)
    translated = to_tf_keras(model)
    probe = images[:32]
    assert_close(outputs(model, probe), outputs(translated, probe))
    result = ok.Pipeline([ok.Prune(0.5, epochs=1)], seed=0).run(
        translated, data, measure=ok.Measure(latency_seconds=0.5, memory=False)
    )
    pruned = result.artifact.model
    kernel = variables_by_path(pruned)["conv/kernel"].numpy()
    assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.02)
    back = to_keras3(pruned)
    np.testing.assert_allclose(back(probe), result.artifact.predict(probe), atol=1e-5)
    assert np.mean(back.get_layer("conv").kernel.numpy() == 0) == pytest.approx(0.5, abs=0.02)

    from optkit.convert import convert_to_tflite

    lite = ok.TFLiteArtifact(convert_to_tflite(pruned))
    np.testing.assert_allclose(lite.predict(probe), result.artifact.predict(probe), atol=1e-4)


def test_an_artifact_keeps_carried_layers(tmp_path):
    model = _images()
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.RMSNormalization()(model(inputs) + 1.0))
    artifact = ok.KerasArtifact(to_tf_keras(model))
    artifact.save(tmp_path / "artifact.keras")
    x = RNG.normal(size=(2, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(artifact.predict(x), outputs(model, x)[0], atol=1e-5)
    loaded = ok.load(tmp_path / "artifact.keras")
    np.testing.assert_allclose(loaded.predict(x), artifact.predict(x), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "artifact.keras") as archive:
        assert b"optkit>KerasOperation" in archive.read("config.json")


# -- keras.applications ----------------------------------------------------------------------------


SMALL = "MobileNetV2"


def _close_application(name):
    row = measure(name)
    assert row["equal"], "names or parameter counts differ"
    assert row["finite"]
    figures = [value for key, value in row.items() if "→" in key]
    assert figures
    assert max(figures) < LIMIT


def test_a_small_application_is_close():
    _close_application(SMALL)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != SMALL])
def test_every_application_is_close(name):
    _close_application(name)
