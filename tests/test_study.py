"""Studies: tables and charts that passes show, in every form of the report."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_samples import NAMES, full_report

import optkit as ok
from optkit.testing import small_model


def scan(count=3, **changes):
    rows = [(f"layer{i}", 1 / (i + 1), 0.9 - i / 100, i in (1, count - 1)) for i in range(count)]
    values = {
        "title": "Layers one at a time",
        "columns": ("layer", "error", "accuracy", "in float"),
        "rows": rows,
        "notes": ("on 200 samples",),
        "chart": ok.Chart("bar", x="layer", y=("error",), mark="in float"),
    }
    return ok.Study(**(values | changes))


def with_studies(*studies):
    report = full_report()
    rows = list(report.rows)
    rows[4] = dataclasses.replace(rows[4], studies=studies)
    return dataclasses.replace(report, rows=tuple(rows))


def hostile():
    return ok.Study(
        NAMES[0],
        NAMES,
        [NAMES, [None] * len(NAMES), list(range(len(NAMES)))],
        notes=NAMES,
        chart=ok.Chart("bar", x=NAMES[0], y=NAMES[1:3], mark=NAMES[3]),
    )


# ------------------------------------------------------------------------------------ the value


def test_it_comes_back_from_json():
    for study in (scan(), scan(chart=None), hostile(), ok.Study("empty", ("a",), ())):
        assert ok.Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


def test_numbers_of_numpy_become_plain():
    study = ok.Study("a", ("x", "y", "z"), [[np.float32(0.5), np.int64(3), np.bool_(True)]])
    assert study.rows == ((0.5, 3, True),)
    assert [type(value) for value in study.rows[0]] == [float, int, bool]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": ""}, "empty"),
        ({"columns": ()}, "at least one"),
        ({"columns": ("a", "a", "b", "c")}, "differ"),
        ({"columns": "name"}, "list of strings"),
        ({"rows": [("a", 1.0)]}, r"rows\[0\].*4 values"),
        ({"rows": "abcd"}, "list of rows"),
        ({"rows": [("a", 1.0, [2], True)]}, "strings, numbers"),
        ({"rows": [("a", 1.0, np.zeros(2), True)]}, "strings, numbers"),
        ({"chart": "bar"}, "Chart or None"),
        ({"chart": ok.Chart("bar", "layer", ("size",))}, r"names columns \['size'\]"),
        ({"chart": ok.Chart("bar", "layer", ("error",), mark="kept")}, r"\['kept'\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ok.PipelineError, match=message):
        scan(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pie", "a", ("b",)), "'bar', 'line'"),
        (("bar", "a", ()), "at least one"),
        (("bar", "a", "b"), "list of strings"),
        (("bar", "", ("b",)), "empty"),
    ],
)
def test_a_chart_that_is_none_is_refused(arguments, message):
    with pytest.raises(ok.PipelineError, match=message):
        ok.Chart(*arguments)


def test_the_frame_is_the_table():
    frame = scan().to_frame()
    assert list(frame.columns) == ["layer", "error", "accuracy", "in float"]
    assert frame["error"].tolist() == [1, 1 / 2, 1 / 3]
    assert frame["in float"].tolist() == [False, True, True]


# -------------------------------------------------------------------------------------- as text


def test_the_text_is_the_whole_table():
    lines = str(scan()).splitlines()
    assert lines[0] == "Layers one at a time"
    assert lines[1].split() == ["layer", "error", "accuracy", "in", "float"]
    assert lines[4].split() == ["layer1", "0.5", "0.89", "yes"]
    assert lines[-1] == "- on 200 samples"
    # Figures stand below each other, by their right ends.
    assert lines[3].index("1") + 1 == lines[4].index("0.5") + 3
    assert len({len(line) for line in (lines[3], lines[4])}) <= 2


def test_a_short_form_keeps_the_rows_that_are_set_off_and_the_order():
    study = scan(20)
    rows, more = study.telling(4)
    assert [row[0] for row in rows] == ["layer0", "layer1", "layer2", "layer19"]
    assert more == 16
    assert study.lines(4)[-2] == "… 16 more"
    assert study.telling(None) == (list(study.rows), 0)
    assert [row[0] for row in scan(20, chart=None).telling(2)[0]] == ["layer0", "layer1"]


def test_reasons_that_do_not_fit_stand_below_their_rows():
    rows = [
        ("Prune(" + "layers, " * 20 + ")", *range(1000, 1012), "too " + "large " * 40),
        ("Prune(0.5)", *range(1000, 1012), None),
    ]
    study = ok.Study("Trials", ("pass", *(f"c{i}" for i in range(12)), "why"), rows)
    lines = study.lines()
    assert max(map(len, lines)) <= 100
    assert "why" not in lines[1]
    assert lines[3].startswith("Prune(layer")
    assert lines[3].endswith("1010  1011")
    assert lines[4].startswith("    why: too large large")
    assert " ".join(lines[4:-1]).count("large") == 40
    assert lines[-1].startswith("Prune(0.5)")
    # Where nobody has a reason, names get its room.
    names = ok.Study("Trials", study.columns, [(*row[:-1], None) for row in rows]).lines()
    assert "why" not in names[1]
    assert [line[:12] for line in names[3:]] == [lines[3][:12], lines[-1][:12]]
    narrow = ok.Study("Trials", ("pass", "why"), [("a", "too large")]).lines()
    assert narrow[1].split() == ["pass", "why"]


def test_names_that_are_cut_can_be_told_apart():
    names = [f"QuantizeAware(epochs=3, learning_rate=0.001, weight_bits={bits})" for bits in (4, 8)]
    rows = [(name, 1) for name in (*names, "QuantizeINT8()")]
    lines = ok.Study("Trials", ("pass", "rank"), rows).lines()[3:]
    assert lines[0].split("…")[0] == lines[2].split("…")[0]
    assert [lines[1].strip(), lines[3].strip()] == names
    assert lines[4].split() == ["QuantizeINT8()", "1"]
    # A name that stands there twice, or is alone in being long, needs nothing more.
    for alone in ([names[0]] * 2, [names[0], "QuantizeINT8()"]):
        assert len(ok.Study("Trials", ("pass",), [(name,) for name in alone]).lines()) == 5


def test_hostile_names_stay_within_the_width():
    for line in str(with_studies(hostile(), scan(50))).splitlines():
        assert len(line) <= 100
        assert "\u202e" not in line


def test_the_report_shows_the_telling_rows_and_says_how_many_more():
    text = str(with_studies(scan(30), scan(2, title="Two alone")))
    assert "5 QuantizeINT8: Layers one at a time" in text
    assert "layer29" in text
    assert "layer20" not in text
    assert "… 24 more in report.rows[4].studies[0]" in text.splitlines()
    assert "5 QuantizeINT8: Two alone" in text
    assert text.count("- on 200 samples") == 1  # both tables are read in the same way


def test_markdown_has_a_table_of_each():
    text = with_studies(scan(30, title="a|b")).to_markdown()
    assert r"**5 QuantizeINT8: a|b**, 10 more rows not shown" in text
    lines = [line for line in text.splitlines() if line.startswith("| layer")]
    assert len(lines) == 21
    assert {line.count("|") for line in lines} == {5}


# ---------------------------------------------------------------------------------- JSON and HTML


def test_the_report_brings_them_back(tmp_path):
    report = with_studies(scan(), hostile())
    path = tmp_path / "report.json"
    report.to_json(path)
    again = ok.Report.from_json(path)
    assert again == report
    assert again.rows[4].studies == (scan(), hostile())
    assert "studies" not in full_report().rows[4].to_dict()


def test_what_is_not_finite_is_not_known_once_it_was_json(tmp_path):
    report = with_studies(ok.Study("a", ("x",), [(math.nan,), (math.inf,), (1.0,)]))
    path = tmp_path / "report.json"
    report.to_json(path)
    assert ok.Report.from_json(path).rows[4].studies[0].rows == ((None,), (None,), (1.0,))


def test_the_page_folds_long_tables_and_draws_charts():
    page = with_studies(scan(3), scan(40, title="Many")).to_html()
    assert re.search(
        r"<details open>\s*<summary>5 QuantizeINT8: Layers one at a time \(3 rows", page
    )
    assert re.search(r"<details>\s*<summary>5 QuantizeINT8: Many \(40 rows\)", page)
    assert page.count('aria-label="Chart of') == 2
    assert page.count('<tr class="marked">') == 4
    fragment = with_studies(scan(3))._repr_html_()
    assert "Layers one at a time" in fragment
    assert "<svg" not in fragment


def test_names_cannot_break_out_of_the_page():
    report = with_studies(hostile())
    for text in (report.to_html(), report._repr_html_(), hostile()._repr_html_()):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;" in text


def test_a_notebook_shows_table_and_chart():
    shown = scan()._repr_html_()
    assert shown.count("<tr>") == 4
    assert "<svg" in shown
    assert "<svg" not in scan(chart=None)._repr_html_()


# -------------------------------------------------------------------------------------- pictures


def test_bars_are_the_figures_and_the_marked_are_set_off():
    before = matplotlib.rcParams.copy()
    axes = scan().plot()
    assert isinstance(axes.figure, Figure)
    assert matplotlib.rcParams.copy() == before
    plain, marked = axes.containers
    assert [bar.get_width() for bar in plain] == [1.0]
    assert [bar.get_width() for bar in marked] == pytest.approx([1 / 2, 1 / 3])
    assert plain[0].get_facecolor() != marked[0].get_facecolor()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer0", "layer1", "layer2"]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["error", "in float"]


def test_of_many_bars_the_telling_ones_are_drawn():
    axes = scan(60).plot()
    assert len(axes.get_yticklabels()) == 40
    assert "20 rows not shown" in axes.get_title()
    assert "layer59" in [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("kind", ["line", "scatter"])
def test_points_stand_where_their_figures_say(kind):
    rows = [(10, 0.5, False), (50, None, False), (200, 0.9, True)]
    study = ok.Study(
        "Samples",
        ("samples", "accuracy", "chosen"),
        rows,
        chart=ok.Chart(kind, "samples", ("accuracy",), mark="chosen"),
    )
    axes = study.plot()
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [(list(p.get_xdata()), list(p.get_ydata())) for p in points] == [
        ([10], [0.5]),
        ([200], [0.9]),
    ]
    joined = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert len(joined) == (kind == "line")
    if joined:
        assert list(joined[0].get_xdata()) == [10, 50, 200]
        assert math.isnan(joined[0].get_ydata()[1])
    assert axes.get_xlabel() == "samples"


def test_rows_without_a_place_along_the_axis_are_left_out():
    rows = [(10, 0.5), (None, 0.7), (30, None)]
    study = ok.Study(
        "a", ("size", "accuracy"), rows, chart=ok.Chart("scatter", "size", ("accuracy",))
    )
    (points,) = study.plot().lines
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([10], [0.5])


def test_names_along_the_axis_and_two_series():
    chart = ok.Chart("line", "layer", ("error", "accuracy"))
    axes = scan(chart=chart).plot()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer0", "layer1", "layer2"]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["error", "accuracy"]


def test_a_logarithmic_scale_leaves_out_what_is_not_above_zero():
    rows = [("a", 0.0), ("b", 1e-3), ("c", -1.0), ("d", math.inf)]
    study = ok.Study("a", ("x", "y"), rows, chart=ok.Chart("bar", "x", ("y",), log=True))
    axes = study.plot()
    assert axes.get_xscale() == "log"
    assert [bar.get_width() for bar in axes.patches] == [1e-3]
    ticks = ok.Study("a", ("x", "y"), [(0, 1.0)], chart=ok.Chart("line", "x", ("y",), log=True))
    assert ticks.plot().lines[0].get_xdata()[0] == 0


def test_nothing_to_draw_is_said(tmp_path):
    empty = ok.Study("a", ("x", "y"), [("b", None)], chart=ok.Chart("bar", "x", ("y",)))
    axes = empty.plot(tmp_path / "plot.png")
    assert [text.get_text() for text in axes.texts] == ["not measured"]
    assert (tmp_path / "plot.png").stat().st_size > 2000
    with pytest.raises(ok.PipelineError, match="has no chart"):
        scan(chart=None).plot()


def test_hostile_names_are_drawn(tmp_path):
    hostile().plot(tmp_path / "plot.png")
    axes = with_studies(hostile(), scan()).plot(tmp_path / "all.png", kind="studies")
    assert axes.shape == (2,)
    assert all(isinstance(panel, Axes) for panel in axes)
    assert axes[1].get_title() == "5 QuantizeINT8: Layers one at a time"


# ------------------------------------------------------------------------------------- in a run


class Shows(ok.RewritePass):
    """Shows a study."""

    def rewrite(self, model, context):
        context.show(scan())
        return model


@pytest.mark.usefixtures("untimed")
def test_a_stage_that_is_reused_shows_its_studies_again(data, tmp_path):
    model, kinds = small_model(), []

    def run():
        kinds.clear()
        return ok.Pipeline([Shows()]).run(
            model, data, workdir=tmp_path, progress=lambda event: kinds.append(event.kind)
        )

    first = run().report
    assert "reused" not in kinds
    assert first.rows[0].studies == (scan(),)
    again = run().report
    assert "reused" in kinds
    assert again.rows[0].studies == (scan(),)
    assert ok.Run(tmp_path).report.rows[0].studies == (scan(),)


@pytest.mark.usefixtures("untimed")
def test_what_was_shown_before_a_failure_is_in_the_report(data):
    class Fails(Shows):
        def rewrite(self, model, context):
            super().rewrite(model, context)
            raise ValueError("no")

    with pytest.raises(ok.PassError) as caught:
        ok.Pipeline([Fails()]).run(small_model(), data, progress=False)
    assert caught.value.report.rows[0].studies == (scan(),)
