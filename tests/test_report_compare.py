"""Two reports side by side."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest
from report_samples import HOSTILE, full_report, hostile_report, minimal_report

import optkit as ok
from optkit.measuring import Measurement


def figures(comparison, stage):
    return {item.figure: item for item in comparison.figures if item.stage == stage}


def test_a_report_differs_from_itself_in_nothing(tmp_path):
    path = tmp_path / "report.json"
    full_report().to_json(path)
    same = full_report().compare(ok.Report.from_json(path))
    assert same.settings == ()
    assert (same.only_this, same.only_other, same.notes) == ((), (), ())
    assert {item.difference for item in same.figures} <= {0.0, None}
    assert {item.verdict for item in same.figures} <= {"equal", "no measurable difference", None}
    assert "The settings are the same." in str(same)


def other_report():
    """Another seed, another sparsity, a pass more, a file that is smaller and surely worse."""
    report = full_report()
    environment = json.loads(json.dumps(report.environment)) | {"seed": 1}
    environment["versions"]["numpy"] = "2.1"
    final = report.rows[4]
    after = dataclasses.replace(
        final.after, accuracy=0.90, accuracy_ci=(0.88, 0.92), size_bytes=200_000
    )
    rows = (
        *report.rows[:2],
        dataclasses.replace(report.rows[2], config={"sparsity": 0.5}),
        dataclasses.replace(final, after=after, accuracy_change=-0.06),
        dataclasses.replace(report.rows[5], name="Further"),
    )
    return dataclasses.replace(report, rows=rows, environment=environment)


def test_settings_that_differ_are_named():
    compared = full_report().compare(other_report())
    settings = {item.name: (item.this, item.other) for item in compared.settings}
    assert settings["seed"] == (0, 1)
    assert settings["versions.numpy"] == ("2.0", "2.1")
    assert settings["Prune.sparsity"] == (0.9, 0.5)
    assert set(settings) == {"seed", "versions.numpy", "Prune.sparsity", "passes"}
    assert compared.only_this == ("DistillTo", "Cancelled")
    assert compared.only_other == ("Further",)


def test_figures_stand_side_by_side_with_a_verdict():
    one, two = full_report(), other_report()
    final = figures(one.compare(two), "final")
    accuracy = final["accuracy"]
    assert (accuracy.this, accuracy.other) == (one.final.accuracy, two.final.accuracy)
    assert accuracy.difference == pytest.approx(0.90 - 0.956)
    assert accuracy.verdict == "other is worse"  # the intervals exclude each other
    assert final["latency"].verdict == "no measurable difference"
    assert final["size"].verdict == "other is better"
    assert final["zeros"].verdict == "equal"
    assert figures(two.compare(one), "final")["accuracy"].verdict == "other is better"
    assert figures(one.compare(two), "Prune")["size"].this == one.rows[2].after.size_bytes


def test_where_less_is_better_the_verdict_turns():
    one, two = (
        ok.Report(
            (),
            Measurement(accuracy=value, accuracy_ci=(value - 0.1, value + 0.1)),
            metric="mean_absolute_error",
            higher_is_better=False,
        )
        for value in (2.0, 3.0)
    )
    assert figures(one.compare(two), "baseline")["accuracy"].verdict == "other is worse"
    assert "mean_absolute_error" in str(one.compare(two))


def test_what_cannot_be_compared_is_not():
    one = full_report()
    environment = one.environment | {
        "processor": "another",
        "data": {"test": {"fingerprint": "other"}, "seed": 0},
    }
    two = dataclasses.replace(one, metric="AUC", environment=environment)
    compared = one.compare(two)
    assert "accuracy" not in figures(compared, "final")
    assert any("accuracy on test cannot be compared with AUC on test" in n for n in compared.notes)
    assert any("latencies were not measured alike" in note for note in compared.notes)
    assert any("the data are not the same" in note for note in compared.notes)
    slower = dataclasses.replace(one.final, latency_ms=9.0, latency_ci=(8.9, 9.1))
    rows = (*one.rows[:4], dataclasses.replace(one.rows[4], after=slower))
    (note,) = one.compare(dataclasses.replace(one, rows=rows)).notes
    assert "speedups compare better" in note
    reseeded = one.environment | {"data": one.environment["data"] | {"seed": 5}}
    assert one.compare(dataclasses.replace(one, environment=reseeded)).notes == ()


@pytest.mark.parametrize("other", [other_report, minimal_report, hostile_report])
def test_a_comparison_is_shown_everywhere(other):
    compared = full_report().compare(other())
    text, html = str(compared), compared._repr_html_()
    assert max(map(len, text.splitlines())) <= 100
    assert "nan" not in text
    assert "None" not in text
    HTMLParser().feed(html)
    assert HOSTILE not in html
    frame = compared.to_frame()
    assert len(frame) == len(compared.figures)
    assert frame["difference"].dtype == "float64"
    row = frame[(frame["stage"] == "final") & (frame["figure"] == "size")].iloc[0]
    assert row["this"] == full_report().final.size_bytes


def test_nothing_but_a_report_is_compared():
    with pytest.raises(ok.PipelineError, match=r"must be an `optkit\.Report`"):
        full_report().compare("report.json")
