"""A site's kept answers: the last ones to each of its tasks, beside what training would say."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from client.orders.kept_answers import KeptAnswers, kept_answers, remove_answers
from client.site.config import Site
from common.plan.plan import Plan
from tests.unit.client.site.test_policy import site_of
from tests.unit.small_round import plan

ASKED = (("is it?", "yes", "p.png"), ("is it?", "no", "q.png"), ("is that?", "no", "p.png"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Training says `yes`, the test has more of `no`."""
    site = site_of(tmp_path).model_copy(update={"name": "a"})
    folder = site.data / "t"
    folder.mkdir(parents=True)
    (site.store / "answers").mkdir(parents=True)
    for number, name in enumerate(("p.png", "q.png")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    turns = [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "yes"}]
    train = [{"id": "0", "image": "p.png", "answer_type": "CLOSED", "conversations": turns}]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.jsonl").write_text(lines("text", ""))
    return site


def lines(question: str, said: str) -> str:
    return "".join(
        json.dumps(
            {
                "question_id": number, "image": image, "text": said, question: asked, "gt": answer,
                "answer_type": "CLOSED",
            }
        )
        + "\n"
        for number, (asked, answer, image) in enumerate(ASKED)
    )  # fmt: skip


def write(site: Site, name: str, said: str, written: int) -> Path:
    file = site.store / "answers" / f"{name}.jsonl"
    file.write_text(lines("prompt", said))
    os.utime(file, (written, written))
    return file


def kept(site: Site, of: Plan | None = None) -> KeptAnswers:
    (found,) = kept_answers(of or plan(), site)
    return found


def test_the_last_ones_count_whatever_their_names_and_not_those_of_another_stage(site: Site):
    write(site, f"one-{'f' * 12}", "of the round before", 1)
    write(site, f"one-{'0' * 12}", "of the last round", 2)
    write(site, f"one-more-{'a' * 12}", "of another stage", 3)
    assert {one.answer for one in kept(site).answers} == {"of the last round"}


def test_the_majority_is_that_of_training_and_a_picture_has_one_number(site: Site):
    write(site, f"one-{'0' * 12}", "no", 1)
    found = kept(site)
    assert [(one.answer, one.truth) for one in found.majority] == [
        ("yes", "yes"), ("yes", "no"), ("yes", "no"),
    ]  # fmt: skip
    assert found.pictures == [0, 1, 0]


def test_of_one_stages_answers_all_but_one_file_are_removed(site: Site):
    old, last, other = (
        write(site, name, "no", 1)
        for name in (f"one-{'f' * 12}", f"one-{'0' * 12}", f"one-more-{'a' * 12}")
    )
    remove_answers(site, "one", but=last)
    assert [file.exists() for file in (old, last, other)] == [False, True, True]
    remove_answers(site)
    assert not any(file.exists() for file in (last, other))
