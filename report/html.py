"""report.html: one file that needs no other, no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from report.canvas import Picture, shade, text_on
from report.continual_metrics import METRICS
from report.format import (
    NOTHING,
    broken,
    byte_size,
    chance,
    counted,
    duration,
    mean_spread,
    percent,
    points,
    share,
    signed_spread,
    whole,
    words,
)
from report.headlines import compare, drops, gain, gains, memory_of, unforgotten
from report.methods import SHOWN, PairedTest, summaries
from report.methods_template import METHODS
from report.model import RunReport, kinds, learned_score, metrics_by_kind
from report.routing import routed_rows, routing_of
from report.template import PAGE, STYLE
from report.tests_table import HEADS, versus


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure at the top of the page."""

    name: str
    value: str
    under: str


def page(
    reports: Sequence[RunReport], pictures: Sequence[Picture], tests: Sequence[PairedTest] = ()
) -> str:
    """The page of one or several comparable runs; the first one is told."""
    told = reports[0]
    environment = Environment(
        loader=DictLoader({"methods": METHODS}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.from_string(PAGE).render(
        told=told,
        style=Markup(STYLE),
        headline=memory_of(reports),
        opening=_opening(told),
        facts=_facts(told),
        reading=_reading(told),
        matrix=_matrix(told),
        stages=_stages(told),
        routing="" if told.routed is None else routing_of(told.routed),
        routed=routed_rows(told),
        measures=list(dict.fromkeys(name for task in told.task_metrics for name in task)),
        metric_names=METRICS,
        kinds=_kinds(told),
        sent=_sent(told),
        sites=_sites(told),
        cost=_cost(told),
        made=_made(told),
        figure=partial(_figure, pictures),
        **_comparison(reports, tests),
    )


def _figure(pictures: Sequence[Picture], file: str) -> Markup:
    """A picture with its bytes inside; nothing where it was not drawn."""
    for picture in pictures:
        if picture.file == file:
            content = base64.b64encode(picture.png).decode()
            text = f"{picture.finding}. {picture.description}"
            return Markup('<figure><img alt="{}" src="data:image/png;base64,{}"></figure>').format(
                text, content
            )
    return Markup("")


def _opening(report: RunReport) -> str:
    modalities = list(dict.fromkeys(stage.modality.value for stage in report.stages))
    sites = {site for stage in report.stages for site in stage.sites}
    return (
        f"{counted(len(sites), 'site')} taught one model {counted(len(report.stages), 'task')} "
        f"in {counted(len(modalities), 'modality', 'modalities')} ({', '.join(modalities)}), "
        "one stage after the other, without sharing an image."
    )


def _facts(report: RunReport) -> list[Fact]:
    modalities = {stage.modality for stage in report.stages}
    sites = {site for stage in report.stages for site in stage.sites}
    facts = [
        Fact("Stages", str(len(report.stages)), "one new task each"),
        Fact("Modalities", str(len(modalities)), ", ".join(sorted(modalities))),
        Fact("Sites", str(len(sites)), ", ".join(sorted(sites))),
        _forgetting(report),
    ]
    if more := gains(report):
        worst, least = min(more, key=lambda entry: entry[1])
        under = f"points over zero-shot and majority, when learned ({worst})"
        facts.append(Fact("Smallest gain", f"{100 * least:+.1f}", under))
    return facts


def _forgetting(report: RunReport) -> Fact:
    """Forgetting where it may be averaged, else the worst task's loss."""
    by_kind = metrics_by_kind(report)
    only = next(iter(by_kind.values())).forgetting if len(by_kind) == 1 else None
    lost = drops(report)
    if only is not None:
        return Fact("Forgetting", f"{100 * only:.1f}", "points, mean over the earlier tasks")
    if not lost:
        return Fact("Forgetting", NOTHING, unforgotten(report))
    worst, most = max(lost, key=lambda entry: entry[1])
    named = "largest of any task" if most == 0 else worst
    return Fact("Forgetting", f"{100 * most:.1f}", f"points, {named}")


def _reading(report: RunReport) -> str:
    """How to read the matrix."""
    lost = drops(report)
    exact = bool(lost) and all(points == 0 for _, points in lost)
    return (
        "Rows: when the model was asked. Columns: whose test questions, in percent of the column's "
        "own measure. Framed: right after the task's own stage. A dot: not evaluated. Which task "
        "a question belongs to is told (the oracle's stage)."
        + (" Below the frames every column stays as it was." if exact else "")
    )


def _matrix(report: RunReport) -> list[dict[str, Any]]:
    names = ["base model", *(f"after {stage.name}" for stage in report.stages)]
    rows = [report.zero_shot, *report.scores]
    return [
        {
            "name": name,
            "cells": [_cell(score, row == task + 1) for task, score in enumerate(scores)],
        }
        for row, (name, scores) in enumerate(zip(names, rows, strict=True))
    ]


def _cell(score: float | None, own: bool) -> dict[str, Any]:
    known = 0.0 if score is None else score
    return {"score": score, "own": own, "back": shade(known), "ink": text_on(known)}


def _stages(report: RunReport) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "zero_shot": report.zero_shot[task],
            "majority": report.majority[task],
            "learned": learned_score(report, task),
            "gain": gain(report, task),
            "last": report.scores[-1][task],
            "error": _at(report.aggregation_error, task),
            "measured": report.task_metrics[task] if task < len(report.task_metrics) else {},
        }
        for task, stage in enumerate(report.stages)
    ]


