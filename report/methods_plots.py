"""The charts that compare methods: by task, and over the whole run."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.plan.plan import Metric
from report.canvas import MARKERS, Chart, render, wrapped, xy
from report.format import mean_spread, readable
from report.headlines import MethodScores, comparison_headline, scores_by_method
from report.methods import SHOWN, MethodSummary, summaries
from report.model import RunReport, metrics_by_kind
from report.style.colours import COLOURS, GRID, INK, MUTED, PAPER


def comparison(reports: Sequence[RunReport]) -> Chart:
    """Draw a row for each task: every method after the last stage, and both baselines."""
    first, methods = reports[0], scores_by_method(reports)
    count = len(first.stages)
    step = 0.46 / max(1, len(methods) - 1)
    row = 0.36 + 0.13 * len(methods)
    figure = Figure(figsize=(8.6, 1.5 + row * count))
    axes = figure.add_subplot()
    for scores, marker, name, face in (
        (first.zero_shot, "|", "base model, zero-shot", MUTED),
        (first.majority, "D", "majority answer of the training data", PAPER),
    ):
        points = [(100 * s, task) for task, s in enumerate(scores) if s is not None]
        axes.plot(*xy(points), linestyle="none", marker=marker, color=MUTED, label=name,
                  markersize=10 if marker == "|" else 5, markerfacecolor=face)  # fmt: skip
    for index, method in enumerate(methods):
        shift = 0.0 if len(methods) == 1 else -0.23 + index * step
        _dots(axes, method, shift, index)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_yticks(range(count), [_row_label(first, task) for task in range(count)], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.hlines([task + 0.5 for task in range(count - 1)], -3, 103, color=GRID, linewidth=0.8)
    axes.set_xlabel(_x_label(methods))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, handletextpad=0.4)
    description = "Dots: every method's score on each task after the last stage, and baselines."
    return render(figure, "comparison.svg", comparison_headline(reports), description)


def _dots(axes: Axes, method: MethodScores, shift: float, index: int) -> None:
    points = [(score, task + shift) for task, score in enumerate(method.last) if score is not None]
    colour = COLOURS[index % len(COLOURS)]
    spread = [(score.mean, score.deviation, y) for score, y in points if score.deviation]
    axes.errorbar([100 * mean for mean, _, _ in spread], [y for _, _, y in spread],
                  xerr=[100 * deviation for _, deviation, _ in spread],
                  linestyle="none", color=colour, capsize=3)  # fmt: skip
    axes.plot(*xy([(100 * score.mean, y) for score, y in points]), linestyle="none",
              marker=MARKERS[index % len(MARKERS)], color=colour, markersize=7,
              label=method.method)  # fmt: skip


def _row_label(report: RunReport, task: int) -> str:
    stage = report.stages[task]
    return f"{wrapped(stage.name, 24)}\n{readable(stage.metric.value)}"


def _x_label(methods: Sequence[MethodScores]) -> str:
    seeds = max(len(method.seeds) for method in methods)
    spread = f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    return f"score after the last stage (%){spread}"


def methods(reports: Sequence[RunReport]) -> Chart | None:
    """Draw a panel for every measure and metric: a row with mean and spread for each method.

    A single run has no such chart.
    """
    if len(reports) < 2:
        return None
    rows = summaries(reports)
    panels = [
        (kind, name)
        for kind in rows[0].metrics
        for name in SHOWN
        if any(row.metrics[kind][name] for row in rows)
    ]
    if not panels:
        return None
    height = 0.75 + 0.27 * len(rows)
    lines = -(-len(panels) // len(SHOWN))
    figure = Figure(figsize=(8.6, 1.0 + height * lines))
    grid = figure.subplots(lines, len(SHOWN), squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index < len(panels):
            _panel(axes, reports, rows, panels[index])
        else:
            axes.set_visible(False)
    figure.supxlabel(f"percent and points; {_bars_legend(rows)}", fontsize=8, color=MUTED)
    description = "Dots with bars: mean and standard deviation of every method over its seeds."
    return render(figure, "methods.svg", _title(rows), description)


def _panel(
    axes: Axes,
    reports: Sequence[RunReport],
    rows: Sequence[MethodSummary],
    which: tuple[Metric, str],
) -> None:
    kind, name = which
    for y, row in enumerate(rows):
        colour = COLOURS[y % len(COLOURS)]
        runs = [metrics_by_kind(run)[kind] for run in reports if run.method == row.method]
        seeds = [100 * value for run in runs if (value := getattr(run, name)) is not None]
        axes.plot(seeds, [y - 0.24] * len(seeds), linestyle="none", marker=".", color=colour,
                  alpha=0.5, markersize=4)  # fmt: skip
        if spread := row.metrics[kind][name]:
            axes.errorbar(100 * spread.mean, y, xerr=100 * (spread.deviation or 0.0),
                          color=colour, capsize=3, linewidth=1.4)  # fmt: skip
            axes.plot(100 * spread.mean, y, linestyle="none", color=colour,
                      marker=MARKERS[y % len(MARKERS)], markersize=5)  # fmt: skip
    if name != "last":
        axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.set_title(f"{readable(name)}\n{readable(kind.value)}", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.margins(x=0.12)


def _bars_legend(rows: Sequence[MethodSummary]) -> str:
    seeds = max(len(row.seeds) for row in rows)
    if seeds == 1:
        return "a single seed"
    return f"bars: mean and standard deviation of {seeds} seeds; small dots: each seed"


def _title(rows: Sequence[MethodSummary]) -> str:
    """Return one sentence: which method ends highest, in the first measure with two methods."""
    for kind in rows[0].metrics:
        ends = [(row.method, spread) for row in rows if (spread := row.metrics[kind]["last"])]
        if len(ends) > 1:
            method, spread = max(ends, key=lambda end: end[1].mean)
            measure = readable(kind.value)
            return f"{method} ends highest of {len(ends)} methods: {mean_spread(spread)} {measure}"
    return f"{rows[0].method} over its seeds"
