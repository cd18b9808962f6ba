"""What is learned for quantization travels with the state, and no further than it is true."""

from __future__ import annotations

import json

import numpy as np
import pytest

import optkit as ok
from optkit.testing import small_model

RANGES = ok.LearnedRanges({"relu": (0.0, 6.5), "classes": (-3, 4)}, {"conv": 4}, ("a note",))


class Learn(ok.TrainPass):
    """Stands for quantization-aware training: says what it would have found out."""

    def __init__(self, high=6.5):
        self.high = high

    def train(self, model, recipe, context):
        context.learn(ok.LearnedRanges({"relu": (0.0, self.high)}, {"conv": 8}))
        return model


class Look(ok.ConvertPass):
    """A quantizer that notes what it was given."""

    accepts = ok.KerasArtifact
    produces = ok.KerasArtifact

    def convert(self, artifact, context):
        context.note(f"learned: {context.learned and dict(context.learned.activations)}")
        return artifact


class Shift(ok.RewritePass):
    """Changes a weight."""

    def rewrite(self, model, context):
        model.layers[-1].bias.assign_add(np.ones(10))
        return model


def test_it_comes_back_from_json_and_cannot_be_changed():
    again = ok.LearnedRanges.from_dict(json.loads(json.dumps(RANGES.to_dict())))
    assert again == RANGES
    assert again.activations["classes"] == (-3.0, 4.0)
    with pytest.raises(TypeError):
        again.activations["relu"] = (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": (1.0, 0.0)},), "lower end first"),
        (({"a": (0.0, float("nan"))},), r"activations\['a'\]"),
        (({"a": 1.0},), "pair"),
        (([("a", (0, 1))],), "dict by path"),
        (({}, {"a": 7}), "8 or 4"),
        (({"": (0, 1)},), "empty"),
    ],
)
def test_what_is_no_range_is_refused(arguments, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.LearnedRanges(*arguments)


def notes(report):
    return {row.name: row.notes for row in report.rows}


@pytest.mark.usefixtures("untimed")
def test_the_next_pass_sees_it_and_one_that_changes_the_model_drops_it(data):
    result = ok.Pipeline([Learn(), Look()]).run(small_model(), data, progress=False)
    assert notes(result.report)["Look"] == ("learned: {'relu': (0.0, 6.5)}",)
    tried = ok.FirstThatMeets([Look(), Look()], ok.Goals(max_size_mb=100))
    result = ok.Pipeline([Learn(), tried]).run(small_model(), data, progress=False)
    assert "learned: {'relu': (0.0, 6.5)}" in notes(result.report)["FirstThatMeets"]
    dropping = ok.Pipeline([Learn(), Shift(), Look()]).run(small_model(), data, progress=False)
    found = notes(dropping.report)
    assert found["Look"] == ("learned: None",)
    assert any("dropped" in note for note in found["Shift"])
    assert found["Learn"] == ()
    again = ok.Pipeline([Learn(), Learn(2.0), Look()]).run(small_model(), data, progress=False)
    assert notes(again.report) == {
        "Learn": (),
        "Learn-2": (),
        "Look": ("learned: {'relu': (0.0, 2.0)}",),
    }


@pytest.mark.usefixtures("untimed")
def test_a_conversion_that_does_not_use_it_says_so(data):
    class Plain(Look):
        def convert(self, artifact, context):
            return artifact

    goals = ok.Goals(max_size_mb=100)
    for last in (Plain(), ok.FirstThatMeets([Plain(), Plain()], goals)):
        result = ok.Pipeline([Learn(), last]).run(small_model(), data, progress=False)
        (said,) = [note for note in result.report.rows[1].notes if "learned" in note]
        assert said.startswith(
            "not used here: what training for quantization learned (1 range of activations, "
            "weights of 1 layer to 8 bits)"
        )
    untaught = ok.Pipeline([Plain()]).run(small_model(), data, progress=False)
    assert untaught.report.rows[0].notes == ()


@pytest.mark.usefixtures("untimed")
def test_it_is_kept_with_the_stage_and_is_part_of_the_key_behind_it(data, tmp_path):
    model, events = small_model(), []

    def run(*passes):
        events.clear()
        return ok.Pipeline(passes).run(model, data, workdir=tmp_path, progress=events.append)

    run(Learn())
    report = run(Learn(), Look()).report
    assert [(e.kind, e.name) for e in events if e.kind in ("reused", "finished")] == [
        ("reused", "Learn"),
        ("finished", "Look"),
    ]
    assert notes(report)["Look"] == ("learned: {'relu': (0.0, 6.5)}",)
    # The weights that come in are the same; what is known of them is not.
    other = run(Learn(3.0), Look()).report
    assert notes(other)["Look"] == ("learned: {'relu': (0.0, 3.0)}",)


def test_only_ranges_can_be_learned_and_only_studies_shown(data):
    class Bad(ok.RewritePass):
        def __init__(self, how):
            self.how = how

        def rewrite(self, model, context):
            getattr(context, self.how)({"relu": (0, 1)})
            return model

    for how, wanted in (("learn", "LearnedRanges"), ("show", "Study")):
        with pytest.raises(ok.PassError, match=wanted):
            ok.Pipeline([Bad(how)]).run(small_model(), data, progress=False)
