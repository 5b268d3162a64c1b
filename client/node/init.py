"""Make a new site's folder: its key pair, the coordinator's certificate, and its site file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from pydantic import TypeAdapter, ValidationError

from client.site.config import load_site
from client.site.keys import make_key
from common.documents.bounded import OutOfBounds, read_bytes, why_unread
from common.documents.yaml_text import yaml_name
from common.durable import DISK, write_file
from common.errors import SiteFailed
from common.network.address import address_fault
from common.plan_fields import Modality, Slug
from common.printable import has_broken_letter

SITE_FILE: Final = "site.yaml"
#: The folders of a new site with their modes. Those in the store are made here, so that they belong
#: to the site's user: what containers mount, or lay something over, their engine would make as
#: root's.
_FOLDERS: Final = (
    ("keys", 0o700),
    ("approved", 0o755),
    *((name, 0o700) for name in ("store", "store/features", "store/answers")),
    *((name, 0o700) for name in ("store/flower", "store/secrets")),
)

#: The fields and comments of sites/example.yaml.
_SITE_FILE: Final = """\
# This site's own file. It stays here; others only learn `name`, a pseudonym.
# Paths are relative to this file.
name: {quoted_name}
# One folder for each task, in the paper's layout: train.json, test.jsonl and the images.
data: {data}
# The frozen model; its digest must be the one that the plan pins.
base_model: {base_model}
# Releases, jobs, updates, logs: put it on a volume that survives.
store: store
# cpu, cuda, or auto: a GPU where there is one.
device: auto
# The last bits of a result depend on it, so leave it as it is once a federation has begun.
threads: 2
# Processes that train together, one for each GPU. More than one use DeepSpeed ZeRO, which
# partitions the training's state: 1 the optimizer, 2 also the gradients, 3 also the weights.
workers: 1
zero: 2
# Time between checkpoints: about the most training that a crash loses.
checkpoint_seconds: 300
# Most GiB of store/features: the vision tower's features of images, so that later epochs need not
# compute them again. They are patient data as the images are, and stay here. 0 caches none.
feature_cache_gib: 8
# Whether each task's test questions stay in store/answers with the last answers, for the page of
# `fedmslora site answers`. They are patient data, too.
keep_answers: false
# A folder of public reference pairs, for a plan whose method trains on them, too.
# reference: ../reference

# What this site does for a coordinator. An order beyond it is refused, whoever sends it.
policy:
  # Some of {modalities}.
  modalities: [{allowed}]
  # approved: only plans that this site has approved. any: every plan of the coordinator.
  plans: approved
  # Most rounds of a stage; null sets no limit.
  rounds: 50
  # Fewest training examples of a task: one that has fewer is not trained on.
  examples: 20
  # Fewest different images of which means of features, or Fisher information, may leave.
  images: 50
  # Fewest test questions of a figure that leaves, also of each kind of question and each class.
  test_questions: 20
  # Most orders by which a task is scored at one state of the bank.
  evaluations: 2
  # Whether it also trains a stage alone where a plan asks for that; only its scores leave.
  train_alone: false

# How this site reaches its coordinator.
federation:
  address: {address}
  # The certificate of the authority that signed the coordinator's; from the coordinator.
  ca: ca.crt
  # The private key never leaves. Only {name}.pub goes to the coordinator, to enroll.
  key: keys/{name}
  # One file for each approved plan, named by its digest: `fedmslora site approve` writes it.
  approved: approved
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSite:
    """The options of `fedmslora site init`.

    Attributes:
        address: the coordinator's, as `host:port`.
        ca: file with the certificate of the coordinator's authority.
        data: folder of the tasks, as the site file will have it.
        base_model: folder of the frozen model, likewise.
    """

    name: str
    modalities: tuple[Modality, ...]
    address: str
    ca: Path
    data: Path
    base_model: Path


def make_site(new: NewSite, folder: Path) -> Path:
    """Make the new site in `folder`; return its site file.

    Raises:
        SiteFailed: an invalid name, address or certificate, or a site that exists already, which
            is not changed.
    """
    file = folder / SITE_FILE
    if file.exists():
        raise SiteFailed(f"{file}: found a site, which is never overwritten, expected none")
    _check(new, folder)
    certificate = _authority(new.ca)
    for inner, mode in _FOLDERS:
        (folder / inner).mkdir(parents=True, exist_ok=True, mode=mode)
    make_key(folder / "keys" / new.name, new.name)
    write_file(folder / "ca.crt", certificate, DISK)
    write_file(file, _site_file(new).encode(), DISK)
    load_site(file)
    return file


def read_modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    """Return the modalities of these names.

    Raises:
        SiteFailed: there is no modality of that name.
    """
    known = ", ".join(modality.value for modality in Modality)
    for name in names:
        if name not in list(Modality):
            raise SiteFailed(f"--modality: found {name!r}, expected one of {known}")
    return tuple(dict.fromkeys(Modality(name) for name in names))


def _check(new: NewSite, folder: Path) -> None:
    if not _is_valid(TypeAdapter(Slug), new.name):
        raise SiteFailed(
            f"--name: found {new.name!r}, expected a pseudonym of a-z, 0-9, - and _, "
            "at most 40 long"
        )
    if (fault := address_fault(new.address)) is not None:
        raise SiteFailed(f"--coordinator: {fault}")
    paths = {"--folder": folder.absolute(), "--data": new.data, "--base-model": new.base_model}
    for option, path in paths.items():
        if has_broken_letter(str(path)):
            raise SiteFailed(f"{option}: found {str(path)!r}, expected a name in UTF-8")


def _is_valid(field: TypeAdapter[str], value: str) -> bool:
    try:
        field.validate_python(value)
    except ValidationError:
        return False
    return True


def _authority(file: Path) -> bytes:
    """Read the certificate file, and check that it is an authority's, and valid now."""
    try:
        blob = read_bytes(file)
        certificate = x509.load_pem_x509_certificate(blob)
    except (OSError, OutOfBounds) as error:
        why = why_unread(error)
        raise SiteFailed(f"{file}: can't be read as a certificate ({why})") from None
    except ValueError:
        raise SiteFailed(
            f"{file}: found no certificate (PEM), expected the coordinator's ca.crt"
        ) from None
    if certificate.subject != certificate.issuer and not _is_authority(certificate):
        raise SiteFailed(
            f"{file}: found the certificate of a server, expected its authority's: the "
            "coordinator's ca.crt"
        )
    begin, expiry = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin > datetime.now(UTC):
        raise SiteFailed(
            f"{file}: found a certificate that is not valid before {begin:%Y-%m-%d %H:%M} UTC, "
            "expected a valid one, and this machine's clock to be right"
        )
    if expiry < datetime.now(UTC):
        raise SiteFailed(
            f"{file}: found a certificate that expired on {expiry:%Y-%m-%d}, expected a valid one"
        )
    return blob


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _site_file(new: NewSite) -> str:
    return _SITE_FILE.format(
        name=new.name,
        quoted_name=yaml_name(new.name),
        # A JSON string is a YAML string, whatever characters a path has.
        data=json.dumps(str(new.data), ensure_ascii=False),
        base_model=json.dumps(str(new.base_model), ensure_ascii=False),
        modalities=", ".join(modality.value for modality in Modality),
        allowed=", ".join(modality.value for modality in new.modalities),
        address=json.dumps(new.address),
    )
