"""Ed25519 keys, which sign releases (RFC 8032)."""

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.durable import DISK, WRITING, write_new_file
from common.errors import BankError

#: Bytes of a private key (the seed that RFC 8032 starts from).
SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; its signatures are deterministic."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise BankError(
                f"a signing key has {len(self.seed)} bytes of seed, expected {SEED_BYTES}"
            )

    @classmethod
    def generate(cls) -> "SigningKey":
        """Make a new key from the operating system's random numbers."""
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """Make the key of these 32 bytes, which must be secret."""
        return cls(seed)

    @classmethod
    def load(cls, file: Path) -> "SigningKey":
        """Read what `save` wrote (PKCS 8, PEM).

        Raises:
            BankError: the file can't be read, can be read by others, or is no Ed25519 key.
        """
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            pem = file.read_bytes()
        except OSError as error:
            raise BankError(f"{file}: can't be read as a signing key ({error.strerror})") from None
        if mode & 0o077:
            raise BankError(
                f"{file}: found a signing key with mode {mode:04o}, which others may read or "
                "change, expected 0600"
            )
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise BankError(f"{file}: found no private key in PEM, expected Ed25519") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise BankError(f"{file}: found another kind of private key, expected Ed25519")
        return cls(key.private_bytes_raw())

    def save(self, file: Path) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            BankError: the file exists, or can't be written.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # Written to a temporary name, then linked: a crash leaves no partial key.
        temporary = file.with_name(f"{WRITING}{file.name}.{secrets.token_hex(4)}")
        try:
            write_new_file(temporary, pem)
            os.link(temporary, file)
            DISK.sync(file.parent)
        except OSError as error:
            raise BankError(f"{file}: can't save a signing key ({error.strerror})") from None
        finally:
            with suppress(OSError):
                temporary.unlink()

    @property
    def public_hex(self) -> str:
        """The public key, as 64 hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """Sign a message; return 128 hexadecimal digits."""
        return self._private.sign(message).hex()

    @property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def verify_signature(public_hex: str, signature_hex: str, message: bytes) -> bool:
    """Return whether `public_hex` signed `message`; False for text that is no key or signature."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        public.verify(bytes.fromhex(signature_hex), message)
    except (InvalidSignature, ValueError):
        return False
    return True
