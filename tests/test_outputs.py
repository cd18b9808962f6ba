"""Models with several outputs, and samples that count by weights: trained, measured, judged."""

from __future__ import annotations

import json

import numpy as np
import pytest

import optkit as ok
from optkit.goals import Goal
from optkit.measuring import Measurement, OutputFigures, measure
from optkit.metric import resolve_metric
from optkit.task import infer_loss, infer_task, one_hot_outputs

pytestmark = pytest.mark.usefixtures("untimed")

QUICK = ok.Measure(latency_seconds=0, memory=False)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images[..., None] / 16).astype("float32")
    return x, {"digit": found.target, "odd": found.target % 2, "ink": x.mean(axis=(1, 2, 3))}


class Nothing(ok.RewritePass):
    """Leaves the model as it is."""

    def rewrite(self, model, context):
        return model


def net(outputs=("digit", "odd", "ink"), structure=list, names=None):
    """A small model with an output for each name; `names` are those of its layers."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    inputs = tf_keras.Input((8, 8, 1))
    hidden = layers.Flatten()(inputs)
    hidden = layers.Dense(32, activation="relu")(hidden)
    heads = {"digit": (10, "softmax"), "odd": (1, "sigmoid"), "ink": (1, "linear")}
    made = {
        name: layers.Dense(*heads[name], name=(names or {}).get(name, name))(hidden)
        for name in outputs
    }
    return tf_keras.Model(inputs, made if structure is dict else list(made.values()))


def splits(digits, targets=("digit", "odd", "ink"), form=dict, weights=None, **settings):
    x, y = digits
    parts = []
    for rows in (slice(0, 600), slice(600, 800), slice(800, 1100)):
        chosen = {name: y[name][rows] for name in targets}
        own = () if weights is None else ({n: w[rows] for n, w in weights.items()},)
        parts.append((x[rows], chosen if form is dict else list(chosen.values()), *own))
    return ok.Data(*parts, **settings)


@pytest.fixture(scope="module")
def trained(digits):
    """A run over all kinds of outputs, to a TFLite file."""
    pipeline = ok.Pipeline(
        [ok.LabelSmooth(0.1), ok.FineTune(epochs=3, learning_rate=5e-3), ok.QuantizeINT8()],
        goals=ok.Goals(min_accuracy=0.5, max_accuracy_drop=0.1, min_class_accuracy=0.1),
    )
    data = splits(digits, class_names=list("abcdefghij"))
    return pipeline.run(net(), data, measure=ok.Measure(latency_seconds=0.05, memory=True))


def expected(artifact, x, y):
    given = artifact.predict(x)
    return {
        "digit": (given["digit"].argmax(-1) == y["digit"]).mean(),
        "odd": ((given["odd"][:, 0] > 0.5) == y["odd"]).mean(),
        "ink": np.abs(given["ink"][:, 0] - y["ink"]).mean(),
    }


def test_figures_of_each_output_are_those_of_the_artifact(trained, digits):
    x, y = digits[0][800:1100], {name: part[800:1100] for name, part in digits[1].items()}
    for row in trained.report.rows[1:]:
        wanted = expected(trained.stages[row.name], x, y)
        first = expected(ok.KerasArtifact(net()), x, y)
        for name, figure in wanted.items():
            found = row.after.outputs[name]
            assert found.accuracy == pytest.approx(figure, abs=1e-6)
            assert found.accuracy_ci[0] <= found.accuracy <= found.accuracy_ci[1]
            change = row.output_changes[name]
            assert change.change == pytest.approx(figure - first[name], abs=1e-6)
            assert change.change_ci[0] <= change.change <= change.change_ci[1]
        assert row.after.accuracy == row.after.outputs["digit"].accuracy
        assert row.accuracy_change == row.output_changes["digit"].change
    metrics = {name: part.metric for name, part in row.after.outputs.items()}
    assert metrics == {"digit": "accuracy", "odd": "accuracy", "ink": "mean_absolute_error"}


def test_all_outputs_learn_and_each_is_told_of(trained):
    report = trained.report
    for name, part in report.final.outputs.items():
        before = report.baseline.outputs[name].accuracy
        assert (part.accuracy > before) == part.higher_is_better
    curves = report.rows[1].curves[0]
    for name in ("digit", "odd", "ink"):
        assert len(curves[f"{name}_metric"]) == len(curves[f"val_{name}_loss"]) == 3
    assert set(report.final.outputs["digit"].per_class) == set("abcdefghij")
    assert set(report.final.outputs["odd"].per_class) == {"0", "1"}
    assert report.final.outputs["ink"].per_class is None
    assert any("digit: agrees" in note or "agrees" in note for note in report.rows[2].notes)
    assert any("is that of the output 'digit'" in note for note in report.notes)
    assert report.baseline.latency_ms is not None
    assert report.final.latency_ms is not None
    assert report.final.peak_memory_bytes is not None


def test_a_converted_file_gives_its_outputs_by_the_models_names(trained, digits):
    x = digits[0][:50]
    float_outputs = trained.stages["FineTune"].predict(x)
    outputs = trained.artifact.predict(x)
    assert {name: part.shape for name, part in outputs.items()} == {
        "digit": (50, 10),
        "odd": (50, 1),
        "ink": (50, 1),
    }
    for name, part in outputs.items():
        assert np.abs(part - float_outputs[name]).max() < 0.2
    assert {name: part.shape for name, part in trained.artifact.predict(x[:0]).items()} == {
        "digit": (0, 10),
        "odd": (0, 1),
        "ink": (0, 1),
    }


def test_goals_hold_for_every_accuracy_and_show_the_worst(trained):
    final = trained.report.final.outputs
    accuracies = {name: final[name].accuracy for name in ("digit", "odd")}
    worst = min(accuracies, key=accuracies.get)
    least, drop, by_class = trained.report.goals
    assert (least.output, least.figure) == (worst, accuracies[worst])
    assert drop.output in ("digit", "odd")
    lowest = {name: min(final[name].per_class.values()) for name in accuracies}
    assert by_class.output == min(lowest, key=lowest.get)
    assert f"accuracy of {worst} at least 50 %" in str(trained.report)


def test_the_report_comes_back_from_json_whole(trained, tmp_path):
    report = trained.report
    report.to_json(tmp_path / "report.json")
    back = ok.Report.from_json(tmp_path / "report.json")
    assert back.final.outputs == report.final.outputs
    assert back.rows[1].output_changes == report.rows[1].output_changes
    assert back.goals == report.goals
    assert str(back) == str(report)


def test_every_form_of_the_report_shows_every_output(trained, tmp_path):
    report = trained.report
    figures = {
        "digit": f"{100 * report.final.outputs['digit'].accuracy:.2f} %",
        "odd": f"{100 * report.final.outputs['odd'].accuracy:.2f} %",
        "ink": f"{report.final.outputs['ink'].accuracy:.4g}",
    }
    for text in (str(report), report.to_markdown(), report.to_html(), report._repr_html_()):
        for name, figure in figures.items():
            assert figure in text
            assert f"{name}: " in text
    frame = report.to_frame()
    assert frame.loc[3, "output_odd"] == report.final.outputs["odd"].accuracy
    assert frame.loc[3, "output_ink_change"] == report.rows[2].output_changes["ink"].change
    assert report.plot(tmp_path / "pareto.png").shape == (3, 2)
    assert len(report.plot(kind="bars")) == 5
    classes = [text.get_text() for text in report.plot(kind="classes").get_yticklabels()]
    assert any(name.startswith("odd: 1") for name in classes)
    compared = report.compare(report)
    assert any(item.figure == "accuracy of odd" for item in compared.figures)


def test_one_output_reads_as_before(digits, tmp_path):
    """The JSON of a model with one output has no word of outputs."""
    x, y = digits
    data = ok.Data(test=(x[:50], y["digit"][:50]))
    result = ok.Pipeline([Nothing()]).run(net(["digit"]), data, measure=QUICK)
    text = result.report.to_json()
    assert "output" not in json.loads(text)["baseline"]
    assert "output_changes" not in text
    goal = Goal("min_accuracy", 0.5, 0.6, at_least=True)
    assert "output" not in goal.to_dict()
    assert Goal.from_dict(goal.to_dict()) == goal


@pytest.mark.parametrize("structure", [list, dict])
@pytest.mark.parametrize("form", [list, dict])
def test_names_are_those_that_the_user_knows(digits, structure, form):
    """Layers called otherwise than the keys of the model's dict; targets as a dict or a list."""
    names = {"digit": "zz", "odd": "aa"}
    model = net(["odd", "digit"], structure, names)
    known = {"odd": "odd", "digit": "digit"} if structure is dict else {"odd": "aa", "digit": "zz"}
    x, y = digits
    # A dict comes in the order of its names, as TensorFlow flattens it.
    order = sorted(known, key=known.get) if structure is dict else ["odd", "digit"]
    targets = {known[name]: y[name][:300] for name in order}
    given = targets if form is dict else list(targets.values())
    data = ok.Data(train=(x[:300], given), test=(x[:300], given))
    pipeline = ok.Pipeline([ok.FineTune(epochs=8, learning_rate=1e-2, patience=None)])
    result = pipeline.run(model, data, measure=QUICK)
    figures = result.report.final.outputs
    assert set(figures) == set(known.values())
    assert figures[known["digit"]].accuracy > 0.7
    assert figures[known["odd"]].accuracy > 0.7
    assert f"{known['odd']}_metric" in result.report.rows[0].curves[0]
    wanted = (
        result.artifact.predict(x[:300])[known["digit"]].argmax(-1) == y["digit"][:300]
    ).mean()
    assert figures[known["digit"]].accuracy == pytest.approx(wanted)


