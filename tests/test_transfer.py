"""`TransferLearn`: what is unfrozen, how fast, on what backbones, and the mistakes it catches."""

from __future__ import annotations

import json

import numpy as np
import pytest

import optkit as ok
from optkit import collapse
from optkit.backbones import Backbone
from optkit.collapse import has_collapsed
from optkit.models import batch_norms, clone, signature, variables_by_path
from optkit.probe import compare, probe
from optkit.task import Task, infer_task
from optkit.testing import digits, small_model
from optkit.unfreezing import (
    blocks_of,
    freeze,
    layers_to_unfreeze,
    nearness,
    rate_factors,
    stages_of,
    tunable,
    unfreeze,
)

pytestmark = pytest.mark.usefixtures("untimed")
CLASSES = Task("multiclass", 10, True, False, 10)


def run(item, model, data, *more, seed=0):
    return ok.Pipeline([item, *more], seed=seed).run(model, data)


def notes(result, row=0):
    return "\n".join(result.report.rows[row].notes)


# ------------------------------------------------------------------------------------- the probe


def test_a_probe_is_the_ridge_classifier_of_scikit_learn():
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = digits(300).train
    x = x.reshape(len(x), -1)
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(10.0 ** np.arange(-2, 5)))
    folds = StratifiedKFold(5, shuffle=True, random_state=4)
    right = cross_val_predict(model, x, y, cv=folds) == y
    found = probe(x, y, CLASSES, seed=4)
    assert found.score == pytest.approx(right.mean(), abs=0.006)
    assert found.score > 0.8
    assert found.chance == np.bincount(y).max() / len(y)
    assert found.skill == pytest.approx((found.score - found.chance) / (1 - found.chance))


def test_a_probe_of_values_and_of_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    noise = rng.normal(size=200)
    values = (x[:, 0] + 0.5 * noise)[:, None]
    found = probe(x, values, Task("regression", 0, False, False, 1), seed=0)
    # The share of the variance that the features explain: 1 / (1 + 0.25).
    assert found.skill == pytest.approx(0.8, abs=0.06)
    labels = np.stack([x[:, 0] > 0, rng.random(200) > 0.5], 1).astype("float32")
    found = probe(x, labels, Task("multilabel", 2, False, False, 2), seed=0)
    assert found.score == pytest.approx(0.75, abs=0.06), "one label is known, one is chance"
    assert found.chance == pytest.approx(0.5, abs=0.06)


def test_what_cannot_be_probed():
    assert probe(np.zeros((9, 2)), np.arange(9), CLASSES, seed=0) is None
    assert probe(np.zeros((50, 2)), np.full(50, 3), CLASSES, seed=0) is None


def test_nearness_does_not_depend_on_how_hard_the_task_is():
    """Half of the labels made wrong lowers both scores; the order of the two stays."""
    rng = np.random.default_rng(0)
    x, y = digits(900).train
    x = x.reshape(len(x), -1)
    blind = rng.normal(size=(len(x), 20))
    hard = np.where(rng.random(len(y)) < 0.3, rng.integers(0, 10, len(y)), y)
    for targets in (y, hard):
        good, poor = (probe(part, targets, CLASSES, seed=0) for part in (x, blind))
        assert nearness(good, poor).degree == "near"
        assert nearness(poor, good).degree == "far", "the middle serves better"
        assert nearness(good, good).degree == ("near" if good.skill > 0.95 else "between")
    assert nearness(poor, None).degree == "far", "next to chance"
    assert nearness(None, None).degree == "between"
    gain, error = compare(good, poor)
    assert gain == pytest.approx(good.skill - (1 - poor.losses.mean()))
    assert 0 < error < 0.05


# -------------------------------------------------------------------------------------- the rule


def test_the_rule():
    assert layers_to_unfreeze(249, "far", 100) == 0
    assert layers_to_unfreeze(1000, "near", 100) == 30
    for samples in (10, 249, 250, 999, 1000, 10**6):
        found = [layers_to_unfreeze(samples, degree, 100) for degree in ("far", "between", "near")]
        assert found == sorted(found), "nearer, more"
    for degree in ("far", "between", "near"):
        found = [layers_to_unfreeze(samples, degree, 100) for samples in (249, 250, 1000)]
        assert found == sorted(set(found)) or found[0] == 0, "more samples, more"
        assert 0 < found[1] < layers_to_unfreeze(1000, "near", 100), "between: fewer"
    assert layers_to_unfreeze(10**6, "near", 9) == 6


