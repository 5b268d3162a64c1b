"""Where a coordinator keeps everything: one folder, its settings, and which run is wanted."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from common.durable import DISK, write_file
from common.errors import StateError
from common.plan_fields import Strict
from common.process.file_lock import file_lock
from server.run.folder import RunFolder

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(Strict):
    """How a coordinator is reached.

    Attributes:
        hosts: the names under which sites reach it; the first one is told to them.
        port: the one port that is open to the outside.
        bind: the address that the edge listens at.
        inner_host: where the parts find the SuperLink: this machine, or a name on a network
            that nobody else is on.
        inner_port: the SuperLink's port there.
        wait_s: how long a site may hold a message before it says that it is still working.
        slack_s: how long beyond that a message may stay away before it counts as lost.
    """

    hosts: tuple[str, ...]
    port: Port
    bind: str
    inner_host: str
    inner_port: Port
    wait_s: float
    slack_s: float

    @property
    def address(self) -> str:
        """What a site is told: host and port."""
        return f"{self.hosts[0]}:{self.port}"

    @property
    def inner(self) -> str:
        """Where the parts find the SuperLink: host and port."""
        return f"{self.inner_host}:{self.inner_port}"


class Wanted(Strict):
    """The run that is to go on until it is done.

    Attributes:
        run: the run's name, which is its plan's and its folder's.
        since: bytes of the run's progress file that were told before it was wanted.
        stop: it is to end, and is not wanted any more once it has.
    """

    run: str
    since: int
    stop: bool = False


_Model = TypeVar("_Model", bound=Strict)


@dataclass(frozen=True, slots=True)
class State:
    """The files of a coordinator; `open` checks that there is one."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "State":
        """The coordinator in this folder.

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
        """How the coordinator is reached."""
        return self.root / "coordinator.json"

    @property
    def tls(self) -> Path:
        """The certificate authority's and the server's certificates and keys."""
        return self.root / "tls"

    @property
    def ca(self) -> Path:
        """The certificate that every site gets: what it knows the coordinator by."""
        return self.tls / "ca.crt"

    @property
    def secret(self) -> Path:
        """What a SuperExec must know before the SuperLink gives it a task."""
        return self.root / "secrets" / "superexec"

    @property
    def key(self) -> Path:
        """The key that signs every release."""
        return self.root / "signing.key"

    @property
    def registry(self) -> Path:
        """The sites that belong to the federation."""
        return self.root / "sites.json"

    @property
    def flower(self) -> Path:
        """Flower's own folder (FLWR_HOME)."""
        return self.root / "flower"

    @property
    def bells(self) -> Path:
        """What says that a message waits for a site (server/coordinator/notify.py)."""
        return self.root / "bells"

    @property
    def plans(self) -> Path:
        """Plans that are being written; the first is a template."""
        return self.root / "plans"

    @property
    def logs(self) -> Path:
        """What the parts say."""
        return self.root / "logs"

    @property
    def pid_file(self) -> Path:
        """The process that keeps the parts going."""
        return self.root / "start.pid"

    @property
    def settings(self) -> Settings:
        """How the coordinator is reached.

        Raises:
            StateError: the file is damaged.
        """
        return _read(self.settings_file, Settings)

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.root / "runs" / name)

    def coordinator_news(self, name: str) -> Path:
        """What the run's ServerApp tells, one line of JSON each."""
        return self.run(name).progress / "coordinator.jsonl"

    @property
    def wanted(self) -> Wanted | None:
        """The run that is to go on, if one is.

        Raises:
            StateError: the file is damaged.
        """
        try:
            return _read(self._wanted_file, Wanted)
        except FileNotFoundError:
            return None

    def want(self, wanted: Wanted) -> None:
        """From now on the keeper keeps this run going."""
        with self._deciding():
            write_file(self._wanted_file, wanted.model_dump_json().encode(), DISK)

    def settle(self, wanted: Wanted) -> None:
        """This is wanted no more; what somebody has wanted since stays."""
        with self._deciding():
            if self.wanted == wanted:
                DISK.remove(self._wanted_file)
                DISK.sync(self.root)

    def _deciding(self) -> AbstractContextManager[int]:
        return file_lock(self._wanted_file.with_suffix(".lock"))

    @property
    def _wanted_file(self) -> Path:
        return self.root / "wanted.json"


def _read(file: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(file.read_text(encoding="utf-8"), strict=True)
    except FileNotFoundError:
        raise
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise StateError(f"{file}: can't be read ({why}), expected what init wrote") from None
