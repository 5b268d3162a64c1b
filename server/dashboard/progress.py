"""How far a run has come, from its events: times, losses, scores, who is left out, who is due."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from statistics import median

from common.errors import Refusal
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.process.progress import ProgressEvent
from server.coordinator.events import OTHER_CODE, all_run_events, file_stamp, final_event
from server.coordinator.state import State

#: Most updates that are named as left out, the latest first.
_LEFT_OUT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """When a stage began and was released (ISO 8601, UTC); None where it has not."""

    began: str | None
    released: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLoss:
    """The sites' mean training losses of a round, by their own word; stages count from 0."""

    stage: int
    round: int
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An answer that does not count, and why."""

    time: str | None
    stage: int
    site: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The answers that are awaited at this moment.

    Attributes:
        since: when the sites were asked (ISO 8601, UTC).
        deadline: after it the quorum suffices; None for scores, which wait less long.
        answered: the number of sites that need not be waited for any more, `of` how many.
    """

    work: str
    stage: int
    round: int
    since: str | None
    deadline: str | None
    quorum: int
    answered: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run has come; the attributes are keys of `status --json`.

    Attributes:
        began, last: the times of the first and of the latest event.
        seconds_left: the usual time of a round, times the rounds that are left; None before the
            first round is complete, and after the end. An estimate: sites may be away for days.
        stages: in the plan's order.
        base: the base model's score on each task; None where it was not scored.
        scores: a row for each stage after which tasks were scored, else None; shape (T, T).
    """

    began: str | None
    last: str | None
    seconds_left: float | None
    stages: tuple[StageTimes, ...]
    losses: tuple[RoundLoss, ...]
    base: tuple[float | None, ...]
    scores: tuple[tuple[float | None, ...] | None, ...]
    left_out: tuple[LeftOut, ...]
    due: Due | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One of a coordinator's runs.

    Attributes:
        state: `done`, `failed`, `requested` or `stopped`.
        released: the number of stages that are released, `of` how many.
        last: the time of the latest event.
    """

    name: str
    state: str
    released: int
    of: int
    last: str | None


def run_progress(state: State, name: str, awaited: Mapping[str, str]) -> RunProgress:
    """Return how far a run has come.

    Args:
        awaited: the sites that it waits for.

    Raises:
        Refusal: its plan can't be read.
    """
    plan = load_plan(state.run(name).plan)
    return progress_of(plan, all_run_events(plan, state.events_file(name)), awaited)


def progress_of(
    plan: Plan, events: Sequence[ProgressEvent], awaited: Mapping[str, str]
) -> RunProgress:
    """Return how far the run of a plan has come by these events."""
    count = range(len(plan.stages))
    rounds = _first(events, "round", ("stage", "round"))
    begun, released = (_first(events, name, ("stage",)) for name in ("stage", "released"))
    scores = {int(one["stage"]): one["scores"] for one in events if one["event"] == "scores"}
    base = {int(one["task"]): one["score"] for one in events if one["event"] == "base"}
    over = final_event(events) is not None and not awaited
    return RunProgress(
        began=_time(events[0]) if events else None,
        last=_time(events[-1]) if events else None,
        seconds_left=None if over else _seconds_left(plan, events),
        stages=tuple(
            StageTimes(began=_time(begun.get((one,))), released=_time(released.get((one,))))
            for one in count
        ),
        losses=tuple(
            RoundLoss(stage=stage, round=number, losses=event["losses"])
            for (stage, number), event in sorted(rounds.items())
        ),
        base=tuple(base.get(one) for one in count),
        scores=tuple(tuple(scores[one]) if one in scores else None for one in count),
        left_out=tuple(_left_out(events)),
        due=_due(plan, events, awaited),
    )


def run_summaries(state: State) -> tuple[RunSummary, ...]:
    """Return every run of a coordinator, the latest first."""
    found = [one for name in state.run_names() if (one := _summary(state, name)) is not None]
    return tuple(sorted(found, key=lambda one: one.last or "", reverse=True))


def _summary(state: State, name: str) -> RunSummary | None:
    requested, files = state.requested, (state.run(name).plan, state.events_file(name))
    since = requested.since if requested is not None and requested.run == name else None
    return _summary_of(name, files, since, tuple(map(file_stamp, files)))


