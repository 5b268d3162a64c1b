"""report.html: one self-contained file, without scripts and network access."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from common.printable import counted
from report.canvas import Chart, shade, text_on
from report.classes.rows import class_metrics, class_rows
from report.classes.template import CLASSES
from report.continual_metrics import METRICS
from report.format import (
    DASH,
    breakable,
    byte_size,
    duration,
    mean_spread,
    p_value,
    percent,
    points,
    readable,
    short,
    signed_spread,
    small_percent,
    whole,
)
from report.headlines import (
    drops,
    gain,
    gains,
    how_sure,
    page_headline,
    scores_by_method,
    why_no_drop,
)
from report.heterogeneity.template import HETEROGENEITY
from report.heterogeneity.words import heterogeneity_words
from report.hospitals.model import HospitalsReport
from report.hospitals.template import HOSPITALS
from report.hospitals.words import (
    gain_headline,
    how_measured,
    table_heads,
    table_rows,
    who_gains,
    worth_sentences,
)
from report.learned.verdict import GainVerdict, gains_when_learned, run_gain, verdicts
from report.methods import LEVELS, PairedTest, shown, summaries
from report.methods_template import METHODS
from report.model import RunReport, kinds, learned_score, metrics_by_kind
from report.options.rows import option_rows
from report.options.template import OPTIONS
from report.routing import routed_rows, routing_headline
from report.sites.rows import site_rows
from report.sites.template import SITES
from report.template import PAGE, STYLE
from report.tests_table import HEADS, comparison_rows


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A figure at the top of the page, with a note under it."""

    name: str
    value: str
    note: str


