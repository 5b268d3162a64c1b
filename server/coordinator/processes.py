"""What runs on a coordinator's machine: four parts, their commands and their environment."""

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from common.errors import StateError
from common.identity import ROOT
from common.process.supervise import Part
from server.coordinator.state import State


class Which(StrEnum):
    """The parts of a coordinator."""

    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"
    EDGE = "edge"
    KEEPER = "keeper"


#: Flower cuts what travels into pieces of this size. Its own 5 MiB do not get through a
#: line of 1 Mbit/s within its 30 s; half a MiB does.
PIECE_BYTES = 512 * 2**10
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parts(state: State) -> tuple[Part, ...]:
    """All parts, each with a log of its own."""
    return tuple(
        Part(which, command(which, state), environment(state), state.logs / f"{which}.log")
        for which in Which
    )


def command(which: Which, state: State) -> Sequence[str]:
    """The program of a part and its arguments."""
    match which:
        case Which.SUPERLINK:
            return _superlink(state)
        case Which.SUPEREXEC:
            return _superexec(state)
        case Which.EDGE | Which.KEEPER:
            # -P: a folder `server` of wherever this is called from is not ours.
            return (sys.executable, "-P", "-m", f"server.{which}", str(state.root))


def environment(state: State) -> Mapping[str, str]:
    """What every part needs to know: nothing is asked of the world outside."""
    root = str(ROOT)
    return {
        "FLWR_HOME": str(state.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES),
        # glibc would keep what large messages leave behind: 0.5 GB with adapters of 0.3 GB.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        # SuperExec finds `flwr-serverapp` on it.
        "PATH": os.pathsep.join((_bin(), os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }


def become(which: Which, state: State) -> None:
    """This process is the part from now on: what a container starts."""
    program = command(which, state)
    os.execvpe(program[0], list(program), {**os.environ, **environment(state)})


def _superlink(state: State) -> Sequence[str]:
    settings = state.settings
    bind = settings.inner_host if settings.inner_host in _LOOPBACK else "0.0.0.0"
    return (
        _program("flower-superlink"),
        *("--host", bind, "--port", str(settings.inner_port)),
        *("--ssl-ca-certfile", str(state.ca)),
        *("--ssl-certfile", str(state.tls / "server.crt")),
        *("--ssl-keyfile", str(state.tls / "server.key")),
        *("--database", str(state.flower / "state.db")),
        *("--superexec-auth-secret-file", str(state.secret)),
        *("--isolation", "process"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )


def _superexec(state: State) -> Sequence[str]:
    return (
        _program("flower-superexec"),
        *("--runtime-api-address", state.settings.inner),
        *("--root-certificates", str(state.ca)),
        *("--superexec-auth-secret-file", str(state.secret)),
    )


def _program(name: str) -> str:
    program = Path(_bin()) / name
    if not program.exists():
        raise StateError(f"{program}: found no such program, expected it of flwr 1.41.0")
    return str(program)


def _bin() -> str:
    """Where this Python keeps the programs that were installed with it."""
    return sysconfig.get_path("scripts")
