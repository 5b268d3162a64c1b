"""The SuperNode stays in step: Flower's own loop over its own state, with a made-up coordinator."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from client.node import supernode
from client.node.supernode import InStep, keep_in_step
from common.errors import SiteFailed


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message says of the process that makes it."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


LOOP = importlib.import_module("flwr.supernode.start_client_internal")


def gives(value: object) -> Callable[..., object]:
    """A function that takes anything and gives this."""

    def give(*_: object) -> object:
        return value

    return give


def order(text: str, run: int) -> Message:
    """A message of a run, as it comes from the coordinator."""
    content = RecordDict({"order": ConfigRecord({"text": text})})
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_run_id"] = run
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@dataclass
class Node:
    """A SuperNode with its state, its coordinator and the ClientApps of its site.

    Attributes:
        orders: messages to come; of a run in `ended` the fetching fails.
        sent: the texts of the messages whose replies were sent, in order.
        tasks: ClientApps that were started.
    """

    loop: ModuleType
    orders: list[Message] = field(default_factory=list[Message])
    ended: set[int] = field(default_factory=set[int])
    sent: list[str] = field(default_factory=list[str])
    tasks: int = 0
    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def __post_init__(self) -> None:
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state: Any = factory.state()
        self.state.set_node_id(1)
        self.store: Any = self.state.object_store
        self.texts: dict[str, str] = {}

    def fetch(self) -> int | None:
        """One turn of Flower's loop up to the reply."""

        def receive() -> Any:
            if not self.orders:
                return None
            message = self.orders.pop(0)
            self.texts[message.metadata.message_id] = str(
                message.content.config_records["order"]["text"]
            )
            self.objects = {tree.object_id: content for tree, content in _deflated(message)}
            return message, get_object_tree(message)

        def pull_object(run: int, object_id: str) -> bytes:
            if run in self.ended:
                raise RunNotRunningException
            return self.objects[object_id]

        run_info = SimpleNamespace(fab_hash="f", series_id=1, primary_task_type="", run_id=0)
        pull: Callable[..., int | None] = self.loop.__dict__["_pull_and_store_message"]
        # A run that is known already, so that no app is fetched.
        self.state.get_run = gives(run_info)
        return pull(
            state=self.state, object_store=self.store, node_config={}, receive=receive,
            get_run=None, get_fab=None, pull_object=pull_object,
            confirm_message_received=gives(None), trusted_entities=None,
        )  # fmt: skip

    def work(self) -> None:
        """Start a ClientApp for each task that waits for one; it answers its message."""
        for task in self.state.get_tasks(statuses=["pending"]):
            self.tasks += 1
            run = task.run_id
            (message,) = self.state.get_messages_legacy(run_ids=[run], is_reply=False, limit=1)
            reply = Message(RecordDict(), reply_to=message)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self.state.store_message(reply)
            self.store.preregister(run, get_object_tree(reply))
            self.state.finish_task(task.task_id, "failed", "it has ended")

    def answer(self) -> None:
        """The rest of the loop: send the reply."""

        def send(message: Message, _tree: Any, _seconds: float) -> tuple[set[str], str]:
            self.sent.append(self.texts[message.metadata.reply_to_message_id])
            return set(), ""

        push: Callable[..., None] = self.loop.__dict__["_push_messages"]
        push(state=self.state, object_store=self.store, send=send, push_object=None)


def _deflated(message: Message) -> list[tuple[Any, bytes]]:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return [
        (SimpleNamespace(object_id=object_id), content.deflate())
        for object_id, content in get_all_nested_objects(message).items()
    ]


def copy_of_the_loop() -> ModuleType:
    loop = ModuleType("loop")
    loop.__dict__.update(LOOP.__dict__)
    return loop


@pytest.fixture
def node() -> Node:
    loop = copy_of_the_loop()
    keep_in_step(loop, lambda: None, lambda: None)
    return Node(loop)


def interrupted(node: Node) -> None:
    """Run 1 ends while its order is being fetched; a ClientApp starts, if one is to."""
    node.orders, node.ended = [order("old", 1)], {1}
    assert node.fetch() is None
    node.work()
    # The next run's three orders, each of which waits for the reply to the one before.
    for text in ("a", "b", "c"):
        node.orders = [order(text, 2)]
        if node.fetch() is not None:
            node.work()
            node.answer()


def test_flower_s_own_loop_answers_one_message_late_after_an_interrupted_fetch():
    node = Node(LOOP)
    interrupted(node)
    # If this fails, Flower has mended it, and client/node/supernode.py may go.
    assert node.sent[0] == "old"


def test_after_an_interrupted_fetch_every_order_gets_its_own_reply(node: Node):
    interrupted(node)
    assert node.sent == ["a", "b", "c"]
    # The dropped order was not even carried out.
    assert node.tasks == 3
    assert not node.state.msg_store


def test_a_reply_to_an_earlier_message_is_dropped(node: Node):
    node.orders = [order("a", 2)]
    node.fetch()
    # A ClientApp that was slow to notice that its run has ended.
    late = Message(RecordDict(), reply_to=order("old", 1))
    late.metadata.__dict__["_message_id"] = late.object_id
    node.state.store_message(late)
    node.work()
    node.answer()
    assert node.sent == ["a"]
    assert not node.state.msg_store


def test_a_supernode_whose_message_is_never_answered_starts_again(node: Node):
    ended: list[str] = []
    loop = copy_of_the_loop()
    steps = InStep(
        loop.__dict__["_pull_and_store_message"],
        loop.__dict__["_push_messages"],
        lambda: ended.append("ended"),
        lambda: None,
        longest_s=0.0,
    )
    loop.__dict__["_pull_and_store_message"] = steps.pull
    loop.__dict__["_push_messages"] = steps.push
    node = Node(loop)
    node.orders = [order("a", 2)]
    node.fetch()
    node.answer()
    assert (ended, node.sent) == (["ended"], [])


def test_another_loop_of_flower_s_is_refused():
    with pytest.raises(SiteFailed, match="found no step '_pull_and_store_message' in its"):
        keep_in_step(ModuleType("another"), lambda: None, lambda: None)


def test_a_supernode_whose_loop_has_ended_does_not_stay(monkeypatch: pytest.MonkeyPatch):
    """Flower logs the error of a connection and leaves its loop, but not its process."""
    ended: list[str] = []
    program = importlib.import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(program, "flower_supernode", lambda: None)
    monkeypatch.setattr(supernode, "keep_in_step", gives(None))
    monkeypatch.setattr(supernode, "_end", lambda: ended.append("ended"))
    supernode.main()
    assert ended == ["ended"]
