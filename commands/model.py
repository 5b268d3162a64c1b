"""`fedmslora model`: what a base model's folder holds, and whether it works here."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import Bits, Json, ModelPrecision, Tower, VisionTower, print_json

if TYPE_CHECKING:
    from client.backbones.check import ModelFacts

app = typer.Typer(no_args_is_help=True, help="What a base model's folder holds.")


@app.callback()
def model() -> None:
    """What a base model's folder holds."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The base model's folder.")],
    vision_weights: VisionTower = Tower.OPENAI,
    precision: ModelPrecision = None,
    as_json: Json = False,
) -> None:
    """Print a base model's kind, digest and sizes, and try all that is asked of one.

    It is loaded, answers questions about made pictures, and trains an adapter for three steps;
    nothing is written. Exit code 1 if something does not work.

    Example: fedmslora model check simulation/base_model
    """
    import torch

    from client.backbones.check import check_model
    from common.plan.plan import VisionWeights
    from common.plan_fields import Precision

    cuda = torch.cuda.is_available()
    bits = precision or (Bits.BF16 if cuda else Bits.FP32)
    facts = check_model(
        folder,
        Precision(bits.value),
        torch.device("cuda" if cuda else "cpu"),
        VisionWeights(vision_weights.value),
    )
    if as_json:
        print_json(_document(facts))
    else:
        _print(facts)
    if not facts.works:
        raise typer.Exit(1)


def _document(facts: "ModelFacts") -> dict[str, object]:
    return {
        "kind": facts.kind,
        "name": facts.name,
        "sha256": facts.digest,
        "parameters": dict(facts.parameters),
        "adapted_layers": facts.layers,
        "packs": facts.packs,
        "works": facts.works,
        "tried": [{"name": one.name, "works": one.works, "text": one.text} for one in facts.tried],
    }


def _print(facts: "ModelFacts") -> None:
    typer.echo(f"kind       {facts.name} ({facts.kind})")
    typer.echo(f"digest     {facts.digest}")
    total = sum(facts.parameters.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in facts.parameters.items())
    typer.echo(f"weights    {total:,}: {parts}")
    typer.echo(f"adapters   on {facts.layers} layers")
    for one in facts.tried:
        typer.echo(f"{'works' if one.works else 'FAILS':10} {one.name}: {one.text}")
