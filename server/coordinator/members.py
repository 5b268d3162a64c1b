"""The edge's guest list: which enrolled site has signed a request, known before its body is read.

Flower's SuperNode signs the time of a request with its site's key (flwr 1.42,
`NodeAuthHttpInterceptor`), and nothing else of the request. The SuperLink checks that after it has
read the body; here it is checked from the headers alone, and each signature serves once: what
somebody has seen of a request can't be sent again with another path or another body.
"""

import binascii
import time
from base64 import b64decode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from common.errors import StateError
from server.coordinator.registry import enrolled

#: flwr 1.42: the headers of a signed request, `supercore.constant` and `common.constant`.
KEY_HEADER: Final = b"flwr-public-key"
TIME_HEADER: Final = b"flwr-timestamp"
SIGNATURE_HEADER: Final = b"flwr-signature"
#: flwr 1.42, `authenticate_node`: how far a site's clock may be ahead, and how old a signature.
AHEAD_S: Final = 5.0
OLD_S: Final = 305.0
#: How often the registry's file is looked at.
_LOOK_S: Final = 0.5
#: Most signatures of one site that are remembered; of an older one no request is accepted. At
#: 512 KiB a request that is 1.7 Gbit/s for as long as a signature is valid.
_REMEMBERED: Final = 2**17


class Stranger(Exception):
    """The request is not signed by an enrolled site.

    Attributes:
        unknown_key: it names a key, of no enrolled site.
    """

    def __init__(self, *, unknown_key: bool = False) -> None:
        super().__init__()
        self.unknown_key = unknown_key


class Identify(Protocol):
    """Says which site has sent a request with these headers."""

    def __call__(self, headers: Iterable[tuple[bytes, bytes]], /) -> str:
        """Return the site's name.

        Raises:
            Stranger: it is no enrolled site's.
        """
        ...


@dataclass(slots=True)
class _Used:
    """The signatures of one site that have served, with the times that they sign.

    Attributes:
        forgotten: the latest time of which a signature may have been forgotten.
    """

    signed: dict[int, float] = field(default_factory=dict[int, float])
    forgotten: float = float("-inf")

    def use(self, signature: int, signed_at: float, now: float) -> bool:
        """Remember a signature; return False if it has served before, or may have."""
        if signature in self.signed or signed_at <= self.forgotten:
            return False
        self.signed[signature] = signed_at
        # In the order of arrival, so the first ones are about the oldest.
        while self.signed:
            oldest = next(iter(self.signed))
            expired = now - self.signed[oldest] > OLD_S + AHEAD_S
            if not expired and len(self.signed) <= _REMEMBERED:
                break
            at = self.signed.pop(oldest)
            if not expired:
                self.forgotten = max(self.forgotten, at)
        return True


class Members:
    """The enrolled sites' keys, read again whenever the registry has changed."""

    def __init__(self, registry: Path) -> None:
        self._registry = registry
        self._looked_at = float("-inf")
        self._modified: int | None = None
        self._sites: dict[bytes, tuple[str, ec.EllipticCurvePublicKey]] = {}
        self._used: dict[bytes, _Used] = {}

    def __call__(self, headers: Iterable[tuple[bytes, bytes]], /) -> str:
        """Return the name of the site that has signed these headers, for the first time.

        Raises:
            Stranger: no enrolled site has.
        """
        self._read_again()
        given = _single_values(headers)
        key = _decoded(given.get(KEY_HEADER))
        known = None if key is None else self._sites.get(key)
        if key is None or known is None:
            raise Stranger(unknown_key=key is not None)
        signature, signed = _decoded(given.get(SIGNATURE_HEADER)), given.get(TIME_HEADER)
        if signature is None or signed is None or not self._accepts(key, signature, signed):
            raise Stranger
        return known[0]

    def _accepts(self, key: bytes, signature: bytes, signed: bytes) -> bool:
        now = time.time()
        try:
            signed_at = datetime.fromisoformat(signed.decode("ascii"))
            if signed_at.tzinfo is None or not -AHEAD_S < now - signed_at.timestamp() < OLD_S:
                return False
            # Of each signature ECDSA accepts two forms, (r, s) and (r, -s): r names both.
            r, _ = decode_dss_signature(signature)
            self._sites[key][1].verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except (ValueError, OverflowError, InvalidSignature):
            return False
        return self._used.setdefault(key, _Used()).use(hash(r), signed_at.timestamp(), now)

    def _read_again(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            modified = self._registry.stat().st_mtime_ns
        except OSError:
            modified = 0
        if modified == self._modified:
            return
        # A registry that can't be read leaves the sites as they were.
        with suppress(StateError):
            sites = enrolled(self._registry).values()
            self._sites = {site.pem: (site.name, _public_key(site.pem)) for site in sites}
            self._used = {key: used for key, used in self._used.items() if key in self._sites}
            self._modified = modified


def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(pem)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # the registry enrolls no other kind
    return key


def _single_values(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Return the headers of a signature; one that is there twice counts as missing.

    The SuperLink, which checks them again, might read the other one.
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if (lower := name.lower()) in (KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER):
            found.setdefault(lower, []).append(value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _decoded(value: bytes | None) -> bytes | None:
    try:
        return None if value is None else b64decode(value, validate=True)
    except binascii.Error:
        return None
