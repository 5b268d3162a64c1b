"""What a DICOM header says beside the pixels: modality, body part, whether text is burned in."""
# pyright: reportUnknownVariableType=false
# pydicom.dcmread takes a PathLike of nothing in particular.

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from client.data.pictures.dicom import SUFFIXES, is_dicom, read_head
from common.plan_fields import Modality

_XRAY: Final = frozenset({Modality.XRAY, Modality.RADIOLOGY})
_SLIDE: Final = frozenset({Modality.PATHOLOGY, Modality.MICROSCOPY})
#: The modalities of tasks whose pictures have a code of DICOM's Modality (PS3.3 C.7.3.1.1.1). What
#: is not here (OT, SC, DOC, ...) may be a picture of anything.
MODALITIES: Mapping[str, frozenset[Modality]] = MappingProxyType(
    {
        "CT": frozenset({Modality.CT, Modality.RADIOLOGY}),
        "MR": frozenset({Modality.MR, Modality.RADIOLOGY}),
        "US": frozenset({Modality.ULTRASOUND, Modality.RADIOLOGY}),
        "IVUS": frozenset({Modality.ULTRASOUND, Modality.RADIOLOGY}),
        **dict.fromkeys(("CR", "DX", "MG", "IO", "PX", "RF", "XA", "RG"), _XRAY),
        **dict.fromkeys(("PT", "NM"), frozenset({Modality.RADIOLOGY})),
        **dict.fromkeys(("SM", "GM"), _SLIDE),
        "OP": frozenset({Modality.FUNDUS}),
        **dict.fromkeys(("OPT", "OCT", "IVOCT"), frozenset({Modality.OCT})),
        "ES": frozenset({Modality.ENDOSCOPY}),
        "DMS": frozenset({Modality.DERMATOLOGY}),
    }
)

#: A value of BodyPartExamined, and those that name none.
_BODY_PART: Final = re.compile(r"[A-Z][A-Z0-9 _]{0,15}")
_NO_PART: Final = frozenset({"UNKNOWN", "UNSPECIFIED", "OTHER", "NONE", "NA"})


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """Of a file that is not DICOM, or says nothing, `modality` is empty.

    Attributes:
        modality: DICOM's code, such as CT.
        burned_in: whether it says that text is in the pixels, such as a name.
        body_part: DICOM's BodyPartExamined, such as CHEST.
    """

    modality: str = ""
    burned_in: bool = False
    body_part: str = ""


#: Of a file that is not DICOM, or says nothing.
NO_FACTS: Final = HeaderFacts()


def header_facts(file: Path) -> HeaderFacts:
    """Return what the header of `file` says, without reading its pixels."""
    from pydicom import dcmread

    from client.data.pictures.dicom_elements import text

    try:
        if file.suffix.lower() not in SUFFIXES and not is_dicom(read_head(file)):
            return NO_FACTS
        tags = ["Modality", "BurnedInAnnotation", "BodyPartExamined"]
        # What pydicom warns of and logs may quote the header.
        logging.getLogger("pydicom").propagate = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*tags])
    # What is wrong with the file is said where it is decoded; pydicom may raise nearly anything.
    except Exception:
        return NO_FACTS
    code = text(dataset, "Modality")
    known = code if code.isalnum() and len(code) <= 16 else ""
    part = text(dataset, "BodyPartExamined")
    named = _BODY_PART.fullmatch(part) is not None and part not in _NO_PART
    burned_in = text(dataset, "BurnedInAnnotation") == "YES"
    return HeaderFacts(known, burned_in, part if named else "")


def foreign_codes(images: Iterable[Path], modality: Modality) -> Counter[str]:
    """Return the codes in headers of `images` that pictures of `modality` don't have, counted."""
    codes = Counter(header_facts(image).modality for image in images)
    foreign = (code for code in codes if modality not in MODALITIES.get(code, {modality}))
    return Counter({code: codes[code] for code in foreign})
