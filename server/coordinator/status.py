"""The status of a coordinator's run and sites, from its folder and from the SuperLink."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from common.bank.bank import Bank
from common.bank.release import INDEX_FILE
from common.errors import Refusal, StateError
from common.plan.file import load_plan, written_digest
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.process.progress import ProgressEvent
from server.aggregation.influence import SiteInfluence
from server.coordinator.events import OFFLINE, all_run_events, final_event
from server.coordinator.registry import enrolled
from server.coordinator.state import State
from server.coordinator.superlink import Node
from server.run.folder import RunFolder
from server.run.journal import Journal, Traffic


class Phase(StrEnum):
    """The phase of a stage."""

    WAITING = "waiting"
    ACTIVE = "active"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The status of one stage.

    Attributes:
        round: rounds that are complete.
        metric: the one of them that the plan names for its task.
        scores: its task's metrics when it was released; empty before, and where each of its
            sites withheld them or had left.
    """

    name: str
    modality: Modality
    sites: tuple[str, ...]
    phase: Phase
    round: int
    rounds: int
    metric: str
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of one run; the attributes are keys of `status --json`.

    Attributes:
        wanted: it is requested, so the keeper supervises it.
        at: the current activity, in words.
        awaited: the sites that the run waits for, and what each of them does.
        ended: done, or the reason of a failure; None while it has not ended.
        traffic: bytes of every answered order.
        last_round: what each site's update did in the last complete round, by site.
    """

    name: str
    wanted: bool
    at: str
    stages: tuple[StageStatus, ...]
    awaited: Mapping[str, str]
    ended: str | None
    traffic: tuple[Traffic, ...]
    last_round: Mapping[str, SiteInfluence] = field(default_factory=dict[str, SiteInfluence])


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """The status of one enrolled site; the attributes are keys of `status --json`.

    Attributes:
        modality: the first of its `modalities`.
        online: None where the SuperLink does not answer.
        seen: when it was last known to be online.
        doing: its activity in the run; empty if none.
        down: bytes of the orders that it answered; `up`: bytes of its answers.
    """

    name: str
    modality: Modality
    online: bool | None
    seen: datetime | None
    doing: str
    down: int
    up: int
    modalities: tuple[Modality, ...] = ()


def run_status(state: State, name: str) -> RunStatus:
    """Return the status of a run.

    Raises:
        Refusal: its plan or its bank can't be read.
    """
    folder, requested, file = state.run(name), state.requested, state.events_file(name)
    plan = _plan_of(name, folder)
    events = all_run_events(plan, file)
    since = requested.since if requested is not None and requested.run == name else 0
    recent = all_run_events(plan, file, since) if since else events
    end = final_event(recent)
    stages = _stages(plan, folder, events, ended=end is not None)
    traffic, last_round = _from_journal(folder)
    return RunStatus(
        name=name,
        wanted=requested is not None and requested.run == name,
        at="" if end is not None else _activity(plan, recent),
        stages=stages,
        awaited={} if end is not None else awaited(recent),
        ended=None if end is None else str(end.get("text") or end["event"]),
        traffic=traffic,
        last_round=last_round,
    )


def _plan_of(name: str, folder: RunFolder) -> Plan:
    """Read the plan of a run.

    Raises:
        Refusal: it can't be read, or is that of another run.
    """
    plan, again = load_plan(folder.plan), "`fedmslora coordinator run PLAN` writes it anew"
    if plan.name != name:
        raise StateError(f"{folder.plan}: found the plan {plan.name!r}, expected {name!r}; {again}")
    digest = written_digest(folder.plan)
    for release in Bank.open(folder.bank).releases if _has_bank(folder) else ():
        if release.plan != digest:
            raise StateError(
                f"{folder.plan}: found the plan {digest[:12]}, expected {release.plan[:12]}, by "
                f"which {release.name!r} was released; {again}"
            )
    return plan


def _has_bank(folder: RunFolder) -> bool:
    return (folder.bank / INDEX_FILE).exists()


def site_statuses(
    state: State, run: RunStatus | None, nodes: Sequence[Node] | None
) -> tuple[SiteStatus, ...]:
    """Return the status of each enrolled site.

    `nodes` are the registered ones; None where the SuperLink is unavailable.
    """
    known = None if nodes is None else {node.pem: node for node in nodes}
    statuses: list[SiteStatus] = []
    for site in enrolled(state.registry).values():
        node = None if known is None else known.get(site.pem)
        cost = () if run is None else [one for one in run.traffic if one.site == site.name]
        statuses.append(
            SiteStatus(
                name=site.name,
                modality=site.modalities[0],
                modalities=site.modalities,
                online=None if known is None else node is not None and node.online,
                seen=None if node is None else node.seen,
                doing="" if run is None else _doing(run, site.name, node, known is not None),
                down=sum(traffic.bytes_down for traffic in cost),
                up=sum(traffic.bytes_up for traffic in cost),
            )
        )
    return tuple(statuses)


def with_presence(run: RunStatus, sites: Sequence[SiteStatus]) -> RunStatus:
    """Return the run's status where an awaited site does what its own line says that it does.

    The run repeats what it waits for every half minute; who is online the SuperLink knows now.
    """
    doing = {site.name: site.doing for site in sites}
    awaited = {site: doing.get(site, what) for site, what in run.awaited.items()}
    return replace(run, awaited=awaited)


def _doing(run: RunStatus, site: str, node: Node | None, known: bool) -> str:
    """Return what a site does in the run, never at odds with whether it is online."""
    doing = run.awaited.get(site, "")
    if not doing or not known:
        return doing
    online = node is not None and node.online
    if online:
        return "connecting" if doing == OFFLINE else doing
    return OFFLINE


def latest_run(state: State) -> str | None:
    """Return the requested run, or else the one with the latest event."""
    if (requested := state.requested) is not None:
        return requested.run
    folders = [state.run(name).root for name in state.run_names()]
    return max(folders, key=_last_written).name if folders else None


def describe_activity(plan: Plan, event: ProgressEvent) -> str:
    """Return the activity that an event announces, in words; empty for most."""
    match event["event"]:
        case "meeting":
            return "the coordinator starts"
        case "scoring":
            task = plan.stages[int(event["task"])].name
            after = event["stage"]
            by = "the base model alone" if after is None else f"stage {after + 1}"
            by = "each site, which trains it alone" if event.get("alone") else by
            return f"scoring {task} by {by}"
        case "stage":
            return f"{plan.stages[int(event['stage'])].name} (stage {event['stage'] + 1})"
        case "round":
            stage = plan.stages[int(event["stage"])]
            if event["round"] == stage.rounds:
                return f"releasing {stage.name} (stage {event['stage'] + 1})"
            return _training(plan, event["stage"], event["round"] + 1)
        case "waiting" if event.get("round"):
            return _training(plan, event["stage"], event["round"])
        case "another coordinator holds the run":
            return "waiting for an earlier process of this run to end"
        case _:
            return ""


def _activity(plan: Plan, events: Sequence[ProgressEvent]) -> str:
    """Return the latest activity that an event announces: also which round sites train."""
    described = (describe_activity(plan, event) for event in reversed(events))
    return next(filter(None, described), "")


def awaited(events: Sequence[ProgressEvent]) -> Mapping[str, str]:
    """Return the sites that the run waits for, and what each of them does."""
    last = last_event(events, {*_ACTIVITIES, "waiting"})
    return last["for"] if last is not None and last["event"] == "waiting" else {}


def last_event(events: Sequence[ProgressEvent], names: set[str]) -> ProgressEvent | None:
    """Return the last event with one of these names."""
    return next((event for event in reversed(events) if event["event"] in names), None)


#: Events that announce an activity.
_ACTIVITIES = {"meeting", "scoring", "stage", "round", "another coordinator holds the run"}


def _training(plan: Plan, stage: int, number: int) -> str:
    name, rounds = plan.stages[stage].name, plan.stages[stage].rounds
    return f"training {name} (stage {stage + 1}), round {number} of {rounds}"


def _stages(
    plan: Plan, folder: RunFolder, events: Sequence[ProgressEvent], *, ended: bool
) -> tuple[StageStatus, ...]:
    releases = Bank.open(folder.bank).releases if _has_bank(folder) else ()
    rounds = {(one["stage"], one["round"]) for one in events if one["event"] == "round"}
    begun = last_event(events, {"stage"})
    statuses: list[StageStatus] = []
    for number, stage in enumerate(plan.stages):
        phase = Phase.WAITING
        if number < len(releases):
            phase = Phase.DONE
        elif begun is not None and begun["stage"] == number and not ended:
            phase = Phase.ACTIVE
        closed = max((r for s, r in rounds if s == number), default=0)
        statuses.append(
            StageStatus(
                stage.name,
                stage.modality,
                stage.sites,
                phase,
                stage.rounds if phase is Phase.DONE else closed,
                stage.rounds,
                stage.metric.value,
                releases[number].scores if number < len(releases) else {},
            )
        )
    return tuple(statuses)


def _from_journal(
    folder: RunFolder,
) -> tuple[tuple[Traffic, ...], dict[str, SiteInfluence]]:
    """Return the run's traffic, and the sites' parts in its last complete round."""
    if not folder.journal.exists():
        return (), {}
    try:
        with closing(Journal(folder, None)) as journal:
            traffic, parts = tuple(journal.traffic()), journal.influences()
    except Refusal:
        # The journal is being made at this moment.
        return (), {}
    last = max(((stage, number) for stage, number, _ in parts), default=None)
    return traffic, {one.site: one for stage, number, one in parts if (stage, number) == last}


def _last_written(folder: Path) -> float:
    files = list((folder / "progress").glob("*.jsonl"))
    return max((file.stat().st_mtime for file in files), default=0.0)
