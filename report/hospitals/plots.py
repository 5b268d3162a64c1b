"""The charts of what every hospital gains."""

# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.canvas import Chart, render, wrapped
from report.format import points, readable
from report.hospitals.model import (
    ALONE,
    COLUMNS,
    FEDERATED,
    POOLED,
    HospitalResult,
    HospitalsReport,
    LocalCurve,
)
from report.hospitals.words import gain_headline, table_rows, worth_headline
from report.style.colours import COLOURS, INK, MUTED, PAPER

_MARKS: Mapping[str, tuple[str, str, str]] = {
    ALONE: ("o", PAPER, COLOURS[1]),
    FEDERATED: ("o", COLOURS[0], COLOURS[0]),
    POOLED: ("D", PAPER, COLOURS[2]),
}
_NAMES: Mapping[str, str] = {
    ALONE: "alone (where it has no data: the base model)",
    FEDERATED: "federated",
    POOLED: "pooled: all data in one place",
}


def hospitals_chart(report: HospitalsReport | None) -> Chart | None:
    """Draw a row for each hospital: alone, federated, pooled; with and without own data."""
    if report is None:
        return None
    rows = [*report.hospitals]
    if len(table_rows(report)) > len(rows):
        rows += report.together
    panels: list[Sequence[Mapping[str, float | None] | None]] = [[one.mean for one in rows]]
    titles = ["its own tasks, its own test questions"]
    if any(one.no_data for one in rows):
        panels.append([one.no_data for one in rows])
        titles.append("tasks that it has no data of")
    figure = Figure(figsize=(8.6, 1.75 + 0.46 * len(rows)))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, scores, title in zip(grid.flat, panels, titles, strict=True):
        _draw_rows(axes, scores)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("%", fontsize=8)
    _name_rows(grid.flat[0], rows)
    for row, one in enumerate(rows):
        _tell_gain(grid.flat[0], row, one)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    description = "Dots: each hospital's score alone, federated and with pooled data."
    return render(figure, "hospitals.svg", gain_headline(report), description)


def _draw_rows(axes: Axes, rows: Sequence[Mapping[str, float | None] | None]) -> None:
    for row, scores in enumerate(rows):
        alone, federated = (None if scores is None else scores[c] for c in (ALONE, FEDERATED))
        if alone is not None and federated is not None:
            axes.plot([100 * alone, 100 * federated], [row, row], color="#9db7cc", linewidth=3,
                      zorder=1, solid_capstyle="butt")  # fmt: skip
    for column in COLUMNS:
        marker, face, edge = _MARKS[column]
        known = [
            (100 * score, row)
            for row, scores in enumerate(rows)
            if scores is not None and (score := scores[column]) is not None
        ]
        axes.plot([x for x, _ in known], [y for _, y in known], linestyle="none", marker=marker,
                  markersize=7 if marker == "o" else 6, markerfacecolor=face,
                  markeredgecolor=edge, markeredgewidth=1.6, label=_NAMES[column])  # fmt: skip
    axes.grid(axis="x")
    axes.margins(x=0.12)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)


def _name_rows(axes: Axes, rows: Sequence[HospitalResult]) -> None:
    several = len({one.measure for one in rows}) > 1
    names = [
        f"{wrapped(one.site, 20)}\n{readable(one.measure.value)}"
        if several
        else wrapped(one.site, 20)
        for one in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=9, color=INK)


def _tell_gain(axes: Axes, row: int, one: HospitalResult) -> None:
    federated, alone = one.mean[FEDERATED], one.mean[ALONE]
    if one.gain is not None and federated is not None and alone is not None:
        axes.annotate(points(one.gain.mean), (50 * (alone + federated), row), (0, 7),
                      textcoords="offset points", ha="center", fontsize=8, color=INK)  # fmt: skip


def curves_chart(report: HospitalsReport | None) -> Chart | None:
    """Draw a panel for each hospital: its score alone by its questions, and the federation's."""
    if report is None or not report.curves:
        return None
    curves = report.curves
    columns = min(3, len(curves))
    lines = ceil(len(curves) / columns)
    figure = Figure(figsize=(8.6, 0.9 + 2.3 * lines))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    flat: list[Axes] = list(panels.flat)
    for axes in flat[len(curves) :]:
        axes.set_visible(False)
    for axes, curve in zip(flat, curves, strict=False):
        _curve(axes, curve)
    for axes in flat[::columns]:
        axes.set_ylabel("score on its own tasks (%)", fontsize=8)
    description = "Lines: a lone hospital's score by the number of its own training questions."
    title = worth_headline(curves)
    return render(figure, "hospital_curves.svg", title, description)


def _curve(axes: Axes, curve: LocalCurve) -> None:
    at = [point.questions for point in curve.points]
    scores = [100 * point.score.mean for point in curve.points]
    axes.plot(at, scores, color=COLOURS[1], marker="o", markersize=4, linewidth=1.6)
    known = [point for point in curve.points if point.score.low is not None]
    if known:
        axes.fill_between([point.questions for point in known],
                          [100 * (point.score.low or 0.0) for point in known],
                          [100 * (point.score.high or 0.0) for point in known],
                          color=COLOURS[1], alpha=0.15, linewidth=0)  # fmt: skip
    axes.axhline(100 * curve.federated, color=COLOURS[0], linewidth=1.6)
    axes.annotate("federated", (at[0], 100 * curve.federated), (0, 3),
                  textcoords="offset points", fontsize=8, color=COLOURS[0])  # fmt: skip
    if curve.worth.questions is not None:
        axes.axvline(curve.worth.questions, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{number:.0f}" for number in at], fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_title(wrapped(curve.site, 24), fontsize=9)
    axes.set_xlabel("own training questions of a task", fontsize=8)
    axes.grid(axis="y")
