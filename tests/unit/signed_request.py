"""Requests as an enrolled site's SuperNode signs them."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.plan_fields import Modality
from server.coordinator.registry import EnrolledSite, enroll

Headers = list[tuple[bytes, bytes]]


def new_member(registry: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """Enroll a site with a new key, and return the key."""
    key = ec.generate_private_key(ec.SECP384R1())
    formats = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public = key.public_key().public_bytes(*formats).decode()
    enroll(registry, EnrolledSite(name=name, modalities=(Modality.CT,), public_key=public))
    return key


def signed(key: ec.EllipticCurvePrivateKey, ahead_s: float = 0.0) -> Headers:
    """Return the headers of a request that is signed by a clock that is ahead by so much."""
    now = (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat().encode()
    return named(key.public_key(), now, key.sign(now, ec.ECDSA(hashes.SHA256())))


def named(key: ec.EllipticCurvePublicKey, at: bytes, signature: bytes) -> Headers:
    """Return the headers that name this key, time and signature."""
    formats = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return [
        (b"flwr-public-key", b64encode(key.public_bytes(*formats))),
        (b"flwr-timestamp", at),
        (b"flwr-signature", b64encode(signature)),
    ]
