"""The four processes of a coordinator, their commands and their environment."""

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from common.errors import StateError
from common.identity import ROOT
from common.network.address import is_loopback
from common.network.ports import NeededPort
from common.network.proxies import NO_PROXIES
from common.process.flower_environment import flower_environment
from common.process.supervise import Program
from server.coordinator.state import CoordinatorSettings, State


class ProcessName(StrEnum):
    """The processes of a coordinator, as `fedmslora coordinator start --part` names them."""

    SUPERLINK = "superlink"
    SUPEREXEC = "superexec"
    #: The reverse proxy at the edge of the coordinator's network (server/coordinator/proxy.py).
    EDGE = "edge"
    KEEPER = "keeper"


def processes(state: State, dashboard_port: int | None = None) -> tuple[Program, ...]:
    """Return all processes, each with a log of its own.

    Args:
        dashboard_port: where the dashboard is shown on this machine; None without one.
    """
    found = [
        Program(name, command(name, state), environment(state), state.logs / f"{name}.log")
        for name in ProcessName
    ]
    if dashboard_port is not None:
        line = (*_module("server.dashboard.app", state), str(dashboard_port))
        log = state.logs / "dashboard.log"
        found.append(Program("dashboard", line, environment(state), log))
    return tuple(found)


def command(name: ProcessName, state: State) -> Sequence[str]:
    """Return a process's program and its arguments."""
    match name:
        case ProcessName.SUPERLINK:
            return _superlink(state)
        case ProcessName.SUPEREXEC:
            return _superexec(state)
        case ProcessName.EDGE:
            return _module("server.coordinator.proxy", state)
        case ProcessName.KEEPER:
            return _module("server.coordinator.keeper", state)


def environment(state: State) -> Mapping[str, str]:
    """Return the environment variables of every process; none of them goes through a proxy."""
    return {
        **NO_PROXIES,
        **flower_environment(state.flower),
        # glibc would keep the memory of large messages: 0.5 GB with adapters of 0.3 GB.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "PYTHONUNBUFFERED": "1",
        # SuperExec finds `flwr-serverapp` there.
        "PATH": os.pathsep.join((_scripts_folder(), os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


def needed_ports(state: State) -> dict[ProcessName, NeededPort]:
    """Return the ports that processes listen at, each with the words for where it is set."""
    settings, file = state.settings, state.settings_file
    inner = NeededPort(_inner_bind(settings), settings.inner_port, f"inner_port in {file}")
    outer = NeededPort(settings.bind, settings.port, f"port or bind in {file}")
    return {ProcessName.SUPERLINK: inner, ProcessName.EDGE: outer}


def exec_process(name: ProcessName, state: State) -> None:
    """Replace this process by a process of the coordinator: what a container starts."""
    program = command(name, state)
    os.execvpe(program[0], list(program), {**os.environ, **environment(state)})


def _module(module: str, state: State) -> Sequence[str]:
    # -P: a folder `server` in the working directory is not ours.
    return (sys.executable, "-P", "-m", module, str(state.root))


def _superlink(state: State) -> Sequence[str]:
    settings = state.settings
    return (
        _program("flower-superlink"),
        *("--host", _inner_bind(settings), "--port", str(settings.inner_port)),
        *("--ssl-ca-certfile", str(state.ca)),
        *("--ssl-certfile", str(state.tls / "server.crt")),
        *("--ssl-keyfile", str(state.tls / "server.key")),
        *("--database", str(state.flower / "state.db")),
        *("--superexec-auth-secret-file", str(state.secret)),
        *("--isolation", "process"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )


def _inner_bind(settings: CoordinatorSettings) -> str:
    return settings.inner_host if is_loopback(settings.inner_host) else "0.0.0.0"


def _superexec(state: State) -> Sequence[str]:
    return (
        _program("flower-superexec"),
        *("--runtime-api-address", state.settings.inner),
        *("--root-certificates", str(state.ca)),
        *("--superexec-auth-secret-file", str(state.secret)),
    )


def _program(name: str) -> str:
    program = Path(_scripts_folder()) / name
    if not program.exists():
        raise StateError(f"{program}: found no such program, expected it to come with flwr 1.42.0")
    return str(program)


def _scripts_folder() -> str:
    """Return where this Python environment keeps the programs that were installed with it."""
    return sysconfig.get_path("scripts")
