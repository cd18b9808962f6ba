"""`sensitivity`: each layer by itself, held against figures that were found another way."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import optkit as ok
from optkit.quantize.judge import relative_error
from optkit.testing import digits, small_model

FEATURES, CLASSES, SAMPLES = 8, 4, 160


@pytest.fixture(scope="module")
def table():
    """Features and classes that a dense model can tell apart."""
    rng = np.random.default_rng(3)
    centers = rng.normal(size=(CLASSES, FEATURES))
    y = np.arange(SAMPLES) % CLASSES
    x = (centers[y] + 0.7 * rng.normal(size=(SAMPLES, FEATURES))).astype("float32")
    return x, y.astype("int64"), centers


def two_layers(seed=0, activation=None):
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    return tf_keras.Sequential(
        [
            tf_keras.Input((FEATURES,), name="x"),
            tf_keras.layers.Dense(6, activation="relu", name="hidden", bias_initializer="normal"),
            tf_keras.layers.Dense(CLASSES, activation=activation, name="scores"),
        ],
        name="two",
    )


def rows(found):
    return {(row.layer, row.amount): row for row in found.layers}


def row(found, layer, amount=None):
    return rows(found)[layer, amount]


# ------------------------------------------------------------------------------- by other means


def integers_of_a_dense_layer(x, kernel, bias, out_range):
    """A fully connected layer with ReLU in 8 bits (Jacob et al., 2018), written out in NumPy."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    in_scale = np.float64(high - low) / 255
    in_zero = np.rint(-128 - low / in_scale)
    out_scale = np.float64(out_range) / 255
    scale = np.abs(kernel).max(axis=0) / 127
    stored_kernel = np.clip(np.rint(kernel / scale), -127, 127)
    stored_bias = np.rint(bias / (in_scale * scale))
    stored = np.clip(np.rint(x / in_scale) + in_zero, -128, 127)
    sums = (stored - in_zero) @ stored_kernel + stored_bias
    out = np.clip(np.rint(sums * in_scale * scale / out_scale) - 128, -128, 127)
    return (out + 128) * out_scale


def test_a_dense_layer_in_8_bits_is_what_the_formula_gives(table):
    x, y, _ = table
    model = two_layers()
    kernel, bias, second, second_bias = (weight.astype("float64") for weight in model.get_weights())
    hidden = np.maximum(x @ kernel + bias, 0)
    wanted = hidden @ second + second_bias
    rounded = integers_of_a_dense_layer(x.astype("float64"), kernel, bias, hidden.max())
    expected = relative_error(wanted, rounded @ second + second_bias)
    data = ok.Data(validation=(x, y), calibration=x)
    found = ok.sensitivity(model, data, "int8", layers=["hidden"])
    assert found.order == ("hidden",)
    assert 0.001 < expected < 0.05
    # Ties in rounding, and multipliers of 31 bits, are all that may differ.
    assert row(found, "hidden").error == pytest.approx(expected, rel=0.02)
    assert row(found, "hidden").bits == 8


def test_4_bits_are_what_a_copy_with_rounded_weights_gives(table):
    import tf_keras

    x, y, _ = table
    model = two_layers()
    found = ok.sensitivity(model, (x, y), "int4")
    assert set(found.order) == {"hidden", "scores"}
    for name in found.order:
        twin = tf_keras.models.clone_model(model)
        twin.set_weights(model.get_weights())
        kernel, bias = twin.get_layer(name).get_weights()
        scale = np.abs(kernel).max(axis=0) / 7
        twin.get_layer(name).set_weights([np.rint(kernel / scale) * scale, bias])
        expected = relative_error(model.predict(x, verbose=0), twin.predict(x, verbose=0))
        got = row(found, name)
        assert got.error == pytest.approx(expected, rel=1e-4)
        assert got.bits == 4
        # A bias of zeros is left out of the file.
        assert got.bytes == 4 * (kernel.size + (bias.size if bias.any() else 0))
        assert got.saved_bytes == kernel.size * 7 // 2


