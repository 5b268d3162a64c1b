"""A plan, and its cost, as tables for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from commands.terminal.fitting_table import FittingTable
from common.plan.plan import Plan
from cost.plan import PlanCost, StageCost

_UNITS = ("", " k", " M", " G", " T", " P", " E", " Z")
#: Every column but the stages' names; headings have two lines at most, for 80 characters a line.
_RIGHT = (
    "down", "up", "catch\nup", "memory", "FLOP a\nquestion", "steps", "FLOP", "bank"
)  # fmt: skip


def plan_table(plan: Plan) -> Group:
    """Return what the plan does: its digest, method and rule, and a row for each stage."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("stage", "modality", "task", "sites", "quorum"):
        table.add_column(column, overflow="fold")
    for column in ("rounds", "epochs", "rate", "batch"):
        table.add_column(column, justify="right")
    table.add_column("metric", overflow="fold")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            stage.modality.value,
            stage.task,
            ", ".join(stage.sites),
            "all" if stage.quorum is None else f"{stage.quorum} of {len(stage.sites)}",
            str(stage.rounds),
            f"{stage.local_epochs:g}",
            f"{stage.learning_rate:g}",
            str(stage.batch_size),
            stage.metric.value,
        )
    return Group(
        Text(f"plan {plan.name}, digest {plan.digest}"),
        Text(f"base model {plan.base_model.name}, digest {plan.base_model.sha256[:12]}"),
        Text(f"method {plan.method.summary()}; aggregation {plan.aggregation}"),
        *map(Text, robustness_lines(plan)),
        FittingTable(table),
    )


def robustness_lines(plan: Plan) -> list[str]:
    """Return what bounds a site's influence, and what a robust rule promises for the stages."""
    bounds, most = plan.robustness, max(len(stage.sites) for stage in plan.stages)
    lines = [
        f"one site: share at most {100 * bounds.share_of(most):.0f} % of {most}; "
        + (
            "a change of any size counts; "
            if bounds.clip is None
            else f"a change counts up to {bounds.clip:g} times the usual one; "
        )
        + (
            "of any direction"
            if bounds.least_cosine is None
            else f"nothing below a cosine of {bounds.least_cosine:g} to most others"
        )
    ]
    if (robust := plan.rule.robust) is not None:
        fewest = sorted({stage.quorum or len(stage.sites) for stage in plan.stages})
        lines += [f"{plan.aggregation}: {robust.promise(n, bounds.liars)}" for n in fewest]
    return lines


def cost_table(plan: Plan, cost: PlanCost, tflops: float | None) -> Group:
    """Return the model's parameters, a row for each stage, the totals, and the assumptions."""
    total = cost.total()
    assumed = cost.assumed
    return Group(
        Text(f"{plan.name} on {cost.model}"),
        Text(
            f"parameters: {short(cost.base)} frozen, {short(cost.adapted)} of them with adapters; "
            f"one adapter {short(cost.adapter)}, {octets(cost.adapter_bytes)} on the wire"
        ),
        FittingTable(_table(cost, tflops)),
        Text(
            f"all sites: {octets(total['down'])} down, {octets(total['up'])} up, "
            f"{total['steps']:,.0f} steps, {short(total['operations'])}FLOP; "
            f"the bank at the end {octets(total['bank'])}"
        ),
        Text(
            f"assumed: {assumed.questions:,} questions of each site in a stage, about "
            f"{assumed.images:,} images; {assumed.tokens:g} tokens a question without the image, "
            f"{assumed.labels:g} of them with loss (--questions, --images, --tokens, --labels)"
        ),
        Text(
            "down, up: a site's most expensive round; catch up: earlier releases that it fetches; "
            "memory: peak of a training step; FLOP: of all of a site's rounds, matrix products only"
        ),
    )


def _table(cost: PlanCost, tflops: float | None) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", min_width=9, overflow="fold")
    for column in (*_RIGHT, *(() if tflops is None else ("hours",))):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in cost.stages:
        hours = () if tflops is None else (f"{stage.site_operations / tflops / 3.6e15:.3g}",)
        table.add_row(*_row(stage), *hours)
    return table


def _row(stage: StageCost) -> tuple[str, ...]:
    return (
        stage.name,
        _narrow(octets(stage.round_down, 3)),
        _narrow(octets(stage.round_up, 3)),
        _narrow(octets(stage.catch_up, 3)),
        _narrow(octets(stage.memory.total, 3)),
        _narrow(short(stage.operations.question, 3)),
        f"{stage.steps:,}",
        _narrow(short(stage.site_operations, 3)),
        _narrow(octets(stage.bank, 3)),
    )


def _narrow(text: str) -> str:
    return text.replace(" ", "")


def octets(count: float, digits: int = 4) -> str:
    """Return bytes with a unit, as in 335.6 MB; 1 MB is a million bytes."""
    return f"{short(count, digits)}B" if count >= 1000 else f"{count:.0f} B"


def short(count: float, digits: int = 4) -> str:
    """Return a number with an SI prefix, as in 7.566 G."""
    for unit in _UNITS:
        if abs(count) < 999.5:
            return f"{count:.{digits}g}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.3g}{_UNITS[-1]}"
