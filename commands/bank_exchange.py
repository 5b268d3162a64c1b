"""`fedmslora bank import` and `bank export`: adapters from others, and for others."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.bank.bank import Bank
    from common.bank.release import Release
    from common.plan import BaseModelPin
    from common.signing import SigningKey
    from interchange.paper_chain import Chain
    from interchange.paper_tasks import Label

Folder = Annotated[Path, typer.Argument(metavar="BANK", help="The bank's folder.")]
Which = Annotated[
    str, typer.Argument(metavar="STAGE", help="A release's name, or its position (0 is the first).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class Format(StrEnum):
    """Whose layout an export has."""

    PEFT = "peft"
    PAPER = "paper"


def export_stage(
    bank: Folder,
    stage: Which,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder of the adapter.")],
    layout: Annotated[
        Format,
        typer.Option(
            "--format",
            help="peft: one adapter, the sum. paper: MSLoRA-CR's folders, one a task, unchanged.",
        ),
    ] = Format.PEFT,
    as_json: Json = False,
) -> None:
    """Write the model of a stage as one PEFT adapter, the exact sum, or as the paper's chain.

    Example: fedmslora bank export runs/demo/bank histology exported/histology
    """
    from common.bank.bank import Bank

    opened = Bank.open(bank)
    release = opened.named(stage)
    summed = [opened.releases[position].name for position in release.sums]
    document = {"folder": str(out), "stage": release.name, "sums": summed}
    if layout is Format.PAPER:
        from interchange.paper_chain import export_chain

        tasks = export_chain(opened, release.stage, out)
        document |= {"format": layout.value, "tasks": list(tasks)}
        said = f"cl_lora.bin and config.json of {', '.join(summed)} in {', '.join(tasks)}."
    else:
        from common.bank.bank import export

        export(opened, release.stage, out)
        said = f"one PEFT adapter, the exact sum of {', '.join(summed)}."
    if as_json:
        print_json(document)
        return
    typer.echo(f"{out}: {said}")


def import_folders(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The bank's folder: a new one, or one to extend.")
    ],
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="TASK_DIR...",
            help="Folders with cl_lora.bin and config.json, one a task; or a folder of such.",
        ),
    ],
    base_name: Annotated[
        str | None, typer.Option(help="What the base model is called, such as llava-med-v1.5.")
    ] = None,
    base_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The base model's digest.")
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The base model's folder, in place of its digest."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MODALITY", help="What a task is; once for each, in order."),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="A task's modality; once for each, in order.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A task's name, to go with --modality.")
    ] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="The runs are no chain: each is a model of its own.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The signing key, made where there is none. OUT.key beside the bank if not given.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the checkpoints of MSLoRA-CR's authors (arXiv 2508.11673) into a bank, bit for bit.

    What they are is known for the paper's 8 tasks and for its 6. Each becomes a signed
    release that says it was imported, and from which files.

    Example: fedmslora bank import bank checkpoints/pathvqa checkpoints/pathvqa_slake-vqarad
    --base-name llava-med-v1.5 --base-model models/llava-med-v1.5
    """
    from common.bank.bank import Bank
    from common.bank.release import INDEX_FILE
    from interchange.paper_chain import import_chain, read_chain
    from interchange.paper_tasks import Said, labels

    chain = read_chain(folders, separate)
    said = Said(task or (), name or (), modality or ())
    called = labels(said, [one.found_name for one in chain.tasks])
    opened = Bank.open(out) if (out / INDEX_FILE).exists() else None
    pin = _pin(base_name, base_sha256, base_model, opened)
    target = opened or (out, pin)
    grown, new = import_chain(chain, called, target, partial(_key, key, out))
    if as_json:
        print_json(_imported(grown, chain, called, new))
        return
    for release in new:
        typer.echo(f"{release.folder}  {release.modality.value}  rank {release.rank}")
    there = len(chain.tasks) - len(new)
    typer.echo(f"{out}: {len(new)} tasks imported, {there} were there already.")
    typer.echo(f"head        {grown.head}")


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(document, indent=1))


def identity(bank: "Bank") -> dict[str, Any]:
    """Which bank it is, in JSON."""
    return {
        "bank": str(bank.folder),
        "base_model": bank.base_model.model_dump(),
        "head": bank.head,
    }


def _imported(
    bank: "Bank", chain: "Chain", called: "tuple[Label, ...]", new: "tuple[Release, ...]"
) -> dict[str, Any]:
    hashes = {release.name: release.hash for release in new}
    tasks = [
        {
            "name": label.name,
            "task": label.task,
            "modality": label.modality.value,
            "number": one.number,
            "folder": str(one.folder.folder),
            "rank": one.folder.settings.rank,
            "scale": one.folder.settings.scale,
            "dropped": list(one.folder.dropped),
            "release": hashes.get(label.name),
        }
        for one, label in zip(chain.tasks, called, strict=True)
    ]
    signers = sorted({release.signer for release in new})
    return {**identity(bank), "imported": len(new), "tasks": tasks, "signers": signers}


def _pin(
    name: str | None, sha256: str | None, folder: Path | None, bank: "Bank | None"
) -> "BaseModelPin":
    """The base model that the checkpoints belong to.

    Raises:
        BankError: it is not said, or is another than the bank's.
    """
    from common.errors import BankError

    if folder is not None:
        from client.model.base_digest import base_digest

        digest = base_digest(folder)
        if sha256 not in (None, digest):
            raise BankError(f"{folder}: found a base model with digest {digest}, expected {sha256}")
        name, sha256 = name or folder.resolve().name, digest
    if bank is None:
        return _pin_of(name, sha256)
    own = bank.base_model
    pin = _pin_of(name or own.name, sha256 or own.sha256)
    if pin != own:
        raise BankError(
            f"{bank.folder}: found a bank on {own.name} {own.sha256}, expected {pin.name} "
            f"{pin.sha256}"
        )
    return own


def _pin_of(name: str | None, sha256: str | None) -> "BaseModelPin":
    from pydantic import ValidationError

    from common.errors import BankError
    from common.plan import BaseModelPin

    if name is None or sha256 is None:
        raise BankError(
            "--base-sha256: found no base model, expected --base-name with --base-sha256, or "
            "--base-model: an adapter is nothing without its model"
        )
    # A plan's names have no dots.
    slug = name.lower().replace(".", "_")
    try:
        pin = BaseModelPin(name=slug, sha256=sha256)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        found, expected = (
            (name, "1 to 40 of letters, digits, -, _ and .")
            if field == "name"
            else (sha256, "64 hexadecimal digits in small letters")
        )
        raise BankError(f"--base-{field}: found {found!r}, expected {expected}") from None
    return pin


def _key(given: Path | None, out: Path) -> "SigningKey":
    """The key in the file, made on first use."""
    from common.errors import BankError
    from common.signing import SigningKey

    bank = out.absolute()
    file = given or bank.with_name(f"{bank.name}.key")
    if file.absolute().is_relative_to(bank):
        raise BankError(f"{file}: found the key in the bank, expected it elsewhere: a bank travels")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        SigningKey.generate().save(file)
        typer.echo(f"{file}: a new signing key; keep it, and keep it secret", err=True)
    return SigningKey.load(file)
