"""The number of a stage's test questions, by site, as its journal has it."""

from dataclasses import replace
from pathlib import Path

from common.exchange import Scores
from common.work import Work
from server.run.folder import RunFolder
from server.run.scored_questions import scored_questions
from tests.unit.small_round import ORDER, journal


def test_each_site_that_was_scored_on_the_stage_counts_once(tmp_path: Path):
    book = journal(tmp_path)
    for stage in (0, 1):
        for active in ((), (0,)):
            judged = replace(ORDER, work=Work.EVALUATE, round=0, stage=stage, active=active)
            for site, questions in (("a", 4 + stage), ("b", 7)):
                scores = Scores(
                    order=judged.digest, site=site, questions=questions,
                    metrics={"f1": 0.5}, majority={"f1": 0.25},
                )  # fmt: skip
                book.record(judged, scores, 1, 2)
    book.close()
    file = RunFolder(tmp_path).journal
    assert scored_questions(file, 0) == {"a": 4, "b": 7}
    assert scored_questions(file, 1) == {"a": 5, "b": 7}
    assert scored_questions(file, 2) == {}


def test_without_a_journal_nothing_is_known(tmp_path: Path):
    assert scored_questions(tmp_path / "journal.sqlite", 0) == {}
    book = journal(tmp_path / "damaged")
    judged = replace(ORDER, work=Work.EVALUATE, round=0)
    scores = Scores(
        order=judged.digest, site="a", questions=4, metrics={"f1": 0.5}, majority={"f1": 0.25}
    )
    book.record(judged, scores, 1, 2)
    book._db.execute("update answers set header = '{'")  # pyright: ignore[reportPrivateUsage]
    book._db.commit()  # pyright: ignore[reportPrivateUsage]
    book.close()
    assert scored_questions(RunFolder(tmp_path / "damaged").journal, 0) == {}
    (tmp_path / "other").write_text("no database")
    assert scored_questions(tmp_path / "other", 0) == {}
