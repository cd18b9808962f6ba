"""Passes that only look, and `AuditData`, against planted faults."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import optkit as ok
from optkit.audit import near_sets, near_vectors
from optkit.preprocessing import (
    FORMS,
    _discrepancy,
    _moments,
    inputs_of_ids,
    preprocessing_mismatch,
)
from optkit.runtime import isolated
from optkit.testing import digits, small_model

SPLITS = ("train", "validation", "test")
QUICK = ok.Measure(latency_seconds=0, memory=False)


class _Look(ok.InspectPass):
    """Says which splits it is shown, and draws random numbers."""

    def inspect(self, artifact, context):
        context.note(", ".join(context.data.identities()))
        context.show(ok.Study("Seeds", ("seed",), ((context.seed,),)))
        np.random.random(5)


class _LookAtFile(ok.InspectPass):
    """Takes TFLite files alone."""

    accepts = ok.TFLiteArtifact

    def inspect(self, artifact, context):
        context.note(f"{len(artifact.content)} bytes")


class _Worsen(ok.RewritePass):
    """Throws the last layer away, and counts on training behind it."""

    def __init__(self, recovers=False):
        self.recovers = recovers

    @property
    def expects_recovery(self):
        return self.recovers

    def rewrite(self, model, context):
        model.layers[-1].set_weights([0 * weight for weight in model.layers[-1].get_weights()])
        return model


def _trained(data):
    import tf_keras

    model = small_model()
    model.get_layer("norm").momentum = 0.5  # statistics that keep up with a short training
    model.compile(tf_keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    model.fit(*data.train, epochs=25, verbose=0)
    return model


# -------------------------------------------------------------------------------------- the family


def test_its_row_has_no_figures_and_it_is_shown_every_split():
    data = digits(200)
    result = ok.Pipeline([_Look(), ok.QuantizeFloat16(), _LookAtFile()]).run(
        small_model(), data, progress=False, measure=QUICK
    )
    first, second, third = result.report.rows
    assert first.status == third.status == "ok"
    assert first.family == "inspect"
    assert first.before is None
    assert first.after is None
    assert first.accuracy_change is None
    assert first.notes == ("train, validation, test",)
    assert result.report.final_row is second
    assert list(result.stages) == ["QuantizeFloat16"]
    assert third.notes == (f"{len(result.artifact.content)} bytes",)


def test_it_shows_in_every_form_of_the_report(tmp_path):
    data = digits(200)
    events = []
    passes = [_Look(), ok.BNReestimate(), _Look()]
    report = (
        ok.Pipeline(passes).run(small_model(), data, progress=events.append, measure=QUICK).report
    )
    report.to_json(tmp_path / "report.json")
    again = ok.Report.from_json(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    for text in (str(report), report.to_markdown(), report.to_html(), report._repr_html_()):
        assert "_Look-2" in text
        assert "train, validation, test" in text
    frame = report.to_frame()
    assert frame.loc[frame["name"] == "_Look", "accuracy"].isna().all()
    report.plot(tmp_path / "report.png")
    assert "BNReestimate" in str(report.compare(again))
    kinds = [(event.step, event.kind) for event in events if event.step]
    assert kinds == [
        (1, "started"),
        (1, "finished"),
        (2, "started"),
        (2, "finished"),
        (2, "measured"),
        (3, "started"),
        (3, "finished"),
    ]


def test_a_report_of_looking_alone():
    report = (
        ok.Pipeline([_Look()]).run(small_model(), digits(200), progress=False, measure=QUICK).report
    )
    assert report.final_row is None
    assert report.final == report.baseline
    assert "no pass was kept" not in str(report) + report.to_html()


def test_texts_are_the_same_however_wide_their_arrays_are():
    import tf_keras

    texts = np.array([f"a sentence of its own, number {i}" for i in range(40)])
    words = tf_keras.layers.TextVectorization(output_sequence_length=8)
    words.adapt(texts)
    model = tf_keras.Sequential(
        [
            tf_keras.Input((), dtype="string"),
            words,
            tf_keras.layers.Embedding(words.vocabulary_size(), 4),
            tf_keras.layers.GlobalAveragePooling1D(),
            tf_keras.layers.Dense(2, activation="softmax"),
        ]
    )
    y = np.arange(40) % 2
    wider = np.array([*texts[:3], "another one, and so long that the array is wider than train's"])
    assert wider.dtype != texts.dtype
    data = ok.Data(train=(texts, y), test=(wider, np.array([0, 1, 1, 0])))
    pipeline = ok.Pipeline([ok.AuditData(), ok.FineTune(1, patience=None)])
    notes = " ".join(pipeline.run(model, data, measure=QUICK).report.rows[0].notes)
    assert "3 samples of test" in notes


def test_a_number_that_is_no_class_is_told():
    x = np.random.default_rng(0).random((3000, 8, 8, 1)).astype("float32")
    y = np.arange(3000) % 10
    strange = y.copy()
    strange[[2900, 2901]] = 10, -1  # behind what is looked at before a run

    def batches():
        return iter([(x[i : i + 30], strange[i : i + 30]) for i in range(0, 3000, 30)])

    data = ok.Data(train=batches, test=(x[:50], y[:50]), steps=100, batch_size=30)
    with pytest.raises(ok.OptkitError) as caught:
        ok.Pipeline([ok.AuditData(strict=True), ok.FineTune(1)]).run(
            small_model(), data, measure=QUICK
        )
    assert "2 samples of classes that there are not (-1, 10), of 10" in str(caught.value)


def test_nothing_changes_with_it_not_even_a_random_number(tmp_path):
    data, model = digits(200), small_model()

    def run(passes):
        return ok.Pipeline(passes, seed=2).run(
            model, data, progress=False, measure=QUICK, workdir=tmp_path
        )

    train = ok.FineTune(epochs=1, learning_rate=1e-3)
    plain = run([train])
    looked = run([_Look(), train, _Look()])
    for one, other in zip(plain.model.get_weights(), looked.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert looked.report.rows[1].seconds == plain.report.rows[0].seconds  # the kept stage
    seeds = [looked.report.rows[i].studies[0].rows[0][0] for i in (0, 2)]
    assert seeds[0] != seeds[1]


def test_order_goes_past_it():
    keras_model = small_model()
    ok.Pipeline([_Look(), ok.TransferLearn(keras_model, epochs=1)])
    ok.Pipeline([ok.QuantizeFloat16(), _Look(), _LookAtFile()])
    with pytest.raises(
        ok.PipelineError, match="FineTune, takes a keras artifact, and step 1, Quant"
    ):
        ok.Pipeline([ok.QuantizeFloat16(), _Look(), ok.FineTune(epochs=1)])
    with pytest.raises(ok.PipelineError, match="_LookAtFile, takes a tflite artifact"):
        ok.Pipeline([_LookAtFile()])
    with pytest.raises(ok.PipelineError, match="no training pass follows it"):
        ok.Pipeline([ok.LabelSmooth(0.1), _Look()])
    with pytest.raises(ok.PipelineError, match="only looks"):
        ok.FirstThatMeets([_Look(), _Look()], ok.Goals(max_size_mb=1))


def test_it_is_not_undone_with_what_stands_around_it():
    data = digits(200)
    model = _trained(data)
    passes = [_Worsen(recovers=True), _Look(), ok.FineTune(epochs=1, learning_rate=1e-9), _Look()]
    report = (
        ok.Pipeline(passes, goals=ok.Goals(max_accuracy_drop=0.01))
        .run(model, data, progress=False, measure=QUICK)
        .report
    )
    assert [row.status for row in report.rows] == ["rolled back", "ok", "rolled back", "ok"]
    kept = (
        ok.Pipeline(
            [_Worsen(), _Look()],
            goals=ok.Goals(max_accuracy_drop=0.01),
            guard="end",
            on_violation="keep",
        )
        .run(model, data, progress=False, measure=QUICK)
        .report
    )
    assert "kept although" in kept.rows[0].notes[0]
    assert len(kept.rows[1].notes) == 1


def test_an_ablation_has_no_line_for_it():
    data = digits(200)
    found = ok.Pipeline([_Look(), ok.BNReestimate(), _Look()]).ablate(
        small_model(), data, alone=True, progress=False, measure=QUICK
    )
    assert [(item.name, item.how) for item in found.contributions] == [
        ("BNReestimate", "without"),
        ("BNReestimate", "alone"),
    ]
    assert len(found.report.rows) == 3
    assert len(found.reports["without BNReestimate"].rows) == 0


def test_it_runs_in_front_of_what_only_converts(tmp_path):
    """A SavedModel has no layers; looking at data needs none."""
    model = small_model()
    model.export(str(tmp_path / "saved"))
    passes = [_Look(), ok.QuantizeFloat16()]
    report = (
        ok.Pipeline(passes)
        .run(str(tmp_path / "saved"), digits(200), progress=False, measure=QUICK)
        .report
    )
    assert [row.status for row in report.rows] == ["ok", "ok"]
    assert json.loads(report.to_json())["rows"][0]["after"] is None


# ------------------------------------------------------------------------- what a model expects


def _smooth_images(count=60, size=32, seed=0):
    """Images with the broad areas and edges that photographs have, from 0 to 1."""
    draw = np.random.default_rng(seed)
    coarse = draw.random((count, 4, 4, 3))
    blocks = coarse.repeat(size // 4, 1).repeat(size // 4, 2)
    shade = np.linspace(0.6, 1.4, size)[:, None, None]
    fine = draw.normal(0, 0.04, (count, size, size, 3))
    return np.clip(blocks * shade + fine, 0, 1).astype("float32")


def _backbone(form):
    """A MobileNetV2 whose first batch normalization knows images of a form."""
    import tf_keras

    with isolated(2):  # weights among which all forms are far apart; of some two are near
        model = tf_keras.applications.MobileNetV2(
            (32, 32, 3), alpha=0.35, include_top=False, weights=None
        )
    stem = tf_keras.Model(model.input, model.get_layer("Conv1").output)
    values = stem.predict(FORMS[form].make(_smooth_images(seed=1)), verbose=0)
    norm = model.get_layer("bn_Conv1")
    norm.moving_mean.assign(values.mean((0, 1, 2)))
    norm.moving_variance.assign(values.var((0, 1, 2)))
    return model


@pytest.mark.parametrize("trained", ["imagenet", "symmetric", "bytes"])
def test_a_backbone_knows_what_it_was_trained_on(trained):
    model, images = _backbone(trained), _smooth_images()
    weights = [weight.copy() for weight in model.get_weights()]
    for form in ("unit", "symmetric", "bytes", "imagenet"):
        found = preprocessing_mismatch(model, FORMS[form].make(images))
        if form == trained:
            assert found is None
        else:
            assert found.expected == FORMS[trained].name
            assert found.received == FORMS[form].name
            assert found.layer == "bn_Conv1"
            assert found.certain
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "call" not in vars(model.get_layer("bn_Conv1"))


def test_the_discrepancy_by_hand():
    """Two channels whose activations are twice as wide, and one shifted, by Jeffreys' formula."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential([tf_keras.Input((2,)), layers.BatchNormalization(epsilon=1e-9)])
    draw = np.random.default_rng(0)
    x = draw.normal(0, 1, (400, 2)).astype("float32")
    x = (x - x.mean(0)) / x.std(0)
    model.layers[0].set_weights(np.array([[1, 1], [0, 0], [0, 0.5], [0.25, 0.25]]))
    layer, mean, variance = _moments(model, [model.layers[0]], [x])
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)
    wide = 0.5 * (1 / 0.25 + 0.25 - 2)
    shifted = wide + 0.5 * 0.25 * (1 + 4)
    expected = (np.log1p(wide) + np.log1p(shifted)) / 2
    # Some of it may be a rest of where training began, which can only bring it nearer.
    assert _discrepancy(layer, mean, variance) <= expected + 1e-3
    model.layers[0].set_weights(np.array([[1, 1], [0, 0], [0, 5], [1e-4, 0.25]]))
    layer, mean, variance = _moments(model, [model.layers[0]], [x])
    floor = 1e-3 * np.median([1e-4, 0.25])
    parts = []
    for away, stored in ((0, 1e-4), (25, 0.25)):
        a, b = 1 + floor, stored + floor
        parts.append(np.log1p(0.5 * (a / b + b / a - 2 + away * (1 / a + 1 / b))))
    assert _discrepancy(layer, mean, variance) == pytest.approx(np.mean(parts), rel=1e-3)


