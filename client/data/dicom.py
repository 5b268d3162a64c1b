"""Decoding of a DICOM file to the levels that a viewer would show; of several frames the middle.

Whatever the file contains, the result is all its levels or a `DataError` of one sentence that
quotes nothing of the header except format names: the rest can be a patient's.
"""
# pyright: reportUnknownVariableType=false
# pydicom.dcmread takes a PathLike of nothing in particular.

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from client.data.grey_levels import MAX_PIXELS, Levels, check_size, rescale
from common.errors import DataError
from common.printable import printable

if TYPE_CHECKING:
    from pydicom import Dataset

#: Percentiles that become black and white if a DICOM file has no window.
DARK_PERCENTILE: Final = 1.0
BRIGHT_PERCENTILE: Final = 99.0

_PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_COLOURS: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_levels(file: Path, most_pixels: int = MAX_PIXELS) -> Levels:
    """Return the middle frame of `file`, windowed as its header says (`_grey_levels`).

    Raises:
        DataError: it is no complete DICOM image of a supported kind.
    """
    try:
        dataset = _read_dicom(file)
        _check_syntax(file, dataset)
        _check_geometry(file, dataset, most_pixels)
        return _levels(file, dataset)
    except DataError:
        raise
    # pydicom parses elements lazily, so damaged bytes and unusual headers can fail anywhere
    # above, with nearly any exception.
    except Exception as error:
        raise DataError(
            f"{file}: found a truncated or damaged DICOM file "
            f"({type(error).__name__}), expected a whole one"
        ) from None


def _read_dicom(file: Path) -> "Dataset":
    """Read the dataset in `file`, which must have pixels; set a missing transfer syntax."""
    from pydicom import dcmread, uid
    from pydicom.dataset import FileMetaDataset

    # Files without the 128-byte preamble are read, too.
    dataset = dcmread(file, force=True)
    if not any(name in dataset for name in _PIXEL_ELEMENTS):
        cut = " (removed, or the file is truncated)" if "Rows" in dataset else ""
        # pydicom keeps a preamble only if DICOM's magic bytes follow it.
        marked = dataset.preamble is not None
        found = f"a DICOM file without pixels{cut}" if marked else "a file that is not DICOM"
        raise DataError(f"{file}: found {found}, expected a DICOM image")
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        dataset.file_meta = meta
    return dataset


def _check_syntax(file: Path, dataset: "Dataset") -> None:
    """Check that a decoder for the pixels is installed."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        available = get_decoder(dataset.file_meta.TransferSyntaxUID).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"{file}: found pixels stored as {_syntax(dataset)}, for which no decoder is "
            "installed, expected uncompressed, RLE, JPEG or JPEG 2000"
        )


def _syntax(dataset: "Dataset") -> str:
    return printable(dataset.file_meta.TransferSyntaxUID.name)


def _check_geometry(file: Path, dataset: "Dataset", most_pixels: int) -> None:
    """Check the size, and that uncompressed pixel data is complete: no pixel is guessed."""
    from pydicom.pixels.utils import get_expected_length

    native = not dataset.file_meta.TransferSyntaxUID.is_compressed and "PixelData" in dataset
    try:
        width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
        expected = int(get_expected_length(dataset)) if native else 0
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{file}: found a DICOM header that doesn't say rows, columns, frames and bits "
            "of its pixels, expected a DICOM image"
        ) from None
    check_size(file, width, height, most_pixels)
    found = len(dataset.PixelData or b"") if native else 0
    if found < expected:
        raise DataError(
            f"{file}: found {found} bytes of pixels (truncated), expected {expected} bytes"
        )


def _levels(file: Path, dataset: "Dataset") -> Levels:
    """Return the middle frame, 0 black to 1 white; shape (rows, columns[, 3])."""
    from pydicom.pixels.utils import get_nr_frames, pixel_array

    frame = get_nr_frames(dataset, warn=False) // 2
    try:
        # Converts luma and chroma to RGB.
        stored = pixel_array(dataset, index=frame)
    except RuntimeError:
        raise DataError(
            f"{file}: found pixels stored as {_syntax(dataset)} that no installed decoder "
            "reads, expected complete pixels of a supported kind"
        ) from None
    photometric = str(dataset.PhotometricInterpretation)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        levels = _grey_levels(dataset, stored, frame)
        return 1.0 - levels if photometric == "MONOCHROME1" else levels
    if photometric == "PALETTE COLOR":
        return _palette_levels(dataset, stored)
    if photometric in _COLOURS and stored.shape[-1] == 3:
        return rescale(stored.astype(np.float64), 0.0, 2.0 ** int(dataset.BitsStored) - 1)
    raise DataError(
        f"{file}: found pixels of photometric interpretation "
        f"{printable(photometric)!r}, expected grey, palette, RGB or YBR"
    )


def _palette_levels(dataset: "Dataset", stored: npt.NDArray[Any]) -> Levels:
    """Return the palette's colours for `stored`; shape (rows, columns, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    colours = apply_color_lut(stored, dataset)[..., :3]
    little = dataset.file_meta.TransferSyntaxUID.is_little_endian
    if not little and "RedPaletteColorLookupTableData" in dataset:
        # pydicom 3.0 reads 16-bit tables as little endian even in a big-endian file.
        colours = colours.byteswap()
    bits = min(int(dataset.RedPaletteColorLookupTableDescriptor[2]), 8 * colours.itemsize)
    # The high byte, because many tables contain 8-bit colours with an empty low byte.
    return rescale((colours >> (bits - 8)).astype(np.float64), 0.0, 255.0)