def test_auto_trains_the_head_alone_where_samples_are_few_and_far(trained):
    x, y = digits(600).train
    random = np.random.default_rng(0).permutation(y[:150])
    data = ok.Data(train=(x[:150], random), test=(x[150:], y[150:]))
    result = run(ok.TransferLearn(trained, 1, fine_tune_learning_rate=0.1), small_model(), data)
    assert "chose the head alone" in notes(result)
    assert "far from the backbone's" in notes(result)
    assert "stage two" not in notes(result)
    before, after = variables_by_path(trained), variables_by_path(result.model)
    assert all(np.array_equal(after[path], before[path]) for path in before if path in after)


def test_auto_trains_the_last_layers_where_the_task_is_near(trained, data):
    """At a rate that does no harm, nothing is stopped and nothing undone."""
    item = ok.TransferLearn(trained, 3, learning_rate=0.01, fine_tune_learning_rate=2e-3)
    result = run(item, small_model(), data)
    assert "stage two trained" in notes(result)
    assert not any(word in notes(result) for word in ("stopped", "are kept"))
    total = len(tunable(trained.layers)) - 1  # without its classifier
    number = layers_to_unfreeze(360, "near", total)
    assert 0 < number < total
    assert f"chose the last {number} layers: 360 samples, and a task near" in notes(result)
    opened = {layer.name for layer in tunable(result.model.layers) if layer.trainable}
    assert opened == {layer.name for layer in tunable(trained.layers)[:-1][-number:]} | {"head"}


def test_few_epochs_that_leave_the_head_behind_are_told(trained, data):
    result = run(ok.TransferLearn(trained, 1, learning_rate=1e-6), small_model(), data)
    assert "stage one's head gets 0." in notes(result)
    assert "train it for more `epochs`" in notes(result)


# ------------------------------------------------------------- blocks, stages, rates that differ


def test_blocks_are_residual_blocks():
    import tf_keras as keras

    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, include_top=False, alpha=0.35)
    blocks = blocks_of(model, tunable(model.layers))
    named = [{layer.name.rpartition("_")[0] for layer in block} for block in blocks]
    # Between two places that a residual connection ends or starts at lies one block.
    assert [names for names in named if len(names) == 1] == [
        {f"block_{number}"} for number in range(2, 16)
    ]
    assert named[0] >= {"block_1"}
    assert named[-1] == {"block_16", "Conv"}, "one chain from the last addition to the end"


def test_in_a_chain_each_layer_is_a_block(trained):
    layers = tunable(trained.layers)
    assert blocks_of(trained, layers) == [[layer] for layer in layers]


@pytest.mark.parametrize("blocks", [1, 3, 7])
@pytest.mark.parametrize("epochs", [1, 2, 5, 9])
def test_stages_open_every_block_once_from_the_top(blocks, epochs):
    stages = stages_of([[number] for number in range(blocks)], epochs)
    assert sum(length for _, length in stages) == epochs
    assert all(length > 0 for _, length in stages)
    opened = [max(layers) for layers, _ in stages]
    assert opened == sorted(opened, reverse=True)
    assert sorted(number for layers, _ in stages for number in layers) == list(range(blocks))


def one_step(trained, **settings):
    """What a single step of stage two by plain gradient descent changes, by path."""
    import tf_keras as keras

    x, y = digits(300).train
    data = ok.Data(train=(x, y), test=(x, y), batch_size=len(x))
    item = ok.TransferLearn(
        trained,
        1,
        fine_tune_epochs=1,
        unfreeze=3,
        fine_tune_learning_rate=0.01,
        optimizer=keras.optimizers.SGD(),
        patience=None,
        **settings,
    )
    after = variables_by_path(run(item, small_model(), data).model)
    before = variables_by_path(trained)
    changes = {path: after[path].numpy() - before[path].numpy() for path in before if path in after}
    return {path: change for path, change in changes.items() if np.any(change)}


