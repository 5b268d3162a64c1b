"""`fedmslora bank ask`: answer a question about an image with the stage that the router picks.

A bank of a method that answers with classes needs neither router nor question.
"""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import (
    BaseModelFolder,
    Bits,
    Json,
    ModelPrecision,
    SiteFile,
    Tower,
    VisionTower,
    bank_in,
    embedded_base_models,
    print_json,
)

if TYPE_CHECKING:
    from client.inference.router import Routing
    from client.orders.ask import AskSettings, BankAnswer
    from common.bank.bank import Bank
    from common.bank.release import Release

#: The base models that come with the project were made for tests.
TOYS = ("tiny-llava", "tiny-clip")
TOY = (
    "{} is a small model for trying the software. It has no medical knowledge: don't use its "
    "answers for a patient."
)
_UNKNOWN = (
    "This image is unlike all that the bank knows: {}. The answer below is a guess, by the most "
    "similar stage."
)
#: Number of other stages, or of other classes, that are printed.
_RUNNERS_UP = 3


def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image or DICOM file.")],
    question: Annotated[
        str,
        typer.Argument(
            metavar="[QUESTION]",
            help="The question, in quotes; a bank of class prompts needs none.",
            show_default=False,
        ),
    ] = "",
    bank: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="The bank of adapters, or its run.", callback=bank_in),
    ] = Path("runs/demo/bank"),
    base_model: BaseModelFolder = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The stage that answers; by default the router picks one."
        ),
    ] = None,
    vision_weights: VisionTower = Tower.OPENAI,
    precision: ModelPrecision = None,
    site: SiteFile = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=10_000, help="Maximum length of the answer, in tokens.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Answer a question about an image with the stage that fits the image and the question best.

    Prints how confident the router is, and whether the image is unlike every learned task, or the
    question unlike those of the stage that answers. A bank
    whose releases name their method and classes answers by it, with one of the classes.

    Example: fedmslora bank ask slide.png "is there a tumor ?" --bank runs/demo/bank
    """
    from client.orders.ask import Inquiry
    from client.orders.ask import ask as answered
    from common.bank.bank import Bank

    opened = Bank.open(bank)
    inquiry = Inquiry(
        image=image,
        question=question,
        stage=stage,
        max_new_tokens=max_new_tokens,
        settings=ask_settings(vision_weights, precision, site),
    )
    reply = answered(opened, base_model or embedded_base(opened), inquiry)
    if opened.base_model.name in TOYS:
        typer.echo(TOY.format(opened.base_model.name), err=True)
    if as_json:
        print_json(_document(question, opened, reply))
    else:
        _print(opened, reply)


def ask_settings(vision: Tower, precision: Bits | None, site: Path | None) -> "AskSettings":
    """Return how the base model is loaded, and whose adapters answer.

    Raises:
        SiteFailed: the site's file is wrong.
    """
    from client.orders.ask import AskSettings
    from client.site.config import load_site
    from common.plan.plan import VisionWeights
    from common.plan_fields import Precision

    return AskSettings(
        vision=VisionWeights(vision.value),
        precision=None if precision is None else Precision(precision.value),
        store=None if site is None else load_site(site).store,
    )


def embedded_base(bank: "Bank") -> Path:
    """Return the folder of the bank's base model, which comes with the project.

    Raises:
        BankError: it does not.
    """
    from common.errors import BankError

    folder = embedded_base_models().get(bank.base_model.name)
    if folder is None:
        raise BankError(
            f"{bank.folder}: found the base model {bank.base_model.name}, which does not come with "
            "fedmslora; expected its folder with --base-model"
        )
    return folder


def _document(question: str, bank: "Bank", reply: "BankAnswer") -> dict[str, Any]:
    from serving.chat import chosen_by, question_facts
    from serving.open_bank import NOTICE

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
                "alike": choice.alike,
            }
            for choice in routing.choices
        ]
    )
    return {
        "question": question,
        "answer": reply.prediction.text,
        "stage": release.name,
        "modality": release.modality.value,
        "sums": [bank.releases[position].name for position in release.sums],
        "chosen_by": chosen_by(reply),
        "classes": reply.prediction.class_scores if reply.by_method else None,
        "confidence": None if routing is None else routing.best.probability,
        "known": None if routing is None else routing.known,
        "reason": None if routing is None else routing.reason,
        "calibrated": None if routing is None else routing.calibrated,
        **question_facts(reply),
        "stages": stages,
        "own_b": reply.own_b,
        "base_model": bank.base_model.name,
        "head": bank.head,
        "notice": NOTICE,
    }


def _print(bank: "Bank", reply: "BankAnswer") -> None:
    release, routing = reply.release, reply.routing
    if routing is not None and not routing.known:
        typer.echo(_UNKNOWN.format(routing.reason))
    guess = "" if routing is None or routing.known else "  (a guess)"
    typer.echo(f"answer      {reply.prediction.text}{guess}")
    if reply.unlike_question:
        typer.echo(f"question    {reply.unlike_question}: the answer may mean nothing")
    if reply.own_b:
        typer.echo("adapter     the release's A with this site's own B")
    if reply.by_method:
        typer.echo(f"learned in  {release.name} ({release.modality.value})")
        scores = reply.prediction.class_scores or {}
        others = sorted(scores, key=lambda name: -scores[name])[1 : 1 + _RUNNERS_UP]
        typer.echo(f"next best   {', '.join(others)}")
        return
    if routing is None:
        typer.echo(f"stage       {release.name} ({release.modality.value}), given by --stage")
    else:
        _print_routing(bank, release, routing)


def _print_routing(bank: "Bank", release: "Release", routing: "Routing") -> None:
    chosen = f"picked by the router with {_percent(routing.best.probability)} confidence"
    typer.echo(f"stage       {release.name} ({release.modality.value}), {chosen}")
    others = [
        f"{bank.releases[choice.stage].name} {_percent(choice.probability)}"
        for choice in routing.choices[1 : 1 + _RUNNERS_UP]
    ]
    if others:
        typer.echo(f"next best   {', '.join(others)}")
    if (alike := routing.best.alike) is not None:
        typer.echo(
            f"alike       {_percent(alike)} of the stage's own images are as far from others"
        )
    if not routing.calibrated:
        typer.echo("calibrated  no: a release of this bank has no statistics of its images")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
