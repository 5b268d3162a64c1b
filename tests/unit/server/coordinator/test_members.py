"""Who may have a body read at the edge: an enrolled site, once for each signature."""

import os
import time
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from server.coordinator import members
from server.coordinator.members import Members, Stranger
from server.coordinator.registry import leave
from tests.unit.signed_request import Headers, named, new_member, signed

#: The order of the curve P-384 (FIPS 186-4, D.1.2.4).
P_384 = int(
    "39402006196394479212279040100143613805079739270465446667946905279627659399113263569398956308152"
    "294913554433653942643"
)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "sites.json"


@pytest.fixture
def north(registry: Path) -> ec.EllipticCurvePrivateKey:
    return new_member(registry, "north")


def refused(identify: Members, headers: Headers) -> bool:
    """Whether the headers are a stranger's; then whether they name a key that is not enrolled."""
    with pytest.raises(Stranger) as stranger:
        identify(headers)
    return stranger.value.unknown_key


def test_an_enrolled_site_is_known_by_its_signature(
    registry: Path, north: ec.EllipticCurvePrivateKey
):
    south = new_member(registry, "south")
    identify = Members(registry)
    assert identify([(b"host", b"x"), *signed(north)]) == "north"
    assert identify([(name.title(), value) for name, value in signed(south)]) == "south"
    # Flower's own bounds: 5 s ahead, 305 s behind.
    assert identify(signed(north, 4.0)) == identify(signed(north, -304.0)) == "north"


def test_a_signature_serves_once_whatever_it_is_sent_with(
    registry: Path, north: ec.EllipticCurvePrivateKey
):
    identify, headers = Members(registry), signed(north)
    assert identify(headers) == "north"
    assert not refused(identify, headers)
    # Its other form is valid, too: (r, -s) in place of (r, s).
    key, at, (name, value) = headers
    r, s = decode_dss_signature(b64decode(value))
    other = b64encode(encode_dss_signature(r, P_384 - s))
    assert not refused(identify, [key, at, (name, other)])
    assert identify(signed(north)) == "north"


def test_two_requests_of_one_moment_are_both_accepted(
    registry: Path, north: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
):
    class Stopped(members.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Stopped":  # pyright: ignore[reportIncompatibleMethodOverride]
            return cls.fromtimestamp(1.9e9, tz)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("tests.unit.signed_request.datetime", Stopped)
    monkeypatch.setattr(time, "time", lambda: 1.9e9)
    identify = Members(registry)
    assert identify(signed(north)) == identify(signed(north)) == "north"


def test_what_is_not_signed_by_an_enrolled_site_is_a_strangers(
    registry: Path, north: ec.EllipticCurvePrivateKey
):
    identify, other = Members(registry), ec.generate_private_key(ec.SECP384R1())
    key, at, signature = signed(north)
    _, _, others = signed(other)
    for headers in (
        [],
        [key],
        [key, at],
        [key, at, others],
        [key, (b"flwr-timestamp", b"2026-01-01T00:00:00+00:00"), signature],
        [key, at, (b"flwr-signature", b"AAAA")],
        [key, at, (b"flwr-signature", b"\xff")],
        [(b"flwr-public-key", b"*"), at, signature],
        # The SuperLink might read the second one.
        [key, at, signature, signature],
        [key, key, at, signature],
        signed(north, 6.0),
        signed(north, -306.0),
        named(north.public_key(), b"yesterday", b"x"),
        named(north.public_key(), b"9999999-01-01", b"x"),
        named(north.public_key(), b"2026-01-01T00:00:00", b"x"),
    ):
        assert not refused(identify, headers)
    assert refused(identify, signed(other))
    assert identify([key, at, signature]) == "north"


def test_who_joins_or_leaves_is_known_at_once(
    registry: Path, north: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(members, "_LOOK_S", 0.0)
    identify = Members(registry)
    assert identify(signed(north)) == "north"
    east = new_member(registry, "east")
    assert identify(signed(east)) == "east"
    leave(registry, "north")
    assert refused(identify, signed(north))
    # A registry that can't be read for a moment changes nothing.
    registry.write_text("{")
    os.utime(registry, ns=(1, 1))
    assert identify(signed(east)) == "east"


def test_what_is_remembered_is_bounded_and_what_was_forgotten_is_refused(
    registry: Path, north: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(members, "_REMEMBERED", 3)
    identify, first = Members(registry), signed(north)
    identify(first)
    for _ in range(5):
        identify(signed(north))
    assert not refused(identify, first)
    (used,) = identify._used.values()  # pyright: ignore[reportPrivateUsage]
    assert len(used.signed) == 3


def test_a_signature_is_remembered_for_as_long_as_it_is_valid(
    registry: Path, north: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
):
    identify, ahead, began = Members(registry), signed(north, 4.0), time.time()
    assert identify(ahead) == "north"
    # It is valid for 305 s from the time that it names: 309 s from now.
    monkeypatch.setattr(time, "time", lambda: began + 308)
    assert identify(signed(north, 308)) == "north"
    assert not refused(identify, ahead)