def test_discriminative_rates_scale_the_updates(trained):
    """Of plain gradient descent a block's update is exactly the share of what it would be."""
    plain, scaled = one_step(trained), one_step(trained, discriminative=0.4)
    last = [layer.name for layer in tunable(trained.layers)[:-1][-3:]]
    assert {path.split("/")[0] for path in plain} == set(last)
    assert plain.keys() == scaled.keys()
    for path, change in plain.items():
        share = 0.4 ** (len(last) - last.index(path.split("/")[0]))
        assert np.abs(change).max() > 1e-4
        assert np.allclose(scaled[path], share * change, rtol=1e-3, atol=1e-7), path


def test_factors_are_of_blocks_and_leave_the_head_alone(trained):
    layers = tunable(trained.layers)[:-1]
    found = rate_factors(trained, [[layer] for layer in layers], 0.5)
    for number, layer in enumerate(reversed(layers)):
        for weight in ("kernel", "bias"):
            if (path := f"{layer.name}/{weight}") in variables_by_path(trained):
                assert found[path] == 0.5 ** (number + 1)
    assert not any(path.startswith(trained.layers[-1].name) for path in found)


def test_gradual_unfreezing_opens_one_block_after_the_other(trained, data):
    seen = []

    class Look(ok.RecipePass):
        """Writes down what each training trains."""

        def amend(self, recipe):
            import tf_keras as keras

            class See(keras.callbacks.Callback):
                def on_train_begin(self, logs=None):
                    names = {w.name.split("/")[0] for w in self.model.trainable_weights}
                    seen.append((names, self.params["epochs"]))

            return recipe.amended(callbacks=See)

    item = ok.TransferLearn(
        trained, 2, fine_tune_epochs=4, unfreeze=3, gradual=True, patience=None, learning_rate=0.01
    )
    result = ok.Pipeline([Look(), item]).run(small_model(), data)
    first, second, third = (layer.name for layer in tunable(trained.layers)[:-1][-3:])
    assert seen == [
        ({"head"}, 2),
        ({"head", third}, 1),
        ({"head", third, second}, 1),
        ({"head", third, second, first}, 2),
    ]
    assert "in 3 steps from the last block downwards" in notes(result, 1)


# ------------------------------------------------------------------------------------- MobileNets


def test_alpha_is_that_of_keras():
    import tf_keras as keras

    for name, alpha in (("MobileNetV2", 0.35), ("MobileNet", 0.25)):
        built, kind = Backbone(name, weights=None, alpha=alpha).load((8, 8, 1))
        make = getattr(keras.applications, name)
        own = make((32, 32, 3), alpha=alpha, include_top=False, weights=None)
        assert (built.count_params(), kind) == (own.count_params(), "tf")
    assert ok.TransferLearn(name, alpha=0.5, weights=None).get_config()["alpha"] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ok.TransferLearn(alpha=0.5), "a given model has the width that it has"),
        (lambda: ok.TransferLearn("ResNet50", alpha=0.5), "ResNet50 has no `alpha`; MobileNet, "),
        (lambda: ok.TransferLearn("MobileNetV2", alpha=0.25), "exist for `alpha` 0.35, 0.5, 0.75"),
        (lambda: ok.TransferLearn("MobileNetV3Small", alpha=0.5), "exist for `alpha` 0.75, 1"),
        (lambda: ok.TransferLearn("MobileNet", alpha=0.0), "must be a number in"),
        (lambda: ok.TransferLearn(unfreeze="gradual"), "must be one of 'auto'"),
        (lambda: ok.TransferLearn(discriminative=0.0), "must be a number in"),
        (lambda: ok.TransferLearn(discriminative=1.1), "must be a number in"),
        (lambda: ok.TransferLearn(gradual=1), "must be True or False"),
        (lambda: ok.TransferLearn(learning_rate="best"), "a number above 0 or 'auto'"),
        (lambda: ok.TransferLearn(fine_tune_learning_rate=0), "must be a number in"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ok.PipelineError, match=message):
        make()


