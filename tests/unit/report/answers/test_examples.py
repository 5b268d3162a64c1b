"""Answers with their pictures: on a page that stays with the pictures, and never in report.json."""

from pathlib import Path

import pytest
from PIL import Image

from client.data.thumbnail import LONGEST, thumbnail
from common.errors import DataError
from common.identity import ROOT
from common.metrics import AnsweredQuestion, AnswerKind
from report.answers.examples import (
    EXAMPLES_FILE,
    SHOWN,
    chosen_examples,
    read_examples,
    write_examples,
)
from report.html import render_page
from report.write import write_report
from tests.unit.report.test_report import parsed, run


def answered(picture: Path, answer: str) -> tuple[str, AnsweredQuestion, Path]:
    asked = AnsweredQuestion(
        question="is it <i>?", answer=answer, truth="yes", kind=AnswerKind.CLOSED
    )
    return "north", asked, picture


def pictures(folder: Path, count: int) -> list[Path]:
    files = [folder / f"secret{place}.png" for place in range(count)]
    for place, file in enumerate(files):
        Image.new("RGB", (400, 200), (20 * place, 0, 0)).save(file)
    return files


def test_a_few_right_and_wrong_answers_are_chosen_of_different_pictures(tmp_path: Path):
    files = pictures(tmp_path, 10)
    answers = [answered(file, "yes" if place % 2 else "no") for place, file in enumerate(files)]
    found = chosen_examples("tissue", [*answers, *answers], thumbnail)
    assert [one.right for one in found] == [True] * SHOWN + [False] * SHOWN
    assert len({one.jpeg for one in found}) == 2 * SHOWN
    assert chosen_examples("tissue", answers[:1], thumbnail)[0].right is False


def test_a_thumbnail_is_small_and_has_no_metadata(tmp_path: Path):
    import io

    with Image.open(io.BytesIO(thumbnail(pictures(tmp_path, 1)[0]))) as small:
        assert small.size == (LONGEST, LONGEST // 2) and not small.getexif()


def test_a_picture_that_is_gone_is_left_out(tmp_path: Path):
    (file,) = pictures(tmp_path, 1)
    missing = tmp_path / "gone.png"
    found = chosen_examples("t", [answered(file, "yes"), answered(missing, "yes")], thumbnail)
    assert len(found) == 1


def test_the_page_has_them_and_report_json_never(tmp_path: Path):
    found = chosen_examples("tissue", [answered(pictures(tmp_path, 1)[0], "no")], thumbnail)
    write_report(tmp_path / "run", [run()], examples=found)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert found[0].jpeg in page and "This part holds pictures" in page and "<i>" not in page
    assert "is it <i>?" in parsed(page).text and "secret" not in page
    document = (tmp_path / "run/report.json").read_text(encoding="utf-8")
    assert "is it" not in document and found[0].jpeg not in document
    assert "image/jpeg" not in render_page([run()])


def test_examples_are_read_back_and_a_damaged_file_is_named(tmp_path: Path):
    assert read_examples(tmp_path) == []
    found = chosen_examples("tissue", [answered(pictures(tmp_path, 1)[0], "no")], thumbnail)
    write_examples(tmp_path, found)
    assert read_examples(tmp_path) == found
    # Half a surrogate could be written into no page.
    half = (tmp_path / EXAMPLES_FILE).read_text(encoding="utf-8").replace("tissue", "\\ud800")
    for damaged in ("[{}]", "[" * 100_000, half):
        (tmp_path / EXAMPLES_FILE).write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match="examples of answers"):
            read_examples(tmp_path)


def test_no_coordinator_makes_examples_or_reads_single_answers():
    for file in (ROOT / "server").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert "report.answers" not in source and "write_examples" not in source, file
