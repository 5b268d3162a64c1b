"""Flower's ServerApp and ClientApp in one process, without Flower's engine: quick, for tests.

The same two app objects run as in Flower's simulation engine; only the Grid between them is
ours. Sites work one after another, in the order in which they get their messages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN = 1


@dataclass
class InProcessGrid(Grid):
    """A Grid that calls the ClientApp for each message and keeps the replies."""

    client: ClientApp
    contexts: dict[int, Context]
    replies: dict[str, Message] = field(default_factory=dict[str, Message])

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """The only run."""
        return Run.create_empty(run_id=_RUN)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message as Flower's own constructor does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every site's node."""
        return list(self.contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return every site's node, with the name that its node config gives."""
        return [
            NodeInfo(node_id=node, name=str(context.node_config.get("name", "")), status="online")
            for node, context in self.contexts.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered, and return the messages' ids."""
        ids: list[str] = []
        for message in messages:
            message_id = f"message-{len(self.replies) + len(ids)}-{id(message)}"
            # flwr 1.42: an id is set by the sender, and the field has no setter.
            message.metadata.__dict__["_message_id"] = message_id
            context = self.contexts[message.metadata.dst_node_id]
            self.replies[message_id] = self.client(message, context)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, each once."""
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull at once."""
        return self.pull_messages(self.push_messages(messages))


def run_in_process(
    server: ServerApp,
    client: ClientApp,
    node_configs: Iterable[Mapping[str, str]],
    run_config: Mapping[str, str],
) -> None:
    """Run the ServerApp to its end, with one node per node config."""
    grid = grid_of(client, node_configs)
    server_context = _context(1, {})
    server_context.run_config = dict(run_config)
    server(grid, server_context)


def grid_of(client: ClientApp, node_configs: Iterable[Mapping[str, str]]) -> InProcessGrid:
    """Make a Grid with one node per node config, all of them this ClientApp."""
    TaskIdentity.run_id = _RUN
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = 1
    contexts = {
        node: _context(node, node_config)
        for node, node_config in enumerate(node_configs, start=100)
    }
    return InProcessGrid(client, contexts)


def _context(node: int, node_config: Mapping[str, str]) -> Context:
    return Context(
        run_id=_RUN,
        node_id=node,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config={},
    )