def test_sizes_that_imagenet_weights_were_trained_at():
    """No weights are needed to choose the size."""
    assert Backbone("MobileNetV2")._size((32, 32, 3)) == 96
    assert Backbone("MobileNetV2")._size((150, 150, 3)) == 160
    assert Backbone("MobileNet")._size((32, 32, 1)) == 128
    assert Backbone("MobileNetV2")._size((300, 300, 3)) == 300
    assert Backbone("MobileNetV2", weights=None)._size((48, 48, 3)) == 48
    assert Backbone("ResNet50")._size((48, 48, 3)) == 48
    assert Backbone("MobileNetV2", input_size=100)._size((32, 32, 3)) == 100
    assert Backbone("MobileNetV2").size_note(96) is None
    assert "trained at 96, 128, 160, 192, 224 pixels; at 100" in Backbone("MobileNetV2").size_note(
        100
    )
    assert Backbone("MobileNetV2", weights=None).size_note(100) is None


# ------------------------------------------------------------------------------------------ text


def sentences(count, seed, topics):
    """Sentences of words of a topic among words of none, and which topic it is."""
    rng = np.random.default_rng(seed)
    filler = [f"word{number}" for number in range(40)]
    words = [[f"{topic}{number}" for number in range(30)] for topic in topics]
    y = np.arange(count) % len(topics)
    x = [
        " ".join(
            rng.permutation([*rng.choice(words[topic], 3), *rng.choice(filler, rng.integers(9))])
        )
        for topic in y
    ]
    return np.array(x, dtype=object), y


