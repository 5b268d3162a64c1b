"""A coordinator's status, as JSON values and as tables for a terminal."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.errors import StateError
from common.process.supervise import running_pid
from server.coordinator.certificates import days_left
from server.coordinator.state import State
from server.coordinator.status import (
    RunStatus,
    SiteStatus,
    latest_run,
    run_status,
    site_statuses,
    with_presence,
)
from server.coordinator.superlink import Node, SuperLink, SuperLinkUnavailable

_MIB = 2**20


def document(opened: State, superlink: SuperLink, run_name: str | None) -> dict[str, Any]:
    """Return the status of the named run, or of the latest, as JSON values.

    Raises:
        StateError: there is no run of this name.
    """
    run, sites, answers = _read(opened, superlink, run_name)
    return {
        "address": opened.settings.address,
        "process": running_pid(opened.pid_file),
        "superlink": answers,
        "certificate_days": days_left(opened.tls / "server.crt"),
        "run": run and asdict(run) | {"folder": str(opened.run(run.name).root)},
        "sites": [
            asdict(site) | {"seen": None if site.seen is None else site.seen.isoformat()}
            for site in sites
        ],
    }


def tables(opened: State, superlink: SuperLink, run_name: str | None) -> Group:
    """Return the status as tables; raises as `document` does."""
    run, sites, answers = _read(opened, superlink, run_name)
    return _tables(opened.settings.address, run, sites, answers=answers)


def watch(opened: State, superlink: SuperLink, run_name: str | None) -> None:
    """Refresh the status until Ctrl-C."""
    try:
        with Live(tables(opened, superlink, run_name), auto_refresh=False) as live:
            while True:
                time.sleep(2.0)
                live.update(tables(opened, superlink, run_name), refresh=True)
    except KeyboardInterrupt:
        return


def _read(
    opened: State, superlink: SuperLink, run_name: str | None
) -> tuple[RunStatus | None, Sequence[SiteStatus], bool]:
    """Return the run, the sites, and whether the SuperLink answers."""
    nodes: Sequence[Node] | None = None
    try:
        nodes = superlink.nodes()
    except SuperLinkUnavailable:
        pass
    name = run_name or latest_run(opened)
    if run_name is not None and not opened.run(run_name).plan.exists():
        raise StateError(f"--run: found no run {run_name!r} in {opened.root / 'runs'}")
    run = None if name is None else run_status(opened, name)
    sites = site_statuses(opened, run, nodes)
    return run and with_presence(run, sites), sites, nodes is not None


def _tables(
    address: str, run: RunStatus | None, sites: Sequence[SiteStatus], *, answers: bool
) -> Group:
    shown: list[RenderableType] = [
        Text(f"coordinator at {address}: {'running' if answers else 'not running'}")
    ]
    if run is None:
        shown.append(Text("no run yet; start one with fedmslora coordinator run PLAN"))
    else:
        shown += [Text(f"run {run.name}: {_state(run)}"), _stages(run)]
        if run.awaited:
            waits = "; ".join(f"{site}: {what}" for site, what in run.awaited.items())
            shown.append(Text(f"waiting for  {waits}"))
    if run is not None and run.last_round:
        shown += [Text("what updates did in the last complete round"), _last_round(run)]
    shown.append(
        _sites(sites) if sites else Text("no site yet; add one with fedmslora coordinator enroll")
    )
    return Group(*shown)


def _state(run: RunStatus) -> str:
    if run.ended is not None:
        return run.ended
    if not run.wanted:
        return "stopped; fedmslora coordinator run continues it"
    return run.at or "starting"


def _stages(run: RunStatus) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "modality", "sites", "state"):
        table.add_column(column, overflow="fold")
    table.add_column("round", justify="right")
    table.add_column("score", overflow="fold")
    for stage in run.stages:
        score = stage.scores.get(stage.metric)
        scores = "" if score is None else f"{stage.metric} {score:.3f}"
        rounds = f"{stage.round}/{stage.rounds}"
        sites = ", ".join(stage.sites)
        table.add_row(stage.name, stage.modality.value, sites, stage.phase.value, rounds, scores)
    return table


def _last_round(run: RunStatus) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("site")
    for column in ("share", "norm of change", "cosine to others", "scaled by"):
        table.add_column(column, justify="right")
    table.add_column("unlike the others", overflow="fold")
    for site, one in sorted(run.last_round.items()):
        cosine = "" if one.cosine is None else f"{one.cosine:.2f}"
        scaled = "" if one.scaled == 1 else f"{one.scaled:.2g}"
        norm, why = f"{one.norm:.3g}", one.outlier or ""
        table.add_row(site, f"{100 * one.share:.1f} %", norm, cosine, scaled, why)
    return table


def _sites(sites: Sequence[SiteStatus]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("site", "modality", "online", "last seen", "activity"):
        table.add_column(column, overflow="fold")
    for column in ("MiB down", "MiB up"):
        table.add_column(column, justify="right")
    for site in sites:
        online = "?" if site.online is None else "yes" if site.online else "no"
        table.add_row(
            site.name,
            ", ".join(site.modalities or (site.modality,)),
            online,
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
