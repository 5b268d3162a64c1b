"""The three programs of a site: Flower's SuperNode and SuperExec, and the trainer.

The SuperNode runs with two steps of its loop replaced (client/node/supernode.py). SuperExec starts
a ClientApp process for each message. It finds programs on its PATH, where a site has a single
Flower program: the launcher of client/launcher.py.
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
from common.durable import DISK, write_new_file, writing
from common.errors import SiteFailed
from common.identity import ROOT
from common.network.address import joined_address
from common.network.proxies import NO_PROXIES, environment_to
from common.process.flower_environment import CHUNK_SIZE, flower_environment
from common.process.supervise import Program

#: The version of Flower whose process client/launcher.py replaces steps of.
FLOWER: Final = "1.42.0"
#: What SuperExec runs for a message to a site.
PROGRAM: Final = "flwr-clientapp"
#: In a site's store: a file that is touched whenever the coordinator has answered the SuperNode,
#: and the variable that tells the SuperNode where. In a container it sees no more of the store than
#: `flower` and `secrets`.
ANSWERED_FILE: Final = "flower/answered"
ANSWERED: Final = "FEDMSLORA_ANSWERED"
#: How often SuperExec asks the SuperNode of the same machine for messages, in seconds: a short
#: interval starts a message earlier.
_POLL_INTERVAL: Final = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}


class ProgramName(StrEnum):
    """The programs of a site, as `fedmslora site start --part` names them."""

    SUPERNODE = "supernode"
    SUPEREXEC = "superexec"
    TRAINER = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A site on this machine, and the address at which its programs reach each other.

    Attributes:
        file: the site file, as an absolute path.
        site: its content.
        host: where the SuperNode listens for SuperExec.
        port: its port there; nothing outside the site needs it.
    """

    file: Path
    site: Site
    host: str = "127.0.0.1"
    port: int = 9094

    @property
    def federation(self) -> Federation:
        """How the site reaches its coordinator.

        Raises:
            SiteFailed: it is a simulated site, which has no coordinator to reach.
        """
        if self.site.federation is None:
            raise SiteFailed(
                f"{self.file}: found no federation, expected one: address, ca, key, approved"
            )
        return self.site.federation


def programs(machine: Machine) -> tuple[Program, ...]:
    """Return all three programs, and make the files that they need."""
    return tuple(program(machine, name) for name in ProgramName)


def program(machine: Machine, name: ProgramName) -> Program:
    """Return one program, and make the files that it needs.

    Raises:
        SiteFailed: the site has no federation, Flower is not of the tested version, or the
            environment names a proxy that can't be used.
    """
    check_flower()
    store = machine.site.store
    if name is ProgramName.TRAINER:
        command = (sys.executable, "-P", "-m", "client.node.trainer", str(machine.file))
        environment = {**NO_PROXIES, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    elif name is ProgramName.SUPEREXEC:
        command = _superexec(machine)
        own = {**NO_PROXIES, "PATH": _path_without_flower(store / "bin")}
        environment = _flower_environment(store) | own
        write_program(store / "bin")
    else:
        command = _supernode(machine)
        own = {"PYTHONPATH": str(ROOT), ANSWERED: str(store / ANSWERED_FILE)}
        way = environment_to(machine.federation.address)
        environment = _flower_environment(store) | way | own
    return Program(name.value, command, environment, store / "logs" / f"{name.value}.log")


def check_flower() -> None:
    """Check that the installed Flower is of the tested version.

    Raises:
        SiteFailed: it is of another.
    """
    found = importlib.metadata.version("flwr")
    if found != FLOWER:
        raise SiteFailed(
            f"flwr: found version {found}, expected {FLOWER}: a site replaces functions of that "
            "version to keep foreign code out"
        )


def write_program(folder: Path) -> Path:
    """Write an executable `flwr-clientapp` that runs client/launcher.py with this Python."""
    file = folder / PROGRAM
    folder.mkdir(parents=True, exist_ok=True)
    # -I: neither the working directory nor PYTHONPATH can shadow our `client`.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from client.launcher import main; main()"
    )
    command = shlex.join([sys.executable, "-I", "-c", code])
    temporary = writing(file)
    DISK.write(temporary, f'#!/bin/sh\nexec {command} "$@"\n'.encode())
    temporary.chmod(0o755)
    DISK.sync(temporary)
    DISK.rename(temporary, file)
    return file


def _supernode(machine: Machine) -> tuple[str, ...]:
    federation = machine.federation
    return (
        *(sys.executable, "-P", "-m", "client.node.supernode"),
        *("--superlink", federation.address, "--root-certificates", str(federation.ca)),
        *("--auth-supernode-private-key", str(federation.key)),
        *("--host", machine.host, "--port", str(machine.port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(_secret(machine))),
        # It stays on this machine: Flower passes it to the ClientApp only.
        *("--node-config", f"site-file={_quoted(machine.file)}"),
    )


def _superexec(machine: Machine) -> tuple[str, ...]:
    return (
        _flower_program("flower-superexec"),
        *("--runtime-api-address", joined_address(machine.host, machine.port), "--insecure"),
        *("--superexec-auth-secret-file", str(_secret(machine))),
    )


def _flower_environment(store: Path) -> dict[str, str]:
    home = store / "flower"
    home.mkdir(parents=True, exist_ok=True)
    environment = flower_environment(home) | _POLL_INTERVAL
    adjustable = (CHUNK_SIZE, *_POLL_INTERVAL)
    return environment | {name: os.environ[name] for name in adjustable if name in os.environ}


def _path_without_flower(own: Path) -> str:
    """Return a PATH of `own` and those of the system's folders without a Flower program."""
    system = [Path(folder) for folder in ("/usr/local/bin", "/usr/bin", "/bin")]
    clean = [folder for folder in system if not any(folder.glob("flwr*"))]
    return os.pathsep.join(map(str, [own, *clean]))


def _flower_program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _secret(machine: Machine) -> Path:
    """Return the file of the secret that SuperExec and SuperNode share; made on first use."""
    file = machine.site.store / "secrets" / "superexec"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f"{file.name}-{secrets.token_hex(4)}")
    if not file.exists():
        write_new_file(temporary, secrets.token_hex(32).encode())
        try:
            # Two programs may start at once: the first one's secret stays.
            os.link(temporary, file)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return file


def _quoted(file: Path) -> str:
    """Return the path as a TOML string that Flower's parser of a node config leaves whole."""
    text = str(file)
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text and "\\" not in text:
        return f'"{text}"'
    raise SiteFailed(f"{file}: found both kinds of quotation marks in a path, expected one at most")
