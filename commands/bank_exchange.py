"""`fedmslora bank import` and `fedmslora bank export`."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import sys
from contextlib import closing, redirect_stdout
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands.options import BankFolder as Folder
from commands.options import (
    BaseModelFolder,
    Json,
    Tower,
    VisionTower,
    embedded_base_models,
    print_json,
    refuse_beside,
)
from commands.version import installed_version
from common.printable import counted

if TYPE_CHECKING:
    from common.bank.bank import Bank
    from common.bank.release import Release
    from common.plan_fields import BaseModelPin
    from common.signing import SigningKey
    from interchange.paper_chain import PaperChain
    from interchange.paper_tasks import TaskLabel
    from serving.export.folder import ExportSettings

#: The largest LoRA rank that vLLM 0.11 can be told to expect (`max_lora_rank`).
_MOST_RANK: Final = 512

Which = Annotated[
    str, typer.Argument(metavar="STAGE", help="A release's name, or its number (0 is the first).")
]


#: Arguments of an export that the authors' layout has no place for.
_OF_OTHER_PROGRAMS: Final = ("dtype", "base_model", "base_id", "vision_weights", "questions")


class Dtype(StrEnum):
    """The precision of a whole model's weights, by torch's names."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Format(StrEnum):
    """The file format of an export."""

    PEFT = "peft"
    PAPER = "paper"


def export_stage(
    bank: Folder,
    stage: Which,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    layout: Annotated[
        Format,
        typer.Option(
            "--format",
            help="peft: the exact sum as one adapter. paper: MSLoRA-CR's folders, one per task.",
        ),
    ] = Format.PEFT,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged", help="Write the whole model, the adapters in its weights, not an adapter."
        ),
    ] = False,
    dtype: Annotated[
        Dtype, typer.Option(help="Of a merged model's weights; float32 is exact.")
    ] = Dtype.FLOAT32,
    base_model: BaseModelFolder = None,
    base_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="What other programs load the base model by, as its id on a hub; by default "
            "its folder.",
        ),
    ] = None,
    vision_weights: VisionTower = Tower.OPENAI,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of the stage's test questions, for the model card's intervals; by default "
            "from the run's journal beside the bank.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a stage for other programs: a PEFT adapter or a whole model, with all they need.

    A stage that changes whole weights of a CLIP is always written as a whole model.
    Beside the weights: processor, tokenizer with chat template, provenance and a model card
    (docs/use.md). With --format paper MSLoRA-CR's folders, for the authors' code.

    Example: fedmslora bank export runs/demo/bank matter exported/matter
    """
    from common.bank.bank import Bank
    from common.errors import BankError

    if base_id is not None and not (base_id.strip() and base_id.isprintable()):
        raise BankError(f"--base-id: found {base_id[:60]!r}, expected one line of visible letters")
    if layout is Format.PAPER:
        refuse_beside("--format paper", ("merged", *_OF_OTHER_PROGRAMS))
    if out.resolve().is_relative_to(bank.resolve()):
        raise BankError(f"{out}: found a folder inside the bank, expected one outside of it")
    opened = Bank.open(bank)
    release = opened.named(stage)
    summed = [opened.releases[position].name for position in release.sums]
    document: dict[str, Any] = {"folder": str(out), "stage": release.name, "sums": summed}
    if layout is Format.PAPER:
        from interchange.paper_chain import export_chain

        tasks = export_chain(opened, release.stage, out)
        document |= {"format": layout.value, "tasks": list(tasks)}
        written = f"cl_lora.bin and config.json of {', '.join(summed)} in {', '.join(tasks)}."
    else:
        settings = _export_settings(opened, base_model, base_id, vision_weights)
        settings = replace(settings, questions=questions or _questions_of(opened, release))
        # DeepSpeed, where it is installed, logs to stdout.
        with redirect_stdout(sys.stderr):
            written, more = _exported(opened, release, out, settings, dtype if merged else None)
        document |= more
    if as_json:
        print_json(document)
        return
    typer.echo(f"{out}: {written}")


def _export_settings(
    bank: "Bank", base_model: Path | None, base_id: str | None, vision: "Tower"
) -> "ExportSettings":
    from common.plan.plan import VisionWeights
    from serving.export.folder import ExportSettings

    return ExportSettings(
        base_model=base_model or embedded_base_models().get(bank.base_model.name),
        base_id=base_id,
        vision=VisionWeights(vision.value),
        version=installed_version(),
    )


def _exported(
    bank: "Bank", release: "Release", out: Path, settings: "ExportSettings", dtype: "Dtype | None"
) -> tuple[str, dict[str, Any]]:
    """Write the folder; return what a person and a program are told."""
    import torch

    from common.bank.release import EXTRAS_FILE
    from serving.export.folder import changes_whole_weights, export_adapter, export_merged

    whole = changes_whole_weights(bank, release)
    if whole:
        typer.echo(
            f"{out}: {release.name} changes all weights of its towers, which no PEFT adapter can; "
            "the whole model is written",
            err=True,
        )
        dtype = dtype or Dtype.FLOAT32
    names = ", ".join(bank.releases[position].name for position in release.sums)
    if dtype is not None:
        export_merged(bank, release, out, settings, getattr(torch, dtype.value))
        written = f"the whole model with the exact sum of {names}, in {dtype.value}."
        return written, {"format": "merged", "dtype": dtype.value, "complete": True}
    complete = export_adapter(bank, release, out, settings)
    rank = sum(bank.releases[position].rank for position in release.sums)
    written = f"one PEFT adapter of rank {rank}, the exact sum of {names}."
    if (out / EXTRAS_FILE).exists():
        written += f" Beside it {EXTRAS_FILE}: the arrays that PEFT has no place for."
    if not complete:
        typer.echo(
            f"{out}: found no folder of the base model {bank.base_model.name}, so no processor and "
            "no chat template are written; give it with --base-model",
            err=True,
        )
    if rank > _MOST_RANK:
        typer.echo(
            f"{out}: the rank is {rank}; vLLM takes at most {_MOST_RANK}: export --merged for it",
            err=True,
        )
    return written, {"format": "peft", "rank": rank, "complete": complete}


def _questions_of(bank: "Bank", release: "Release") -> int | None:
    """Return the number of a stage's test questions by the run's journal; None without one."""
    from common.errors import StateError
    from server.run.folder import RunFolder
    from server.run.journal import Journal

    try:
        with closing(Journal(RunFolder(bank.folder.parent), None)) as journal:
            by_site = journal.scored_questions(release.stage)
    except StateError:
        # The scores themselves are in the release.
        return None
    return sum(by_site[site] for site in release.sites if site in by_site) or None


def import_folders(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The bank's folder, new or to be extended.")
    ],
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="TASK_DIR...",
            help="Folders of MSLoRA-CR (cl_lora.bin, config.json) or of PEFT "
            "(adapter_config.json), one for each task; or their parent.",
        ),
    ],
    base_name: Annotated[
        str | None, typer.Option(help="The base model's name, such as llava-med-v1.5.")
    ] = None,
    base_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The base model's digest.")
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The base model's folder, instead of its digest."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MODALITY",
            help="A task's name and modality; once for each task, in order.",
        ),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="A task's modality; once for each task, in order.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A task's name, with --modality; once for each task, in order."),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="Each adapter is a model of its own: none is summed with another."
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The signing key, created if it does not exist; by default OUT.key.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Import checkpoints of MSLoRA-CR's authors (arXiv 2508.11673), or of PEFT, bit for bit.

    A PEFT adapter is a model of its own, never summed with another; give its --task. Names and
    modalities of the paper's 8 tasks, or of its 6, are known. Each task becomes a signed release
    that records which files it was imported from.

    Example: fedmslora bank import bank checkpoints/pathvqa checkpoints/pathvqa_slake-vqarad
    --base-name llava-med-v1.5 --base-model models/llava-med-v1.5
    """
    from common.bank.bank import Bank
    from common.bank.release import INDEX_FILE
    from interchange.paper_chain import import_chain, read_chain
    from interchange.paper_tasks import TaskOptions, task_labels

    chain = read_chain(folders, separate)
    options = TaskOptions(task or (), name or (), modality or ())
    labels = task_labels(options, [one.found_name for one in chain.tasks])
    opened = Bank.open(out) if (out / INDEX_FILE).exists() else None
    pin = _pin(base_name, base_sha256, base_model, opened)
    # A folder that is named by a dot has no name that it could be written under.
    target = opened or (out if out.name else out.absolute(), pin)
    grown, new = import_chain(chain, labels, target, partial(_key, key, out))
    if as_json:
        print_json(_imported(grown, chain, labels, new))
        return
    for release in new:
        typer.echo(f"{release.folder}  {release.modality.value}  rank {release.rank}")
    before = len(chain.tasks) - len(new)
    typer.echo(f"{out}: {counted(len(new), 'task')} imported, {before} already in the bank.")
    typer.echo(f"head        {grown.head}")