def _at(values: Sequence[float | None], index: int) -> float | None:
    """A run that is not over yet has fewer releases than stages."""
    return values[index] if index < len(values) else None


def _kinds(report: RunReport) -> list[dict[str, Any]]:
    tasks = kinds(report)
    return [
        {
            "kind": kind,
            "tasks": len(tasks[kind]),
            "averages": [getattr(metrics, name) for name in METRICS],
        }
        for kind, metrics in metrics_by_kind(report).items()
    ]


def _comparison(reports: Sequence[RunReport], tests: Sequence[PairedTest]) -> dict[str, Any]:
    methods = compare(reports)
    rows = [
        {
            "stage": stage,
            "cells": [{"learned": m.learned[task], "last": m.last[task]} for m in methods],
        }
        for task, stage in enumerate(reports[0].stages)
    ]
    return {
        "methods": methods,
        "comparison": rows,
        "summaries": summaries(reports),
        "kinds_of_tasks": {kind: len(tasks) for kind, tasks in kinds(reports[0]).items()},
        "shown": SHOWN,
        "heads": HEADS,
        "versus": versus(tests),
        "tests": tests,
    }


def _sent(report: RunReport) -> str:
    updates = sum(len(cost.by_round) for cost in report.cost.sites.values())
    up = sum(cost.bytes_up for cost in report.cost.sites.values())
    means = "" if report.routed is None else "the mean of their images' features for the router, "
    return (
        f"In {counted(updates, 'update')} the sites sent {byte_size(up)}: the numbers of adapters "
        f"(low-rank factors), {means}how many examples and steps they came from, losses and "
        "scores. No image, no question, no answer and no file name left a site."
    )


def _sites(report: RunReport) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for site, cost in sorted(report.cost.sites.items()):
        stages = list(dict.fromkeys(one.stage for one in cost.by_round))
        rows.append(
            {
                "site": site,
                "stages": ", ".join(stages) or NOTHING,
                "updates": len(cost.by_round),
                "up": cost.bytes_up,
                "down": cost.bytes_down,
                "largest": max((one.bytes_up for one in cost.by_round), default=None),
            }
        )
    return rows


def _cost(report: RunReport) -> str:
    seconds, peak = report.cost.seconds, report.cost.peak_memory_bytes
    parts = [
        "" if seconds is None else f"The run took {duration(seconds)}.",
        "" if peak is None else f"Peak memory was {peak / 1e9:.2f} GB.",
    ]
    return " ".join(part for part in parts if part)


def _made(report: RunReport) -> list[tuple[str, str]]:
    provenance = report.provenance
    return [
        ("plan", report.plan.hash),
        ("base model", provenance.base_model),
        ("bank head", provenance.bank_head or NOTHING),
        ("code", provenance.code),
        ("seed", str(report.seed)),
        *report.versions.items(),
    ]


_FILTERS: Mapping[str, Any] = {
    "percent": percent,
    "points": points,
    "share": share,
    "spread": mean_spread,
    "signed_spread": signed_spread,
    "size": byte_size,
    "duration": duration,
    "chance": chance,
    "whole": whole,
    "words": words,
    "broken": broken,
}