@lru_cache(maxsize=1000)
def _summary_of(
    name: str, files: tuple[Path, Path], since: int | None, _stamps: tuple[object, ...]
) -> RunSummary | None:
    plan_file, file = files
    try:
        plan = load_plan(plan_file)
    except Refusal:
        return None
    events = all_run_events(plan, file)
    recent = events if since is None else all_run_events(plan, file, since)
    end = final_event(recent)
    idle = "stopped" if since is None else "requested"
    return RunSummary(
        name=name,
        state=idle if end is None else str(end["event"]),
        released=len({one["stage"] for one in events if one["event"] == "released"}),
        of=len(plan.stages),
        last=_time(events[-1]) if events else None,
    )


def _first(
    events: Sequence[ProgressEvent], name: str, keys: Sequence[str]
) -> dict[tuple[int, ...], ProgressEvent]:
    """Return the first event of this name for each value of the keys.

    A run that is taken up again writes its earlier events once more.
    """
    found: dict[tuple[int, ...], ProgressEvent] = {}
    for event in events:
        if event["event"] == name:
            found.setdefault(tuple(int(event[key]) for key in keys), event)
    return found


def _time(event: ProgressEvent | None) -> str | None:
    found = None if event is None else event.get("time")
    return found if isinstance(found, str) else None


def _moment(event: ProgressEvent | None) -> datetime | None:
    text = _time(event)
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None


def _seconds_left(plan: Plan, events: Sequence[ProgressEvent]) -> float | None:
    durations: list[float] = []
    seen: set[tuple[int, int]] = set()
    before: datetime | None = None
    for event in events:
        if event["event"] not in ("stage", "round"):
            continue
        now = _moment(event)
        if event["event"] == "round":
            key = (int(event["stage"]), int(event["round"]))
            if key not in seen and before is not None and now is not None:
                durations.append((now - before).total_seconds())
            seen.add(key)
        before = now
    if not durations:
        return None
    left = sum(stage.rounds for stage in plan.stages) - len(seen)
    return max(0.0, left * median(durations))


def _left_out(events: Sequence[ProgressEvent]) -> list[LeftOut]:
    """Return what does not count, the latest first, each once."""
    found: dict[tuple[int, str, str], LeftOut] = {}
    for event in events:
        if event["event"] == "refused":
            site, text = str(event["site"]), str(event["text"])
            one = LeftOut(time=_time(event), stage=int(event["stage"]), site=site, text=text)
            found[one.stage, site, text] = one
    return list(reversed(found.values()))[:_LEFT_OUT]


def _due(plan: Plan, events: Sequence[ProgressEvent], awaited: Mapping[str, str]) -> Due | None:
    if not awaited:
        return None
    waiting = [one for one in events if one["event"] == "waiting" and "stage" in one]
    if not waiting:
        return None
    last = waiting[-1]
    stage, number, work = int(last["stage"]), int(last["round"]), str(last.get("work", "train"))
    same = [
        one
        for one in waiting
        if (one["stage"], one["round"], one.get("work", "train")) == (stage, number, work)
    ]
    # Scores of a task are asked for again after every stage, with the same name.
    since = _moment(same[0] if work == "train" else last)
    asked = plan.stages[stage]
    limit = timedelta(hours=asked.deadline_hours) if work == "train" else None
    return Due(
        work=work,
        stage=stage,
        round=number,
        since=None if since is None else since.isoformat(timespec="seconds"),
        deadline=None
        if since is None or limit is None
        else (since + limit).astimezone(UTC).isoformat(timespec="seconds"),
        quorum=asked.quorum or len(asked.sites),
        answered=len(asked.sites) - len(awaited),
        of=len(asked.sites),
    )


def code_of(site: str, awaited: Mapping[str, str], answered: bool) -> str | None:
    """Return whether a site runs the coordinator's code; None where it has not said yet.

    A site with other code is not asked to train; that is what the run says of it.
    """
    if OTHER_CODE in awaited.get(site, ""):
        return "other"
    return "same" if answered else None
