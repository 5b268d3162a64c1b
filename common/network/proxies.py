"""Proxies that the environment names: one may lead to the coordinator; inner hops have none.

Libraries read these variables each in its own way (httpx, gRPC, requests, urllib). So they are
read here alone, and every program is given variables that all libraries read alike.
"""

import ipaddress
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from common.errors import SiteFailed
from common.network.address import is_loopback, split_address

_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_grpc_proxy")
#: Variables with which no library uses a proxy, whatever the environment says.
NO_PROXIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{case: "" for name in _NAMES for case in (name, name.upper())},
        "no_proxy": "*",
        "NO_PROXY": "*",
    }
)
#: Those for an https:// address, the strongest first; HTTP_PROXY is for others alone.
_FOR_HTTPS: Final = ("https_proxy", "all_proxy")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes:
        variable: the environment's variable that names it.
        url: its address; it may contain a password.
    """

    variable: str
    url: str

    def __str__(self) -> str:
        """Return its address without a user's name and password, and the variable."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}:{parts.port or _PORTS[parts.scheme]} ({self.variable})"


def proxy_to(address: str, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy to this https address (host:port) by the environment, if there is one.

    There is none to this machine itself, nor to what NO_PROXY has: `*`, names with all names
    under them, addresses, networks (10.0.0.0/8), each with a port or without. Of a variable in
    small and in capital letters the one in small letters counts, as for curl.

    Raises:
        SiteFailed: the proxy's address can't be used.
    """
    found = os.environ if environment is None else environment
    host, port = split_address(address)
    if is_loopback(host) or _is_excepted(host, port, _value(found, "no_proxy")[1]):
        return None
    for name in _FOR_HTTPS:
        variable, value = _value(found, name)
        if value:
            return _checked(variable, value)
    return None


def environment_to(address: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a program that talks to this https address and to nothing else.

    Raises:
        SiteFailed: as `proxy_to`.
    """
    proxy = proxy_to(address, environment)
    if proxy is None:
        return dict(NO_PROXIES)
    way = {"https_proxy": proxy.url, "HTTPS_PROXY": proxy.url, "no_proxy": "", "NO_PROXY": ""}
    return {**NO_PROXIES, **way}


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Generator[None]:
    """Change these variables of the process during the body, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _value(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    variable = name if name in environment else name.upper()
    return variable, environment.get(variable, "").strip()


def _is_excepted(host: str, port: int, exceptions: str) -> bool:
    return any(_matches(host, port, entry) for entry in re.split(r"[\s,]+", exceptions) if entry)


def _matches(host: str, port: int, entry: str) -> bool:
    entry = entry.rpartition("://")[2].lower()
    if entry == "*":
        return True
    with suppress(ValueError):
        # Of an address that is none a name's rules hold.
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        return ipaddress.ip_address(host) in network
    name, _, only = entry.partition(":") if not entry.startswith("[") else entry.rpartition(":")
    if only and only != str(port):
        return False
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    return bool(name) and (host.lower() == name or host.lower().endswith(f".{name}"))


def _checked(variable: str, value: str) -> Proxy:
    # Nothing of the value is said but its scheme: it may contain a password.
    url = value if "://" in value else f"http://{value}"
    expected = "expected http://HOST:PORT"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise SiteFailed(f"{variable}: found an address that can't be read, {expected}") from None
    if parts.scheme not in _PORTS:
        raise SiteFailed(f"{variable}: found a proxy of the kind {parts.scheme[:20]!r}, {expected}")
    if not usable or not url.isprintable() or " " in url:
        raise SiteFailed(f"{variable}: found a proxy without a usable host and port, {expected}")
    return Proxy(variable, url)