def test_pruning_is_what_a_copy_pruned_by_hand_gives(trained, data):
    import tf_keras

    x, y = data.validation
    amounts = (0.9, 0.3)
    found = ok.sensitivity(trained, data, "prune", amounts=amounts)
    wanted = trained.predict(x, verbose=0)
    kernels = [layer for layer in trained.layers if hasattr(layer, "kernel")]
    assert set(found.order) == {layer.name for layer in kernels}
    assert found.score == pytest.approx(np.mean(wanted.argmax(-1) == y))
    for layer in kernels:
        for amount in amounts:
            twin = tf_keras.models.clone_model(trained)
            twin.set_weights(trained.get_weights())
            kernel, *rest = twin.get_layer(layer.name).get_weights()
            limit = np.sort(np.abs(kernel), axis=None)[round(amount * kernel.size)]
            pruned = np.where(np.abs(kernel) >= limit, kernel, 0)
            twin.get_layer(layer.name).set_weights([pruned, *rest])
            outputs = twin.predict(x, verbose=0)
            got = row(found, layer.name, amount)
            assert got.error == pytest.approx(relative_error(wanted, outputs), rel=1e-3)
            assert got.score == pytest.approx(np.mean(outputs.argmax(-1) == y))
            assert got.change == pytest.approx(got.score - found.score)
            assert got.change_ci[0] <= got.change <= got.change_ci[1]
            assert got.saved_bytes == 4 * (kernel == 0).sum() + 4 * (pruned == 0).sum()
            assert got.bytes == 4 * kernel.size


def test_nothing_but_the_layer_is_quantized(data):
    from optkit.quantize import calibrate, float_file, float_operations
    from optkit.quantize.scan import quantize_alone, round_alone
    from optkit.quantize.select import groups

    file = float_file(small_model())
    x = data.validation[0][:20]
    ranges = calibrate(file, lambda: ([x[i : i + 1]] for i in range(20)))
    every = len(float_operations(file.content))
    for operations in groups(file).values():
        content = quantize_alone(file, ranges, operations)
        assert len(float_operations(content)) == every - len(operations)
        made = ok.TFLiteArtifact(content)
        assert [port.dtype for port in (*made.inputs, *made.outputs)] == [np.float32, np.float32]
    assert round_alone(file, groups(file)["pool"], 4) is None
    rounded = round_alone(file, groups(file)["conv"], 8)
    layers = {item.name: item for item in ok.TFLiteArtifact(rounded.content).layers()}
    assert {item.dtype for item in layers.values() if item.parameters} == {"float32"}
    assert rounded.bits == 8
    assert rounded.saved == 3 * 72


def test_a_kernel_in_two_places_is_rounded_where_the_layer_is_alone(table):
    """Constants that happen to be equal are stored once; the other layer keeps its own."""
    import tf_keras

    x = table[0]
    given = tf_keras.Input((FEATURES,), name="x")
    first, second = (tf_keras.layers.Dense(3, name=name) for name in ("first", "second"))
    above = tf_keras.layers.ReLU()(given)  # of another input, or one operator would do for both
    model = tf_keras.Model(given, tf_keras.layers.Concatenate()([first(given), second(above)]))
    kernel = np.random.default_rng(1).normal(size=(FEATURES, 3)).astype("float32")
    for layer in (first, second):
        layer.set_weights([kernel, np.zeros(3)])
    model.compile("sgd", "mse")
    wanted = model.predict(x, verbose=0)
    found = ok.sensitivity(model, (x, wanted), "int4", metric="mse")
    scale = np.abs(kernel).max(axis=0) / 7
    rounded = np.rint(kernel / scale) * scale
    one, other = x @ rounded, np.maximum(x, 0) @ rounded
    expected = {
        "first": relative_error(wanted, np.hstack([one, wanted[:, 3:]])),
        "second": relative_error(wanted, np.hstack([wanted[:, :3], other])),
    }
    assert {item.layer: item.error for item in found.layers} == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------------------------- the order