@pytest.fixture(scope="module")
def text_backbone():
    """Learns on four topics which words go together; gives a sequence of features, masked."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x, y = sentences(800, 0, ["sport", "art", "money", "food"])
    vectorize = layers.TextVectorization(output_sequence_length=12, name="vectorize")
    vectorize.adapt(x)
    text = keras.Input((), dtype="string", name="text")
    embedding = layers.Embedding(vectorize.vocabulary_size(), 8, mask_zero=True, name="words")
    sequence = embedding(vectorize(text))
    pooled = layers.GlobalAveragePooling1D()(sequence)
    whole = keras.Model(text, layers.Dense(4, activation="softmax")(pooled))
    whole.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"])
    history = whole.fit(x, y, epochs=8, verbose=0)
    assert history.history["accuracy"][-1] > 0.95
    return keras.Model(text, sequence, name="text_backbone")


def text_model(shape=()):
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    text = keras.Input(shape, dtype="string", name="review")
    vectorize = layers.TextVectorization(output_sequence_length=12, name="own_vectorize")
    vectorize.adapt(sentences(50, 5, ["sport", "art"])[0])
    x = layers.Embedding(vectorize.vocabulary_size(), 4, name="own_words")(vectorize(text))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(text, layers.Dense(1, activation="sigmoid")(x), name="reviews")


@pytest.fixture(scope="module")
def reviews():
    return ok.Data(
        train=sentences(60, 1, ["money", "food"]),
        validation=sentences(60, 2, ["money", "food"]),
        test=sentences(200, 3, ["money", "food"]),
    )


def test_a_text_backbone_from_a_file(text_backbone, reviews, tmp_path):
    given = tmp_path / "text.keras"
    text_backbone.save(given)
    item = ok.TransferLearn(given, 15, learning_rate=0.05, fine_tune_learning_rate=1e-3)
    result = run(item, text_model(), reviews)
    assert result.report.final.accuracy > 0.95, "30 sentences a topic are enough"
    assert "samples, and a task near the backbone's" in notes(result)
    assert [layer.name for layer in tunable(result.model.layers)] == ["words", "head"]
    assert {"vectorize", "words", "head_pooling"} <= {layer.name for layer in result.model.layers}
    assert result.model.input_names == ["review"]


def test_pooling_of_a_sequence_leaves_out_what_is_masked(text_backbone, reviews):
    """The head sees the mean over the words that are there, whatever the padding."""
    import tf_keras as keras

    item = ok.TransferLearn(text_backbone, 1, fine_tune_epochs=0, patience=None)
    model = run(item, text_model(), reviews).model
    x = np.array(["sport1 art2", "food3"], dtype=object)
    pooled = keras.Model(model.inputs, model.get_layer("head_pooling").output)
    vocabulary = text_backbone.get_layer("vectorize").get_vocabulary()
    table = text_backbone.get_layer("words").get_weights()[0]
    expected = [
        np.mean([table[vocabulary.index(word)] for word in sentence.split()], 0) for sentence in x
    ]
    assert np.allclose(pooled.predict(x, verbose=0), expected, atol=1e-6)


def test_a_text_backbone_with_an_axis_for_its_string(text_backbone, reviews):
    """One string a sample, `()` or `(1,)`: both ways round."""
    import tf_keras as keras

    text = keras.Input((1,), dtype="string")
    wide = keras.Model(text, text_backbone(keras.layers.Reshape(())(text)))
    for backbone, shape in ((wide, ()), (text_backbone, (1,))):
        item = ok.TransferLearn(backbone, 6, learning_rate=0.1, fine_tune_epochs=0)
        assert run(item, text_model(shape), reviews).report.final.accuracy > 0.9


def test_text_backbones_that_do_not_fit_are_refused(text_backbone, reviews, data):
    import tf_keras as keras

    numbers = keras.Model(text_backbone.inputs, text_backbone.get_layer("vectorize").output)
    ids = keras.Input((12,), dtype="int64")
    behind = keras.Model(ids, text_backbone.get_layer("words")(ids))
    for backbone, message in (
        (numbers, "gives int64 values of shape"),
        (behind, "takes numbers, and the data are text"),
    ):
        with pytest.raises(ok.PipelineError, match=message):
            ok.Pipeline([ok.TransferLearn(backbone)]).check(text_model(), reviews)
    with pytest.raises(ok.PipelineError, match="takes text, and the data are numbers"):
        ok.Pipeline([ok.TransferLearn(text_backbone)]).check(small_model(), data)


def test_a_text_without_a_word_is_told_of(text_backbone):
    x, y = sentences(60, 1, ["money", "food"])
    x[7] = ""
    data = ok.Data(train=(x, y), validation=(x[8:], y[8:]))
    with pytest.raises(ok.PassError, match=r"not finite for 1 of 60 .* without a single word"):
        run(ok.TransferLearn(text_backbone, 1), text_model(), data)


# ------------------------------------------------------------------------- preprocessing, BN


@pytest.fixture(scope="module")
def colour_backbone():
    """A network with batch normalization, trained on images as torch's ImageNet models are."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x, y = colour_digits("train")
    normal = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    image = keras.Input((8, 8, 3), name="image")
    maps = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image)
    maps = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="stem_norm")(maps))
    maps = layers.ReLU()(layers.Conv2D(24, 3, name="top")(maps))
    vector = layers.GlobalAveragePooling2D(name="vector")(maps)
    model = keras.Model(image, layers.Dense(10, activation="softmax")(vector), name="colour")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(normal, y, epochs=15, verbose=0)
    return keras.Model(image, vector, name="colour_backbone")


def colour_digits(split):
    """Digits as colour photographs have them, 0 to 255: tinted, never quite black."""
    x, y = getattr(digits(600), split)
    tint = np.random.default_rng(0).uniform(0.6, 1, (len(x), 1, 1, 3))
    return (30 + 225 * x * tint).astype("float32"), y


def colour_model():
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


@pytest.fixture(scope="module")
def colours():
    return ok.Data(**{name: colour_digits(name) for name in ("train", "validation", "test")})


@pytest.mark.parametrize("kind", ["auto", None])
def test_a_wrong_range_is_refused_with_the_right_setting(colour_backbone, colours, kind):
    item = ok.TransferLearn(colour_backbone, 1, preprocessing=kind)
    with pytest.raises(ok.PipelineError, match=r"not what it was trained on .* 'stem_norm'.*") as e:
        ok.Pipeline([item]).check(colour_model(), colours)
    assert "preprocessing='torch'" in str(e.value) or "preprocessing='tf'" in str(e.value)


def test_the_right_setting_is_better_and_passes(colour_backbone, colours):
    item = ok.TransferLearn(
        colour_backbone, 10, learning_rate=0.03, preprocessing="torch", fine_tune_epochs=0
    )
    result = run(item, colour_model(), colours)
    assert "pixels may not be" not in notes(result)
    assert result.report.final.accuracy > 0.8


