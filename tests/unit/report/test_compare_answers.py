import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import DataError
from common.metrics import AnsweredQuestion, AnswerKind, paper_metrics, read_answers
from fedmslora import app
from report.compare_answers import AnswerComparison, compare_answers, pair_answers
from report.significance import McNemar
from tests.unit.common.paper_reference import CASES, EXCERPT

OPEN, CLOSED = AnswerKind.OPEN, AnswerKind.CLOSED
NAMES = ("one", "two")


def answer(
    number: int | str, text: str, truth: str = "yes", kind: AnswerKind = CLOSED
) -> AnsweredQuestion:
    return AnsweredQuestion("is it?", text, truth, kind, str(number))


def by_name(found: list[AnswerComparison]) -> dict[tuple[str, str], AnswerComparison]:
    return {(one.kind, one.score): one for one in found}


def written(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def case(cases: Path, name: str) -> list[AnsweredQuestion]:
    if not cases.is_dir():
        pytest.skip(f"{cases} is not here: the paper's answer files come beside the repository")
    return read_answers(cases / name / "answers.jsonl")


def test_the_papers_pneumonia_pair_differs_by_chance():
    # The figures that others found on the same two files: +0.64 points, p = 0.65.
    files = [case(CASES, name) for name in ("each_cxp", "cr8_cxp")]
    found = by_name(compare_answers(pair_answers(files[0], files[1], NAMES)))
    hits = found["closed", "close accuracy"]
    assert hits.mcnemar is not None and round(hits.mcnemar.p, 2) == 0.65
    assert round(hits.bootstrap.difference, 2) == 0.64
    assert hits.bootstrap.low < 0 < hits.bootstrap.high
    assert list(found) == [
        ("all", "exact match score"),
        ("closed", "close accuracy"),
        ("closed", "exact match score"),
    ]


def test_the_excerpt_of_the_pneumonia_pair_by_hand():
    files = [case(EXCERPT, name) for name in ("each_cxp", "cr8_cxp")]
    found = by_name(compare_answers(pair_answers(files[0], files[1], NAMES)))
    hits = found["closed", "close accuracy"]
    # Read off the two files: of 30 questions the first has 22 right, the second 24; four are
    # right in the first only, six in the second only. Ten tosses, at least as uneven as 4 : 6.
    assert hits.mcnemar == McNemar(4, 6, 2 * (1 + 10 + 45 + 120 + 210) / 2**10)
    assert (hits.first, hits.second) == (pytest.approx(2200 / 30), pytest.approx(2400 / 30))
    assert hits.bootstrap.difference == pytest.approx(200 / 30)


@pytest.mark.parametrize(
    ("cases", "questions", "ids"),
    # The file is two data sets that both number their questions.
    [(EXCERPT, 36, 33), (CASES, 1512, 1061)],
    ids=["excerpt", "all answers"],
)
def test_questions_with_the_same_id_are_paired_by_their_text(cases: Path, questions: int, ids: int):
    answers = case(cases, "cr8_slake-vqarad")
    pairs = pair_answers(answers, answers[::-1], NAMES)
    assert (len(pairs), len({one.id for one in answers})) == (questions, ids)
    assert all(one.question == other.question for one, other in pairs)


@pytest.mark.parametrize("cases", [EXCERPT, CASES], ids=["excerpt", "all answers"])
def test_the_scores_are_those_of_the_papers_table(cases: Path):
    answers = case(cases, "cr8_slake-vqarad")
    table = paper_metrics(answers)
    found = by_name(compare_answers(pair_answers(answers, answers, NAMES)))
    for kind, score in (
        ("all", "exact match score"),
        ("closed", "close accuracy"),
        ("open", "recall"),
        ("open", "f1 score"),
    ):
        assert found[kind, score].first == found[kind, score].second
        assert found[kind, score].first == pytest.approx(table[score], rel=1e-12)
        assert found[kind, score].bootstrap.p == 1.0


def test_every_score_by_hand():
    first = [
        answer(1, "yes"),
        answer(2, "yes indeed"),  # a hit, not exact
        answer(3, "no"),
        answer(4, "left", "left lung", OPEN),  # recall 1/2, precision 1: F1 2/3
        answer(5, "heart", "heart", OPEN),
    ]
    second = [
        answer(1, "no"),
        answer(2, "yes"),
        answer(3, "yes"),
        answer(4, "left lung", "left lung", OPEN),
        answer(5, "heart", "heart", OPEN),
    ]
    found = by_name(compare_answers(pair_answers(first, second, NAMES)))
    exact, hits = found["all", "exact match score"], found["closed", "close accuracy"]
    assert (exact.first, exact.second) == (pytest.approx(40.0), pytest.approx(80.0))
    # Only the first is right on 1; only the second on 2, 3 and 4: 2 * (1 + 4) of 16.
    assert exact.mcnemar == McNemar(1, 3, 10 / 16)
    assert (hits.first, hits.second) == (pytest.approx(200 / 3), pytest.approx(200 / 3))
    assert hits.mcnemar == McNemar(1, 1, 1.0)
    recall, f1 = found["open", "recall"], found["open", "f1 score"]
    assert (recall.first, recall.second, recall.mcnemar) == (75.0, 100.0, None)
    assert recall.bootstrap.difference == pytest.approx(25.0)
    assert f1.bootstrap.difference == pytest.approx(100 * (1 / 3) / 2)
    # Of the two questions one differs: a resample without it has no difference at all.
    assert (recall.bootstrap.low, recall.bootstrap.high) == (0.0, 50.0)
    assert found["open", "exact match score"].mcnemar == McNemar(0, 1, 1.0)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ([answer(1, "yes")], "two, question_id 2: found nothing, expected an answer as in one"),
        (
            [answer(1, "yes"), answer(2, "yes"), answer(3, "no")],
            "one, question_id 3: found nothing, expected an answer as in two",
        ),
        (
            [answer(1, "yes"), answer(2, "yes", "no")],
            "two, question_id 2, gt: found 'no', expected 'yes' as in one",
        ),
        (
            [answer(1, "yes"), AnsweredQuestion("was it?", "yes", "yes", CLOSED, "2")],
            "two, question_id 2, prompt: found 'was it?', expected 'is it?' as in one",
        ),
        (
            [answer(1, "yes"), answer(2, "yes", kind=OPEN)],
            "two, question_id 2, answer_type: found 'OPEN', expected 'CLOSED' as in one",
        ),
        (
            [answer(1, "yes"), answer(2, "yes"), answer(2, "no")],
            "one, question_id 2: found 1 of these questions, expected as many as in two",
        ),
        (
            [AnsweredQuestion("is it?", "yes", "yes", CLOSED), answer(2, "no")],
            "two, answer 1: found no question_id, expected one to pair it by",
        ),
    ],
)
def test_a_question_without_a_partner_is_one_sentence(
    second: list[AnsweredQuestion], sentence: str
):
    first = [answer(1, "yes"), answer(2, "no")]
    with pytest.raises(DataError) as error:
        pair_answers(first, second, NAMES)
    assert str(error.value) == sentence


