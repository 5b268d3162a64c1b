"""Each site's part in a report: its own word is called so, and what its updates did."""

import json
from dataclasses import replace
from pathlib import Path

from report.html import render_page
from report.json_file import from_document, to_document
from report.model import RunReport
from report.sites.model import SiteClaim, SiteParts, UpdatePart
from report.sites.rows import site_rows
from report.write import write_report
from tests.unit.report.test_report import run


def part(site: str, number: int, share: float, scaled: float = 1.0) -> UpdatePart:
    why = "direction: found a cosine of -0.55" if share == 0 else None
    return UpdatePart(
        stage="tissue", round=number, site=site, norm=2.5, cosine=0.5 if why is None else -0.5,
        scaled=scaled, share=share, outlier=why,
    )  # fmt: skip


def told() -> RunReport:
    claim = SiteClaim(examples=120, questions=40, scores={"accuracy": 0.875})
    updates = (part("a", 1, 0.5), part("b", 1, 0.5, 0.25), part("a", 2, 1.0), part("b", 2, 0.0))
    return replace(run(), sites=SiteParts(self_reported={"tissue": {"a": claim}}, updates=updates))


def test_a_row_has_the_sites_own_word_and_what_its_updates_did():
    first, second = site_rows(told())
    assert (first.site, first.examples, first.questions, first.score) == ("a", 120, 40, 0.875)
    assert (first.share, first.scaled, first.left_out, first.why) == (1.0, 0, 0, None)
    # Site b counted nothing in the end, so it is in no release.
    assert (second.site, second.examples, second.score) == ("b", 0, None)
    assert (second.share, second.scaled, second.left_out) == (0.0, 1, 1)
    assert second.why == "direction: found a cosine of -0.55"
    assert site_rows(run()) == []


def test_the_page_calls_it_self_reported_and_report_json_has_it(tmp_path: Path):
    page = render_page([told()])
    assert page.count("<small>self-reported") == 3
    assert "direction: found a cosine of -0.55" in page
    assert "self-reported" not in render_page([run()])
    write_report(tmp_path, [told()])
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert document["sites"]["self_reported"]["tissue"]["a"]["questions"] == 40
    assert from_document(to_document(told()), "here") == told()
