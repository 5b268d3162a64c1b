"""The compose files of docker/ as options of `podman create` and `docker create`.

Only what these files use is known. Anything else is refused by name, so that a new line of a
compose file is never left out unnoticed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import yaml

from common.errors import StateError

#: `${NAME}`, `${NAME:-default}` and `${NAME:?why}`.
_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
#: Fields of a service that are read elsewhere here, or that a short run on one machine does
#: without. `ports` is among them: nothing is published.
_LEFT_OUT: Final = {
    *("build", "command", "depends_on", "healthcheck", "image", "logging", "network_mode"),
    *("networks", "ports", "profiles"),
}

_Options: TypeAlias = Callable[[Any], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of a compose file.

    Attributes:
        options: of `create`, without its networks.
        networks: the names under which it is known in each; none where it has no network at all.
        health: the command of its health check.
    """

    name: str
    command: tuple[str, ...]
    options: tuple[str, ...]
    networks: Mapping[str, tuple[str, ...]]
    health: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComposeFile:
    """A compose file: its services, and which networks have no way out."""

    services: Mapping[str, Service]
    internal: Mapping[str, bool]


def read_compose(file: Path, folder: Path, settings: Mapping[str, str]) -> ComposeFile:
    """Read a compose file as it would be in `folder`, with these variables.

    Raises:
        StateError: it has a field that is not known here, or a variable that is not set.
    """
    text = _VARIABLE.sub(lambda found: _value(found, settings, file), file.read_text("utf-8"))
    document = cast(Mapping[str, Any], yaml.safe_load(text))
    services = cast(Mapping[str, Mapping[str, Any]], document["services"])
    networks = cast(Mapping[str, Mapping[str, Any]], document["networks"])
    return ComposeFile(
        {name: _service(name, fields, file, folder) for name, fields in services.items()},
        {name: bool(fields.get("internal")) for name, fields in networks.items()},
    )


def _value(found: re.Match[str], settings: Mapping[str, str], file: Path) -> str:
    name, kind, otherwise = found.groups()
    if name in settings:
        return settings[name]
    if kind == "-":
        return otherwise
    raise StateError(f"{file}: found no value of {name}, expected one")


def _service(name: str, fields: Mapping[str, Any], file: Path, folder: Path) -> Service:
    known = _known_options(folder)
    if unknown := fields.keys() - known.keys() - _LEFT_OUT:
        listed = ", ".join(sorted(unknown))
        raise StateError(f"{file}: services.{name}: found {listed}, which is not known here")
    options = [
        word for field, make in known.items() if field in fields for word in make(fields[field])
    ]
    return Service(
        name=name,
        command=tuple(fields.get("command", ())),
        options=tuple(options),
        networks=_networks(name, fields),
        health=tuple(fields.get("healthcheck", {}).get("test", ())[1:]),
    )


def _networks(service: str, fields: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    if fields.get("network_mode") == "none":
        return {}
    networks: Any = fields["networks"]
    if isinstance(networks, list):
        return {name: (service,) for name in cast(list[str], networks)}
    named = cast(Mapping[str, Mapping[str, Any] | None], networks)
    return {name: (service, *(more or {}).get("aliases", ())) for name, more in named.items()}


def _known_options(folder: Path) -> Mapping[str, _Options]:
    """Return how each field of a service becomes options; paths are relative to `folder`."""
    return {
        "user": lambda value: ["--user", value],
        "init": lambda value: ["--init"] if value else [],
        "read_only": lambda value: ["--read-only"] if value else [],
        "cap_drop": _each("--cap-drop"),
        # podman knows the word alone.
        "security_opt": lambda values: _each("--security-opt")(
            [value.removesuffix(":true") for value in values]
        ),
        "tmpfs": _each("--tmpfs"),
        "pids_limit": lambda value: ["--pids-limit", str(value)],
        "mem_limit": lambda value: ["--memory", value],
        "shm_size": lambda value: ["--shm-size", value],
        "restart": lambda value: [] if value == "no" else ["--restart", value],
        "stop_grace_period": lambda value: ["--stop-timeout", value.removesuffix("s")],
        "environment": lambda values: _each("--env")([f"{k}={v}" for k, v in values.items()]),
        "extra_hosts": _each("--add-host"),
        "volumes": lambda values: _each("--volume")([_volume(value, folder) for value in values]),
    }


def _each(option: str) -> Callable[[Sequence[str]], list[str]]:
    return lambda values: [word for value in values for word in (option, value)]


def _volume(value: str | Mapping[str, Any], folder: Path) -> str:
    """Return a mount as `--volume` has it, its source absolute."""
    if isinstance(value, str):
        source, _, rest = value.partition(":")
    else:
        source, rest = value["source"], value["target"] + (":ro" if value.get("read_only") else "")
    return f"{(folder / source).resolve()}:{rest}"