@pytest.fixture(scope="module")
def spoilt(table):
    """A model with one layer of which few bits and few weights leave nothing.

    Half of what goes into it is always 0, and the weights for that are a thousand times those that
    count: they make the steps coarse, and are the last to be pruned.
    """
    import tf_keras

    x, y, centers = table
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((FEATURES,), name="x"),
            layers.Dense(2 * FEATURES, name="first"),
            layers.Dense(FEATURES, name="spoilt"),
            layers.Dense(CLASSES, activation="softmax", name="scores"),
        ],
        name="spoilt_model",
    )
    eye, nothing = np.eye(FEATURES), np.zeros((FEATURES, FEATURES))
    rng = np.random.default_rng(0)
    mixing = eye + 0.1 * rng.normal(size=eye.shape)
    dead = 1000 * (1 + rng.random(eye.shape))
    model.get_layer("first").set_weights([np.hstack([eye, nothing]), np.zeros(2 * FEATURES)])
    model.get_layer("spoilt").set_weights([np.vstack([mixing, dead]), np.zeros(FEATURES)])
    bias = -0.5 * (centers**2).sum(axis=1)
    model.get_layer("scores").set_weights([np.linalg.inv(mixing) @ centers.T, bias])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, ok.Data(train=(x, y), validation=(x, y), test=(x, y))


@pytest.mark.parametrize("method", ["int8", "int4", "prune"])
def test_the_layer_made_bad_on_purpose_comes_first(spoilt, method):
    model, data = spoilt
    found = ok.sensitivity(model, data, method)
    assert found.score > 0.85
    assert found.order[0] == "spoilt"
    assert set(found.order) == {"first", "spoilt", "scores"}
    worst = found.layers[0]
    assert worst.error > 0.9  # as wrong as the mean output
    assert worst.change_ci[1] < -0.2
    if method == "int8":
        assert all(item.error < 0.02 and item.change_ci[1] > 0 for item in found.layers[1:])


def test_the_search_of_the_pass_agrees(spoilt, untimed):
    model, data = spoilt
    found = ok.sensitivity(model, data, "int8")
    searching = ok.QuantizeINT8(keep_float="auto", max_drop=0.05, repairs="exact", ranges="minmax")
    result = ok.Pipeline([searching]).run(model, data, progress=False)
    (scan,) = (s for s in result.report.rows[0].studies if s.columns[0] == "layer in float")
    assert scan.rows[0][0] == found.order[0]
    kept = {row[0] for row in scan.rows if row[-1]}
    assert kept == {found.order[0]}


def test_names_go_straight_into_the_passes(spoilt, untimed):
    model, data = spoilt
    worst = ok.sensitivity(model, data, "int8").worst(1)
    plain = ok.Pipeline([ok.QuantizeINT8(repairs="exact")]).run(model, data, progress=False)
    kept = ok.Pipeline([ok.QuantizeINT8(keep_float=worst)]).run(model, data, progress=False)
    assert plain.report.final.accuracy < 0.6
    assert kept.report.final.accuracy > 0.85
    found = ok.sensitivity(model, data, "prune", amounts=[0.2, 0.5])
    amounts = {item.layer: item.amount for item in found.layers if item.error < 0.5}
    ok.Pipeline([ok.Prune(0.5, layers={"spoilt": 0, **amounts})]).check(model, data)
    ok.Pipeline([ok.Prune(0.5, exclude=found.worst(1))]).check(model, data)


def test_layers_come_by_error_and_amounts_in_order(trained, data):
    found = ok.sensitivity(trained, data, "prune", amounts=[0.9, 0.5])
    assert [item.amount for item in found.layers] == [0.5, 0.9] * len(found.order)
    means = [np.mean([row(found, name, a).error for a in (0.5, 0.9)]) for name in found.order]
    assert means == sorted(means, reverse=True)
    assert found.worst(2) == list(found.order[:2])


# --------------------------------------------------------------------------------- what is counted


def test_bytes_and_operations_of_a_convolution():
    found = ok.sensitivity(small_model(), digits(200), "int8")
    conv, classes = row(found, "conv"), row(found, "classes")
    assert conv.operations == 8 * 8 * 8 * 9  # 9 for each of 8 by 8 places and 8 channels
    assert classes.operations == 80
    assert conv.saved_bytes == 3 * 72
    assert classes.saved_bytes == 3 * 80
    assert conv.bytes == 4 * (72 + 8)  # with what batch normalization adds
    assert row(found, "pool").bits is None


