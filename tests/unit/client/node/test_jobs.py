"""The site's jobs: one is wanted, its answer is there for good, and a crash changes neither."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread

import pytest

from client.node.jobs import ADAPTERS_KEPT, CHECKPOINTS_KEPT, KEPT, Jobs
from client.site.blob_store import GRACE_S, put, stored_digests
from common.durable import Disk
from common.errors import SiteFailed
from common.exchange import Answer, Failure, Order, Reason, ReleaseRef, Scores, Update
from common.identity import sha256
from common.work import Work
from tests.unit.common.bank.test_commit_faults import Fault, Faulty

FAILURE = Failure(site="north", error="DataError", reference="1a2b3c4d")
REFUSAL = replace(FAILURE, reason=Reason.EXAMPLES)


def order(number: int = 1, adapter: bytes | None = None) -> Order:
    return Order(
        work=Work.TRAIN,
        plan=sha256(b"plan"),
        stage=1,
        round=number,
        releases=(ReleaseRef(0, sha256(b"release")),),
        active=(0,),
        adapter=None if adapter is None else sha256(adapter),
        code="c0de",
    )


def update(done: Order, adapter: bytes = b"adapter\n of some bytes\n") -> Update:
    return Update(
        order=done.digest, site="north", examples=6, steps=4, loss=math.pi, regularizer=0.0,
        adapter=adapter, seconds=1.5, peak_memory=1 << 40,
    )  # fmt: skip


def scores(done: Order) -> Scores:
    return Scores(
        order=done.digest, site="north", questions=3, metrics={"accuracy": 1 / 3},
        majority={"accuracy": 0.0},
    )  # fmt: skip


def answers_in(store: Path) -> list[Path]:
    return sorted((store / "jobs" / "answers").iterdir())


def test_the_newest_order_is_what_is_wanted(tmp_path: Path):
    jobs = Jobs(tmp_path)
    assert jobs.requested() is None
    jobs.request(order(1))
    assert Jobs(tmp_path).requested() == order(1)
    jobs.request(order(2))
    assert Jobs(tmp_path).requested() == order(2)


@pytest.mark.parametrize("answer", [update(order()), scores(order())])
def test_an_answer_is_given_again_whole_and_its_order_no_longer_wanted(
    tmp_path: Path, answer: Answer
):
    jobs = Jobs(tmp_path)
    jobs.request(order())
    assert jobs.answer(order().digest) is None
    jobs.finish(order(), answer)
    assert Jobs(tmp_path).answer(order().digest) == answer
    assert Jobs(tmp_path).requested() is None
    jobs.request(order())
    assert jobs.requested() is None


def test_an_order_that_has_its_answer_does_not_displace_the_wanted_one(tmp_path: Path):
    jobs = Jobs(tmp_path)
    jobs.request(order(1))
    jobs.finish(order(1), update(order(1)))
    jobs.request(order(2))
    jobs.request(order(1))
    assert jobs.requested() == order(2)


@pytest.mark.parametrize("place", [0, 70, 200, -1])
def test_a_damaged_answer_is_removed_and_its_order_done_again(tmp_path: Path, place: int):
    jobs = Jobs(tmp_path)
    jobs.request(order())
    jobs.finish(order(), update(order()))
    (file,) = answers_in(tmp_path)
    blob = bytearray(file.read_bytes())
    blob[place] ^= 1
    file.write_bytes(blob)
    assert jobs.answer(order().digest) is None
    assert answers_in(tmp_path) == []
    assert jobs.requested() == order()
    jobs.finish(order(), update(order()))
    assert jobs.answer(order().digest) == update(order())


@pytest.mark.parametrize("length", [0, 10, 100, -1])
def test_a_cut_off_answer_counts_as_not_there(tmp_path: Path, length: int):
    jobs = Jobs(tmp_path)
    jobs.finish(order(), update(order()))
    (file,) = answers_in(tmp_path)
    file.write_bytes(file.read_bytes()[:length])
    assert jobs.answer(order().digest) is None


def test_an_answer_under_another_orders_name_is_none(tmp_path: Path):
    jobs = Jobs(tmp_path)
    jobs.finish(order(1), update(order(1)))
    (file,) = answers_in(tmp_path)
    file.rename(file.with_name(order(2).digest))
    assert jobs.answer(order(2).digest) is None


@pytest.mark.parametrize("failure", [FAILURE, REFUSAL])
def test_a_failed_order_is_tried_again_only_when_it_is_wanted_again(
    tmp_path: Path, failure: Failure
):
    jobs = Jobs(tmp_path)
    jobs.request(order())
    jobs.fail(order(), failure)
    assert jobs.failure(order().digest) == failure
    assert jobs.requested() is None
    jobs.request(order())
    assert jobs.failure(order().digest) is None
    assert jobs.requested() == order()


def test_an_answer_forgets_an_earlier_failure_and_the_checkpoint(tmp_path: Path):
    jobs = Jobs(tmp_path)
    jobs.fail(order(), FAILURE)
    folder = jobs.checkpoint(order().digest)
    folder.mkdir()
    (folder / "state").write_bytes(b"state")
    jobs.finish(order(), update(order()))
    assert jobs.failure(order().digest) is None
    assert not folder.exists()


def test_progress_is_that_of_the_order_asked_for(tmp_path: Path):
    jobs = Jobs(tmp_path)
    jobs.request(order(1))
    assert jobs.progress(order(1).digest) == (0, 0)
    jobs.record_progress(order(1).digest, {"step": 20, "steps": 300, "loss": 0.5})
    assert Jobs(tmp_path).progress(order(1).digest) == (20, 300)
    assert jobs.progress(order(2).digest) == (0, 0)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"work": "train"}', '{"order": 3}'])
def test_damaged_files_are_as_if_they_were_not_there(tmp_path: Path, text: str):
    jobs = Jobs(tmp_path)
    jobs.request(order())
    jobs.fail(order(), FAILURE)
    for file in (tmp_path / "jobs").rglob("*.json"):
        file.write_text(text)
    for name in ("doing", "attempt"):
        (tmp_path / "jobs" / f"{name}.json").write_text(text)
    assert jobs.requested() is None
    assert jobs.failure(order().digest) is None
    assert jobs.progress(order().digest) == (0, 0)
    assert died(tmp_path, order()) == 0
    jobs.request(order())
    assert jobs.requested() == order()


def test_a_long_life_leaves_the_latest_answers_and_the_blobs_still_of_use(tmp_path: Path):
    jobs = Jobs(tmp_path)
    adapters = [f"adapter {number}".encode() for number in range(KEPT + 6)]
    for blob in (b"plan", b"release", b"foreign"):
        age(tmp_path / "blobs" / put(tmp_path, blob))
    for number, adapter in enumerate(adapters):
        age(tmp_path / "blobs" / put(tmp_path, adapter))
        this = order(number, adapter)
        jobs.request(this)
        jobs.finish(this, update(this))
        for name in ("answers", "orders"):
            for file in (tmp_path / "jobs" / name).glob(f"{this.digest}*"):
                os.utime(file, ns=(0, number))  # in this order, however coarse the clock
    assert len(answers_in(tmp_path)) == KEPT
    assert jobs.answer(order(0, adapters[0]).digest) is None
    assert jobs.answer(order(6, adapters[6]).digest) is not None
    latest = [sha256(adapter) for adapter in adapters[-ADAPTERS_KEPT:]]
    assert stored_digests(tmp_path) == tuple(sorted([sha256(b"plan"), sha256(b"release"), *latest]))


def test_what_came_of_an_order_that_still_lacks_something_is_kept(tmp_path: Path):
    jobs = Jobs(tmp_path)
    age(tmp_path / "blobs" / put(tmp_path, b"release"))
    jobs.expect(order(1, b"not here yet"))
    assert jobs.requested() is None
    before = replace(order(0), releases=(), active=())
    jobs.request(before)
    jobs.finish(before, update(before))
    assert stored_digests(tmp_path) == (sha256(b"release"),)


def age(file: Path) -> None:
    then = time.time() - GRACE_S - 60
    os.utime(file, (then, then))


def test_few_checkpoints_of_given_up_orders_are_kept(tmp_path: Path):
    jobs = Jobs(tmp_path)
    for number in range(5):
        jobs.checkpoint(order(number).digest).mkdir()
        os.utime(jobs.checkpoint(order(number).digest), ns=(0, number))
    jobs.finish(order(9), update(order(9)))
    kept = [number for number in range(5) if jobs.checkpoint(order(number).digest).exists()]
    assert kept == list(range(5 - CHECKPOINTS_KEPT, 5))


class Killed(Disk):
    """What a process that is killed leaves behind: it no longer takes anything away."""

    def remove(self, path: Path) -> None:
        pass


def died(store: Path, this: Order) -> int:
    """A trainer has begun the order and was killed; how many did before it."""
    with Jobs(store, Killed()).attempt(this) as deaths:
        return deaths


def test_deaths_over_an_order_count_while_it_gets_no_further(tmp_path: Path):
    jobs = Jobs(tmp_path)
    assert [died(tmp_path, order(1)) for _ in range(3)] == [0, 1, 2]
    jobs.record_progress(order(1).digest, {"step": 10, "steps": 30})
    assert [died(tmp_path, order(1)) for _ in range(2)] == [0, 1]
    assert died(tmp_path, order(2)) == 0
    assert died(tmp_path, order(1)) == 0


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_an_attempt_that_ends_in_an_orderly_way_counts_no_death(
    tmp_path: Path, end: type[BaseException]
):
    assert died(tmp_path, order()) == 0
    with pytest.raises(end), Jobs(tmp_path).attempt(order()) as deaths:
        assert deaths == 1
        raise end
    assert died(tmp_path, order()) == 0


def before(store: Path) -> Jobs:
    """A store in which one order has been answered and another one is wanted."""
    jobs = Jobs(store)
    jobs.request(order(1))
    jobs.finish(order(1), update(order(1)))
    jobs.request(order(2))
    jobs.checkpoint(order(2).digest).mkdir()
    return jobs


def each_call(
    folder: Path, fault: Fault, act: Callable[[Jobs], None]
) -> Iterator[tuple[Jobs, bool]]:
    """The jobs as a later process finds them after a fault at each call of `act`.

    And whether `act` came to its end.
    """
    for at in count():
        store, disk = folder / str(at), Faulty(at, fault)
        before(store)
        try:
            act(Jobs(store, disk))
            ended = True
        except SiteFailed as error:
            assert str(error) == "could not write to the site's store (No space left on device)"
            ended = False
        yield Jobs(store), ended
        leftovers = list(store.rglob(".writing-*"))
        assert fault.ends_it_all or not leftovers
        assert Jobs(store).answer(order(1).digest) == update(order(1))
        if not disk.fired:
            assert at > 3
            break


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_leaves_the_old_wish_or_the_new_one(tmp_path: Path, fault: Fault):
    for jobs, ended in each_call(tmp_path, fault, lambda jobs: jobs.request(order(3))):
        assert jobs.requested() in ([order(3)] if ended else [order(2), order(3)])
        jobs.request(order(3))
        assert jobs.requested() == order(3)


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_leaves_an_answer_whole_or_not_there(tmp_path: Path, fault: Fault):
    answer = update(order(2))
    for jobs, ended in each_call(tmp_path, fault, lambda jobs: jobs.finish(order(2), answer)):
        assert jobs.answer(order(2).digest) in ([answer] if ended else [answer, None])
        jobs.clear_leftovers()
        assert not list((jobs.checkpoint("").parent).rglob(".writing-*"))
        jobs.finish(order(2), answer)
        assert jobs.answer(order(2).digest) == answer
        assert jobs.requested() is None


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_leaves_a_failure_whole_or_not_there(tmp_path: Path, fault: Fault):
    for jobs, ended in each_call(tmp_path, fault, lambda jobs: jobs.fail(order(2), FAILURE)):
        assert jobs.failure(order(2).digest) in ([FAILURE] if ended else [FAILURE, None])
        jobs.request(order(2))
        assert jobs.requested() == order(2)


def test_what_a_killed_trainer_left_half_written_goes_when_the_next_one_starts(tmp_path: Path):
    jobs = before(tmp_path)
    folder = tmp_path / "jobs"
    mine = folder / "answers" / ".writing-x.1"
    mine.write_bytes(b"half")
    (folder / "checkpoints" / ".writing-y").mkdir()
    theirs = folder / ".writing-wanted.json.2"  # of a ClientApp that may be writing right now
    theirs.write_bytes(b"half")
    failure = folder / "failures" / ".writing-z"
    failure.parent.mkdir()
    blob, header = (tmp_path / name / ".writing-z" for name in ("blobs", "jobs/orders"))
    blob.parent.mkdir()
    for file in (failure, blob, header):
        file.write_bytes(b"half")
    jobs.clear_leftovers()
    assert set(tmp_path.rglob(".writing-*")) == {theirs, blob, header}
    for file in (theirs, blob, header):
        age(file)
    jobs.clear_leftovers()
    assert list(tmp_path.rglob(".writing-*")) == []


def test_a_process_that_was_stopped_amid_a_wish_does_no_harm(tmp_path: Path):
    class Stopped(Faulty):
        def rename(self, old: Path, new: Path) -> None:
            Jobs(tmp_path).request(order(2))  # meanwhile, in another process
            super().rename(old, new)

    Jobs(tmp_path, Stopped(None)).request(order(1))
    assert Jobs(tmp_path).requested() == order(1)
    Jobs(tmp_path).request(order(2))  # the coordinator asks again for what it still wants
    assert Jobs(tmp_path).requested() == order(2)


def test_many_wishes_at_once_leave_one_of_them_at_every_moment(tmp_path: Path):
    Jobs(tmp_path).request(order(1))

    def wish(number: int) -> None:
        for _ in range(30):
            Jobs(tmp_path).request(order(number))

    writers = [Thread(target=wish, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    found = [Jobs(tmp_path).requested()]
    while any(writer.is_alive() for writer in writers):
        found.append(Jobs(tmp_path).requested())
    assert all(one in (order(1), order(2)) for one in found)
    assert not list(tmp_path.rglob(".writing-*"))
