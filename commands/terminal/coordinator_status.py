"""A coordinator's status as tables for a terminal, and as lines for a file."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from commands.options import typed
from commands.terminal.fitting_table import FittingTable
from common.printable import byte_size, counted
from server.coordinator.certificates import days_left
from server.coordinator.follow import ActivityLines
from server.coordinator.state import State
from server.coordinator.status import Phase, RunStatus, SiteStatus
from server.coordinator.superlink import SuperLink
from server.dashboard.status_document import read_status

_REFRESH_S = 2.0
#: Days before the certificate's end from which on its renewal is asked for.
_LAST_DAYS = 30


def tables(opened: State, superlink: SuperLink, run_name: str | None) -> Group:
    """Return the status as tables; raises as `read_status` does."""
    run, sites, answers = read_status(opened, superlink, run_name)
    return _with_warning(opened, _tables(opened.settings.address, run, sites, answers=answers))


def expiry_warning(opened: State) -> str | None:
    """Return what to do about a certificate in its last month; None before that."""
    days = days_left(opened.tls / "server.crt")
    if days >= _LAST_DAYS:
        return None
    what = "has expired" if days < 0 else f"expires in {counted(days, 'day')}"
    return f"The certificate {what}: {typed('coordinator init --renew')}"


def watch(opened: State, superlink: SuperLink, run_name: str | None) -> None:
    """Refresh the status until the run ends, or until Ctrl-C.

    On a terminal as tables in place; in a file or a pipe as lines, of what changes.
    """
    try:
        if Console().is_terminal:
            _watch_tables(opened, superlink, run_name)
        else:
            _watch_lines(opened, superlink, run_name)
    except KeyboardInterrupt:
        return


def _watch_tables(opened: State, superlink: SuperLink, run_name: str | None) -> None:
    with Live(auto_refresh=False) as live:
        while True:
            run, sites, answers = read_status(opened, superlink, run_name)
            shown = _tables(opened.settings.address, run, sites, answers=answers)
            live.update(_with_warning(opened, shown), refresh=True)
            if _is_over(run):
                return
            time.sleep(_REFRESH_S)


def _watch_lines(opened: State, superlink: SuperLink, run_name: str | None) -> None:
    lines, said = ActivityLines(), ""
    while True:
        run, sites, _ = read_status(opened, superlink, run_name)
        text = "no run yet" if run is None else _line(run, sites)
        over = _is_over(run)
        due = text if over and text != said else lines.line(text, time.monotonic())
        if due is not None:
            said = due
            print(f"{datetime.now(UTC):%H:%M:%S} UTC  {due}", flush=True)
        if over:
            return
        time.sleep(_REFRESH_S)


def _is_over(run: RunStatus | None) -> bool:
    """Return whether there is a run which has ended or was stopped, so nothing more happens."""
    return run is not None and (run.ended is not None or not run.wanted)


def _line(run: RunStatus, sites: Sequence[SiteStatus]) -> str:
    released = sum(stage.phase is Phase.DONE for stage in run.stages)
    online = sum(site.online is True for site in sites)
    parts = [
        f"run {run.name}: {_state(run)}",
        f"{released} of {counted(len(run.stages), 'stage')} released",
        f"{online} of {counted(len(sites), 'site')} online",
    ]
    if run.awaited:
        waits = ", ".join(f"{site} ({what})" for site, what in run.awaited.items())
        parts.append(f"waiting for {waits}")
    return "; ".join(parts)


def _with_warning(opened: State, shown: Group) -> Group:
    warning = expiry_warning(opened)
    return shown if warning is None else Group(Text(warning), shown)


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


def _stages(run: RunStatus) -> FittingTable:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "modality", "sites", "state"):
        table.add_column(column, overflow="fold")
    table.add_column("round", justify="right")
    table.add_column("score", overflow="fold")
    for stage in run.stages:
        score = stage.scores.get(stage.metric)
        scores = "" if score is None else f"{stage.metric} {score:.3f}"
        if stage.phase is Phase.DONE and not stage.scores:
            scores = "not scored"
        rounds = f"{stage.round}/{stage.rounds}"
        sites = ", ".join(stage.sites)
        table.add_row(stage.name, stage.modality.value, sites, stage.phase.value, rounds, scores)
    return FittingTable(table)


def _last_round(run: RunStatus) -> FittingTable:
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
    return FittingTable(table)


def _sites(sites: Sequence[SiteStatus]) -> FittingTable:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("site", "modality", "online", "last seen", "activity"):
        table.add_column(column, overflow="fold")
    for column in ("received", "sent"):
        table.add_column(column, justify="right")
    for site in sites:
        online = "?" if site.online is None else "yes" if site.online else "no"
        table.add_row(
            site.name,
            ", ".join(site.modalities or (site.modality,)),
            online,
            _ago(site.seen),
            site.doing,
            byte_size(site.down),
            byte_size(site.up),
        )
    return FittingTable(table)


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0, round((datetime.now(UTC) - moment).total_seconds()))
    if seconds < 120:
        return f"{seconds} s ago"
    if seconds < 7200:
        return f"{seconds // 60} min ago"
    return f"{moment:%Y-%m-%d %H:%M} UTC"
