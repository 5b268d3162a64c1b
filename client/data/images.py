"""A picture file as the RGB image that a model sees; DICOM files load as pictures do.

Whatever a file holds, the outcome is a whole image or a `DataError` of one sentence:
never half a picture, and never a library's traceback. JPEG orientation tags are not
applied, and of a TIFF with several pages the first counts, as in the reference.
"""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from client.data import grey_levels
from client.data.dicom import read_levels
from client.data.grey_levels import Levels, check_size, rescale, strip_control_characters
from common.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pillow opens far more kinds, some of them through other programs; these are what we test.
PICTURE_FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP")

#: The modules in whose names a decoder warns, ours being those that call one.
_DECODERS: Final = r"(PIL|pydicom|(py)?libjpeg|openjpeg|rle|client\.(images|dicom|levels))\b"

_DICOM_MARK: Final = b"DICM"
_DICOM_MARK_AT: Final = 128


def load_image(file: Path) -> "Image":
    """The picture in `file`, decoded to its last pixel, in mode RGB.

    Grey pictures of more than 8 bits are scaled by their own darkest and brightest pixel;
    DICOM files as their header says (client/data/dicom.py), of several frames the middle one.

    Raises:
        DataError: no file, or not a whole picture of a kind that we read.
    """
    # Sloppy headers make both libraries warn, and what pydicom quotes can be a patient's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_image(file)


@contextmanager
def decoder_warnings_ignored() -> Generator[None]:
    """While this lasts, no thread shows what a decoder warns of.

    Python's switch for warnings is one for all threads (3.11): a thread that turned it, as
    `load_image` does, would leave it wrong for the others.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_DECODERS)
        yield


def decode_image(file: Path) -> "Image":
    """What `load_image` returns. Warnings are the caller's: it is amid `decoder_warnings_ignored`.

    Raises:
        DataError: as there.
    """
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no file"
        raise DataError(f"{file}: found {found}, expected a picture")
    head = _first_bytes(file)
    if not head:
        raise DataError(f"{file}: found an empty file, expected a picture")
    dicom = head[_DICOM_MARK_AT:] == _DICOM_MARK or has_dicom_suffix(file)
    if not dicom:
        return _load_picture(file)
    # pydicom 3.0 also logs what it warns of, and the trainer's log has every program's lines.
    logging.getLogger("pydicom").propagate = False
    return _to_image(read_levels(file))


def has_dicom_suffix(file: Path) -> bool:
    """Whether a file is read as DICOM whatever it begins with: nothing else in a name counts."""
    return file.suffix.lower() == ".dcm"


def pad_to_square(image: "Image", fill: tuple[int, int, int]) -> "Image":
    """`image` in the middle of a square of colour `fill`, as LLaVA's expand2square does.

    An odd margin leaves the smaller half on the left or on top.
    """
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _first_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_DICOM_MARK_AT + len(_DICOM_MARK))
    except OSError as error:
        raise DataError(f"{file}: found a file that can't be opened ({error.strerror})") from None


def _load_picture(file: Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=PICTURE_FORMATS) as image:
            check_size(file, *image.size)
            image.load()
            return _picture_to_rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{file}: found no picture, or one truncated beyond recognition, "
            f"expected {', '.join(PICTURE_FORMATS)} or DICOM"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{file}: found more than {grey_levels.MAX_PIXELS} pixels, expected no more than that"
        ) from None
    # Pillow's decoders meet damaged bytes with nearly every exception that there is.
    except Exception as error:
        raise DataError(
            f"{file}: found a truncated or damaged picture "
            f"({_first_line(error)}), expected a whole one"
        ) from None


def _first_line(error: Exception) -> str:
    return strip_control_characters((str(error) or type(error).__name__).splitlines()[0].strip())


def _picture_to_rgb(image: "Image") -> "Image":
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip everything above 255 to white.
        return _to_image(_stretched(np.asarray(image, np.float64)))
    if image.mode == "P":
        # By way of RGBA, because Pillow warns where a palette's transparency is a table.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _to_image(values: Levels) -> "Image":
    """The RGB image of `values`, 0 black to 1 white; shape (rows, columns[, 3])."""
    from PIL import Image

    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


def _stretched(values: Levels) -> Levels:
    """`values` with the smallest at 0 and the largest at 1; all 0 where they are equal."""
    return rescale(values, float(values.min()), float(values.max()))