def test_a_setting_that_was_asked_for_is_noted(colour_backbone, colours):
    item = ok.TransferLearn(colour_backbone, 1, preprocessing="caffe", fine_tune_epochs=0)
    result = run(item, colour_model(), colours)
    assert "the pixels may not be as the backbone expects them" in notes(result)


def test_batch_normalization_never_moves_in_this_pass_nor_later(colour_backbone, colours):
    """Trainable in the given model, it is in inference mode from here on: not one bit changes."""
    assert all(norm.trainable for norm in batch_norms(colour_backbone))
    item = ok.TransferLearn(
        colour_backbone,
        2,
        preprocessing="torch",
        unfreeze=9,
        learning_rate=0.01,
        fine_tune_learning_rate=0.01,
    )
    result = run(item, colour_model(), colours, ok.FineTune(1, 0.01), ok.SWA(1, 0.01))
    assert "1 batch normalization stays in inference mode, in later passes too" in notes(result)
    before = variables_by_path(colour_backbone)
    moved = set()
    for stage in result.stages.values():
        after = variables_by_path(stage.model)
        for path in before:
            if not np.array_equal(before[path], after[path]):
                moved.add(path)
    assert moved == {"stem/kernel", "top/kernel", "top/bias"}


def test_batch_normalization_within_layers_stays_frozen():
    import tf_keras as keras

    layers = keras.layers
    x = keras.Input((3, 4, 4, 1))
    inner = keras.Sequential([layers.Conv2D(2, 3), layers.BatchNormalization()])
    inner.build((None, 4, 4, 1))
    model = keras.Model(x, layers.TimeDistributed(inner)(x))
    norm_alone = layers.TimeDistributed(layers.BatchNormalization())
    norm_alone(x)
    assert tunable([*model.layers, norm_alone]) == [model.layers[1]]
    freeze(model.layers)
    unfreeze(model.layers[1:])
    assert [norm.trainable for norm in batch_norms(model)] == [False]
    assert len(model.trainable_weights) == 2


# -------------------------------------------------------------------------------------- collapse


def test_a_guard_takes_up_what_another_process_saw(trained):
    data = digits(300).bind(signature(trained))
    task = infer_task(trained, data.train.head(50)[1])
    model = clone(trained)
    one, other = (collapse.CollapseGuard(task, data.train) for _ in range(2))
    looking, again = one.callback(), other.callback()
    looking.set_model(model)
    looking.on_train_begin()
    looking.on_train_batch_end(0)
    weights = model.get_weights()
    model.set_weights([-weight for weight in weights])
    looking.on_train_batch_end(1)
    assert one.collapse is None, "once may be a stumble"
    again.set_model(model)
    again.on_train_begin()  # the model as it was left
    again.restore({name: array.copy() for name, array in looking.state().items()})
    again.on_train_batch_end(2)  # no power of two
    again.on_train_batch_end(3)
    assert other.collapse is not None
    assert other.collapse.step == 4
    third = collapse.CollapseGuard(task, data.train)
    last = third.callback()
    last.set_model(model)
    last.on_train_begin()
    last.restore(again.state())
    assert third.collapse == other.collapse
    third.restore(model)
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_collapse_is_half_of_what_was_known_and_no_accident():
    known = np.repeat([1.0, 0.0], [80, 20])
    assert has_collapsed(known, np.zeros(100), 0.1)
    assert not has_collapsed(known, np.repeat([1.0, 0.0], [50, 50]), 0.1), "35 of 70 points left"
    assert has_collapsed(known, np.repeat([1.0, 0.0], [40, 60]), 0.1)
    assert has_collapsed(known, np.full(100, np.nan), 0.1)
    guessing = np.repeat([1.0, 0.0], [15, 85])
    assert not has_collapsed(guessing, np.zeros(100), 0.1), "nothing was known"
    few = np.array([1.0, 1.0, 0.0, 1.0])
    assert not has_collapsed(few, np.array([1.0, 0.0, 0.0, 0.0]), 0.1), "too few to tell"
    errors = -np.full(50, 0.1) - np.linspace(0, 0.1, 50)
    assert has_collapsed(errors, errors - 1.0, -1.0)
    assert not has_collapsed(errors, errors - 0.1, -1.0)


