"""`fedmslora coordinator`: the machine that decides, from nothing to a finished run."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.coordinator.processes import ProcessName
    from server.coordinator.registry import EnrolledSite
    from server.coordinator.state import RequestedRun, State
    from server.coordinator.superlink import SuperLink

app = typer.Typer(no_args_is_help=True, help="The machine that decides: sites, runs, releases.")

Folder = Annotated[Path, typer.Option("--state", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

_HERE = Path("coordinator")


@app.command("init")
def init(
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address under which sites reach it; may stand again."),
    ] = None,
    port: Annotated[int, typer.Option(help="The one port that is open to the sites.")] = 8443,
    bind: Annotated[str, typer.Option(help="The address that this port is opened at.")] = "0.0.0.0",
    inner_host: Annotated[
        str, typer.Option(help="Where the parts find the SuperLink: its name among containers.")
    ] = "127.0.0.1",
    inner_port: Annotated[int, typer.Option(help="The SuperLink's port; never open it.")] = 8000,
    renew: Annotated[
        bool, typer.Option("--renew", help="Only a new server certificate, for the same sites.")
    ] = False,
    state: Folder = _HERE,
) -> None:
    """Make a coordinator: its certificates, its keys, its folder and a plan to begin with.

    Example: fedmslora coordinator init --host fed.example.org
    """
    from server.coordinator.init import init_coordinator, renew_certificate
    from server.coordinator.state import CoordinatorSettings, State

    if renew:
        names = renew_certificate(State.open(state), host or ())
        typer.echo(f"the certificate is new, for {', '.join(names)}; now restart the coordinator")
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
    _say_what_is_next(init_coordinator(state, settings), state)


@app.command("start")
def start(
    part: Annotated[
        str | None,
        typer.Option(help="Only superlink, superexec, edge or keeper: what a container runs."),
    ] = None,
    state: Folder = _HERE,
) -> None:
    """Run the coordinator until it is stopped; what dies is started again.

    Example: fedmslora coordinator start
    """
    from common.process.supervise import single_instance, supervise, until_signalled
    from server.coordinator.certificates import days_left
    from server.coordinator.processes import exec_process, processes
    from server.coordinator.state import State

    opened = State.open(state)
    if part is not None:
        exec_process(_which(part), opened)
    if (days := days_left(opened.tls / "server.crt")) < 30:
        typer.echo(f"the certificate ends in {days} days: fedmslora coordinator init --renew")
    with single_instance(opened.pid_file), until_signalled() as stop:
        settings = opened.settings
        typer.echo(f"sites reach it at {settings.address}; logs are in {opened.logs}")
        supervise(processes(opened), stop)
    typer.echo("stopped; nothing is lost, `start` goes on from here")


@app.command("enroll")
def enroll(
    key: Annotated[
        Path | None, typer.Argument(metavar="SITE.pub", help="The public key that a site made.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The site's pseudonym, as plans use it.")] = None,
    modality: Annotated[str | None, typer.Option(help="The modality that it holds.")] = None,
    leave: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead: this site leaves the federation.")
    ] = None,
    state: Folder = _HERE,
) -> None:
    """Let a site into the federation, or out of it.

    Example: fedmslora coordinator enroll north.pub --name north --modality ct
    """
    from common.errors import StateError
    from server.coordinator import registry
    from server.coordinator.state import State

    opened = State.open(state)
    if leave is not None:
        registry.leave(opened.registry, leave)
        typer.echo(f"{leave} left; its key does not come back. {_introduced(opened)}")
        return
    if key is None or name is None or modality is None:
        raise StateError("enroll: found too little, expected SITE.pub, --name and --modality")
    site = _site(name, modality, registry.read_public_key(key))
    new = registry.enroll(opened.registry, site)
    done = "is enrolled" if new else "was enrolled already"
    typer.echo(f"{name} {done}. {_introduced(opened)}")
    typer.echo(
        f"Now give the site {opened.ca} and the address {opened.settings.address}; "
        "there: fedmslora site check, then fedmslora site start"
    )


@app.command("run")
def run(
    plan: Annotated[Path, typer.Argument(help="A plan, for example coordinator/plans/first.yaml.")],
    detach: Annotated[
        bool, typer.Option("--detach", help="Don't wait; `status --watch` shows how it goes.")
    ] = False,
    state: Folder = _HERE,
) -> None:
    """Run a plan to its end, or on from where an earlier run of it stopped.

    Ctrl-C ends the watching, not the run; `fedmslora coordinator stop` ends the run.

    Example: fedmslora coordinator run coordinator/plans/first.yaml
    """
    from server.coordinator.request_run import request_run
    from server.coordinator.state import State

    opened = State.open(state)
    wanted = request_run(opened, plan)
    if detach:
        typer.echo(f"{wanted.run}: wanted; fedmslora coordinator status --watch shows how it goes")
        return
    try:
        _follow(opened, wanted)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{wanted.run} goes on; the same command watches it again, "
            "`fedmslora coordinator stop` ends it",
            err=True,
        )
        raise typer.Exit(130) from None
    typer.echo(f"bank:   {opened.run(wanted.run).bank}")
    typer.echo(f"report: {opened.run(wanted.run).root / 'report.html'}")


@app.command("status")
def status(
    run_name: Annotated[
        str | None, typer.Option("--run", help="A run's name; by default the latest.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show what changes.")] = False,
    as_json: Json = False,
    state: Folder = _HERE,
) -> None:
    """Show the stages, the sites, and who is awaited.

    Example: fedmslora coordinator status --watch
    """
    from rich.console import Console

    from commands.coordinator_status import document, shown, stay
    from server.coordinator.state import State

    opened = State.open(state)
    with _superlink(opened) as superlink:
        if as_json:
            typer.echo(json.dumps(document(opened, superlink, run_name), indent=1))
        elif watch:
            stay(opened, superlink, run_name)
        else:
            Console().print(shown(opened, superlink, run_name))


@app.command("stop")
def stop(
    everything: Annotated[
        bool, typer.Option("--all", help="End `start` and its parts, too.")
    ] = False,
    state: Folder = _HERE,
) -> None:
    """End the run that is going on. Nothing is lost: `run` goes on from there.

    Example: fedmslora coordinator stop
    """
    from server.coordinator.state import State

    opened = State.open(state)
    wanted = opened.requested
    if wanted is None:
        typer.echo("no run is going on")
    else:
        typer.echo(_stop_run(opened, wanted))
    if everything:
        typer.echo(_stop_parts(opened))


def _which(part: str) -> "ProcessName":
    from common.errors import StateError
    from server.coordinator.processes import ProcessName

    if part not in list(ProcessName):
        raise StateError(f"--part: found {part!r}, expected one of {', '.join(ProcessName)}")
    return ProcessName(part)


def _site(name: str, modality: str, public_key: str) -> "EnrolledSite":
    from pydantic import ValidationError

    from common.errors import StateError
    from common.plan_fields import Modality
    from server.coordinator.registry import EnrolledSite

    if modality not in list(Modality):
        raise StateError(f"--modality: found {modality!r}, expected one of {', '.join(Modality)}")
    try:
        return EnrolledSite(name=name, modality=Modality(modality), public_key=public_key)
    except ValidationError:
        raise StateError(
            f"--name: found {name!r}, expected small letters, digits, - and _, at most 40"
        ) from None


def _say_what_is_next(opened: "State", folder: Path) -> None:
    from server.coordinator.certificates import fingerprint

    where = "" if folder == _HERE else f" --state {folder}"
    settings = opened.settings
    typer.echo(f"{folder}: a coordinator for {', '.join(settings.hosts)}, port {settings.port}")
    typer.echo(f"Keep {folder} to yourself: it holds the keys. A backup of it is a backup of all.")
    typer.echo("Next:")
    typer.echo(f"  1. open TCP port {settings.port} of this machine to the sites, and no other")
    typer.echo(f"  2. fedmslora coordinator start{where}")
    typer.echo(f"  3. give each site {opened.ca} and the address {settings.address}; there:")
    typer.echo(
        f"     fedmslora site init --name NAME --modality MODALITY "
        f"--coordinator {settings.address} --ca ca.crt"
    )
    typer.echo("     and by phone the certificate's fingerprint:")
    typer.echo(f"     {fingerprint(opened.ca)}")
    typer.echo("  4. for each public key that comes back:")
    typer.echo(f"     fedmslora coordinator enroll NAME.pub --name NAME --modality MODALITY{where}")
    typer.echo(f"  5. edit {opened.plans / 'first.yaml'}, and")
    typer.echo(f"     fedmslora coordinator run {opened.plans / 'first.yaml'}{where}")


@contextmanager
def _superlink(opened: "State") -> "Generator[SuperLink]":
    from server.coordinator.superlink import SuperLink

    with closing(SuperLink(opened)) as superlink:
        yield superlink


def _introduced(opened: "State") -> str:
    """Tell Flower at once, if it is there."""
    from server.coordinator.flower_nodes import sync_nodes
    from server.coordinator.superlink import SuperLinkUnavailable

    with _superlink(opened) as superlink:
        try:
            sync_nodes(opened, superlink)
        except SuperLinkUnavailable:
            return "It counts from the next start on."
    return "It counts from now on."


def _follow(opened: "State", wanted: "RequestedRun") -> None:
    """Show what the run tells until it has ended; a failure is the command's own."""
    from rich.console import Console

    from server.coordinator.follow import RunFollower
    from server.coordinator.superlink import SuperLinkUnavailable

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _superlink(opened) as superlink:
        try:
            superlink.runs()
        except SuperLinkUnavailable as away:
            console.print(f"waiting: {away}", markup=False)
    follow = RunFollower(opened, wanted)
    over = False
    with console.status("") as shown:
        while not over:
            try:
                over = follow.ended()
            finally:
                # The last lines, too, and those before a failure.
                for line in follow.lines():
                    console.print(line, markup=False)
            shown.update(follow.activity or "waiting for the keeper to start the run")
            time.sleep(0 if over else 0.5)


def _stop_run(opened: "State", wanted: "RequestedRun") -> str:
    from server.coordinator.keeper import stop_run
    from server.coordinator.superlink import SuperLinkUnavailable

    stopping = wanted.model_copy(update={"stop": True})
    opened.request(stopping)
    with _superlink(opened) as superlink:
        try:
            stop_run(opened, superlink, stopping)
        except SuperLinkUnavailable:
            return f"{wanted.run} will be stopped as soon as the SuperLink answers"
    return f"{wanted.run} is stopped; `fedmslora coordinator run` goes on from there"


def _stop_parts(opened: "State") -> str:
    import os
    import signal

    from common.process.supervise import running_pid

    number = running_pid(opened.pid_file)
    if number is None:
        return "`start` is not running"
    os.kill(number, signal.SIGTERM)
    for _ in range(300):
        if running_pid(opened.pid_file) is None:
            return "the coordinator is stopped"
        time.sleep(0.1)
    sys.exit(f"process {number} has not ended within 30 s, expected it to")
