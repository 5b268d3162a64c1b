"""What the templates of every score are filled with."""

from typing import Any

from report.format import percent, points
from report.learned.rows import Score, rows_by_site, site_heads, task_scores
from report.learned.verdict import GainVerdict
from report.model import RunReport

_VERDICTS = {
    GainVerdict.LEARNED: "shown",
    GainVerdict.NOT_SHOWN: "not shown",
    GainVerdict.WORSE: "worse",
    GainVerdict.UNKNOWN: "not known",
}


def scores_part(report: RunReport) -> dict[str, Any]:
    """Return the values of the templates STAGES and BY_SITE."""
    rows = task_scores(report)
    return {
        "task_scores": rows,
        "interval_note": _interval_note(report),
        "has_pictures": report.answers is not None,
        "has_routed": any(row.routed.value is not None for row in rows),
        "site_heads": site_heads(report),
        "summed_up": site_heads(report)[:1] == ["sites"],
        "rows_by_site": rows_by_site(report),
    }


def _interval_note(report: RunReport) -> str:
    if report.answers is not None:
        return (
            "with a picture and all its questions as one sample (Wilson's with the design effect; "
            "of gains a paired bootstrap)"
        )
    return (
        "Wilson's with questions taken as independent, of gains Newcombe's: where a picture has "
        "several questions, the true one is wider (a dash: the number of questions is not known, "
        "or the measure is no mean over them)"
    )


def interval_of(score: Score, signed: bool = False) -> str:
    """Return a score's interval in percent or points; "" where it has none."""
    written = points if signed else percent
    span = score.interval
    return "" if span is None else f"{written(span.low)} to {written(span.high)}"


def verdict_words(verdict: GainVerdict) -> str:
    """Return what a verdict is called in a table."""
    return _VERDICTS[verdict]
