"""Colours, labels and rendering of the charts of a report."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

#: Okabe and Ito's colours, which colour-blind readers can distinguish; without the yellow, which
#: is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
MARKERS = "osD^vPX*"
#: From low to high scores: one hue with evenly falling lightness.
SHADES = ("#f3f7fb", "#c9ddee", "#8fb9da", "#4a8bbd", "#0b5087")
INK, MUTED, LINE = "#1b1f24", "#5b6673", "#d9dfe5"
#: Pixels an inch.
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
    "grid.color": "#eceff2",
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a PNG file, its title, and a description for readers who can't see it."""

    file: str
    title: str
    description: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Drawn:
    """The charts that could be drawn, and a sentence for each that could not."""

    charts: tuple[Chart, ...]
    failed: tuple[str, ...] = ()


NOTHING_DRAWN = Drawn(())


def shade(score: float) -> str:
    """Return the heat map's colour of a score from 0 to 1, as #rrggbb."""
    red, green, blue, _ = _SCALE(min(max(score, 0.0), 1.0))
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))


def text_on(score: float) -> str:
    """Return the colour of text on `shade(score)`."""
    return "#ffffff" if score > 0.62 else INK


_SCALE = LinearSegmentedColormap.from_list("scores", SHADES)


def dark(colour: str) -> str:
    """Return a darker colour, for small text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.62 * red, 0.62 * green, 0.62 * blue))


def render(figure: Figure, file: str, title: str, description: str) -> Chart:
    """Render the figure as PNG, without matplotlib's version: equal charts have equal bytes."""
    figure.set_layout_engine(layout := ConstrainedLayoutEngine())
    wrapped_title = textwrap.fill(title, int(10.8 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(wrapped_title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    # savefig lays the figure out in a drawing of its own, then draws it again; the same bytes.
    layout.execute(figure)
    figure.set_layout_engine("none")
    png = io.BytesIO()
    canvas.print_png(png, metadata={"Software": None})
    return Chart(file, title, description, png.getvalue())


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
