"""Numbers of each pass against independent formulas, and what each refuses."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

import optkit as ok
from optkit.artifact import KerasArtifact
from optkit.data import Data
from optkit.images import value_range
from optkit.models import batch_norms, variables_by_path
from optkit.passes.augment import PRESETS, Strengths, augment_images
from optkit.passes.label_smooth import smoothed, smoothing_for
from optkit.passes.prune import pruning_schedule
from optkit.testing import digits, small_model

pytestmark = pytest.mark.usefixtures("untimed")

# ------------------------------------------------------------------------------------- FineTune


def test_fine_tune_trains_as_plain_keras_does(data):
    """One batch, so that the order does not matter: the same update as Keras' own."""
    import tf_keras as keras

    x, y = data.train
    x, y = x[:16], y[:16]
    model = small_model()
    result = ok.Pipeline(
        [ok.FineTune(1, 0.01, optimizer=keras.optimizers.SGD(1.0), patience=None)]
    ).run(model, Data(train=(x, y), test=(x, y), batch_size=16))
    expected = keras.models.clone_model(model)
    expected.set_weights(model.get_weights())
    expected.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    expected.fit(x, y, batch_size=16, epochs=1, verbose=0, shuffle=False)
    for one, other in zip(result.artifact.model.get_weights(), expected.get_weights(), strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-6)


def test_fine_tune_leaves_frozen_layers_alone(trained, data):
    from optkit.models import clone

    model = clone(trained)
    model.layers[0].trainable = False
    result = ok.Pipeline([ok.FineTune(1, 0.01)]).run(model, data)
    after = result.artifact.model
    assert np.array_equal(after.layers[0].kernel, model.layers[0].kernel)
    assert not np.array_equal(after.layers[-1].kernel, model.layers[-1].kernel)
    assert not after.layers[0].trainable


def test_nothing_to_train_is_refused(trained, data):
    from optkit.models import clone

    model = clone(trained)
    model.trainable = False
    for item in (ok.FineTune(), ok.SWA()):
        with pytest.raises(ok.PipelineError, match="frozen"):
            ok.Pipeline([item]).check(model, data)


# ---------------------------------------------------------------------------------- LabelSmooth


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_smoothing_by_the_formula(factor):
    one_hot = np.eye(4)[[0, 3]]
    expected = [
        [1 - factor + factor / 4, *[factor / 4] * 3],
        [*[factor / 4] * 3, 1 - factor * 3 / 4],
    ]
    assert np.allclose(smoothed(one_hot, factor, 4), expected)
    assert np.allclose(smoothed(one_hot, factor, 4).sum(1), 1)
    assert np.allclose(smoothed(np.array([0.0, 1.0]), factor, 2), [factor / 2, 1 - factor / 2])


def test_the_automatic_factor_is_as_documented():
    assert smoothing_for(2) == 0.05
    assert smoothing_for(3) == smoothing_for(10) == 0.1
    assert all(0.1 < smoothing_for(n) <= 0.2 for n in (11, 50, 100, 10_000))


def _targets_seen(model, data, item):
    """Trains one epoch and returns the targets that the loss saw."""
    import tensorflow as tf

    seen = []

    class Spy(ok.RecipePass):
        """Puts a loss in place that writes its targets down."""

        def amend(self, recipe):
            def loss(y_true, y_pred):
                tf.py_function(lambda y: seen.append(y.numpy()), [y_true], [])
                return tf.reduce_sum(y_pred) * 0.0

            return recipe.amended(loss=loss)

    spied = [item, ok.FineTune(1, patience=None)]
    try:
        ok.Pipeline([*spied[:-1], Spy(), spied[-1]]).run(model, data)
    finally:
        ok.Pass.registry = {k: v for k, v in ok.Pass.registry.items() if "Spy" not in k}
    return np.concatenate(seen)


@pytest.mark.parametrize(
    ("outputs", "activation", "y", "values"),
    [
        (4, "softmax", np.eye(4)[np.arange(20) % 4], {0.05, 0.85}),
        (1, "sigmoid", np.arange(20) % 2, {0.1, 0.9}),
        (3, "sigmoid", (np.arange(60).reshape(20, 3) % 2), {0.1, 0.9}),
    ],
)
def test_smoothed_targets_reach_the_loss(dense, outputs, activation, y, values):
    x = np.ones((20, 4), "float32")
    seen = _targets_seen(
        dense(outputs, activation), Data(train=(x, y), test=(x, y)), ok.LabelSmooth(0.2)
    )
    assert {round(float(v), 6) for v in np.unique(seen)} == values


def test_accuracy_is_still_counted_against_hard_labels(data, trained):
    result = ok.Pipeline([ok.LabelSmooth(0.5), ok.FineTune(1, 1e-5)]).run(trained, data)
    x, y = data.test
    expected = (result.artifact.predict(x).argmax(1) == y).mean()
    assert result.report.final.accuracy == pytest.approx(expected)


@pytest.mark.parametrize("case", ["regression", "smooths itself", "own sparse loss"])
def test_label_smooth_refuses(dense, case):
    import tf_keras as keras

    x, y = np.ones((20, 4), "float32"), np.arange(20) % 3
    loss = None
    if case == "regression":
        model, y, message = dense(1, "linear"), np.linspace(0, 1, 20), "regression"
    elif case == "smooths itself":
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
        model, y, message = dense(3), np.eye(3)[y], "already smooths"
    else:
        loss = lambda t, p: p[:, 0]  # noqa: E731
        model, message = dense(3), "one-hot"
    pipeline = ok.Pipeline([ok.LabelSmooth(), ok.FineTune()], loss=loss)
    with pytest.raises(ok.PipelineError, match=f"Step 1, LabelSmooth.*{message}"):
        pipeline.check(model, Data(train=(x, y)))


# -------------------------------------------------------------------------------------- Augment


def _seed(*numbers):
    import tensorflow as tf

    return tf.constant(numbers, tf.int64)


def test_nothing_asked_for_changes_nothing():
    images = np.random.default_rng(0).random((3, 8, 8, 3)).astype("float32")
    assert np.array_equal(
        augment_images(images_tensor(images), _seed(1, 2), Strengths(), (0, 1)), images
    )


def images_tensor(images):
    import tensorflow as tf

    return tf.constant(images)


def test_flips_are_exact_mirrors():
    images = np.random.default_rng(0).random((64, 5, 7, 2)).astype("float32")
    for strengths, axis in (
        (Strengths(horizontal_flip=True), 2),
        (Strengths(vertical_flip=True), 1),
    ):
        out = augment_images(images_tensor(images), _seed(0, 1), strengths, (0, 1)).numpy()
        flipped = np.flip(images, axis)
        same = np.array([np.allclose(a, b, atol=1e-5) for a, b in zip(out, images, strict=True)])
        mirrored = np.array(
            [np.allclose(a, b, atol=1e-5) for a, b in zip(out, flipped, strict=True)]
        )
        assert np.all(same | mirrored)
        assert 15 < mirrored.sum() < 49, "about half of them"


def test_a_rotation_is_about_the_centre():
    """By an independent implementation: scipy rotates the same image by the same angle."""
    from scipy import ndimage

    y, x = np.mgrid[:21, :21]
    image = np.exp(-((x - 13) ** 2 + (y - 8) ** 2) / 8).astype("float32")[None, ..., None]
    out = augment_images(
        images_tensor(image), _seed(3, 4), Strengths(rotation=90), (0, 1), "constant"
    ).numpy()[0, ..., 0]
    errors = [
        np.abs(ndimage.rotate(image[0, ..., 0], angle, reshape=False, order=1) - out).max()
        for angle in np.arange(-90, 90.5, 0.5)
    ]
    assert min(errors) < 0.02
    assert sorted(errors)[60] > 0.1, "only one angle fits"


def test_contrast_and_brightness_by_the_formula():
    images = np.random.default_rng(0).random((200, 4, 4, 1)).astype("float32") * 0.2 + 0.4
    brighter = augment_images(
        images_tensor(images), _seed(0, 5), Strengths(brightness=0.1), (0, 1)
    ).numpy()
    shift = brighter - images
    assert np.allclose(shift, shift[:, :1, :1], atol=1e-6), "one shift an image"
    assert shift.min() >= -0.1 - 1e-6
    assert shift.max() <= 0.1 + 1e-6
    assert shift.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.15)
    contrasted = augment_images(
        images_tensor(images), _seed(0, 6), Strengths(contrast=0.5), (0, 1)
    ).numpy()
    mean = images.mean((1, 2), keepdims=True)
    factors = ((contrasted - mean) / (images - mean)).reshape(200, -1)
    assert np.allclose(factors, factors[:, :1], atol=1e-2)
    assert 0.49 < factors.min() < 0.6
    assert 1.4 < factors.max() < 1.51


@pytest.mark.parametrize("policy", list(PRESETS))
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("float32", 1), ("float32", 255)])
def test_augmented_images_stay_images(policy, dtype, top):
    images = (np.random.default_rng(0).random((16, 9, 6, 3)) * top).astype(dtype)
    out = augment_images(images_tensor(images), _seed(1, 1), PRESETS[policy], (0, top)).numpy()
    assert out.dtype == images.dtype
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= top
    assert not np.array_equal(out, images)
    again = augment_images(images_tensor(images), _seed(1, 1), PRESETS[policy], (0, top)).numpy()
    other = augment_images(images_tensor(images), _seed(1, 2), PRESETS[policy], (0, top)).numpy()
    assert np.array_equal(out, again)
    assert not np.array_equal(out, other)


def test_the_safe_preset_mirrors_nothing():
    assert not PRESETS["safe"].horizontal_flip
    assert not PRESETS["safe"].vertical_flip
    assert PRESETS["safe"].rotation <= 15


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 1, "float32", (0, 1)),
        (-1, 1, "float32", (-1, 1)),
        (0, 255, "float32", (0, 255)),
        (10, 90, "uint8", (0, 255)),
        (0, 16, "float64", (0, 16)),
        (-2.5, 3.5, "float32", (-2.5, 3.5)),
    ],
)
def test_the_value_range_is_inferred(low, high, dtype, expected):
    from optkit.models import Signature, TensorInfo

    x = np.linspace(low, high, 20 * 4).reshape(20, 2, 2, 1).astype(dtype)
    info = Signature((TensorInfo("x", (None, 2, 2, 1), "float32"),), ())
    split = Data(train=(x, np.zeros(20))).bind(info).train
    assert value_range(split) == expected


def test_images_outside_the_declared_range_are_refused(data, trained):
    pipeline = ok.Pipeline([ok.Augment(value_range=(0, 0.5)), ok.FineTune()])
    with pytest.raises(ok.DataError, match="outside the declared range"):
        pipeline.check(trained, data)


def test_augment_refuses_what_is_no_image(dense):
    x = np.ones((20, 4), "float32")
    with pytest.raises(ok.PipelineError, match="treats images"):
        ok.Pipeline([ok.Augment(), ok.FineTune()]).check(
            dense(3), Data(train=(x, np.arange(20) % 3))
        )