def test_a_trained_network_has_no_false_alarm():
    data = digits(400)
    model = _trained(data)
    assert preprocessing_mismatch(model, data.train[0]) is None
    assert preprocessing_mismatch(model, 255 * data.train[0]).expected == "0 to 1"
    short = small_model()
    short.compile("adam", "sparse_categorical_crossentropy")
    short.fit(*data.train, epochs=1, verbose=0)  # statistics mostly where they began
    assert preprocessing_mismatch(short, data.train[0]) is None


@pytest.mark.parametrize("nested", [False, True])
def test_a_rescaling_at_the_front_says_it(nested):
    import tf_keras

    layers = tf_keras.layers
    front = tf_keras.Sequential(
        [tf_keras.Input((32, 32, 3)), layers.Resizing(24, 24), layers.Rescaling(1 / 127.5, -1)]
    )
    image = tf_keras.Input((32, 32, 3))
    x = front(image) if nested else front.layers[1](front.layers[0](image))
    model = tf_keras.Model(image, layers.Flatten()(x))
    images = _smooth_images()
    assert preprocessing_mismatch(model, 255 * images) is None
    assert preprocessing_mismatch(model, (255 * images).astype("uint8")) is None
    for form in ("unit", "symmetric"):
        found = preprocessing_mismatch(model, FORMS[form].make(images))
        assert (found.expected, found.source) == ("0 to 255", "layer")
    scaled = tf_keras.Sequential([tf_keras.Input((32, 32, 3)), layers.Rescaling(2.0, -1)])
    assert preprocessing_mismatch(scaled, images) is None
    assert preprocessing_mismatch(scaled, 255 * images).expected == "0 to 1"


