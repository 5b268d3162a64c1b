"""The rows of the table of sites: their own word, and how their updates counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from report.model import RunReport
from report.sites.model import SiteClaim, UpdatePart


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """A site in a stage.

    Attributes:
        score: in the stage's measure, by the site's own word; None where it gave none.
        share: of the last round's mean.
        norm, cosine: of its change in the last round.
        scaled: rounds in which its change was scaled down; `left_out`: in which it did not count.
        why: the last reason for which it did not count.
    """

    stage: str
    site: str
    examples: int
    questions: int
    score: float | None
    share: float | None
    norm: float | None
    cosine: float | None
    scaled: int
    left_out: int
    why: str | None


def site_rows(report: RunReport) -> list[SiteRow]:
    """Return a row for each site of each stage that is released."""
    return list(_rows(report))


def _rows(report: RunReport) -> Iterator[SiteRow]:
    if report.sites is None:
        return
    nothing = SiteClaim(examples=0, questions=0, scores={})
    for stage in report.stages:
        claims = report.sites.self_reported.get(stage.name, {})
        own = [one for one in report.sites.updates if one.stage == stage.name]
        for site in sorted({*claims, *(one.site for one in own)}):
            parts = [one for one in own if one.site == site]
            claim = claims.get(site, nothing)
            yield _row(stage.name, site, claim, claim.scores.get(stage.metric.value), parts)


def _row(
    stage: str, site: str, claim: SiteClaim, score: float | None, parts: Sequence[UpdatePart]
) -> SiteRow:
    last = parts[-1] if parts else None
    out = [one for one in parts if one.share == 0]
    return SiteRow(
        stage=stage,
        site=site,
        examples=claim.examples,
        questions=claim.questions,
        score=score,
        share=None if last is None else last.share,
        norm=None if last is None else last.norm,
        cosine=None if last is None else last.cosine,
        scaled=sum(one.scaled < 1 for one in parts),
        left_out=len(out),
        why=out[-1].outlier if out else None,
    )