def test_operations_of_every_kind_of_product():
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((6, 6, 4), name="image"),
            layers.ZeroPadding2D(1, name="pad"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Conv2DTranspose(5, 2, strides=2, name="transposed"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ]
    )
    x, y = np.random.default_rng(0).normal(size=(20, 6, 6, 4)).astype("float32"), np.arange(20) % 3
    found = ok.sensitivity(model, (x, y), "int8")
    assert row(found, "depthwise").operations == 6 * 6 * 4 * 9
    assert row(found, "transposed").operations == 6 * 6 * 4 * 2 * 2 * 5
    assert row(found, "scores").operations == 12 * 12 * 5 * 3
    assert {"pad", "flat"}.isdisjoint(found.order)
    assert row(found, "depthwise").kind == "DepthwiseConv2D"
    fewer = ok.sensitivity(model, (x, y), "int4")
    assert row(fewer, "depthwise").bits == 8
    assert row(fewer, "transposed").bits == 4


def test_weights_of_samples_count_where_asked(table):
    x, y, _ = table
    weights = np.where(y == 0, 5.0, 1.0)
    model = two_layers(activation="softmax")
    measure = ok.Measure(metric="accuracy", sample_weight=True)
    found = ok.sensitivity(model, (x, y, weights), "prune", measure=measure, amounts=[0.8])
    right = model.predict(x, verbose=0).argmax(-1) == y
    assert found.score == pytest.approx(np.average(right, weights=weights))
    plain = ok.sensitivity(model, (x, y, weights), "prune", metric="accuracy", amounts=[0.8])
    assert plain.score == pytest.approx(right.mean())
    assert plain.score != pytest.approx(found.score)
    assert all(item.change_ci is not None for item in found.layers)


def test_a_figure_of_all_samples_has_no_interval(table):
    x, y, _ = table

    def share(y_true, y_pred):
        return float(np.mean(y_pred.argmax(axis=-1) == y_true))

    measure = ok.Measure(metric=share, higher_is_better=True)
    found = ok.sensitivity(two_layers(), (x, y), "int4", measure=measure, loss=logits())
    assert found.metric == "share"
    assert all(item.change_ci is None for item in found.layers)


def logits():
    import tf_keras

    return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# -------------------------------------------------------------------------------------- the samples


def test_the_test_split_is_never_read(trained, data):
    def never():
        raise AssertionError("the test split was read")

    x, y = data.train
    given = ok.Data(train=(x, y), test=never, steps={"test": 3})
    found = ok.sensitivity(trained, given, "prune", amounts=[0.5])
    assert found.samples == round(0.2 * len(x))
    assert any("validation: cut from train (20%, stratified" in note for note in found.notes)
    assert given.test is never


def test_only_a_test_split_is_refused(trained, data):
    with pytest.raises(ok.DataError, match="`validation`, which is cut from `train`"):
        ok.sensitivity(trained, ok.Data(test=data.test))


def test_samples_are_drawn_from_all_classes(table):
    x, y, _ = table
    order = np.argsort(y, kind="stable")
    seen = []

    def right(y_true, y_pred):
        seen.append(np.asarray(y_true))
        return (y_pred.argmax(axis=-1) == y_true).astype(float)

    measure = ok.Measure(metric=right, higher_is_better=True)
    given = ok.Data(validation=(x[order], y[order]))
    found = ok.sensitivity(
        two_layers(activation="softmax"), given, "int4", measure=measure, samples=40
    )
    assert found.samples == 40
    assert np.bincount(seen[-1]).tolist() == [10] * CLASSES
    again = ok.sensitivity(
        two_layers(activation="softmax"), given, "int4", measure=measure, samples=40
    )
    assert again == found


def test_streams_will_do(trained, data):
    import tensorflow as tf

    x, y = data.validation
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    found = ok.sensitivity(trained, ok.Data(validation=stream), "int4", samples=40)
    same = ok.sensitivity(trained, (x[:40], y[:40]), "int4")
    assert found.samples == 40
    assert found.layers == same.layers


# ---------------------------------------------------------------------------------- kinds of models


