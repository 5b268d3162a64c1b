"""report.html: one self-contained file, without scripts and network access."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup

from common.printable import byte_size, counted
from report.answers.examples import AnsweredPicture
from report.answers.page import answers_part, shaded
from report.answers.template import CONFUSION, EXAMPLES
from report.canvas import NOTHING_DRAWN, Chart, Drawn
from report.classes.rows import class_metrics, class_rows
from report.classes.template import CLASSES
from report.continual_metrics import METRICS
from report.format import (
    DASH,
    breakable,
    duration,
    known_size,
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
    how_sure,
    page_headline,
    scores_by_method,
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
from report.learned.key_figures import key_figures
from report.learned.page import interval_of, scores_part, verdict_words
from report.learned.template import BY_SITE, STAGES
from report.learned.verdict import (
    GainVerdict,
    gains_when_learned,
    question_count,
    verdicts,
)
from report.methods import LEVELS, PairedTest, shown, summaries
from report.methods_template import METHODS
from report.model import RunReport, kinds, metrics_by_kind
from report.options.rows import option_rows
from report.options.template import OPTIONS
from report.routing import routed_rows, routing_headline
from report.sites.rows import site_rows
from report.sites.template import SITES
from report.style.colours import shade, text_on
from report.style.links import with_links
from report.style.sheet import STYLE
from report.style.svg import dark_sheet, within_page
from report.template import PAGE
from report.tests_table import HEADS, comparison_rows


def render_page(
    reports: Sequence[RunReport],
    drawn: Drawn = NOTHING_DRAWN,
    tests: Sequence[PairedTest] = (),
    hospitals: HospitalsReport | None = None,
    examples: Sequence[AnsweredPicture] = (),
) -> str:
    """Render the page of one or several comparable runs; it shows the first one in full.

    Args:
        examples: answers with their pictures, of a page that stays where the pictures may be.
    """
    run = reports[0]
    runs = [report for report in reports if report.method == run.method]
    page = _page().render(
        run=run,
        style=Markup(STYLE + dark_sheet()),
        headline=_headline(runs, hospitals),
        opening=_opening(runs, hospitals),
        key_figures=key_figures(run),
        reading=_how_to_read(run),
        matrix=_matrix(run),
        counts=[question_count(run, task) for task in range(len(run.stages))],
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
        chart=partial(_chart, drawn.charts),
        not_drawn=drawn.failed,
        class_rows=class_rows(run),
        class_metrics=class_metrics(run),
        option_rows=option_rows(reports),
        site_rows=site_rows(run),
        **_comparison(reports, tests),
        **_hospitals(hospitals),
        **heterogeneity_words(run),
        **scores_part(run),
        **answers_part(run.answers, examples),
    )
    return with_links(page)


@cache
def _page() -> Template:
    """Return the page's template: compiling it takes longer than rendering a page."""
    environment = Environment(
        loader=DictLoader(
            {
                "methods": METHODS,
                "classes": CLASSES,
                "options": OPTIONS,
                "hospitals": HOSPITALS,
                "heterogeneity": HETEROGENEITY,
                "sites": SITES,
                "stages": STAGES,
                "by_site": BY_SITE,
                "confusion": CONFUSION,
                "examples": EXAMPLES,
            }
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.from_string(PAGE)


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
    """Return a chart as an element of the page; nothing where it was not drawn."""
    for chart in charts:
        if chart.file == file:
            return Markup("<figure>{}</figure>").format(Markup(within_page(chart.content)))
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
    "size": known_size,
    "duration": duration,
    "p_value": p_value,
    "whole": whole,
    "short": short,
    "readable": readable,
    "wbr": breakable,
    "interval": interval_of,
    "verdict": verdict_words,
    "shaded": shaded,
}
