"""What every hospital gains, in words and as the rows of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.printable import counted
from report.format import DASH, percent, points, readable
from report.hospitals.model import (
    ALONE,
    COLUMNS,
    ROUTED,
    HospitalResult,
    HospitalsReport,
    Interval,
    LocalCurve,
    Sample,
)


@dataclass(frozen=True, slots=True)
class HospitalRow:
    """One hospital in the table: texts in percent and points, in the order of `table_heads`."""

    name: str
    note: str
    cells: tuple[str, ...]
    together: bool


def gain_headline(report: HospitalsReport) -> str:
    """Return one sentence: what the federation gains over staying alone, of the first measure.

    Where tasks have several measures, it says of which it is.
    """
    first = report.together[0]
    gain, several = first.gain, len(report.together) > 1
    of = f" in {readable(first.measure.value)}" if several else ""
    if gain is None:
        return "The scores of each hospital on its own tasks"
    if gain.low is None and gain.mean > 0:
        told = f"Federated and alone differ by {points(gain.mean)} points{of}"
        return f"{told}; without an interval no gain is shown"
    sample = "" if gain.low is None else f" ({_sample(gain)})"
    told = f"{with_interval(gain)} points{of}{sample}"
    if gain.high is not None and gain.high < 0:
        return f"The federation is worse than staying alone: {told}"
    if gain.mean <= 0 or (gain.low is not None and gain.low <= 0):
        return f"No gain over staying alone is shown: {told}"
    share = "" if first.way is None else f", {share_of_way(first.way)} of the way to pooled data"
    return f"By the federation a hospital gains {told} over staying alone{share}"


def _sample(gain: Interval) -> str:
    """Return over what a gain's interval is."""
    if gain.over is Sample.SEEDS:
        return counted(gain.n, "seed")
    return f"one seed, {counted(gain.n, 'test picture')}"


def share_of_way(way: float) -> str:
    """Return the share of the way to pooled data: "all" where the federation is ahead of it.

    Beyond either end a percentage says nothing: its base is the small difference of pooling.
    """
    if way < 0:
        return "none"
    return "all" if way > 1 else f"{100 * way:.0f} %"


def who_gains(report: HospitalsReport) -> str:
    """Return which hospitals gain nothing, or that every one gains; "" where it is not known."""
    known = [(one, one.gain) for one in report.hospitals if one.gain is not None]
    missing = [_at(one, report) for one in report.hospitals if one.mean[ALONE] is None]
    if not known:
        return "What a hospital gains was not measured: none trained alone."
    nothing = [
        f"{_at(one, report)} ({with_interval(gain)} points)"
        for one, gain in known
        if gain.mean <= 0
    ]
    unshown = [
        f"{_at(one, report)} ({with_interval(gain)} points)"
        for one, gain in known
        if gain.mean > 0 and gain.low is not None and gain.low <= 0
    ]
    unsure = [_at(one, report) for one, gain in known if gain.mean > 0 and gain.low is None]
    parts = [
        f"Nothing is gained at {', '.join(nothing)}." if nothing else "",
        f"No gain is shown at {', '.join(unshown)}: the interval includes zero." if unshown else "",
        f"How sure the gain is at {', '.join(unsure)} is not known: it has no interval."
        if unsure
        else "",
        f"Not measured at {', '.join(missing)}: not trained alone for every task."
        if missing
        else "",
    ]
    return " ".join(part for part in parts if part) or "Every hospital gains."


def how_measured(report: HospitalsReport) -> str:
    """Return over what the intervals are, if there are any, and which learning rates differ."""
    return " ".join(part for part in (_intervals(report), _own_rates(report)) if part)


def _own_rates(report: HospitalsReport) -> str:
    rates = ", ".join(f"{column} {rate:g}" for column, rate in report.rates.items())
    return f"The plan gives some a learning rate of their own: {rates}." if rates else ""


def _intervals(report: HospitalsReport) -> str:
    gain = next((one.gain for one in report.together if one.gain is not None), None)
    if gain is None or gain.low is None:
        return ""
    if gain.over is Sample.SEEDS:
        return f"In brackets 95 % intervals over {gain.n} seeds (Student's t)."
    return (
        f"In brackets 95 % intervals of one seed, by a bootstrap of {gain.n} test pictures with "
        "all their questions: that another seed would train otherwise is not in them."
    )