def kinds_of_models():
    """Models by name, each with inputs and targets."""
    import keras
    import tf_keras

    rng = np.random.default_rng(0)
    images, labels = rng.random((40, 8, 8, 1)).astype("float32"), np.arange(40) % 3

    def keras3():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
                keras.layers.Flatten(name="flat"),
                keras.layers.Dense(3, activation="softmax", name="scores"),
            ]
        )

    def nested():
        inner = tf_keras.Sequential(
            [
                tf_keras.Input((8, 8, 1)),
                tf_keras.layers.Conv2D(4, 3, name="conv"),
                tf_keras.layers.ReLU(name="relu"),
                tf_keras.layers.BatchNormalization(name="norm"),
                tf_keras.layers.Conv2D(4, 3, name="other"),
            ],
            name="inner",
        )
        outputs = tf_keras.layers.GlobalAveragePooling2D(name="pool")(inner.output)
        outputs = tf_keras.layers.Dense(3, activation="softmax", name="scores")(outputs)
        given = tf_keras.Input((8, 8, 1), name="image")
        whole = tf_keras.Model(inner.input, outputs, name="whole")
        return tf_keras.Model(given, whole(given), name="outer")

    def outputs():
        given = tf_keras.Input((8, 8, 1), name="image")
        flat = tf_keras.layers.Flatten()(given)
        one = tf_keras.layers.Dense(3, activation="softmax", name="kind")(flat)
        other = tf_keras.layers.Dense(1, name="size")(flat)
        return tf_keras.Model(given, [one, other])

    def open_sizes():
        given = tf_keras.Input((None, None, 1), name="image")
        found = tf_keras.layers.Conv2D(4, 3, activation="relu", name="conv")(given)
        found = tf_keras.layers.GlobalAveragePooling2D()(found)
        return tf_keras.Model(
            given, tf_keras.layers.Dense(3, activation="softmax", name="scores")(found)
        )

    def recurrent():
        return tf_keras.Sequential(
            [
                tf_keras.Input((5,), dtype="int32", name="words"),
                tf_keras.layers.Embedding(20, 8, name="embedding"),
                tf_keras.layers.GRU(4, name="gru"),
                tf_keras.layers.Dense(3, activation="softmax", name="scores"),
            ]
        )

    texts = np.array(["good film", "bad", "a bad film", "so so"] * 10, dtype=object)

    def words():
        vectorize = tf_keras.layers.TextVectorization(max_tokens=9, output_sequence_length=4)
        vectorize.adapt(texts)
        return tf_keras.Sequential(
            [
                tf_keras.Input((), dtype="string", name="text"),
                vectorize,
                tf_keras.layers.Embedding(9, 4, name="embedding"),
                tf_keras.layers.GlobalAveragePooling1D(),
                tf_keras.layers.Dense(3, activation="softmax", name="scores"),
            ]
        )

    both = {"kind": labels, "size": rng.random(40).astype("float32")}
    numbers = rng.integers(0, 20, (40, 5)).astype("int32")
    return {
        "keras3": (keras3, images, labels, {"conv", "scores"}),
        "nested": (nested, images, labels, {"whole/conv", "whole/other", "whole/scores"}),
        "outputs": (outputs, images, both, {"kind", "size"}),
        "open sizes": (open_sizes, images, labels, {"conv", "scores"}),
        "recurrent": (recurrent, numbers, labels, {"embedding", "gru", "scores"}),
        "words": (words, texts, labels, {"embedding", "scores"}),
    }


@pytest.mark.parametrize("method", ["int8", "int4", "prune"])
@pytest.mark.parametrize(
    "name", ["keras3", "nested", "outputs", "open sizes", "recurrent", "words"]
)
def test_whatever_the_door_admits(name, method):
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    build, x, y, names = kinds_of_models()[name]
    model = build()
    data = ok.Data(validation=(x, y))
    found = ok.sensitivity(model, data, method, amounts=(0.5, 0.7, 0.9))
    with_weights = {item.layer for item in found.layers if item.bytes}
    assert with_weights == names
    for item in found.layers:
        assert np.isfinite(item.error)
        assert item.saved_bytes <= item.bytes
        assert (item.error > 0) or not item.saved_bytes
    if method == "int8":
        shape = (8, 8, 1) if name == "open sizes" else None
        passes = ok.QuantizeINT8(keep_float=found.worst(2), input_shape=shape)
        ok.Pipeline([passes]).check(model, ok.Data(train=(x, y)))
    elif method == "prune":
        ok.Pipeline([ok.Prune(0.5, exclude=found.worst(1))]).check(model, ok.Data(train=(x, y)))
    if name == "open sizes" and method != "prune":
        assert any("inputs of open shape are those of the samples" in n for n in found.notes)


