"""How a coordinator and its run stand: read from what is on the disk and what Flower says."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from common.bank.bank import Bank
from common.bank.release import INDEX_FILE
from common.errors import Refusal
from common.plan import Plan
from common.plan_fields import Modality
from common.plan_file import load_plan
from common.process.progress import ProgressEvent
from server.coordinator.events import ending, read_news
from server.coordinator.registry import enrolled
from server.coordinator.state import State
from server.coordinator.superlink import Node
from server.run.folder import RunFolder
from server.run.journal import Journal, Traffic


class Phase(StrEnum):
    """How far a stage is."""

    WAITING = "waiting"
    ACTIVE = "active"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class StageStanding:
    """One stage.

    Attributes:
        round: rounds that are closed.
        scores: its task's metrics when it was released; empty before.
    """

    name: str
    modality: Modality
    sites: tuple[str, ...]
    phase: Phase
    round: int
    rounds: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunStanding:
    """One run.

    Attributes:
        wanted: it is kept going.
        at: what it does, in words.
        awaited: what each site that is awaited does.
        ended: done, or failed with the reason; None while it is not at its end.
        traffic: bytes of every answered order.
    """

    name: str
    wanted: bool
    at: str
    stages: tuple[StageStanding, ...]
    awaited: Mapping[str, str]
    ended: str | None
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True)
class SiteStanding:
    """One enrolled site.

    Attributes:
        online: None where the SuperLink does not say.
        seen: when it was last known to be there.
        doing: what it does in the run; empty if nothing.
        down: bytes it got of orders that it answered; `up`: bytes of its answers.
    """

    name: str
    modality: Modality
    online: bool | None
    seen: datetime | None
    doing: str
    down: int
    up: int


def run_standing(state: State, name: str) -> RunStanding:
    """How the run stands.

    Raises:
        Refusal: its plan or its bank can't be read.
    """
    folder, wanted = state.run(name), state.wanted
    plan = load_plan(folder.plan)
    ours = wanted is not None and wanted.run == name
    news = fresh = read_news(state.coordinator_news(name))
    if wanted is not None and ours:
        fresh = read_news(state.coordinator_news(name), wanted.since)
    last = ending(fresh)
    at = last_event(fresh, _DOINGS)
    stages = _stages(plan, folder, news, ended=last is not None)
    return RunStanding(
        name=name,
        wanted=ours,
        at="" if last is not None or at is None else doing(plan, at),
        stages=stages,
        awaited={} if last is not None else awaited(fresh),
        ended=None if last is None else str(last.get("text") or last["event"]),
        traffic=_traffic(folder),
    )


def site_standings(
    state: State, run: RunStanding | None, nodes: Sequence[Node] | None
) -> tuple[SiteStanding, ...]:
    """How each enrolled site stands; `nodes` is what Flower knows, None where it is away."""
    known = None if nodes is None else {node.pem: node for node in nodes}
    standings: list[SiteStanding] = []
    for site in enrolled(state.registry).values():
        node = None if known is None else known.get(site.pem)
        cost = () if run is None else [one for one in run.traffic if one.site == site.name]
        standings.append(
            SiteStanding(
                name=site.name,
                modality=site.modality,
                online=None if known is None else node is not None and node.online,
                seen=None if node is None else node.seen,
                doing="" if run is None else run.awaited.get(site.name, ""),
                down=sum(traffic.bytes_down for traffic in cost),
                up=sum(traffic.bytes_up for traffic in cost),
            )
        )
    return tuple(standings)


def latest_run(state: State) -> str | None:
    """The run that is wanted, or else the one that told something last."""
    if (wanted := state.wanted) is not None:
        return wanted.run
    folders = [file.parent for file in (state.root / "runs").glob("*/plan.json")]
    return max(folders, key=_last_told).name if folders else None


def doing(plan: Plan, news: ProgressEvent) -> str:
    """What a piece of news says is being done, in words."""
    match news["event"]:
        case "meeting":
            return "the coordinator starts"
        case "scoring":
            task = plan.stages[int(news["task"])].name
            after = news["stage"]
            by = "the base model alone" if after is None else f"stage {after + 1}"
            return f"scoring {task} by {by}"
        case "stage":
            return f"{plan.stages[int(news['stage'])].name} (stage {news['stage'] + 1})"
        case "round":
            stage = plan.stages[int(news["stage"])]
            if news["round"] == stage.rounds:
                return f"releasing {stage.name} (stage {news['stage'] + 1})"
            return _training(plan, news["stage"], news["round"] + 1)
        case "waiting" if news.get("round"):
            return _training(plan, news["stage"], news["round"])
        case "another coordinator holds the run":
            return "waiting for an earlier process of this run to end"
        case _:
            return ""


def awaited(news: Sequence[ProgressEvent]) -> Mapping[str, str]:
    """What each site does that the run waits for."""
    last = last_event(news, {*_DOINGS, "waiting"})
    return last["for"] if last is not None and last["event"] == "waiting" else {}


def last_event(news: Sequence[ProgressEvent], events: set[str]) -> ProgressEvent | None:
    """The last piece of news of these kinds."""
    return next((one for one in reversed(news) if one["event"] in events), None)


#: News that say what is being done.
_DOINGS = {"meeting", "scoring", "stage", "round", "another coordinator holds the run"}


def _training(plan: Plan, stage: int, number: int) -> str:
    name, rounds = plan.stages[stage].name, plan.stages[stage].rounds
    return f"training {name} (stage {stage + 1}), round {number} of {rounds}"


def _stages(
    plan: Plan, folder: RunFolder, news: Sequence[ProgressEvent], *, ended: bool
) -> tuple[StageStanding, ...]:
    releases = Bank.open(folder.bank).releases if (folder.bank / INDEX_FILE).exists() else ()
    rounds = {(one["stage"], one["round"]) for one in news if one["event"] == "round"}
    begun = last_event(news, {"stage"})
    standings: list[StageStanding] = []
    for number, stage in enumerate(plan.stages):
        phase = Phase.WAITING
        if number < len(releases):
            phase = Phase.DONE
        elif begun is not None and begun["stage"] == number and not ended:
            phase = Phase.ACTIVE
        closed = max((r for s, r in rounds if s == number), default=0)
        standings.append(
            StageStanding(
                stage.name,
                stage.modality,
                stage.sites,
                phase,
                stage.rounds if phase is Phase.DONE else closed,
                stage.rounds,
                releases[number].scores if number < len(releases) else {},
            )
        )
    return tuple(standings)


def _traffic(folder: RunFolder) -> tuple[Traffic, ...]:
    if not folder.journal.exists():
        return ()
    try:
        with closing(Journal(folder, None)) as journal:
            return tuple(journal.traffic())
    except Refusal:
        # It is just being made.
        return ()


def _last_told(folder: Path) -> float:
    files = list((folder / "progress").glob("*.jsonl"))
    return max((file.stat().st_mtime for file in files), default=0.0)
