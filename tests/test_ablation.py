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
    work = [(event.name, event.kind) for event in events if event.kind in ("finished", "reused")]
    assert work.count(("Bias", "finished")) == 1
    assert work.count(("Bias", "reused")) == 2  # in the runs without the second, without the third
    # One baseline, and steps that count on over all runs.
    assert [event.step for event in events].count(0) == 1
    steps = [event.step for event in events if event.kind == "measured"]
    assert steps == sorted(steps)
    assert {event.steps for event in events} == {5 * 3}
    assert {event.run for event in events} == {
        *("nothing", "everything", "without Bias", "without Bias-2", "without Bias-3")
    }
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
    events = []

    def stop():
        return any(event.run == "without Bias-2" for event in events)

    measure = ok.Measure(latency_seconds=0, memory=False)
    pipeline = ok.Pipeline([Bias(0), Bias(1), Bias(2)])
    found = pipeline.ablate(trained, data, stop=stop, progress=events.append, measure=measure)
    assert found["Bias"].accuracy is not None
    for name in ("Bias-2", "Bias-3"):
        assert found[name].accuracy is None
        assert found[name].note == "the run was ended before this was known"
    at_once = pipeline.ablate(trained, data, stop=lambda: True, progress=False, measure=measure)
    assert [row.status for row in at_once.report.rows] == ["cancelled", "skipped", "skipped"]
    assert all(item.accuracy is None for item in at_once.contributions)


def test_an_interrupt_between_two_passes_ends_it(trained, data):
    def interrupt(event):
        if event.run == "without Bias" and event.kind == "measured" and event.name == "Bias-2":
            raise KeyboardInterrupt

    found = ok.Pipeline([Bias(0), Bias(1), Bias(2)]).ablate(
        trained, data, progress=interrupt, measure=ok.Measure(latency_seconds=0, memory=False)
    )
    assert all(item.accuracy is None for item in found.contributions)


def test_a_pass_that_cannot_do_without_another_does_not_end_it(trained, data):
    class Mark(ok.RewritePass):
        """Changes the first kernel."""

        def rewrite(self, model, context):
            model.trainable_variables[0].assign(model.trainable_variables[0] * 1.5)
            return model

    class Needs(ok.RewritePass):
        """Works behind a changed kernel only."""

        def rewrite(self, model, context):
            if np.allclose(model.trainable_variables[0], trained.trainable_variables[0]):
                raise RuntimeError("the mark is missing")
            return model

    found = ok.Pipeline([Mark(), Needs()]).ablate(
        trained, data, measure=ok.Measure(latency_seconds=0, memory=False)
    )
    assert "the mark is missing" in found["Mark"].note
    assert found["Mark"].accuracy is None
    assert found["Needs"].accuracy == 0.0
