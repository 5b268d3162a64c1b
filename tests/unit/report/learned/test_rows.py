"""The tables of scores by site, of what a coordinator is told: no single answer."""

from dataclasses import replace

from report.learned.intervals import wilson
from report.learned.rows import rows_by_site, site_heads
from report.model import RunReport
from report.sites.model import SiteScores
from tests.unit.report.test_report import run

NOBODY = (None,) * 3


def told(*last: float) -> RunReport:
    """Sites of which each had 0.1 of the first task when learned, and one of these at the end."""
    sites = tuple(
        SiteScores(
            site=f"s{number:02d}",
            questions=(10 + number, None, None),
            zero_shot=NOBODY,
            majority=NOBODY,
            scores=((0.1, None, None), (score, None, None), NOBODY),
        )
        for number, score in enumerate(last)
    )
    return replace(run(), by_site=sites)


def test_a_sites_score_is_its_last_one_with_the_interval_of_its_own_questions():
    report = told(0.5, 0.7)
    assert site_heads(report) == ["s00", "s01"]
    (row,) = rows_by_site(report)
    assert row.stage.name == "tissue"
    assert [cell and (cell.site, cell.score.value, cell.questions) for cell in row.cells] == [
        ("s00", 0.5, 10),
        ("s01", 0.7, 11),
    ]
    assert [cell and cell.score.interval for cell in row.cells] == [
        wilson(0.5, 10),
        wilson(0.7, 11),
    ]


def test_of_many_sites_the_lowest_the_middle_and_the_highest_are_shown():
    scores = [0.02 * place for place in (7, 3, 1, 9, 5, 2, 8, 4, 6, 12, 11, 10, 30)]
    report = told(*scores)
    assert site_heads(report) == ["sites", "lowest", "middle", "highest"]
    (row,) = rows_by_site(report)
    count, lowest, middle, highest = row.cells
    assert count and (count.site, count.questions) == ("13", sum(range(10, 23)))
    assert lowest and (lowest.site, lowest.score.value) == ("s02", 0.02)
    assert middle and (middle.site, middle.score.value) == ("", 0.14)
    assert highest and (highest.site, highest.score.value) == ("s12", 0.6)
    # Twelve have a column each.
    assert len(site_heads(told(*scores[:12]))) == 12
