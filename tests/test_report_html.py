"""The report as HTML and as a plot."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_samples import full_report

from optkit.measuring import Layer, Measurement
from optkit.report import Report, Row
from optkit.report.html import to_html
from optkit.report.plot import plot

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "br", "hr", "img", "link", "input", "base"}


def figures(
    accuracy: float | None = 0.9, latency: float | None = 8.0, size: int | None = 13_000_000
) -> Measurement:
    return Measurement(
        accuracy=accuracy,
        accuracy_ci=None if accuracy is None else (accuracy - 0.02, accuracy + 0.01),
        samples=1000,
        latency_ms=latency,
        latency_ci=None if latency is None else (0.9 * latency, 1.2 * latency),
        size_bytes=size,
        compressed_bytes=size,
        sparsity=0.5,
    )


def row(index: int, name: str, after: Measurement | None, **values: object) -> Row:
    known: dict[str, object] = {"family": "train", "config": {"epochs": 2}, "status": "ok"}
    return Row(index=index, name=name, after=after, **(known | values))  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    return Report(
        rows=(
            row(1, "Augment", None, family="recipe", status="recipe"),
            row(
                2,
                "Prune",
                figures(0.91, 7.9, 13_000_000),
                speedup=1.01,
                speedup_ci=(0.97, 1.05),
                accuracy_change=0.01,
                accuracy_change_ci=(0.002, 0.018),
                notes=("zeros are stored like other values",),
            ),
            row(3, "Broken", None, status="failed"),
            row(4, "QuantizeINT8", figures(0.89, 5.0, 3_000_000), config={"keep": ["a", "b"]}),
        ),
        baseline=figures(),
        environment={"versions": {"python": "3.11"}, "shape": [None, 8], "latency_threads": 1},
        notes=("the whole run has a note",),
    )


class Page(HTMLParser):
    """Reads HTML strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def everything_hostile() -> Report:
    """A report with markup wherever text can come from."""
    scored = dataclasses.replace(figures(), per_class={HOSTILE + "class": 0.5})
    return Report(
        rows=(
            row(
                1,
                HOSTILE + "row",
                scored,
                family=HOSTILE,
                status=HOSTILE + "status",
                config={HOSTILE + "key": HOSTILE + "value", "list": [HOSTILE, {HOSTILE: HOSTILE}]},
                notes=(HOSTILE + "row note",),
            ),
        ),
        baseline=scored,
        metric=HOSTILE + "metric",
        split=HOSTILE + "split",
        environment={HOSTILE + "name": {HOSTILE + "inner": [HOSTILE + "leaf"]}},
        notes=(HOSTILE + "note", "</style>", "-->", "{{ 7 * 7 }}"),
    )


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("fonttype", ["path", "none"])
def test_all_text_is_escaped(page: bool, fonttype: str) -> None:
    with matplotlib.rc_context({"svg.fonttype": fonttype}):
        html = to_html(everything_hostile(), page=page)
    read = Page(html)
    assert "script" not in read.tags
    text = "".join(read.text)
    places = ("row", "status", "key", "value", "class", "row note", "note", "split")
    for place in (*places, "name", "inner", "leaf"):
        assert HOSTILE + place in text, place
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("page", [True, False])
def test_nothing_is_fetched_and_nothing_runs(report: Report, page: bool) -> None:
    html = to_html(report, page=page)
    read = Page(html)
    loading = {"script", "link", "iframe", "img", "image", "object", "embed", "base", "video"}
    assert not loading & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "srcset", "data", "action", "formaction", "poster"), name
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), value
        if not name.startswith("xmlns"):
            assert "://" not in value, (name, value)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?(.)", html))
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    for prolog in ("<?xml", "<!DOCTYPE svg", "<metadata"):
        assert prolog not in html


