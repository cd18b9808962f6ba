"""Rebalancing: formulas, what lies between neighbours, and that nothing made is ever judged on."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import ADASYN, SMOTE, SMOTENC, BorderlineSMOTE, RandomOverSampler
from imblearn.pipeline import Pipeline as SamplerPipeline
from imblearn.under_sampling import ClusterCentroids, RandomUnderSampler, TomekLinks
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

import optkit as ok
from optkit.data import ArraySplit, StreamSplit
from optkit.errors import DataError, PipelineError
from optkit.fingerprint import fingerprint
from optkit.metric import resolve_metric
from optkit.models import signature
from optkit.recipe import Recipe
from optkit.runtime import isolated
from optkit.sampling import (
    balanced_weights,
    count_classes,
    over_targets,
    under_targets,
    whole_number_inputs,
)
from optkit.task import infer_task

layers = keras.layers
QUICK = ok.Measure(latency_seconds=0, memory=False)
MADE = ("smote", "borderline_smote", "adasyn", "svm_smote", "kmeans_smote")
COUNTS = {0: 90, 1: 20, 2: 45}


def table(counts=None, columns=4, seed=0):
    """Three overlapping clouds, one column a thousand times as wide as the others."""
    counts = counts or COUNTS
    generator = np.random.default_rng(seed)
    y = np.repeat(list(counts), list(counts.values()))
    centers = generator.normal(size=(max(counts) + 1, columns))
    x = centers[y] + generator.normal(scale=0.8, size=(len(y), columns))
    x[:, -1] *= 1000
    order = generator.permutation(len(y))
    return x[order].astype("float32"), y[order]


def dense(columns=4, classes=3, *hidden, seed=0):
    with isolated(seed):
        return keras.Sequential(
            [
                keras.Input((columns,), name="row"),
                *hidden,
                layers.Dense(classes, activation="softmax", name="classes"),
            ]
        )


def bound(train, model=None, **settings):
    return ok.Data(train=train, **settings).bind(signature(model or dense())).train


def drawn(item, split, seed=0):
    return item.amend(Recipe()).sample(split, seed)


def content(split):
    """Inputs, targets and weights of one pass."""
    x, y, weights = zip(*split.iterate_weighted(), strict=True)
    weights = None if weights[0] is None else np.concatenate(weights)
    return np.concatenate(x), np.concatenate(y), weights


def counts_of(split):
    y = content(split)[1]
    return dict(zip(*(part.tolist() for part in np.unique(y, return_counts=True)), strict=True))


def rows_set(x):
    return {row.tobytes() for row in np.ascontiguousarray(x)}


# --------------------------------------------------------------------------------------- formulas


def test_class_weights_are_those_of_scikit_learn():
    _, y = table()
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert list(balanced_weights(COUNTS).values()) == pytest.approx(list(wanted))
    split = drawn(ok.Rebalance("class_weight"), bound(table()))
    _, y, weights = content(split)
    assert weights == pytest.approx(wanted[y])
    assert weights.mean() == pytest.approx(1.0)


def test_an_update_with_class_weights_follows_the_formula():
    """One step of plain descent, against the gradient of the weighted cross-entropy in NumPy."""
    x, y = table()
    x[:, -1] /= 1000
    model, rate = dense(), 0.1
    kernel, bias = (value.astype("f8") for value in model.get_weights())
    data = ok.Data(train=(x, y), test=(x[:20], y[:20]), batch_size=len(x))
    training = ok.FineTune(
        epochs=1, learning_rate=rate, optimizer=keras.optimizers.SGD(), patience=None
    )
    run = ok.Pipeline([ok.Rebalance("class_weight"), training]).run(model, data, measure=QUICK)
    weights = np.array([len(y) / (3 * COUNTS[number]) for number in y])
    scores = np.exp(x @ kernel + bias)
    wrong = scores / scores.sum(1, keepdims=True) - np.eye(3)[y]
    gradient = x.T @ (weights[:, None] * wrong) / len(y)
    found = run.model.get_weights()
    assert found[0] == pytest.approx(kernel - rate * gradient, abs=1e-5)
    assert found[1] == pytest.approx(bias - rate * (weights[:, None] * wrong).mean(0), abs=1e-5)


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        (ok.Rebalance("over"), {0: 90, 1: 90, 2: 90}),
        (ok.Rebalance("over", over_ratio=0.4), {0: 90, 1: 36, 2: 45}),
        (ok.Rebalance("under"), {0: 20, 1: 20, 2: 20}),
        (ok.Rebalance("under", under_ratio=0.5), {0: 40, 1: 20, 2: 40}),
        (ok.Rebalance("smote", over_ratio=0.7), {0: 90, 1: 63, 2: 63}),
        (ok.Rebalance("borderline_smote"), {0: 90, 1: 90, 2: 90}),
        (ok.Rebalance("svm_smote"), {0: 90, 1: 90, 2: 90}),
        (ok.Rebalance("smote_under"), {0: 45, 1: 45, 2: 45}),
        (ok.Rebalance("smote_under", over_ratio=0.3, under_ratio=0.5), {0: 54, 1: 27, 2: 45}),
        (ok.Rebalance("class_weight"), COUNTS),
    ],
    ids=repr,
)
def test_counts_follow_the_ratios(item, wanted):
    split = bound(table())
    after = drawn(item, split)
    assert counts_of(after) == wanted
    assert after.steps == -(-sum(wanted.values()) // split.batch_size)


@pytest.mark.parametrize("ratio", [0.3, 0.55, 1.0])
def test_ratios_of_two_classes_are_those_of_imbalanced_learn(ratio):
    counts = {0: 83, 1: 17}
    y = np.repeat([0, 1], [83, 17])
    rows = np.arange(len(y))[:, None]
    for kind, rule in ((RandomOverSampler, over_targets), (RandomUnderSampler, under_targets)):
        found = kind(sampling_strategy=ratio).fit_resample(rows, y)[1]
        assert list(rule(counts, ratio).values()) == np.bincount(found).tolist()


# ----------------------------------------------------------------------------------- rows are made


def nearest_of_class(x, labels, number, k):
    """For each row of a class its k nearest in it, by a plain matrix of distances."""
    rows = np.flatnonzero(labels == number)
    away = np.linalg.norm(x[rows][:, None] - x[rows][None], axis=-1)
    np.fill_diagonal(away, np.inf)
    return rows, rows[np.argsort(away, 1)[:, :k]]


def on_a_segment(made, x, rows, neighbors):
    """Whether a row lies between a row and one of its neighbours: c = a + t (b - a)."""
    scale = x.std(0)
    starts = np.repeat(rows, neighbors.shape[1])
    a, b, c = x[starts] / scale, x[neighbors.ravel()] / scale, made / scale
    along = b - a
    t = np.sum((c - a) * along, 1) / np.sum(along**2, 1)
    off = np.linalg.norm(a + t[:, None] * along - c, axis=1)
    return bool(np.any((off < 1e-4) & (t > -1e-4) & (t < 1 + 1e-4)))


@pytest.mark.parametrize("features", ["scaled", "flat"])
@pytest.mark.parametrize("strategy", ["smote", "adasyn"])
def test_made_rows_lie_between_neighbours_of_their_class(strategy, features):
    x, y = table()
    split = drawn(ok.Rebalance(strategy, k_neighbors=4, features=features), bound((x, y)))
    found, labels, _ = content(split)
    real = rows_set(x)
    made = np.array([row.tobytes() not in real for row in found])
    assert made.sum() > 80
    assert rows_set(found[~made]) == real
    compared = x / x.std(0) if features == "scaled" else x
    for number in (1, 2):
        pairs = nearest_of_class(compared.astype("f8"), y, number, 4)
        rows = found[made & (labels == number)].astype("f8")
        assert all(on_a_segment(row, x.astype("f8"), *pairs) for row in rows)
    assert not np.any(labels[made] == 0)


def test_what_a_column_is_wide_decides_only_where_nothing_scales_it():
    """Neighbours by scaled columns are other ones here, so that the test above can fail."""
    x, y = table()
    pairs = nearest_of_class((x / x.std(0)).astype("f8"), y, 1, 4)
    found, labels, _ = content(
        drawn(ok.Rebalance("smote", k_neighbors=4, features="flat"), bound((x, y)))
    )
    rows = found[(labels == 1)].astype("f8")
    assert not all(on_a_segment(row, x.astype("f8"), *pairs) for row in rows)


def test_neighbours_in_the_space_of_a_model_and_samples_in_that_of_pixels():
    """The model sees the first column alone; rows are made of all of them."""
    x, y = table()
    with isolated(0):
        row = keras.Input((4,))
        embedding = keras.Model(row, layers.Dense(2, use_bias=False, name="part")(row))
    kernel = np.zeros((4, 2), "f4")
    kernel[0] = [1.0, -0.5]
    embedding.set_weights([kernel])
    item = ok.Rebalance("smote", k_neighbors=3, features=embedding)
    found, labels, _ = content(drawn(item, bound((x, y))))
    real = rows_set(x)
    made = np.array([row.tobytes() not in real for row in found])
    for number in (1, 2):
        pairs = nearest_of_class((x @ kernel).astype("f8"), y, number, 3)
        rows = found[made & (labels == number)].astype("f8")
        assert len(rows) == 90 - COUNTS[number]
        assert all(on_a_segment(row, x.astype("f8"), *pairs) for row in rows)


def test_chained_samplers_are_those_of_imbalanced_learn_by_hand():
    x, y = table()
    smote = SMOTE(sampling_strategy={0: 90, 1: 60, 2: 60}, random_state=3)
    under = RandomUnderSampler(random_state=4)
    wanted_x, wanted_y = under.fit_resample(*smote.fit_resample(x, y))
    for strategy in ([smote, under], SamplerPipeline([("smote", smote), ("under", under)])):
        found, labels, _ = content(drawn(ok.Rebalance(strategy), bound((x, y)), seed=9))
        order, other = np.lexsort(found.T), np.lexsort(wanted_x.T)
        assert np.array_equal(found[order], wanted_x[other])
        assert np.array_equal(labels[order], wanted_y[other])


def test_equal_seeds_give_equal_rows_and_the_samplers_given_stay_as_they_are():
    split = bound(table())
    sampler = SMOTE()
    item = ok.Rebalance([sampler, RandomUnderSampler(sampling_strategy={0: 50})])
    one, same, other = (content(drawn(item, split, seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert sampler.random_state is None
    assert not hasattr(sampler, "sampling_strategy_")
    fixed = ok.Rebalance(SMOTE(random_state=0))
    assert np.array_equal(content(drawn(fixed, split, 1))[0], content(drawn(fixed, split, 2))[0])


def test_drawing_copies_no_sample_and_keeps_what_belongs_together():
    x, y = table()
    weights = np.arange(1, len(y) + 1, dtype="f4")
    split = bound((x, y, weights))
    for strategy in ("over", "under", TomekLinks()):
        after = drawn(ok.Rebalance(strategy), split)
        assert after.x is split.x
        found = content(after)
        places = (found[2] - 1).astype(int)
        assert np.array_equal(found[0], x[places])
        assert np.array_equal(found[1], y[places])


def test_equal_rows_keep_a_weight_each():
    x, y = table()
    x[1:3], y[1:3] = x[0], y[0]
    weights = np.arange(1, len(y) + 1, dtype="f4")
    after = content(drawn(ok.Rebalance("smote"), bound((x, y, weights))))
    assert np.array_equal(np.sort(after[2][: len(y)]), weights), "SMOTE leaves out no row"


def test_made_rows_weigh_what_their_class_does_on_average():
    x, y = table()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y)).astype("f4")
    found, labels, own = content(drawn(ok.Rebalance("smote"), bound((x, y, weights))))
    real = {row.tobytes(): weight for row, weight in zip(x, weights, strict=True)}
    for row, label, weight in zip(found, labels, own, strict=True):
        wanted = real.get(row.tobytes(), weights[y == label].mean())
        assert weight == pytest.approx(wanted)


def test_weights_of_samples_and_of_classes_are_multiplied():
    x, y = table()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y)).astype("f4")
    _, labels, found = content(drawn(ok.Rebalance(), bound((x, y, weights))))
    assert found == pytest.approx(weights * [len(y) / (3 * COUNTS[number]) for number in labels])


def test_images_stay_images_and_rows_one_hot():
    loaded = load_digits()
    keep = np.flatnonzero((loaded.target > 6) & ((loaded.target != 8) | (np.arange(1797) < 300)))
    x = (loaded.images[keep, ..., None] * 15).astype("uint8")
    y = np.eye(10, dtype="f4")[loaded.target[keep]]
    image = keras.Input((8, 8, 1), name="image", dtype="uint8")
    flat = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(flat))
    model.compile("sgd", "categorical_crossentropy")
    data = ok.Data(train=(x, y), test=(x[:50], y[:50]))
    split = data.bind(signature(model)).train
    found, rows, _ = content(drawn(ok.Rebalance("smote"), split))
    assert found.dtype == np.uint8
    assert found.shape[1:] == (8, 8, 1)
    assert len(rows_set(found) - rows_set(x)) > 50
    assert set(rows.sum(1)) == {1.0}
    assert len(set(rows.sum(0)[7:].tolist())) == 1
    report = (
        ok.Pipeline([ok.Rebalance("smote"), ok.FineTune(epochs=1, patience=None)])
        .run(model, data, measure=QUICK)
        .report
    )
    assert any("blends of two images" in note for note in report.rows[0].notes)


def test_several_inputs_are_compared_side_by_side():
    x, y = table()
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    joined = layers.Concatenate()([left, right])
    model = keras.Model([left, right], layers.Dense(3, activation="softmax")(joined))
    split = bound(({"left": x[:, :2], "right": x[:, 2:]}, y), model)
    whole = content(drawn(ok.Rebalance("smote"), bound((x, y))))
    parts, labels = drawn(ok.Rebalance("smote"), split).head(10**6)
    assert np.array_equal(np.hstack([parts["left"], parts["right"]]), whole[0])
    assert np.array_equal(labels, whole[1])


# --------------------------------------------------------------------------- training split alone


def test_no_made_sample_is_judged_on(monkeypatch):
    """Everything that is read of arrays is looked at; only training may see rows that were made."""
    cancer = load_breast_cancer()
    keep = np.r_[np.flatnonzero(cancer.target), np.flatnonzero(cancer.target == 0)[:80]]
    x, y = cancer.data[keep].astype("f4"), cancer.target[keep]
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    model = dense(30, 2, layers.BatchNormalization(name="norm"), layers.Dense(4, "relu"))
    data = ok.Data(train=(x[:300], y[:300]), test=(x[300:], y[300:]))
    real, trained, seen = rows_set(x[:300]), [], {"train": 0, "validation": 0, "test": 0}
    held = rows_set(x[300:])
    validation: set[bytes] = set()

    def look(self, read):
        found = rows_set(self.x if self.index is None else self.x[self.index])
        if read == "trained":
            trained.append(len(found - real))
            assert not found & held
            return
        seen[self.name] += 1
        assert found <= (held if self.name == "test" else real), (self.name, read)
        if self.name == "validation":
            validation.update(found)

    for name in ("training_batches", "batches", "iterate_weighted", "single_inputs"):
        plain = getattr(ArraySplit, name)

        def wrapped(self, *given, plain=plain, name=name, **named):
            look(self, "trained" if name == "training_batches" else name)
            return plain(self, *given, **named)

        monkeypatch.setattr(ArraySplit, name, wrapped)
    passes = [
        ok.Rebalance("smote"),
        ok.FineTune(epochs=2, patience=1),
        ok.SWA(epochs=2, learning_rate=1e-3),
        ok.BNReestimate(),
        ok.QuantizeINT8(20),
    ]
    report = ok.Pipeline(passes).run(model, data, measure=QUICK).report
    assert [row.status for row in report.rows] == ["recipe", *["ok"] * 4]
    # Both trainings; statistics are re-estimated on batches of the real split.
    assert sum(made > 50 for made in trained) == 2
    assert sum(made == 0 for made in trained) == len(trained) - 2
    assert min(seen.values()) > 0
    # The cut comes first: what is decided on is neither trained on nor what rows are made of.
    assert len(validation) == 60
    before = {name: number for name, number, *_ in report.rows[0].studies[0].rows}
    assert sum(before.values()) == 240


def test_every_training_draws_anew_and_passes_see_the_real_split():
    class Spy(ok.TrainPass):
        """Keeps what it is given."""

        def train(self, model, recipe, context):
            self.seen = [context.data.train, recipe.sample(context.data.train, context.seed)]
            context.fit(model, recipe, epochs=1, learning_rate=1e-3)
            return model

    spies = [Spy(), Spy()]
    x, y = table()
    data = ok.Data(train=(x, y), test=(x, y))
    ok.Pipeline([ok.Rebalance("smote"), *spies]).run(dense(), data, measure=QUICK)
    for spy in spies:
        assert spy.seen[0].samples == 155
        assert spy.seen[1].samples == 270
    assert not np.array_equal(*(spy.seen[1].x for spy in spies))


# ---------------------------------------------------------------------------------------- streams


def stream(x, y, batch=16):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        (ok.Rebalance("over"), {0: 900, 1: 900, 2: 900}),
        (ok.Rebalance("under", under_ratio=0.5), {0: 400, 1: 200, 2: 400}),
    ],
    ids=repr,
)
def test_streams_are_drawn_from_on_the_way(item, wanted):
    x, y = table({0: 900, 1: 200, 2: 450})
    split = bound(stream(x, y))
    assert isinstance(split, StreamSplit)
    after = drawn(item, split)
    assert after.steps == -(-sum(wanted.values()) // 16)
    found, labels, _ = content(after)
    assert rows_set(found) <= rows_set(x)
    counts = np.bincount(labels)
    # A count is a sum of independent draws; four standard deviations of the widest case.
    assert np.all(np.abs(counts - list(wanted.values())) < 4 * np.sqrt(900))
    assert np.array_equal(content(drawn(item, split))[0], found)
    epochs = after.training_batches(1).take(2 * after.steps)
    twice = [batch.numpy() for batch, _ in epochs]
    half = len(twice) // 2
    assert not np.array_equal(np.concatenate(twice[:half]), np.concatenate(twice[half:]))


def test_a_stream_of_samples_of_many_lengths():
    lengths = np.random.default_rng(0).integers(2, 7, 300)
    y = (np.arange(300) % 10 == 0).astype("int32")

    def samples():
        for length, label in zip(lengths, y, strict=True):
            yield np.full(length, 1 + label, "int32"), label

    spec = (tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32))
    data = tf.data.Dataset.from_generator(samples, output_signature=spec).padded_batch(20)
    tokens = keras.Input((None,), dtype="int32")
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(4, 2)(tokens))
    model = keras.Model(tokens, layers.Dense(1, activation="sigmoid")(pooled))
    after = drawn(ok.Rebalance("over"), bound(data, model))
    found = [(x, y) for x, y in after.iterate()]
    assert all(np.all(x[:, :2] == 1 + y[:, None]) for x, y in found)
    counts = np.bincount(np.concatenate([y for _, y in found]))
    assert counts[0] == 270
    assert abs(counts[1] - 270) < 60


def test_class_weights_of_a_stream_are_those_of_its_arrays():
    x, y = table()
    item = ok.Rebalance("class_weight")
    one = content(drawn(item, bound((x, y))))[2]
    other = content(drawn(item, bound(stream(x, y))))[2]
    assert np.array_equal(one, other)
    rows = tf.data.Dataset.from_tensor_slices((x, np.eye(3, dtype="f4")[y])).batch(16)
    model = dense()
    model.compile("sgd", "categorical_crossentropy")
    assert np.array_equal(content(drawn(item, bound(rows, model)))[2], one)


# --------------------------------------------------------------------------------- texts, outputs


def test_texts_are_drawn_as_they_are():
    texts = np.array(["good", "fine", "well", "bad"], object)
    with isolated(0):
        text = keras.Input((), dtype="string")
        vectorize = layers.TextVectorization(output_sequence_length=2)
        vectorize.adapt(texts)
        pooled = layers.GlobalAveragePooling1D()(layers.Embedding(8, 2)(vectorize(text)))
        model = keras.Model(text, layers.Dense(1, activation="sigmoid")(pooled))
    split = bound((texts, np.array([1, 1, 1, 0])), model)
    x, y, _ = content(drawn(ok.Rebalance("over"), split))
    assert sorted(x) == ["bad", "bad", "bad", "fine", "good", "well"]
    assert list(y) == [int(text != "bad") for text in x]
    data = ok.Data(train=(texts, np.array([1, 1, 1, 0])), test=(texts, np.array([1, 1, 1, 0])))
    with pytest.raises(PipelineError, match=r"'smote'.*holds texts.*'class_weight', 'over'"):
        ok.Pipeline([ok.Rebalance("smote"), ok.FineTune(patience=None)]).check(model, data)


def token_model():
    tokens = keras.Input((3,), name="tokens")  # floats, as a Sequential model would have it
    flat = layers.Flatten()(layers.Embedding(9, 2)(tokens))
    return keras.Model(tokens, layers.Dense(2, activation="softmax")(flat))


def test_token_ids_are_found_in_a_model_within():
    tokens, size = keras.Input((3,), name="tokens"), keras.Input((2,), name="size")
    ids, amount = keras.Input((3,), name="ids"), keras.Input((2,), name="amount")
    within = layers.Concatenate()([layers.Flatten()(layers.Embedding(9, 2)(ids)), amount])
    encoder = keras.Model([ids, amount], within, name="encoder")
    out = layers.Dense(2, activation="softmax")(encoder([layers.Rescaling(1.0)(tokens), size]))
    inputs = signature(model := keras.Model([tokens, size], out)).inputs
    assert whole_number_inputs(model, inputs) == ["tokens"]
    first, row = keras.Input((3,), name="row"), keras.Input((3,), name="ids")
    learned = layers.Dense(3)(first)  # what reaches the embedding is none of the inputs' numbers
    inner = keras.Model(row, layers.Flatten()(layers.Embedding(9, 2)(row)))
    inputs = signature(model := keras.Model(first, layers.Dense(2)(inner(learned)))).inputs
    assert whole_number_inputs(model, inputs) == []


def test_rows_are_known_again_when_a_sampler_gives_another_dtype():
    class Widening(RandomUnderSampler):
        def fit_resample(self, x, y):
            x, y = super().fit_resample(x, y)
            return np.asarray(x, "float64") * 1.0, y

        _sampling_type = "clean-sampling"  # one that looks at the values

    x = np.random.default_rng(0).random((90, 4)).astype("float32")
    y = np.repeat([0, 1, 2], [50, 20, 20])
    weights = np.arange(1.0, 91.0)
    found = drawn(
        ok.Rebalance([TomekLinks(), Widening(sampling_strategy="all", random_state=0)]),
        bound((x, y, weights)),
    )
    after, _, kept = content(found)
    rows = [int(np.flatnonzero((x == row).all(1))[0]) for row in after]
    np.testing.assert_array_equal(kept, weights[rows])


def test_token_ids_are_found_whatever_their_type():
    model, pooled = token_model(), np.zeros((30, 3))
    data = ok.Data(train=(pooled, np.repeat([0, 1], [20, 10])))
    training = ok.FineTune(patience=None)

    def check(strategy, **settings):
        ok.Pipeline([ok.Rebalance(strategy, **settings), training]).check(model, data)

    for strategy in ("smote", "smote_under", ADASYN(), ClusterCentroids()):
        with pytest.raises(PipelineError, match=r"'tokens' holds whole numbers.*SMOTENC"):
            check(strategy)
    with pytest.raises(PipelineError, match=r"compares samples.*a model that embeds"):
        check(TomekLinks())
    check(TomekLinks(), features=keras.Model(model.inputs, model.layers[-2].output))
    check(SMOTENC(categorical_features=[0, 1]))
    check([RandomOverSampler(), RandomUnderSampler()])
    check("over")


def two_outputs():
    row = keras.Input((4,), name="row")
    first = layers.Dense(3, activation="softmax", name="kind")(row)
    return keras.Model(row, [first, layers.Dense(1, name="size")(row)])


def test_one_output_of_several():
    x, y = table()
    size = np.arange(len(y), dtype="f4")
    data = ok.Data(train=(x, {"kind": y, "size": size}))
    model = two_outputs()
    split = data.bind(signature(model)).train
    _, targets = drawn(ok.Rebalance("over", output="kind"), split).head(10**6)
    assert np.bincount(targets["kind"]).tolist() == [90, 90, 90]
    assert np.array_equal(y[targets["size"].astype(int)], targets["kind"])
    weighed = drawn(ok.Rebalance(output="kind"), split)
    assert weighed.weights["kind"] == pytest.approx([len(y) / (3 * COUNTS[number]) for number in y])
    assert set(weighed.weights["size"]) == {1.0}
    for item, message in (
        (ok.Rebalance(), r"2 with targets \(kind, size\). Name one: `Rebalance\(…, output='kind'"),
        (ok.Rebalance(output="nothing"), "names no output that has targets"),
        (ok.Rebalance(output="size"), "the task of 'size' is regression"),
        (ok.Rebalance("smote", output="kind"), "the other outputs have no targets"),
    ):
        with pytest.raises(PipelineError, match=message):
            ok.Pipeline([item, ok.FineTune(patience=None)]).check(model, data)


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "smite"}, "must be one of 'class_weight', 'over'"),
        (
            {"strategy": "over", "under_ratio": 0.5},
            "takes no `under_ratio`; these do: under, smote_",
        ),
        ({"strategy": "class_weight", "k_neighbors": 3}, "takes no `k_neighbors`"),
        ({"strategy": "under", "features": "flat"}, "takes no `features`; these do: smote, border"),
        ({"strategy": "over", "over_ratio": 1.5}, r"in \(0, 1\]"),
        ({"strategy": "smote", "k_neighbors": 0}, "at least 1"),
        ({"strategy": SMOTE}, r"is the class SMOTE. Give an object of it: `SMOTE\(\)`"),
        ({"strategy": []}, "holds no sampler. Give at least one"),
        ({"strategy": [None, "passthrough"]}, "holds no sampler. Give at least one"),
        ({"strategy": None}, "`strategy` must be a sampler.*Received: None"),
        ({"strategy": "smote_under", "under_ratio": 0.5}, "0.5 of the largest.*nothing to cut"),
        ({"strategy": "smote_under", "over_ratio": 0.3, "under_ratio": 0.2}, "nothing to cut"),
        ({"strategy": [SMOTE(), 3]}, r"`strategy\[1\]` must be a sampler.*Received: 3"),
        ({"strategy": SMOTE(), "over_ratio": 0.5}, "takes no over_ratio. Set `sampling_strategy`"),
        (
            {"strategy": SamplerPipeline([("scale", StandardScaler()), ("smote", SMOTE())])},
            r"`strategy.scale` \(StandardScaler\) changes features",
        ),
        ({"strategy": "smote", "features": 3}, "a Keras model, or the path of one. Received: 3"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(PipelineError, match=message):
        ok.Rebalance(**arguments)


@pytest.mark.parametrize(
    ("item", "train", "message"),
    [
        (ok.Rebalance("smote"), table({0: 50, 1: 4, 2: 9}), "class 1 has 3. Use `k_neighbors=2`"),
        (ok.Rebalance("smote"), table({0: 50, 1: 1}), "class 1 has 1. Use more samples, 'over'"),
        (ok.Rebalance("over"), table({1: 50}), "one class alone"),
        (ok.Rebalance(SMOTE()), table({0: 50, 1: 4, 2: 9}), "class 1 has 3. Use `k_neighbors=2`"),
        (ok.Rebalance([SMOTE()]), table({0: 50, 1: 4}), "its 5 nearest of the class"),
        (ok.Rebalance(SMOTETomek()), table({0: 50, 1: 4}), "class 1 has 3"),
        (ok.Rebalance(SMOTEENN(smote=SMOTE(k_neighbors=3))), table({0: 50, 1: 4}), "its 3 nearest"),
        (ok.Rebalance(BorderlineSMOTE()), table({0: 50, 1: 4}), "class 1 has 3"),
        (ok.Rebalance(ADASYN(n_neighbors=3)), table({0: 50, 1: 4}), "takes 4.*`n_neighbors=2`"),
        (
            ok.Rebalance(SMOTE(k_neighbors=NearestNeighbors(n_neighbors=4))),
            table({0: 50, 1: 4}),
            "its 3 nearest",
        ),
        (
            ok.Rebalance([RandomUnderSampler(sampling_strategy={0: 4}), SMOTE()]),
            table({0: 50, 1: 20}),
            "class 0 has 4",
        ),
        (
            ok.Rebalance(RandomOverSampler(sampling_strategy=0.1)),
            table({0: 50, 1: 20}),
            "cannot reach what it is told to.*Change `sampling_strategy`",
        ),
        (
            ok.Rebalance(SMOTENC(categorical_features=["city"])),
            table(),
            r"names of columns.*places of the columns",
        ),
        (ok.Rebalance("smote"), stream(*table()), "is a stream, which optkit never loads whole"),
        (ok.Rebalance(SMOTE()), stream(*table()), "'over' or 'under', which draw on the way"),
    ],
)
def test_data_that_a_strategy_cannot_treat(item, train, message):
    with pytest.raises(PipelineError, match=message):
        ok.Pipeline([item, ok.FineTune(patience=None)]).check(dense(), ok.Data(train=train))


@pytest.mark.parametrize(
    "item",
    [
        ok.Rebalance([RandomOverSampler(), SMOTE()]),  # copies of a sample are neighbours
        ok.Rebalance(SMOTE(sampling_strategy={0: 60}, k_neighbors=5)),  # not of the rare class
        ok.Rebalance(SMOTE(k_neighbors=2)),
    ],
)
def test_few_samples_that_are_enough(item):
    data = ok.Data(train=table({0: 50, 1: 4, 2: 9}))
    pipeline = ok.Pipeline([item, ok.FineTune(1, patience=None)])
    pipeline.check(dense(), data)
    assert pipeline.run(dense(), data, measure=QUICK).report.rows[-1].status == "ok"


def test_tasks_without_one_class_a_sample_are_refused():
    x, y = table()
    row = keras.Input((4,))
    labels = keras.Model(row, layers.Dense(3, activation="sigmoid")(row))
    values = keras.Model(row, layers.Dense(1)(row))
    each = keras.Model(row, layers.Reshape((2, 3))(layers.Dense(6)(row)))
    each.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    bits = (np.arange(3) <= y[:, None]).astype("f4")
    for model, targets, message in (
        (labels, bits, "multilabel, 3 labels.*several labels cannot be drawn for one"),
        (values, x[:, 0], "regression, 1 value.*Give samples weights"),
        (each, np.stack([y, y], 1), "a class for each position"),
    ):
        with pytest.raises(PipelineError, match=message):
            ok.Pipeline([ok.Rebalance("over"), ok.FineTune(patience=None)]).check(
                model, ok.Data(train=(x, targets))
            )


def test_a_sampler_that_fails_or_loses_a_class_is_named():
    x, y = table()
    with pytest.raises(
        DataError, match="SMOTE cannot resample `train`: ValueError: Expected n_nei"
    ):
        drawn(ok.Rebalance(SMOTE(k_neighbors=30)), bound((x, y)))

    class Only:
        """Leaves class 0 alone."""

        def fit_resample(self, x, y):
            return x[y == 0], y[y == 0]

    with pytest.raises(DataError, match=r"Only leaves no sample of the classes \[1, 2\]"):
        drawn(ok.Rebalance(Only()), bound((x, y)))


# ---------------------------------------------------------------------------------- report, storing


def test_the_row_shows_the_classes_before_and_after(tmp_path):
    x, y = table()
    data = ok.Data(train=(x, y), test=(x, y), class_names=["a", "b", "c"])
    items = [ok.Rebalance("smote", over_ratio=0.5), ok.FineTune(epochs=1, patience=None)]
    report = ok.Pipeline(items).run(dense(), data, measure=QUICK).report
    study = report.rows[0].studies[0]
    assert study.columns == ("class", "before", "after", "of these made")
    assert study.rows == (("a", 90, 90, 0), ("b", 20, 45, 25), ("c", 45, 45, 0))
    assert (
        "trained on 180 samples an epoch, 25 of them made, instead of 155" in report.rows[0].notes
    )
    assert set(report.final.per_class) == {"a", "b", "c"}
    assert "Classes of the training split" in str(report) + report.to_html()
    report.to_json(tmp_path / "report.json")
    assert ok.Report.from_json(tmp_path / "report.json").rows[0].studies[0] == study
    weighed = ok.Pipeline([ok.Rebalance(), items[1]]).run(dense(), data, measure=QUICK).report
    assert weighed.rows[0].studies[0].rows[1] == ("b", 20, 20, round(155 / 60, 4))


def test_a_training_tells_what_it_was_trained_on_where_draws_differ():
    x, y = table()
    data = ok.Data(train=(x, y), test=(x, y))
    training = ok.FineTune(epochs=1, patience=None)
    for strategy, told in (("smote_enn", True), (SMOTE(), True), ("smote", False)):
        items = [ok.Rebalance(strategy), training]
        rows = ok.Pipeline(items, seed=3).run(dense(), data, measure=QUICK).report.rows
        notes = [note for note in rows[1].notes if note.startswith("trained on")]
        assert bool(notes) == told
        assert any("of one draw" in note for note in rows[0].notes) == told
        if strategy == "smote_enn":
            counts = re.findall(r"\d: (\d+)", notes[0])
            total = re.search(r"trained on (\d+) samples", notes[0])
            assert sum(map(int, counts)) == int(total[1]) < 270


def test_trainings_know_how_many_steps_they_have():
    """Passes that plan by steps ask the context; a schedule that ends late leaves weights unpruned."""

    class Spy(ok.TrainPass):
        """Compares what was announced with what came."""

        def train(self, model, recipe, context):
            Spy.announced = context.steps(recipe).batches
            counting = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: Spy.came.append(batch)
            )
            context.fit(model, recipe, epochs=1, learning_rate=1e-3, callbacks=[counting])
            return model

    x, y = table()
    data = ok.Data(train=(x, y), test=(x, y), batch_size=8)
    for strategy in ("over", "under", "smote_enn"):
        Spy.came = []
        ok.Pipeline([ok.Rebalance(strategy), Spy()]).run(dense(), data, measure=QUICK)
        assert Spy.announced == len(Spy.came) != 20


def test_names_are_stored_and_samplers_are_fingerprinted(tmp_path):
    item = ok.Rebalance("smote_under", over_ratio=0.3, under_ratio=0.6, k_neighbors=3)
    pipeline = ok.Pipeline([item, ok.FineTune(epochs=1)])
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert repr(again[0]) == repr(item)
    assert json.loads((tmp_path / "pipeline.json").read_text())
    own = ok.Pipeline([ok.Rebalance(SMOTE(k_neighbors=3)), ok.FineTune(epochs=1)])
    with pytest.raises(PipelineError, match=r"`.*strategy` cannot be stored in JSON: SMOTE\("):
        own.to_json(tmp_path / "own.json")
    prints = [fingerprint(ok.Rebalance(SMOTE(k_neighbors=k))) for k in (3, 3, 4)]
    assert prints[0] == prints[1] != prints[2]


# ----------------------------------------------------------------------------- balanced accuracy


@pytest.mark.parametrize("kind", ["numbers", "rows", "binary", "logits"])
def test_balanced_accuracy_is_that_of_scikit_learn(kind):
    generator = np.random.default_rng(0)
    y = generator.choice(2 if kind in ("binary", "logits") else 4, 200, p=None)
    y[y == 1] = np.where(generator.uniform(size=np.sum(y == 1)) < 0.7, 0, 1)
    if kind in ("binary", "logits"):
        model = dense(4, 2)
        row = keras.Input((4,))
        out = layers.Dense(1, activation="sigmoid" if kind == "binary" else None)(row)
        model = keras.Model(row, out)
        loss = keras.losses.BinaryCrossentropy(from_logits=kind == "logits")
        outputs = generator.uniform(-1 if kind == "logits" else 0, 1, (200, 1)).astype("f4")
        answers = (outputs[:, 0] > (0.0 if kind == "logits" else 0.5)).astype(int)
        targets = y.astype("f4")
    else:
        model, outputs = dense(4, 4), generator.dirichlet(np.ones(4), 200).astype("f4")
        answers = outputs.argmax(1)
        targets = np.eye(4, dtype="f4")[y] if kind == "rows" else y
        loss = "categorical_crossentropy" if kind == "rows" else "sparse_categorical_crossentropy"
    model.compile("sgd", loss)
    task = infer_task(model, targets)
    metric = resolve_metric("balanced_accuracy", None, model, task)
    wanted = balanced_accuracy_score(y, answers)
    assert metric.whole(targets, outputs) == pytest.approx(wanted)
    watched = metric.keras("metric")
    for part in range(0, 200, 32):
        watched.update_state(
            tf.constant(targets[part : part + 32]), tf.constant(outputs[part : part + 32])
        )
    assert float(watched.result()) == pytest.approx(wanted, abs=1e-6)
    assert (metric.higher_is_better, metric.is_share) == (True, True)
    # Where a class has no sample it does not count; where samples have weights, they do.
    some = np.flatnonzero(y != 1)
    there = np.unique(y[some])
    present = recall_score(y[some], answers[some], labels=there, average="macro")
    assert metric.whole(targets[some], outputs[some]) == pytest.approx(present)
    weights = generator.uniform(0.1, 3, 200).astype("f4")
    watched.reset_state()
    watched.update_state(tf.constant(targets), tf.constant(outputs), tf.constant(weights))
    weighed = balanced_accuracy_score(y, answers, sample_weight=weights)
    assert float(watched.result()) == pytest.approx(weighed, abs=1e-5)
    assert abs(weighed - wanted) > 1e-3


def test_early_stopping_watches_balanced_accuracy():
    x, y = table()
    x[:, -1] /= 1000
    data = ok.Data(train=(x[:100], y[:100]), validation=(x[100:], y[100:]), test=(x, y))
    measure = dataclasses.replace(QUICK, metric="balanced_accuracy")
    passes = [ok.FineTune(epochs=3, learning_rate=0.05, patience=3)]
    result = ok.Pipeline(passes).run(dense(), data, measure=measure)
    row = result.report.rows[0]
    assert max(row.curves[0]["val_metric"]) == pytest.approx(row.validation_after, abs=1e-6)
    answers = result.model.predict(x, verbose=0).argmax(1)
    assert row.after.accuracy == pytest.approx(balanced_accuracy_score(y, answers))
    smooth = ok.Pipeline([ok.LabelSmooth(0.1), *passes]).run(dense(), data, measure=measure)
    row = smooth.report.rows[1]
    assert max(row.curves[0]["val_metric"]) == pytest.approx(row.validation_after, abs=1e-6)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    data = ok.Data(train=(x, x[:, 0]), test=(x, x[:, 0]))
    with pytest.raises(PipelineError, match="needs classes of which a sample has one"):
        ok.Pipeline(passes).run(model, data, measure=measure)


# ------------------------------------------------------------------------------------ end to end


def test_rare_digits_are_found_more_often():
    """Half of the digits have an eighth of their samples; every way finds more of them."""
    loaded = load_digits()
    x, y = (loaded.images[..., None] / 16).astype("f4"), loaded.target
    half = np.arange(len(x)) < 1000
    rare = np.flatnonzero(half & (y < 5))
    train = np.r_[np.flatnonzero(half & (y >= 5)), rare[::8]]
    data = ok.Data(train=(x[train], y[train]), test=(x[~half], y[~half]), batch_size=64)
    with isolated(0):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1), name="image"),
                layers.Conv2D(8, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(10, activation="softmax", name="classes"),
            ]
        )
    training = ok.FineTune(epochs=6, learning_rate=6e-3, patience=None)
    measure = dataclasses.replace(QUICK, metric="balanced_accuracy")

    def rare_found(*passes):
        report = ok.Pipeline([*passes, training], seed=2).run(model, data, measure=measure).report
        found = report.final.per_class
        return np.mean([found[str(number)] for number in range(5)])

    plain = rare_found()
    for strategy in ("class_weight", "over", "smote"):
        assert rare_found(ok.Rebalance(strategy)) > plain + 0.05, (strategy, plain)


def test_counting_reads_a_view_alone():
    x, y = table()
    split, held, _ = bound((x, y)).cut(0.2, 1, True)
    assert sum(count_classes(split).values()) == 124
    weighed = drawn(ok.Rebalance(), split)
    assert content(weighed)[2].mean() == pytest.approx(1.0)
    assert rows_set(content(drawn(ok.Rebalance("under"), split))[0]).isdisjoint(
        rows_set(content(held)[0])
    )
