"""The colours of charts, and what becomes of them on a dark page."""

from collections.abc import Mapping
from typing import Final

from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

#: Of lines and dots, in this order: Okabe and Ito's colours, which colour-blind readers can
#: distinguish; without the yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
#: From low to high scores: one hue with evenly falling lightness.
SHADES = ("#f3f7fb", "#c9ddee", "#8fb9da", "#4a8bbd", "#0b5087")
PAPER, INK, MUTED, LINE, GRID = "#ffffff", "#1b1f24", "#5b6673", "#d9dfe5", "#eceff2"
#: The frame of a heat map's cell.
FRAME = "#1b2024"
#: Text on a heat map's cells, which are the same on a dark page.
_ON_PALE, _ON_DEEP = "#1a1f24", "#fefefe"

_COLOURS_ON_DARK = ("#3d8fd1", "#f0813a", "#2fc296", "#dc9bc0", "#edb03a", "#8fd2f5", "#a9a9a9")
_SCALE = LinearSegmentedColormap.from_list("scores", SHADES)


def shade(score: float) -> str:
    """Return the heat map's colour of a score from 0 to 1, as #rrggbb."""
    red, green, blue, _ = _SCALE(min(max(score, 0.0), 1.0))
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))


def text_on(score: float) -> str:
    """Return the colour of text on `shade(score)`."""
    return _ON_DEEP if score > 0.62 else _ON_PALE


def dark(colour: str) -> str:
    """Return a darker colour, for small text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.62 * red, 0.62 * green, 0.62 * blue))


#: Of each colour, #rrggbb in small letters, the one that stands for it on a dark page.
ON_DARK: Final[Mapping[str, str]] = {
    PAPER: "#1c2026",
    INK: "#e6e9ec",
    MUTED: "#a3adb8",
    LINE: "#46505b",
    GRID: "#2d343c",
    FRAME: "#f0955a",
    **{one.lower(): other for one, other in zip(COLOURS, _COLOURS_ON_DARK, strict=True)},
    **{dark(one): other for one, other in zip(COLOURS, _COLOURS_ON_DARK, strict=True)},
}