def test_lists_of_layers_and_functions_are_seeded(data):
    import tensorflow as tf
    import tf_keras as keras

    layer = keras.layers.RandomTranslation(0.2, 0.2)

    def noise(x, seed):
        return x + tf.random.stateless_normal(tf.shape(x), seed, stddev=0.1)

    def run():
        pipeline = ok.Pipeline([ok.Augment([layer, noise, tf.abs]), ok.FineTune(1)])
        return pipeline.run(small_model(), data).artifact.model.get_weights()

    for one, other in zip(run(), run(), strict=True):
        assert np.array_equal(one, other)


def test_augmentation_reaches_the_training_split_alone(data):
    """A function that blanks images: training sees nothing else, figures are of the real ones."""
    model = small_model()
    pipeline = ok.Pipeline([ok.Augment([lambda x: x * 0.0]), ok.FineTune(1, 0.1, patience=None)])
    result = pipeline.run(model, data)
    kernels = [m.layers[0].kernel.numpy() for m in (model, result.artifact.model)]
    decayed = kernels[0] / kernels[1]
    assert np.allclose(decayed, decayed.ravel()[0], rtol=1e-3), "no gradient: only decay acted"
    x, y = data.test
    expected = (result.artifact.predict(x).argmax(1) == y).mean()
    assert result.report.final.accuracy == pytest.approx(expected)


# ---------------------------------------------------------------------- BNReestimate and SWA


def test_batch_norm_statistics_are_those_of_the_data(data):
    """For a network with one batch norm: mean and variance of what reaches it, by NumPy."""
    from scipy import signal

    model = small_model()
    result = ok.Pipeline([ok.BNReestimate()]).run(model, data)
    x, _ = data.train
    kernel = model.layers[0].kernel.numpy()
    maps = np.stack(
        [
            np.stack(
                [
                    signal.correlate2d(image[..., 0], kernel[..., 0, c], mode="same")
                    for c in range(kernel.shape[-1])
                ],
                axis=-1,
            )
            for image in x
        ]
    )
    (norm,) = batch_norms(result.artifact.model)
    assert np.allclose(norm.moving_mean, maps.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(norm.moving_variance, maps.var((0, 1, 2)), rtol=1e-4)
    assert np.array_equal(norm.gamma, model.layers[1].gamma)


def test_frozen_batch_norm_is_left_alone_unless_asked(data):
    import tf_keras as keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.BatchNormalization(trainable=False),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    for include, changed in ((False, [False, True]), (True, [True, True])):
        result = ok.Pipeline([ok.BNReestimate(include_frozen=include)]).run(model, data)
        found = [
            not np.array_equal(after.moving_mean, before.moving_mean)
            for before, after in zip(
                batch_norms(model), batch_norms(result.artifact.model), strict=True
            )
        ]
        assert found == changed
    model.trainable = False
    with pytest.raises(ok.PipelineError, match=r"All batch normalization .* is frozen"):
        ok.Pipeline([ok.BNReestimate()]).check(model, data)


def test_no_batch_norm_is_refused(dense):
    x = np.ones((20, 4), "float32")
    with pytest.raises(ok.PipelineError, match="no batch normalization"):
        ok.Pipeline([ok.BNReestimate()]).check(dense(3), Data(train=(x, np.arange(20) % 3)))


class _Snapshots(ok.RecipePass):
    """Keeps the weights of every epoch."""

    kept: ClassVar[list[dict[str, np.ndarray]]] = []

    def amend(self, recipe):
        import tf_keras

        class Keep(tf_keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                _Snapshots.kept.append(
                    {p: v.numpy() for p, v in variables_by_path(self.model).items()}
                )

        return recipe.amended(callbacks=Keep)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"epochs": 4, "start": 0.5}, [2, 3]),
        ({"epochs": 5, "start": 0.0}, [0, 1, 2, 3, 4]),
        ({"epochs": 6, "start": 0.0, "schedule": "cyclic", "cycle_epochs": 2}, [1, 3, 5]),
        ({"epochs": 1, "start": 0.25}, [0]),
    ],
)
def test_the_average_is_the_mean_by_hand(data, settings, epochs):
    _Snapshots.kept = []
    result = ok.Pipeline([_Snapshots(), ok.SWA(learning_rate=0.01, **settings)]).run(
        small_model(), data
    )
    found = variables_by_path(result.artifact.model)
    for path in ("conv/kernel", "norm/gamma", "classes/kernel", "classes/bias"):
        expected = np.mean([_Snapshots.kept[i][path] for i in epochs], axis=0)
        assert np.allclose(found[path].numpy(), expected, rtol=0, atol=1e-6), path
    averaged = np.mean([_Snapshots.kept[i]["norm/moving_mean"] for i in epochs], axis=0)
    assert not np.allclose(found["norm/moving_mean"].numpy(), averaged), "statistics are measured"


def test_cycles_lower_the_learning_rate():
    import tf_keras

    rates = []

    class Look(ok.RecipePass):
        """Writes down the learning rate of every batch."""

        def amend(self, recipe):
            class See(tf_keras.callbacks.Callback):
                def on_train_batch_end(self, batch, logs=None):
                    rates.append(float(self.model.optimizer.learning_rate))

            return recipe.amended(callbacks=See)

    swa = ok.SWA(3, 0.1, start=0.34, schedule="cyclic", optimizer="sgd")
    ok.Pipeline([Look(), swa]).run(small_model(), digits(200))
    steps = len(rates) // 3
    assert rates[:steps] == pytest.approx([0.1] * steps)
    assert rates[steps : 2 * steps] == pytest.approx(np.linspace(0.1, 0.005, steps), rel=1e-3)
    assert rates[2 * steps :] == pytest.approx(rates[steps : 2 * steps])