def test_a_normalization_at_the_front_says_it():
    import tf_keras
    from sklearn.datasets import load_wine

    table = load_wine().data.astype("float32")
    norm = tf_keras.layers.Normalization()
    norm.adapt(table)
    model = tf_keras.Sequential([tf_keras.Input((13,)), norm, tf_keras.layers.Dense(3)])
    assert preprocessing_mismatch(model, table) is None
    scaled = (table - table.mean(0)) / table.std(0) / 50
    assert preprocessing_mismatch(model, scaled).source == "layer"


def test_a_table_that_should_have_been_standardised():
    import tf_keras
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer().data.astype("float32")
    standard = (table - table.mean(0)) / table.std(0)
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [tf_keras.Input((30,)), layers.Dense(16), layers.BatchNormalization(momentum=0.5)]
    )
    model.compile("sgd", "mse")
    model.fit(standard, np.zeros((len(table), 16)), epochs=1, verbose=0)
    assert preprocessing_mismatch(model, standard) is None
    found = preprocessing_mismatch(model, table)
    assert found.expected == "with mean 0 and deviation 1 for each feature"


def test_nothing_is_said_where_nothing_is_known():
    import tf_keras

    layers = tf_keras.layers
    images = _smooth_images()
    assert preprocessing_mismatch(small_model(), np.zeros((3, 8, 8, 1))) is None  # not trained
    plain = tf_keras.Sequential([tf_keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(3)])
    assert preprocessing_mismatch(plain, images / 255) is None
    words = tf_keras.Sequential([tf_keras.Input((5,)), layers.Embedding(9, 2), layers.Flatten()])
    assert preprocessing_mismatch(words, np.ones((4, 5))) is None
    assert inputs_of_ids(words) == set(words.input_names)
    named = tf_keras.Model(plain.input, plain.output, name="vgg16")
    found = preprocessing_mismatch(named, images)
    assert (found.source, found.certain) == ("name", False)
    assert preprocessing_mismatch(named, 255 * images) is None


# ------------------------------------------------------------------------------------ near samples


@pytest.mark.parametrize("largest", [False, True])
def test_near_vectors_against_comparing_each_with_each(largest):
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(300, 20)).astype("float32")
    vectors[200:] = vectors[:100] + draw.normal(0, 0.02, (100, 20))
    apart = vectors[:, None].astype("float64") - vectors
    distance = np.abs(apart).max(-1) if largest else np.sqrt((apart**2).sum(-1))
    radius = float(np.median(distance[np.arange(100), np.arange(200, 300)]))
    expected = np.argwhere(np.triu(distance <= radius, 1))
    pairs, distances, left_out = near_vectors(vectors, radius, largest=largest)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_allclose(distances, distance[tuple(expected.T)])
    assert len(pairs) == 50
    assert not left_out


def test_near_sets_against_comparing_each_with_each():
    draw = np.random.default_rng(0)
    sets = [np.unique(draw.integers(0, 400, 30)).astype("uint64") for _ in range(150)]
    for i in range(50):
        changed = sets[i].copy()
        changed[: i % 5] += 1000
        sets.append(np.unique(changed))

    def similarity(a, b):
        return len(set(a) & set(b)) / len(set(a) | set(b))

    expected = [
        (i, j)
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if similarity(sets[i].tolist(), sets[j].tolist()) >= 0.8
    ]
    pairs, distances, left_out = near_sets(sets, 0.8)
    assert list(map(tuple, pairs.tolist())) == expected
    for (i, j), distance in zip(expected, distances, strict=True):
        assert distance == pytest.approx(1 - similarity(sets[i].tolist(), sets[j].tolist()))
    assert len(expected) >= 30
    assert not left_out


