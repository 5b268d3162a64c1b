"""The three programs of a site: Flower's SuperNode and SuperExec, and the trainer.

SuperExec starts the ClientApp of each message. It finds programs on its PATH, where a site
has one Flower program alone: the launcher of client/launcher.py.
"""

import importlib.metadata
import os
import secrets
import shlex
import sys
import sysconfig
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from client.site.config import Federation, Site
from client.site.keys import write_private
from common.durable import DISK, writing
from common.errors import SiteFailed
from common.identity import ROOT
from common.process.supervise import Part

#: The Flower whose process client/launcher.py fits.
FLOWER: Final = "1.41.0"
#: What SuperExec calls for a message to a site.
PROGRAM: Final = "flwr-clientapp"

#: Bytes of a piece of an array on its way. On a line of 1 Mbit/s Flower's own 5 MiB run into
#: its time-out of 30 s again and again; pieces of 512 KiB never did (measured).
_CHUNK: Final = 512 * 1024


class PartName(StrEnum):
    """Which program of a site."""

    SUPERNODE = "supernode"
    SUPEREXEC = "superexec"
    TRAINER = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a site's programs run and meet.

    Attributes:
        file: the site file, as an absolute path.
        site: what it says.
        host: the SuperNode listens there, and SuperExec looks for it there.
        port: of the same, for SuperExec alone; nothing outside the site needs it.
    """

    file: Path
    site: Site
    host: str = "127.0.0.1"
    port: int = 9094

    @property
    def federation(self) -> Federation:
        """How the site reaches its coordinator.

        Raises:
            SiteFailed: it is a simulated site, which has none.
        """
        if self.site.federation is None:
            raise SiteFailed(
                f"{self.file}: found no federation, expected one: address, ca, key, approved"
            )
        return self.site.federation


def parts(machine: Machine) -> tuple[Part, ...]:
    """All three programs. The files that they need are there afterwards."""
    return tuple(part(machine, name) for name in PartName)


def part(machine: Machine, name: PartName) -> Part:
    """One program. The files that it needs are there afterwards.

    Raises:
        SiteFailed: the site has no federation, or Flower is not the tested one.
    """
    check_flower()
    store = machine.site.store
    if name is PartName.TRAINER:
        command = (sys.executable, "-P", "-m", "client.node.trainer", str(machine.file))
        environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    elif name is PartName.SUPEREXEC:
        command = _superexec(machine)
        environment = _flower_environment(store) | {"PATH": _path_without_flower(store / "bin")}
        write_program(store / "bin")
    else:
        command, environment = _supernode(machine), _flower_environment(store)
    return Part(name.value, command, environment, store / "logs" / f"{name.value}.log")


def check_flower() -> None:
    """The installed Flower is the tested one.

    Raises:
        SiteFailed: it is another.
    """
    found = importlib.metadata.version("flwr")
    if found != FLOWER:
        raise SiteFailed(
            f"flwr: found version {found}, expected {FLOWER}: a site keeps foreign code out by "
            "way of that version's own functions"
        )


def write_program(folder: Path) -> Path:
    """An executable `flwr-clientapp` in `folder` that runs client/launcher.py with this Python."""
    file = folder / PROGRAM
    folder.mkdir(parents=True, exist_ok=True)
    # -I: neither the working directory nor PYTHONPATH can put another `client` in front.
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from client.launcher import main; main()"
    )
    command = shlex.join([sys.executable, "-I", "-c", start])
    temporary = writing(file)
    DISK.write(temporary, f'#!/bin/sh\nexec {command} "$@"\n'.encode())
    temporary.chmod(0o755)
    DISK.sync(temporary)
    DISK.rename(temporary, file)
    return file


def _supernode(machine: Machine) -> tuple[str, ...]:
    federation = machine.federation
    return (
        _flower_program("flower-supernode"),
        *("--superlink", federation.address, "--root-certificates", str(federation.ca)),
        *("--auth-supernode-private-key", str(federation.key)),
        *("--host", machine.host, "--port", str(machine.port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(_secret(machine))),
        # It stays here: Flower gives it to the ClientApp and to nobody else.
        *("--node-config", f"site-file={_quoted(machine.file)}"),
    )


def _superexec(machine: Machine) -> tuple[str, ...]:
    return (
        _flower_program("flower-superexec"),
        *("--runtime-api-address", f"{machine.host}:{machine.port}", "--insecure"),
        *("--superexec-auth-secret-file", str(_secret(machine))),
    )


def _flower_environment(store: Path) -> dict[str, str]:
    home = store / "flower"
    home.mkdir(parents=True, exist_ok=True)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        **_unless_set("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", str(_CHUNK)),
        # It asks this machine alone, so it may ask often: a message begins that much earlier.
        **_unless_set("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2"),
    }


def _unless_set(name: str, value: str) -> dict[str, str]:
    return {} if name in os.environ else {name: value}


def _path_without_flower(own: Path) -> str:
    """`own`, then the system's folders, but none that holds a Flower program."""
    system = [Path(folder) for folder in ("/usr/local/bin", "/usr/bin", "/bin")]
    clean = [folder for folder in system if not any(folder.glob("flwr*"))]
    return os.pathsep.join(map(str, [own, *clean]))


def _flower_program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _secret(machine: Machine) -> Path:
    """The file with which SuperExec shows the SuperNode that it is of the same site."""
    file = machine.site.store / "secrets" / "superexec"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f"{file.name}-{secrets.token_hex(4)}")
    if not file.exists():
        write_private(temporary, secrets.token_hex(32).encode())
        try:
            # Two parts may start at once: the first one's secret stays.
            os.link(temporary, file)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return file


def _quoted(file: Path) -> str:
    """A TOML text that Flower's own splitting of a node config leaves whole."""
    text = str(file)
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text and "\\" not in text:
        return f'"{text}"'
    raise SiteFailed(f"{file}: found both kinds of quotation marks in a path, expected one at most")
