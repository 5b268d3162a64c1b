"""The B's of a site lie in its store, by plan, stage and round."""

from pathlib import Path

import numpy as np
import pytest

from client.site import own_b
from common.adapter import Adapter
from common.errors import BankError, SiteFailed
from common.partial_adapter import AdapterPart

PLAN, OTHER = "ab" * 32, "cd" * 32


def part(value: float) -> Adapter:
    return Adapter({}, 1.0, {AdapterPart.B.name_of("q"): np.full((4, 2), value, np.float32)})


def value_of(
    store: Path, stage: int = 0, before: int | None = None, plan: str = PLAN
) -> float | None:
    found = own_b.latest(store, plan, stage, before)
    return None if found is None else float(found.extra(AdapterPart.B.name_of("q"))[0, 0])


def rounds(store: Path) -> list[str]:
    return sorted(file.stem for file in store.rglob("*.safetensors"))


def test_a_round_begins_with_the_last_one_before_it_however_often_it_is_done(tmp_path: Path):
    assert value_of(tmp_path) is None
    for number in (1, 2, 3):
        own_b.save(tmp_path, PLAN, 0, number, part(number))
        # Done again, it begins with what it began with.
        assert value_of(tmp_path, before=number) == (number - 1 or None)
    assert value_of(tmp_path) == 3
    assert rounds(tmp_path) == ["0002", "0003"]


def test_a_round_that_the_site_missed_is_passed_over(tmp_path: Path):
    own_b.save(tmp_path, PLAN, 0, 1, part(1))
    own_b.save(tmp_path, PLAN, 0, 4, part(4))
    assert value_of(tmp_path, before=4) == 1
    assert value_of(tmp_path) == 4


def test_a_course_from_the_beginning_does_not_go_on_from_the_one_before(tmp_path: Path):
    for number in (1, 2, 3):
        own_b.save(tmp_path, PLAN, 0, number, part(number))
    assert value_of(tmp_path, before=1) is None
    own_b.save(tmp_path, PLAN, 0, 1, part(10))
    assert rounds(tmp_path) == ["0001"]
    assert value_of(tmp_path) == 10


def test_stages_and_plans_have_their_own(tmp_path: Path):
    own_b.save(tmp_path, PLAN, 0, 1, part(1))
    own_b.save(tmp_path, PLAN, 1, 1, part(2))
    own_b.save(tmp_path, OTHER, 0, 1, part(3))
    assert value_of(tmp_path) == 1
    assert value_of(tmp_path, stage=1) == 2
    assert value_of(tmp_path, plan=OTHER) == 3


def test_a_damaged_file_is_named_by_stage_and_round(tmp_path: Path):
    own_b.save(tmp_path, PLAN, 2, 5, part(1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"junk")
    with pytest.raises(BankError, match=r"the site's own B of stage 3, round 5"):
        own_b.latest(tmp_path, PLAN, 2)


def test_a_store_that_cannot_be_written_is_said_without_its_path(tmp_path: Path):
    (tmp_path / "own_b").write_text("a file in its place")
    with pytest.raises(SiteFailed, match="could not write to the site's store"):
        own_b.save(tmp_path, PLAN, 0, 1, part(1))
