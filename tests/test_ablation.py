"""Ablation: what each pass contributed, held against runs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

import optkit as ok

MEASURE = ok.Measure(memory=False, latency_seconds=0.2)


class Bias(ok.RewritePass):
    """Adds to the bias of one class, which has a known effect on the outputs."""

    def __init__(self, index: int = 0, amount: float = 0.0):
        self.index = index
        self.amount = amount

    def rewrite(self, model, context):
        bias = model.trainable_variables[-1]
        bias.assign(bias + self.amount * np.eye(bias.shape[0])[self.index])
        return model


@pytest.fixture(scope="module")
def ablation(trained, data):
    pipeline = ok.Pipeline(
        [ok.LabelSmooth(), ok.FineTune(1, 1e-3, patience=None), Bias(3, 5.0), ok.QuantizeINT8()]
    )
    return pipeline, pipeline.ablate(trained, data, alone=True, measure=MEASURE)


def accuracy(artifact, data):
    x, y = data.test
    return float(np.mean(artifact.predict(x).argmax(-1) == y))


def test_each_contribution_is_the_difference_that_the_pass_makes(ablation, trained, data):
    pipeline, found = ablation
    assert [(item.name, item.how) for item in found.contributions] == [
        (name, how) for name in pipeline.names for how in ("without", "alone")
    ]
    # By hand: the steps keep their numbers, and so their seeds, when one before them is missing.
    full = found.report.final.accuracy
    for name in pipeline.names:
        rest = found.reports[f"without {name}"]
        assert name not in [row.name for row in rest.rows]
        assert found[name].accuracy == pytest.approx(full - rest.final.accuracy, abs=1e-9)
        low, high = found[name].accuracy_ci
        assert low <= found[name].accuracy <= high
    assert found["Bias"].accuracy < -0.1  # it makes everything a three
    alone = {item.name: item for item in found.contributions if item.how == "alone"}
    by_hand = ok.Pipeline([Bias(3, 5.0)]).run(trained, data, measure=MEASURE)
    assert alone["Bias"].accuracy == pytest.approx(
        by_hand.report.final.accuracy - by_hand.report.baseline.accuracy
    )


def test_size_and_speed_are_those_of_the_pass(ablation):
    _, found = ablation
    whole, floats = found.report.final, found.reports["without QuantizeINT8"].final
    assert found["QuantizeINT8"].size_ratio == pytest.approx(whole.size_bytes / floats.size_bytes)
    assert found["QuantizeINT8"].size_ratio < 0.5
    assert found["QuantizeINT8"].speedup > 2
    assert found["QuantizeINT8"].speed_verdict == "faster"
    assert found["Bias"].size_ratio == pytest.approx(1, abs=0.01)


def test_recipe_passes_show_through_the_training_behind_them(ablation):
    _, found = ablation
    losses = [
        report.rows[i].curves[0]["loss"][0]
        for report, i in ((found.report, 1), (found.reports["without LabelSmooth"], 0))
    ]
    assert losses[0] > losses[1]  # smoothed targets cannot be met so closely
    assert found.reports["LabelSmooth alone, with FineTune"].rows[1].name == "FineTune"
    assert "FineTune alone" in found.reports


def test_finished_prefixes_are_shared(trained, data, tmp_path):
    events = []
    ok.Pipeline([Bias(0), Bias(1), Bias(2)]).ablate(
        trained,
        data,
        workdir=tmp_path / "run",
        progress=events.append,
        measure=ok.Measure(latency_seconds=0, memory=False),
    )
    work = [(event.step, event.kind) for event in events if event.kind in ("finished", "reused")]
    assert work.count((1, "finished")) == 1
    assert work.count((1, "reused")) == 2  # in the runs without the second and without the third
    assert ok.Run(tmp_path / "run").current_name == "Bias-3"


def test_it_reads_as_a_table(ablation):
    _, found = ablation
    text = str(found)
    for item in found.contributions:
        assert item.name in text
    assert "accuracy, points" in text
    frame = found.to_frame()
    assert len(frame) == 8
    assert frame["accuracy"].tolist() == [item.accuracy for item in found.contributions]
    assert "<table" in found._repr_html_()
    with pytest.raises(KeyError, match="there are: LabelSmooth"):
        found["Nothing"]


def test_a_stopped_ablation_has_what_was_finished(trained, data):
    runs = []

    def stop():
        return len([e for e in runs if e.step == 0]) > 3

    found = ok.Pipeline([Bias(0), Bias(1), Bias(2)]).ablate(
        trained,
        data,
        stop=stop,
        progress=runs.append,
        measure=ok.Measure(latency_seconds=0, memory=False),
    )
    assert found.contributions[0].accuracy is not None
    assert "ended before this was known" in found.contributions[-1].note
