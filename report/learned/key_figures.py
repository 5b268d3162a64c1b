"""The figures at the top of a report's page."""

from collections.abc import Iterator
from dataclasses import dataclass

from common.printable import counted
from report.format import DASH, percent, points, readable
from report.headlines import drops, gains, why_no_drop
from report.learned.verdict import GainVerdict, gains_when_learned, run_gain, verdicts
from report.model import RunReport, metrics_by_kind


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A figure at the top of the page, with a note under it."""

    name: str
    value: str
    note: str


def key_figures(report: RunReport) -> list[KeyFigure]:
    """Return score and gain first, then what was learned and forgotten."""
    sites = {site for stage in report.stages for site in stage.sites}
    gained = gains_when_learned(report)
    learned = len(verdicts(gained, GainVerdict.LEARNED))
    unknown = all(one.verdict is GainVerdict.UNKNOWN for one in gained)
    figures = [*_mean_figures(report)]
    figures += [
        KeyFigure(
            "Tasks learned",
            DASH if unknown else f"{learned} of {len(gained)}",
            "not known: no interval" if unknown else "gain shown to be above zero",
        ),
        _forgetting(report),
    ]
    if more := gains(report):
        worst, least = min(more, key=lambda entry: entry[1])
        note = f"points over zero-shot and majority, when learned ({worst})"
        figures.append(KeyFigure("Smallest gain", points(least), note))
    figures += [
        KeyFigure("Sites", str(len(sites)), ", ".join(sorted(sites))),
    ]
    return figures


def _mean_figures(report: RunReport) -> Iterator[KeyFigure]:
    whole = run_gain(report)
    if whole is None:
        return
    moment = "at the end" if whole.at_end else "when learned"
    over = f"{moment}, mean of {counted(whole.tasks, 'task')}"
    yield KeyFigure("Score", f"{percent(whole.score)} %", f"{readable(whole.measure)}, {over}")
    if whole.gain is not None:
        span = whole.interval
        note = "no interval" if span is None else f"{points(span.low)} to {points(span.high)}"
        yield KeyFigure("Gain", points(whole.gain), f"points ({note}) over the baselines, {moment}")


def _forgetting(report: RunReport) -> KeyFigure:
    """Return mean forgetting if all tasks have one measure, else the largest drop of a task.

    Where no task is shown to be learned, a forgetting of 0 would say nothing.
    """
    by_kind = metrics_by_kind(report)
    only = next(iter(by_kind.values())).forgetting if len(by_kind) == 1 else None
    lost = drops(report)
    if lost and max(most for _, most in lost) == 0 and not _some_learned(report):
        return KeyFigure("Forgetting", DASH, "no task is shown to be learned")
    if only is not None:
        return KeyFigure("Forgetting", f"{100 * only:.1f}", "points, mean over the earlier tasks")
    if not lost:
        return KeyFigure("Forgetting", DASH, why_no_drop(report))
    worst, most = max(lost, key=lambda entry: entry[1])
    note = "largest of any task" if most == 0 else worst
    return KeyFigure("Forgetting", f"{100 * most:.1f}", f"points, {note}")


def _some_learned(report: RunReport) -> bool:
    return bool(verdicts(gains_when_learned(report), GainVerdict.LEARNED))