def test_files_may_differ_in_order_and_in_how_an_id_is_written(tmp_path: Path):
    lines = [{"question_id": n, "text": "a", "gt": "a"} for n in (1, 2)]
    other = [{"question_id": str(n), "text": "b", "gt": "a"} for n in (2, 1)]
    one, two = written(tmp_path / "1.jsonl", lines), written(tmp_path / "2.jsonl", other)
    done = CliRunner().invoke(app, ["answers", "compare", str(one), str(two), "--json"])
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["questions"] == 2 and document["first"] == str(one)
    exact = document["scores"][0]
    assert exact["mcnemar"] == {"first_only": 2, "second_only": 0, "p": 0.5}
    assert exact["bootstrap"]["difference"] == -100.0


def test_the_command_says_each_score_with_its_test(tmp_path: Path):
    lines: list[dict[str, Any]] = [{"question_id": 1, "text": "a b", "gt": "b c"}]
    lines.append({"question_id": 2, "text": "yes", "gt": "yes", "answer_type": "CLOSED"})
    file = written(tmp_path / "1.jsonl", lines)
    done = CliRunner().invoke(app, ["answers", "compare", str(file), str(file)])
    assert done.exit_code == 0
    said = done.stdout.splitlines()
    assert any(line.startswith("closed (1), close accuracy") for line in said)
    assert any(line.startswith("open (1), recall") and "(bootstrap)" in line for line in said)
    assert "right only in the first: 0, only in the second: 0" in done.stdout


def test_nothing_to_compare_is_an_error_not_a_zero():
    with pytest.raises(DataError, match="no answer to compare"):
        compare_answers([])