def render_page(
    reports: Sequence[RunReport],
    charts: Sequence[Chart],
    tests: Sequence[PairedTest] = (),
    hospitals: HospitalsReport | None = None,
    not_drawn: Sequence[str] = (),
) -> str:
    """Render the page of one or several comparable runs; it shows the first one in full."""
    run = reports[0]
    runs = [report for report in reports if report.method == run.method]
    environment = Environment(
        loader=DictLoader(
            {
                "methods": METHODS,
                "classes": CLASSES,
                "options": OPTIONS,
                "hospitals": HOSPITALS,
                "heterogeneity": HETEROGENEITY,
                "sites": SITES,
            }
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.from_string(PAGE).render(
        run=run,
        style=Markup(STYLE),
        headline=_headline(runs, hospitals),
        opening=_opening(runs, hospitals),
        key_figures=_key_figures(run),
        reading=_how_to_read(run),
        matrix=_matrix(run),
        stages=_stages(run),
        routing="" if run.routed is None else routing_headline(run.routed),
        routed=routed_rows(run),
        measures=list(dict.fromkeys(name for task in run.task_metrics for name in task)),
        metric_names=METRICS,
        kinds=_kinds(run),
        sent=_sent(run),
        sites=_sites(run),
        cost=_cost(run),
        provenance=_provenance(run),
        chart=partial(_chart, charts),
        not_drawn=not_drawn,
        class_rows=class_rows(run),
        class_metrics=class_metrics(run),
        option_rows=option_rows(reports),
        site_rows=site_rows(run),
        **_comparison(reports, tests),
        **_hospitals(hospitals),
        **heterogeneity_words(run),
    )


def _hospitals(report: HospitalsReport | None) -> dict[str, Any]:
    if report is None:
        return {"hospitals": ()}
    columns = dict.fromkeys(column for one in report.hospitals for column in one.mean)
    return {
        "hospitals": report.hospitals,
        "who_gains": who_gains(report),
        "how_measured": how_measured(report),
        "has_no_data": any(one.no_data for one in report.hospitals),
        "hospital_heads": table_heads(report),
        "hospital_rows": table_rows(report),
        "task_columns": list(columns),
        "worths": worth_sentences(report),
    }


def _chart(charts: Sequence[Chart], file: str) -> Markup:
    """Return a chart as embedded image; nothing where it was not drawn."""
    for chart in charts:
        if chart.file == file:
            content = base64.b64encode(chart.png).decode()
            text = f"{chart.title}. {chart.description}"
            return Markup('<figure><img alt="{}" src="data:image/png;base64,{}"></figure>').format(
                text, content
            )
    return Markup("")


def _headline(runs: Sequence[RunReport], hospitals: HospitalsReport | None) -> str:
    """Return what the hospitals gain, where a task was learned at all."""
    if hospitals is None or not verdicts(gains_when_learned(runs[0]), GainVerdict.LEARNED):
        return page_headline(runs)
    return gain_headline(hospitals)


def _opening(runs: Sequence[RunReport], hospitals: HospitalsReport | None) -> str:
    report, headline = runs[0], page_headline(runs)
    first = "" if headline == _headline(runs, hospitals) else f"{headline}. "
    modalities = list(dict.fromkeys(stage.modality.value for stage in report.stages))
    sites = {site for stage in report.stages for site in stage.sites}
    return (
        f"{first}{counted(len(sites), 'site')} trained one model on "
        f"{counted(len(report.stages), 'task')} "
        f"in {counted(len(modalities), 'modality', 'modalities')} ({', '.join(modalities)}), "
        f"one stage after the other, without sharing an image. {how_sure(runs)}"
    )


def _key_figures(report: RunReport) -> list[KeyFigure]:
    modalities = {stage.modality for stage in report.stages}
    sites = {site for stage in report.stages for site in stage.sites}
    gained = gains_when_learned(report)
    learned = len(verdicts(gained, GainVerdict.LEARNED))
    unknown = all(one.verdict is GainVerdict.UNKNOWN for one in gained)
    figures = [*_mean_figures(report)]
    figures += [
        KeyFigure(
            "Tasks learned",
            DASH if unknown else f"{learned} of {len(gained)}",
            "not known: no interval" if unknown else "gain shown to be above zero",
        ),
        _forgetting(report),
    ]
    if more := gains(report):
        worst, least = min(more, key=lambda entry: entry[1])
        note = f"points over zero-shot and majority, when learned ({worst})"
        figures.append(KeyFigure("Smallest gain", points(least), note))
    figures += [
        KeyFigure("Modalities", str(len(modalities)), ", ".join(sorted(modalities))),
        KeyFigure("Sites", str(len(sites)), ", ".join(sorted(sites))),
    ]
    return figures


def _mean_figures(report: RunReport) -> Iterator[KeyFigure]:
    whole = run_gain(report)
    if whole is None:
        return
    moment = "at the end" if whole.at_end else "when learned"
    over = f"{moment}, mean of {counted(whole.tasks, 'task')}"
    yield KeyFigure("Score", f"{percent(whole.score)} %", f"{readable(whole.measure)}, {over}")
    if whole.gain is not None:
        span = whole.interval
        note = "no interval" if span is None else f"{points(span.low)} to {points(span.high)}"
        yield KeyFigure("Gain", points(whole.gain), f"points ({note}) over the baselines, {moment}")


def _forgetting(report: RunReport) -> KeyFigure:
    """Return mean forgetting if all tasks have one measure, else the largest drop of a task.

    Where no task is shown to be learned, a forgetting of 0 would say nothing.
    """
    by_kind = metrics_by_kind(report)
    only = next(iter(by_kind.values())).forgetting if len(by_kind) == 1 else None
    lost = drops(report)
    if lost and max(most for _, most in lost) == 0 and not _some_learned(report):
        return KeyFigure("Forgetting", DASH, "no task is shown to be learned")
    if only is not None:
        return KeyFigure("Forgetting", f"{100 * only:.1f}", "points, mean over the earlier tasks")
    if not lost:
        return KeyFigure("Forgetting", DASH, why_no_drop(report))
    worst, most = max(lost, key=lambda entry: entry[1])
    note = "largest of any task" if most == 0 else worst
    return KeyFigure("Forgetting", f"{100 * most:.1f}", f"points, {note}")


def _some_learned(report: RunReport) -> bool:
    return bool(verdicts(gains_when_learned(report), GainVerdict.LEARNED))


def _how_to_read(report: RunReport) -> str:
    lost = drops(report)
    unchanged = bool(lost) and all(points == 0 for _, points in lost)
    told = "Each question comes with its task, so the right stage answers (an oracle)."
    if report.classes is not None:
        told = (
            "A task with classes is answered with one of all classes learned so far, without the "
            "task, or of its own alone, as its stage's scope in the plan says."
        )
    return (
        "Rows: the stage after which the model was scored. Columns: the task whose test questions "
        "were asked, in percent of its own measure. Framed: right after the task's own stage. "
        f"A dot: not evaluated. {told}"
        + (" Below its frame, every column stays the same." if unchanged else "")
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
            # An unfinished run has fewer releases than stages.
            "error": dict(enumerate(report.aggregation_error)).get(task),
            "measured": report.task_metrics[task] if task < len(report.task_metrics) else {},
        }
        for task, stage in enumerate(report.stages)
    ]


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
    methods = scores_by_method(reports)
    rows_of_methods = summaries(reports)
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
        "summaries": rows_of_methods,
        "kinds_of_tasks": {kind: len(tasks) for kind, tasks in kinds(reports[0]).items()},
        "shown": shown(rows_of_methods),
        "levels": LEVELS,
        "heads": HEADS,
        "comparison_rows": comparison_rows(tests),
        "tests": tests,
    }


def _sent(report: RunReport) -> str:
    updates = sum(len(cost.by_round) for cost in report.cost.sites.values())
    up = sum(cost.bytes_up for cost in report.cost.sites.values())
    means = "" if report.routed is None else "the mean of their images' features for the router, "
    return (
        f"In {counted(updates, 'update')} the sites sent {byte_size(up)}: the weights of adapters "
        f"(low-rank factors), {means}the numbers of examples and steps behind them, losses and "
        "scores. No image, no question, no answer and no file name left a site."
    )


def _sites(report: RunReport) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for site, cost in sorted(report.cost.sites.items()):
        stages = list(dict.fromkeys(one.stage for one in cost.by_round))
        rows.append(
            {
                "site": site,
                "stages": ", ".join(stages) or DASH,
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


def _provenance(report: RunReport) -> list[tuple[str, str]]:
    provenance = report.provenance
    return [
        ("plan", report.plan.hash),
        ("base model", provenance.base_model),
        ("bank head", provenance.bank_head or DASH),
        ("code", provenance.code),
        ("seed", str(report.seed)),
        *report.versions.items(),
    ]


_FILTERS: Mapping[str, Any] = {
    "percent": percent,
    "points": points,
    "small_percent": small_percent,
    "spread": mean_spread,
    "signed_spread": signed_spread,
    "size": byte_size,
    "duration": duration,
    "p_value": p_value,
    "whole": whole,
    "short": short,
    "readable": readable,
    "wbr": breakable,
}