def test_losses_and_their_weights_are_kept(digits):
    model = net()
    model.compile(
        "sgd",
        loss={"digit": "sparse_categorical_crossentropy", "ink": "mae"},
        loss_weights={"digit": 0.5, "ink": 3.0},
        metrics={"ink": ["mse"], "digit": ["accuracy"]},
    )
    task = infer_task(model, digits[1])
    loss = infer_loss(model, task)
    assert list(task.parts) == ["digit", "odd", "ink"]
    assert {name: part.weight for name, part in loss.parts.items()} == {"digit": 0.5, "ink": 3.0}
    assert resolve_metric(None, None, model, task).parts["ink"].name == "mean_squared_error"
    before = model.get_layer("odd").get_weights()[0]
    result = ok.Pipeline([ok.FineTune(epochs=1, patience=None)]).run(
        model, splits(digits), measure=QUICK
    )
    after = result.model.get_layer("odd").get_weights()[0]
    assert np.array_equal(before, after), "an output without a loss was trained"
    curves = result.report.rows[0].curves[0]
    assert curves["loss"][0] == pytest.approx(
        0.5 * curves["digit_loss"][0] + 3 * curves["ink_loss"][0], rel=1e-4
    )


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (["sparse_categorical_crossentropy", "binary_crossentropy", "mae"], "digit odd ink"),
        ({"digit": "sparse_categorical_crossentropy", "ink": None}, "digit"),
    ],
)
def test_losses_of_the_pipeline_stand_above_the_compiled_ones(digits, loss, names):
    model = net()
    model.compile("sgd", loss="mse")
    task = infer_task(model, digits[1], loss)
    assert list(infer_loss(model, task, loss).parts) == names.split()
    assert infer_loss(model, task, loss).source == "Pipeline(loss=…)"


