"""`fedmslora site`: a hospital joins a federation, approves plans, and monitors its site."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Json, refuse_no_file, typed
from common.printable import byte_size, counted, rough_duration

if TYPE_CHECKING:
    from client.node.processes import Machine
    from client.node.status import Job
    from client.site.finding import Finding
    from report.answers.examples import AnsweredPicture

app = typer.Typer(
    no_args_is_help=True, help="A hospital's site: join a federation, approve plans, run, monitor."
)

_PASSED, _FAILED = "ok", "!!"
#: A site asks its coordinator for orders at least so often, unless it has one in hand.
_SILENT_S = 120.0
#: Most lines about what an audit log lacks.
_MOST_GAPS = 20

SiteFile = Annotated[
    Path, typer.Option("--site", help="The site file or its folder.", metavar="FILE")
]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan's file (YAML or JSON).")]
HERE = Path("site.yaml")


@app.command("init")
def init(
    name: Annotated[str, typer.Option(help="The site's pseudonym, the only name that others see.")],
    modality: Annotated[
        list[str], typer.Option(help="A modality that it may train on; may be repeated.")
    ],
    coordinator: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The coordinator's address.")
    ],
    ca: Annotated[Path, typer.Option(help="The coordinator's certificate, ca.crt.")],
    folder: Annotated[
        Path | None, typer.Option(help="The folder to create; by default the site's name.")
    ] = None,
    data: Annotated[Path, typer.Option(help="The folder of the tasks' data.")] = Path("data"),
    base_model: Annotated[Path, typer.Option(help="The base model's folder.")] = Path("base_model"),
) -> None:
    """Create a site: its key pair, site file and folders. Nothing is overwritten.

    Example: fedmslora site init --name north --modality ct --coordinator hub.org:8443 --ca ca.crt
    """
    from client.node.init import NewSite, make_site, read_modalities

    new = NewSite(
        name=name,
        modalities=read_modalities(modality),
        address=coordinator,
        ca=ca,
        data=data,
        base_model=base_model,
    )
    made = make_site(new, folder or Path(name))
    public = made.parent / "keys" / f"{name}.pub"
    named = " ".join(f"--modality {one}" for one in modality)
    typer.echo(
        f"{made.parent}: created the site {name}. Next:\n"
        f"1. Send {public} to the coordinator, who runs: "
        f"fedmslora coordinator enroll {public.name} --name {name} {named}\n"
        f"   Never send the private key beside it; nobody needs it.\n"
        f"2. Edit {made}: where the data and the base model are, and the site's policy.\n"
        f"3. {typed(f'site approve PLAN --site {made}')}\n"
        f"4. {typed(f'site check --plan PLAN --site {made}')}\n"
        f"5. {typed(f'site start --site {made}')}"
    )


@app.command("approve")
def approve(
    plan: PlanFile,
    site: SiteFile = HERE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what the plan would do here.")
    ] = False,
    look: Annotated[bool, typer.Option("--look", hidden=True)] = False,
) -> None:
    """Print what a plan will do at this site, and approve it.

    Example: fedmslora site approve demo.yaml --site north/site.yaml
    """
    from client.site.approval import approve as record
    from client.site.approval import describe_plan
    from common.plan.file import load_plan

    machine, loaded = _machine(site), load_plan(plan)
    for line in describe_plan(loaded, machine.site):
        typer.echo(line)
    # --look is the old name of --dry-run.
    if dry_run or look:
        typer.echo("Not approved: run the same command without --dry-run to approve the plan.")
        return
    file = record(loaded, machine.site, machine.federation)
    typer.echo(f"Approved: {file}. To withdraw the approval, delete this file.")


@app.command("check")
def check(
    site: SiteFile = HERE,
    plan: Annotated[
        Path | None, typer.Option(help="Also check that the site is ready for this plan.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether the site is ready; with a plan, up to one training step.

    Example: fedmslora site check --plan demo.yaml --site north/site.yaml
    """
    from client.node.check import check_site
    from common.plan.file import load_plan

    machine = _machine(site)
    loaded = None if plan is None else load_plan(plan)
    findings: list[Finding] = []
    for finding in check_site(machine.site, loaded):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    passed = all(finding.passed for finding in findings)
    if as_json:
        checks = [{**asdict(finding), "level": finding.level.value} for finding in findings]
        _print_json({"site": machine.site.name, "passed": passed, "checks": checks})
    elif passed:
        typer.echo(f"Ready. Next: {typed(f'site start --site {machine.file}')}")
    if not passed:
        sys.stderr.write(f"The site is not ready: see the lines marked {_FAILED}.\n")
        raise typer.Exit(2)


