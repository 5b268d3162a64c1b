"""`fedmslora coordinator`: set up and run the coordinator of a federation."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
import shlex
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import Json, refuse_beside, typed

if TYPE_CHECKING:
    from server.coordinator.processes import ProcessName
    from server.coordinator.registry import EnrolledSite
    from server.coordinator.state import RequestedRun, State
    from server.coordinator.superlink import SuperLink

app = typer.Typer(
    no_args_is_help=True, help="The coordinator of a federation: enroll sites, run plans."
)

Folder = Annotated[Path, typer.Option("--state", help="The coordinator's folder.")]

_HERE = Path("coordinator")


@app.command("init")
def init(
    host: Annotated[
        list[str] | None,
        typer.Option(help="This machine's name or address for sites, repeatable; else localhost."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The only port that is open to the sites.")
    ] = 8443,
    bind: Annotated[str, typer.Option(help="The address that this port is bound to.")] = "0.0.0.0",
    inner_host: Annotated[
        str,
        typer.Option(
            help="The SuperLink's address for the other processes; in Docker its service name."
        ),
    ] = "127.0.0.1",
    inner_port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="The SuperLink's port; don't open it to the network."),
    ] = 8000,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Only renew the server certificate; the sites need nothing new."
        ),
    ] = False,
    state: Folder = _HERE,
) -> None:
    """Create a coordinator's folder: certificates, keys and a first plan.

    Example: fedmslora coordinator init --host fed.example.org
    """
    from server.coordinator.init import init_coordinator, renew_certificate
    from server.coordinator.state import CoordinatorSettings, State

    if renew:
        refuse_beside("--renew", ("port", "bind", "inner_host", "inner_port"))
        names = renew_certificate(State.open(state), host or ())
        typer.echo(
            f"Renewed the certificate for {', '.join(names)}. Restart the coordinator to use it."
        )
        return
    settings = CoordinatorSettings(
        hosts=tuple(host or ("localhost",)),
        port=port,
        bind=bind,
        inner_host=inner_host,
        inner_port=inner_port,
        wait_s=60.0,
        slack_s=600.0,
    )
    _print_next_steps(init_coordinator(state, settings), state)


@app.command("start")
def start(
    part: Annotated[
        str | None,
        typer.Option(help="Run only superlink, superexec, edge or keeper, as a container does."),
    ] = None,
    dashboard: Annotated[
        bool,
        typer.Option("--dashboard", help="Show a page of the run and the sites on this machine."),
    ] = False,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The page's port on 127.0.0.1.")
    ] = 8470,
    state: Folder = _HERE,
) -> None:
    """Run the coordinator until it is stopped; processes that end are restarted.

    Example: fedmslora coordinator start
    """
    from commands.terminal.coordinator_status import expiry_warning
    from common.network.ports import NeededPort, check_free
    from common.process.supervise import single_instance, supervise, until_signalled
    from server.coordinator.processes import exec_process, needed_ports, processes
    from server.coordinator.state import State

    opened = State.open(state)
    ports = needed_ports(opened)
    if part is not None:
        name = _which(part)
        refuse_beside("--part", ("dashboard", "dashboard_port"))
        check_free([ports[name]] if name in ports else [])
        exec_process(name, opened)
    if (warning := expiry_warning(opened)) is not None:
        typer.echo(warning)
    with single_instance(opened.pid_file), until_signalled() as stop:
        page = [NeededPort("127.0.0.1", dashboard_port, "--dashboard-port")] if dashboard else []
        check_free([*ports.values(), *page])
        settings = opened.settings
        typer.echo(f"Listening for sites at {settings.address}; logs are in {opened.logs}")
        if dashboard:
            typer.echo(f"Dashboard: http://127.0.0.1:{dashboard_port}/ (on this machine alone)")
        supervise(processes(opened, dashboard_port if dashboard else None), stop)
    typer.echo("Stopped. `fedmslora coordinator start` continues from here; nothing is lost.")


@app.command("enroll")
def enroll(
    key: Annotated[
        Path | None, typer.Argument(metavar="SITE.pub", help="The site's public key.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The site's pseudonym, as in plans.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="A modality of its data; may be repeated.")
    ] = None,
    leave: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Remove this site from the federation, instead of enrolling one."
        ),
    ] = None,
    state: Folder = _HERE,
) -> None:
    """Enroll a site in the federation, or remove one.

    Example: fedmslora coordinator enroll north.pub --name north --modality ct
    """
    from common.errors import StateError
    from server.coordinator import registry
    from server.coordinator.state import State

    opened = State.open(state)
    if leave is not None:
        refuse_beside("--leave", ("key", "name", "modality"))
        _revoke(opened, leave)
        return
    if key is None or name is None or not modality:
        given = {"SITE.pub": key, "--name": name, "--modality": modality}
        missing = ", ".join(option for option, value in given.items() if not value)
        raise StateError(f"enroll: found no {missing}, expected SITE.pub, --name and --modality")
    site = _site(name, modality, registry.read_public_key(key))
    new = registry.enroll(opened.registry, site)
    effect = _apply(opened)
    typer.echo(f"{name} is enrolled. {effect}" if new else f"{name} was already enrolled.")
    if not registry.was_made_by_site_init(key):
        typer.echo(f"Give the site {opened.ca} and the address {opened.settings.address}.")
    typer.echo("Next: the site runs fedmslora site check, then fedmslora site start.")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The site's pseudonym, as in plans.")],
    state: Folder = _HERE,
) -> None:
    """Remove a site from the federation: its key is refused from now on, for good.

    The same as `enroll --leave NAME`.

    Example: fedmslora coordinator revoke north
    """
    from server.coordinator.state import State

    _revoke(State.open(state), name)


@app.command("run")
def run(
    plan: Annotated[Path, typer.Argument(help="A plan, for example coordinator/plans/first.yaml.")],
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; `status --watch` shows the progress.")
    ] = False,
    state: Folder = _HERE,
) -> None:
    """Run a plan to its end; a run of it that was stopped continues.

    Ctrl-C stops watching, not the run; `fedmslora coordinator stop` stops the run.

    Example: fedmslora coordinator run coordinator/plans/first.yaml
    """
    from commands.terminal.coordinator_follow import follow
    from server.coordinator.request_run import request_run
    from server.coordinator.state import State

    opened = State.open(state)
    requested = request_run(opened, plan)
    if detach:
        typer.echo(
            f"{requested.run}: queued. fedmslora coordinator status --watch shows its progress."
        )
        return
    try:
        follow(opened, requested)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{requested.run} is still running. The same command watches it again; "
            "`fedmslora coordinator stop` stops it.",
            err=True,
        )
        raise typer.Exit(130) from None
    typer.echo(f"bank:   {opened.run(requested.run).bank}")
    typer.echo(f"report: {opened.run(requested.run).root / 'report.html'}")


@app.command("status")
def status(
    run_name: Annotated[
        str | None, typer.Option("--run", help="The run's name; by default the latest.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the run ends.")] = False,
    as_json: Json = False,
    state: Folder = _HERE,
) -> None:
    """Show the run's stages, the sites, and which sites it is waiting for.

    Example: fedmslora coordinator status --watch
    """
    from rich.console import Console

    from commands.terminal.coordinator_status import tables
    from commands.terminal.coordinator_status import watch as watch_status
    from server.coordinator.state import State
    from server.dashboard.status_document import status_document

    if as_json:
        refuse_beside("--json", ("watch",))
    opened = State.open(state)
    with _superlink(opened) as superlink:
        if as_json:
            typer.echo(json.dumps(status_document(opened, superlink, run_name), indent=1))
        elif watch:
            watch_status(opened, superlink, run_name)
        else:
            Console().print(tables(opened, superlink, run_name))


@app.command("stop")
def stop(
    everything: Annotated[
        bool, typer.Option("--all", help="Also stop the coordinator's processes.")
    ] = False,
    state: Folder = _HERE,
) -> None:
    """Stop the current run. Nothing is lost: `fedmslora coordinator run` continues it.

    Example: fedmslora coordinator stop
    """
    from server.coordinator.state import State

    opened = State.open(state)
    requested = opened.requested
    if requested is None:
        typer.echo("No run is in progress.")
    else:
        typer.echo(_stop_run(opened, requested))
    if everything:
        typer.echo(_stop_processes(opened))


def _revoke(opened: "State", name: str) -> None:
    from server.coordinator import registry

    registry.leave(opened.registry, name)
    typer.echo(f"{name} is removed; its key can't be enrolled again. {_apply(opened)}")


def _which(part: str) -> "ProcessName":
    from common.errors import StateError
    from server.coordinator.processes import ProcessName

    if part not in list(ProcessName):
        raise StateError(f"--part: found {part!r}, expected one of {', '.join(ProcessName)}")
    return ProcessName(part)


def _site(name: str, modalities: list[str], public_key: str) -> "EnrolledSite":
    from pydantic import ValidationError

    from common.errors import StateError
    from common.plan_fields import PATTERNS, SLUG, Modality
    from server.coordinator.registry import EnrolledSite

    for one in modalities:
        if one not in list(Modality):
            raise StateError(f"--modality: found {one!r}, expected one of {', '.join(Modality)}")
    named = tuple(dict.fromkeys(map(Modality, modalities)))
    try:
        return EnrolledSite(name=name, modalities=named, public_key=public_key)
    except ValidationError:
        raise StateError(f"--name: found {name!r}, expected {PATTERNS[SLUG]}") from None


def _print_next_steps(opened: "State", folder: Path) -> None:
    from server.coordinator.certificates import fingerprint

    where = "" if folder == _HERE else f" --state {shlex.quote(str(folder))}"
    settings = opened.settings
    typer.echo(
        f"{folder}: created a coordinator at {', '.join(settings.hosts)}, port {settings.port}"
    )
    typer.echo(f"Keep {folder} secret: it contains the keys. A backup of it is a complete backup.")
    typer.echo("Next:")
    typer.echo(
        f"  1. open TCP port {settings.port} of this machine to the sites, and no other port"
    )
    typer.echo(f"  2. {typed(f'coordinator start{where}')}")
    typer.echo(
        f"  3. give each site {opened.ca} and the address {settings.address}; the site runs:"
    )
    typer.echo(
        f"     fedmslora site init --name NAME --modality MODALITY "
        f"--coordinator {settings.address} --ca ca.crt"
    )
    typer.echo("     Read the certificate's fingerprint to the site on the phone:")
    typer.echo(f"     {fingerprint(opened.ca)}")
    typer.echo("  4. for each public key that a site sends back:")
    enroll = f"coordinator enroll NAME.pub --name NAME --modality MODALITY{where}"
    typer.echo(f"     {typed(enroll)}")
    first = opened.plans / "first.yaml"
    typer.echo(f"  5. edit {first}, and")
    typer.echo(f"     {typed(f'coordinator run {shlex.quote(str(first))}{where}')}")


def _superlink(opened: "State") -> "closing[SuperLink]":
    from server.coordinator.superlink import SuperLink

    return closing(SuperLink(opened))


def _apply(opened: "State") -> str:
    """Apply the enrolment to Flower if it is running; return when it takes effect."""
    from server.coordinator.flower_nodes import sync_nodes
    from server.coordinator.superlink import SuperLinkUnavailable

    with _superlink(opened) as superlink:
        try:
            sync_nodes(opened, superlink)
        except SuperLinkUnavailable:
            return "This takes effect at the next start."
    return "This takes effect now."


def _stop_run(opened: "State", requested: "RequestedRun") -> str:
    from server.coordinator.keeper import stop_run
    from server.coordinator.superlink import SuperLinkUnavailable

    stopping = requested.model_copy(update={"stop": True})
    opened.request(stopping)
    with _superlink(opened) as superlink:
        try:
            stop_run(opened, superlink, stopping)
        except SuperLinkUnavailable:
            return f"{requested.run} will stop as soon as the SuperLink answers."
    return f"{requested.run} is stopped. `fedmslora coordinator run` continues it."


def _stop_processes(opened: "State") -> str:
    import os
    import signal

    from common.process.supervise import running_pid

    number = running_pid(opened.pid_file)
    if number is None:
        return "The coordinator is not running."
    with suppress(ProcessLookupError):  # it ended by itself just now
        os.kill(number, signal.SIGTERM)
    for _ in range(300):
        if running_pid(opened.pid_file) is None:
            return "The coordinator is stopped."
        time.sleep(0.1)
    sys.exit(f"process {number}: still running 30 s after SIGTERM, expected it to end")
