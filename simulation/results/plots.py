"""The pictures of the results: rows of dots, lines, and heat maps. Values are percent or points."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.canvas import MARKERS, STYLE, Chart, render, wrapped
from report.spread import Spread
from report.style.colours import COLOURS, LINE
from simulation.results.significance import Comparison

#: Of a place's name, with the room between two names.
_LINE_INCHES = 0.16


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
    low, high = one.interval or (one.difference, one.difference)
    return Mark(place, 100 * one.difference, 100 * low, 100 * high)


@dataclass(frozen=True, slots=True)
class Panel:
    """The marks of each series by its name, and values that are drawn as lines across."""

    title: str
    series: Mapping[str, Sequence[Mark]]
    across: Mapping[str, float]


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
        names, places = _names(panels), [wrapped(place, 26) for place in frame.places]
        lines = max((place.count("\n") + 1 for place in places), default=1)
        height = max(0.22 + 0.13 * len(names), _LINE_INCHES * lines)
        figure = Figure(figsize=(8.6, 1.6 + count * height))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _titled(axes, panel.title)
            for index, name in enumerate(names):
                _row_dots(axes, panel.series.get(name, ()), index, len(names))
            axes.grid(axis="x")
        first: Axes = grid[0, 0]
        first.set_ylim(count - 0.5, -0.5)
        first.set_yticks(range(count), places)
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