@app.command("start")
def start(
    site: SiteFile = HERE,
    part: Annotated[
        str | None, typer.Option(help="Run only supernode, superexec or trainer.")
    ] = None,
    runtime_host: Annotated[
        str, typer.Option(help="Where SuperExec connects to SuperNode; keep it inside the site.")
    ] = "127.0.0.1",
    runtime_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of this connection.")
    ] = 9094,
) -> None:
    """Run the site until Ctrl-C or SIGTERM; processes that end are restarted.

    Example: fedmslora site start --site north/site.yaml
    """
    from dataclasses import replace

    from client.model.kinds import base_kind
    from client.node.processes import ProgramName
    from client.node.start import run_program, run_site
    from common.errors import SiteFailed
    from common.network.address import host_fault, without_brackets

    if (fault := host_fault(runtime_host)) is not None:
        raise SiteFailed(f"--runtime-host: {fault}")
    machine = replace(_machine(site), host=without_brackets(runtime_host), port=runtime_port)
    base_kind(machine.site.base_model)
    if part is None:
        typer.echo(f"{machine.site.name}: logs are in {machine.site.store / 'logs'}", err=True)
        run_site(machine, _say)
        return
    if part not in list(ProgramName):
        raise SiteFailed(f"--part: found {part!r}, expected one of {', '.join(ProgramName)}")
    run_program(machine, ProgramName(part), _say)


@app.command("answers")
def answers(
    plan: PlanFile,
    site: SiteFile = HERE,
    out: Annotated[
        Path, typer.Option(help="The page to write; it holds pictures and must stay here.")
    ] = Path("answers.html"),
) -> None:
    """Write a page of this site's own answers: scores, confusion tables, pictures.

    Nothing is sent. The answers are those of the last time each of the plan's tasks was scored.

    Example: fedmslora site answers plan.yaml --site north/site.yaml
    """
    from client.data.thumbnail import thumbnail
    from client.orders.kept_answers import kept_answers
    from common.durable import write_private_file
    from common.plan.file import load_plan
    from report.answers.examples import chosen_examples
    from report.answers.figures import SiteAnswers, TaskAnswers, answer_figures
    from report.answers.model import LAST, MAJORITY
    from report.answers.site_page import site_page

    own, loaded = _machine(site).site, load_plan(plan)
    # A folder or a device would be replaced below.
    refuse_no_file("--out", out)
    tasks: list[TaskAnswers] = []
    examples: list[AnsweredPicture] = []
    for kept in kept_answers(loaded, own):
        by_moment = {LAST: kept.answers, MAJORITY: kept.majority}
        one = SiteAnswers(site=own.name, weight=1.0, pictures=kept.pictures, answers=by_moment)
        tasks.append(TaskAnswers(task=kept.stage.name, metric=kept.stage.metric, sites=[one]))
        shown = [
            (own.name, answer, image)
            for answer, image in zip(kept.answers, kept.images, strict=True)
        ]
        examples += chosen_examples(kept.stage.name, shown, thumbnail)
    day = datetime.now(UTC).date().isoformat()
    page = site_page((own.name, loaded.name), day, answer_figures(tasks), examples)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Pictures of patients: nobody else on this machine may read it.
    write_private_file(out, page.encode())
    typer.echo(f"{out}: {counted(len(tasks), 'task')}. It holds pictures: it must not leave.")


@app.command("status")
def status(site: SiteFile = HERE, as_json: Json = False) -> None:
    """Show what the site is doing, from its own store.

    Example: fedmslora site status --site north/site.yaml
    """
    from client.node.status import status_of

    now = status_of(_machine(site).site)
    if as_json:
        document = asdict(now)
        document["answered"] = None if now.answered is None else now.answered.isoformat()
        document["failures"] = None if now.failures is None else str(now.failures)
        _print_json(document)
        return
    here, named = now.releases
    coordinator, idle = _coordinator_words(now.answered)
    lines = {
        "site": now.site,
        "started": "yes" if now.supervised else "not with `fedmslora site start`",
        "coordinator": coordinator,
        "trainer": "running" if now.trainer else "not running",
        "job": idle if now.job is None else _job_words(now.job),
        "releases": f"{here} of the {named} that the job needs" if named else "none needed",
        "blobs": f"{now.blobs} in the store",
        "last message": now.last or "none yet",
    }
    if now.failures is not None:
        lines["failures"] = f"see {now.failures}"
    for label, text in lines.items():
        typer.echo(f"{label:<14}{text}")


