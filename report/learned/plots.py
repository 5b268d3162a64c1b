"""The chart of each task when it was learned, at the end, and with the stage chosen by picture."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.canvas import Chart, render, wrapped
from report.format import percent, readable
from report.learned.rows import Score, TaskScores, task_scores
from report.model import RunReport
from report.spread import mean
from report.style.colours import COLOURS, INK, MUTED

#: Of each moment its name, its place within a task's row, its marker, and its colour.
_MOMENTS: Sequence[tuple[str, Callable[[TaskScores], Score], float, str, str]] = (
    ("when learned", lambda row: row.learned, -0.2, "o", COLOURS[5]),
    ("at the end", lambda row: row.last, 0.0, "s", COLOURS[0]),
    ("routed", lambda row: row.routed, 0.2, "D", COLOURS[1]),
)


def moments_chart(report: RunReport) -> Chart | None:
    """Draw a row for each task: its scores with intervals, and what knows nothing."""
    rows = task_scores(report)
    shown = [one for one in _MOMENTS if any(one[1](row).value is not None for row in rows)]
    if not shown:
        return None
    figure = Figure(figsize=(8.6, 1.5 + 0.5 * len(rows)))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _baselines(axes, place, row)
        for _, score, shift, marker, colour in shown:
            _point(axes, place + shift, score(row), marker, colour)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(-1, 101)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="x")
    axes.set_xlabel("score (%, each task's own measure); lines: 95 % interval over the questions")
    for name, _, _, marker, colour in shown:
        axes.plot([], [], linestyle="", marker=marker, color=colour, markersize=6, label=name)
    axes.plot([], [], linestyle="", marker="|", color=INK, markersize=9, label="base model")
    axes.plot([], [], linestyle="", marker="|", color=MUTED, markersize=9, markeredgewidth=3,
              label="majority answer")  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    description = "Dots with lines: each task's scores when learned, at the end and routed."
    return render(figure, "moments.svg", _title(rows, shown), description)


def _label(row: TaskScores) -> str:
    count = "" if row.questions is None else f", {row.questions} questions"
    return f"{wrapped(row.stage.name, 22)}\n({readable(row.stage.metric.value)}{count})"


def _baselines(axes: Axes, place: int, row: TaskScores) -> None:
    for value, colour, width in ((row.majority, MUTED, 3.0), (row.zero_shot, INK, 1.2)):
        if value is not None:
            axes.plot([100 * value] * 2, [place - 0.36, place + 0.36], color=colour,
                      linewidth=width, alpha=0.75, solid_capstyle="butt")  # fmt: skip


def _point(axes: Axes, height: float, score: Score, marker: str, colour: str) -> None:
    if score.value is None:
        return
    if score.interval is not None:
        ends = [100 * score.interval.low, 100 * score.interval.high]
        axes.plot(ends, [height] * 2, color=colour, linewidth=1.6, alpha=0.8)
    axes.plot([100 * score.value], [height], marker=marker, color=colour, markersize=6)


def _title(
    rows: Sequence[TaskScores],
    shown: Sequence[tuple[str, Callable[[TaskScores], Score], float, str, str]],
) -> str:
    """Return the means over the tasks that have all shown scores, where they have one measure."""
    whole = [row for row in rows if all(one[1](row).value is not None for one in shown)]
    if not whole or len({row.stage.metric for row in whole}) > 1:
        return "Each task's scores, against the base model and the majority answer"
    means = [
        f"{percent(mean([one[1](row).value or 0.0 for row in whole]))} {one[0]}" for one in shown
    ]
    below = [max(row.zero_shot or 0.0, row.majority or 0.0) for row in whole]
    base = f"{percent(mean(below))} the better of base model and majority answer"
    return f"Mean of {len(whole)} tasks, in percent: {', '.join(means)}; {base}"