def test_page_is_a_document_with_the_plot(report: Report) -> None:
    html = to_html(report, page=True)
    read = Page(html)
    names = [value for name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert html.startswith("<!doctype html>")
    assert [read.tags.count(tag) for tag in ("html", "head", "body", "title", "svg")] == [1] * 4 + [
        2
    ]
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    assert "#24292f" not in html[html.index("<svg") : html.index("</svg>")]


def test_a_large_model_with_many_classes_stays_a_small_page() -> None:
    def large(figures: Measurement) -> Measurement:
        kind = ("Conv2D", 50_000, 200_000, 0.5, "float32")
        layers = tuple(Layer(f"stage{i // 10}_block{i}_conv", *kind) for i in range(1000))
        classes = {f"class number {i}": (i % 100) / 100 for i in range(1000)}
        return dataclasses.replace(figures, layers=layers, per_class=classes)

    report = full_report()
    training = {"loss": [1 / i for i in range(1, 201)], "val_metric": [0.5] * 200}
    rows = tuple(
        dataclasses.replace(row, after=large(row.after or Measurement()), curves=(training,) * 2)
        for row in report.rows
    )
    report = dataclasses.replace(report, rows=rows, baseline=large(report.baseline))
    html = report.to_html()
    assert len(html) < 600_000
    assert "The first 400 of 1000." in html
    assert "The 20 of 1000 classes" in html


def test_the_layers_are_listed_as_they_are_stored() -> None:
    read = Page(full_report().to_html())
    rows = [cells for cells in read.rows if len(cells) == 7 and cells[1].isupper()]
    assert rows[1][:6] == ["net/scores/MatMul", "FULLY_CONNECTED", "120", "25.0 %", "int8", "140 B"]
    assert rows[2][:6] == ["Identity", "SOFTMAX", "–", "–", "–", "–"]
    text = "".join(read.text)
    assert "Layers, final (3, 265 B of weights)" in text
    assert "Layers, baseline (4, 1 MB of weights)" in text


def test_fragment_is_light_and_touches_only_itself(report: Report) -> None:
    html = report._repr_html_()
    read = Page(html)
    assert not {"html", "head", "body", "meta", "svg"} & set(read.tags)
    assert len(html) < 15_000
    style = re.sub(r"/\*.*?\*/", "", html[html.index("<style>") + 7 : html.index("</style>")])
    selectors = re.findall(r"([^{}]+)\{", style)
    assert selectors
    for selector in ",".join(selectors).split(","):
        assert selector.strip().startswith((".optkit-report", "@media")), selector


@pytest.mark.parametrize("page", [True, False])
def test_table_has_every_stage_with_its_figures(report: Report, page: bool) -> None:
    read = Page(to_html(report, page=page))
    table = {cells[1]: cells for cells in read.rows}
    assert list(table) == [
        "pass",
        "baseline",
        "Augment recipe",
        "Prune",
        "Broken failed",
        "QuantizeINT8",
    ]
    assert len({len(cells) for cells in table.values()}) == 1
    assert table["Prune"][:7] == [
        "2",
        "Prune",
        "91.00 % [89.00, 92.00]",
        "+1.0 [+0.2, +1.8]",
        "7.9 [7.11, 9.48]",
        "1.01 = [0.97, 1.05]",
        "13 MB",
    ]
    assert set(table["Augment recipe"][2:]) == {"–"}
    assert set(table["Broken failed"][2:]) == {"–"}
    text = "".join(read.text)
    assert "4.33 times smaller" in text
    for figure in ("90.00 % → 89.00 % on test (n = 1000)", "13 MB → 3 MB (23%)"):
        assert figure in text
    for note in ("2 Prune: zeros are stored like other values", "the whole run has a note"):
        assert note in text
    for setting in ("epochs", "a, b", "versions", "3.11", "None, 8"):
        assert setting in text


def test_classes_only_where_there_are_figures_by_class(report: Report) -> None:
    assert "By class" not in to_html(report, page=False)

    first = dataclasses.replace(report.baseline, per_class={"cat": 0.8, "dog": 0.9})
    last = dataclasses.replace(report.final, per_class={"cat": 0.85, "owl": 1.0})
    rows = (*report.rows[:-1], dataclasses.replace(report.rows[-1], after=last))
    changed = dataclasses.replace(report, baseline=first, rows=rows)
    assert Page(to_html(changed, page=False)).rows[-3:] == [
        ["cat", "80.00 %", "85.00 %", "+5.0"],
        ["dog", "90.00 %", "–", "–"],
        ["owl", "–", "100.00 %", "–"],
    ]


def test_of_many_classes_those_that_got_worse_are_shown(report: Report) -> None:
    first = dataclasses.replace(report.baseline, per_class={f"c{i}": 0.9 for i in range(50)})
    last = dataclasses.replace(
        report.final, per_class={f"c{i}": 0.9 - i / 100 for i in range(50)} | {"new": 0.1}
    )
    rows = (*report.rows[:-1], dataclasses.replace(report.rows[-1], after=last))
    html = to_html(dataclasses.replace(report, baseline=first, rows=rows), page=False)
    shown = [cells[0] for cells in Page(html).rows if len(cells) == 4][1:]
    assert shown == [f"c{i}" for i in range(49, 29, -1)]
    assert "The 20 of 51 classes that changed most for the worse." in html


@pytest.mark.parametrize("page", [True, False])
def test_figures_that_were_not_measured(page: bool) -> None:
    empty = Report(rows=(row(1, "Prune", Measurement(), config={}),), baseline=Measurement())
    read = Page(to_html(empty, page=page))
    assert set(read.rows[1][2:]) == set(read.rows[2][2:]) == {"–"}
    text = "".join(read.text)
    assert "Nothing was measured." in text
    assert "None" not in text

    without_rows = Report(rows=(), baseline=figures(), split=None)
    assert "Settings" not in "".join(Page(to_html(without_rows, page=page)).text)


def test_plot_has_a_labelled_point_a_stage(report: Report) -> None:
    by_size, by_latency = plot(report)
    for axes in (by_size, by_latency):
        assert [text.get_text() for text in axes.texts] == ["baseline", "Prune", "QuantizeINT8"]
        assert len(axes.containers) == 3
        path = axes.lines[0]
        assert list(path.get_ydata()) == pytest.approx([90, 91, 89])
        assert axes.get_ylabel() == "accuracy on test (%)"
        markers = [bar.lines[0] for bar in axes.containers]
        assert markers[0].get_marker() != markers[1].get_marker() == markers[2].get_marker()
        assert not same_color(markers[0].get_color(), markers[1].get_color())
    assert list(by_size.lines[0].get_xdata()) == [13, 13, 3]
    assert by_size.get_xlabel() == "file size (MB)"
    assert list(by_latency.lines[0].get_xdata()) == [8, 7.9, 5]
    assert by_latency.get_xlabel().endswith("(ms)")


def test_plot_error_bars_are_the_intervals(report: Report) -> None:
    by_size, by_latency = plot(report)
    sizes, latencies = by_size.containers[2], by_latency.containers[2]
    assert (sizes.has_xerr, sizes.has_yerr) == (False, True)
    horizontal, vertical = (bars.get_segments()[0] for bars in latencies.lines[2])
    assert horizontal[:, 0] == pytest.approx([4.5, 6.0])
    assert vertical[:, 1] == pytest.approx([87, 90])


@pytest.mark.parametrize(("size", "scale"), [(3_300_000, "linear"), (3_200_000, "log")])
def test_plot_axis_is_logarithmic_over_a_wide_range(size: int, scale: str) -> None:
    rows = (row(1, "Small", figures(0.9, 8.0 * size / 13_000_000, size)),)
    for axes in plot(Report(rows=rows, baseline=figures())):
        assert axes.get_xscale() == scale
        low, high = axes.get_xlim()
        axes.figure.draw_without_rendering()
        ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(ticks) >= 2
        assert all(re.fullmatch(r"[\d.]+", tick.label1.get_text()) for tick in ticks)


def test_plot_of_small_files_is_in_kilobytes() -> None:
    axes = plot(Report(rows=(), baseline=figures(size=94_500)))[0]
    assert axes.get_xlabel() == "file size (kB)"
    assert list(axes.lines[0].get_xdata()) == [94.5]


def test_plot_says_what_was_not_measured() -> None:
    by_size, by_latency = plot(Report(rows=(), baseline=figures(latency=None)))
    assert [text.get_text() for text in by_size.texts] == ["baseline"]
    assert [text.get_text() for text in by_latency.texts] == ["not measured"]

    without = Report(rows=(row(1, "Prune", figures(None)),), baseline=figures(None))
    for axes in plot(without):
        assert [text.get_text() for text in axes.texts] == ["not measured"]
        assert len(axes.lines) == 0


def test_plot_does_not_mistake_a_stage_for_the_baseline() -> None:
    rows = (row(1, "Prune", figures()),)
    first = plot(Report(rows=rows, baseline=figures()))[0].containers[1].lines[0]
    only = plot(Report(rows=rows, baseline=figures(None)))[0].containers[0].lines[0]
    assert only.get_marker() == first.get_marker()


def test_plot_of_a_metric_that_is_no_share() -> None:
    baseline = Measurement(accuracy=2.5, size_bytes=10_000)
    report = Report(rows=(), baseline=baseline, metric="mean_absolute_error", split="validation")
    axes = plot(dataclasses.replace(report, higher_is_better=False))[0]
    assert axes.get_ylabel() == "mean_absolute_error on validation, lower is better"
    assert list(axes.lines[0].get_ydata()) == [2.5]


def test_plot_takes_names_literally() -> None:
    names = ["$x^2$", r"$\frac{", "100 %_a&b", "two\nlines", "n" * 80]
    rows = tuple(row(i + 1, name, figures(0.8 + i / 50)) for i, name in enumerate(names))
    report = Report(rows=rows, baseline=figures(), metric="$m_1$")
    axes = plot(report)[0]
    shown = [text.get_text() for text in axes.texts[1:]]
    assert shown[:4] == ["$x^2$", r"$\frac{", "100 %_a&b", "two lines"]
    assert len(shown[4]) < 40
    assert not any(text.get_parse_math() for text in [*axes.texts, axes.yaxis.label])
    # Broken mathtext would raise when drawn.
    assert "$x^2$" in to_html(report, page=True).split("<svg")[1]


def test_plot_labels_stay_inside_and_apart() -> None:
    rows = tuple(
        row(i, f"Stage-{i}", dataclasses.replace(figures(0.9 + i / 500, 8 - i / 10)))
        for i in range(1, 6)
    )
    figure = plot(Report(rows=rows, baseline=figures()))[0].figure
    figure.draw_without_rendering()
    for axes in figure.axes:
        inside = axes.get_window_extent()
        # The extent of the text alone: that of an annotation includes the line to its point.
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) == 6
        for i, box in enumerate(boxes):
            assert inside.x0 - 1 <= box.x0
            assert box.x1 <= inside.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_plot_changes_no_setting_and_needs_no_pyplot(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    # A copy, because reading the backend from the settings themselves would choose one.
    before = matplotlib.rcParams.copy()
    axes = plot(report)[0]
    to_html(report, page=True)
    assert isinstance(axes.figure, Figure)
    assert matplotlib.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_plot_is_not_at_the_mercy_of_the_users_style(report: Report) -> None:
    with matplotlib.rc_context({"axes.facecolor": "black", "axes.grid": True}):
        panels = plot(report)
    assert all(same_color(axes.get_facecolor(), "white") for axes in panels)


def test_plot_is_saved_by_suffix(report: Report, tmp_path: Path) -> None:
    report.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
