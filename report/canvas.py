"""Labels and rendering of the charts of a report."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from report.style.colours import COLOURS, GRID, INK, LINE, MUTED
from report.style.svg import accessible_svg

MARKERS = "osD^vPX*"
#: Pixels an inch of a PNG.
_DPI = 160
#: Matplotlib settings of every chart.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    # Names of tasks and sites may have a dollar in them.
    "text.parse_math": False,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart's file, .svg or .png, its title, and a description for readers who can't see it."""

    file: str
    title: str
    description: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Drawn:
    """The charts that could be drawn, and a sentence for each that could not."""

    charts: tuple[Chart, ...]
    failed: tuple[str, ...] = ()


NOTHING_DRAWN = Drawn(())


def render(figure: Figure, file: str, title: str, description: str) -> Chart:
    """Render the figure as what the file's name ends with, .svg or .png.

    Nothing of matplotlib's version, of the day or of chance is in it: equal charts have equal
    bytes.
    """
    figure.set_layout_engine(layout := ConstrainedLayoutEngine())
    wrapped_title = textwrap.fill(title, int(10.8 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(wrapped_title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    print_figure = _print_svg if file.endswith(".svg") else _print_png
    content = print_figure(figure, layout, file, f"{title}. {description}")
    return Chart(file, title, description, content)


def _print_svg(figure: Figure, layout: ConstrainedLayoutEngine, file: str, text: str) -> bytes:
    canvas, svg = FigureCanvasSVG(figure), io.StringIO()
    _lay_out(figure, layout)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": file}):
        canvas.print_svg(svg, metadata=nothing)
    return accessible_svg(svg.getvalue(), text).encode()


def _print_png(figure: Figure, layout: ConstrainedLayoutEngine, file: str, text: str) -> bytes:
    figure.set_dpi(_DPI)
    canvas, png = FigureCanvasAgg(figure), io.BytesIO()
    _lay_out(figure, layout)
    canvas.print_png(png, metadata={"Software": None})
    return png.getvalue()


def _lay_out(figure: Figure, layout: ConstrainedLayoutEngine) -> None:
    """Lay the figure out once: savefig does so in a drawing of its own, for the same bytes."""
    layout.execute(figure)
    figure.set_layout_engine("none")


def assign(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for every distinct name, in their order of appearance."""
    distinct = dict.fromkeys(names)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(distinct)}


def xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the points' x and y as two lists, as matplotlib takes them."""
    return [x for x, _ in points], [y for _, y in points]


def wrapped(name: str, width: int) -> str:
    """Return a name in lines of at most `width` characters, broken after `-`, `_` or a space."""
    return "\n".join(_lines(name, width))


def _lines(name: str, width: int) -> Iterator[str]:
    line = ""
    for part in re.findall(r"[^-_ ]*[-_ ]?", name):
        while len(part) > width:
            if line:
                yield line
            line, part = part[:width], part[width:]
            yield line
            line = ""
        if len(line) + len(part) > width:
            yield line
            line = ""
        line += part
    if line:
        yield line