def test_what_would_take_forever_is_bounded():
    alike = np.random.default_rng(0).normal(0, 1e-6, (20_000, 3))
    pairs, _, left_out = near_vectors(alike, 1.0)
    assert left_out
    assert 0 < len(pairs) < 5_000_000
    same = [np.arange(5, dtype="uint64")] * 5000
    pairs, _, _ = near_sets(same, 0.8)
    assert len(pairs) < 10_000  # each with the first


# ----------------------------------------------------------------------------------- planted faults


def _audited(data, model=None, **settings):
    """Findings by kind, through a whole run."""
    report = (
        ok.Pipeline([ok.AuditData(**settings)])
        .run(model or small_model(), data, progress=False, measure=QUICK)
        .report
    )
    return report.rows[0]


def _study(row, title):
    return next(study for study in row.studies if title in study.title)


def test_clean_digits_have_no_fault():
    """And nothing else to tell: 1797 images, the nearest two are 0.11 apart."""
    row = _audited(digits())
    assert len(row.notes) == 1
    assert row.notes[0].startswith("looked at train 1078, validation 359, test 360")
    assert row.notes[0].endswith("no faults")
    (study,) = row.studies
    counts = np.array([study_row[1:] for study_row in study.rows])
    np.testing.assert_array_equal(counts.sum(0), [1078, 359, 360])
    ok.Pipeline([ok.AuditData(strict=True)]).check(small_model(), digits())


def _planted():
    """Digits with a copy and a near copy of each kind, and one wrong label."""
    clean = digits(300)
    (x, y), (x_val, y_val), (x_test, y_test) = (
        (part[0].copy(), part[1].copy()) for part in (clean.train, clean.validation, clean.test)
    )
    draw = np.random.default_rng(0)
    x[5], y[5] = x[2], y[2]
    x[7], y[7] = x[2], y[2]
    x[11], y[11] = x[10], (y[10] + 1) % 10
    x[20], y[20] = np.clip(0.9 * x[21] + draw.normal(0, 0.004, x[21].shape), 0, 1), y[21]
    x_test[3], y_test[3] = x[40], y[40]
    x_test[4], y_test[4] = x_val[9], y_val[9]
    x_val[6], y_val[6] = 0.8 * x[50] + 0.1 + draw.normal(0, 0.004, x[50].shape), y[50]
    return (x, y), (x_val, y_val), (x_test, y_test)


def test_planted_faults_are_found_where_they_are():
    train, validation, test = _planted()
    row = _audited(ok.Data(train=train, validation=validation, test=test))
    copies = _study(row, "Copies within train")
    assert copies.rows == ((3, "2, 5, 7", False), (2, "10, 11", True))
    assert _study(row, "Nearly the same within train").rows[0][:2] == ("train 20", "train 21")
    assert _study(row, "test that are in train").rows == ((3, 40, False),)
    assert _study(row, "test that are in validation").rows == ((4, 9, False),)
    near = _study(row, "validation nearly like one of train")
    assert near.rows[0][:2] == ("train 50", "validation 6")
    assert 0 < near.rows[0][2] < 0.1
    classes = sorted({int(train[1][10]), int(train[1][11])})
    assert _study(row, "other targets").rows == (
        ("train 10, train 11", ", ".join(map(str, classes))),
    )
    faults = [note for note in row.notes if note.startswith("FAULT: ")]
    assert len(faults) == 4
    assert row.notes[-1].endswith("4 faults")


