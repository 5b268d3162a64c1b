"""How a plan's cost looks on a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.plan import Plan
from cost.plan import PlanCost, StageCost

_UNITS = ("", " k", " M", " G", " T", " P", " E", " Z")
#: Every column of the stages but their names; two lines at most, for a terminal of 80 letters.
_RIGHT = (
    "down", "up", "caught\nup", "memory", "op a\nquestion", "steps", "op", "bank"
)  # fmt: skip


def pictured(plan: Plan, cost: PlanCost, tflops: float | None) -> Group:
    """The model's parameters, a row for each stage, the totals, and what was assumed."""
    total = cost.total()
    said = cost.assumed
    return Group(
        Text(f"{plan.name} on {cost.model}"),
        Text(
            f"parameters: {short(cost.base)} frozen, {short(cost.adapted)} of them under adapters; "
            f"an adapter {short(cost.adapter)}, {octets(cost.adapter_bytes)} as it travels"
        ),
        _table(plan, cost, tflops),
        Text(
            f"all sites: {octets(total['down'])} down, {octets(total['up'])} up, "
            f"{total['steps']:,.0f} steps, {short(total['operations'])} operations; "
            f"the bank at the end {octets(total['bank'])}"
        ),
        Text(
            f"assumed: {said.questions:,} questions of a stage at each site about {said.images:,} "
            f"pictures, {said.tokens:g} tokens a question beside the picture's, {said.labels:g} "
            "with loss (--questions, --images, --tokens, --labels)"
        ),
        Text(
            "down and up: a site's dearest round; caught up: releases it had not got; memory: of "
            "a step; op: two for a multiplication with its addition, of all of a site's rounds"
        ),
    )


def _table(plan: Plan, cost: PlanCost, tflops: float | None) -> Table:
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
    """Bytes with a unit, as in 335.6 MB; 1 MB is a million bytes."""
    return f"{short(count, digits)}B" if count >= 1000 else f"{count:.0f} B"


def short(count: float, digits: int = 4) -> str:
    """A number with a letter for its thousands, as in 7.566 G."""
    for unit in _UNITS:
        if abs(count) < 999.5:
            return f"{count:.{digits}g}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.3g}{_UNITS[-1]}"