def table_heads(report: HospitalsReport) -> list[str]:
    """Return the headings of the table's columns after the hospital's name."""
    heads = [*COLUMNS, "gain", "way to pooled"]
    if _routes(report):
        heads.append("stage routed")
    heads += [f"no data: {column}" for column in ("base model", *COLUMNS[1:])]
    return [*heads, *other_methods(report)]


def table_rows(report: HospitalsReport) -> list[HospitalRow]:
    """Return a row for each hospital, and one for all together where there are several."""
    rows = [(one, False) for one in report.hospitals]
    for one in report.together:
        members = [row for row in report.hospitals if row.measure is one.measure]
        rows += [(one, True)] if len(members) > 1 else []
    return [
        HospitalRow(one.site, _note(one, together), tuple(_cells(one, report)), together)
        for one, together in rows
    ]


def other_methods(report: HospitalsReport) -> list[str]:
    """Return the labels of other federated methods that were scored by hospital."""
    known = {*COLUMNS, ROUTED}
    return [name for name in report.together[0].mean if name not in known]


def worth_sentences(report: HospitalsReport) -> list[str]:
    """Return for each curve what the federation is worth to its hospital."""
    return [f"{curve.site}: {_worth(curve)}." for curve in report.curves]


def worth_headline(curves: Sequence[LocalCurve]) -> str:
    """Return one sentence: what the federation is worth in pictures of one's own."""
    beyond = [curve for curve in curves if curve.worth.pictures is None]
    if beyond:
        return (
            f"At {len(beyond)} of {counted(len(curves), 'hospital')} the federation is worth more "
            "than all pictures of its own"
        )
    numbers = sorted(curve.worth.pictures or 0.0 for curve in curves)
    most = counted(round(numbers[-1]), "picture")
    if any(map(_reached_at_once, curves)):
        number = f"at most {most}"
    else:
        least = round(numbers[0])
        number = most if least == round(numbers[-1]) else f"{least} to {most}"
    return f"To a hospital the federation is worth {number} of its own for each task"


def with_interval(gain: Interval) -> str:
    """Return a difference in points, with its interval in brackets."""
    if gain.low is None or gain.high is None:
        return points(gain.mean)
    return f"{points(gain.mean)} [{points(gain.low)}, {points(gain.high)}]"


def _reached_at_once(curve: LocalCurve) -> bool:
    """Return whether the fewest questions go as far as the federation: fewer may do, too."""
    return curve.points[0].score.mean >= curve.federated


def _worth(curve: LocalCurve) -> str:
    worth, last = curve.worth, curve.points[-1]
    if worth.pictures is None or worth.questions is None:
        number = counted(round(last.questions), "question")
        return (
            f"the federation is worth more than the {counted(round(last.pictures), 'picture')} "
            f"({number}) that it has of a task"
        )
    told = (
        f"the federation is worth {'at most ' if _reached_at_once(curve) else ''}"
        f"{counted(round(worth.pictures), 'local picture')} "
        f"({counted(round(worth.questions), 'question')}) of a task"
    )
    if worth.low is not None and worth.high is not None:
        return f"{told}, 95 % interval over seeds {worth.low:.0f} to {worth.high:.0f} pictures"
    if worth.reached < worth.seeds:
        return f"{told} in the mean; it is reached in {worth.reached} of {worth.seeds} seeds"
    return told


def _cells(one: HospitalResult, report: HospitalsReport) -> Iterator[str]:
    yield from (percent(one.mean[column]) for column in COLUMNS)
    yield DASH if one.gain is None else with_interval(one.gain)
    yield DASH if one.way is None else share_of_way(one.way)
    if _routes(report):
        yield percent(one.mean.get(ROUTED))
    elsewhere = one.no_data or {}
    yield from (percent(elsewhere.get(column)) for column in COLUMNS)
    yield from (percent(one.mean.get(name)) for name in other_methods(report))


def _note(one: HospitalResult, together: bool) -> str:
    measure = readable(one.measure.value)
    return measure if together else f"{counted(len(one.tasks), 'task')}, {measure}"


def _routes(report: HospitalsReport) -> bool:
    return any(one.mean.get(ROUTED) is not None for one in report.together)


def _at(one: HospitalResult, report: HospitalsReport) -> str:
    several = len({other.measure for other in report.hospitals}) > 1
    return f"{one.site}, {readable(one.measure.value)}" if several else one.site
