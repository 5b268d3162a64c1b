"""The bank that a site has seen may only grow."""

from pathlib import Path
from typing import Any

import pytest

from client.site.failures import OrderRefused
from client.site.known_bank import check_bank
from common.durable import DISK
from common.exchange import Order, Reason, ReleaseRef
from common.work import Work

ONE, TWO, OTHER = "1" * 64, "2" * 64, "f" * 64
PLAN = "a" * 64


def order(*releases: str, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": PLAN, "stage": len(releases), "round": 1,
        "releases": tuple(ReleaseRef(stage, name) for stage, name in enumerate(releases)),
        "active": (), "adapter": None, "code": "c",
    }  # fmt: skip
    return Order(**{**fields, **changes})


def evaluation(*releases: str) -> Order:
    return order(*releases, work=Work.EVALUATE, stage=0, round=0)


def prototyped(digest: str, stage: int = 0) -> Order:
    return order(
        ONE, TWO, work=Work.EVALUATE, stage=0, round=0, prototypes=(ReleaseRef(stage, digest),)
    )


def files(store: Path) -> set[str]:
    return {file.relative_to(store).as_posix() for file in store.rglob("*")}


def refused(store: Path, order: Order) -> Reason:
    """The reason of the refusal; nothing is changed by it."""
    before = files(store)
    with pytest.raises(OrderRefused) as caught:
        check_bank(store, order)
    assert files(store) == before
    return caught.value.reason


def why(store: Path, order: Order) -> str:
    with pytest.raises(OrderRefused) as caught:
        check_bank(store, order)
    return str(caught.value)


def test_a_refusal_says_what_was_found_and_what_is_known(tmp_path: Path):
    folder, four = tmp_path / "chain" / PLAN, tuple(f"{number:064x}" for number in range(4))
    check_bank(tmp_path, evaluation(*four))
    mean = {"work": Work.EVALUATE, "stage": 0, "round": 0}
    check_bank(tmp_path, order(*four, **mean, prototypes=(ReleaseRef(3, ONE),)))
    remove = f"if the plan was started anew, remove {folder}"
    assert why(tmp_path, evaluation(*four[:3], OTHER)) == (
        f"order: found release 4 to be {OTHER[:12]}, expected {four[3][:12]}; {remove}"
    )
    assert why(tmp_path, order(*four, **mean, prototypes=(ReleaseRef(3, OTHER),))) == (
        f"order: found the prototype of release 4 to be {OTHER[:12]}, expected {ONE[:12]}; {remove}"
    )
    assert why(tmp_path, order(*four, stage=3)) == (
        f"order: found stage 4 to train, expected one after stage 4, which is released; {remove}"
    )
    gap = (*(ReleaseRef(stage, name) for stage, name in enumerate(four[:3])), ReleaseRef(5, ONE))
    assert why(tmp_path, order(releases=gap)) == (
        "order: found stage 6 as release 4, expected the stages in their order"
    )


def test_names_that_are_no_releases_are_passed_over(tmp_path: Path):
    check_bank(tmp_path, evaluation(ONE))
    folder = tmp_path / "chain" / PLAN
    for name in (f"1-{TWO}.tmp", f"x1-{TWO}", f"prototype-1-{TWO}", f"1-{TWO[1:]}", f"-1-{TWO}"):
        (folder / name).touch()
    check_bank(tmp_path, evaluation(ONE, OTHER))


def test_both_digests_of_a_release_that_somebody_added_to_are_named(tmp_path: Path):
    check_bank(tmp_path, evaluation(ONE))
    (tmp_path / "chain" / PLAN / f"0-{OTHER}").touch()
    assert f"expected {ONE[:12]}, {OTHER[:12]}; " in why(tmp_path, evaluation(ONE))


def test_what_is_remembered_is_on_the_disk_with_the_folders_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[tuple[Path, set[str]]] = []

    def sync(path: Path) -> None:
        synced.append((path, {file.name for file in path.iterdir()}))

    monkeypatch.setattr(DISK, "sync", sync)
    check_bank(tmp_path, evaluation(ONE, TWO))
    folder = tmp_path / "chain" / PLAN
    assert synced == [
        (folder.parent, {PLAN}), (tmp_path, {"chain"}), (folder, {f"0-{ONE}", f"1-{TWO}"}),
    ]  # fmt: skip
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
    check_bank(tmp_path, evaluation(ONE))
    assert len(synced) == 3