def test_a_file_will_do(trained, data, tmp_path):
    trained.save(tmp_path / "model.keras")
    found = ok.sensitivity(tmp_path / "model.keras", data, "int4")
    assert found.layers == ok.sensitivity(trained, data, "int4").layers


def test_nothing_of_the_callers_changes(spoilt):
    import tensorflow as tf

    model, data = spoilt
    weights = [weight.copy() for weight in model.get_weights()]
    optimizer = model.optimizer
    for method in ("int8", "int4", "prune"):
        random.seed(3)
        np.random.seed(3)
        tf.random.set_seed(3)
        expected = random.random(), np.random.random(), float(tf.random.uniform(()))
        random.seed(3)
        np.random.seed(3)
        tf.random.set_seed(3)
        ok.sensitivity(model, data, method)
        assert (random.random(), np.random.random(), float(tf.random.uniform(()))) == expected
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert model.optimizer is optimizer
    assert data.test is not None


# ------------------------------------------------------------------------------------- which layers


def test_layers_by_name_by_kind_and_by_what_they_were_fused_into(trained, data):
    every = ok.sensitivity(trained, data, "int4")
    first = trained.layers[0].name
    assert ok.sensitivity(trained, data, "int4", layers=[first]).order == (first,)
    dense = ok.sensitivity(trained, data, "int4", layers=["Dense"])
    assert set(dense.order) == {x.layer for x in every.layers if x.kind == "Dense"}
    # The converter fuses it with the convolution before it.
    assert ok.sensitivity(small_model(), data, "int8", layers=["relu"]).order == ("conv",)
    # This one is folded into its weights before.
    assert ok.sensitivity(small_model(), data, "int8", layers=["norm"]).order == ("conv",)


def test_what_is_left_out_is_said(table):
    import tf_keras

    x, y, _ = table
    model = two_layers()
    model.get_layer("hidden").trainable = False
    found = ok.sensitivity(model, (x, y), "prune")
    assert found.order == ("scores",)
    assert any("hidden" in note and "frozen" in note for note in found.notes)
    assert not any("THE SAME FOR ALL SAMPLES" in note for note in found.notes)
    model.get_layer("scores").set_weights([np.zeros((6, CLASSES)), np.zeros(CLASSES)])
    model.trainable = True
    for method in ("int8", "int4", "prune"):
        told = ok.sensitivity(model, (x, y), method).notes
        assert any("THE SAME FOR ALL SAMPLES" in note for note in told)
    reshaped = tf_keras.Sequential(
        [tf_keras.Input((8,)), tf_keras.layers.Reshape((2, 4), name="turned"), *small_dense()]
    )
    found = ok.sensitivity(reshaped, (x, y), "int8", layers=["turned", "scores"])
    assert found.order == ("scores",)
    assert any("turned" in note and "only move numbers" in note for note in found.notes)


def small_dense():
    import tf_keras

    return [
        tf_keras.layers.GlobalAveragePooling1D(name="mean"),
        tf_keras.layers.Dense(CLASSES, activation="softmax", name="scores"),
    ]


# --------------------------------------------------------------------------------------- the result


def test_forms_of_the_result(spoilt, tmp_path):
    model, data = spoilt
    for method in ("int8", "int4", "prune"):
        found = ok.sensitivity(model, data, method)
        assert ok.Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
        frame = found.to_frame()
        assert list(frame["layer"]) == [item.layer for item in found.layers]
        assert (frame["change_low"] <= frame["change"]).all()
        assert all(len(line) <= 100 for line in str(found).splitlines())
        assert "spoilt" in str(found)
        assert "on 160 samples of validation" in str(found)
        assert "<svg" in found._repr_html_()
        found.plot(tmp_path / f"{method}.png")
        assert (tmp_path / f"{method}.png").stat().st_size > 1000
        assert repr(found) == f"Sensitivity({method!r}, 3 layers)"
    assert len(found.study.rows) == 3
    assert found.study.columns[1:4] == ("error 0.5", "error 0.7", "error 0.9")


