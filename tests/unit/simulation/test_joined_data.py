"""One site's data out of several sites', and the first of a site's questions."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from client.data.task import TaskData, read_task
from simulation.joined_data import JoinedTask, first_questions, write_joined
from simulation.task_folder.write_task import Question, write_task


def task(folder: Path, groups: range, each: int = 2) -> Path:
    """A task with `each` questions about every picture of `groups`, and one test picture."""

    def ask(group: int, number: int) -> Question:
        pixels = np.full((4, 4, 3), group, np.uint8)
        return Question(pixels, f"is this {number} ?", f"{group}", True, group)

    train = [ask(group, number) for group in groups for number in range(each)]
    write_task(folder, train, [ask(200 + groups.start, 0), ask(200 + groups.start, 1)])
    return folder


def asked(data: TaskData) -> list[tuple[bytes, str, str, str]]:
    return [
        (one.image.read_bytes(), one.question, one.answer, one.kind)
        for one in (*data.train, *data.test)
    ]


def test_all_sites_questions_follow_each_other_and_no_picture_is_copied(tmp_path: Path):
    north, south = task(tmp_path / "n", range(2)), task(tmp_path / "s", range(5, 8))
    write_joined(JoinedTask(tmp_path / "all", {"south": south, "north": north}))
    found, parts = read_task(tmp_path / "all"), [read_task(south), read_task(north)]
    assert [one.answer for one in found.train] == [e.answer for p in parts for e in p.train]
    assert [one.answer for one in found.test] == [e.answer for p in parts for e in p.test]
    assert [one.image.read_bytes() for one in found.test] == [
        one.image.read_bytes() for part in parts for one in part.test
    ]
    assert len({one.question_id for one in found.train}) == len(found.train)
    files = {path.name for path in (tmp_path / "all").iterdir() if not path.is_symlink()}
    assert files == {"train.json", "test.jsonl"}


def test_a_site_alone_has_exactly_its_own_questions(tmp_path: Path):
    own = task(tmp_path / "own", range(3))
    write_joined(JoinedTask(tmp_path / "alone", {"north": own}))
    assert asked(read_task(tmp_path / "alone")) == asked(read_task(own))


def test_writing_again_changes_nothing_and_follows_data_that_were_moved(tmp_path: Path):
    own = task(tmp_path / "own", range(3))
    joined = JoinedTask(tmp_path / "alone", {"north": own})
    write_joined(joined)
    before = (tmp_path / "alone" / "train.json").stat()
    write_joined(joined)
    assert (tmp_path / "alone" / "train.json").stat().st_mtime_ns == before.st_mtime_ns
    moved = own.rename(tmp_path / "moved")
    write_joined(JoinedTask(tmp_path / "alone", {"north": moved}))
    assert asked(read_task(tmp_path / "alone")) == asked(read_task(moved))


def test_fewer_questions_are_among_more_and_come_picture_by_picture(tmp_path: Path):
    train = read_task(task(tmp_path / "own", range(20))).train
    subsets = [first_questions(train, count, seed=3) for count in (5, 10, 39, 100)]
    assert [len(found) for found in subsets] == [5, 10, 39, 40]
    for few, more in pairwise(subsets):
        assert set(few) < set(more)
    # Five questions are of three pictures, and not the file's first ones.
    assert len({one.image for one in subsets[0]}) == 3
    assert subsets[0] != list(train[:5])
    assert subsets[3] == list(train)
    assert first_questions(train, 5, seed=4) != subsets[0]


def test_the_first_questions_leave_the_test_as_it_is(tmp_path: Path):
    own = task(tmp_path / "own", range(6))
    write_joined(JoinedTask(tmp_path / "few", {"north": own}, first=4, seed=1))
    found = read_task(tmp_path / "few")
    assert [one.answer for one in found.train] == [
        one.answer for one in first_questions(read_task(own).train, 4, 1)
    ]
    assert len(found.test) == len(read_task(own).test)