def test_streams_tell_what_arrays_tell():
    import tensorflow as tf

    splits = _planted()
    of_arrays = _audited(ok.Data(*splits))
    passes = {0: 0, 1: 0, 2: 0}

    def stream(number):
        def batches():
            passes[number] += 1
            x, y = splits[number]
            for start in range(0, len(x), 25):
                yield x[start : start + 25], y[start : start + 25]

        return batches

    steps = {name: -(-len(s[0]) // 25) for name, s in zip(SPLITS, splits, strict=True)}
    data = ok.Data(*map(stream, range(3)), steps=steps)
    of_streams = _audited(data)
    assert of_streams.notes == of_arrays.notes
    assert of_streams.studies == of_arrays.studies
    sets = [tf.data.Dataset.from_tensor_slices(split).batch(16) for split in splits]
    assert _audited(ok.Data(*sets)).studies == of_arrays.studies

    def counted(passes_of_pipeline):
        passes.update(dict.fromkeys(passes, 0))
        ok.Pipeline(passes_of_pipeline).run(small_model(), data, progress=False, measure=QUICK)
        return dict(passes)

    without = counted([_Look()])
    strict = ok.AuditData(strict=True, checks=("balance",))
    assert counted([strict, ok.AuditData()]) == {i: n + 1 for i, n in without.items()}


def test_strict_refuses_before_anything_starts(monkeypatch):
    from optkit import training

    trained = []
    monkeypatch.setattr(training, "fit", lambda *_, **__: trained.append(1))
    train, validation, test = _planted()
    data = ok.Data(train=train, validation=validation, test=test)
    pipeline = ok.Pipeline([ok.FineTune(epochs=1), ok.AuditData(strict=True)])
    events = []
    for act in (
        lambda: pipeline.check(small_model(), data),
        lambda: pipeline.run(small_model(), data, progress=events.append),
    ):
        with pytest.raises(
            ok.DataError, match="Step 2, AuditData: the data have 4 faults"
        ) as error:
            act()
        assert isinstance(error.value, ok.PipelineError)
        for part in ("of test (1.7 %) is in train", "of test (1.7 %) is in validation"):
            assert part in str(error.value)
        assert "nearly like one of train" in str(error.value)
        assert "1 input with different targets (2 samples)" in str(error.value)
    assert [event.kind for event in events if event.step] == []
    assert trained == []
    mild = ok.AuditData(strict=True, ignore=("leakage", "near_leakage", "conflicts"))
    ok.Pipeline([mild]).check(small_model(), data)
    ok.Pipeline([ok.AuditData(strict=True, checks=("balance", "duplicates"))]).check(
        small_model(), data
    )


def test_the_classic_fault_through_a_pipeline():
    """Images divided by 255 for a network that divides by itself, and for one that knows bytes."""
    import tf_keras

    data = digits(200)
    inner = small_model()
    model = tf_keras.Sequential(
        [tf_keras.Input((8, 8, 1)), tf_keras.layers.Rescaling(1 / 255), *inner.layers]
    )
    with pytest.raises(ok.DataError, match="made for values of 0 to 255"):
        ok.Pipeline([ok.AuditData(strict=True)]).check(model, data)
    scaled = ok.Data(
        **{name: (255 * getattr(data, name)[0], getattr(data, name)[1]) for name in SPLITS}
    )
    ok.Pipeline([ok.AuditData(strict=True)]).check(model, scaled)
    learned = _trained(scaled)
    ok.Pipeline([ok.AuditData(strict=True)]).check(learned, scaled)
    row = _audited(data, learned)
    assert any(note.startswith("FAULT: ") and "of values 0 to 255" in note for note in row.notes)
    mixed = ok.Data(train=scaled.train, validation=scaled.validation, test=data.test)
    row = _audited(mixed, learned)
    assert any("of different forms: train 0 to 255" in note for note in row.notes)


def test_classes_that_are_missing_or_rare():
    (x, y), validation, (x_test, y_test) = (
        digits(400).train,
        digits(400).validation,
        digits(400).test,
    )
    few = np.flatnonzero(y != 3)
    data = ok.Data(
        train=(x[few], y[few]),
        validation=validation,
        test=(x_test[y_test != 8], y_test[y_test != 8]),
        class_names=[f"number {i}" for i in range(10)],
    )
    notes = _audited(data).notes
    assert "FAULT: train: no sample of 1 class (number 3)" in notes
    assert "test: no sample of 1 class (number 8)" in notes
    rare = np.concatenate([np.flatnonzero(y != 5), np.flatnonzero(y == 5)[:4]])
    data = ok.Data(train=(x[rare], y[rare]), validation=validation)
    ratio = np.bincount(y[rare]).max() / 4
    row = _audited(data)
    text = f"train: the largest class has {ratio:.1f} times as many samples as the smallest"
    assert text in row.notes
    assert _study(row, "Samples a class").rows[-1][:2] == ("5", 4)
    ok.Pipeline([ok.AuditData(strict=True)]).check(small_model(), data)
    with pytest.raises(ok.DataError, match="times as many samples as the smallest, 4 are allowed"):
        ok.Pipeline([ok.AuditData(strict=True, max_imbalance=4)]).check(small_model(), data)


def _table_model(features, classes=2, **output):
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            tf_keras.Input((features,)),
            layers.Dense(classes, **(output or {"activation": "softmax"})),
        ]
    )


