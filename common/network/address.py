"""Host names, addresses and ports as people type them, checked before they are used."""

import ipaddress
import re
from contextlib import suppress
from typing import Final

_EXAMPLE: Final = "expected a name or address such as fed.example.org"
#: A label of a host name (RFC 1123), and _ as in names of Docker's services.
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
#: After an IPv6 address and %: a network interface, as Linux names them.
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_LONGEST_NAME: Final = 253
_HIGHEST_PORT: Final = 65535
#: Addresses of a server that listens on all of its machine's.
_EVERYWHERE: Final = ("0.0.0.0", "::")


def host_fault(host: str) -> str | None:
    """Return why this is no host name or address (found, expected); None if it is one.

    An IPv6 address may be in brackets.
    """
    found = f"found {host[:60]!r}"
    if "://" in host:
        return f"{found} with a scheme, {_EXAMPLE}"
    if "/" in host or "@" in host:
        return f"{found}, {_EXAMPLE} and nothing beside it"
    bare, percent, zone = without_brackets(host).partition("%")
    with suppress(ValueError):
        address = ipaddress.ip_address(bare)
        if percent and (address.version == 4 or not _ZONE.fullmatch(zone)):
            return f"{found}, {_EXAMPLE}"
        if address.is_unspecified or address.is_multicast:
            return f"{found}, which is no machine's address, {_EXAMPLE}"
        return None
    if re.fullmatch(r"[^:]+:[0-9]*", host):
        return f"{found} with a port, {_EXAMPLE} alone: a port is given apart"
    if not host.isascii():
        return f"{found}, expected its form in ASCII (xn--...)"
    labels = host.split(".")
    named = len(host) <= _LONGEST_NAME and all(_LABEL.fullmatch(label) for label in labels)
    # Names end with a letter's label: 10.0.0 and 300.1.1.1 are mistyped addresses.
    return None if named and not labels[-1].isdigit() else f"{found}, {_EXAMPLE}"


def bind_fault(host: str) -> str | None:
    """Return why no server can listen on this host (found, expected); None if one can."""
    return None if without_brackets(host) in _EVERYWHERE else host_fault(host)


def address_fault(address: str) -> str | None:
    """Return why this is not HOST:PORT (found, expected); None if it is."""
    expected = "expected HOST:PORT such as fed.example.org:8443"
    host, colon, port = address.rpartition(":")
    bare_v6 = ":" in host and not host.startswith("[")
    if "://" in address or not colon or not host or bare_v6:
        return f"found {address[:60]!r}, {expected}"
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= _HIGHEST_PORT):
        return f"found the port {port[:20]!r}, expected 1 to {_HIGHEST_PORT}"
    fault = host_fault(host)
    return None if fault is None else f"host: {fault}"


def split_address(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of an address without a fault."""
    host, _, port = address.rpartition(":")
    return without_brackets(host), int(port)


def joined_address(host: str, port: int) -> str:
    """Return HOST:PORT; an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_brackets(host: str) -> str:
    """Return an IPv6 address without its brackets, anything else as it is."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Return whether the host is this machine itself."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"
