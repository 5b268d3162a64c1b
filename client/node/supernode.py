"""Flower's SuperNode, kept in step: it sends the reply to the message in hand, and no other.

Where a run ends while one of its messages is being fetched, the SuperNode of flwr 1.42 drops the
message but leaves its task, which is done all the same. That reply stays, and is sent in place of
the next message's; whose own reply then stays, and so on: every later answer comes one message
late, for ever. Here a dropped message's task ends with it, a left-over reply is dropped, and a
SuperNode whose message is never answered ends, so that its supervisor starts it again.

These steps are private to Flower, so only the tested version is accepted.

    python -m client.node.supernode ARGUMENTS OF flower-supernode
"""
# The replaced functions are Flower's own, and it leaves their types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Final, TypeAlias

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.node.processes import ANSWERED, FLOWER, check_flower
from client.node.receive import LONGEST_WAIT_S
from common.errors import SiteFailed

_PULL, _PUSH = "_pull_and_store_message", "_push_messages"
_POLL_S: Final = 0.1
#: How much longer than it may wait for the trainer a ClientApp may take: its start, and reading
#: and writing adapters on a busy disk.
_MORE_S: Final = 300.0

_Received: TypeAlias = tuple[Message, ObjectTree]

log = logging.getLogger("flwr")


class InStep:
    """The SuperNode's two steps, each for the message in hand alone."""

    def __init__(
        self,
        pull: Callable[..., int | None],
        push: Callable[..., None],
        restart: Callable[[], None],
        answered: Callable[[], None],
        longest_s: float = LONGEST_WAIT_S + _MORE_S,
    ) -> None:
        """`pull` and `push` are Flower's steps; `restart` ends this process.

        `answered` is called whenever the coordinator has answered.
        """
        self._pull = pull
        self._push = push
        self._restart = restart
        self._answered = answered
        self._longest_s = longest_s
        self._in_hand: str | None = None

    def pull(
        self, *, receive: Callable[[], _Received | None], state: InMemoryNodeState, **others: object
    ) -> int | None:
        """Fetch a message; where it was dropped again, end what was begun for it."""
        self._in_hand = None

        def received() -> _Received | None:
            got = receive()
            self._answered()
            if got is not None:
                self._in_hand = got[0].metadata.message_id
            return got

        run_id = self._pull(receive=received, state=state, **others)
        if run_id is None:
            self._in_hand = None
            unfinished = (Status.PENDING, Status.STARTING, Status.RUNNING)
            for task in state.get_tasks(statuses=unfinished):
                state.finish_task(task.task_id, SubStatus.STOPPED, "the message was dropped")
            _drop(state, [message.metadata.message_id for message in _messages(state)])
        return run_id

    def push(self, *, state: InMemoryNodeState, **others: object) -> None:
        """Send the reply to the message in hand once it is there; drop every other one."""
        deadline = time.monotonic() + self._longest_s
        while not self._is_answered(state):
            if time.monotonic() > deadline:
                log.error("No reply for %.0f s: the SuperNode starts again.", self._longest_s)
                self._restart()
                return
            time.sleep(_POLL_S)
        self._push(state=state, **others)
        self._answered()

    def _is_answered(self, state: InMemoryNodeState) -> bool:
        # Matches none, but has Flower give the messages up whose ClientApp has died.
        state.get_messages_legacy(run_ids=[], is_reply=True)
        replies = [one for one in _messages(state) if one.metadata.reply_to_message_id]
        others = [one for one in replies if one.metadata.reply_to_message_id != self._in_hand]
        if others:
            log.warning("Dropped %d replies to earlier messages.", len(others))
            _drop(state, [one.metadata.message_id for one in others])
        return len(replies) > len(others)


def keep_in_step(
    module: ModuleType, restart: Callable[[], None], answered: Callable[[], None]
) -> None:
    """Replace the two steps in Flower's module of the SuperNode's loop.

    Raises:
        SiteFailed: Flower's loop has other steps than expected.
    """
    for name in (_PULL, _PUSH):
        if not hasattr(module, name):
            raise SiteFailed(f"flwr {FLOWER}: found no step {name!r} in its SuperNode's loop")
    steps = InStep(getattr(module, _PULL), getattr(module, _PUSH), restart, answered)
    setattr(module, _PULL, steps.pull)
    setattr(module, _PUSH, steps.push)


def _messages(state: InMemoryNodeState) -> list[Message]:
    with state.lock_msg_store:
        return [entry.message for entry in state.msg_store.values()]


def _drop(state: InMemoryNodeState, message_ids: Sequence[str]) -> None:
    for message_id in message_ids:
        state.object_store.delete(message_id)
    if message_ids:
        state.delete_messages(message_ids=message_ids)


def _end() -> None:
    """End this process in good order, as SIGTERM does: the coordinator sees it leave."""
    os.kill(os.getpid(), signal.SIGTERM)


def _note_answer() -> None:
    """Touch the file that says when the coordinator has last answered (client/node/status.py)."""
    if file := os.environ.get(ANSWERED):
        with suppress(OSError):  # a full disk; the message counts more
            Path(file).touch()


def main() -> None:
    """Do what the program `flower-supernode` of flwr 1.42 does with its arguments, in step."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    check_flower()
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    keep_in_step(loop, _end, _note_answer)
    flower_supernode()
    # It comes here after an error of its connection, such as an answer that it did not expect: the
    # loop is over, but the thread that serves SuperExec would keep the process for ever.
    log.error("The SuperNode's loop has ended: it starts again.")
    _end()


if __name__ == "__main__":
    sys.exit(main())
