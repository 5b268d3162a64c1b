"""A coordinator's folder: its files, its settings, and the run that is requested."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from common.documents.bounded import read_text, why_unread
from common.durable import DISK, write_file
from common.errors import StateError
from common.network.address import joined_address
from common.plan_fields import Slug, Strict
from common.process.file_lock import file_lock
from server.run.folder import RunFolder

Port = Annotated[int, Field(ge=1, le=65535)]


class CoordinatorSettings(Strict):
    """How a coordinator is reached.

    Attributes:
        hosts: the names under which sites reach it; sites are given the first one.
        port: the one port that is open to the outside.
        bind: the address that the proxy listens at.
        inner_host: where the processes find the SuperLink: this machine, or a name on a network
            that nobody else is on.
        inner_port: the SuperLink's port there.
        wait_s: how long a site may take for a reply before it replies that it is still working.
        slack_s: how much longer a reply may take before it counts as lost.
    """

    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    port: Port
    bind: str
    inner_host: str
    inner_port: Port
    wait_s: float
    slack_s: float

    @property
    def address(self) -> str:
        """The address that sites are given: host and port."""
        return joined_address(self.hosts[0], self.port)

    @property
    def inner(self) -> str:
        """The SuperLink's address for the other processes: host and port."""
        return joined_address(self.inner_host, self.inner_port)


class RequestedRun(Strict):
    """The run that the keeper supervises until it is done.

    Attributes:
        run: the run's name, which is its plan's and its folder's.
        since: size of the run's event file when the run was requested, in bytes; what is before
            belongs to earlier requests.
        stop: the run is to be stopped, after which it is not requested any more.
    """

    run: Slug
    since: Annotated[int, Field(ge=0, lt=2**63)]
    stop: bool = False


_Model = TypeVar("_Model", bound=Strict)


@dataclass(frozen=True, slots=True)
class State:
    """The files of a coordinator; `open` checks that there is one."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "State":
        """Return the coordinator in this folder.

        Raises:
            StateError: there is none.
        """
        state = cls(root.resolve())
        if not state.settings_file.exists():
            raise StateError(
                f"{root}: found no coordinator, expected the folder that "
                "`fedmslora coordinator init` made (--state)"
            )
        return state

    @property
    def settings_file(self) -> Path:
        """The coordinator's settings."""
        return self.root / "coordinator.json"

    @property
    def tls(self) -> Path:
        """The certificate authority's and the server's certificates and keys."""
        return self.root / "tls"

    @property
    def ca(self) -> Path:
        """The authority's certificate, which every site gets and trusts."""
        return self.tls / "ca.crt"

    @property
    def secret(self) -> Path:
        """The secret with which a SuperExec authenticates itself to the SuperLink."""
        return self.root / "secrets" / "superexec"

    @property
    def key(self) -> Path:
        """The key that signs every release."""
        return self.root / "signing.key"

    @property
    def registry(self) -> Path:
        """The enrolled sites."""
        return self.root / "sites.json"

    @property
    def flower(self) -> Path:
        """Flower's own folder (FLWR_HOME)."""
        return self.root / "flower"

    @property
    def plans(self) -> Path:
        """Plans to be edited; init puts a template there."""
        return self.root / "plans"

    @property
    def logs(self) -> Path:
        """The logs of the processes."""
        return self.root / "logs"

    @property
    def pid_file(self) -> Path:
        """The id of the process that supervises the others (`fedmslora coordinator start`)."""
        return self.root / "start.pid"

    @property
    def settings(self) -> CoordinatorSettings:
        """The coordinator's settings, read now.

        Raises:
            StateError: the file is damaged.
        """
        return _read(
            self.settings_file, CoordinatorSettings, "what init wrote; restore it from a backup"
        )

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.root / "runs" / name)

    def run_names(self) -> list[str]:
        """Return the names of all runs that have a plan."""
        return [file.parent.name for file in sorted((self.root / "runs").glob("*/plan.json"))]

    def events_file(self, name: str) -> Path:
        """Return the file of the events that the run's ServerApp writes."""
        return self.run(name).progress / "coordinator.jsonl"

    @property
    def requested(self) -> RequestedRun | None:
        """The run that is requested, if one is.

        Raises:
            StateError: the file is damaged.
        """
        try:
            return _read(
                self._request_file,
                RequestedRun,
                "a request; remove the file, then `fedmslora coordinator run` requests it again",
            )
        except FileNotFoundError:
            return None

    def requested_before(self, name: str) -> RequestedRun | None:
        """Return the request of the run of this name, if it is requested.

        Raises:
            StateError: another run is requested, or the file is damaged.
        """
        before = self.requested
        if before is not None and before.run != name:
            raise StateError(
                f"run {name!r}: found another run, {before.run!r}, that has not ended, expected "
                "none; `fedmslora coordinator stop` ends it"
            )
        return before

    def request(self, requested: RequestedRun) -> None:
        """Request this run, durably, in place of an earlier request of it.

        Raises:
            StateError: as `requested_before`; somebody else may have requested one just now.
        """
        with self._request_lock():
            self.requested_before(requested.run)
            write_file(self._request_file, requested.model_dump_json().encode(), DISK)

    def clear_request(self, requested: RequestedRun) -> None:
        """Remove this request, durably; a newer one stays."""
        with self._request_lock():
            if self.requested == requested:
                DISK.remove(self._request_file)
                DISK.sync(self.root)

    def _request_lock(self) -> AbstractContextManager[int]:
        return file_lock(self._request_file.with_suffix(".lock"))

    @property
    def _request_file(self) -> Path:
        # The file's first name, so that an upgraded coordinator finds an earlier request.
        return self.root / "wanted.json"


def _read(file: Path, model: type[_Model], expected: str) -> _Model:
    try:
        return model.model_validate_json(read_text(file), strict=True)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StateError(
            f"{file}: can't be read ({why_unread(error)}), expected {expected}"
        ) from None
