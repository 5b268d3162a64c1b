"""The charts of a report, as SVG; each title states what the chart shows."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Sequence
from itertools import groupby
from math import ceil, isfinite

from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.printable import counted
from report.canvas import (
    MARKERS,
    STYLE,
    Chart,
    Drawn,
    assign,
    render,
    wrapped,
    xy,
)
from report.format import readable
from report.headlines import forgetting_headline, learning_headline
from report.hospitals.model import HospitalsReport
from report.hospitals.plots import curves_chart, hospitals_chart
from report.learned.plots import moments_chart
from report.methods_plots import comparison, methods
from report.model import LossPoint, RunReport
from report.routing import routing_headline
from report.style.colours import COLOURS, FRAME, MUTED, dark, shade, text_on

_MEGABYTE = 1e6


def draw(reports: Sequence[RunReport], hospitals: HospitalsReport | None = None) -> Drawn:
    """Draw every chart that has something to show; one that can't be drawn leaves the others."""
    first = reports[0]
    makers: dict[str, Callable[[], Chart | None]] = {
        "hospitals": lambda: hospitals_chart(hospitals),
        "curves of the hospitals alone": lambda: curves_chart(hospitals),
        "scores with their intervals": lambda: moments_chart(first),
        "score matrix": lambda: _score_matrix(first),
        "scores over the stages": lambda: _score_lines(first),
        "score matrix of the router": lambda: _routed_matrix(first),
        "comparison": lambda: comparison(reports),
        "methods": lambda: methods(reports),
        "losses": lambda: _losses(first),
        "traffic": lambda: _traffic(first),
    }
    charts: list[Chart] = []
    failed: list[str] = []
    with rc_context(STYLE):
        for name, make in makers.items():
            try:
                chart = make()
            # Whatever numbers sites have reported: a chart is not worth a run.
            except Exception as error:
                failed.append(f"chart of {name}: can't be drawn ({type(error).__name__}: {error})")
            else:
                charts += [] if chart is None else [chart]
    return Drawn(tuple(charts), tuple(failed))


def _score_matrix(report: RunReport) -> Chart:
    tasks, stages = (counted(len(report.stages), noun) for noun in ("task", "stage"))
    description = f"Heat map of the scores on {tasks} after each of {stages}."
    figure = _heat_map(report, report.scores)
    return render(figure, "matrix.svg", forgetting_headline(report), description)


def _routed_matrix(report: RunReport) -> Chart | None:
    """Draw the score matrix where the router chose a stage for each image."""
    if report.routed is None:
        return None
    description = "Heat map of the scores where the router chose a stage for each test image."
    figure = _heat_map(report, report.routed.scores)
    return render(figure, "routed.svg", routing_headline(report.routed), description)


def _heat_map(report: RunReport, matrix: Sequence[Sequence[float | None]]) -> Figure:
    names = [stage.name for stage in report.stages]
    count = len(names)
    rows = [report.zero_shot, *matrix]
    figure = Figure(figsize=(max(5.6, 2.9 + 0.98 * count), 1.75 + 0.46 * count))
    axes = figure.add_subplot()
    for row, scores in enumerate(rows):
        # A gap between the base model and the stages.
        y = row - 0.18 if row == 0 else row
        for task, score in enumerate(scores):
            _cell(axes, task, y, score, own=row == task + 1)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count + 0.5, -0.72)
    axes.set_xticks(range(count), [_column(report, task) for task in range(count)])
    axes.xaxis.tick_top()
    labels = ["base model", *(f"after {wrapped(name, 22)}" for name in names)]
    axes.set_yticks([-0.18, *range(1, count + 1)], labels)
    axes.tick_params(length=0, labelsize=8)
    axes.set_frame_on(False)
    axes.set_xlabel("score on each task's test questions (%); framed: just learned", fontsize=8)
    return figure


def _cell(axes: Axes, x: float, y: float, score: float | None, *, own: bool) -> None:
    corner = (x - 0.47, y - 0.45)
    if score is None:
        axes.text(x, y, "·", ha="center", va="center", color=MUTED)
        return
    axes.add_patch(Rectangle(corner, 0.94, 0.9, facecolor=shade(score), edgecolor="none"))
    if own:
        frame = (x - 0.455, y - 0.435)
        axes.add_patch(Rectangle(frame, 0.91, 0.87, fill=False, edgecolor=FRAME, linewidth=1.4))
    axes.text(x, y, f"{100 * score:.1f}", ha="center", va="center", color=text_on(score))


def _column(report: RunReport, task: int) -> str:
    stage = report.stages[task]
    return f"{wrapped(stage.name, 13)}\n({wrapped(readable(stage.metric.value), 13)})"


