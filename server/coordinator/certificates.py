"""The coordinator's own certificate authority and its server certificate.

The authority is private: a site trusts this one certificate and no other, so nobody who
deceives a public authority can pose as the coordinator.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.durable import DISK, write_new_file, writing
from common.errors import StateError

CA_DAYS = 3650
#: Apple's and some other TLS stacks refuse a server's certificate that lasts longer.
SERVER_DAYS = 825
#: A site's clock may be behind: certificates are valid from a little before now.
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: its certificate and the key that signs with it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority() -> Authority:
    """Make a new authority (EC P-256) that is valid for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("fedmslora coordinator CA")
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of the certificate in `file`, formatted as openssl prints it."""
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def make_server(
    authority: Authority, names: Sequence[str]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a server certificate for these host names and addresses, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    certificate = (
        _builder(_name("fedmslora coordinator"), issuer, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return certificate, key


def write_certificates(folder: Path, names: Sequence[str]) -> None:
    """Make the new `folder` with ca.crt, ca.key, server.crt and server.key."""
    folder.mkdir(mode=0o700)
    authority = make_authority()
    write_new_file(folder / "ca.key", _key_pem(authority.key))
    write_new_file(folder / "ca.crt", authority.certificate.public_bytes(Encoding.PEM), 0o644)
    renew_server(folder, names)


def renew_server(folder: Path, names: Sequence[str]) -> None:
    """Replace the server certificate by one of the same authority; sites need no change.

    Raises:
        StateError: the authority can't be read.
        OSError: the disk is full or fails; then the certificate and its key are as before.
    """
    certificate, key = make_server(load_authority(folder), names)
    files = {
        folder / "server.key": (_key_pem(key), 0o600),
        folder / "server.crt": (certificate.public_bytes(Encoding.PEM), 0o644),
    }
    for file, (blob, mode) in files.items():
        writing(file).unlink(missing_ok=True)
        write_new_file(writing(file), blob, mode)
    for file in files:
        DISK.rename(writing(file), file)
    DISK.sync(folder)


def load_authority(folder: Path) -> Authority:
    """Load the authority that `write_certificates` wrote.

    Raises:
        StateError: a file can't be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise StateError(f"{folder}: can't read the certificate authority ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError(f"{folder / 'ca.key'}: found another kind of key, expected EC")
    return Authority(certificate, key)


def days_left(certificate: Path) -> int:
    """Return for how many whole days the certificate is still valid; below 0 it has expired.

    Raises:
        StateError: a file can't be read.
    """
    until = x509.load_pem_x509_certificate(read_certificate(certificate)).not_valid_after_utc
    return (until - datetime.now(UTC)).days


def read_certificate(file: Path) -> bytes:
    """Return the PEM of a certificate.

    Raises:
        StateError: the file can't be read, or holds no certificate.
    """
    try:
        pem = file.read_bytes()
        x509.load_pem_x509_certificate(pem)
        # Python's ssl takes nothing else, beside the certificate neither.
        pem.decode("ascii")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "found no whole certificate"
        raise StateError(
            f"{file}: can't be read ({why}), expected the certificate that "
            "`fedmslora coordinator init` wrote; restore it from a backup"
        ) from None
    return pem


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
