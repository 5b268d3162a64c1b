"""A coordinator's status as JSON values: for `status --json`, and for the dashboard."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

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
from server.dashboard.progress import code_of, run_progress, run_summaries


def status_document(opened: State, superlink: SuperLink, run_name: str | None) -> dict[str, Any]:
    """Return the status of the named run, or of the latest, as JSON values.

    Raises:
        StateError: there is no run of this name.
    """
    run, sites, answers = read_status(opened, superlink, run_name)
    return {
        "address": opened.settings.address,
        "process": running_pid(opened.pid_file),
        "superlink": answers,
        "certificate_days": days_left(opened.tls / "server.crt"),
        "run": None if run is None else _run_document(opened, run),
        "runs": [asdict(one) for one in run_summaries(opened)],
        "sites": [_site_document(site, run) for site in sites],
    }


def _run_document(opened: State, run: RunStatus) -> dict[str, Any]:
    progress = run_progress(opened, run.name, run.awaited)
    folder = str(opened.run(run.name).root)
    return asdict(run) | {"folder": folder, "progress": asdict(progress)}


def _site_document(site: SiteStatus, run: RunStatus | None) -> dict[str, Any]:
    code = None if run is None else code_of(site.name, run.awaited, answered=site.up > 0)
    seen = None if site.seen is None else site.seen.isoformat()
    return asdict(site) | {"seen": seen, "code": code}


def read_status(
    opened: State, superlink: SuperLink, run_name: str | None
) -> tuple[RunStatus | None, Sequence[SiteStatus], bool]:
    """Return the run, the sites, and whether the SuperLink answers.

    Raises:
        StateError: there is no run of this name.
    """
    nodes: Sequence[Node] | None = None
    try:
        nodes = superlink.nodes()
    except SuperLinkUnavailable:
        pass
    name = run_name or latest_run(opened)
    # A name that a browser sends may be a path to anywhere.
    if run_name is not None and run_name not in opened.run_names():
        known = ", ".join(opened.run_names()) or "none"
        raise StateError(f"--run: found no run {run_name!r}, expected one of: {known}")
    run = None if name is None else run_status(opened, name)
    sites = site_statuses(opened, run, nodes)
    return run and with_presence(run, sites), sites, nodes is not None
