"""What all plots of a report have in common: colours, text, units."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from optkit.measuring import Interval
from optkit.report.report import Report
from optkit.report.text import is_share, one_line, shortened

__all__ = [
    "BASELINE",
    "INK",
    "LABEL_SIZE",
    "PATH",
    "SHAPES",
    "STAGE",
    "absent",
    "arms",
    "metric_label",
    "plain",
    "prepared",
    "size_unit",
    "text_options",
    "without_glyph_warnings",
]

#: Colour of all text and axes; the HTML page puts its own text colour in its place.
INK = "#24292f"

# From the palette of Okabe and Ito, which colour-blind readers can tell apart; the markers differ
# in shape as well.
BASELINE = "#d55e00"
STAGE = "#0072b2"
PATH = "#8c959f"
#: Colours and markers of further series, in this order.
SHAPES = ((STAGE, "o"), (BASELINE, "D"), ("#009e73", "s"), ("#cc79a7", "^"), (PATH, "v"))

LABEL_SIZE = 8  # of labels, in points


def text_options(size: float = LABEL_SIZE) -> dict[str, Any]:
    """How text is written: names come from users, they are neither mathtext nor TeX."""
    return {"fontsize": size, "color": INK, "parse_math": False, "usetex": False}


def plain(name: str, width: int) -> str:
    """A name as one line of bounded width."""
    return shortened(one_line(name), width)


def prepared(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Gives axes the looks of the report, whatever style the user has set."""
    axes.set_facecolor("white")
    axes.grid(False)
    axes.set_xlabel(x_label, **text_options(9))
    axes.set_ylabel(y_label, **text_options(9))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)


def absent(axes: Axes, text: str = "not measured") -> None:
    """Says that there is nothing to draw."""
    axes.text(0.5, 0.5, text, **text_options(9), ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def arms(value: float, interval: Interval | None) -> list[list[float]] | None:
    """An interval as lengths below and above its figure, which is how error bars are drawn."""
    if interval is None or not all(math.isfinite(end) for end in interval):
        return None
    low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def size_unit(sizes: Sequence[float | None]) -> tuple[str, float]:
    """The unit that suits the largest of some sizes, and its bytes."""
    largest = max((size for size in sizes if size is not None), default=0)
    return ("MB", 1e6) if largest >= 999_500 else ("kB", 1e3)


def metric_label(report: Report) -> str:
    """The metric as the label of an axis."""
    label = shortened(report.metric, 40)
    if report.split is not None:
        label += f" on {report.split}"
    if is_share(report):
        label += " (%)"
    return label if report.higher_is_better else f"{label}, lower is better"


def entitled(axes: Axes, output: str) -> None:
    """Says of which output a picture is, where there are several."""
    if output:
        axes.set_title(plain(output, 40), **text_options(9))


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Names may be in any script; what matplotlib's font lacks is drawn as a box, without a word.

    In the HTML report the browser writes the text, in fonts of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield
