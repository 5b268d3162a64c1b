"""How a coordinator's status looks on a terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.status import RunStanding, SiteStanding

_MIB = 2**20


def picture(
    address: str, run: RunStanding | None, sites: Sequence[SiteStanding], *, answers: bool
) -> Group:
    """The run's stages, the sites and who is awaited."""
    shown: list[RenderableType] = [
        Text(f"coordinator at {address}: {'running' if answers else 'not running'}")
    ]
    if run is None:
        shown.append(Text("no run yet: fedmslora coordinator run PLAN"))
    else:
        shown += [Text(f"run {run.name}: {_state(run)}"), _stages(run)]
        if run.awaited:
            waits = "; ".join(f"{site}: {what}" for site, what in run.awaited.items())
            shown.append(Text(f"awaited  {waits}"))
    shown.append(_sites(sites) if sites else Text("no site yet: fedmslora coordinator enroll"))
    return Group(*shown)


def _state(run: RunStanding) -> str:
    if run.ended is not None:
        return run.ended
    if not run.wanted:
        return "stopped; fedmslora coordinator run goes on from there"
    return run.at or "starting"


def _stages(run: RunStanding) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "modality", "sites", "state"):
        table.add_column(column, overflow="fold")
    table.add_column("round", justify="right")
    table.add_column("scores", overflow="fold")
    for stage in run.stages:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in sorted(stage.scores.items()))
        rounds = f"{stage.round}/{stage.rounds}"
        sites = ", ".join(stage.sites)
        table.add_row(stage.name, stage.modality.value, sites, stage.phase.value, rounds, scores)
    return table


def _sites(sites: Sequence[SiteStanding]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("site", "modality", "there", "last seen", "doing"):
        table.add_column(column, overflow="fold")
    for column in ("MiB down", "MiB up"):
        table.add_column(column, justify="right")
    for site in sites:
        there = "?" if site.online is None else "yes" if site.online else "no"
        table.add_row(
            site.name,
            site.modality.value,
            there,
            _ago(site.seen),
            site.doing,
            f"{site.down / _MIB:.1f}",
            f"{site.up / _MIB:.1f}",
        )
    return table


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0, round((datetime.now(UTC) - moment).total_seconds()))
    if seconds < 120:
        return f"{seconds} s ago"
    if seconds < 7200:
        return f"{seconds // 60} min ago"
    return f"{moment:%Y-%m-%d %H:%M} UTC"