def test_one_step_of_training_is_that_of_the_formula(digits):
    """Loss weights and weights of samples by output, against gradients computed by hand."""
    import tf_keras

    x = digits[0][:40].reshape(40, -1)[:, 10:13]
    a, b = digits[1]["ink"][:40], digits[1]["odd"][:40].astype("float32")
    rng = np.random.default_rng(0)
    weights = {"a": rng.random(40), "b": rng.random(40)}
    inputs = tf_keras.Input((3,))
    model = tf_keras.Model(
        inputs,
        [tf_keras.layers.Dense(1, use_bias=False, name=name)(inputs) for name in ("a", "b")],
    )
    model.compile(
        tf_keras.optimizers.SGD(0.1),
        loss="mse",
        loss_weights=[2.0, 0.25],
        weighted_metrics=[["mae"], []],
    )
    kernels = {name: model.get_layer(name).get_weights()[0] for name in ("a", "b")}
    data = ok.Data(train=(x, {"a": a, "b": b}, weights), test=(x, {"a": a, "b": b}), batch_size=40)
    result = ok.Pipeline([ok.FineTune(1, 0.1, optimizer=None, patience=None)]).run(
        model, data, measure=QUICK
    )
    for name, target, scale in (("a", a, 2.0), ("b", b, 0.25)):
        error = x @ kernels[name] - target[:, None]
        gradient = 2 * scale * (weights[name][:, None] * error * x).mean(axis=0)[:, None]
        found = result.model.get_layer(name).get_weights()[0]
        assert found == pytest.approx(kernels[name] - 0.1 * gradient, abs=1e-5)
    curves = result.report.rows[0].curves[0]
    # Within the step the metric sees the outputs from before it.
    error = np.abs(x @ kernels["a"] - a[:, None])[:, 0]
    assert curves["a_mae"][0] == pytest.approx(np.average(error, weights=weights["a"]), rel=1e-4)


