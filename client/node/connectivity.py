"""Checks of the way to the coordinator: its address, its certificate, and the two clocks.

Flower refuses what a site signs more than 5 s ahead of the coordinator's clock, or 305 s
behind it. An HTTP response has its server's time in whole seconds (RFC 9110, 6.6.1), and a
server may send a Date that is up to a second old: its clock was between the Date and two
seconds later.
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
from common.network.proxies import Proxy, proxy_to

_TIMEOUT_S: Final = 10.0
#: How much later than the Date the server's clock is on average.
_DATE_S: Final = 1.0
#: Seconds ahead that give a warning, seconds ahead and behind that are a problem: within Flower's
#: limits by more than the Date's uncertainty of one second.
_WARN_S, _AHEAD_S, _BEHIND_S = 2.0, 4.0, 300.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """The site's clock before and after a request, and the Date of the coordinator's response.

    All in seconds since 1970.
    """

    asked: float
    coordinator: float
    answered: float

    @property
    def ahead_s(self) -> float:
        """How far the site's clock is ahead, within one second and half the round trip."""
        return (self.asked + self.answered) / 2 - (self.coordinator + _DATE_S)


def check_proxy(federation: Federation) -> Finding:
    """Return which proxy the environment puts between this site and the coordinator, if any.

    Raises:
        SiteFailed: the proxy's address can't be used.
    """
    proxy = proxy_to(federation.address)
    if proxy is None:
        return ok("proxy", "none: the environment names none to the coordinator")
    return ok("proxy", f"{proxy} leads to the coordinator; inner connections never use it")


def check_connection(federation: Federation) -> list[Finding]:
    """Check the address and the certificate and, if the coordinator answers, the clocks.

    Raises:
        SiteFailed: the environment names a proxy that can't be used.
    """
    proxy = proxy_to(federation.address)
    try:
        context = tls_context(federation.ca)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        return [
            problem("certificate", f"{federation.ca}: can't be read as a certificate ({reason})")
        ]
    try:
        clocks = _ask(federation.address, context, proxy)
    except httpx.TransportError as error:
        return [_transport_finding(federation, error, proxy)]
    unopened = "" if proxy is None else ": the proxy does not open its TLS"
    text = f"{federation.address} answers, with a certificate of {federation.ca}{unopened}"
    trusted = ok("certificate", text)
    return [trusted, clock_finding(clocks)]


def tls_context(ca: Path) -> ssl.SSLContext:
    """Return a TLS context that trusts the certificates in the file `ca` and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca)
    return context


def clock_finding(clocks: Clocks | None) -> Finding:
    """Return the finding on the difference of the clocks; None is a response without a Date."""
    if clocks is None:
        return Finding("clock", Level.WARNING, "the coordinator's answer has no Date")
    ahead = clocks.ahead_s
    difference = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if ahead >= _AHEAD_S or ahead <= -_BEHIND_S:
        return problem(
            "clock",
            f"found this clock about {difference}, expected less than 5 s ahead and 305 s behind: "
            "start the time service (NTP)",
        )
    if ahead >= _WARN_S or ahead <= -_AHEAD_S:
        return Finding("clock", Level.WARNING, f"this clock is about {difference}: check NTP")
    return ok("clock", "agrees with the coordinator's to about two seconds")


def _ask(address: str, context: ssl.SSLContext, proxy: Proxy | None) -> Clocks | None:
    """Return the clocks around a request, which the coordinator may refuse."""
    url = None if proxy is None else proxy.url
    with httpx.Client(verify=context, timeout=_TIMEOUT_S, proxy=url, trust_env=False) as client:
        # The first request opens the connection, whose time would count as round trip.
        client.get(f"https://{address}/")
        asked = time.time()
        answer = client.get(f"https://{address}/")
        answered = time.time()
    try:
        date = parsedate_to_datetime(answer.headers["date"]).timestamp()
    # OverflowError: of a year, or a distance from UTC, of many digits.
    except (KeyError, ValueError, OverflowError):
        return None
    return Clocks(asked=asked, coordinator=date, answered=answered)


def _transport_finding(
    federation: Federation, error: httpx.TransportError, proxy: Proxy | None
) -> Finding:
    if proxy is not None and isinstance(error, httpx.ProxyError):
        return _refused_by_proxy(federation.address, proxy, str(error))
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return problem("certificate", _why_untrusted(federation, cause.verify_code, proxy))
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        text = f"{federation.address}: found no TLS ({cause.reason}), expected a coordinator"
        return problem("address", text)
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    if proxy is not None:
        text = f"{federation.address} does not answer through the proxy {proxy} ({reason}): does "
        text += "the proxy run, is the coordinator running, or does NO_PROXY have to name it?"
        return Finding("address", Level.AWAY, text)
    return Finding(
        "address",
        Level.AWAY,
        f"{federation.address} does not answer ({reason}): is the coordinator running, is the "
        "address right, does the firewall let this one port out?",
    )


def _cause(error: BaseException) -> BaseException:
    """Return the first exception of the chain that comes from the network or from TLS."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    return error


def _refused_by_proxy(address: str, proxy: Proxy, answer: str) -> Finding:
    """Return the finding on a proxy that answered CONNECT with this status and reason."""
    status = answer[:3] if answer[:3].isdigit() else ""
    text = f"{proxy} refuses to connect to {address} ({answer[:60]}): "
    if status.startswith("5"):
        return Finding("proxy", Level.AWAY, f"{text}is the coordinator running?")
    remedy = "it wants a name and a password" if status == "407" else "ask who runs it to allow it"
    return problem("proxy", f"{text}{remedy}")


def _why_untrusted(federation: Federation, code: int, proxy: Proxy | None) -> str:
    address = federation.address
    match code:  # of OpenSSL's x509_vfy.h
        case 10:
            return f"{address}: found an expired certificate: the coordinator must renew it"
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
        case _ if proxy is not None:
            return (
                f"{address}: found a certificate that {federation.ca} has not signed: the proxy "
                f"{proxy} opens TLS; have it leave this address alone, or name it in NO_PROXY"
            )
        case _:
            return (
                f"{address}: found a certificate that {federation.ca} has not signed: ask the "
                "coordinator for its ca.crt"
            )
