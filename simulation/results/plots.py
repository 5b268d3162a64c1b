"""The pictures of the results: rows of dots, lines, and heat maps. Values are percent or points."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from report.canvas import (
    COLOURS,
    INK,
    LINE,
    MARKERS,
    MUTED,
    STYLE,
    Chart,
    render,
    wrapped,
)
from report.spread import Spread
from simulation.results.significance import Comparison


@dataclass(frozen=True, slots=True)
class Mark:
    """A value at a place (0, 1, ...) of the axis, and how far it may be off on either side."""

    place: int
    value: float
    low: float
    high: float


def mark_of(place: int, found: Spread) -> Mark:
    """Return a fraction's mean as a percentage, with its deviation on either side."""
    mean, deviation = 100 * found.mean, 100 * (found.deviation or 0.0)
    return Mark(place, mean, mean - deviation, mean + deviation)


def difference_mark(place: int, one: Comparison) -> Mark:
    """Return a known difference in points, with its 95% interval where there is one."""
    assert one.difference is not None, "a difference that is not known has no mark"
    low, high = (one.difference if end is None else end for end in (one.low, one.high))
    return Mark(place, 100 * one.difference, 100 * low, 100 * high)


@dataclass(frozen=True, slots=True)
class Panel:
    """The marks of each series by its name, and values that are drawn as lines across."""

    title: str
    series: Mapping[str, Sequence[Mark]]
    across: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Heat:
    """A value for each row and column; None where there is none."""

    title: str
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Frame:
    """The title, axes and file of a chart.

    Attributes:
        places: the names of the places 0, 1, ... of the marks.
        values: what the values are, with their unit.
    """

    file: str
    finding: str
    description: str
    places: Sequence[str]
    values: str


def dots(frame: Frame, panels: Sequence[Panel]) -> Chart:
    """Draw a row for each place, a dot with a bar for each series; panels side by side."""
    with rc_context(STYLE):
        count = len(frame.places)
        names = _names(panels)
        figure = Figure(figsize=(8.6, 1.6 + count * (0.22 + 0.13 * len(names))))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _titled(axes, panel.title)
            for index, name in enumerate(names):
                _row_dots(axes, panel.series.get(name, ()), index, len(names))
            axes.grid(axis="x")
        first: Axes = grid[0, 0]
        first.set_ylim(count - 0.5, -0.5)
        first.set_yticks(range(count), [wrapped(place, 26) for place in frame.places])
        return _finished(figure, frame, names, first)


def _row_dots(axes: Axes, marks: Sequence[Mark], index: int, count: int) -> None:
    shift = _shift(index, count)
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    for mark in marks:
        bar = [[mark.value - mark.low], [mark.high - mark.value]]
        axes.errorbar(mark.value, mark.place + shift, xerr=bar, color=colour, marker=marker,
                      markersize=5, capsize=2.5, linewidth=1.2)  # fmt: skip


def _shift(index: int, count: int) -> float:
    """Return how far a series is drawn beside its place, so that no bar hides another."""
    return (index - (count - 1) / 2) * min(0.24, 0.6 / count)


def lines(frame: Frame, panels: Sequence[Panel]) -> Chart:
    """Draw a line of dots with bars for each series over the places; panels side by side."""
    with rc_context(STYLE):
        names = _names(panels)
        figure = Figure(figsize=(8.6, 4.4))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _titled(axes, panel.title)
            for index, name in enumerate(names):
                _line(axes, panel.series.get(name, ()), index, len(names))
            for name, height in panel.across.items():
                axes.axhline(height, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
                axes.annotate(name, (0.99, height), (0, 2), xycoords=("axes fraction", "data"),
                              textcoords="offset points", ha="right", fontsize=7,
                              color=MUTED)  # fmt: skip
            places = [wrapped(place, 9) for place in frame.places]
            axes.set_xticks(range(len(places)), places)
            axes.grid(axis="y")
            axes.set_xlim(-0.5, len(places) - 0.5)
        first: Axes = grid[0, 0]
        return _finished(figure, frame, names, first)


def _line(axes: Axes, marks: Sequence[Mark], index: int, count: int) -> None:
    shift = 0.6 * _shift(index, count)
    bars = [[mark.value - mark.low for mark in marks], [mark.high - mark.value for mark in marks]]
    axes.errorbar([mark.place + shift for mark in marks], [mark.value for mark in marks],
                  yerr=bars, color=COLOURS[index % len(COLOURS)], linewidth=1.2, elinewidth=0.9,
                  capsize=2.5, markersize=5, marker=MARKERS[index % len(MARKERS)])  # fmt: skip


#: Loss, nothing, gain.
_SIGNED = LinearSegmentedColormap.from_list("signed", ("#b2571b", "#ffffff", "#0b5087"))


def heat(frame: Frame, panels: Sequence[Heat]) -> Chart:
    """Draw a map of signed differences for each panel, one below the other; places are columns."""
    known = [abs(v) for panel in panels for row in panel.values for v in row if v is not None]
    scale = Normalize(-max([*known, 1e-9]), max([*known, 1e-9]))
    with rc_context(STYLE):
        rows = sum(len(panel.rows) for panel in panels)
        figure = Figure(figsize=(8.6, 1.2 + 0.3 * rows + 0.7 * len(panels)))
        heights = [len(panel.rows) for panel in panels]
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _titled(axes, panel.title)
            _cells(axes, panel, scale)
            axes.set_xticks(range(len(frame.places)), [wrapped(name, 10) for name in frame.places])
            axes.set_yticks(range(len(panel.rows)), panel.rows)
            axes.tick_params(length=0, labelsize=8)
        figure.supxlabel(frame.values, fontsize=8, color=MUTED)
        return render(figure, frame.file, frame.finding, frame.description)


def _cells(axes: Axes, panel: Heat, scale: Normalize) -> None:
    filled = [[0.0 if value is None else value for value in row] for row in panel.values]
    axes.imshow(filled, cmap=_SIGNED, norm=scale, aspect="auto")
    for y, row in enumerate(panel.values):
        for x, value in enumerate(row):
            dark = value is not None and abs(value) > 0.62 * (scale.vmax or 1)
            axes.text(x, y, "·" if value is None else f"{value:+.1f}", ha="center", va="center",
                      fontsize=7, color="#ffffff" if dark else INK)  # fmt: skip
    axes.set_frame_on(False)


def _names(panels: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(name for panel in panels for name in panel.series))


def _titled(axes: Axes, title: str) -> None:
    if title:
        axes.set_title(title)
    axes.spines[["left", "bottom"]].set_color(LINE)


def _finished(figure: Figure, frame: Frame, names: Sequence[str], axes: Axes) -> Chart:
    handles = [
        axes.plot([], [], color=COLOURS[index % len(COLOURS)], linewidth=1.4,
                  marker=MARKERS[index % len(MARKERS)], markersize=5)[0]
        for index in range(len(names))
    ]  # fmt: skip
    figure.legend(handles, list(names), loc="outside lower center", ncols=4, fontsize=8,
                  title=frame.values, title_fontsize=8)  # fmt: skip
    return render(figure, frame.file, frame.finding, frame.description)
