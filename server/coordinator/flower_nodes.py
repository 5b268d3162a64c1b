"""Synchronizes the sites that the SuperLink knows with the sites that are enrolled."""

from collections.abc import Sequence
from typing import Protocol

from server.coordinator.registry import EnrolledSite, read_sites, set_node_id
from server.coordinator.state import State
from server.coordinator.superlink import Node, SuperLinkRefused


class NodeApi(Protocol):
    """The SuperLink's calls that concern nodes (server/coordinator/superlink.py)."""

    def nodes(self) -> Sequence[Node]:
        """Return the registered nodes."""
        ...

    def register(self, pem: bytes, name: str) -> int:
        """Allow the node of this public key to connect; return its node id."""
        ...

    def unregister(self, node_id: int) -> None:
        """Refuse the node's connections from now on."""
        ...


def sync_nodes(state: State, superlink: NodeApi) -> None:
    """Register every enrolled site as a node, and unregister those that have left.

    Idempotent: it is called after each enrolment, and again at intervals in case the SuperLink
    was unavailable or has lost its database.
    """
    nodes = {node.pem: node for node in superlink.nodes()}
    for site in read_sites(state.registry):
        node = nodes.get(site.pem)
        if site.left:
            if node is not None:
                superlink.unregister(node.node_id)
        elif node is None:
            set_node_id(state.registry, site.public_key, _register(site, superlink))
        elif site.node_id != node.node_id:
            set_node_id(state.registry, site.public_key, node.node_id)


def _register(site: EnrolledSite, superlink: NodeApi) -> int:
    """Register a site; return its node id, also where another process was faster.

    The keeper and `fedmslora coordinator enroll` may both register it.
    """
    try:
        return superlink.register(site.pem, site.name)
    except SuperLinkRefused:
        for node in superlink.nodes():
            if node.pem == site.pem:
                return node.node_id
        raise
