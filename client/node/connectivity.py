"""Whether the coordinator can be reached: its address, its certificate, and the two clocks.

Flower refuses what a site signs more than 5 s ahead of the coordinator's clock, or 305 s
behind it. An HTTP answer tells its maker's time in whole seconds (RFC 9110, 6.6.1), and a
server may tell the last second's: what is known is that its clock was then between the Date
and two seconds later.
"""

import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx

from client.site.config import Federation
from client.site.finding import Finding, Level, ok, problem

_TIMEOUT_S: Final = 10.0
#: A Date stands for a moment of the next two seconds, on average for this much later.
_DATE_S: Final = 1.0
#: From so much ahead a warning, and from so much a problem: one second before the limits, since
#: the Date leaves so much open.
_WARN_S, _AHEAD_S, _BEHIND_S = 2.0, 4.0, 300.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """The site's clock before and after a question, and what the coordinator's showed between.

    All in seconds since 1970.
    """

    asked: float
    coordinator: float
    answered: float

    @property
    def ahead_s(self) -> float:
        """How far the site's clock is ahead, to one second and half the way there and back."""
        return (self.asked + self.answered) / 2 - (self.coordinator + _DATE_S)


def reach(federation: Federation) -> list[Finding]:
    """The findings on address and certificate, and, where it answers, on the clocks."""
    try:
        context = trusting(federation.ca)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        return [
            problem("certificate", f"{federation.ca}: can't be read as a certificate ({reason})")
        ]
    try:
        clocks = _ask(federation.address, context)
    except httpx.TransportError as error:
        return [_unreached(federation, error)]
    trusted = ok(
        "certificate", f"{federation.address} answers, with a certificate of {federation.ca}"
    )
    return [trusted, clock_finding(clocks)]


def trusting(ca: Path) -> ssl.SSLContext:
    """TLS that trusts the certificates in the file `ca` and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca)
    return context


def clock_finding(clocks: Clocks | None) -> Finding:
    """What the difference of the clocks means for the site."""
    if clocks is None:
        return Finding("clock", Level.WARNING, "the coordinator's answer tells no time")
    ahead = clocks.ahead_s
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if ahead >= _AHEAD_S or ahead <= -_BEHIND_S:
        return problem(
            "clock",
            f"found this clock about {said}, expected less than 5 s ahead and 305 s behind: "
            "start the time service (NTP)",
        )
    if ahead >= _WARN_S or ahead <= -_AHEAD_S:
        return Finding("clock", Level.WARNING, f"this clock is about {said}: look after NTP")
    return ok("clock", "agrees with the coordinator's to about two seconds")


def _ask(address: str, context: ssl.SSLContext) -> Clocks | None:
    """The clocks, from an answer to a question that the coordinator refuses."""
    with httpx.Client(verify=context, timeout=_TIMEOUT_S) as client:
        # The first one makes the connection, whose time would count as the way.
        client.get(f"https://{address}/")
        asked = time.time()
        answer = client.get(f"https://{address}/")
        answered = time.time()
    try:
        date = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    return Clocks(asked=asked, coordinator=date, answered=answered)


def _unreached(federation: Federation, error: httpx.TransportError) -> Finding:
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return problem("certificate", _distrust(federation, cause.verify_code))
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        said = f"{federation.address}: found no TLS there ({cause.reason}), expected a coordinator"
        return problem("address", said)
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    return Finding(
        "address",
        Level.AWAY,
        f"{federation.address} does not answer ({reason}): is the coordinator running, is the "
        "address right, does the firewall let this one port out?",
    )


def _cause(error: BaseException) -> BaseException:
    """The first exception of the chain that has a cause in the network or in TLS."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    return error


def _distrust(federation: Federation, code: int) -> str:
    address = federation.address
    match code:  # OpenSSL's, of x509_vfy.h
        case 10:
            return f"{address}: found an expired certificate: the coordinator has to renew it"
        case 9:
            return (
                f"{address}: found a certificate that is not valid yet: is this machine's clock "
                "behind?"
            )
        case 62 | 64:
            return (
                f"{address}: found a certificate for another host name: use the name that the "
                "coordinator's certificate has (its `coordinator init --host`)"
            )
        case _:
            return (
                f"{address}: found a certificate that {federation.ca} has not signed: ask the "
                "coordinator for its ca.crt"
            )
