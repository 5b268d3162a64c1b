"""The registry of enrolled sites: each has a name, its modalities and a public key."""

import base64
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from common.documents.bounded import parse_json, read_bytes, read_text, why_unread
from common.durable import DISK, write_file
from common.errors import StateError
from common.plan_fields import Modality, Slug, Strict
from common.process.file_lock import file_lock

_KIND = "ecdsa-sha2-nistp384"


class EnrolledSite(Strict):
    """A site that is enrolled, or was before it left.

    Attributes:
        modalities: of its data, in no order.
        public_key: in OpenSSH's format, one line without a comment.
        node_id: Flower's id of the site; None until it is registered at the SuperLink.
        left: it has left the federation; its key is never accepted again.
    """

    name: Slug
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]
    public_key: str
    node_id: int | None = None
    left: bool = False

    @property
    def pem(self) -> bytes:
        """The public key in PEM, as Flower compares it.

        Raises:
            StateError: it was damaged.
        """
        try:
            key = serialization.load_ssh_public_key(self.public_key.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise StateError(
                f"sites.json, {self.name}: found no public key, expected the one that the site was "
                "enrolled with; restore the file from a backup"
            ) from None
        return key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class _Registry(Strict):
    sites: tuple[EnrolledSite, ...]


def read_sites(file: Path) -> tuple[EnrolledSite, ...]:
    """Return every site that was ever enrolled, in the order of enrolment.

    Raises:
        StateError: the file is damaged.
    """
    try:
        text = read_text(file)
        return _Registry.model_validate_json(_with_modalities(text), strict=True).sites
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise StateError(
            f"{file}: can't be read ({why_unread(error)}), expected a list of sites"
        ) from None


def _with_modalities(text: str) -> str:
    """Return the registry's JSON as it is now: before version 0.7 a site had one `modality`."""
    document: Any = parse_json(text)
    found = cast(dict[str, Any], document) if isinstance(document, dict) else {}
    sites: Any = found.get("sites")
    for site in cast(list[Any], sites if isinstance(sites, list) else []):
        if isinstance(site, dict) and "modality" in site:
            fields = cast(dict[str, Any], site)
            fields["modalities"] = [fields.pop("modality")]
    return json.dumps(document)


def enrolled(file: Path) -> dict[str, EnrolledSite]:
    """Return the sites that are enrolled now, by name."""
    return {site.name: site for site in read_sites(file) if not site.left}


def enroll(file: Path, site: EnrolledSite) -> bool:
    """Enroll a site, durably; return False if it was enrolled already.

    Raises:
        StateError: its name or its key is another site's, or its key belongs to a site that left.
    """
    with _lock(file):
        sites = read_sites(file)
        for other in sites:
            fault = _conflict(site, other)
            if fault is not None:
                raise StateError(f"{site.name}: {fault}")
            if other.name == site.name and not other.left:
                return False
        _write(file, (*sites, site))
    return True


def leave(file: Path, name: str) -> EnrolledSite:
    """Mark a site as having left the federation, durably; return it.

    Raises:
        StateError: there is no such site.
    """
    with _lock(file):
        sites = read_sites(file)
        gone = next((site for site in sites if site.name == name and not site.left), None)
        if gone is None:
            known = ", ".join(site.name for site in sites if not site.left) or "none"
            raise StateError(f"found no such site {name!r}, expected one of: {known}")
        left = gone.model_copy(update={"left": True})
        _write(file, tuple(left if site is gone else site for site in sites))
    return left


def set_node_id(file: Path, public_key: str, node_id: int) -> None:
    """Record Flower's id of the site with this key, durably."""
    with _lock(file):
        sites = read_sites(file)
        changed = tuple(
            site.model_copy(update={"node_id": node_id}) if site.public_key == public_key else site
            for site in sites
        )
        if changed != sites:
            _write(file, changed)


def read_public_key(file: Path) -> str:
    """Read the public key in a site's NAME.pub, as one line without its comment.

    Raises:
        StateError: it is no public key, or not of the kind that Flower uses (EC P-384).
    """
    try:
        text = read_bytes(file).decode("ascii")
    except (OSError, ValueError) as error:
        why = "not text" if isinstance(error, UnicodeDecodeError) else why_unread(error)
        raise StateError(f"{file}: can't be read as a public key ({why})") from None
    words = text.split()
    if "PRIVATE" in words:
        raise StateError(f"{file}: found a private key, expected the site's public key (NAME.pub)")
    try:
        key = serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        raise StateError(f"{file}: found no public key, expected one of {_KIND}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or words[0] != _KIND:
        raise StateError(f"{file}: found a key of {words[0]}, expected {_KIND}")
    if len(lines := text.strip().splitlines()) > 1:
        raise StateError(f"{file}: found {len(lines)} lines, expected one: the key of one site")
    # Normalized: equal keys give equal text.
    return f"{_KIND} {base64.b64encode(base64.b64decode(words[1])).decode()}"


def was_made_by_site_init(file: Path) -> bool:
    """Return whether `fedmslora site init` made the key, which asks for the coordinator's ca.crt.

    It writes the site's name behind the key (client/site/keys.py), and nobody's user and machine.
    """
    words = file.read_text(encoding="ascii").split()
    return len(words) == 3 and "@" not in words[2]


def _conflict(site: EnrolledSite, other: EnrolledSite) -> str | None:
    same_key = site.public_key == other.public_key
    if same_key and other.left:
        return (
            f"found a key that left the federation as {other.name!r}, expected a new one "
            "(Flower takes no key twice)"
        )
    if same_key and site.name != other.name:
        return f"found the key of the site {other.name!r}, expected a key of its own"
    if other.left or site.name != other.name:
        return None
    if not same_key:
        return "found another key under this name, expected the one it was enrolled with"
    if set(site.modalities) != set(other.modalities):
        found, expected = (", ".join(sorted(one.modalities)) for one in (site, other))
        return f"found the modalities {found}, expected {expected} as it was enrolled"
    return None


def _write(file: Path, sites: tuple[EnrolledSite, ...]) -> None:
    document: dict[str, Any] = {"sites": [site.model_dump(mode="json") for site in sites]}
    write_file(file, f"{json.dumps(document, indent=1)}\n".encode(), DISK)


def _lock(file: Path) -> AbstractContextManager[int]:
    """Lock the registry: `enroll` and the keeper both change it."""
    return file_lock(file.with_name(f"{file.name}.lock"))