def _grey_levels(dataset: "Dataset", stored: npt.NDArray[Any], frame: int) -> Levels:
    """Return what a viewer would show of `stored`: modality values, then the first that applies.

    A VOI lookup table; the first window; for up to 8 unsigned bits the stored range, since
    such pixels are made for display; else percentiles, because a few extreme pixels (metal,
    the border of a scanner's field) would compress all tissue into a few grey levels.
    """
    values = _modality_values(dataset, stored, frame)
    voi = _functional_group(dataset, frame, "FrameVOILUTSequence")
    if voi.get("VOILUTSequence"):
        return _apply_lookup_table(voi, values)
    windowed = _apply_window(voi, values)
    if windowed is not None:
        return windowed
    bits = int(dataset.get("BitsStored", 64))
    if bits <= 8 and dataset.get("PixelRepresentation") == 0:
        ends = np.array([0, 2**bits - 1], stored.dtype)
        low, high = np.sort(_modality_values(dataset, ends, frame))
        return rescale(values, float(low), float(high))
    padding = dataset.get("PixelPaddingValue")
    inside = values if padding is None else values[stored != padding]
    return _percentile_levels(values, inside if inside.size else values)


def _functional_group(dataset: "Dataset", frame: int, sequence: str) -> "Dataset":
    """Return the dataset that has the attributes of `sequence` for this frame.

    In enhanced multi-frame files that is the frame's own functional group or the shared one,
    in all others the top level.
    """
    own: list[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared: list[Dataset] = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*own[frame : frame + 1], *shared[:1]):
        if group.get(sequence):
            return group[sequence][0]
    return dataset


def _modality_values(dataset: "Dataset", stored: npt.NDArray[Any], frame: int) -> Levels:
    """Convert stored pixels to the modality's unit, Hounsfield for CT (DICOM PS3.3 C.11.1)."""
    from pydicom.pixels.processing import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset).astype(np.float64)
    group = _functional_group(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = _first(group, "RescaleSlope"), _first(group, "RescaleIntercept")
    scaled = stored.astype(np.float64) * (1.0 if slope is None else slope)
    return scaled + (0.0 if intercept is None else intercept)


def _first(dataset: "Dataset", name: str) -> float | None:
    """Return the first value of an element that may have several, one, or none."""
    element = dataset[name] if name in dataset else None
    if element is None or element.VM == 0:
        return None
    return float(element.value[0] if element.VM > 1 else element.value)


def _apply_window(voi: "Dataset", values: Levels) -> Levels | None:
    """Apply the first window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3), if there is one.

    A width that the standard forbids (some writers set 0) counts as no window.
    """
    center, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
    function = str(voi.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or width < (1.0 if function == "LINEAR" else 1e-12):
        return None
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (x - c) / w)), in a form that can't overflow.
        return 0.5 + 0.5 * np.tanh(2.0 * (values - center) / width)
    if function == "LINEAR_EXACT":
        return rescale(values, center - width / 2, center + width / 2)
    middle, half = center - 0.5, (width - 1.0) / 2
    if half == 0.0:
        return (values > middle).astype(np.float64)
    return rescale(values, middle - half, middle + half)


def _apply_lookup_table(voi: "Dataset", values: Levels) -> Levels:
    """Apply the first VOI lookup table (DICOM PS3.3 C.11.2.1.1).

    White is the table's largest entry: some writers declare 16 bits and fill 12.
    """
    from pydicom.pixels.processing import apply_voi

    entries, first = (int(number) for number in voi.VOILUTSequence[0].LUTDescriptor[:2])
    inputs = np.arange(first, first + (entries or 2**16))
    largest = float(apply_voi(inputs, voi).max())
    return rescale(apply_voi(values.astype(np.int64), voi).astype(np.float64), 0.0, largest)


def _percentile_levels(values: Levels, inside: Levels) -> Levels:
    """Rescale between two percentiles of `inside`, the pixels with a measurement."""
    low, high = np.percentile(inside, (DARK_PERCENTILE, BRIGHT_PERCENTILE))
    if low == high:
        # A nearly empty image, such as a bone scan: its content is in the last percent.
        low, high = inside.min(), inside.max()
    return rescale(values, float(low), float(high))