# ---------------------------------------------------------------------------------------- Prune


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 149, 300, 10_000])
def test_the_schedule_updates_on_its_last_step(steps):
    schedule = pruning_schedule(steps)
    assert 1 <= schedule.begin <= schedule.end <= steps
    assert (schedule.end - schedule.begin) % schedule.frequency == 0
    assert schedule.end >= 0.5 * steps or steps < 5
    assert (schedule.end - schedule.begin) / schedule.frequency <= 50


def test_sparsity_grows_as_that_of_tfmot():
    from optkit.runtime import tfmot

    schedule = pruning_schedule(400)
    reference = tfmot().sparsity.keras.PolynomialDecay(
        0.0, 0.8, schedule.begin, schedule.end, frequency=schedule.frequency
    )
    for step in range(1, 401):
        due, sparsity = reference(step)
        assert schedule.due(step) == bool(due)
        assert 0.8 * schedule.share(step) == pytest.approx(float(sparsity), abs=1e-6)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_smallest_weights_are_pruned_to_the_share(trained, data, sparsity, epochs):
    result = ok.Pipeline([ok.Prune(sparsity, epochs, learning_rate=1e-7)]).run(trained, data)
    before, after = (variables_by_path(m) for m in (trained, result.artifact.model))
    pruned = 0
    for path, variable in after.items():
        value = variable.numpy()
        if not path.endswith("kernel"):
            assert np.any(value != 0)
            continue
        pruned += 1
        kept = round(value.size * (1 - sparsity))
        assert np.count_nonzero(value) == kept
        # At so small a learning rate the ranking is that of the weights before.
        sizes = np.sort(np.abs(before[path].numpy()).ravel())[::-1]
        assert np.abs(value[value != 0]).min() == pytest.approx(sizes[kept - 1], rel=0.05)
    assert pruned == 5
    final = result.report.final
    assert final.sparsity == pytest.approx(sparsity, abs=0.01)
    assert final.compressed_bytes < result.report.baseline.compressed_bytes
    assert final.size_bytes == pytest.approx(result.report.baseline.size_bytes, rel=0.01)


def test_layers_can_differ_or_be_left_out(trained, data):
    names = [layer.name for layer in trained.layers if hasattr(layer, "kernel")]
    item = ok.Prune(0.5, 1, layers={names[0]: 0.0, names[1]: 0.8}, exclude=[names[-1]])
    result = ok.Pipeline([item]).run(trained, data)
    found = variables_by_path(result.artifact.model)
    shares = [1 - np.count_nonzero(v := found[f"{n}/kernel"].numpy()) / v.size for n in names]
    assert shares == pytest.approx([0, 0.8, 0.5, 0.5, 0], abs=0.01)


def test_early_stopping_waits_for_the_schedule(trained, data):
    result = ok.Pipeline([ok.Prune(0.9, 6, patience=1, learning_rate=1e-3)]).run(trained, data)
    assert result.report.final.sparsity == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    "later",
    [
        ok.FineTune(2, 0.01),
        ok.SWA(2, 0.01),
        ok.TransferLearn(epochs=1, fine_tune_epochs=1, fine_tune_learning_rate=0.01),
        ok.Prune(0.7, 1, learning_rate=0.01),
        ok.BNReestimate(),
    ],
    ids=lambda item: type(item).__name__,
)
def test_zeros_survive_what_follows(trained, data, later):
    result = ok.Pipeline([ok.Prune(0.6, 1, learning_rate=1e-3), later]).run(trained, data)
    stages = list(result.stages.values())
    first, last = (variables_by_path(stage.model) for stage in stages)
    compared = 0
    for path, variable in first.items():
        if path.endswith("kernel") and path in last:
            zeros = variable.numpy() == 0
            assert zeros.mean() == pytest.approx(0.6, abs=0.01)
            assert not np.any(last[path].numpy()[zeros]), path
            compared += 1
    assert compared >= 4
    if not isinstance(later, ok.BNReestimate):
        moved = [p for p in first if p in last and not np.array_equal(first[p], last[p])]
        assert moved, "something trained"


def test_zeros_survive_quantization(trained, data):
    result = ok.Pipeline([ok.Prune(0.6, 1), ok.QuantizeINT8()]).run(trained, data)
    assert result.report.final.sparsity >= 0.59


def prune_refusals():
    import tf_keras as keras

    bare = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    plain = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="d"), keras.layers.Softmax(name="s")]
    )
    return {
        "nothing": (bare, ok.Prune(), "no trainable layers that can be pruned"),
        "unknown": (plain, ok.Prune(exclude=["dd"]), r"no layers \['dd'\]"),
        "not prunable": (plain, ok.Prune(layers={"s": 0.5}), "no weights that can be pruned"),
        "all excluded": (plain, ok.Prune(exclude=["d"]), "or all of them are excluded"),
    }


@pytest.mark.parametrize("case", list(prune_refusals()))
def test_prune_refuses(case):
    model, item, message = prune_refusals()[case]
    x = np.ones((20, model.input_shape[1]), "float32")
    with pytest.raises(ok.PipelineError, match=message):
        ok.Pipeline([item]).check(model, Data(train=(x, np.arange(20) % 3)))


# --------------------------------------------------------------------------------- TransferLearn


