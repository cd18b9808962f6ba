"""The smaller pictures of a report: stages, classes, layers, trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from optkit.looks import (
    BASELINE,
    INK,
    PATH,
    SHAPES,
    STAGE,
    absent,
    label_rows,
    legend_below,
    plain,
    prepared,
    text_options,
)
from optkit.measuring import Interval, Layer, Measurement
from optkit.report.classes import ClassFigures, class_figures
from optkit.report.report import Report
from optkit.report.style import arms, metric_label, size_unit
from optkit.report.text import is_share

__all__ = [
    "FIGURES",
    "PANELS",
    "LayerPair",
    "Training",
    "draw_bar_panel",
    "draw_classes",
    "draw_layers",
    "draw_training",
    "height_of_classes",
    "height_of_layers",
    "layer_pairs",
    "trainings",
    "worst_first",
]

#: The panels of the picture of stages.
FIGURES = ("accuracy", "size", "latency")

_CLASSES = 25  # classes shown at most
_LAYERS = 30  # layers shown at most
_MARKED = 40  # epochs up to which each has a marker; more would run into one another
_NAME = 28  # characters of a name at most
_RATE = "learning_rate"  # the curve that is neither a loss nor a metric


class _Bar(NamedTuple):
    name: str
    baseline: bool
    figures: Measurement


def _stages(report: Report) -> list[_Bar]:
    """Every stage that has figures, what was undone included, marked as such."""
    stages = [_Bar("baseline", True, report.baseline)]
    if report.runtime_baseline is not None and report.runtime_baseline.after is not None:
        stages.append(
            _Bar(plain(report.runtime_baseline.name, _NAME), True, report.runtime_baseline.after)
        )
    for row in report.rows:
        if row.after is not None:
            mark = "" if row.status == "ok" else f" ({row.status})"
            stages.append(_Bar(plain(row.name, _NAME) + mark, False, row.after))
    return stages


def draw_bar_panel(report: Report, axes: Axes, figure: str) -> None:
    """One figure of every stage: a bar from zero, or for the metric a point with its interval.

    A metric such as accuracy hardly ever is near zero: bars that start there would hide what is to
    be seen, and bars that start elsewhere would lie.
    """
    stages = _stages(report)
    unit, factor = size_unit([stage.figures.size_bytes for stage in stages])
    known: list[tuple[int, _Bar, float, Interval | None]] = []
    for i, stage in enumerate(stages):
        value, interval = stage.figures.latency_ms, stage.figures.latency_ci
        if figure == "accuracy":
            value, interval = stage.figures.accuracy, stage.figures.accuracy_ci
        elif figure == "size":
            value, interval = stage.figures.size_bytes, None
        if value is None or not math.isfinite(value):
            continue
        scale = 1 / factor if figure == "size" else 1.0
        if figure == "accuracy" and is_share(report):
            scale = 100.0
        ends = None if interval is None else (scale * interval[0], scale * interval[1])
        known.append((i, stage, scale * value, ends))
    label = {
        "accuracy": metric_label(report),
        "size": f"file size ({unit})",
        "latency": "median latency (ms)",
    }[figure]
    prepared(axes, label)
    if not known:
        absent(axes)
    for i, stage, value, ends in known:
        colour = BASELINE if stage.baseline else STAGE
        if figure == "accuracy":
            marker = "D" if stage.baseline else "o"
            axes.errorbar(
                value,
                i,
                xerr=arms(value, ends),
                marker=marker,
                linestyle="",
                color=colour,
                capsize=2,
            )
        else:
            axes.barh(i, value, height=0.6, color=colour)
            axes.errorbar(value, i, xerr=arms(value, ends), linestyle="", color=INK, capsize=2)
    if known:
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    label_rows(axes, [stage.name for stage in stages])


def worst_first(report: Report, count: int = _CLASSES) -> list[ClassFigures]:
    """The classes with the lowest accuracy in the end, lowest first.

    Those that lost most are among them, whatever their accuracy is.
    """
    classes = class_figures(report)
    by_loss = sorted(classes, key=lambda item: item.change if item.change is not None else 0.0)
    kept = by_loss[: (count + 1) // 2]
    for item in sorted(classes, key=_accuracy):
        if len(kept) >= count:
            break
        if item not in kept:
            kept.append(item)
    return sorted(kept, key=_accuracy)


def _accuracy(item: ClassFigures) -> float:
    value = item.after if item.after is not None else item.before
    return math.inf if value is None else value


def height_of_classes(report: Report) -> float:
    """Inches that the picture of the classes takes."""
    return 1.1 + 0.24 * max(4, len(worst_first(report)))


def draw_classes(report: Report, axes: Axes) -> None:
    """The accuracy in each class before and after, the worst class on top."""
    classes = worst_first(report)
    split = "" if report.split is None else f" on {report.split}"
    prepared(axes, f"accuracy in the class{split} (%)")
    if not classes:
        absent(axes)
        return
    for i, item in enumerate(classes):
        if item.before is not None and item.after is not None:
            axes.plot([100 * item.before, 100 * item.after], [i, i], color=PATH, linewidth=1.5)
    ends = (("baseline", BASELINE, "D", "before"), ("final", STAGE, "o", "after"))
    for label, colour, marker, side in ends:
        known = [(i, getattr(item, side)) for i, item in enumerate(classes)]
        known = [(i, value) for i, value in known if value is not None]
        if known:
            axes.plot(
                [100 * value for _, value in known],
                [i for i, _ in known],
                linestyle="",
                marker=marker,
                markersize=6 if side == "after" else 5,
                color=colour,
                label=label,
                zorder=3,
            )
    label_rows(
        axes,
        [
            plain(item.name, _NAME) + (f"  (n = {item.samples})" if item.samples else "")
            for item in classes
        ],
    )
    axes.margins(x=0.06)
    legend_below(axes)
    total = len(class_figures(report))
    if total > len(classes):
        axes.set_title(
            f"{len(classes)} of {total} classes: lowest accuracy, greatest loss", **text_options(9)
        )


class LayerPair(NamedTuple):
    """A layer of what is to be deployed, with the bytes of what it was made of.

    Attributes:
        name: Its name, short enough for a table.
        before: Bytes of the baseline's layers that went into it; ``None`` where none is known.
        after: The layer; ``None`` where nothing of that name is left.
    """

    name: str
    before: int | None
    after: Layer | None


def layer_pairs(report: Report) -> list[LayerPair]:
    """The layers with weights, in the order of what is to be deployed.

    An operator of a flatbuffer is called by the layers that were fused into it, such as
    ``"net/relu1/Relu;net/conv1/Conv2D"``: it is compared with all of those.
    """
    first = {layer.name: layer for layer in report.baseline.layers or () if layer.parameters}
    if report.final_row is None:
        return [LayerPair(name, layer.bytes, None) for name, layer in first.items()]
    left = dict(first)
    pairs = []
    for layer in report.final.layers or ():
        if not layer.parameters:
            continue
        if layer.name in left:
            sources = [layer.name]
        else:
            places = [f"/{part}/" for part in layer.name.split(";")]
            sources = [name for name in left if any(f"/{name}/" in place for place in places)]
        before = sum(left.pop(name).bytes for name in sources) if sources else None
        # The layer that holds most of the weights says best what it is.
        main = max(sources, key=lambda name: first[name].bytes, default=layer.name)
        pairs.append(LayerPair(main, before, layer))
    return pairs + [LayerPair(name, layer.bytes, None) for name, layer in left.items()]


def _largest(report: Report) -> list[LayerPair]:
    """The layers that take up most, in their order."""
    pairs = layer_pairs(report)

    def weight(i: int) -> int:
        after = pairs[i].after
        return max(pairs[i].before or 0, after.bytes if after is not None else 0)

    kept = sorted(range(len(pairs)), key=weight, reverse=True)[:_LAYERS]
    return [pairs[i] for i in sorted(kept)]


def height_of_layers(report: Report) -> float:
    """Inches that the picture of the layers takes."""
    return 1.1 + 0.32 * max(4, len(_largest(report)))


def draw_layers(report: Report, axes: Axes) -> None:
    """The bytes of each layer before and after, and the zeros in what is to be deployed."""
    pairs = _largest(report)
    sizes = [pair.before for pair in pairs]
    sizes += [pair.after.bytes for pair in pairs if pair.after is not None]
    unit, factor = size_unit(sizes)
    prepared(axes, f"weights as stored ({unit})")
    if not pairs:
        absent(axes)
        return
    before = [(i, pair.before) for i, pair in enumerate(pairs) if pair.before is not None]
    after = [(i, pair.after) for i, pair in enumerate(pairs) if pair.after is not None]
    if before:
        axes.barh(
            [i - 0.2 for i, _ in before],
            [value / factor for _, value in before],
            height=0.36,
            color=BASELINE,
            label="baseline",
        )
    if after:
        axes.barh(
            [i + 0.2 for i, _ in after],
            [layer.bytes / factor for _, layer in after],
            height=0.36,
            color=STAGE,
            label="final",
        )
    for i, layer in after:
        if layer.sparsity:
            axes.annotate(
                f"{100 * layer.sparsity:.0f} % zeros",
                (layer.bytes / factor, i + 0.2),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                **text_options(7),
            )
    label_rows(axes, [plain(pair.name, _NAME) for pair in pairs])
    legend_below(axes)
    total = len(layer_pairs(report))
    if total > len(pairs):
        axes.set_title(f"the {len(pairs)} largest of {total} layers", **text_options(9))


#: Panels that every training has: losses and metrics.
PANELS = 2


class Training(NamedTuple):
    """One training of a pass.

    Attributes:
        name: Number and name of the pass.
        groups: Its losses, its other figures, and its learning rate where that changed, as far as
            it has any: by name, one value an epoch.
        kept: Epoch whose weights were kept, from 1, where that is not the last one.
        resumed: Epochs behind which it went on in another process.
        said: In words, what of it is marked, line by line.
    """

    name: str
    groups: list[dict[str, list[float]]]
    kept: int | None = None
    resumed: tuple[int, ...] = ()
    said: tuple[str, ...] = ()


def trainings(report: Report) -> list[Training]:
    """Every training that has at least one figure."""
    found = []
    for row in report.rows:
        for i, figures in enumerate(row.curves, 1):
            known = {name: values for name, values in figures.items() if len(values)}
            losses = {name: values for name, values in known.items() if "loss" in name}
            rates = {_RATE: known.pop(_RATE)} if _RATE in known else {}
            others = {name: values for name, values in known.items() if "loss" not in name}
            if len(set(rates.get(_RATE, ()))) < 2:
                rates = {}  # a constant rate is a setting of the pass, and no curve
            if known:
                number = f", training {i}" if len(row.curves) > 1 else ""
                name = f"{row.index} {plain(row.name, _NAME)}{number}"
                groups = [group for group in (losses, others, rates) if group]
                facts = row.trainings[i - 1] if i <= len(row.trainings) else {}
                found.append(_marked(Training(name, groups), facts))
    return found


def _marked(training: Training, facts: Mapping[str, Any]) -> Training:
    """The training with what is known of its epochs."""
    kept, epochs, resumed = facts.get("kept"), facts.get("epochs"), facts.get("resumed", ())
    if kept == epochs:
        kept = None
    parts = [] if kept is None else [f"kept epoch {kept} of {epochs}"]
    if facts.get("stopped_early"):
        parts.append("stopped early")
    said = [", ".join(parts)] if parts else []
    if resumed:
        said.append(f"went on behind epoch {', '.join(map(str, resumed))}")
    return training._replace(kept=kept, resumed=tuple(resumed), said=tuple(said))


def draw_training(training: Training, panels: Sequence[Axes]) -> None:
    """Each group of figures of a training in one panel, from the top.

    Circles mark the epoch that was kept, dotted lines where a killed training went on.
    """
    for place, (axes, figures) in enumerate(zip_longest(panels, training.groups)):
        prepared(axes)
        if not figures:
            if place < PANELS:
                absent(axes, "not measured")
            else:
                axes.set_axis_off()
            continue
        for number, (name, values) in enumerate(figures.items()):
            colour, marker = SHAPES[number % len(SHAPES)]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=colour,
                marker=marker if len(values) <= _MARKED else "",
                markersize=3,
                linewidth=1,
                linestyle="--" if name.startswith("val_") else "-",
                label=plain(name, 20),
            )
            if training.kept is not None and training.kept <= len(values):
                axes.plot(
                    [training.kept],
                    [values[training.kept - 1]],
                    color=colour,
                    marker="o",
                    markersize=8,
                    markerfacecolor="none",
                    linestyle="",
                )
        for epoch in training.resumed:
            axes.axvline(epoch + 0.5, color=PATH, linewidth=1, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        style: Any = "sci" if _RATE in figures else "plain"
        axes.ticklabel_format(axis="y", style=style, scilimits=(-2, 3), useOffset=False)
        legend = axes.legend(frameon=False, fontsize=7)
        for text in legend.get_texts():
            text.set(color=INK, parse_math=False, usetex=False)
    panels[0].set_title("\n".join([training.name, *training.said]), **text_options(9))
    panels[len(training.groups) - 1].set_xlabel("epoch", **text_options(9))
