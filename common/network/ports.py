"""Check that ports are free before programs are started that need them."""

import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import StateError
from common.network.address import joined_address

#: What a supervisor that was killed had started may have its port for so long.
PATIENCE_S = 10.0
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class NeededPort:
    """A port that a program of this machine is to listen at.

    Attributes:
        setting: where it is set, in words for the user.
    """

    host: str
    port: int
    setting: str


def check_free(ports: Sequence[NeededPort]) -> None:
    """Check that programs can listen at these ports, which may become free within PATIENCE_S.

    Raises:
        StateError: at one of them they can't.
    """
    deadline = time.monotonic() + PATIENCE_S
    for needed in ports:
        while (error := _why_not(needed)) is not None:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise StateError(_sentence(needed, error))
            time.sleep(_POLL_S)


def _why_not(needed: NeededPort) -> OSError | None:
    try:
        known = {one[0] for one in socket.getaddrinfo(needed.host, needed.port)}
        # A name may have IPv6 alone.
        family = socket.AF_INET if socket.AF_INET in known else socket.AF_INET6
        socket.create_server((needed.host, needed.port), family=family).close()
    except OSError as error:
        return error
    return None


def _sentence(needed: NeededPort, error: OSError) -> str:
    where = joined_address(needed.host, needed.port)
    match error.errno:
        case errno.EADDRINUSE:
            why = "found another program at it, expected a free port: stop that one, or change"
        case errno.EACCES:
            why = "may not be used by this user, expected a port from 1024 on: change"
        case _:
            reason = error.strerror or type(error).__name__
            why = f"can't be listened at ({reason}), expected an address of this machine: change"
    return f"{where}: {why} {needed.setting}"
