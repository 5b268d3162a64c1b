"""A DICOM file as another scanner would have written it: in pixel values, and still DICOM."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from simulation.heterogeneity.scanner import Scanner, scan_light
from simulation.task_folder.write_dicom import pixels_uid


def scan_dicom(dicom: bytes, scanner: Scanner, seed: int) -> bytes:
    """Return the file with other pixels and another instance number; equal seeds, equal bytes.

    Black and white of the tone curve are the ends of the file's window, and without one its
    darkest and brightest value; values beyond keep their order.

    Raises:
        DataError: it is not one grey frame.
    """
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.uid import UID, ExplicitVRLittleEndian

    image = dcmread(BytesIO(dicom))
    kind = str(image.get("PhotometricInterpretation"))
    frames = int(image.get("NumberOfFrames") or 1)
    if frames != 1 or not kind.startswith("MONOCHROME") or "ModalityLUTSequence" in image:
        raise DataError(
            f"simulation.hospitals.scanners: found a DICOM picture of {frames} frames and "
            f"photometric interpretation {kind}, expected one grey frame in linear values"
        )
    stored: NDArray[np.generic] = image.pixel_array
    values = apply_modality_lut(stored, image).astype(np.float64)
    low, high = _ends(image, values)
    seen = scan_light(((values - low) / (high - low))[..., None], scanner, seed)[..., 0]
    slope, intercept = image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0)
    pixels = np.rint((seen * (high - low) + low - float(intercept)) / float(slope))
    bits, signed = int(image.BitsStored), int(image.PixelRepresentation)
    first = -(2 ** (bits - 1)) if signed else 0
    written = np.clip(pixels, first, first + 2**bits - 1).astype(stored.dtype).tobytes()
    image.PixelData = written + b"\0" * (len(written) % 2)
    image["PixelData"].VR = "OW" if image.BitsAllocated > 8 else "OB"
    uid = UID(pixels_uid(written))
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _ends(image: object, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the values that are shown as black and as white."""
    centre, width = (getattr(image, f"Window{name}", None) for name in ("Center", "Width"))
    if centre is not None and width is not None:
        # Either may have several values, of which the first is shown.
        middle, whole = (float(np.ravel(value)[0]) for value in (centre, width))
        if whole > 0:
            return middle - whole / 2, middle + whole / 2
    low, high = float(values.min()), float(values.max())
    return low, max(high, low + 1)