def test_stage_one_freezes_and_stage_two_thaws_the_last_layers(trained, data):
    item = ok.TransferLearn(trained, 1, fine_tune_epochs=0, patience=None)
    frozen = ok.Pipeline([item]).run(trained, data).artifact.model
    before, after = variables_by_path(trained), variables_by_path(frozen)
    for path, variable in after.items():
        if path in before:
            assert np.array_equal(variable.numpy(), before[path].numpy()), path
    assert "head/kernel" in after

    item = ok.TransferLearn(
        trained, 1, unfreeze=2, fine_tune_epochs=1, fine_tune_learning_rate=0.01, patience=None
    )
    tuned = ok.Pipeline([item]).run(trained, data).artifact.model
    after = variables_by_path(tuned)
    moved = {
        path.split("/")[0]
        for path, variable in after.items()
        if path in before and not np.array_equal(variable.numpy(), before[path].numpy())
    }
    assert moved == {"digits_cnn_conv3", "digits_cnn_dense"}
    trainable = {layer.name for layer in tuned.layers if layer.weights and layer.trainable}
    assert trainable == {"digits_cnn_conv3", "digits_cnn_dense", "head"}, "flags stay"
    assert not any(norm.trainable for norm in batch_norms(tuned))


def test_the_backbone_is_not_changed_and_not_shared(trained, data):
    ok.Pipeline([ok.TransferLearn(trained, 1, fine_tune_learning_rate=0.1)]).run(
        small_model(), data
    )  # the session's fixture checks the weights of `trained`


@pytest.mark.parametrize("kind", ["tf", "torch", "caffe"])
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1), ("float32", 255), ("uint8", 255)])
def test_preprocessing_is_built_in_and_is_that_of_keras(kind, dtype, scale):
    """What reaches the backbone equals what `preprocess_input` gives for 0 to 255."""
    import tf_keras as keras
    from tf_keras.src.applications import imagenet_utils

    rng = np.random.default_rng(0)
    x = (rng.random((60, 6, 6, 3)) * scale).astype(dtype)
    x[0] = scale
    y = np.arange(60) % 3
    image = keras.Input((6, 6, 3), dtype=dtype, name="image")
    floats = keras.layers.Rescaling(1.0)(image)
    flat = keras.layers.Flatten()(floats)
    incoming = keras.Model(image, keras.layers.Dense(3, activation="softmax")(flat))
    mirror_in = keras.Input((6, 6, 3))
    mirror = keras.Model(mirror_in, keras.layers.Activation("linear", name="mirror")(mirror_in))
    item = ok.TransferLearn(mirror, 1, fine_tune_epochs=0, preprocessing=kind, patience=None)
    built = ok.Pipeline([item]).run(incoming, Data(train=(x, y), test=(x, y))).artifact.model
    reaching = keras.Model(built.inputs, built.get_layer("mirror").output).predict(x, verbose=0)
    pixels = x.astype("float32") * (255 / scale)
    expected = imagenet_utils.preprocess_input(pixels, data_format="channels_last", mode=kind)
    assert np.allclose(reaching, expected, atol=2e-3)
    assert built.input_shape == (None, 6, 6, 3)


def test_sizes_and_channels_are_brought_to_the_backbones(data):
    import tf_keras as keras

    image = keras.Input((12, 12, 3))
    maps = keras.layers.Conv2D(4, 3, name="backbone_conv")(image)
    backbone = keras.Model(image, maps)
    result = ok.Pipeline([ok.TransferLearn(backbone, 1, fine_tune_epochs=1)]).run(
        small_model(), data
    )
    names = [layer.name for layer in result.artifact.model.layers]
    assert names == [
        "image",
        "resize",
        "to_colour",
        "backbone_conv",
        "head_pooling",
        "head_dropout",
        "head",
    ]
    assert result.artifact.model.input_shape == (None, 8, 8, 1)
    assert {"images resized to 12x12", "gray images repeated to three channels"} <= set(
        result.report.rows[0].notes
    )


def test_a_backbone_from_a_file(trained, data, tmp_path):
    for suffix in (".keras", ".h5"):
        path = tmp_path / f"backbone{suffix}"
        with pytest.warns(UserWarning, match="HDF5") if suffix == ".h5" else _nothing():
            trained.save(path)
        item = ok.TransferLearn(path, 5, learning_rate=0.02, fine_tune_epochs=0)
        result = ok.Pipeline([item]).run(small_model(), data)
        assert result.report.final.accuracy > 0.8


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_an_application_by_name():
    """Random weights, as no network is needed; preprocessing, resizing and channels are added."""
    result = ok.Pipeline(
        [ok.TransferLearn("MobileNetV2", 1, fine_tune_epochs=0, weights=None, patience=None)]
    ).run(small_model(), digits(100))
    notes = result.report.rows[0].notes
    assert "preprocessing built in: tf, from pixels 0 to 1" in notes
    assert "images resized to 32x32" in notes
    assert result.artifact.model.input_shape == (None, 8, 8, 1)