def _score_lines(report: RunReport) -> Chart | None:
    """Draw a line for each task: its score from the base model to the last stage."""
    count = len(report.stages)
    if count < 2:
        return None
    figure = Figure(figsize=(8.6 + 0.7 * max(0, count - 6), max(3.6, 1.9 + 0.27 * count)))
    axes = figure.add_subplot()
    colours = assign([stage.modality.value for stage in report.stages])
    ends: list[tuple[float, str, str]] = []
    for task, stage in enumerate(report.stages):
        colour = colours[stage.modality.value]
        path = [report.zero_shot[task], *(row[task] for row in report.scores)]
        known = [(x, 100 * score) for x, score in enumerate(path) if score is not None]
        before = [point for point in known if point[0] <= task + 1]
        since = [point for point in known if point[0] > task]
        axes.plot(*xy(before), color=colour, linewidth=1, linestyle=(0, (1, 2)), alpha=0.8,
                  marker=".", markersize=5)  # fmt: skip
        marker = MARKERS[task % len(MARKERS)]
        axes.plot(*xy(since), color=colour, linewidth=1.8, marker=marker, markersize=5)
        if known:
            ends.append((known[-1][1], f"{stage.name} ({stage.modality.value})", colour))
    axes.set_ylim(-3, 103)
    axes.set_xlim(-0.15, count + 0.1)
    room = 106 * 0.155 / (figure.get_figheight() - 1.3)
    for y, (_, name, colour) in zip(_spaced([end[0] for end in ends], room), ends, strict=True):
        axes.annotate(name, (count, y), (9, 0), textcoords="offset points", color=dark(colour),
                      va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    labels = ["base\nmodel", *(f"after\n{wrapped(stage.name, 12)}" for stage in report.stages)]
    axes.set_xticks(range(count + 1), labels, fontsize=7)
    axes.grid(axis="y")
    axes.set_ylabel("score (%, each task's own measure)")
    description = "Lines: each task's score after every stage; dotted until it is learned."
    return render(figure, "memory.svg", learning_headline(report), description)


def _losses(report: RunReport) -> Chart | None:
    """Draw a panel for each stage: every site's training loss by round."""
    points = [point for point in report.curves if point.loss is not None and isfinite(point.loss)]
    names = [stage.name for stage in report.stages if any(p.stage == stage.name for p in points)]
    if not names:
        return None
    columns = min(4, len(names))
    figure = Figure(figsize=(8.6, 1.0 + 1.75 * ceil(len(names) / columns)))
    panels = figure.subplots(ceil(len(names) / columns), columns, sharey=True, squeeze=False)
    colours = assign(sorted({point.site for point in points}))
    flat: list[Axes] = list(panels.flat)
    for panel in flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(flat, names, strict=False):
        own = [point for point in points if point.stage == name]
        _loss_panel(panel, name, own, colours)
    for panel in flat[::columns]:
        panel.set_ylabel("training loss")
    # A method that trains nothing reports losses of 0.
    flat[0].set_ylim(0, 1.05 * max(point.loss or 0.0 for point in points) or 1.0)
    # Empty lines, drawn for the legend only.
    handles = [
        flat[0].plot([], [], color=colour, marker="o", markersize=3)[0]
        for colour in colours.values()
    ]
    figure.legend(handles, list(colours), loc="outside lower center", ncols=6, fontsize=8,
                  title="site", title_fontsize=8)  # fmt: skip
    fell = sum(1 for name in names if _fell([p for p in points if p.stage == name]))
    stages = counted(len(names), "stage")
    title = f"The mean training loss fell from first to last round in {fell} of {stages}"
    description = "Small panels: the training loss of every site by round, one panel a stage."
    return render(figure, "losses.svg", title, description)


def _loss_panel(panel: Axes, name: str, points: list[LossPoint], colours: dict[str, str]) -> None:
    for site, own in groupby(sorted(points, key=lambda p: (p.site, p.round)), lambda p: p.site):
        line = [(point.round, point.loss or 0.0) for point in own]
        panel.plot(*xy(line), color=colours[site], linewidth=1.4, marker="o", markersize=3)
    last = max(point.round for point in points)
    panel.set_title(wrapped(name, 22), fontsize=8)
    panel.set_xticks(range(1, last + 1, max(1, ceil(last / 6))))
    panel.set_xlim(0.7, last + 0.3)
    panel.set_xlabel("round", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(axis="y")


def _fell(points: list[LossPoint]) -> bool:
    """Return whether the mean loss over sites was lower in the last round than in the first."""
    first, last = (end(point.round for point in points) for end in (min, max))
    start, finish = (
        [point.loss or 0.0 for point in points if point.round == number] for number in (first, last)
    )
    return last > first and sum(finish) / len(finish) < sum(start) / len(start)


def _traffic(report: RunReport) -> Chart | None:
    """Draw two bars for each site: the bytes it sent and received."""
    sites = sorted(report.cost.sites)
    if not sites:
        return None
    up = [report.cost.sites[site].bytes_up / _MEGABYTE for site in sites]
    down = [report.cost.sites[site].bytes_down / _MEGABYTE for site in sites]
    figure = Figure(figsize=(8.6, 1.35 + 0.46 * len(sites)))
    axes = figure.add_subplot()
    for values, shift, colour, name in (
        (up, -0.19, COLOURS[0], "sent by the site"),
        (down, 0.19, COLOURS[5], "received"),
    ):
        at = [row + shift for row in range(len(sites))]
        bars = axes.barh(at, values, height=0.34, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.3g} MB" for value in values], padding=4, fontsize=8)
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0, 1.18 * max([*up, *down, 1e-9]))
    axes.set_yticks(range(len(sites)), [wrapped(site, 24) for site in sites])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("megabytes in the whole run (1 MB = 1,000,000 bytes)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    title = f"The sites sent {sum(up):.3g} MB together: adapters and counts, no images"
    description = "Bars: the bytes that every site sent and received in the whole run."
    return render(figure, "traffic.svg", title, description)


def _spaced(heights: Sequence[float], room: float) -> list[float]:
    """Return label heights at least `room` apart and moved as little as possible.

    Isotonic least squares: pool adjacent violators.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        pools.append((heights[index] - rank * room, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (low, few), (high, many) = pools[-2:]
            pools[-2:] = [((low * few + high * many) / (few + many), few + many)]
    fitted = [height for height, size in pools for _ in range(size)]
    placed = [0.0] * len(heights)
    for rank, (index, height) in enumerate(zip(order, fitted, strict=True)):
        placed[index] = height + rank * room
    return placed
