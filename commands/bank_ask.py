"""`fedmslora bank ask`: a question about a picture, to the stage that the picture is like."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.bank_exchange import Json, print_json

if TYPE_CHECKING:
    from client.orders.ask import Reply
    from common.bank.bank import Bank

#: The base models that come with the project were made for tests.
_TOY = (
    "tiny-llava knows no medicine: it is a small model to try the software with. "
    "Its answers are worth nothing to a patient."
)
_UNKNOWN = (
    "This image is like nothing that the bank has learned. What follows is a guess, of the stage "
    "that it is least unlike."
)
#: So many other stages are named.
_RUNNERS_UP = 3


class Tower(StrEnum):
    """What `VisionWeights` of a plan can be, without loading plans."""

    OPENAI = "openai"
    CHECKPOINT = "checkpoint"


def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture or a DICOM file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    bank: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The bank whose adapters answer.")
    ] = Path("runs/demo/bank"),
    base_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The base model's folder, if it is not the embedded one."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The release that answers; skips the choice."),
    ] = None,
    vision_weights: Annotated[
        Tower, typer.Option(help="As the bank's plan: the tower of a LLaVA-Med's original folder.")
    ] = Tower.OPENAI,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    as_json: Json = False,
) -> None:
    """Answer a question about an image, by the stage that the image itself chooses.

    Says how sure the choice is, and when the image is like nothing that the bank has learned.

    Example: fedmslora bank ask slide.png "is there a tumor ?" --bank runs/demo/bank
    """
    from client.orders.ask import Inquiry
    from client.orders.ask import ask as answered
    from common.bank.bank import Bank
    from common.plan import VisionWeights

    opened = Bank.open(bank)
    inquiry = Inquiry(
        image=image,
        question=question,
        stage=stage,
        max_new_tokens=max_new_tokens,
        vision=VisionWeights(vision_weights.value),
    )
    reply = answered(opened, base_model or _embedded(opened), inquiry)
    if opened.base_model.name == "tiny-llava":
        typer.echo(_TOY, err=True)
    if as_json:
        print_json(_document(question, opened, reply))
    else:
        _print(opened, reply)


def _embedded(bank: "Bank") -> Path:
    """The folder of the bank's base model, if it comes with the project.

    Raises:
        BankError: it does not.
    """
    from common.errors import BankError
    from simulation.hospitals import BASE_MODELS

    folder = BASE_MODELS.get(bank.base_model.name)
    if folder is None:
        raise BankError(
            f"{bank.folder}: found a bank on {bank.base_model.name}, which does not come with "
            "fedmslora; expected its folder with --base-model"
        )
    return folder


def _document(question: str, bank: "Bank", reply: "Reply") -> dict[str, Any]:
    routing, release = reply.routing, reply.release
    stages = (
        []
        if routing is None
        else [
            {
                "name": bank.releases[choice.stage].name,
                "modality": bank.releases[choice.stage].modality.value,
                "probability": choice.probability,
                "cosine": choice.cosine,
            }
            for choice in routing.choices
        ]
    )
    return {
        "question": question,
        "answer": reply.text,
        "stage": release.name,
        "modality": release.modality.value,
        "sums": [bank.releases[position].name for position in release.sums],
        "chosen_by": "user" if routing is None else "router",
        "confidence": None if routing is None else routing.best.probability,
        "known": None if routing is None else routing.known,
        "stages": stages,
        "base_model": bank.base_model.name,
        "head": bank.head,
    }


def _print(bank: "Bank", reply: "Reply") -> None:
    release, routing = reply.release, reply.routing
    if routing is not None and not routing.known:
        typer.echo(_UNKNOWN)
    guess = "" if routing is None or routing.known else "  (a guess)"
    typer.echo(f"answer      {reply.text}{guess}")
    if routing is None:
        typer.echo(f"stage       {release.name} ({release.modality.value}), as told")
        return
    chosen = f"chosen from the image with {_percent(routing.best.probability)} confidence"
    typer.echo(f"stage       {release.name} ({release.modality.value}), {chosen}")
    others = [
        f"{bank.releases[choice.stage].name} {_percent(choice.probability)}"
        for choice in routing.choices[1 : 1 + _RUNNERS_UP]
    ]
    if others:
        typer.echo(f"runners-up  {', '.join(others)}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
