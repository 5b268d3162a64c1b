"""DICOM files for tests: those that pydicom ships, with changes, and small ones made here."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pydicom's datasets know their elements only at run time.

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag

#: 4,096 different values of 12 bits, one after the other.
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shipped(name: str) -> Path:
    """A file of pydicom's wheel or of pydicom-data; nothing is downloaded."""
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name}: pydicom-data is not installed")
    assert isinstance(found, str)
    return Path(found)


def edited(name: str, file: Path, **elements: object) -> Path:
    """A shipped file with some elements set, or deleted where None."""
    dataset = pydicom.dcmread(shipped(name))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file)
    return file


def dicom(
    file: Path,
    stored: npt.NDArray[Any],
    **elements: object,
) -> Path:
    """A grey DICOM file with these stored pixels, shape ([frames,] rows, columns).

    An element is set to its value, left out where None, and given its bytes as they are.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    dataset = FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        elif isinstance(value, bytes):
            tag = Tag(keyword)
            vr = dictionary_VR(tag)
            dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file, enforce_file_format=True)
    return file
