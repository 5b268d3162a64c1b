"""Flower is told who belongs to the federation, and who does no more."""

from collections.abc import Sequence
from typing import Protocol

from server.coordinator.registry import Site, read_sites, set_node
from server.coordinator.state import State
from server.coordinator.superlink import Node, SuperLinkRefused


class Nodes(Protocol):
    """Who Flower knows (server/coordinator/superlink.py)."""

    def nodes(self) -> Sequence[Node]:
        """The sites that Flower knows and that have not left."""
        ...

    def register(self, pem: bytes, name: str) -> int:
        """A site with this key may connect from now on; its node id."""
        ...

    def unregister(self, number: int) -> None:
        """The site may not connect any more."""
        ...


def introduce(state: State, nodes: Nodes) -> None:
    """Flower knows every enrolled site under its name, and none that has left.

    Nothing is done twice, so it is called again and again: after an enrolment, and in case
    the SuperLink was away, or has lost its database.
    """
    known = {node.pem: node for node in nodes.nodes()}
    for site in read_sites(state.registry):
        node = known.get(site.pem)
        if site.left:
            if node is not None:
                nodes.unregister(node.number)
        elif node is None:
            set_node(state.registry, site.public_key, _registered(site, nodes))
        elif site.node_id != node.number:
            set_node(state.registry, site.public_key, node.number)


def _registered(site: Site, nodes: Nodes) -> int:
    """The site's node id. The keeper and `enroll` may both try; one of them comes second."""
    try:
        return nodes.register(site.pem, site.name)
    except SuperLinkRefused:
        for node in nodes.nodes():
            if node.pem == site.pem:
                return node.number
        raise
