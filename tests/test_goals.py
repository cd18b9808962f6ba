"""Goals: what they refuse, how they judge, what a run does about them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import optkit as ok
from optkit.advice import advise, missed_goals
from optkit.goals import Goal, Goals
from optkit.measuring import Comparison, Measurement, Throughput
from optkit.report import Report, Row
from optkit.testing import digits, small_model

QUICK = ok.Measure(latency_seconds=0, memory=False)


class Harm(ok.RewritePass):
    """Adds noise to every kernel."""

    def __init__(self, amount: float = 3.0):
        self.amount = amount

    def rewrite(self, model, context):
        rng = np.random.default_rng(context.seed)
        for variable in model.trainable_variables:
            variable.assign_add(self.amount * rng.normal(size=variable.shape).astype("float32"))
        return model


class HarmOnPurpose(Harm):
    """Harms, and counts on training to come."""

    expects_recovery = True


class Renamed(ok.RewritePass):
    """A pass that only fits a model which an earlier pass made."""

    def __init__(self, layer: str = "none"):
        self.layer = layer

    def check(self, setting):
        if setting.model is not None and self.layer not in {x.name for x in setting.model.layers}:
            raise ok.PipelineError(f"There is no layer {self.layer!r}.")

    def rewrite(self, model, context):
        return model


# ------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_accuracy_drop": -0.1},
        {"max_size_mb": 0},
        {"max_latency_ms": -1},
        {"min_speedup": 0},
        {"max_memory_mb": float("inf")},
        {"min_accuracy": "0.9"},
        {"judge_by": "luck"},
    ],
)
def test_limits_out_of_range_are_refused(arguments):
    with pytest.raises(ok.PipelineError, match=next(iter(arguments))):
        Goals(**arguments)


FIRST = Measurement(accuracy=0.9, latency_ms=2.0, size_bytes=4_000_000, samples=100)
LAST = Measurement(
    accuracy=0.88,
    accuracy_ci=(0.8, 0.94),
    latency_ms=0.5,
    size_bytes=1_000_000,
    peak_memory_bytes=60_000_000,
    per_class={"a": 0.7, "b": 1.0},
    throughput=Throughput(1, 1, 500.0, 1, 2, 3, 0.0),
)
AGAINST = Comparison(4.0, (3.8, 4.2), -0.02, (-0.05, 0.01))


@pytest.mark.parametrize(
    ("name", "limit", "figure", "margin"),
    [
        ("min_accuracy", 0.85, 0.88, 0.03),
        ("min_accuracy", 0.95, 0.88, -0.07),
        ("max_accuracy_drop", 0.03, 0.02, 0.01),
        ("max_accuracy_drop", 0.01, 0.02, -0.01),
        ("max_size_mb", 1.0, 1.0, 0.0),
        ("max_size_mb", 0.9, 1.0, -0.1),
        ("max_latency_ms", 1, 0.5, 0.5),
        ("min_speedup", 5, 4.0, -1.0),
        ("min_throughput", 400, 500, 100),
        ("max_memory_mb", 50, 60, -10),
        ("min_class_accuracy", 0.6, 0.7, 0.1),
    ],
)
def test_every_goal_is_judged_by_its_figure(name, limit, figure, margin):
    (goal,) = Goals(**{name: limit}).judge(FIRST, LAST, AGAINST, higher_is_better=True)
    assert (goal.name, goal.limit) == (name, limit)
    assert goal.figure == pytest.approx(figure)
    assert goal.margin == pytest.approx(margin)
    assert goal.met == (margin >= 0)
    assert Goal.from_dict(goal.to_dict()) == goal


def test_of_errors_less_is_better():
    first, last = Measurement(accuracy=1.0), Measurement(accuracy=1.3)
    against = Comparison(accuracy_change=0.3, accuracy_change_ci=(0.2, 0.4))
    error, drop = Goals(min_accuracy=1.2, max_accuracy_drop=0.35).judge(
        first, last, against, higher_is_better=False
    )
    assert (error.met, error.margin) == (False, pytest.approx(-0.1))
    assert (drop.met, drop.figure, drop.figure_ci) == (
        True,
        pytest.approx(0.3),
        pytest.approx((0.2, 0.4)),
    )
    goals = Goals(max_accuracy_drop=0.1)
    assert goals.violated(0.3, (0.2, 0.4), higher_is_better=False)
    assert not goals.violated(-0.3, (-0.4, -0.2), higher_is_better=False)


def test_what_was_not_measured_is_not_met():
    goals = Goals(max_latency_ms=1, min_throughput=1, max_memory_mb=9, min_class_accuracy=0.1)
    for goal in goals.judge(Measurement(), Measurement(), Comparison(), higher_is_better=True):
        assert goal.figure is None
        assert goal.margin is None
        assert not goal.met


def test_an_unchanged_model_lost_nothing():
    drop, speed = Goals(max_accuracy_drop=0, min_speedup=1).judge(
        FIRST, FIRST, Comparison(), higher_is_better=True
    )
    assert drop.met
    assert speed.met


def test_noise_is_no_violation_unless_the_figure_is_to_decide():
    by_interval = Goals(max_accuracy_drop=0.01)
    by_figure = Goals(max_accuracy_drop=0.01, judge_by="figure")
    within, beyond = (-0.05, 0.01), (-0.05, -0.02)
    assert not by_interval.violated(-0.02, within, higher_is_better=True)
    assert by_interval.violated(-0.03, beyond, higher_is_better=True)
    assert by_figure.violated(-0.02, within, higher_is_better=True)
    assert not by_figure.violated(-0.01, within, higher_is_better=True)
    assert not Goals().violated(-1.0, beyond, higher_is_better=True)


# --------------------------------------------------------------------------------------- the run


def statuses(report):
    return [row.status for row in report.rows]


def test_a_pass_that_harms_is_undone_and_the_run_goes_on(trained, data):
    goals = Goals(max_accuracy_drop=0.02, min_accuracy=0.5)
    events = []
    result = ok.Pipeline([ok.BNReestimate(), Harm(), ok.QuantizeINT8()], goals=goals).run(
        trained, data, measure=QUICK, progress=events.append
    )
    report = result.report
    assert statuses(report) == ["ok", "rolled back", "ok"]
    assert list(result.stages) == ["BNReestimate", "QuantizeINT8"]
    undone, last = report.rows[1:]
    assert undone.after.accuracy < 0.6
    assert undone.validation_after < undone.validation_before - 0.3
    assert "undone: accuracy changed by" in undone.notes[-1]
    assert "a loss of 2 points is allowed" in undone.notes[-1]
    assert last.before == report.rows[0].after
    assert last.validation_before == report.rows[0].validation_after
    assert report.final == last.after
    assert report.final.accuracy > 0.9
    assert report.met
    assert result.require_goals() is result
    assert [event.kind for event in events if event.step == 2] == [
        "started",
        "finished",
        "measured",
        "rolled back",
    ]


def test_stop_and_keep(trained, data):
    goals = Goals(max_accuracy_drop=0.02)
    passes = [Harm(), ok.LabelSmooth(), ok.FineTune(1), ok.QuantizeINT8()]
    stopped = ok.Pipeline(passes, goals=goals, on_violation="stop").run(
        trained, data, measure=QUICK
    )
    assert statuses(stopped.report) == ["rolled back", "skipped", "skipped", "skipped"]
    assert "stopped at step 1, Harm" in stopped.report.rows[1].notes[0]
    assert stopped.stages == {}
    assert stopped.report.final == stopped.report.baseline
    for one, other in zip(stopped.artifact.model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    kept = ok.Pipeline([Harm()], goals=goals, on_violation="keep").run(trained, data, measure=QUICK)
    assert statuses(kept.report) == ["ok"]
    assert "kept although accuracy changed" in kept.report.rows[0].notes[-1]
    assert not kept.report.met
    with pytest.raises(
        ok.GoalsError, match=r"1 of 1 goals missed:\n(.*\n)+.*Harm cost most"
    ) as caught:
        kept.require_goals()
    assert [goal.name for goal in caught.value.missed] == ["max_accuracy_drop"]


def test_a_pass_that_counts_on_training_is_judged_after_it(trained, data):
    goals = Goals(max_accuracy_drop=0.05)
    recovered = ok.Pipeline(
        [HarmOnPurpose(0.05), ok.LabelSmooth(), ok.FineTune(4, 1e-3)], goals=goals
    ).run(trained, data, measure=QUICK)
    assert statuses(recovered.report) == ["ok", "recipe", "ok"]
    lost = ok.Pipeline(
        [HarmOnPurpose(30.0), ok.LabelSmooth(), ok.FineTune(1, 1e-6), ok.FineTune(1, 1e-4)],
        goals=goals,
    ).run(trained, data, measure=QUICK)
    assert statuses(lost.report) == ["rolled back", "recipe", "rolled back", "ok"]
    assert lost.report.rows[3].before == lost.report.baseline
    # Where no training is to come, it is judged at once.
    alone = ok.Pipeline([HarmOnPurpose(), ok.QuantizeINT8()], goals=goals).run(
        trained, data, measure=QUICK
    )
    assert statuses(alone.report) == ["rolled back", "ok"]


def test_a_guard_at_the_end_goes_back_to_the_last_good_stage(trained, data):
    result = ok.Pipeline(
        [ok.BNReestimate(), Harm(), Harm(0.0)], goals=Goals(max_accuracy_drop=0.02), guard="end"
    ).run(trained, data, measure=QUICK)
    assert statuses(result.report) == ["ok", "rolled back", "rolled back"]
    assert list(result.stages) == ["BNReestimate"]
    assert result.report.final == result.report.rows[0].after


def test_what_was_built_on_an_undone_pass_is_skipped(trained, data):
    class Strip(ok.ConvertPass):
        """Takes a file and gives it back."""

        accepts = produces = ok.TFLiteArtifact

        def convert(self, artifact, context):
            return artifact

    class Broken(ok.ConvertPass):
        """Gives the file of another model."""

        produces = ok.TFLiteArtifact

        def convert(self, artifact, context):
            from optkit.convert import convert_to_tflite

            return ok.TFLiteArtifact(convert_to_tflite(small_model()))

    goals = Goals(max_accuracy_drop=0.02)
    result = ok.Pipeline([Broken(), Strip()], goals=goals).run(trained, data, measure=QUICK)
    assert statuses(result.report) == ["rolled back", "skipped"]
    assert result.report.rows[1].notes == (
        "it takes a tflite artifact, and there is a keras one after Broken was undone",
    )
    assert result.artifact.kind == "keras"


def test_a_pass_that_no_longer_fits_is_skipped_with_the_reason(trained, data):
    class Replace(ok.TrainPass):
        """Puts an untrained model in the place of the one that comes in."""

        replaces_model = True

        def check(self, setting):
            return small_model()

        def train(self, model, recipe, context):
            return small_model()

    inner = small_model().layers[1].name
    result = ok.Pipeline([Replace(), Renamed(inner)], goals=Goals(max_accuracy_drop=0.02)).run(
        trained, data, measure=QUICK
    )
    assert statuses(result.report) == ["rolled back", "skipped"]
    assert (
        "not possible after Replace was undone: There is no layer"
        in (result.report.rows[1].notes[0])
    )


@pytest.mark.parametrize(
    ("goals", "measure", "data_of", "message"),
    [
        ({"max_memory_mb": 9}, {"memory": False}, lambda d: d, "needs peak memory"),
        ({"max_latency_ms": 9}, {"latency_seconds": 0}, lambda d: d, "needs timing"),
        (
            {"max_accuracy_drop": 0.1},
            {},
            lambda d: ok.Data(test=d.test, calibration=d.train[0]),
            "no `validation` split to check it on",
        ),
        ({"max_accuracy_drop": 1.5}, {}, lambda d: d, "0.015 is 1.5 points"),
    ],
)
def test_goals_that_could_not_be_judged_are_refused(goals, measure, data_of, message, data):
    pipeline = ok.Pipeline([ok.QuantizeINT8()], goals=Goals(**goals))
    with pytest.raises(ok.PipelineError, match=message):
        pipeline.run(small_model(), data_of(data), measure=ok.Measure(**measure))


def test_classes_are_judged_whatever_the_metric_is_and_missing_ones_are_named(trained, data):
    x, y = data.test
    goals = Goals(min_class_accuracy=0.1)
    some = ok.Data(train=data.train, validation=data.validation, test=(x[y != 3], y[y != 3]))
    measure = ok.Measure(metric="mse", latency_seconds=0, memory=False)
    report = ok.Pipeline([Harm(0.0)], goals=goals).run(trained, some, measure=measure).report
    assert report.goals[0].figure == min(report.final.per_class.values())
    assert any("judged on 9 of 10 classes" in note for note in report.notes)


def test_classes_need_a_classifier(dense):
    x = np.zeros((20, 4), "float32")
    data = ok.Data(train=(x, np.arange(20.0)))
    pipeline = ok.Pipeline([ok.FineTune(1)], goals=Goals(min_class_accuracy=0.5))
    with pytest.raises(ok.PipelineError, match="needs classes, and the task is a regression"):
        pipeline.run(dense(1, "linear"), data)


def test_an_undone_pass_leaves_nothing_in_the_recipe(trained, data):
    seen = []

    class Amends(Harm):
        """Harms, and sets a loss for later training."""

        def apply(self, state, context):
            state = super().apply(state, context)
            return dataclasses.replace(state, recipe=state.recipe.amended(loss="mse"))

    class Looks(ok.TrainPass):
        """Notes what it would train by."""

        def train(self, model, recipe, context):
            seen.append((recipe.loss, recipe.smooth is not None, context.goals.max_accuracy_drop))
            return model

    passes = [ok.LabelSmooth(), Amends(), Looks()]
    result = ok.Pipeline(passes, goals=Goals(max_accuracy_drop=0.02)).run(
        trained, data, measure=QUICK
    )
    assert statuses(result.report) == ["recipe", "rolled back", "ok"]
    assert seen == [(None, True, 0.02)]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["goals"].update(min_beauty=1),
        lambda config: config.update(goals=[1]),
        lambda config: config.update(goal={}),
        lambda config: config["passes"][0].pop("config"),
        lambda config: config["passes"][0]["config"].update(epoch=3),
        lambda config: config.pop("passes"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, change):
    path = tmp_path / "pipeline.json"
    ok.Pipeline([ok.FineTune()], goals=Goals(max_size_mb=2)).to_json(path)
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ok.PipelineError):
        ok.Pipeline.from_json(path)


def test_settings_are_checked_and_survive_a_file(tmp_path):
    with pytest.raises(ok.PipelineError, match="on_violation"):
        ok.Pipeline([ok.FineTune()], on_violation="ignore")
    with pytest.raises(ok.PipelineError, match="guard"):
        ok.Pipeline([ok.FineTune()], guard="never")
    with pytest.raises(ok.PipelineError, match=r"`goals` must be an `optkit.Goals`"):
        ok.Pipeline([ok.FineTune()], goals={"max_size_mb": 1})
    pipeline = ok.Pipeline(
        [ok.FineTune()], goals=Goals(max_size_mb=2), on_violation="stop", guard="end", seed=4
    )
    pipeline.to_json(tmp_path / "pipeline.json")
    again = ok.Pipeline.from_json(tmp_path / "pipeline.json")
    assert repr(again) == repr(pipeline)
    assert (again.goals, again.on_violation, again.guard) == (pipeline.goals, "stop", "end")
    assert repr(ok.Pipeline.from_config(pipeline.get_config())) == repr(pipeline)
    assert repr(pipeline[:1]) == repr(pipeline)


def test_a_baseline_no_better_than_chance_is_warned_about():
    result = ok.Pipeline([ok.BNReestimate()]).run(small_model(), digits(200), measure=QUICK)
    assert any("chance" in note for note in result.report.notes)


# ------------------------------------------------------------------------------------ the advice


def rows(*names, status="ok", accuracies=()):
    found = []
    before = 0.9
    for i, name in enumerate(names, 1):
        after = accuracies[i - 1] if accuracies else before
        family = "convert" if name.startswith("Quantize") else "train"
        row = Row(i, name, family, {}, status, Measurement(accuracy=before), None)
        found.append(dataclasses.replace(row, after=Measurement(accuracy=after)))
        before = after
    return tuple(found)


@pytest.mark.parametrize(
    ("goal", "passes", "hint"),
    [
        (Goal("max_size_mb", 1, 2), rows("Prune"), "add QuantizeINT8"),
        (Goal("max_size_mb", 1, 2), rows("Prune", "QuantizeINT8"), "smaller architecture"),
        (Goal("max_size_mb", 1, 2), rows("QuantizeFloat16"), "in the place of QuantizeFloat16"),
        (Goal("max_size_mb", 1, 2), rows("QuantizeINT8", status="rolled back"), "was undone"),
        (
            Goal("min_accuracy", 0.9, 0.7, at_least=True),
            rows("FineTune", "Prune", accuracies=(0.92, 0.7)),
            r"Prune cost most \(22.0 points\)",
        ),
        (Goal("min_accuracy", 0.95, 0.9, at_least=True), rows("FineTune"), "falls short"),
        (Goal("min_accuracy", 0.95, 0.9, at_least=True), rows("QuantizeINT8"), "no pass trains"),
        (Goal("max_memory_mb", 9, None), rows("Prune"), "memory: it was not measured"),
    ],
)
def test_hints_name_what_to_change(goal, passes, hint):
    report = Report(passes, Measurement(accuracy=0.9), goals=(goal,))
    (found,) = advise(report)
    import re

    assert re.search(hint, found)
    assert found in missed_goals(report)


def test_nothing_missed_nothing_said():
    report = Report((), FIRST, goals=(Goal("max_size_mb", 9, 4),))
    assert report.met
    assert missed_goals(report) == ""
    assert Report((), FIRST).met