@app.command("audit")
def audit(site: SiteFile = HERE, as_json: Json = False) -> None:
    """Show every message that this site received or sent, and verify the audit log.

    Example: fedmslora site audit --site north/site.yaml
    """
    from client.site.audit import describe, read, summarize, verify
    from client.site.budget import budgets, describe_budget, gaps

    loaded = _machine(site).site
    store = loaded.store
    head = verify(store)
    entries = list(read(store))
    totals, left, missing = summarize(entries), budgets(loaded), gaps(store, entries)
    if as_json:
        sizes = {kind.value: size for kind, size in totals.sent.items()}
        summary = {**asdict(totals), "sent": sizes}
        lines = [entry.model_dump(mode="json") for entry in entries]
        _print_json(
            {
                "lines": head.lines,
                "hash": head.hash,
                "missing": missing,
                "summary": summary,
                "budgets": [asdict(one) for one in left],
                "entries": lines,
            }
        )
        _fail_if_incomplete(missing)
        return
    for entry in entries:
        typer.echo(describe(entry))
    each = (f"{kind} {byte_size(size)}" for kind, size in sorted(totals.sent.items()))
    typer.echo(f"Sent: {', '.join(each) or 'nothing'}.")
    typer.echo(f"Received: {byte_size(totals.received_bytes)}.")
    typer.echo(
        f"Orders answered with an update: {totals.updates}, with scores: {totals.scores}. "
        f"Messages refused or failed: {totals.failures}."
    )
    for budget in left:
        for line in describe_budget(budget):
            typer.echo(line)
    _fail_if_incomplete(missing)
    typer.echo(
        f"The log is intact: {counted(head.lines, 'line')}, the last one's hash is {head.hash}."
    )


def _fail_if_incomplete(missing: list[str]) -> None:
    """Say what the log lacks, and exit with 2, if it lacks anything."""
    if not missing:
        return
    shown, more = missing[:_MOST_GAPS], len(missing) - _MOST_GAPS
    lines = "".join(f"  {line}\n" for line in shown) + (f"  and {more} more\n" if more > 0 else "")
    sys.stderr.write(f"The log is incomplete:\n{lines}")
    raise typer.Exit(2)


def _machine(file: Path) -> "Machine":
    from client.node.processes import Machine
    from client.site.config import load_site

    # Absolute, since programs with other working directories read it.
    found = (file / HERE.name if file.is_dir() else file).resolve()
    return Machine(file=found, site=load_site(found))


def _coordinator_words(answered: datetime | None) -> tuple[str, str]:
    """Return what is known of the coordinator, and what a site without a job does."""
    if answered is None:
        return "has not answered yet", "none"
    silent_s = (datetime.now(UTC) - answered).total_seconds()
    ago = rough_duration(silent_s)
    if silent_s > _SILENT_S:
        return f"has not answered for {ago}; site check says more", "none; no coordinator answers"
    return f"answered {ago} ago", "none; waiting for an order"


def _job_words(job: "Job") -> str:
    where = f"stage {job.stage}" + (f", round {job.round}" if job.round else "")
    step = f"step {job.step} of {job.steps}" if job.steps else "not started"
    if job.remaining_s is not None:
        step += f", about {rough_duration(job.remaining_s)} left"
    return f"{job.work} {where} of plan {job.plan}: {step}"


def _print_finding(finding: "Finding") -> None:
    mark = _PASSED if finding.passed else _FAILED
    plain = finding.level.value in ("ok", "problem", "unknown")
    label = finding.name if plain else f"{finding.name} ({finding.level})"
    first, *more = finding.text.splitlines()
    typer.echo(f"{mark:<4}{label:<22}{first}")
    for line in more:
        typer.echo(f"{'':<26}{line}")


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=1))


def _say(line: str) -> None:
    typer.echo(line, err=True)
