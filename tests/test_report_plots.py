"""The kinds of plots beside the one of what was paid for what."""

from __future__ import annotations

import dataclasses
import sys
import types

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_samples import full_report, hostile_report, minimal_report

import optkit as ok
from optkit.measuring import Layer, Measurement
from optkit.report.pictures import layer_pairs, worst_first
from optkit.report.plot import KINDS

PANELS = {"pareto": (2,), "bars": (3,), "curves": (2, 3), "studies": (1,)}
NOTHING = {"curves": "no training", "studies": "no study"}


def bare_report():
    return ok.Report(rows=(), baseline=Measurement())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [full_report, minimal_report, hostile_report, bare_report])
def test_every_kind_is_drawn_whatever_was_measured(make, kind, tmp_path):
    before = matplotlib.rcParams.copy()
    axes = make().plot(tmp_path / "plot.png", kind=kind)
    assert (tmp_path / "plot.png").stat().st_size > 2000
    if kind in PANELS:
        assert isinstance(axes, np.ndarray)
        assert make is not full_report or axes.shape == PANELS[kind]
    else:
        assert isinstance(axes, Axes)
    some = axes.flat[0] if kind in PANELS else axes
    assert isinstance(some.figure, Figure)
    assert matplotlib.rcParams.copy() == before
    if make in (minimal_report, bare_report):
        texts = [text.get_text() for text in some.texts]
        assert texts == [NOTHING.get(kind, "not measured")]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ok.PipelineError, match=r"'pareto', 'bars'.*Received: 'pie'"):
        full_report().plot(kind="pie")


def test_bars_are_the_figures_of_all_stages():
    report = full_report()
    accuracy, size, latency = report.plot(kind="bars")
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == [
        "baseline",
        "as tflite float32",
        "FineTune",
        "Prune (rolled back)",
        "QuantizeINT8",
    ]
    assert [bar.get_width() for bar in size.patches] == pytest.approx([1, 0.9, 1, 1, 0.25])
    assert [bar.get_x() for bar in size.patches] == [0] * 5
    assert [bar.get_width() for bar in latency.patches] == [5.0, 2.5, 5.02, 5.0, 1.25]
    points = [bars.lines[0].get_xdata()[0] for bars in accuracy.containers]
    assert points == pytest.approx([96.0, 96.0, 96.5, 71.0, 95.6])


def test_classes_start_with_the_worst():
    report = full_report()
    axes = report.plot(kind="classes")
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "class 3  (n = 83)"
    before, after = axes.lines[-2:]
    assert list(after.get_xdata()) == pytest.approx(
        sorted(100 * value for value in report.final.per_class.values())
    )
    assert before.get_xdata()[0] == pytest.approx(93)
    low, high = axes.get_ylim()
    assert low > high  # the first one on top


def test_of_many_classes_both_the_lowest_and_the_greatest_losses_are_shown():
    first = Measurement(per_class={f"c{i}": i / 100 for i in range(100)})
    last = Measurement(per_class={f"c{i}": i / 100 - (0.3 if i == 90 else 0) for i in range(100)})
    row = dataclasses.replace(full_report().rows[4], after=last)
    report = ok.Report((row,), first)
    names = [item.name for item in worst_first(report)]
    assert len(names) == 25
    assert {"c0", "c1", "c90"} <= set(names)
    assert "25 of 100 classes" in report.plot(kind="classes").get_title()


def test_fused_operators_are_compared_with_the_layers_that_went_into_them():
    report = full_report()
    pairs = layer_pairs(report)
    assert [pair.name for pair in pairs] == ["conv", "scores"]
    assert [pair.before for pair in pairs] == [500_000 + 256, 499_744]
    axes = report.plot(kind="layers")
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == pytest.approx([500.256, 499.744])
    assert [bar.get_width() for bar in after] == pytest.approx([0.125, 0.14])
    assert [text.get_text() for text in axes.texts] == ["50 % zeros", "25 % zeros"]


def test_layers_of_the_same_names_and_new_ones():
    first = Measurement(layers=(Layer("a", "Dense", 1, 4, 0.0, "float32"),))
    last = Measurement(
        layers=(
            Layer("b", "Dense", 2, 8, 0.0, "float32"),
            Layer("relu", "ReLU", 0, 0, None, None),
        )
    )
    row = dataclasses.replace(full_report().rows[4], after=last)
    pairs = layer_pairs(ok.Report((row,), first))
    assert [(pair.name, pair.before, pair.after is not None) for pair in pairs] == [
        ("b", None, True),
        ("a", 4, False),
    ]


def test_curves_are_those_of_each_training():
    report = full_report()
    panels = report.plot(kind="curves")
    assert [axes.get_title() for axes in panels[0]] == [
        "2 FineTune",
        "3 Prune, training 1",
        "3 Prune, training 2",
    ]
    loss, validation = panels[0, 0].lines
    assert list(loss.get_ydata()) == [0.9, 0.5, 0.3]
    assert list(loss.get_xdata()) == [1, 2, 3]
    assert list(validation.get_ydata()) == [1.0, 0.6, 0.45]
    assert list(panels[1, 0].lines[0].get_ydata()) == [0.8, 0.9, 0.95]
    assert [text.get_text() for text in panels[1, 1].texts] == ["not measured"]


def test_a_notebook_shows_the_plot_and_a_saved_one_is_left_alone(monkeypatch, tmp_path):
    from matplotlib import pyplot

    shell = types.SimpleNamespace(kernel=object())
    notebook = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setattr(pyplot, "figure", lambda **options: Figure(**options, label="shown"))
    assert full_report().plot(kind="classes").figure.get_label() == "shown"
    assert full_report().plot(tmp_path / "a.png", kind="classes").figure.get_label() == ""
    shell.kernel = None  # the shell of a terminal
    assert full_report().plot(kind="classes").figure.get_label() == ""


def test_curves_mark_what_was_kept_and_where_a_killed_training_went_on():
    figures = {"loss": [0.9, 0.5, 0.3, 0.2], "val_loss": [1.0, 0.6, 0.7, 0.8]}
    facts = {"epochs": 4, "kept": 2, "stopped_early": True, "resumed": [1, 3]}
    plain = {"epochs": 4, "kept": 4, "stopped_early": False, "resumed": []}
    row = dataclasses.replace(
        full_report().rows[1], curves=(figures, figures), trainings=(facts, plain)
    )
    report = ok.Report((row,), Measurement())
    panels = report.plot(kind="curves")
    assert panels[0, 0].get_title().splitlines()[1:] == [
        "kept epoch 2 of 4, stopped early",
        "went on behind epoch 1, 3",
    ]
    rings = [line for line in panels[0, 0].lines if line.get_markerfacecolor() == "none"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(2, 0.5), (2, 0.6)]
    dotted = [line for line in panels[0, 0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [1.5, 3.5]
    assert len(panels[0, 1].lines) == 2
    assert panels[0, 1].get_title() == "2 FineTune, training 2"
    assert "training 1, kept epoch 2 of 4, stopped early, went on behind" in report.to_html()


def test_what_is_known_of_trainings_survives_a_file(tmp_path):
    facts = {"epochs": 4, "kept": 2, "stopped_early": True, "resumed": [1]}
    row = dataclasses.replace(full_report().rows[1], trainings=(facts,))
    path = tmp_path / "report.json"
    report = dataclasses.replace(full_report(), rows=(row,))
    report.to_json(path)
    assert ok.Report.from_json(path).rows[0].trainings == (facts,)