def test_tables():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype("float32"), y[order]
    clean = ok.Data(train=(x[:400], y[:400]), test=(x[400:], y[400:]))
    assert len(_audited(clean, _table_model(30)).notes) == 1
    x = np.column_stack([x, np.full(len(x), 7.0)]).astype("float32")
    x[420] = x[17]
    x[430, :30] = x[18, :30] * (1 + 1e-5)
    row = _audited(ok.Data(train=(x[:400], y[:400]), test=(x[400:], y[400:])), _table_model(31))
    assert "train: 1 feature of 31 never changes (30)" in row.notes
    assert _study(row, "test that are in train").rows[0][:2] == (20, 17)
    near = _study(row, "test nearly like one of train").rows
    assert [pair[:2] for pair in near] == [("train 18", "test 30")]


def test_measurements_that_were_repeated_are_no_fault():
    x = np.arange(60, dtype="float32").reshape(30, 2)
    x[1] = x[0]
    y = np.arange(30, dtype="float32")
    data = ok.Data(train=(x, y), validation=(x + 0.5, y))
    model = _table_model(2, 1, activation="linear")
    row = _audited(data, model)
    assert any("as measurements that were repeated have" in note for note in row.notes)
    ok.Pipeline([ok.AuditData(strict=True)]).check(model, data)


def _text_model(words):
    import tf_keras

    layers = tf_keras.layers
    vectorize = layers.TextVectorization(50, output_sequence_length=12)
    vectorize.adapt(words)
    text = tf_keras.Input((), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(50, 4)(vectorize(text)))
    return tf_keras.Model(text, layers.Dense(2, activation="softmax")(x))


