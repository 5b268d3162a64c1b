"""A crop of a CT as a DICOM file with what is needed to show it, and no personal data."""

import hashlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray


def ct_file(hounsfield: NDArray[np.float32], centre: float, width: float) -> bytes:
    """Return the DICOM file of a CT picture (height, width) in Hounsfield units.

    Nothing of the source's header is copied. The instance number comes from the pixels, so
    that the same pixels always give the same bytes.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    stored = np.rint(hounsfield).astype("<i2")
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = pixels_uid(stored.tobytes())
    image.Modality = "CT"
    image.PatientIdentityRemoved = "YES"
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = stored.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 1
    image.WindowCenter, image.WindowWidth = centre, width
    image.RescaleIntercept, image.RescaleSlope = 0, 1
    image.RescaleType = "HU"
    image.PixelData = stored.tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def pixels_uid(blob: bytes) -> str:
    """Return a UID under 2.25, DICOM's root for numbers of 128 bits (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(blob).digest()[:16], 'big')}"
