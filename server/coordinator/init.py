"""A new coordinator: everything that its folder begins with."""

import os
from collections.abc import Sequence
from pathlib import Path

from common.durable import DISK, write_file
from common.errors import StateError
from common.signing import SigningKey
from server.coordinator.certificates import renew_server, write_certificates
from server.coordinator.plan_template import PLAN_TEMPLATE
from server.coordinator.state import Settings, State

#: Names that the server's certificate always holds.
_ALWAYS = ("localhost", "127.0.0.1")
_SECRET_BYTES = 32


def found(root: Path, settings: Settings) -> State:
    """The folder holds a coordinator with new keys.

    Raises:
        StateError: the folder holds something already, or both ports are one.
    """
    _check_ports(settings)
    if root.exists() and any(root.iterdir()):
        what = "a coordinator" if State(root).settings_file.exists() else "files"
        raise StateError(f"{root}: found {what}, expected a new or an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    state = State(root.resolve())
    for folder in (state.secret.parent, state.flower, state.plans, state.logs, state.root / "runs"):
        folder.mkdir(mode=0o700)
    write_certificates(state.tls, _names(settings))
    _write_secret(state.secret)
    SigningKey.generate().save(state.key)
    (state.flower / "config.toml").write_text(_connection(state, settings), encoding="utf-8")
    (state.plans / "first.yaml").write_text(PLAN_TEMPLATE, encoding="utf-8")
    # Last: a folder without it is not a coordinator.
    settings_json = f"{settings.model_dump_json(indent=1)}\n"
    write_file(state.settings_file, settings_json.encode(), DISK)
    return state


def renew_certificate(state: State, hosts: Sequence[str]) -> Sequence[str]:
    """The server has a new certificate of the same authority, for more hosts if any are named.

    Returns:
        The names in it.
    """
    settings = state.settings
    merged = tuple(dict.fromkeys((*settings.hosts, *hosts)))
    renewed = settings.model_copy(update={"hosts": merged})
    renew_server(state.tls, _names(renewed))
    write_file(state.settings_file, f"{renewed.model_dump_json(indent=1)}\n".encode(), DISK)
    return _names(renewed)


def _check_ports(settings: Settings) -> None:
    if settings.port == settings.inner_port and settings.inner_host in _ALWAYS:
        raise StateError(
            f"--inner-port: found {settings.inner_port}, which --port has on this machine, "
            "expected another one"
        )


def _names(settings: Settings) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*settings.hosts, settings.inner_host, *_ALWAYS)))


def _write_secret(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        # Text without a line end: Flower reads it as exact raw bytes.
        stream.write(os.urandom(_SECRET_BYTES).hex())


def _connection(state: State, settings: Settings) -> str:
    """For whoever wants to use `flwr` itself: FLWR_HOME=coordinator/flower flwr ls fedmslora."""
    return (
        '[superlink]\ndefault = "fedmslora"\n\n'
        f'[superlink.fedmslora]\naddress = "{settings.inner}"\n'
        f'root-certificates = "{state.ca}"\n'
    )
