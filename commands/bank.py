"""`fedmslora bank`: list, show and verify releases; ask; export and import adapters."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.bank_ask import ask
from commands.bank_exchange import (
    Folder,
    Which,
    export_stage,
    identity,
    import_folders,
    print_json,
)
from commands.options import Json
from common.printable import counted

if TYPE_CHECKING:
    from common.bank.bank import Bank
    from common.bank.release import Release

app = typer.Typer(
    no_args_is_help=True, help="List, verify, query, export and import released adapters."
)


@app.command("list")
def list_releases(bank: Folder, as_json: Json = False) -> None:
    """List the releases of a bank, oldest first.

    Example: fedmslora bank list runs/demo/bank
    """
    from common.bank.bank import Bank

    opened = Bank.open(bank)
    if as_json:
        releases = [_document(release) for release in opened.releases]
        print_json({**identity(opened), "releases": releases})
    else:
        _print_table(opened)


@app.command("show")
def show(bank: Folder, stage: Which, as_json: Json = False) -> None:
    """Show one release: its origin, scores and signature.

    Example: fedmslora bank show runs/demo/bank matter
    """
    from common.bank.bank import Bank

    opened = Bank.open(bank)
    release = opened.named(stage)
    later = [one.name for one in opened.summed_by(release.stage)]
    if as_json:
        print_json({**_document(release), "summed_by": later})
        return
    typer.echo(release.folder)
    without = f"{', '.join(later)}: without this release none of them answers" if later else "none"
    for name, lines in {**_fields(release), "summed by": [without]}.items():
        for label, line in zip_longest([name], lines, fillvalue=""):
            typer.echo(f"  {label:<18}{line}")


@app.command("verify")
def verify(
    bank: Folder,
    base_sha256: Annotated[
        str | None, typer.Option(help="The base model's digest that is expected.")
    ] = None,
    signer: Annotated[
        str | None, typer.Option(help="The public key that every release must be signed with.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="The bank's head that is expected: detects missing last releases."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify every file of a bank: hashes, signatures and the chain of releases.

    Example: fedmslora bank verify runs/demo/bank
    """
    from common.bank.bank import verify_bank
    from common.bank.check import Expected

    checked = verify_bank(bank, Expected(base_sha256=base_sha256, signer=signer, head=head))
    signers = sorted({release.signer for release in checked.releases})
    if as_json:
        print_json({**identity(checked), "verified": len(checked.releases), "signers": signers})
        return
    typer.echo(
        f"{bank}: {counted(len(checked.releases), 'release')} verified: all files, the hash chain "
        "and the signatures."
    )
    typer.echo(f"base model  {checked.base_model.name}  {checked.base_model.sha256}")
    typer.echo(f"head        {checked.head}")
    for key in signers:
        typer.echo(f"signed by   {key}")


app.command("ask")(ask)
app.command("export")(export_stage)
app.command("import")(import_folders)


def _document(release: "Release") -> dict[str, Any]:
    return {**release.content(), "signature": release.signature, "hash": release.hash}


def _print_table(bank: "Bank") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from commands.terminal.fitting_table import FittingTable

    releases = counted(len(bank.releases), "release")
    typer.echo(f"{bank.folder}: {releases} on base model {bank.base_model.name}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("release", "modality", "task", "hash"):
        table.add_column(column, overflow="fold", no_wrap=column in ("release", "hash"))
    for column in ("rank", "sites", "examples", "error"):
        table.add_column(column, justify="right")
    for release in bank.releases:
        table.add_row(
            release.folder,
            release.modality.value,
            release.task,
            release.hash[:8],
            _rank(release),
            str(len(release.sites)),
            str(sum(release.sites.values())),
            f"{release.error:.4f}",
        )
    Console().print(FittingTable(table))
    typer.echo(f"head {bank.head}")


def _rank(release: "Release") -> str:
    """Return the rank; `none` of an adapter without low-rank factors."""
    return str(release.rank) if release.rank else "none"


def _settings(method: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{name} {value}" for name, value in method.items() if name != "name")
    return f"{method['name']}: {rest}" if rest else str(method["name"])


def _fields(release: "Release") -> dict[str, list[str]]:
    """Return the lines of each field."""
    return {
        "modality": [release.modality.value],
        "task": [release.task],
        **({} if release.classes is None else {"classes": [", ".join(release.classes)]}),
        **({} if release.method is None else {"method": [_settings(release.method)]}),
        **({} if release.body_parts is None else {"body parts": [", ".join(release.body_parts)]}),
        **({} if release.questions is None else {"questions": list(release.questions)}),
        "sums": [", ".join(map(str, release.sums))],
        "rank, scale": [f"{_rank(release)}, {release.scale:g}"],
        "examples": [f"{site}: {count}" for site, count in sorted(release.sites.items())],
        "rule": [release.rule],
        "aggregation error": [f"{release.error:.6f}"],
        "scores": [f"{name}: {value:.4f}" for name, value in sorted(release.scores.items())],
        **_self_reported(release),
        "base model": [f"{release.base_model.name} {release.base_model.sha256}"],
        "plan": [release.plan],
        "code": [release.code],
        "adapter": [release.adapter],
        **({} if release.prototype is None else {"prototype": [release.prototype]}),
        "parent": [release.parent],
        "hash": [release.hash],
        "signer": [release.signer],
    }


def _self_reported(release: "Release") -> dict[str, list[str]]:
    """Return what each site said of itself, of a release that has it."""
    lines: list[str] = []
    for site, said in sorted((release.self_reported or {}).items()):
        scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(said.scores.items()))
        counts = f"{counted(said.examples, 'example')}, {counted(said.questions, 'question')}"
        lines.append(f"{site}: {counts}" + (f"; {scores}" if scores else ""))
    return {"self-reported": lines} if lines else {}
