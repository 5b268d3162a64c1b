"""A question is held while there is nothing to say, and never asked for one who is gone."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.coordinator.long_poll import Hold
from server.coordinator.notify import Bells

NOTHING = httpx.Response(200, headers={"content-length": "0"}, content=b"")
NODE = 7


class SuperLink:
    """Answers with the next of its answers; then there is nothing more."""

    def __init__(self, *answers: httpx.Response, then: Callable[[], None] | None = None) -> None:
        self.left = list(answers)
        self.then = then
        self.asked = 0

    async def __call__(self) -> httpx.Response:
        self.asked += 1
        answer = self.left.pop(0) if self.left else NOTHING
        if self.then is not None and self.asked == 1:
            self.then()
        return answer


@pytest.fixture
def bells(tmp_path: Path) -> Bells:
    found = Bells(tmp_path / "bells")
    found.mind()
    return found


def held(bells: Bells, hold_s: float = 3600.0, ending: Callable[[], bool] = lambda: False) -> Hold:
    return Hold(bells, ending, hold_s)


def run(body: Callable[[asyncio.Future[object]], Coroutine[Any, Any, httpx.Response]]) -> bytes:
    async def both() -> bytes:
        gone: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        return (await asyncio.wait_for(body(gone), 60)).content

    return asyncio.run(both())


MESSAGE = httpx.Response(200, content=b"message")


def test_what_is_there_is_given_at_once(bells: Bells):
    superlink = SuperLink(MESSAGE)
    assert run(lambda gone: held(bells).answer(NODE, superlink, gone)) == b"message"
    assert superlink.asked == 1


def test_a_question_waits_for_its_own_bell_and_is_then_asked_again(bells: Bells):
    superlink = SuperLink(NOTHING, NOTHING, MESSAGE)

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        question = asyncio.create_task(held(bells).answer(NODE, superlink, gone))
        await asyncio.sleep(0.3)
        bells.ring(NODE + 1)
        await asyncio.sleep(0.3)
        assert superlink.asked == 1
        # A bell that was rung for nothing is no end.
        bells.ring(NODE)
        while superlink.asked < 2:
            await asyncio.sleep(0.01)
        assert not question.done()
        bells.ring(NODE)
        return await question

    assert run(body) == b"message"
    assert superlink.asked == 3


def test_a_ring_while_the_question_is_being_answered_is_not_missed(bells: Bells):
    superlink = SuperLink(NOTHING, MESSAGE, then=lambda: bells.ring(NODE))
    assert run(lambda gone: held(bells).answer(NODE, superlink, gone)) == b"message"


def test_after_a_while_there_is_nothing_to_say(bells: Bells):
    superlink = SuperLink()
    assert run(lambda gone: held(bells, hold_s=0.0).answer(NODE, superlink, gone)) == b""
    assert superlink.asked == 1


def test_nothing_is_held_where_nobody_would_ring_or_who_holds_it_ends(tmp_path: Path, bells: Bells):
    unminded = Bells(tmp_path / "others")
    for hold in (held(unminded), held(bells, ending=lambda: True)):
        assert run(lambda gone, hold=hold: hold.answer(NODE, SuperLink(), gone)) == b""


def test_nothing_is_asked_for_one_who_is_gone(bells: Bells):
    superlink = SuperLink(NOTHING, MESSAGE)

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        question = asyncio.create_task(held(bells).answer(NODE, superlink, gone))
        await asyncio.sleep(0.05)
        gone.set_result(None)
        bells.ring(NODE)
        return await question

    assert run(body) == b""
    assert superlink.asked == 1


def test_of_one_node_only_the_newest_question_is_held(bells: Bells):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        hold = held(bells)
        questions = [asyncio.create_task(hold.answer(NODE, SuperLink(), gone)) for _ in range(20)]
        other = asyncio.create_task(hold.answer(NODE + 1, SuperLink(), gone))
        await asyncio.wait(questions[:-1])
        assert not questions[-1].done() and not other.done()
        bells.ring(NODE)
        await asyncio.sleep(0.3)
        # One that was superseded took nothing of the newest one's place with it.
        assert not questions[-1].done()
        for question in (questions[-1], other):
            question.cancel()
        return questions[0].result()

    assert run(body) == b""


def test_a_refusal_is_given_at_once_and_not_held(bells: Bells):
    superlink = SuperLink(httpx.Response(401, content=b""))

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        answer = await held(bells).answer(NODE, superlink, gone)
        assert answer.status_code == 401
        return answer

    run(body)
    assert superlink.asked == 1


def test_a_signature_that_grew_too_old_meanwhile_is_no_refusal(bells: Bells):
    # A SuperNode (flwr 1.41) that is refused with 401 ends.
    superlink = SuperLink(NOTHING, httpx.Response(401), then=lambda: bells.ring(NODE))
    assert run(lambda gone: held(bells).answer(NODE, superlink, gone)) == b""
    assert superlink.asked == 2


def test_who_left_while_he_was_answered_is_not_asked_for_though_his_bell_rang(bells: Bells):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        def leave() -> None:
            gone.set_result(None)
            bells.ring(NODE)

        superlink = SuperLink(NOTHING, MESSAGE, then=leave)
        answer = await held(bells).answer(NODE, superlink, gone)
        assert superlink.asked == 1
        return answer

    assert run(body) == b""


def test_a_superseded_question_takes_no_message_though_the_bell_rings(bells: Bells):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        hold, old, new = held(bells), SuperLink(NOTHING, MESSAGE), SuperLink(NOTHING, MESSAGE)
        first = asyncio.create_task(hold.answer(NODE, old, gone))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(hold.answer(NODE, new, gone))
        await asyncio.sleep(0.02)
        # Before the first one looked whether it is still the newest.
        bells.ring(NODE)
        assert (await first).content == b""
        assert old.asked == 1
        return await second

    assert run(body) == b"message"


def test_a_stranger_s_question_supersedes_no_one_s(bells: Bells):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        hold = held(bells)
        question = asyncio.create_task(hold.answer(NODE, SuperLink(NOTHING, MESSAGE), gone))
        await asyncio.sleep(0.02)
        refused = await hold.answer(NODE, SuperLink(httpx.Response(401)), gone)
        assert refused.status_code == 401
        await asyncio.sleep(0.3)
        assert not question.done()
        bells.ring(NODE)
        return await question

    assert run(body) == b"message"


def test_bells_that_never_rest_hold_no_question_for_longer(bells: Bells):
    async def ask() -> httpx.Response:
        bells.ring(NODE)
        await asyncio.sleep(0.01)
        return NOTHING

    assert run(lambda gone: held(bells, hold_s=0.1).answer(NODE, ask, gone)) == b""
