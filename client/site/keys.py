"""The site's node key, which is made here and never leaves the site."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.documents.bounded import OutOfBounds, read_bytes, why_unread
from common.durable import DISK, write_new_file
from common.errors import SiteFailed


def make_key(private: Path, name: str) -> Path:
    """Make an EC P-384 key pair: `private` (OpenSSH, mode 600) and `private`.pub.

    Returns:
        The file of the public key, which the coordinator enrolls; its comment is `name`.

    Raises:
        SiteFailed: one of the files exists. A key is never overwritten.
    """
    public = private.with_name(f"{private.name}.pub")
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise SiteFailed(f"{file}: found a key, which is never overwritten, expected none")
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_new_file(private, secret)
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    public.write_bytes(line + f" {name}\n".encode())
    DISK.sync(public)
    DISK.sync(public.parent)
    return public


def load_key(private: Path) -> ec.EllipticCurvePrivateKey:
    """Load the private key from a file that only its owner may read.

    Raises:
        SiteFailed: it is no key, a key of another kind, or others may read it.
    """
    try:
        mode, blob = private.stat().st_mode & 0o777, read_bytes(private)
    except (OSError, OutOfBounds) as error:
        raise SiteFailed(f"{private}: can't be read as a key ({why_unread(error)})") from None
    if mode & 0o077:
        raise SiteFailed(
            f"{private}: found the mode {mode:03o}, expected 600, so that nobody else reads "
            f"the key (chmod 600 {private})"
        )
    try:
        key = serialization.load_ssh_private_key(blob, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SiteFailed(f"{private}: found no OpenSSH key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SiteFailed(f"{private}: found a key of another kind, expected EC P-384")
    return key