def identity(bank: "Bank") -> dict[str, Any]:
    """Return the bank's folder, base model and head as JSON values."""
    return {
        "bank": str(bank.folder),
        "base_model": bank.base_model.model_dump(),
        "head": bank.head,
    }


def _imported(
    bank: "Bank", chain: "PaperChain", labels: "tuple[TaskLabel, ...]", new: "tuple[Release, ...]"
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
        for one, label in zip(chain.tasks, labels, strict=True)
    ]
    signers = sorted({release.signer for release in new})
    return {**identity(bank), "imported": len(new), "tasks": tasks, "signers": signers}


def _pin(
    name: str | None, sha256: str | None, folder: Path | None, bank: "Bank | None"
) -> "BaseModelPin":
    """Return the base model of the checkpoints.

    Raises:
        BankError: it is not given, or is not the bank's.
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
            f"{bank.folder}: found the base model {own.name} {own.sha256}, expected {pin.name} "
            f"{pin.sha256}"
        )
    return own


def _pin_of(name: str | None, sha256: str | None) -> "BaseModelPin":
    from pydantic import ValidationError

    from common.errors import BankError
    from common.plan_fields import BaseModelPin

    if name is None or sha256 is None:
        raise BankError(
            "--base-sha256: found no base model, expected --base-name with --base-sha256, or "
            "--base-model"
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
    """Load the signing key; create it on first use."""
    from common.errors import BankError
    from common.signing import SigningKey

    bank = out.absolute()
    file = given or bank.with_name(f"{bank.name}.key")
    if file.absolute().is_relative_to(bank):
        raise BankError(
            f"{file}: found the key inside the bank, expected it elsewhere: banks are shared"
        )
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        SigningKey.generate().save(file)
        typer.echo(f"{file}: a new signing key; keep it, and keep it secret", err=True)
    return SigningKey.load(file)
