"""A client of the Control API of Flower's SuperLink: its runs and its nodes.

`flwr run`, `flwr ls` and `flwr supernode` use the same client library; each starts a process,
which takes about a second, and `flwr run` reads every file under the repository (4 s with a
virtual environment in it). This client stays open, and bundles only what the app includes.
"""

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common.errors import Refusal
from common.identity import ROOT
from common.network.proxies import NO_PROXIES, changed_environment
from server.coordinator.certificates import read_certificate
from server.coordinator.state import State

#: How many of the newest runs are listed; only the last one can be active.
_NEWEST = 20
#: flwr 1.42, HEARTBEAT_PATIENCE.
_HEARTBEAT_PATIENCE = 2
#: What says which files the bundle has.
_PROJECT = "pyproject.toml"

_Response = TypeVar("_Response")


class SuperLinkUnavailable(Refusal):
    """The SuperLink does not answer; it may be starting, or stopped."""


class SuperLinkRefused(Refusal):
    """The SuperLink refused a request."""


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """One of Flower's runs: one process of our ServerApp, from its start to its end.

    Attributes:
        folder: the run folder that it was started for; empty if it is not ours.
        status: pending, starting, running or finished.
        sub_status: how it finished: completed, failed or stopped; empty before.
        details: Flower's text about a failure.
    """

    run_id: int
    folder: str
    status: str
    sub_status: str
    details: str

    @property
    def active(self) -> bool:
        """Whether it has not finished."""
        return self.status != "finished"


@dataclass(frozen=True, slots=True)
class Node:
    """A SuperNode that is registered at the SuperLink.

    Attributes:
        pem: its public key.
        online: it has sent a heartbeat lately.
        seen: when it was last known to be online, if it ever was (UTC).
    """

    node_id: int
    pem: bytes
    online: bool
    seen: datetime | None


class SuperLink:
    """The coordinator's SuperLink.

    Every method raises SuperLinkUnavailable where it does not answer.
    """

    def __init__(self, state: State) -> None:
        """Make a client of this coordinator's SuperLink.

        Raises:
            StateError: the settings or the authority's certificate are damaged.
        """
        self._address = state.settings.inner
        # Its client reads the environment when it is made.
        with changed_environment(NO_PROXIES):
            self._client = ControlHttpClient.from_server_address(
                self._address,
                insecure=False,
                root_certificates=read_certificate(state.ca),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def runs(self) -> tuple[FlowerRun, ...]:
        """Return the newest runs, newest first."""
        answer = self._call(lambda: self._client.ListRuns(ListRunsRequest(limit=_NEWEST)))
        runs = sorted(answer.run_dict.values(), key=lambda run: run.pending_at, reverse=True)
        return tuple(
            FlowerRun(
                run.run_id,
                run.override_config["folder"].string if "folder" in run.override_config else "",
                run.status.status,
                run.status.sub_status,
                run.status.details,
            )
            for run in runs
        )

    def start(self, bundle: bytes, config: Mapping[str, str | float]) -> int:
        """Start a run of the bundled app with this run config; return its id."""
        settings = {
            key: Scalar(string=value) if isinstance(value, str) else Scalar(double=value)
            for key, value in config.items()
        }
        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle),
            override_config=settings,
        )
        return self._call(lambda: self._client.StartRun(request)).run_id

    def stop(self, run_id: int) -> None:
        """Stop a run; one that has finished stays as it is."""
        try:
            self._call(lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))
        except SuperLinkRefused:
            if any(run.run_id == run_id and run.active for run in self.runs()):
                raise

    def nodes(self) -> tuple[Node, ...]:
        """Return the registered nodes."""
        answer = self._call(lambda: self._client.ListNodes(ListNodesRequest()))
        return tuple(_node(info) for info in answer.nodes_info if info.status != "unregistered")

    def register(self, pem: bytes, name: str) -> int:
        """Allow the node of this public key to connect; return its node id."""
        request = RegisterNodeRequest(public_key=pem, name=name)
        return self._call(lambda: self._client.RegisterNode(request)).node_id

    def unregister(self, node_id: int) -> None:
        """Refuse the node's connections from now on."""
        self._call(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id)))

    def _call(self, call: Callable[[], _Response]) -> _Response:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (502, 503, 504):
                raise SuperLinkUnavailable(
                    f"the SuperLink at {self._address} is starting"
                ) from None
            detail = FlowerError.from_json(error.response.text)
            why = str(error) if detail is None else str(detail.public_details or detail.message)
            raise SuperLinkRefused(f"the SuperLink at {self._address} refused: {why}") from None
        except httpx.HTTPError as error:
            why = type(error).__name__
            raise SuperLinkUnavailable(
                f"the SuperLink at {self._address} does not answer ({why}); is `fedmslora "
                "coordinator start` running?"
            ) from None


def make_bundle(root: Path = ROOT) -> bytes:
    """Make the Flower App Bundle of the code at `root`, as `flwr run` would.

    `root` is a checkout, or where a wheel was installed, which has pyproject.toml beside this file.
    """
    installed = root / "server" / "coordinator" / _PROJECT
    project = installed if installed.is_file() else root / _PROJECT
    patterns: Sequence[str] = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["flwr"][
        "app"
    ]["fab-include"]
    files = [file for pattern in patterns for file in root.glob(pattern) if file.is_file()]
    found = {file.relative_to(root).as_posix(): file for file in files} | {_PROJECT: project}
    named = {name: found[name] for name in sorted(found)}
    return build_fab_from_files(named)[0]


def _node(info: NodeInfo) -> Node:
    online, seen = info.status == "online", None
    if info.online_until:
        # Flower gives the time until which the node counts as online: two heartbeat intervals
        # after the last heartbeat, or the moment at which it left or was given up.
        until = info.online_until - (_HEARTBEAT_PATIENCE * info.heartbeat_interval if online else 0)
        seen = datetime.fromtimestamp(until, UTC)
    return Node(info.node_id, info.public_key, online, seen)