def transfer_refusals():
    import tf_keras as keras

    vector = keras.Input((6,))
    maps = keras.Model(vector, keras.layers.Dense(3, activation="relu")(vector))
    return [
        (lambda: ok.TransferLearn("MobileNetV9"), "neither a model in tf_keras"),
        (lambda: ok.TransferLearn(3), "must be a name, a file"),
        (lambda: ok.TransferLearn(preprocessing="best"), "must be one of"),
        (lambda: ok.TransferLearn("missing.keras"), "no file"),
        (lambda: ok.TransferLearn("MobileNetV2", weights="missing.h5"), "no file of weights"),
        (lambda: ok.TransferLearn("EfficientNetB0", weights=None, preprocessing="tf"), "built in"),
        (lambda: ok.TransferLearn(maps), "takes inputs of shape"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_transfer_learn_refuses_before_anything_trains(case, data):
    make, message = transfer_refusals()[case]
    with pytest.raises(ok.PipelineError, match=message):
        ok.Pipeline([make()]).check(small_model(), data)


def test_weights_that_cannot_be_downloaded(data, monkeypatch):
    """Without a network, Keras fails; the message says how to pass a file."""
    import tf_keras

    def no_network(*arguments, **keywords):
        raise Exception("URL fetch failure: no network")

    module = tf_keras.applications.MobileNetV2.__globals__
    monkeypatch.setitem(module, "data_utils", type("Utils", (), {"get_file": no_network}))
    with pytest.raises(ok.ModelError, match="Pass a file"):
        ok.Pipeline([ok.TransferLearn("MobileNetV2")]).check(small_model(), data)


def test_transfer_of_a_model_without_a_dense_end_is_refused(data):
    import tf_keras as keras

    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(10, 1)(image)
    x = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ok.ModelError, match="does not end in a dense layer"):
        ok.Pipeline([ok.TransferLearn()]).check(keras.Model(image, x), data)


# ----------------------------------------------------------------------------------- QuantizeINT8


@pytest.mark.parametrize("io", ["int8", "float32"])
def test_the_file_is_full_integer_and_agrees(trained, data, io):
    result = ok.Pipeline([ok.QuantizeINT8(100, io=io)]).run(trained, data)
    artifact = result.artifact
    assert isinstance(artifact, ok.TFLiteArtifact)
    assert artifact.inputs[0].dtype == np.dtype(io)
    assert artifact.outputs[0].dtype == np.dtype(io)
    x, _ = data.test
    float_outputs = KerasArtifact(trained).predict(x)
    assert (artifact.predict(x).argmax(1) == float_outputs.argmax(1)).mean() > 0.97
    assert result.report.final.size_bytes < 0.35 * result.report.baseline.size_bytes
    # Every weight is an integer: nothing was left in float.
    dtypes = {weight.dtype.kind for weight, _ in artifact._weights()}
    assert dtypes == {"i"}


def test_weights_have_a_scale_a_channel(trained, data):
    artifact = ok.Pipeline([ok.QuantizeINT8(50)]).run(trained, data).artifact
    scales = [
        len(tensor.quantization.scale)
        for tensor in artifact._flatbuffer.subgraphs[0].tensors
        if tensor.quantization is not None and tensor.quantization.scale is not None
    ]
    assert {32, 64} <= set(scales)


def test_predictions_are_those_of_a_bare_interpreter(trained, data):
    """Bit for bit before dequantization, in batches as one by one."""
    from ai_edge_litert.interpreter import Interpreter

    artifact = ok.Pipeline([ok.QuantizeINT8()]).run(trained, data).artifact
    x, _ = data.test
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    (i,), (o,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = i["quantization"]
    expected = []
    for sample in x[:20]:
        stored = np.clip(np.round(sample / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(i["index"], stored[None])
        interpreter.invoke()
        expected.append(interpreter.get_tensor(o["index"])[0])
    scale, zero = o["quantization"]
    wanted = (np.array(expected).astype("float32") - zero) * np.float32(scale)
    assert np.array_equal(artifact.predict(x[:20], batch_size=1), wanted)
    assert np.array_equal(artifact.predict(x[:20], batch_size=7), wanted)


def test_what_is_odd_about_calibration_is_said(trained, data):
    x, y = data.train
    odd = Data(train=(x, y), test=data.test, calibration=x[:20] * 5)
    notes = ok.Pipeline([ok.QuantizeINT8()]).run(trained, odd).report.rows[0].notes
    assert any("few calibration samples (20" in note for note in notes)
    assert any("outside the training data's 0 to 1" in note for note in notes)
    good = ok.Pipeline([ok.QuantizeINT8()]).run(trained, data).report.rows[0].notes
    assert not any("few" in note or "outside" in note for note in good)
    assert any("agrees with the float model on" in note for note in good)


def quantize_refusals():
    import tensorflow as tf
    import tf_keras as keras

    layers = keras.layers
    open_size = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            layers.Conv2D(2, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    masked = keras.Sequential(
        [keras.Input((8, 8)), layers.Masking(-1.0), layers.LSTM(4), layers.Dense(10)]
    )
    own_loop = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Lambda(lambda x: tf.map_fn(lambda row: tf.reduce_sum(row, -1), x)),
            layers.Reshape((8,)),
            layers.Dense(10),
        ]
    )
    no_operator = keras.Sequential(
        [keras.Input((8, 8)), layers.Lambda(tf.math.erfinv), layers.Flatten(), layers.Dense(10)]
    )
    return {
        "open": (open_size, (16, 8, 8, 1), "fixed input shapes"),
        "masked": (masked, (16, 8, 8), "8 bits do not hold exactly"),
        "a loop of one's own": (own_loop, (16, 8, 8), "ran in a process of its own and crashed"),
        "no operator": (no_operator, (16, 8, 8), "no operators for what it computes: Erfinv"),
    }


@pytest.mark.parametrize("case", list(quantize_refusals()))
def test_quantize_refuses_what_does_not_convert(case):
    model, shape, message = quantize_refusals()[case]
    data = Data(train=(np.ones(shape, "float32"), np.arange(16) % 10))
    with pytest.raises(ok.PipelineError, match=message):
        ok.Pipeline([ok.QuantizeINT8()]).check(model, data)


def test_token_ids_stay_whole_numbers():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32", name="tokens"),
            keras.layers.Embedding(20, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (200, 6)).astype("int32")
    y = (x.sum(1) > 57).astype("int64")
    data = Data(train=(x, y), test=(x[:50], y[:50]))
    result = ok.Pipeline([ok.FineTune(10, 0.02), ok.Prune(0.3, 1), ok.QuantizeINT8()]).run(
        model, data
    )
    assert result.artifact.inputs[0].dtype == np.int32
    assert result.report.final.accuracy > 0.8


def test_two_inputs_convert_and_keep_their_names():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    # The names sort the other way round than the inputs stand in the model.
    left, right = keras.Input((3,), name="z_left"), keras.Input((2,), name="a_right")
    joined = keras.layers.Concatenate()([left, keras.layers.Dense(3)(right)])
    model = keras.Model([left, right], keras.layers.Dense(1)(joined))
    rng = np.random.default_rng(0)
    x = {
        "z_left": rng.normal(size=(80, 3)).astype("f"),
        "a_right": rng.normal(size=(80, 2)).astype("f"),
    }
    y = x["z_left"][:, 0] + 2 * x["a_right"][:, 1]
    result = ok.Pipeline([ok.FineTune(5, 0.05), ok.QuantizeINT8()]).run(
        model, Data(train=(x, y), test=(x, y))
    )
    float_model = result.stages["FineTune"]
    assert {port.name for port in result.artifact.inputs} == {"z_left", "a_right"}
    expected = float_model.predict(x)
    assert np.abs(result.artifact.predict(x) - expected).max() < 0.05 * np.ptp(expected)
    assert np.array_equal(float_model.predict([x["z_left"], x["a_right"]]), expected)
    assert result.report.metric == "mean_absolute_error"
    assert not result.report.higher_is_better


# ------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    "make",
    [
        lambda: ok.FineTune(0),
        lambda: ok.FineTune(1.5),
        lambda: ok.FineTune(True),
        lambda: ok.FineTune(learning_rate=0),
        lambda: ok.FineTune(learning_rate=float("nan")),
        lambda: ok.FineTune(optimizer="adamm"),
        lambda: ok.FineTune(optimizer=3),
        lambda: ok.FineTune(patience=0),
        lambda: ok.FineTune(weight_decay=-1),
        lambda: ok.LabelSmooth(0),
        lambda: ok.LabelSmooth(1),
        lambda: ok.LabelSmooth("much"),
        lambda: ok.LabelSmooth(None),
        lambda: ok.Augment("wild"),
        lambda: ok.Augment([]),
        lambda: ok.Augment([3]),
        lambda: ok.Augment(rotation=200),
        lambda: ok.Augment(zoom=1.0),
        lambda: ok.Augment(horizontal_flip=1),
        lambda: ok.Augment(value_range=(1, 0)),
        lambda: ok.Augment(value_range=3),
        lambda: ok.Augment([abs], rotation=5),
        lambda: ok.Augment(fill_mode="black"),
        lambda: ok.SWA(0),
        lambda: ok.SWA(start=1.0),
        lambda: ok.SWA(schedule="triangle"),
        lambda: ok.SWA(2, schedule="cyclic", cycle_epochs=3),
        lambda: ok.SWA(cycle_epochs=2),
        lambda: ok.Prune(0),
        lambda: ok.Prune(1),
        lambda: ok.Prune("half"),
        lambda: ok.Prune(layers={"a": 1.5}),
        lambda: ok.Prune(layers=["a"]),
        lambda: ok.Prune(exclude="conv"),
        lambda: ok.Prune(layers={"a": 0.5}, exclude=["a"]),
        lambda: ok.QuantizeINT8(0),
        lambda: ok.QuantizeINT8(io="int16"),
        lambda: ok.QuantizeINT8(input_shape=96),
        lambda: ok.QuantizeINT8(input_shape=(96, 0)),
        lambda: ok.QuantizeINT8(input_shape={"a": 3}),
        lambda: ok.BNReestimate(include_frozen=1),
        lambda: ok.TransferLearn(epochs=0),
        lambda: ok.TransferLearn(unfreeze=0),
        lambda: ok.TransferLearn(dropout=1.0),
        lambda: ok.TransferLearn(weights=3),
    ],
)
def test_bad_arguments_are_refused_at_construction(make):
    with pytest.raises(ok.PipelineError, match=r"Received|fits|is for|are in|must|takes"):
        make()


# ------------------------------------------------------------------------ found by looking for it


def test_int8_features_are_numbers_like_others():
    """They are on the model's own scale, not already quantized."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.integers(-100, 100, (200, 4)).astype("int8")
    y = (x[:, 0].astype(int) + x[:, 1] > 0).astype("int64")
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x.astype("float32"), y, epochs=30, verbose=0)
    result = ok.Pipeline([ok.QuantizeINT8()]).run(model, Data(train=(x, y), test=(x, y)))
    assert result.report.final.accuracy > result.report.baseline.accuracy - 0.05


def test_later_passes_are_checked_against_what_transfer_makes(data):
    import tf_keras as keras

    model = small_model()
    ok.Pipeline([ok.TransferLearn(), ok.Prune(0.5, exclude=["head"])]).check(model, data)
    with pytest.raises(ok.PipelineError, match=r"no layers \['classes'\]"):
        ok.Pipeline([ok.TransferLearn(), ok.Prune(0.5, exclude=["classes"])]).check(model, data)
    with pytest.raises(ok.PipelineError, match=r"no layers \['typo'\]"):
        ok.Pipeline([ok.TransferLearn(model), ok.Prune(exclude=["typo"])]).check(model, data)
    inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3)], name="inner")
    nested = keras.Sequential(
        [keras.Input((8, 8, 1)), inner, keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    result = ok.Pipeline([ok.TransferLearn(epochs=1, unfreeze=5), ok.Prune(0.5, 1)]).run(
        nested, data
    )
    assert result.report.final.sparsity == pytest.approx(0.5, abs=0.01)


def test_one_hot_targets_of_unknown_width_are_not_widened_again():
    import tensorflow as tf

    x, y = digits(100).train
    one_hot = np.eye(10)[y].astype("float32")

    def widthless(a, b):
        (b,) = tf.py_function(lambda v: [v], [b], [tf.float32])
        return a, b

    stream = tf.data.Dataset.from_tensor_slices((x, one_hot)).batch(10).map(widthless)

    def samples():
        yield from zip(x, one_hot, strict=True)

    for train, steps in ((stream, None), (samples, 3)):
        data = Data(
            train=train,
            validation=(x, one_hot),
            test=(x, one_hot),
            steps=steps and {"train": steps},
        )
        result = ok.Pipeline([ok.LabelSmooth(), ok.FineTune(1)]).run(small_model(), data)
        assert result.report.final.accuracy is not None


def test_batches_padded_to_their_own_length():
    import tf_keras as keras

    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(10, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )

    class Padded(keras.utils.Sequence):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return np.full((8, 5 + i), i, "int32"), np.arange(8) % 2

    data = Data(train=Padded(), validation=Padded(), test=Padded())
    assert ok.Pipeline([ok.FineTune(1)]).run(model, data).report.final.samples == 32


def test_a_stream_that_breaks_is_said():
    x, y = digits(100).train

    def breaking():
        yield x[:10], y[:10]
        raise RuntimeError("disk gone")

    data = Data(train=(x, y), test=breaking, steps={"test": 5})
    with pytest.raises(ok.DataError, match="Reading `test` failed"):
        ok.Pipeline([ok.FineTune(1)]).run(small_model(), data)


def test_schedules_of_compiled_optimizers(data):
    import tf_keras as keras

    class Bare(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    model = small_model()
    model.compile(keras.optimizers.Adam(Bare()), "sparse_categorical_crossentropy")
    with pytest.raises(ok.PipelineError, match="no `get_config"):
        ok.Pipeline([ok.FineTune(1)]).check(model, data)

    falling = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.1)
    rates = []

    class Rates(ok.RecipePass):
        """Writes down the learning rate of every epoch."""

        def amend(self, recipe):
            class See(keras.callbacks.Callback):
                def on_epoch_end(self, epoch, logs=None):
                    rates.append(float(self.model.optimizer.learning_rate))

            return recipe.amended(callbacks=See)

    for optimizer in (keras.optimizers.SGD(falling), keras.optimizers.legacy.SGD(falling)):
        rates.clear()
        model.compile(optimizer, "sparse_categorical_crossentropy")
        ok.Pipeline([Rates(), ok.SWA(2)]).run(model, data)
        assert rates == pytest.approx([0.1, 0.1]), "the rate stays up"


def test_a_result_of_transfer_can_be_transferred_again():
    data = digits(100)
    import tf_keras as keras

    image = keras.Input((12, 12, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(4, 3, name="features")(image))
    settings = {"epochs": 1, "fine_tune_epochs": 0}
    once = ok.Pipeline([ok.TransferLearn(backbone, **settings)]).run(small_model(), data)
    ok.Pipeline([ok.TransferLearn(once.model, **settings, input_size=8)]).run(small_model(), data)
    wide = keras.Sequential(
        [keras.Input((10, 10, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    x = np.random.default_rng(0).random((40, 10, 10, 1)).astype("f")
    other = Data(train=(x, np.arange(40) % 10))
    ok.Pipeline([ok.TransferLearn(once.model, **settings)]).check(wide, other)


def test_augmentation_that_changes_shapes_is_refused(data):
    import tf_keras as keras

    for item in (keras.layers.Resizing(10, 10), lambda x: x[0]):
        with pytest.raises(ok.PipelineError, match="must keep the shape"):
            ok.Pipeline([ok.Augment([item]), ok.FineTune()]).check(small_model(), data)


def test_what_was_finished_is_kept_where_measuring_fails(trained, data, monkeypatch):
    from optkit.measuring import Meter

    measure, calls = Meter.measure, []

    def failing(self, artifact):
        calls.append(artifact)
        if len(calls) == 2:
            raise RuntimeError("cannot measure")
        return measure(self, artifact)

    monkeypatch.setattr(Meter, "measure", failing)
    with pytest.raises(ok.PassError, match="cannot measure") as caught:
        ok.Pipeline([ok.FineTune(1)]).run(trained, data)
    assert list(caught.value.stages) == ["FineTune"]
    assert caught.value.artifact is caught.value.stages["FineTune"]


def test_training_accuracy_is_counted_against_hard_labels(dense):
    import tf_keras as keras

    seen = []

    class Watch(ok.RecipePass):
        """Keeps the training metric."""

        def amend(self, recipe):
            class See(keras.callbacks.Callback):
                def on_epoch_end(self, epoch, logs=None):
                    seen.append(logs["metric"])

            return recipe.amended(callbacks=See)

    x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    data = Data(train=(x, y), test=(x, y))
    ok.Pipeline([ok.LabelSmooth(0.2), Watch(), ok.FineTune(20, 0.02)]).run(
        dense(1, "sigmoid"), data
    )
    assert max(seen) > 0.9


def test_a_backbone_runs_at_another_size_where_its_layers_allow(data):
    import tf_keras as keras

    image = keras.Input((12, 12, 1))
    maps = keras.layers.Conv2D(4, 3, name="conv")(image)
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(maps))
    flat = keras.layers.Dense(3, activation="relu")(keras.layers.Flatten()(maps))
    fixed = keras.Model(image, flat)
    settings = {"epochs": 1, "fine_tune_epochs": 0, "input_size": 9}
    result = ok.Pipeline([ok.TransferLearn(pooled, **settings)]).run(small_model(), data)
    assert "images resized to 9x9" in result.report.rows[0].notes
    with pytest.raises(ok.PipelineError, match="does not run on inputs of shape"):
        ok.Pipeline([ok.TransferLearn(fixed, **settings)]).check(small_model(), data)
