"""`FirstThatMeets`: alternatives in order of harm, judged on validation, every trial told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import optkit as ok
from optkit.testing import small_model

FAST = ok.Measure(latency_seconds=0, memory=False)


class Scale(ok.RewritePass):
    """Multiplies the weights of the last layer; 0 makes all classes alike."""

    def __init__(self, by=1.0):
        self.by = by

    def rewrite(self, model, context):
        layer = model.layers[-1]
        layer.set_weights([self.by * weight for weight in layer.get_weights()])
        context.note(f"scaled by {self.by}")
        return model


class Fails(ok.RewritePass):
    """Fails while it runs."""

    def __init__(self, reason="it broke"):
        self.reason = reason

    def rewrite(self, model, context):
        raise ValueError(self.reason)


class Refuses(ok.RewritePass):
    """Cannot work on any model."""

    def check(self, setting):
        raise ok.PipelineError("it needs what is not there.")

    def rewrite(self, model, context):
        raise AssertionError("never run")


def run(passes, model, data, **settings):
    measure = settings.pop("measure", FAST)
    workdir, progress = settings.pop("workdir", None), settings.pop("progress", False)
    pipeline = ok.Pipeline(passes, **settings)
    return pipeline.run(model, data, measure=measure, workdir=workdir, progress=progress)


def trials(row):
    """The study of the trials, a dict a trial."""
    study = next(item for item in row.studies if item.title.startswith("Alternatives"))
    return [dict(zip(study.columns, values, strict=True)) for values in study.rows]


def outcomes(row):
    return [(trial["result"], trial["kept"]) for trial in trials(row)]


def accuracy(artifact, split):
    x, y = split
    return float((artifact.predict(x).argmax(-1) == y).mean())


# ----------------------------------------------------------------------------- what is kept


def test_the_first_that_meets_is_kept_and_the_others_are_not_tried(trained, data):
    alternatives = [Scale(0.0), Scale(1.0), Scale(0.5)]
    result = run([ok.FirstThatMeets(alternatives, ok.Goals(max_accuracy_drop=0.05))], trained, data)
    row = result.report.rows[0]
    assert outcomes(row) == [("missed", False), ("met", True), ("not tried", False)]
    assert row.family == "rewrite"
    assert any("kept Scale()" in note and "2 of 3" in note for note in row.notes)
    assert [note for note in row.notes if note.startswith("scaled")] == ["scaled by 1.0"]
    for one, other in zip(result.model.get_weights(), trained.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_what_the_table_says_is_what_each_gives_by_itself(trained, data):
    alternatives = [Scale(0.0), Scale(-1.0), Scale(1.0)]
    goals = ok.Goals(max_accuracy_drop=0.01)
    result = run([ok.FirstThatMeets(alternatives, goals)], trained, data)
    before = accuracy(ok.KerasArtifact(trained), data.validation)
    found = trials(result.report.rows[0])
    for item, trial in zip(alternatives, found, strict=True):
        alone = run([item], trained, data).artifact
        after = accuracy(alone, data.validation)
        assert trial["accuracy"] == pytest.approx(after)
        assert trial["change"] == pytest.approx(after - before)
        if trial["from"] is not None:
            assert trial["from"] <= trial["change"] <= trial["to"]
        # The file of a Keras model holds the time when it was written, packed.
        assert trial["size kB"] * 1000 == pytest.approx(alone.size_bytes, rel=0.01)
        assert trial["seconds"] > 0
    missed = before - accuracy(run([Scale(0.0)], trained, data).artifact, data.validation) - 0.01
    assert found[0]["why"] == f"max_accuracy_drop=0.01 missed by {missed:.3g}"
    assert found[2]["why"] is None


def test_quantizing_where_the_float_model_is_too_big(trained, data):
    class Leave(ok.ConvertPass):
        """A float32 file, as large as the float model."""

        accepts, produces = ok.QuantizeINT8.accepts, ok.TFLiteArtifact

        def convert(self, artifact, context):
            from optkit.convert import convert

            return convert(artifact.model).artifact

    alternatives = [Leave(), ok.QuantizeINT8(50)]
    alone = [run([item], trained, data).artifact for item in alternatives]
    limit = (alone[0].size_bytes + alone[1].size_bytes) / 2e6
    goals = ok.Goals(max_size_mb=limit, max_accuracy_drop=0.05)
    result = run([ok.FirstThatMeets(alternatives)], trained, data, goals=goals)
    row = result.report.rows[0]
    assert outcomes(row) == [("missed", False), ("met", True)]
    sizes = [trial["size kB"] * 1000 for trial in trials(row)]
    assert sizes == pytest.approx([item.size_bytes for item in alone])
    assert isinstance(result.artifact, ok.TFLiteArtifact)
    assert result.report.met
    # What the kept pass has to say after its work is there, too.
    assert any("read back" in note for note in row.notes)
    # Of the first one nothing else is left.
    roomy = ok.Goals(max_size_mb=10.0)
    first = run([ok.FirstThatMeets(alternatives, roomy)], trained, data)
    assert first.artifact.content == alone[0].content


def test_training_passes_leave_the_constraints_of_the_kept_one_alone(trained, data):
    alternatives = [ok.Prune(0.95, epochs=1), ok.Prune(0.3, epochs=1)]
    goals = ok.Goals(min_accuracy=0.9)
    passes = [ok.FirstThatMeets(alternatives, goals), ok.FineTune(epochs=1)]
    result = run(passes, trained, data)
    row = result.report.rows[0]
    assert outcomes(row) == [("missed", False), ("met", True)]
    assert row.family == "train"
    assert len(row.curves) == 1
    for stage in result.stages.values():
        kernels = [w for w in stage.model.get_weights() if w.ndim > 1]
        zeros = sum(int((w == 0).sum()) for w in kernels) / sum(w.size for w in kernels)
        assert 0.25 < zeros < 0.35  # FineTune behind it keeps these zeros, and no more


def test_constraints_from_before_hold_in_every_alternative(trained, data):
    alternatives = [ok.FineTune(epochs=1, learning_rate=0.01), ok.FineTune(epochs=2)]
    passes = [ok.Prune(0.5, epochs=1), ok.FirstThatMeets(alternatives, ok.Goals(max_size_mb=100))]
    result = run([*passes, ok.FineTune(epochs=1)], trained, data)
    before, *after = (result.stages[row.name].model for row in result.report.rows)
    for model in after:
        for old, new in zip(before.get_weights(), model.get_weights(), strict=True):
            if old.ndim > 1:
                assert (old == 0).mean() == pytest.approx(0.5, abs=0.05)
                assert not new[old == 0].any()
        assert not np.array_equal(before.get_weights()[0], model.get_weights()[0])


def test_what_an_alternative_gives_does_not_depend_on_those_before_it(trained, data):
    goals = ok.Goals(max_size_mb=0.000001)
    prune = ok.Prune(0.5, epochs=1)

    def weights(first):
        passes = [ok.FirstThatMeets([first, prune], goals)]
        pipeline_result = run(passes, trained, data)
        return trials(pipeline_result.report.rows[0])[1]["accuracy"]

    class Noise(ok.TrainPass):
        """Draws from the global generators, as a training does."""

        def train(self, model, recipe, context):
            import tensorflow as tf

            np.random.random(7)
            tf.random.uniform((3,))
            return model

    assert weights(Noise()) == weights(ok.Prune(0.9, epochs=1))


def test_what_was_learned_is_that_of_the_kept_one(trained, data):
    class Learn(Scale):
        def rewrite(self, model, context):
            context.learn(ok.LearnedRanges({"relu": (0.0, 1.0 + self.by)}))
            return super().rewrite(model, context)

    class Look(ok.RewritePass):
        def rewrite(self, model, context):
            context.note(f"{context.learned and dict(context.learned.activations)}")
            return model

    goals = ok.Goals(max_accuracy_drop=0.05)
    passes = [ok.FirstThatMeets([Learn(0.0), Learn(1.0), Learn(2.0)], goals), Look()]
    rows = run(passes, trained, data).report.rows
    assert rows[1].notes[0] == "{'relu': (0.0, 2.0)}"


def test_models_that_will_not_be_kept_are_let_go(trained, data):
    import gc
    import weakref

    made, seen = [], []

    class Watch(Scale):
        def rewrite(self, model, context):
            gc.collect()
            seen.append([which() is not None for which in made])
            model = super().rewrite(model, context)
            made.append(weakref.ref(model))
            return model

    goals = ok.Goals(min_accuracy=0.99999)
    passes = [ok.FirstThatMeets([Watch(0.0), Watch(1.0), Watch(-1.0), Watch(2.0)], goals)]
    row = run(passes, trained, data).report.rows[0]
    assert [trial["kept"] for trial in trials(row)] == [False, True, False, False]
    assert seen == [[], [True], [False, True], [False, True, False]]


# ------------------------------------------------------------------------- where none meets


def test_where_none_meets_the_one_that_misses_least_is_kept_and_it_is_said(trained, data):
    size = ok.KerasArtifact(trained).size_bytes / 1e6
    goals = ok.Goals(max_size_mb=size / 2, max_accuracy_drop=0.05)
    # All are too large; accuracy decides, which the second keeps.
    result = run([ok.FirstThatMeets([Scale(0.0), Scale(1.0), Scale(2.0)], goals)], trained, data)
    row = result.report.rows[0]
    assert outcomes(row) == [("missed", False), ("missed", True), ("missed", False)]
    said = next(note for note in row.notes if note.startswith("no alternative meets"))
    assert "max_size_mb" in said
    assert "kept Scale()" in said
    assert "max_accuracy_drop=0.05 missed" in trials(row)[0]["why"]


def test_accuracy_counts_before_size(trained, data):
    # Behind a lossless pruning the sizes are the same, so a tiny limit of size decides nothing.
    goals = ok.Goals(max_size_mb=1e-6, min_accuracy=0.99999)
    worse, better = Scale(-1.0), Scale(1.0)
    for alternatives, kept in (((worse, better), 1), ((better, worse), 0)):
        row = run([ok.FirstThatMeets(alternatives, goals)], trained, data).report.rows[0]
        assert [trial["kept"] for trial in trials(row)].index(True) == kept


def test_equal_ones_leave_the_earlier(trained, data):
    goals = ok.Goals(min_accuracy=0.99999)
    row = run([ok.FirstThatMeets([Scale(2.0), Scale(1.0)], goals)], trained, data).report.rows[0]
    assert outcomes(row) == [("missed", True), ("missed", False)]


# --------------------------------------------------------------------- failing and refusing


def test_one_that_fails_is_told_and_the_next_is_tried(trained, data):
    goals = ok.Goals(max_accuracy_drop=0.05)
    alternatives = [Fails("no luck"), Refuses(), Scale(1.0)]
    row = run([ok.FirstThatMeets(alternatives, goals)], trained, data).report.rows[0]
    assert row.status == "ok"
    assert outcomes(row) == [("failed", False), ("left out", False), ("met", True)]
    assert trials(row)[0]["why"] == "ValueError: no luck"
    assert trials(row)[0]["seconds"] > 0
    assert trials(row)[1]["why"] == "it needs what is not there."
    assert trials(row)[0]["accuracy"] is None


def test_outputs_that_are_not_finite_are_a_failure(trained, data):
    goals = ok.Goals(max_accuracy_drop=0.05)
    row = run([ok.FirstThatMeets([Scale(np.nan), Scale(1.0)], goals)], trained, data).report.rows[0]
    assert outcomes(row) == [("failed", False), ("met", True)]
    assert "finite" in trials(row)[0]["why"]


def test_where_all_fail_the_pass_fails_with_all_reasons(trained, data):
    passes = [ok.FirstThatMeets([Fails("one"), Fails("two")], ok.Goals(max_size_mb=1))]
    with pytest.raises(ok.PassError, match=r"None of the alternatives worked.*one.*two") as caught:
        run(passes, trained, data)
    failed = caught.value.report.rows[0]
    assert failed.status == "failed"
    assert outcomes(failed) == [("failed", False), ("failed", False)]


def test_where_none_can_work_it_is_refused_before_anything_runs(trained, data):
    kinds = []
    with pytest.raises(ok.PipelineError, match=r"None of the alternatives can work.*is not there"):
        run(
            [ok.FirstThatMeets([Refuses(), Refuses()], ok.Goals(max_size_mb=1))],
            trained,
            data,
            progress=lambda event: kinds.append(event.kind),
        )
    assert "started" not in kinds


def test_without_goals_it_is_refused_before_anything_runs(trained, data):
    kinds = []
    passes = [ok.FirstThatMeets([Scale(1.0), Scale(0.5)])]
    with pytest.raises(ok.PipelineError, match=r"Step 1, FirstThatMeets: .*needs goals"):
        run(passes, trained, data, progress=lambda event: kinds.append(event.kind))
    assert kinds == []
    with pytest.raises(ok.PipelineError, match="needs goals"):
        ok.Pipeline(passes).check(trained, data)


def test_recipe_passes_before_trainings_that_are_tried(trained, data):
    trainings = ok.FirstThatMeets([ok.Prune(0.9, epochs=1), ok.Prune(0.3, epochs=1)])
    rewrites = ok.FirstThatMeets([Scale(1.0), Scale(0.5)])
    with pytest.raises(ok.PipelineError, match="no training pass follows"):
        ok.Pipeline([ok.LabelSmooth(0.1), rewrites], goals=ok.Goals(max_size_mb=1))
    result = run([ok.LabelSmooth(0.1), trainings], trained, data, goals=ok.Goals(max_size_mb=1e-6))
    assert [row.status for row in result.report.rows] == ["recipe", "ok"]


def test_an_ablation_goes_by_the_goals_too(trained, data):
    pipeline = ok.Pipeline(
        [ok.BNReestimate(), ok.FirstThatMeets([Scale(0.0), Scale(1.0)])],
        goals=ok.Goals(max_accuracy_drop=0.05),
    )
    ablation = pipeline.ablate(trained, data, measure=FAST, progress=False)
    for report in (ablation.report, ablation.reports["without BNReestimate"]):
        assert outcomes(report.rows[-1]) == [("missed", False), ("met", True)]


@pytest.mark.parametrize(
    ("passes", "goals", "message"),
    [
        ([Scale()], None, "at least two"),
        ([], None, "at least two"),
        (Scale(), None, "list of passes"),
        ("ab", None, "list of passes"),
        ([Scale(), "Scale"], None, "Alternative 2 must be a pass"),
        ([Scale(), Scale], None, "Alternative 2 must be a pass"),
        ([Scale(), ok.Prune(0.5)], None, "of one kind"),
        ([Scale(), ok.QuantizeINT8()], None, "of one kind.*convert"),
        ([ok.LabelSmooth(0.1), ok.LabelSmooth(0.2)], None, "gives nothing that could be judged"),
        ([ok.FirstThatMeets([Scale(), Scale()]), Scale()], None, "holds alternatives itself"),
        ([Scale(), Scale()], 0.5, "must be an `optkit.Goals`"),
        ([Scale(), Scale()], ok.Goals(), "needs goals"),
        ([Scale(), Scale()], ok.Goals(judge_by="figure"), "needs goals"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(passes, goals, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.FirstThatMeets(passes, goals)


def test_every_goal_has_its_place_in_the_order():
    from optkit.passes.first_that_meets import _ORDER

    fields = {field.name for field in dataclasses.fields(ok.Goals)}
    assert {*_ORDER, "judge_by"} == fields


# ------------------------------------------------------------------------------ on what


def test_goals_of_size_need_no_targets_to_choose_on(trained, data):
    size = ok.KerasArtifact(trained).size_bytes / 1e6
    item = ok.FirstThatMeets([Scale(1.0), Scale(0.0)], ok.Goals(max_size_mb=2 * size))
    assert item.needs == ()
    row = run([item], trained, ok.Data(test=data.test)).report.rows[0]
    assert outcomes(row) == [("met", True), ("not tried", False)]
    assert trials(row)[0]["accuracy"] is None


def test_test_is_never_looked_at_and_validation_is_cut_where_it_is_missing(trained, data):
    x, y = data.test
    spoiled = ok.Data(train=data.train, test=(x, (y + 1) % 10))
    goals = ok.Goals(min_accuracy=0.8)
    result = run([ok.FirstThatMeets([Scale(0.0), Scale(1.0)], goals)], trained, spoiled)
    row = result.report.rows[0]
    assert outcomes(row) == [("missed", False), ("met", True)]
    assert trials(row)[1]["accuracy"] > 0.8
    assert row.after.accuracy < 0.2
    assert any("validation: cut from train" in note for note in result.report.notes)


def test_calibration_is_shown_to_those_alone_that_ask_for_it(trained, data):
    class Peek(Scale):
        def rewrite(self, model, context):
            context.note(f"calibration: {context.data.calibration is not None}")
            return model

    class Asks(Peek):
        @property
        def needs(self):
            return ("calibration",)

    x = data.train[0]
    own = ok.Data(train=data.train, validation=data.validation, test=data.test, calibration=x[:20])
    for alternatives, seen in (([Peek(), Asks()], False), ([Asks(), Peek()], True)):
        item = ok.FirstThatMeets(alternatives, ok.Goals(max_size_mb=100))
        assert "calibration" in item.needs
        notes = run([item], trained, own).report.rows[0].notes
        assert f"calibration: {seen}" in notes


def test_speed_is_measured_where_a_goal_asks_for_it(trained, data):
    measure = ok.Measure(latency_seconds=0.2, memory=False)
    goals = ok.Goals(max_latency_ms=1000, min_speedup=0.01, max_memory_mb=100_000)
    result = run(
        [ok.FirstThatMeets([Scale(1.0), Scale(2.0)], goals)], trained, data, measure=measure
    )
    first, second = trials(result.report.rows[0])
    assert first["result"] == "met"
    assert 0 < first["latency ms"] < 1000
    assert first["times faster"] > 0.01
    assert 1 < first["memory MB"] < 100_000  # which the run itself does not measure
    assert second["latency ms"] is None
    # The pass's own work took no second: starting a process and timing in it is not counted.
    assert result.report.rows[0].seconds < first["seconds"] + 1
    plain = run(
        [ok.FirstThatMeets([Scale(1.0), Scale(2.0)], ok.Goals(max_size_mb=9))], trained, data
    )
    assert "latency ms" not in trials(plain.report.rows[0])[0]


def test_passes_that_count_on_training_are_not_judged_by_accuracy_before_it(trained, data):
    class Harm(Scale):
        expects_recovery = True

    goals = ok.Goals(max_size_mb=100, max_accuracy_drop=0.05)
    item = ok.FirstThatMeets([Harm(0.0), Harm(1.0)], goals)
    assert item.expects_recovery
    passes = [item, ok.FineTune(epochs=1)]
    row = run(passes, trained, data, goals=ok.Goals(max_accuracy_drop=1.0)).report.rows[0]
    assert outcomes(row) == [("met", True), ("not tried", False)]
    assert any("not looked at here" in note for note in row.notes)
    with pytest.raises(ok.PipelineError, match="of accuracy alone"):
        ok.FirstThatMeets([Harm(0.0), Harm(1.0)], ok.Goals(max_accuracy_drop=0.05))


def test_several_outputs_are_judged_by_the_worst():
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    inputs = tf_keras.Input((4,), name="features")
    sign = tf_keras.layers.Dense(2, activation="softmax", name="sign")(inputs)
    size = tf_keras.layers.Dense(2, activation="softmax", name="size")(inputs)
    model = tf_keras.Model(inputs, {"sign": sign, "size": size})
    x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
    targets = {"sign": (x[:, 0] > 0).astype("int64"), "size": (abs(x[:, 1]) > 1).astype("int64")}
    split = (x, targets)
    goals = ok.Goals(min_accuracy=0.99)
    result = run(
        [ok.FirstThatMeets([Scale(1.0), Scale(2.0)], goals)],
        model,
        ok.Data(train=split, validation=split, test=split),
    )
    figures = {name: found.accuracy for name, found in result.report.baseline.outputs.items()}
    worst = min(figures, key=figures.get)
    why = trials(result.report.rows[0])[0]["why"]
    assert f"missed by {worst} by" in why
    assert f"{0.99 - figures[worst]:.3g}" in why


# ------------------------------------------------------------------------ files, again


def test_it_comes_back_from_json(tmp_path):
    alternatives = [
        ok.QuantizeINT8(20, io="float32"),
        ok.QuantizeINT8(20, input_shape=(8, 8, 1)),
    ]
    pipeline = ok.Pipeline(
        [
            ok.FirstThatMeets(
                [ok.Prune(0.9, layers={"conv": 0.5}, epochs=1), ok.Prune(0.5)],
                ok.Goals(min_accuracy=0.9),
            ),
            ok.FirstThatMeets(alternatives),
        ],
        goals=ok.Goals(max_size_mb=1.5),
    )
    path = tmp_path / "pipeline.json"
    pipeline.to_json(path)
    again = ok.Pipeline.from_json(path)
    assert repr(again) == repr(pipeline)
    assert again[0].goals == pipeline[0].goals
    assert again[1].passes[1].input_shape == (8, 8, 1)
    assert again[1].family == "convert"
    rebuilt = eval(repr(pipeline), {name: getattr(ok, name) for name in ok.__all__})
    assert repr(rebuilt) == repr(pipeline)


def test_a_file_that_names_an_unknown_alternative_is_refused(tmp_path):
    path = tmp_path / "pipeline.json"
    ok.Pipeline([ok.FirstThatMeets([Scale(1.0), Scale(0.5)], ok.Goals(max_size_mb=1))]).to_json(
        path
    )
    assert ok.Pipeline.from_json(path)[0].passes[1].by == 0.5
    text = path.read_text("utf-8")
    for name in ("os:system", "optkit.passes.prune:os", "optkit.passes.none:load"):
        path.write_text(text.replace("test_first_that_meets:Scale", name), "utf-8")
        with pytest.raises(ok.PipelineError, match="is unknown here"):
            ok.Pipeline.from_json(path)


def test_what_a_file_cannot_hold_is_named(tmp_path):
    item = ok.FirstThatMeets([Scale(1.0), Scale(lambda: 2)], ok.Goals(max_size_mb=1))
    with pytest.raises(ok.PipelineError, match=r"FirstThatMeets.passes.by.*cannot be stored"):
        ok.Pipeline([item]).to_json(tmp_path / "pipeline.json")


def test_the_row_and_the_repr_say_what_is_in_it():
    item = ok.FirstThatMeets([Scale(1.0), Scale(0.5)], ok.Goals(max_size_mb=1))
    assert (
        repr(item) == "FirstThatMeets(passes=(Scale(), Scale(by=0.5)), goals=Goals(max_size_mb=1))"
    )
    data = ok.testing.digits(200)
    row = run([item], small_model(), data).report.rows[0]
    assert row.config == {"passes": ["Scale()", "Scale(by=0.5)"], "goals": "Goals(max_size_mb=1)"}
    assert json.loads(json.dumps(row.to_dict()))["config"] == row.config


def test_a_finished_one_is_reused_while_nothing_changes(trained, data, tmp_path):
    def kinds(item, goals=None, measure=FAST):
        seen = []
        result = run(
            [item],
            trained,
            data,
            goals=goals,
            measure=measure,
            workdir=tmp_path,
            progress=lambda event: seen.append(event.kind),
        )
        return "reused" in seen, result.report.rows[0]

    def make(by=0.0, goals=None):
        return ok.FirstThatMeets([Scale(by), Scale(1.0)], goals)

    own = ok.Goals(max_accuracy_drop=0.05)
    reused, first = kinds(make(goals=own))
    assert not reused
    reused, again = kinds(make(goals=own))
    assert reused
    assert again.studies == first.studies
    assert again.notes[: len(first.notes)] == first.notes
    assert again.seconds == first.seconds
    # An alternative, the pass's goals, or the pipeline's where it goes by those.
    assert not kinds(make(0.1, goals=own))[0]
    assert not kinds(make(goals=ok.Goals(max_accuracy_drop=0.04)))[0]
    assert not kinds(make(), ok.Goals(max_accuracy_drop=0.05))[0]
    assert kinds(make(), ok.Goals(max_accuracy_drop=0.05))[0]
    assert not kinds(make(), ok.Goals(max_accuracy_drop=0.06))[0]
    # How it was timed counts where that has decided something, and there alone.
    other = ok.Measure(latency_seconds=0.1, memory=False)
    assert kinds(make(goals=own), measure=other)[0]
    timed = ok.Goals(max_latency_ms=1000)
    assert not kinds(make(goals=timed), measure=other)[0]
    assert kinds(make(goals=timed), measure=other)[0]
    assert not kinds(make(goals=timed), measure=ok.Measure(latency_seconds=0.2, memory=False))[0]


def test_models_with_layers_of_the_users_own_are_reused(trained, data, tmp_path):
    import tf_keras

    class Twice(tf_keras.layers.Layer):
        def call(self, x):
            return 2 * x

    class Other(ok.RewritePass):
        """Puts another model in the place of the one that comes in."""

        replaces_model = True

        def __init__(self, model, times=1):
            self.model, self.times = model, times

        def rewrite(self, model, context):
            return tf_keras.models.clone_model(self.model)

    inputs = tf_keras.Input((8, 8, 1))
    scores = tf_keras.layers.Dense(10, "softmax")(tf_keras.layers.Flatten()(Twice()(inputs)))
    other = tf_keras.Model(inputs, scores)
    item = ok.FirstThatMeets([Other(other), Other(other, 2)], ok.Goals(max_size_mb=1))
    kinds = []
    for _ in range(2):
        kinds.clear()
        run(
            [item], trained, data, workdir=tmp_path, progress=lambda event: kinds.append(event.kind)
        )
    assert "reused" in kinds


def test_progress_tells_the_epochs_of_every_trial(trained, data):
    events = []
    goals = ok.Goals(max_size_mb=1e-6)
    item = ok.FirstThatMeets([ok.Prune(0.5, epochs=1), ok.Prune(0.4, epochs=2)], goals)
    run([item], trained, data, progress=events.append)
    assert [event.epoch for event in events if event.kind == "epoch"] == [1, 1, 2]
    assert events[0].kind == "measured"  # the model that came in
    assert [event.kind for event in events if event.kind != "epoch"][1:] == [
        "started",
        "finished",
        "measured",
    ]


def test_it_can_be_stopped_within_a_trial(trained, data):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 5

    item = ok.FirstThatMeets(
        [ok.Prune(0.5, epochs=1), ok.Prune(0.4, epochs=1)], ok.Goals(min_accuracy=0.1)
    )
    result = ok.Pipeline([item]).run(trained, data, measure=FAST, progress=False, stop=stop)
    assert result.report.rows[0].status == "cancelled"


def test_models_of_keras_3_are_judged_in_their_own_form(data):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    goals = ok.Goals(max_size_mb=100)
    result = run([ok.FirstThatMeets([Scale(1.0), Scale(2.0)], goals)], model, data)
    assert isinstance(result.model, keras.Model)
    found = trials(result.report.rows[0])[0]["size kB"]
    assert found * 1000 == pytest.approx(result.report.rows[0].after.size_bytes, rel=0.01)
