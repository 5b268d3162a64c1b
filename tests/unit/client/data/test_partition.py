"""`fedmslora data partition` splits tasks: nothing is lost, and no image is at two sites."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.data.image_check import decode_images
from client.data.partition import (
    PartitionSettings,
    assign_images,
    json_list_elements,
    partition_tasks,
)
from client.data.task import Example, check_task, read_task
from commands.data import app
from common.errors import DataError
from common.plan.file import load_plan
from simulation.hospitals import check
from tests.flow.small_run import STAGE, small_plan


@dataclass(frozen=True)
class Picture:
    """Questions of one image, whose grey no other image has."""

    grey: int
    train: int = 0
    test: int = 0
    file: str = ""
    group: str | int | None = None

    @property
    def field(self) -> str:
        return "" if self.group is None else f'"group": {json.dumps(self.group)}, '

    @property
    def name(self) -> str:
        return self.file or f"images/{self.grey}.png"


def write(folder: Path, pictures: Sequence[Picture]) -> Path:
    """A task; each entry has a field that we do not know, with a number json would not keep."""
    learned = [(p, at) for p in pictures for at in range(p.train)]
    asked = [(p, at) for p in pictures for at in range(p.test)]
    for picture in pictures:
        file = folder / picture.name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (picture.grey,) * 3).save(file)
    entries = ",\n ".join(
        f'{{"id": "{p.name}-{at}", "image": "{p.name}", {p.field}"seen": 1.50, "conversations": '
        '[{"from": "human", "value": "Which, [a] or {b}?"}, {"from":"gpt", "value": "caf\\u00e9"}]}'
        for p, at in learned
    )
    lines = "".join(
        f'{{"question_id": "{p.name}-{at}", "image": "{p.name}", {p.field}"text": "Which?", '
        '"gt": "é", "answer_type": "OPEN", "seen": 1.50}\n'
        for p, at in asked
    )
    (folder / "train.json").write_text(f"[ {entries}]", encoding="utf-8")
    (folder / "test.jsonl").write_text(lines, encoding="utf-8")
    return folder


#: Twelve images with one to three training questions, twelve with one or two of the test.
USUAL = [
    *(Picture(at, train=1 + at % 3) for at in range(12)),
    *(Picture(20 + at, test=1 + at % 2) for at in range(12)),
]


def deal_of(names: str = "abc", weights: Sequence[int] = (), **changes: Any) -> PartitionSettings:
    return PartitionSettings(
        sites=tuple(names), weights=tuple(weights) or (1,) * len(names), **changes
    )


def dealt(source: Path, out: Path, deal: PartitionSettings) -> dict[str, tuple[int, int]]:
    """Training and test questions of each site."""
    shares = partition_tasks([source], out, deal, 1, ignore)
    return {share.site: (share.train, share.test) for share in shares}


def ignore(name: str, done: int, of: int) -> None:
    """Nobody watches."""


NONE = Counter[tuple[str, bytes, str]]()


def asked(examples: Sequence[Example]) -> Counter[tuple[str, bytes, str]]:
    return Counter((e.question_id, e.image.read_bytes(), e.question) for e in examples)


def digests_at(folder: Path) -> set[str]:
    data = read_task(folder)
    return set(decode_images([e.image for e in (*data.train, *data.test)]).digests.values())


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes, or where it points if it is a link."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["deal", *map(str, arguments)])


def refused(folder: Path, out: Path, deal: PartitionSettings) -> str:
    with pytest.raises(DataError) as found:
        partition_tasks([folder], out, deal, 1, ignore)
    return str(found.value)


# Who gets what


def test_every_question_is_at_one_site_and_every_image_at_one_only(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    counts = dealt(source, tmp_path / "out", deal_of())
    whole, parts = read_task(source), [read_task(tmp_path / "out" / s / "t") for s in "abc"]
    assert sum((asked(p.train) for p in parts), NONE) == asked(whole.train)
    assert sum((asked(p.test) for p in parts), NONE) == asked(whole.test)
    assert counts == {
        site: (len(part.train), len(part.test)) for site, part in zip("abc", parts, strict=True)
    }
    a, b, c = (digests_at(tmp_path / "out" / site / "t") for site in "abc")
    assert len(a) + len(b) + len(c) == len(a | b | c) == 24


def test_even_sites_get_the_same_number_of_questions(tmp_path: Path):
    counts = dealt(write(tmp_path / "t", USUAL), tmp_path / "out", deal_of())
    # 24 and 18 questions over three sites.
    assert counts == {"a": (8, 6), "b": (8, 6), "c": (8, 6)}


def test_weights_are_parts_of_the_questions(tmp_path: Path):
    single = [Picture(at, train=1) for at in range(14)] + [
        Picture(20 + at, test=1) for at in range(21)
    ]
    counts = dealt(write(tmp_path / "t", single), tmp_path / "out", deal_of(weights=(5, 1, 1)))
    assert counts == {"a": (10, 15), "b": (2, 3), "c": (2, 3)}


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (2, 3, 7)])
def test_no_site_is_further_from_its_part_than_one_images_questions(weights: tuple[int, ...]):
    sizes = {f"train{at}": (1 + at * at % 11, 0) for at in range(40)}
    sizes |= {f"test{at}": (0, 1 + at % 7) for at in range(30)}
    for seed in range(20):
        found = assign_images("t", sizes, {}, deal_of(weights=weights, seed=seed))
        for file in (0, 1):
            total = sum(size[file] for size in sizes.values())
            for site, weight in zip("abc", weights, strict=True):
                got = sum(sizes[digest][file] for digest, of in found.items() if of == site)
                largest = max(size[file] for size in sizes.values())
                assert abs(got - total * weight / sum(weights)) <= largest


def test_an_image_in_train_and_test_stays_whole_and_both_stay_even(tmp_path: Path):
    both = [Picture(at, train=2, test=1) for at in range(6)]
    counts = dealt(
        write(tmp_path / "Slake-VQARad", [*both, *USUAL[12:]]), tmp_path / "out", deal_of()
    )
    assert counts == {"a": (4, 8), "b": (4, 8), "c": (4, 8)}
    a, b, c = (digests_at(tmp_path / "out" / site / "Slake-VQARad") for site in "abc")
    assert not (a & b or b & c or a & c)


def test_a_copy_under_another_name_and_format_is_the_same_image(tmp_path: Path):
    copies = [Picture(5, train=1, file=f"copies/{at}.bmp") for at in range(6)]
    others = [Picture(50 + at, train=3) for at in range(2)]
    tested = [Picture(90 + at, test=1) for at in range(3)]
    pictures = [Picture(5, train=1), *copies, *others, *tested]
    dealt(write(tmp_path / "t", pictures), tmp_path / "out", deal_of())
    holders = [s for s in "abc" if list((tmp_path / "out" / s / "t").glob("copies/*.bmp"))]
    (holder,) = holders
    assert len(list((tmp_path / "out" / holder / "t" / "copies").iterdir())) == 6
    assert (tmp_path / "out" / holder / "t" / "images/5.png").exists()


def test_an_image_of_two_tasks_is_at_one_site(tmp_path: Path):
    folders = [write(tmp_path / "in" / name, USUAL) for name in ("one", "two")]
    partition_tasks(folders, tmp_path / "out", deal_of(), 1, ignore)
    a, b, c = (
        digests_at(tmp_path / "out" / site / "one") | digests_at(tmp_path / "out" / site / "two")
        for site in "abc"
    )
    assert len(a) + len(b) + len(c) == 24


#: Twelve patients, each with two pictures to train on and one of the test.
PATIENTS = [
    *(Picture(at, train=1, group=at // 2) for at in range(24)),
    *(Picture(100 + at, test=1, group=at) for at in range(12)),
]


def patients_at(folder: Path) -> set[int]:
    """The patients of a part, by the greys of their pictures."""
    greys = [int(file.stem) for file in (folder / "images").iterdir()]
    return {grey - 100 if grey >= 100 else grey // 2 for grey in greys}


def test_the_pictures_of_one_patient_are_at_one_site_in_train_and_test(tmp_path: Path):
    counts = dealt(write(tmp_path / "t", PATIENTS), tmp_path / "out", deal_of())
    assert counts == {"a": (8, 4), "b": (8, 4), "c": (8, 4)}
    a, b, c = (patients_at(tmp_path / "out" / site / "t") for site in "abc")
    assert len(a) + len(b) + len(c) == len(a | b | c) == 12


def test_the_same_number_in_another_task_is_another_patient(tmp_path: Path):
    others = [replace(one, grey=one.grey + 130) for one in PATIENTS]
    folders = [write(tmp_path / "in/one", PATIENTS), write(tmp_path / "in/two", others)]
    partition_tasks(folders, tmp_path / "out", deal_of(), 1, ignore)
    one, two = (
        [
            {read.question_id.split("/")[1].split(".")[0] for read in task.test}
            for task in (read_task(tmp_path / "out" / site / name) for site in "abc")
        ]
        for name in ("one", "two")
    )
    assert [{int(name) - 100 for name in site} for site in one] != [
        {int(name) - 230 for name in site} for site in two
    ]


def test_true_is_no_patient(tmp_path: Path):
    pictures = [replace(one, group=True) for one in USUAL]
    counts = dealt(write(tmp_path / "t", pictures), tmp_path / "out", deal_of())
    assert counts == {"a": (8, 6), "b": (8, 6), "c": (8, 6)}


def test_what_an_earlier_task_has_given_a_site_counts():
    counts = {"old": (10, 0)} | {f"new{at}": (1, 0) for at in range(10)} | {"test": (0, 1)}
    found = assign_images("t", counts, {"old": "a"}, deal_of("ab"))
    assert {found[f"new{at}"] for at in range(10)} == {"b"}


def test_images_in_train_and_test_are_assigned_before_those_that_can_make_up_for_them():
    counts = {"both": (4, 1)} | {f"train{at}": (1, 0) for at in range(4)} | {"test": (0, 1)}
    found = assign_images("t", counts, {}, deal_of("ab"))
    assert {found[name] for name in counts if name != "both"} == {*"ab"} - {found["both"]}


def test_the_turns_of_a_conversation_stay_together_and_count_as_questions(tmp_path: Path):
    pictures = [Picture(at, train=1) for at in range(3)] + [
        Picture(9 + at, test=1) for at in range(2)
    ]
    source = write(tmp_path / "t", pictures)
    entries = json.loads((source / "train.json").read_text())
    entries[0]["conversations"] *= 2
    (source / "train.json").write_text(json.dumps(entries))
    counts = dealt(source, tmp_path / "out", deal_of("ab"))
    assert sorted(counts.values()) == [(2, 1), (2, 1)]
    ids = {e.question_id for s in "ab" for e in read_task(tmp_path / "out" / s / "t").train}
    assert {"images/0.png-0/1", "images/0.png-0/2"} < ids


# What is written


def test_entries_keep_their_text_and_order(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    dealt(source, tmp_path / "out", deal_of())
    train = [text for text, _ in json_list_elements((source / "train.json").read_text("utf-8"))]
    test = (source / "test.jsonl").read_text("utf-8").splitlines()
    assert len(train) == 24 and all('"seen": 1.50' in text for text in train)
    for site in "abc":
        there = tmp_path / "out" / site / "t"
        learned = [
            text for text, _ in json_list_elements((there / "train.json").read_text("utf-8"))
        ]
        tested = (there / "test.jsonl").read_text("utf-8").splitlines()
        assert learned == [text for text in train if text in learned]
        assert tested == [text for text in test if text in tested]


def test_elements_are_cut_at_commas_of_their_list_only():
    text = ' [{"a": "],["} ,\n[1, 2],"x" ]\n'
    assert list(json_list_elements(text)) == [
        ('{"a": "],["}', {"a": "],["}),
        ("[1, 2]", [1, 2]),
        ('"x"', "x"),
    ]
    assert list(json_list_elements("[ ]")) == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    for out, seed in (("one", 3), ("two", 3), ("other", 4)):
        dealt(source, tmp_path / out, deal_of(seed=seed))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(tmp_path / "one") != tree(tmp_path / "other")


def test_links_are_relative_so_that_everything_can_move_together(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "home")
    source = write(tmp_path / "way" / "in" / "t", USUAL)
    dealt(source, tmp_path / "way" / "sites" / "new", deal_of())
    (tmp_path / "home").rename(tmp_path / "moved")
    (tmp_path / "way").unlink()
    for site in "abc":
        check_task(tmp_path / "moved" / "sites" / "new" / site / "t")


def test_with_copy_the_sites_need_the_source_no_more(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    dealt(source, tmp_path / "out", deal_of(copy=True))
    source.rename(tmp_path / "gone")
    for site in "abc":
        check_task(tmp_path / "out" / site / "t")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_copies_are_made_where_hard_links_can_not_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    dealt(write(tmp_path / "t", USUAL), tmp_path / "out", deal_of(copy=True))
    copied = list((tmp_path / "out").rglob("*.png"))
    assert len(copied) == 24 and {path.stat().st_nlink for path in copied} == {1}
    for site in "abc":
        check_task(tmp_path / "out" / site / "t")


def test_a_deal_passes_the_check_and_a_simulation_takes_it(tmp_path: Path):
    for name in ("CXP", "PCAM"):
        write(tmp_path / "in" / name, USUAL)
    assert run(tmp_path / "in", tmp_path / "out", "--sites", "a,b,c").exit_code == 0
    for site in "abc":
        looked = CliRunner().invoke(app, ["check", str(tmp_path / "out" / site), "--workers", "1"])
        assert looked.exit_code == 0, looked.output
    stages = [{**STAGE, "sites": ["a", "b", "c"]}]
    plan = load_plan(small_plan(tmp_path / "plan.yaml", stages=stages))
    assert check(plan, "plan.yaml", tmp_path / "out", None).is_dir()


# What is refused; nothing is left of it


@pytest.mark.parametrize(
    ("sites", "weights", "sentence"),
    [
        (("a", "B"), (1, 1), "--sites: found 'B', expected 1 to 40 of a to z, 0 to 9, - and _, "),
        (("a", "../b"), (1, 1), "--sites: found '../b', expected 1 to 40 of"),
        (("a", "b", "a"), (1, 1, 1), "--sites: found 'a' twice, expected one or more, each once"),
        ((), (), "--sites: found none, expected one or more"),
        (("a", "b"), (1,), "--weights: found 1, expected 2 whole numbers from 1 to"),
        (("a", "b"), (10**400, 1), f"--weights: found 1{'0' * 39}, 1, expected 2 whole numbers"),
        (("a", "b"), (), "--weights: found nothing, expected 2 whole numbers"),
        (("a", "b"), (3, 0), "--weights: found 3, 0, expected 2 whole numbers from 1 to"),
    ],
)
def test_an_impossible_partition_is_refused_in_a_sentence(
    sites: tuple[str, ...], weights: tuple[int, ...], sentence: str
):
    with pytest.raises(DataError) as found:
        PartitionSettings(sites=sites, weights=weights)
    assert str(found.value).startswith(sentence)


def test_a_partition_does_not_lie_in_what_it_is_made_of(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    sentence = refused(source, source / "out", deal_of())
    assert (
        sentence == f"{source}/out: found a folder inside of {source}, expected one outside of it"
    )
    assert not (source / "out").exists()


def test_a_site_that_would_get_no_question_is_refused(tmp_path: Path):
    few = [*USUAL[:12], Picture(90, test=5), Picture(91, test=1)]
    source = write(tmp_path / "t", few)
    sentence = refused(source, tmp_path / "out", deal_of())
    assert sentence.startswith(f"{source}/test.jsonl: found no question left for site '")
    assert "(the weights of a, b, c are 1, 1, 1, and all questions about an image" in sentence
    assert os.listdir(tmp_path) == ["t"]


def test_a_damaged_image_is_refused_and_others_are_counted(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    for at in (3, 4, 21):
        (source / f"images/{at}.png").write_bytes(b"")
    assert refused(source, tmp_path / "out", deal_of()) == (
        f"{source}/images/3.png: found an empty file, expected an image (2 more of t's are damaged)"
    )
    assert os.listdir(tmp_path) == ["t"]


def test_one_damaged_image_is_refused_by_its_name(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    (source / "images/3.png").write_bytes(b"")
    assert refused(source, tmp_path / "out", deal_of()) == (
        f"{source}/images/3.png: found an empty file, expected an image"
    )


def test_a_task_that_can_not_be_read_is_refused(tmp_path: Path):
    source = write(tmp_path / "t", USUAL)
    (source / "images/3.png").unlink()
    assert "entry 7: field 'image': found 'images/3.png'" in refused(
        source, tmp_path / "out", deal_of()
    )
    assert os.listdir(tmp_path) == ["t"]


def test_an_empty_folder_is_filled_and_one_with_anything_in_it_refused(tmp_path: Path):
    source, out = write(tmp_path / "t", USUAL), tmp_path / "out"
    out.mkdir()
    dealt(source, out, deal_of())
    before = tree(out)
    assert refused(source, out, deal_of()) == (
        f"{out}: found a folder that is not empty, expected a new or an empty folder"
    )
    file = source / "train.json"
    assert refused(source, file, deal_of()) == (
        f"{file}: found a file, expected a new or an empty folder"
    )
    assert tree(out) == before


def test_a_deal_that_is_broken_off_leaves_nothing_and_one_that_was_killed_is_no_hindrance(
    tmp_path: Path,
):
    source = write(tmp_path / "t", USUAL)

    def interrupt(name: str, done: int, of: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partition_tasks([source], tmp_path / "out", deal_of(), 1, interrupt)
    assert os.listdir(tmp_path) == ["t"]
    (tmp_path / ".writing-out" / "a" / "t").mkdir(parents=True)
    dealt(source, tmp_path / "out", deal_of())
    assert sorted(os.listdir(tmp_path)) == ["out", "t"]


# The command


def test_the_command_prints_a_table_of_what_each_site_got(tmp_path: Path):
    write(tmp_path / "in" / "odd [x]", USUAL)
    result = run(tmp_path / "in", tmp_path / "out", "--sites", "a, b", "--weights", "2,1")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["odd", "[x]", "a", "16", "12"] in [row[:5] for row in rows]
    assert ["odd", "[x]", "b", "8", "6"] in [row[:5] for row in rows]


def test_json_has_the_deal_and_its_counts(tmp_path: Path):
    source = write(tmp_path / "in" / "t", USUAL)
    result = run(source, tmp_path / "out", "--sites", "a", "--seed", "7", "--json")
    assert json.loads(result.stdout) == {
        "folder": str(source),
        "out": str(tmp_path / "out"),
        "seed": 7,
        "sites": ["a"],
        "weights": [1],
        "shares": [{"task": "t", "site": "a", "train": 24, "test": 18, "images": 24}],
    }
    assert result.stderr == "t: decoding 24 images\n"


@pytest.mark.parametrize("weights", ["5,x", "5,", "1_000,1", "\u0665,1", "3,0"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, weights: str):
    result = run(tmp_path, tmp_path / "out", "--sites", "a,b", "--weights", weights)
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == (
        f"--weights: found {weights!r}, expected whole numbers from 1 on, such as 5,1,1"
    )