def test_texts():
    draw = np.random.default_rng(0)
    words = np.array(
        [
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
    texts = np.array([" ".join(draw.choice(words, 12)) for _ in range(80)], dtype=object)
    y = np.arange(80) % 2
    texts[60] = texts[5]
    texts[61] = texts[6].upper() + "!"  # the same words
    texts[62] = texts[7] + " thirteen"  # one more
    texts[3] = texts[2]  # whose label is another
    data = ok.Data(train=(texts[:60], y[:60]), test=(texts[60:], y[60:]))
    row = _audited(data, _text_model(texts[:60]))
    assert _study(row, "test that are in train").rows == ((0, 5, bool(y[60] != y[5])),)
    near = _study(row, "test nearly like one of train").rows
    assert [pair[:2] for pair in near] == [("train 6", "test 1"), ("train 7", "test 2")]
    assert near[0][2] == 0.0
    assert near[1][2] == pytest.approx(1 / len({(a, b) for a, b in _neighbours(texts[62])}))
    assert _study(row, "other targets").rows[0][0] == "train 2, train 3"


def _neighbours(text):
    words = text.split()
    return list(itertools.pairwise(words))


def test_token_ids_are_no_quantities():
    import tf_keras

    layers = tf_keras.layers
    draw = np.random.default_rng(0)
    ids = draw.integers(1, 500, (90, 20)).astype("int32")
    ids[70] = ids[4]
    ids[71] = ids[5] + 1  # near as quantities, and nothing in common
    ids[:, -2:] = 0  # padding
    y = np.arange(90) % 2
    model = tf_keras.Sequential(
        [
            tf_keras.Input((20,), dtype="int32"),
            layers.Embedding(600, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    ids[70, 0] = 599  # one other word
    row = _audited(ok.Data(train=(ids[:60], y[:60]), test=(ids[60:], y[60:])), model)
    near = _study(row, "test nearly like one of train").rows
    assert [pair[:2] for pair in near] == [("train 4", "test 10")]


def test_several_inputs_are_one_sample():
    """What one input has in common is no copy; both must be the same."""
    import tf_keras

    layers = tf_keras.layers
    a, b = tf_keras.Input((3,), name="a"), tf_keras.Input((4, 4, 1), name="b")
    joined = layers.Concatenate()([a, layers.Flatten()(b)])
    model = tf_keras.Model([a, b], layers.Dense(2, activation="softmax")(joined))
    draw = np.random.default_rng(0)
    x = {"a": draw.normal(size=(40, 3)).astype("float32"), "b": draw.random((40, 4, 4, 1))}
    x["a"][30] = x["a"][1]
    x["a"][31], x["b"][31] = x["a"][2], x["b"][2]
    y = np.arange(40) % 2
    split = {name: slice(*ends) for name, ends in {"train": (0, 30), "test": (30, 40)}.items()}
    data = ok.Data(**{n: ({k: v[s] for k, v in x.items()}, y[s]) for n, s in split.items()})
    row = _audited(data, model)
    assert _study(row, "test that are in train").rows == ((1, 2, True),)
    assert "near duplicates were not looked for: inputs of several kinds" in row.notes[-1]


def test_values_of_a_stream_that_are_not_finite():
    """Arrays with such values are refused in any case; of streams only the first batch is."""
    x, y = digits(200).train
    x = x.copy()
    x[100, 0, 0] = np.nan

    def batches():
        for start in range(0, len(x), 20):
            yield x[start : start + 20], y[start : start + 20]

    data = ok.Data(train=batches, steps=6, validation=digits(200).validation)
    with pytest.raises(ok.DataError, match=r"train: 1 sample with NaN or infinite values \(100\)"):
        ok.Pipeline([ok.AuditData(strict=True)]).check(small_model(), data)


def test_a_cut_validation_is_told_in_rows_of_what_was_given():
    x, y = digits(300).train
    x, y = np.concatenate([x, x]), np.concatenate([y, y])
    data = ok.Data(train=(x, y))
    row = _audited(data)
    shared = _study(row, "validation that are in train")
    for validation, train, _ in shared.rows:
        assert abs(validation - train) == len(x) // 2
        np.testing.assert_array_equal(x[validation], x[train])
    assert "train and validation: numbers are rows of what was given" in row.notes[-1]


def test_large_data_are_sampled_and_the_report_says_so():
    row = _audited(digits(400), samples=50)
    assert "among 150 samples drawn of 400" in row.notes[-1]


def test_it_goes_through_json_and_back(tmp_path):
    item = ok.AuditData(
        strict=True,
        checks=("range", "leakage"),
        near=0.2,
        max_imbalance=5,
        ignore=("near_leakage",),
    )
    pipeline = ok.Pipeline([item])
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert repr(again) == repr(pipeline)
    train, validation, test = _planted()
    report = (
        ok.Pipeline([ok.AuditData(), ok.FineTune(epochs=1)])
        .run(
            small_model(),
            ok.Data(train=train, validation=validation, test=test),
            progress=False,
            measure=QUICK,
        )
        .report
    )
    report.to_json(tmp_path / "report.json")
    again = ok.Report.from_json(tmp_path / "report.json")
    assert again.rows[0].studies == report.rows[0].studies
    assert "Copies within train" in report.to_html()
    assert "FAULT" in str(report)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"checks": ("leaks",)}, "`checks` must be one of"),
        ({"checks": "range"}, "a list of strings"),
        ({"checks": ()}, "`checks` is empty, so AuditData looks for nothing"),
        ({"ignore": ("nothing",)}, "`ignore` must be one of"),
        ({"near": 0}, "`near` must be a number"),
        ({"max_imbalance": 0.5}, "`max_imbalance` must be"),
        ({"samples": 1}, "`samples` must be"),
        ({"strict": 1}, "True or False"),
    ],
)
def test_bad_settings_are_refused(settings, told):
    with pytest.raises(ok.PipelineError, match=told):
        ok.AuditData(**settings)
