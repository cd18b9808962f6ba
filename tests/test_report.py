"""Reports: text that fits, JSON that comes back, frames, Markdown."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from report_samples import full_report, hostile_report, minimal_report

import optkit as ok
from optkit.goals import Goal
from optkit.measuring import Measurement
from optkit.report.text import goal_text, in_words


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


@pytest.mark.parametrize("make", [full_report, minimal_report, hostile_report])
def test_everything_comes_back_from_json(make, tmp_path):
    path = tmp_path / "report.json"
    make().to_json(path)
    assert ok.Report.from_json(path) == make()


def test_a_report_of_the_time_before_goals_and_curves_is_read(report, tmp_path):
    values = json.loads(full_report().to_json())
    for name in ("goals", "runtime_baseline"):
        del values[name]
    for row in values["rows"]:
        del row["curves"]
        for side in ("before", "after"):
            for name in ("class_samples", "latency_p99_ms", "throughput", "layers"):
                if row[side] is not None:
                    del row[side][name]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(values), "utf-8")
    old = ok.Report.from_json(path)
    assert old.goals == ()
    assert old.met
    assert old.runtime_baseline is None
    assert old.rows[1].curves == ()
    assert old.final.layers is None
    assert old.final.accuracy == full_report().final.accuracy
    for shown in (str(old), old.to_html(), old.to_markdown(), old._repr_html_()):
        assert "Traceback" not in shown


def test_losses_that_are_not_finite_are_null_in_json(report, tmp_path):
    diverged = ({"loss": [1.0, math.inf, math.nan]},)
    rows = (dataclasses.replace(report.rows[1], curves=diverged),)
    path = tmp_path / "report.json"
    text = dataclasses.replace(report, rows=rows).to_json(path)
    assert json.loads(text)["rows"][0]["curves"] == [{"loss": [1.0, None, None]}]
    read = ok.Report.from_json(path).rows[0].curves[0]["loss"]
    assert read[0] == 1
    assert math.isnan(read[1])
    # What is read back can be shown.
    ok.Report.from_json(path).to_html()


def test_what_was_undone_is_marked_and_is_not_the_result():
    report = full_report()
    text, markdown, html = str(report), report.to_markdown(), report._repr_html_()
    for shown in (text, markdown):
        for part in ("Prune (rolled back)", "DistillTo (skipped)", "Cancelled (cancelled)"):
            assert part in shown, part
    assert '<span class="mark">rolled back</span>' in html
    assert report.final_row.name == "QuantizeINT8"
    lines = text.splitlines()
    assert "baseline" in lines[2]
    assert "as tflite float32" in lines[3]
    assert "3 Prune (rolled back): accuracy on validation fell" in text


def test_a_mark_that_does_not_fit_stands_below_the_name(report):
    rows = [dataclasses.replace(report.rows[2], name="QuantizeDynamically", status="rolled back")]
    rows.append(dataclasses.replace(report.rows[2], seconds=12345.0))
    lines = str(dataclasses.replace(report, rows=tuple(rows))).splitlines()
    at = next(i for i, line in enumerate(lines) if "QuantizeDyn" in line)
    assert lines[at + 1].strip() == "(rolled back)"
    assert max(map(len, lines)) <= 100


def test_the_gain_is_that_of_what_was_kept_last(report):
    undone = dataclasses.replace(report.rows[2], status="rolled back")
    kept = dataclasses.replace(report, rows=(*report.rows[:2], undone))
    assert "faster" not in str(kept).partition("accuracy 97.75 % →")[2].split("- ")[0]
    assert "22.7 times faster, interval [20.10, 24.90]" in str(report)
    assert "no measurable change, interval [-0.5, +2.0] points" in str(report)


def test_where_nothing_was_kept_the_words_say_so(report):
    rows = tuple(dataclasses.replace(row, status="rolled back") for row in report.rows[1:])
    undone = dataclasses.replace(report, rows=(report.rows[0], *rows))
    assert in_words(undone) == "No pass was kept: the result is the model that came in"
    assert undone.final is undone.baseline
    assert in_words(report) == (
        "4.00 times smaller, 22.7 times faster; accuracy: no measurable change"
    )
    larger = dataclasses.replace(report, baseline=measurement(size_bytes=66_500))
    assert in_words(larger).startswith("2.00 times larger, ")


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (
            Goal("max_accuracy_drop", 0.015, 0.0028),
            "accuracy drop at most 1.5 points: 0.28 points, met with 1.22 to spare",
        ),
        (
            Goal("max_accuracy_drop", 0.015, 0.021, (0.01, 0.03)),
            "accuracy drop at most 1.5 points: 2.10 points [1.00, 3.00], missed by 0.6",
        ),
        (
            Goal("max_accuracy_drop", 0.01, -0.0194, (-0.03, 0.002)),
            "accuracy drop at most 1 point: a gain of 1.94 points [-0.20, 3.00], met with 2.94 to spare",
        ),
        (
            Goal("min_accuracy", 0.9, 0.95, None, "", True),
            "accuracy at least 90 %: 95.00 %, met with 5 to spare",
        ),
        (
            Goal("max_size_mb", 15.0, 3.5, None, "MB"),
            "size at most 15 MB: 3.5 MB, met with 11.5 to spare",
        ),
        (
            Goal("max_latency_ms", 1.0, None, None, "ms"),
            "latency at most 1 ms: not measured, not met",
        ),
        (
            Goal("min_class_accuracy", 0.8, 0.55, None, "", True),
            "accuracy in every class at least 80 %: 55.00 %, missed by 25",
        ),
        (
            Goal("min_throughput", 100.0, 812.3, None, "requests/s", True),
            "throughput at least 100 requests/s: 812 requests/s, met with 712 to spare",
        ),
    ],
)
def test_goals_are_said_in_words(report, goal, words):
    assert str(goal_text(report, goal)) == words
    shown = dataclasses.replace(report, goals=(goal,))
    assert ("MISSED" in str(shown)) is not goal.met
    assert f"{int(goal.met)} of 1 met" in str(shown)
    assert ("**" in shown.to_markdown()) is not goal.met


def test_goals_of_an_error_are_no_points(report):
    regression = dataclasses.replace(report, metric="mean_absolute_error", higher_is_better=False)
    words = str(goal_text(regression, Goal("max_accuracy_drop", 0.5, 0.25)))
    assert words == "mean_absolute_error growth at most 0.5: 0.25, met with 0.25 to spare"
    words = str(goal_text(regression, Goal("max_accuracy_drop", 0.5, -0.25)))
    assert words == "mean_absolute_error growth at most 0.5: 0.25 less, met with 0.75 to spare"


def test_footnotes_say_memory_throughput_and_on_what_it_was_measured():
    text = " ".join(str(full_report()).split())
    assert "peak memory: 93 MB → 90.8 MB, of which the runtime alone takes 80 MB" in text
    assert "throughput of 4 callers, 1 sample a request: 600 → 2400 requests/s" in text
    assert "on 2 threads of a simulated device (1 core, 512 MB of memory)" in text
    calls = full_report()
    calls.environment["measure"] = {"batch_size": 8, "device": None}
    text = " ".join(str(calls).split())
    assert "median of calls of 8 samples on 2 threads; " in text
    assert calls.plot()[1].get_xlabel() == "median latency of 8 samples (ms)"


def test_a_class_that_lost_is_named_where_the_mean_hides_it(report):
    def with_classes(after, samples, change_ci):
        first = measurement(per_class={"cat": 0.9, "dog": 0.95}, class_samples={"cat": samples})
        last = dataclasses.replace(report.rows[2].after, per_class=after)
        last = dataclasses.replace(last, class_samples={"cat": samples, "dog": samples})
        row = dataclasses.replace(report.rows[2], after=last, accuracy_change_ci=change_ci)
        return str(dataclasses.replace(report, baseline=first, rows=(row,)))

    unclear = (-0.01, 0.01)
    lost = "by class: cat -30.0 points (n = 100) lost more than noise"
    assert lost in with_classes({"cat": 0.6, "dog": 0.97}, 100, unclear)
    assert "by class" not in with_classes({"cat": 0.6, "dog": 0.97}, 4, unclear)
    assert "by class" not in with_classes({"cat": 0.89, "dog": 0.97}, 100, unclear)
    assert "by class" not in with_classes({"cat": 0.6, "dog": 0.97}, 100, (-0.05, -0.01))


def test_the_frame_has_one_plain_figure_a_column():
    report = full_report()
    frame = report.to_frame()
    assert frame.index.tolist() == [0, -1, 1, 2, 3, 4, 5, 6]
    assert frame.index.is_unique
    assert frame.loc[-1, "name"] == "as tflite float32"
    assert frame.loc[5, "latency_p99_ms"] == report.final.latency_p99_ms
    assert frame.loc[5, "peak_memory_bytes"] == report.final.peak_memory_bytes
    assert frame.loc[5, "runtime_memory_bytes"] == 80_000_000
    assert frame.loc[5, "throughput_requests_per_second"] == 2400
    assert frame.loc[3, "status"] == "rolled back"
    texts = {"name", "status", "family"}
    assert all(kind == "float64" for name, kind in frame.dtypes.items() if name not in texts)
    assert list(minimal_report().to_frame().columns) == list(frame.columns)


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


def test_markdown_takes_no_name_for_html_or_a_link(report):
    study = ok.Study(
        "of <b>them</b>", ("class", "n"), (("<img src=x>", 1),), notes=("[a](http://b)",)
    )
    row = dataclasses.replace(report.rows[0], name="<s>", studies=(study,), notes=("<i>",))
    shown = dataclasses.replace(report, rows=(row,), notes=("<u>",)).to_markdown()
    assert "<" not in shown
    assert "&lt;img src=x>" in shown
    assert "](" not in shown


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
