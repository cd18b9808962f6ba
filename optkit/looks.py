"""How figures are shown: names on one line, the colours and axes of pictures, pictures in pages."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

__all__ = [
    "BASELINE",
    "INK",
    "LABEL_SIZE",
    "PATH",
    "SHAPES",
    "STAGE",
    "FigureMaker",
    "absent",
    "blank",
    "label_rows",
    "legend_below",
    "one_line",
    "plain",
    "prepared",
    "shortened",
    "shown",
    "svg",
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

#: Makes an empty figure, as `matplotlib.figure.Figure` and `matplotlib.pyplot.figure` do.
FigureMaker = Callable[..., Any]


def shortened(text: str, width: int) -> str:
    """A text cut to a width, and marked where it was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(text: str) -> str:
    """A text without line breaks, control characters and marks that turn the direction of others."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def plain(name: str, width: int) -> str:
    """A name as one line of bounded width."""
    return shortened(one_line(name), width)


def text_options(size: float = LABEL_SIZE) -> dict[str, Any]:
    """How text is written: names come from users, they are neither mathtext nor TeX."""
    return {"fontsize": size, "color": INK, "parse_math": False, "usetex": False}


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


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Labels the lines of a picture, the first one on top."""
    axes.set_yticks(range(len(names)), labels=list(names), **text_options())
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def legend_below(axes: Axes) -> None:
    """Below the axes, where it hides nothing, however high they are."""
    figure = axes.get_figure()  # the part of a picture that the axes stand in
    if figure is None:
        return
    legend = figure.legend(frameon=False, fontsize=LABEL_SIZE, ncols=3, loc="outside lower center")
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False, usetex=False)


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Names may be in any script; what matplotlib's font lacks is drawn as a box, without a word.

    In the HTML report the browser writes the text, in fonts of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def blank(width: float, height: float, make: FigureMaker | None = None) -> Any:
    """An empty figure of a size in inches.

    Args:
        width: Its width.
        height: Its height.
        make: What makes it; ``None`` for matplotlib's own class, which needs no pyplot: no backend
            is chosen, no setting is changed, and the figure is freed like any other object.
    """
    if make is None:
        from matplotlib.figure import Figure

        make = Figure
    return make(figsize=(width, height), layout="constrained", facecolor="white")


def shown(draw: Callable[[FigureMaker | None], Any], path: Any) -> Any:
    """Draws a picture: a notebook shows it by itself, unless it is saved.

    Args:
        draw: Draws into a figure of the given maker, and returns its axes.
        path: Where to save it; ``None`` for nowhere.

    Returns:
        The axes.
    """
    if path is None and _in_notebook():
        from matplotlib import pyplot

        return draw(pyplot.figure)
    axes = draw(None)
    if path is not None:
        from pathlib import Path

        from optkit.artifact.base import write_atomically

        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).get_figure(root=True)
        with without_glyph_warnings():
            write_atomically(Path(path), lambda temporary: figure.savefig(temporary, dpi=150))
    return axes


def _in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook, which shows pyplot's figures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def svg(figure: Any, name: str) -> Markup:
    """A plot as an SVG element that takes the page's text colour.

    matplotlib escapes the text it writes, so the element is safe as it is. Text stays text: the
    browser writes it in its own fonts, which know all scripts, and it can be searched for.

    Args:
        figure: The plot.
        name: Goes before the names within the picture, which must be unique in the whole page.
    """
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    # Without metadata no prose and no addresses get into the page.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]  # what stands before it belongs to a file of its own
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    # A style sheet inside an inlined picture would hold for the whole page.
    picture = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r' id="', f' id="{name}-', picture)
    picture = picture.replace('xlink:href="#', f'xlink:href="#{name}-')
    picture = picture.replace("url(#", f"url(#{name}-")
    for colour, inherited in ((INK, "currentColor"), (STAGE, f"var(--stage, {STAGE})")):
        picture = re.sub(rf"\b(fill|stroke): {colour}\b", rf"\1: {inherited}", picture)
    return Markup(picture)