def test_class_weights_act_as_weights_of_samples(digits):
    """Training by class weights gives the weights that training by the same sample weights gives."""
    x, y = digits[0][:200], digits[1]["digit"][:200]
    table = np.ones(10, "float32")
    table[[3, 8]] = 4.0, 0.5

    def trained(train, **settings):
        data = ok.Data(train=train, test=(x, y), **settings)
        pipeline = ok.Pipeline([ok.FineTune(epochs=2, learning_rate=0.01, patience=None)])
        return pipeline.run(net(["digit"]), data, measure=QUICK)

    by_class = trained((x, y), class_weight={3: 4.0, 8: 0.5})
    by_sample, plain = trained((x, y, table[y])), trained((x, y))
    for one, other in zip(by_class.model.get_weights(), by_sample.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(by_class.model.get_weights()[0], plain.model.get_weights()[0])
    assert any("class weights" in note for note in by_class.report.notes)


def test_figures_count_each_sample_once_unless_told_otherwise(digits):
    x, y = digits[0][:300], digits[1]["digit"][:300]
    weights = np.random.default_rng(0).random(300)
    weights[:20] = 0
    model = net(["digit"])
    ok_now = model.predict(x, verbose=0).argmax(-1) == y
    once = measure(model, (x, y, weights), measure=QUICK)
    assert once.figures.accuracy == pytest.approx(ok_now.mean())
    weighted = ok.Measure(latency_seconds=0, memory=False, sample_weight=True)
    found = measure(model, (x, y, weights), measure=weighted, baseline=net(["digit"]))
    assert found.figures.accuracy == pytest.approx(np.average(ok_now, weights=weights))
    low, high = found.figures.accuracy_ci
    assert low < found.figures.accuracy < high
    assert found.comparison.accuracy_change == pytest.approx(0)
    threes = y == 3
    assert found.figures.per_class["3"] == pytest.approx(
        np.average(ok_now[threes], weights=weights[threes])
    )
    with pytest.raises(ok.PipelineError, match="has no sample weights"):
        measure(model, (x, y), measure=weighted)
    with pytest.raises(ok.PipelineError, match="has no sample weights"):
        ok.Pipeline([Nothing()]).run(model, ok.Data(test=(x, y)), measure=weighted)


def test_an_output_without_the_weights_that_count_is_named(digits):
    weighted = ok.Measure(latency_seconds=0, memory=False, sample_weight=True)
    data = splits(digits, targets=("digit", "odd"), weights={"digit": np.ones(1797)})
    with pytest.raises(ok.DataError, match="no sample weights for the output 'odd'"):
        ok.Pipeline([Nothing()]).run(net(["digit", "odd"]), data, measure=weighted)


def test_the_interval_of_a_weighted_mean_covers_what_it_should():
    """Of 200 draws with weights, about 95 % of the intervals hold the true mean."""
    from optkit.measuring.statistics import weighted_interval

    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        weights = rng.exponential(size=120)
        values = rng.random(120) < 0.7
        low, high = weighted_interval(values, weights)
        held += low <= 0.7 <= high
    assert 175 <= held <= 199


def test_a_named_output_decides(digits):
    """Accuracy, goals, guard and early stopping are those of the output that is named."""
    settings = ok.Measure(latency_seconds=0, memory=False, output="odd")
    pipeline = ok.Pipeline(
        [ok.FineTune(epochs=3, learning_rate=5e-3, patience=1)],
        goals=ok.Goals(min_accuracy=0.5, min_class_accuracy=0.0),
    )
    report = pipeline.run(net(), splits(digits), measure=settings).report
    row = report.rows[0]
    assert row.after.accuracy == row.after.outputs["odd"].accuracy
    assert row.accuracy_change == row.output_changes["odd"].change
    assert {goal.output for goal in report.goals} == {"odd"}
    assert set(row.after.outputs) == {"digit", "odd", "ink"}
    watched = row.curves[0]["val_odd_metric"]
    assert row.validation_after == pytest.approx(max(watched), abs=1e-6)


def test_an_output_that_breaks_the_goal_undoes_the_pass(digits):
    """One output gets worse and another does not: without a name the guard minds both."""

    class Spoil(ok.RewritePass):
        """Turns the answer of one output round."""

        def rewrite(self, model, context):
            layer = model.get_layer("odd")
            layer.set_weights([-weight for weight in layer.get_weights()])
            return model

    model = net()
    data = splits(digits)
    tuned = ok.Pipeline([ok.FineTune(epochs=4, learning_rate=5e-3)]).run(model, data, measure=QUICK)
    goals = ok.Goals(max_accuracy_drop=0.05)
    undone = ok.Pipeline([Spoil()], goals=goals).run(tuned.model, data, measure=QUICK)
    assert undone.report.rows[0].status == "rolled back"
    assert "accuracy of odd changed by" in undone.report.rows[0].notes[-1]
    named = ok.Measure(latency_seconds=0, memory=False, output="digit")
    kept = ok.Pipeline([Spoil()], goals=goals).run(tuned.model, data, measure=named)
    assert kept.report.rows[0].status == "ok"


def test_kept_stages_and_their_figures_come_back(digits, tmp_path):
    model = net()

    def run():
        pipeline = ok.Pipeline([ok.FineTune(epochs=1)], goals=ok.Goals(max_accuracy_drop=0.9))
        return pipeline.run(model, splits(digits), workdir=tmp_path, measure=QUICK).report

    first, second = run(), run()
    assert second.rows[0].after == first.rows[0].after
    assert second.rows[0].output_changes == first.rows[0].output_changes
    assert second.rows[0].seconds == first.rows[0].seconds, "it was trained again"


def test_smoothing_is_for_outputs_with_classes(digits):
    import tensorflow as tf

    from optkit.passes.label_smooth import _Smoothing
    from optkit.task import dense_targets

    model = net()
    task = infer_task(model, digits[1])
    dense, loss = dense_targets(task, infer_loss(model, task))
    assert {name: part.family for name, part in loss.parts.items()} == {
        "digit": "categorical",
        "odd": "binary",
        "ink": "other",
    }
    given = {"digit": tf.one_hot([3], 10), "odd": tf.constant([1.0]), "ink": tf.constant([0.4])}
    found = _Smoothing(0.2).prepare(dense)(given)
    wanted = np.full(10, 0.02)
    wanted[3] = 0.82
    assert found["digit"].numpy()[0] == pytest.approx(wanted)
    assert found["odd"].numpy() == pytest.approx([0.9])
    assert found["ink"].numpy() == pytest.approx([0.4])
    model.compile("sgd", loss={"ink": "mse"})
    with pytest.raises(ok.PipelineError, match="spreads certainty over classes"):
        ok.Pipeline([ok.LabelSmooth(), ok.FineTune(epochs=1)]).check(model, splits(digits))


def test_outputs_without_targets_are_left_alone_and_said(digits):
    result = ok.Pipeline([ok.FineTune(epochs=1)]).run(
        net(), splits(digits, ["digit"]), measure=QUICK
    )
    assert list(result.report.final.outputs) == ["digit"]
    assert any("neither trained nor measured: odd, ink" in note for note in result.report.notes)
    assert set(result.artifact.predict(digits[0][:2])) == {"digit", "odd", "ink"}


def test_class_numbers_for_a_loss_of_rows(digits):
    model = net(["digit", "odd"])
    model.compile("adam", loss=["categorical_crossentropy", "binary_crossentropy"])
    assert one_hot_outputs(model) == {"digit"}
    data = splits(digits, ["digit", "odd"])
    result = ok.Pipeline([ok.FineTune(epochs=2, learning_rate=5e-3)]).run(
        model, data, measure=QUICK
    )
    assert result.report.final.accuracy > 0.3


def test_metrics_by_output(digits):
    task = infer_task(net(), digits[1])

    def worst(y_true, y_pred):
        return float(np.abs(y_pred[:, 0] - y_true).max())

    def example():
        outputs = net().predict(digits[0][:16], verbose=0)
        targets = {name: part[:16] for name, part in digits[1].items()}
        return targets, dict(zip(("digit", "odd", "ink"), outputs, strict=True))

    metric = resolve_metric(
        {"ink": worst, "digit": "sparse_top_k_categorical_accuracy"},
        {"ink": False},
        None,
        task,
        example=example,
    )
    assert {name: part.name for name, part in metric.parts.items()} == {
        "digit": "sparse_top_k_categorical_accuracy",
        "odd": "accuracy",
        "ink": "worst",
    }
    assert metric.judged == ("digit", "odd")
    with pytest.raises(ok.PipelineError, match="Output 'ink'"):
        resolve_metric("accuracy", None, None, task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: (net(), splits(d), ok.Measure(output="colour")), "names the output 'colour'"),
        (
            lambda d: (net(), splits(d), ok.Measure(metric={"colour": "mae"})),
            "names the output 'colour'",
        ),
        (
            lambda d: (net(["digit"]), ok.Data(test=(d[0], d[1]["digit"])), ok.Measure(output="x")),
            "names the output 'x'",
        ),
        (
            lambda d: (net(), ok.Data(test=(d[0], d[1]["digit"])), None),
            "as a dict by output name",
        ),
    ],
)
def test_what_is_named_wrongly_is_refused_before_anything_runs(digits, make, message):
    model, data, settings = make(digits)
    with pytest.raises(ok.PipelineError, match=message):
        ok.Pipeline([Nothing()]).run(model, data, measure=settings)


def test_measuring_two_artifacts_against_each_other(trained, digits):
    x, y = digits[0][800:1100], {name: part[800:1100] for name, part in digits[1].items()}
    found = measure(trained.artifact, (x, y), baseline=trained.stages["FineTune"], measure=QUICK)
    wanted = expected(trained.artifact, x, y)
    assert {n: p.accuracy for n, p in found.figures.outputs.items()} == pytest.approx(wanted)
    assert "odd: accuracy" in str(found)
    alone = measure(trained.artifact, (x, y), measure=QUICK)
    assert alone.figures.outputs["digit"].accuracy == pytest.approx(wanted["digit"])


def test_a_view_of_one_output():
    from optkit.report.outputs import report_of

    figures = OutputFigures("accuracy", True, 0.5, (0.4, 0.6), {"a": 0.5}, {"a": 10})
    measured = Measurement(accuracy=0.9, size_bytes=10, outputs={"x": figures})
    alone = report_of(ok.Report((), measured), "x")
    assert alone.baseline == Measurement(
        accuracy=0.5,
        accuracy_ci=(0.4, 0.6),
        per_class={"a": 0.5},
        class_samples={"a": 10},
        size_bytes=10,
    )


def test_keras_3_objects_are_taken_where_keras_2_ones_are(digits):
    import keras

    x, y = digits[0][:200], digits[1]["digit"][:200]
    data = ok.Data(train=(x, y), test=(x, y))
    pipeline = ok.Pipeline(
        [
            ok.Augment([keras.layers.RandomTranslation(0.1, 0.1)]),
            ok.FineTune(
                epochs=3, optimizer=keras.optimizers.SGD(0.1, momentum=0.9), learning_rate=0.1
            ),
        ],
        loss=keras.losses.SparseCategoricalCrossentropy(),
    )
    settings = ok.Measure(
        latency_seconds=0,
        memory=False,
        metric=keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2_accuracy"),
        higher_is_better=True,
    )
    report = pipeline.run(net(["digit"]), data, measure=settings).report
    assert report.metric == "top2_accuracy"
    assert report.final.accuracy > report.baseline.accuracy + 0.2
    assert isinstance(pipeline[1].optimizer, keras.optimizers.SGD), "arguments stay as given"
