"""Passes that only look, and `AuditData`, against planted faults."""

from __future__ import annotations

import json

import numpy as np
import pytest

import optkit as ok
from optkit.testing import check_pass, digits, small_model

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


def test_a_pass_that_looks_meets_the_contract():
    check_pass(_Look())


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
