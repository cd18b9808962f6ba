"""Reports: text that fits, JSON that comes back, frames, Markdown."""

from __future__ import annotations

import dataclasses

import pytest

import optkit as ok
from optkit.measuring import Measurement


def measurement(**changes):
    values = {
        "accuracy": 0.9775,
        "accuracy_ci": (0.9597, 0.9878),
        "samples": 360,
        "per_class": {"0": 1.0, "1": 0.95},
        "latency_ms": 0.245,
        "latency_p90_ms": 0.3,
        "latency_ci": (0.24, 0.25),
        "size_bytes": 532_000,
        "compressed_bytes": 456_000,
        "parameters": 122_000,
        "sparsity": 0.0,
    }
    return Measurement(**(values | changes))


@pytest.fixture
def report():
    after = measurement(accuracy=0.9861, size_bytes=133_000, latency_ms=0.011, sparsity=0.5)
    rows = (
        ok.Row(1, "LabelSmooth", "recipe", {"factor": 0.1}, "recipe", seconds=0.0),
        ok.Row(
            2,
            "Prune",
            "train",
            {"sparsity": 0.5},
            "ok",
            measurement(),
            measurement(sparsity=0.5),
            0.97,
            0.98,
            1.0,
            (0.99, 1.01),
            0.0,
            (-0.01, 0.01),
            3.21,
            ("reached 50.0 % zeros",),
        ),
        ok.Row(
            3,
            "QuantizeINT8",
            "convert",
            {},
            "ok",
            measurement(sparsity=0.5),
            after,
            0.98,
            0.98,
            22.7,
            (20.1, 24.9),
            0.0086,
            (-0.005, 0.02),
            0.3,
        ),
    )
    return ok.Report(
        rows, measurement(), environment={"seed": 0, "latency_threads": 1}, notes=("a note",)
    )


def test_the_text_holds_the_figures_and_fits(report):
    text = str(report)
    assert max(len(line) for line in text.splitlines()) <= 100
    for part in (
        "97.75 %",
        "98.61 %",
        "+0.9 ± 1.4",
        "22.7 ± 2.60",
        "1.00 ± 0.01 =",
        "532 kB",
        "133 kB",
        "50 %",
        "- 2 Prune: reached 50.0 % zeros",
        "- a note",
        "1 thread;",
    ):
        assert part in text, part


def test_long_names_and_absent_figures_fit_too(report):
    rows = (
        dataclasses.replace(report.rows[1], name="AVeryLongNameOfAPassOfSomebodyElse-12" * 2),
        dataclasses.replace(
            report.rows[2],
            status="failed",
            after=Measurement(),
            speedup=None,
            speedup_ci=None,
            accuracy_change=-123.45,
            accuracy_change_ci=None,
            seconds=123_456.0,
        ),
    )
    text = str(ok.Report(rows, Measurement(), split=None))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "None" not in text
    assert "nan" not in text


def test_json_comes_back_as_it_was(report, tmp_path):
    path = tmp_path / "report.json"
    text = report.to_json(path)
    assert path.read_text("utf-8") == text
    assert ok.Report.from_json(path) == report
    for bad in ("{", "{}", '{"format": 99}', "[]"):
        path.write_text(bad)
        with pytest.raises(ok.OptkitError):
            ok.Report.from_json(path)
    with pytest.raises(ok.OptkitError, match="cannot be read"):
        ok.Report.from_json(tmp_path / "missing.json")


def test_the_frame_is_tidy(report):
    frame = report.to_frame()
    assert frame["name"].tolist() == ["baseline", "LabelSmooth", "Prune", "QuantizeINT8"]
    assert frame.loc[3, "accuracy"] == 0.9861
    assert frame.loc[3, "speedup_ci_high"] == 24.9
    assert frame["size_bytes"].isna().tolist() == [False, True, False, False]
    assert frame.loc[0, "status"] == "baseline"


def test_markdown_is_a_table(report):
    lines = report.to_markdown().splitlines()
    assert {line.count("|") for line in lines[:6]} == {11}
    piped = dataclasses.replace(report, rows=(dataclasses.replace(report.rows[0], name="a|b"),))
    assert r"a\|b" in piped.to_markdown()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.1, 1.2), "faster"),
        ((0.8, 0.9), "slower"),
        ((0.9, 1.1), "no measurable change"),
        (None, None),
    ],
)
def test_the_verdict_comes_from_the_interval(report, interval, verdict):
    assert dataclasses.replace(report.rows[1], speedup_ci=interval).speed_verdict == verdict


def test_errors_of_a_regression_are_no_percentages(report):
    regression = dataclasses.replace(
        report,
        metric="mean_absolute_error",
        higher_is_better=False,
        baseline=measurement(accuracy=3.14159),
    )
    text = str(regression)
    assert "MAE" in text
    assert "3.142" in text