def test_progress_is_told_layer_by_layer(spoilt):
    model, data = spoilt
    events = []
    found = ok.sensitivity(model, data, "int8", progress=events.append)
    assert {event.name for event in events} == set(found.order)
    assert [event.step for event in events] == [1, 2, 3]
    assert {event.steps for event in events} == {3}
    figures = dict(events[0].figures)
    assert figures["output error"] == row(found, events[0].name).error


# ------------------------------------------------------------------------------------ what is wrong


def test_wrong_arguments_are_refused(table):
    x, y, _ = table
    model, data = two_layers(), (x, y)
    refused = [
        ({"method": "int3"}, "must be one of 'int8', 'int4', 'prune'"),
        ({"layers": ["hiden"]}, "`layers` names 'hiden'.*nearest are hidden"),
        ({"layers": "hidden"}, "`layers` must be a list"),
        ({"layers": []}, "at least one"),
        ({"layers": [3]}, "`layers` must hold names"),
        (
            {"method": "prune", "amounts": (0.5, 1.0)},
            r"`amounts\[1\]` must be a number in \(0, 1\)",
        ),
        ({"method": "prune", "amounts": 0.5}, "`amounts` must be a list"),
        ({"method": "prune", "amounts": ()}, "at least one share"),
        ({"method": "prune", "layers": ["InputLayer"]}, "no layer and no kind|None of the layers"),
        ({"amounts": (0.5,)}, "the method is 'int8'"),
        ({"samples": 0}, "`samples` must be at least 1"),
        ({"calibration_samples": 0}, "`calibration_samples` must be at least 1"),
        ({"metric": "mae", "measure": ok.Measure()}, "given twice"),
        ({"measure": "mae"}, "must be an `optkit.Measure`"),
        ({"progress": 3}, "`progress` must be"),
        ({"input_shape": "8"}, "`input_shape` must be a tuple"),
        ({"seed": -1}, "`seed` must be"),
    ]
    for arguments, text in refused:
        with pytest.raises(ok.PipelineError, match=text):
            ok.sensitivity(model, data, **arguments)
    with pytest.raises(ok.ArgumentTypeError, match=r"`data` must be an `optkit\.Data`"):
        ok.sensitivity(model, [x, y])


def test_what_loops_inside_is_refused_in_8_bits_and_can_be_pruned(table):
    import tensorflow as tf
    import tf_keras

    x, y, _ = table
    given = tf_keras.Input((FEATURES,), name="x")
    looped = tf_keras.layers.Lambda(lambda rows: tf.map_fn(tf.math.cumsum, rows), name="loop")
    scores = tf_keras.layers.Dense(CLASSES, activation="softmax", name="scores")
    model = tf_keras.Model(given, scores(looped(given)))
    with pytest.raises(ok.ModelError, match=r"Loops or branches are left.*'prune'"):
        ok.sensitivity(model, (x, y), "int8")
    assert ok.sensitivity(model, (x, y), "prune").order == ("scores",)


def test_models_without_layers_or_weights_are_refused(trained, data, tmp_path):
    import tf_keras

    from optkit.convert import convert_to_tflite

    file = ok.TFLiteArtifact(convert_to_tflite(trained))
    path = file.save(tmp_path / "model.tflite")
    for given in (file, path, str(path)):
        with pytest.raises(ok.ModelError, match=r"converted file.*Keras model that it was made of"):
            ok.sensitivity(given, data)
    empty = tf_keras.Sequential(
        [tf_keras.Input((8, 8, 1)), tf_keras.layers.Flatten(), tf_keras.layers.Softmax()]
    )
    images = data.validation[0][:20], np.arange(20)
    with pytest.raises(ok.ModelError, match="no weights of two and more dimensions"):
        ok.sensitivity(empty, images)
    with pytest.raises(ok.ModelError, match="Expected a Keras model"):
        ok.sensitivity(3, data)


def test_a_graph_without_layers_is_refused(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(tf.ones((3, 2)))
    module.call = tf.function(
        lambda x: x @ module.weight, input_signature=[tf.TensorSpec((None, 3), tf.float32)]
    )
    tf.saved_model.save(module, tmp_path, {"serving_default": module.call})
    data = np.ones((8, 3), "float32"), np.arange(8) % 2
    with pytest.raises(ok.ModelError, match="graph without layers"):
        ok.sensitivity(tmp_path, data)