def test_of_two_banks_that_come_at_the_same_moment_neither_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "chain" / PLAN

    def sync(path: Path) -> None:
        if path == folder:
            (folder / f"0-{OTHER}").touch()

    monkeypatch.setattr(DISK, "sync", sync)
    for one in (ONE, OTHER):
        assert f"expected {ONE[:12]}, {OTHER[:12]}; " in why(tmp_path, evaluation(one))


def test_a_bank_grows_and_its_beginnings_stay_good(tmp_path: Path):
    for good in (
        order(),
        order(ONE),
        order(ONE, round=2),
        evaluation(),
        evaluation(ONE, TWO),
        evaluation(ONE),
        order(ONE, TWO),
    ):
        check_bank(tmp_path, good)


def test_another_bank_is_refused(tmp_path: Path):
    check_bank(tmp_path, order(ONE, TWO))
    assert refused(tmp_path, evaluation(OTHER)) is Reason.BANK
    assert refused(tmp_path, evaluation(ONE, OTHER)) is Reason.BANK
    assert refused(tmp_path, evaluation(ONE, OTHER, TWO)) is Reason.BANK
    assert refused(tmp_path, order(TWO, ONE)) is Reason.BANK


def test_a_release_has_one_prototype(tmp_path: Path):
    check_bank(tmp_path, evaluation(ONE))
    check_bank(tmp_path, prototyped(OTHER))
    check_bank(tmp_path, prototyped(OTHER))
    check_bank(tmp_path, prototyped(ONE, stage=1))
    assert refused(tmp_path, prototyped(TWO)) is Reason.BANK
    assert refused(tmp_path, prototyped(OTHER, stage=1)) is Reason.BANK
    # What a prototype is called is no release's name.
    check_bank(tmp_path, evaluation(ONE, TWO))


def test_a_released_stage_is_not_trained_again(tmp_path: Path):
    check_bank(tmp_path, order(ONE))
    assert refused(tmp_path, order()) is Reason.RELEASED
    check_bank(tmp_path, evaluation(ONE, TWO))
    assert refused(tmp_path, order(ONE)) is Reason.RELEASED
    assert refused(tmp_path, order(ONE, TWO, stage=0)) is Reason.RELEASED
    check_bank(tmp_path, order(ONE, TWO))


def test_a_stage_in_the_orders_own_bank_is_released_too(tmp_path: Path):
    assert refused(tmp_path, order(ONE, stage=0)) is Reason.RELEASED


@pytest.mark.parametrize("stages", [(1, 0), (0, 2), (0, 0), (1,)])
def test_releases_out_of_order_are_no_bank(tmp_path: Path, stages: tuple[int, ...]):
    refs = tuple(ReleaseRef(stage, str(number) * 64) for number, stage in enumerate(stages))
    assert refused(tmp_path, order(releases=refs, stage=9)) is Reason.BANK


def test_a_long_bank_is_a_bank(tmp_path: Path):
    refs = tuple(ReleaseRef(stage, f"{stage:064x}") for stage in range(300))
    check_bank(tmp_path, order(releases=refs, stage=300))
    assert refused(tmp_path, order(releases=refs, stage=299)) is Reason.RELEASED


def test_the_first_stage_may_be_trained_before_there_is_any_release(tmp_path: Path):
    check_bank(tmp_path, order(stage=0))
    assert files(tmp_path) == set()


def test_a_site_that_joins_late_takes_the_bank_as_it_is(tmp_path: Path):
    check_bank(tmp_path, order(ONE, TWO, OTHER))
    assert refused(tmp_path, order(ONE, TWO)) is Reason.RELEASED


def test_each_plan_has_a_bank_of_its_own(tmp_path: Path):
    check_bank(tmp_path, order(ONE))
    check_bank(tmp_path, order(OTHER, plan="b" * 64))
    assert refused(tmp_path, order(OTHER)) is Reason.BANK


def test_a_late_process_takes_nothing_back(tmp_path: Path):
    # It read nothing as known, was stopped, and goes on once two releases are there.
    check_bank(tmp_path, order(ONE, TWO))
    (tmp_path / "chain" / PLAN / f"0-{ONE}").touch()
    assert refused(tmp_path, order(ONE)) is Reason.RELEASED


def test_what_a_crash_left_out_in_the_middle_is_filled_in(tmp_path: Path):
    check_bank(tmp_path, order(ONE, TWO))
    (tmp_path / "chain" / PLAN / f"0-{ONE}").unlink()
    assert refused(tmp_path, evaluation(ONE, OTHER)) is Reason.BANK
    check_bank(tmp_path, evaluation(ONE, TWO))
    assert refused(tmp_path, evaluation(OTHER)) is Reason.BANK
