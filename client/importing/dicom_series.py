"""DICOM files by series: what their headers say, and single frames taken out of them."""
# pyright: reportUnknownVariableType=false
# pydicom.dcmread takes a PathLike of nothing in particular.

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.data.pictures.dicom_pixels import Layout, check_length, read_layout
from client.data.pictures.grey_levels import MAX_PIXELS
from client.importing.settings import Take
from common.errors import DataError
from common.printable import counted

if TYPE_CHECKING:
    from pydicom import Dataset

#: What a file of one frame keeps: all that says how its pixels are shown, and no person.
_KEPT: Final = (
    "SOPClassUID", "Modality", "BodyPartExamined", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "Rows", "Columns", "PixelSpacing", "PixelAspectRatio", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence", "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
)  # fmt: skip
#: Functional groups that say how a frame is shown.
_KEPT_GROUPS: Final = ("FrameVOILUTSequence", "PixelValueTransformationSequence")
#: Bytes that an encapsulated frame has at least: the tag and length of its item (PS3.5 A.4).
_LEAST_FRAME: Final = 8
_READ: Final = [
    "SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID", "IssuerOfPatientID",
    "Modality", "NumberOfFrames", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DicomFacts:
    """What an import needs of a DICOM header; empty texts where it says nothing.

    Attributes:
        height: of a slice, in mm along the normal of its plane; None where it has no position.
    """

    series: str
    study: str
    accession: str
    patient: str
    modality: str
    frames: int
    number: int
    height: float | None


@lru_cache(maxsize=1 << 17)
def facts(file: Path) -> DicomFacts:
    """Return what a file's header says; nothing at all where it can't be read."""
    from pydicom import dcmread

    logging.getLogger("pydicom").propagate = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=_READ, force=True)
            return DicomFacts(
                series=_text(header, "SeriesInstanceUID"),
                study=_text(header, "StudyInstanceUID"),
                accession=_text(header, "AccessionNumber"),
                patient="/".join(
                    filter(None, (_text(header, "IssuerOfPatientID"), _text(header, "PatientID")))
                ),
                modality=_text(header, "Modality").upper(),
                frames=_whole(header, "NumberOfFrames", 1),
                number=_whole(header, "InstanceNumber", 0),
                height=_height(header),
            )
        # pydicom can raise nearly anything on damaged bytes; decoding names the mistake later.
        except Exception:
            return DicomFacts("", "", "", "", "", 1, 0, None)


def identifiers(file: Path) -> list[str]:
    """Return by what a table may name a file's series: UIDs and the accession number."""
    found = facts(file)
    return [name for name in (found.series, found.study, found.accession) if name]


def stacks(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Return the files by what they show: the slices of a stack together, others alone.

    A stack is a series whose files have different positions (ImagePositionPatient), in the order
    of their height, lowest first. A series of views, as of radiographs, is none.
    """
    series: dict[str, list[Path]] = {}
    found: list[tuple[Path, ...]] = []
    for file in files:
        own = facts(file)
        if own.series and own.height is not None:
            series.setdefault(own.series, []).append(file)
        else:
            found.append((file,))
    for members in series.values():
        heights = {facts(file).height for file in members}
        if len(members) > 1 and len(heights) > 1:
            found.append(tuple(sorted(members, key=_order)))
        else:
            found += [(file,) for file in members]
    return found


def single_frames(file: Path, take: Take) -> Iterator[bytes]:
    """Yield the chosen frames as DICOM files that keep what shows them, and nothing of the patient.

    Raises:
        DataError: the frames can't be read, are not as many as the header says, or are a slide's
            tiles.
    """
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = dcmread(file)
            # A tile of a slide would be a picture like any other once it is alone.
            layout = read_layout(file, whole, MAX_PIXELS)
            _check_frames(file, whole, layout)
            if whole.file_meta.TransferSyntaxUID.is_compressed:
                whole.decompress(generate_instance_uid=False)
                layout = read_layout(file, whole, MAX_PIXELS)
            for frame in take.places(layout.frames):
                yield _single_frame(whole, layout, frame)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{file}: ")) from None
    # As when decoding: nearly any exception.
    except Exception as error:
        raise DataError(
            f"found frames that can't be read ({type(error).__name__}), expected a whole file"
        ) from None


def _check_frames(file: Path, whole: "Dataset", layout: Layout) -> None:
    """Check that there are as many frames as the header says, and that they fit into memory."""
    length = len(whole.PixelData)
    if not whole.file_meta.TransferSyntaxUID.is_encapsulated:
        check_length(file, length, layout)
    elif layout.frames > length // _LEAST_FRAME:
        raise DataError(
            f"{file}: found {length} bytes of {counted(layout.frames, 'frame')}, expected at least "
            f"{_LEAST_FRAME} bytes each"
        )
    most = 16 * MAX_PIXELS
    if layout.frames * layout.frame_bits > 8 * most:
        raise DataError(
            f"{file}: found {counted(layout.frames, 'frame')} of {layout.columns} x {layout.rows}, "
            f"expected no more than {most} bytes of all (--take middle reads one alone)"
        )
    if layout.frame_bits % 8:
        raise DataError(
            f"{file}: found frames of {layout.frame_bits} bits, which begin within a byte, "
            "expected whole bytes"
        )


def _single_frame(whole: "Dataset", layout: Layout, frame: int) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    # What is after the last frame is padding.
    length = layout.frame_bits // 8
    blob: bytes = whole.PixelData[frame * length : (frame + 1) * length]
    if not whole.file_meta.TransferSyntaxUID.is_little_endian and whole.BitsAllocated == 16:
        blob = np.frombuffer(blob, ">u2").astype("<u2").tobytes()
    found = Dataset()
    for name in _KEPT:
        if name in whole:
            found[name] = whole[name]
    group = Dataset()
    for name in _KEPT_GROUPS:
        groups: list[Any] = [
            *(whole.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1],
            *(whole.get("SharedFunctionalGroupsSequence") or [])[:1],
        ]
        own = next((one[name] for one in groups if one.get(name)), None)
        if own is not None:
            group[name] = own
    if len(group):
        found.SharedFunctionalGroupsSequence = [group]
    found.SOPInstanceUID = generate_uid(entropy_srcs=[blob.hex()])
    found.NumberOfFrames = 1
    found.PixelData = blob + b"\0" * (len(blob) % 2)
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _order(file: Path) -> tuple[float, int, str]:
    own = facts(file)
    return (own.height or 0.0, own.number, file.name)


def _text(header: "Dataset", name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def _whole(header: "Dataset", name: str, otherwise: int) -> int:
    try:
        return int(header.get(name) or otherwise)
    except (TypeError, ValueError):
        return otherwise


def _height(header: "Dataset") -> float | None:
    """Return the position along the normal of the slice's plane, in mm (PS3.3 C.7.6.2.1.1)."""
    # Elements are converted when they are read, and a single value has no length.
    try:
        at = np.array([float(value) for value in header.ImagePositionPatient])
        plane = np.array([float(value) for value in header.ImageOrientationPatient])
        height = float(at @ np.cross(plane[:3], plane[3:]))
    except (AttributeError, TypeError, ValueError):
        return None
    return round(height, 4) if np.isfinite(height) else None
