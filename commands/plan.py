"""`fedmslora plan`: check a plan, show it, estimate what it will cost."""
# typer leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import embedded_base_models

if TYPE_CHECKING:
    from common.plan.plan import Plan
    from cost.base_model import BaseModel
    from cost.plan import DataAssumptions, PlanCost

app = typer.Typer(no_args_is_help=True, help="Check a plan, show it, estimate its cost.")

#: The value of `--model` for LLaVA-Med v1.5, whose sizes are known without its folder.
_7B = "7b"
#: Beyond this an estimate's products leave the range of float numbers, and mean nothing.
_LARGEST = 1e12


PlanFile = Annotated[
    Path, typer.Argument(help="A plan, for example configs/demo.yaml.", show_default=False)
]


@app.command("check")
def check(
    plan: PlanFile,
    json_out: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a plan before it is sent to the sites, and name what may stop its run.

    Example: fedmslora plan check configs/demo.yaml
    """
    from common.plan.file import load_plan
    from common.printable import counted

    loaded = load_plan(plan)
    remarks = _remarks(loaded)
    if json_out:
        document = {"plan": loaded.name, "digest": loaded.digest, "remarks": remarks}
        typer.echo(json.dumps(document, indent=1))
        return
    parts = f"{counted(len(loaded.stages), 'stage')}, {counted(len(loaded.sites), 'site')}"
    typer.echo(f"{plan}: a valid plan, {loaded.name} (digest {loaded.digest[:12]}): {parts}.")
    for remark in remarks:
        typer.echo(f"Note: {remark}")


@app.command("show")
def show(
    plan: PlanFile,
    json_out: Annotated[
        bool, typer.Option("--json", help="Print the plan as it travels, with every default.")
    ] = False,
) -> None:
    """Show what a plan does, stage by stage, and its digest, which sites approve.

    Example: fedmslora plan show configs/demo.yaml
    """
    from rich.console import Console

    from commands.terminal.plan_table import plan_table
    from common.plan.file import load_plan

    loaded = load_plan(plan)
    if json_out:
        document = {"digest": loaded.digest, "plan": json.loads(loaded.canonical())}
        typer.echo(json.dumps(document, indent=1))
        return
    Console().print(plan_table(loaded))


def _remarks(plan: "Plan") -> list[str]:
    """Return what is allowed and may still surprise."""
    unanimous = [
        stage.name for stage in plan.stages if len(stage.sites) > 1 and stage.quorum is None
    ]
    alone = [stage.name for stage in plan.stages if len(stage.sites) == 1]
    remarks: list[str] = []
    if unanimous:
        remarks.append(
            f"no quorum in {', '.join(unanimous)}: a round there needs every site, so one that "
            "stays away stops the run (stages: quorum)"
        )
    if alone:
        remarks.append(
            f"a single site in {', '.join(alone)}: its update is the release, averaged with "
            "nobody's"
        )
    return remarks


@app.command("cost")
def cost(
    plan: PlanFile,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A model's folder, or {_7B!r} for LLaVA-Med v1.5; may be repeated. "
            "By default the plan's own, if it comes with the project, and the 7B.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Training questions of each site in a stage.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Distinct images of these questions.")
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=6, help="Tokens of a question and its answer, without the image."),
    ] = None,
    labels: Annotated[
        float | None, typer.Option(min=1, help="Tokens of these that carry loss.")
    ] = None,
    captions: Annotated[
        float | None,
        typer.Option(min=3, help="Tokens of a public reference pair's caption, on a CLIP."),
    ] = None,
    side: Annotated[
        int,
        typer.Option(
            min=28, max=8192, help="Side of a picture in pixels, where its tokens depend on it."
        ),
    ] = 512,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Speed of a site's device in TFLOP/s; adds a column of hours."),
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Estimate parameters, traffic, memory and operations of a plan, stage by stage.

    Example: fedmslora plan cost configs/paper8_federated.yaml --model 7b --tflops 400
    """
    from common.plan.file import load_plan
    from cost.plan import plan_cost

    wanted = {
        "questions": questions, "images": images, "tokens": tokens, "labels": labels,
        "captions": captions,
    }  # fmt: skip
    _check_bounds({**wanted, "tflops": tflops})
    loaded = load_plan(plan)
    costs = [
        plan_cost(loaded, geometry, name, _assumed(geometry, wanted))
        for name, geometry in _models(loaded, model, side).items()
    ]
    if json_out:
        typer.echo(json.dumps(_document(loaded, costs, tflops), indent=1))
        return
    _print(loaded, costs, tflops)


def _check_bounds(wanted: dict[str, int | float | None]) -> None:
    from common.errors import PlanError

    for name, value in wanted.items():
        # The option's minimum lets nan pass.
        if isinstance(value, float) and not math.isfinite(value):
            raise PlanError(f"--{name}: found {value}, expected a finite number")
        if value is not None and value > _LARGEST:
            raise PlanError(f"--{name}: found {str(value)[:30]}, expected at most {_LARGEST:g}")


def _models(plan: "Plan", wanted: list[str] | None, side: int) -> "dict[str, BaseModel]":
    """Return the sizes of the chosen models, by name; the 7B's not for a method on a CLIP.

    Raises:
        PlanError: there is none.
    """
    from common.errors import EMPTY_PATH, PlanError
    from cost.base_model import read_base_model
    from cost.geometry import LLAVA_MED

    if wanted:
        if "" in wanted:
            raise PlanError(f"--model: {EMPTY_PATH}")
        return {name: LLAVA_MED if name == _7B else _sizes(Path(name), side) for name in wanted}
    own = embedded_base_models().get(plan.base_model.name)
    embedded = {} if own is None else {plan.base_model.name: read_base_model(own)}
    if not plan.method.needs_classes:
        return {**embedded, _7B: LLAVA_MED}
    if not embedded:
        raise PlanError(
            f"plan {plan.name}: found the base model {plan.base_model.name!r}, whose sizes are not "
            "known here, expected --model with the folder of a CLIP"
        )
    return embedded


def _sizes(folder: Path, side: int) -> "BaseModel":
    from client.model.kinds import has_own_processor
    from cost.base_model import read_base_model

    if not has_own_processor(folder):
        return read_base_model(folder)
    # It asks transformers, which takes seconds.
    from client.model.image_text.sizes import read_sizes

    return read_sizes(folder, side)


def _assumed(geometry: "BaseModel", wanted: dict[str, int | float | None]) -> "DataAssumptions":
    """Return the assumptions on the data: the user's, else the defaults of this model.

    Raises:
        PlanError: the user's values contradict each other.
    """
    from dataclasses import replace

    from common.clip_shape import ClipShape
    from common.errors import PlanError
    from cost.plan import default_assumptions

    given = {name: value for name, value in wanted.items() if value is not None}
    known = default_assumptions(geometry)
    if "questions" in given and "images" not in given:
        # The default number of questions per image.
        given["images"] = max(1, round(given["questions"] / known.together))
    assumed = replace(known, **given)  # pyright: ignore[reportArgumentType]
    before = 0 if isinstance(geometry, ClipShape) else geometry.prompt_tokens
    if before and assumed.labels > assumed.tokens - before:
        raise PlanError(
            f"--labels: found {assumed.labels:g} of {assumed.tokens:g} tokens, expected at most "
            f"{assumed.tokens - before:g}: {before} tokens precede the image"
        )
    if assumed.images > assumed.questions:
        raise PlanError(
            f"--images: found {assumed.images} for {assumed.questions} questions, expected at "
            "most one for each question"
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

    from commands.terminal.plan_table import cost_table

    console = Console()
    for one in costs:
        console.print(cost_table(plan, one, tflops))
