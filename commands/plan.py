"""`fedmslora plan`: what a plan will cost, before anything runs."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.plan import Plan
    from cost.geometry import Geometry
    from cost.plan import DataAssumptions, PlanCost

app = typer.Typer(no_args_is_help=True, help="Look at a plan before it runs.")

#: `--model`: LLaVA-Med v1.5, whose sizes need no folder.
_7B = "7b"


@app.callback()
def group() -> None:
    """Look at a plan before it runs."""


@app.command("cost")
def cost(
    plan: Annotated[Path, typer.Argument(help="The plan.", show_default=False)],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A model's folder, or {_7B!r} for LLaVA-Med v1.5; may be given twice. "
            "By default the plan's own, if it comes with the project, and the 7B.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Training questions of a stage at each site.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Pictures behind them.")] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=6, help="Tokens of a question with its answer, beside the picture."),
    ] = None,
    labels: Annotated[
        float | None, typer.Option(min=1, help="Those of them that carry loss.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="What a site's device achieves, for hours.")
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Parameters, bytes, memory and operations of a plan, stage by stage.

    Example: fedmslora plan cost configs/paper8_federated.yaml --model 7b --tflops 400
    """
    from common.plan_file import load_plan
    from cost.plan import plan_cost

    wanted = {"questions": questions, "images": images, "tokens": tokens, "labels": labels}
    _check_finite({**wanted, "tflops": tflops})
    loaded = load_plan(plan)
    costs = [
        plan_cost(loaded, geometry, name, _assumed(geometry, wanted))
        for name, geometry in _models(loaded, model).items()
    ]
    if json_out:
        typer.echo(json.dumps(_document(loaded, costs, tflops), indent=1))
        return
    _print(loaded, costs, tflops)


def _check_finite(wanted: dict[str, int | float | None]) -> None:
    from common.errors import PlanError

    for name, value in wanted.items():
        # An option's smallest value does not keep out nan.
        if value is not None and not math.isfinite(value):
            raise PlanError(f"--{name}: found {value}, expected a finite number")


def _models(plan: "Plan", wanted: list[str] | None) -> "dict[str, Geometry]":
    """The geometries that were asked for, by name."""
    from cost.geometry import LLAVA_MED, read_geometry
    from simulation.hospitals import BASE_MODELS

    if wanted:
        return {name: LLAVA_MED if name == _7B else read_geometry(Path(name)) for name in wanted}
    own = BASE_MODELS.get(plan.base_model.name)
    embedded = {} if own is None else {plan.base_model.name: read_geometry(own)}
    return {**embedded, _7B: LLAVA_MED}


def _assumed(geometry: "Geometry", wanted: dict[str, int | float | None]) -> "DataAssumptions":
    """What is assumed of this model's data, but where the user says better.

    Raises:
        PlanError: what was said does not go together.
    """
    from dataclasses import replace

    from common.errors import PlanError
    from cost.plan import PROMPT_TOKENS, default_assumptions

    said = {name: value for name, value in wanted.items() if value is not None}
    known = default_assumptions(geometry)
    if "questions" in said and "images" not in said:
        # As many of each picture as there are usually.
        said["images"] = max(1, round(said["questions"] / known.together))
    assumed = replace(known, **said)  # pyright: ignore[reportArgumentType]
    if assumed.labels > assumed.tokens - PROMPT_TOKENS:
        raise PlanError(
            f"--labels: found {assumed.labels:g} of {assumed.tokens:g} tokens, expected at most "
            f"{assumed.tokens - PROMPT_TOKENS:g}: {PROMPT_TOKENS} stand in front of the picture"
        )
    if assumed.images > assumed.questions:
        raise PlanError(
            f"--images: found {assumed.images} of {assumed.questions} questions, expected at "
            "most one a question"
        )
    return assumed


def _document(plan: "Plan", costs: "list[PlanCost]", tflops: float | None) -> dict[str, object]:
    models: list[dict[str, object]] = []
    for one in costs:
        document = one.to_json()
        if tflops is not None:
            for stage, made in zip(document["stages"], one.stages, strict=True):
                stage["site_seconds"] = made.site_operations / (tflops * 1e12)
        models.append(document)
    return {"plan": plan.name, "digest": plan.digest, "tflops": tflops, "models": models}


def _print(plan: "Plan", costs: "list[PlanCost]", tflops: float | None) -> None:
    from rich.console import Console

    from commands.plan_table import pictured

    console = Console()
    for one in costs:
        console.print(pictured(plan, one, tflops))
