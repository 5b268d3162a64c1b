"""What the pictures of a report have in common: colours, labels, and how one is rendered."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers; the yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
MARKERS = "osD^vPX*"
#: From low to high scores: one hue, lightness falls evenly.
SHADES = ("#f3f7fb", "#c9ddee", "#8fb9da", "#4a8bbd", "#0b5087")
INK, MUTED, LINE = "#1b1f24", "#5b6673", "#d9dfe5"
#: What every picture is drawn with.
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
class Picture:
    """A PNG file, its finding, and a description for those who can't see it."""

    file: str
    finding: str
    description: str
    png: bytes


def shade(score: float) -> str:
    """The heat map's colour of a score of 0 to 1, as #rrggbb."""
    red, green, blue, _ = _SCALE(min(max(score, 0.0), 1.0))
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))


def text_on(score: float) -> str:
    """The colour of text on `shade(score)`."""
    return "#ffffff" if score > 0.62 else INK


_SCALE = LinearSegmentedColormap.from_list("scores", SHADES)


def dark(colour: str) -> str:
    """A colour dark enough for small text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.62 * red, 0.62 * green, 0.62 * blue))


def picture(figure: Figure, file: str, finding: str, description: str) -> Picture:
    """Render; without the version of matplotlib in the file, equal pictures have equal bytes."""
    figure.set_layout_engine("constrained")
    title = textwrap.fill(finding, int(10.8 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Picture(file, finding, description, png.getvalue())


def assign(names: Sequence[str]) -> dict[str, str]:
    """A colour for every distinct name, in the order in which they come."""
    distinct = dict.fromkeys(names)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(distinct)}


def xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The points' x and their y, as matplotlib takes them."""
    return [x for x, _ in points], [y for _, y in points]


def wrapped(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, broken behind `-`, `_` or a space."""
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
