"""Initializes a coordinator's folder, and renews its certificate."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from common.durable import DISK, write_file, write_new_file
from common.errors import StateError
from common.network.address import bind_fault, host_fault, without_brackets
from common.printable import has_broken_letter
from common.signing import SigningKey
from server.coordinator.certificates import renew_server, write_certificates
from server.coordinator.plan_template import plan_template
from server.coordinator.state import CoordinatorSettings, State

#: Names that every server certificate has.
_LOOPBACK_NAMES = ("localhost", "127.0.0.1")
_SECRET_BYTES = 32


def init_coordinator(root: Path, settings: CoordinatorSettings) -> State:
    """Make a coordinator's folder with new keys and certificates.

    Raises:
        StateError: a host is none, the folder is not empty or not UTF-8, or both ports are the
            same.
        OSError, BankError: the disk is full or fails; then the folder is empty again.
    """
    settings = _checked(settings)
    if settings.port == settings.inner_port and settings.inner_host in _LOOPBACK_NAMES:
        raise StateError(
            f"--inner-port: found {settings.inner_port}, which is also --port on this machine, "
            "expected another one"
        )
    if has_broken_letter(str(root.absolute())):
        raise StateError(f"--state: found {str(root.absolute())!r}, expected a name in UTF-8")
    if root.exists() and any(root.iterdir()):
        what = "a coordinator" if State(root).settings_file.exists() else "files"
        raise StateError(f"{root}: found {what}, expected a new or an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    state = State(root.resolve())
    try:
        _write_state(state, settings)
    except BaseException:
        # The folder was empty: all that is in it is half a coordinator.
        for path in state.root.iterdir():
            DISK.remove(path)
        raise
    return state


def _write_state(state: State, settings: CoordinatorSettings) -> None:
    for folder in (state.secret.parent, state.flower, state.plans, state.logs, state.root / "runs"):
        folder.mkdir(mode=0o700)
    write_certificates(state.tls, _certificate_names(settings))
    # No newline at the end: Flower takes the file's bytes as they are.
    write_new_file(state.secret, os.urandom(_SECRET_BYTES).hex().encode())
    SigningKey.generate().save(state.key)
    (state.flower / "config.toml").write_text(_flower_config(state, settings), encoding="utf-8")
    (state.plans / "first.yaml").write_text(plan_template(), encoding="utf-8")
    # Last: a folder without this file is not a coordinator.
    _write_settings(state, settings)


def renew_certificate(state: State, hosts: Sequence[str]) -> Sequence[str]:
    """Replace the server certificate by a new one, also for these further hosts.

    Returns:
        The names in it.

    Raises:
        StateError: a host is none.
    """
    settings = state.settings
    merged = tuple(dict.fromkeys((*settings.hosts, *hosts)))
    renewed = _checked(settings.model_copy(update={"hosts": merged}))
    names = _certificate_names(renewed)
    renew_server(state.tls, names)
    _write_settings(state, renewed)
    return names


def _checked(settings: CoordinatorSettings) -> CoordinatorSettings:
    """Return the settings with IPv6 addresses without brackets, as programs and certificates do."""
    named = [("--host", host) for host in settings.hosts]
    for option, host in [*named, ("--inner-host", settings.inner_host)]:
        if (fault := host_fault(host)) is not None:
            raise StateError(f"{option}: {fault}")
    bind = without_brackets(settings.bind)
    if (fault := bind_fault(bind)) is not None:
        raise StateError(f"--bind: {fault}")
    return settings.model_copy(
        update={
            "hosts": tuple(without_brackets(host) for host in settings.hosts),
            "inner_host": without_brackets(settings.inner_host),
            "bind": bind,
        }
    )


def _write_settings(state: State, settings: CoordinatorSettings) -> None:
    write_file(state.settings_file, f"{settings.model_dump_json(indent=1)}\n".encode(), DISK)


def _certificate_names(settings: CoordinatorSettings) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*settings.hosts, settings.inner_host, *_LOOPBACK_NAMES)))


def _flower_config(state: State, settings: CoordinatorSettings) -> str:
    """Return the configuration of the `flwr` command line, for use with FLWR_HOME."""
    return (
        '[superlink]\ndefault = "fedmslora"\n\n'
        f'[superlink.fedmslora]\naddress = "{settings.inner}"\n'
        # Whatever characters a path has, a JSON string is one of TOML.
        f"root-certificates = {json.dumps(str(state.ca), ensure_ascii=False)}\n"
    )