@pytest.fixture(scope="module")
def stage_one(trained):
    """The settings of a good stage one, and the model that it alone gives."""
    settings = {"epochs": 4, "learning_rate": 0.02, "unfreeze": 3}
    item = ok.TransferLearn(trained, **settings, fine_tune_epochs=0)
    fast = ok.Measure(latency_seconds=0, memory=False)
    return settings, ok.Pipeline([item]).run(small_model(), digits(600), measure=fast)


@pytest.mark.parametrize(
    ("rate", "optimizer"), [(3.0, None), (1e30, "sgd")], ids=["absurd", "not finite"]
)
def test_a_rate_that_destroys_the_features_is_stopped(trained, data, stage_one, rate, optimizer):
    settings, alone = stage_one
    if optimizer is not None:
        settings = {**settings, "optimizer": optimizer, "learning_rate": 0.5}
    item = ok.TransferLearn(trained, **settings, fine_tune_learning_rate=rate, fine_tune_epochs=5)
    result = run(item, small_model(), data)
    told = notes(result)
    assert "stage two was stopped: within " in told
    assert "samples of `validation` went from 0.9" in told
    assert f"Try fine_tune_learning_rate={rate / 10:g}" in told
    assert result.report.final.accuracy > alone.report.final.accuracy - 0.03
    assert np.all([np.all(np.isfinite(weight)) for weight in result.model.get_weights()])
    json.dumps(result.report.to_dict())


def test_a_stage_two_that_makes_it_worse_is_undone(trained, data, stage_one, monkeypatch):
    """The guard of the first steps looks away, so that early stopping alone decides."""
    monkeypatch.setattr(collapse, "_LOOKS", 10**9)
    settings, alone = stage_one
    item = ok.TransferLearn(trained, **settings, fine_tune_learning_rate=3.0)
    result = run(item, small_model(), data)
    assert "the weights of stage one are kept" in notes(result)
    kept = variables_by_path(alone.model)
    for path, value in variables_by_path(result.model).items():
        assert np.array_equal(value, kept[path]), path


def test_rates_may_be_found(trained, data):
    item = ok.TransferLearn(
        trained, 2, learning_rate="auto", fine_tune_learning_rate="auto", fine_tune_epochs=1
    )
    assert run(item, small_model(), data).report.final.accuracy > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preprocessing": "torch"}, "`preprocessing` is for a backbone that is put"),
        ({"input_size": 33}, "`input_size` is for a backbone that is put"),
        ({"weights": "file.h5"}, "The model that comes in has the weights that it has"),
        ({"backbone": "own.keras", "weights": "file.h5"}, "A given model or file has the weights"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(arguments, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.TransferLearn(**{"backbone": None, **arguments})


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((8, 8, 1), {"preprocessing": "caffe"}, "of three colours, and the backbone takes 1 ch"),
        ((8, 8, 1), {"preprocessing": "torch"}, "of three colours, and the backbone takes 1 ch"),
        ((64,), {"preprocessing": "torch"}, "`preprocessing` is for backbones of images"),
        ((64,), {"input_size": 16}, "`input_size` is for backbones of images"),
    ],
)
def test_preprocessing_that_does_not_fit_the_backbone_is_refused(shape, arguments, message):
    from tf_keras import Input, Model, layers

    def dense(inputs):
        flat = layers.Flatten()(inputs) if len(shape) > 1 else inputs
        return layers.Dense(8, activation="relu")(flat)

    image = Input(shape)
    backbone = Model(image, dense(image))
    model = Model(image, layers.Dense(10, activation="softmax")(dense(image)))
    x = np.random.default_rng(0).random((20, *shape)).astype("float32")
    pipeline = ok.Pipeline([ok.TransferLearn(backbone, fine_tune_epochs=0, **arguments)])
    with pytest.raises(ok.PipelineError, match=message):
        pipeline.check(model, ok.Data(train=(x, np.arange(20) % 10)))
