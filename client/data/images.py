"""Loading of image files, DICOM included, as the RGB images that a model sees.

Whatever a file contains, the result is a complete image or a `DataError` of one sentence,
never a partial image or a library's traceback. JPEG orientation tags are not applied, and
only the first page of a TIFF is read, as in the reference.
"""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from client.data.dicom import read_levels
from client.data.grey_levels import MAX_PIXELS, Levels, check_size, rescale
from common.errors import DataError
from common.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pillow opens far more formats, some of them through other programs; these are tested.
PICTURE_FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP")

#: The modules that a decoder's warnings are attributed to, with ours that call one.
_DECODERS: Final = (
    r"(PIL|pydicom|(py)?libjpeg|openjpeg|rle|client\.data\.(images|dicom|grey_levels))\b"
)

_DICOM_MARK: Final = b"DICM"
_DICOM_MARK_AT: Final = 128


def load_image(file: Path) -> "Image":
    """Decode the image in `file` completely, in mode RGB.

    Grey images of more than 8 bits are scaled by their own darkest and brightest pixel;
    DICOM files as their header says (client/data/dicom.py), and of several frames the middle
    one is used.

    Raises:
        DataError: there is no such file, or no complete image of a supported format.
    """
    # Sloppy headers make both libraries warn, and pydicom may quote a patient's data.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_image(file)


@contextmanager
def decoder_warnings_ignored() -> Generator[None]:
    """Ignore the decoders' warnings in all threads during the body.

    Python's warning filters are shared by all threads (3.11): a second thread that changed
    and restored them, as `load_image` does, could leave them wrong for the others.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_DECODERS)
        yield


def decode_image(file: Path, most_pixels: int = MAX_PIXELS) -> "Image":
    """Do what `load_image` does, without changing the warning filters.

    For a second thread, during `decoder_warnings_ignored`. A larger image is refused before its
    pixels are read.

    Raises:
        DataError: as `load_image`.
    """
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no file"
        raise DataError(f"{file}: found {found}, expected an image")
    head = _read_head(file)
    if not head:
        raise DataError(f"{file}: found an empty file, expected an image")
    dicom = head[_DICOM_MARK_AT:] == _DICOM_MARK or has_dicom_suffix(file)
    if not dicom:
        return _load_plain_image(file, most_pixels)
    # pydicom 3.0 also logs its warnings, which would end up in the trainer's log.
    logging.getLogger("pydicom").propagate = False
    return _to_rgb(read_levels(file, most_pixels))


def has_dicom_suffix(file: Path) -> bool:
    """Return whether the name alone makes a file DICOM, whatever its first bytes are."""
    return file.suffix.lower() == ".dcm"


def pad_to_square(image: "Image", fill: tuple[int, int, int]) -> "Image":
    """Center `image` on a square of colour `fill`, as LLaVA's expand2square does.

    An odd margin leaves the smaller half on the left or on top.
    """
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _read_head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_DICOM_MARK_AT + len(_DICOM_MARK))
    except OSError as error:
        raise DataError(f"{file}: found a file that can't be opened ({error.strerror})") from None


def _load_plain_image(file: Path, most_pixels: int) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=PICTURE_FORMATS) as image:
            check_size(file, *image.size, most_pixels)
            image.load()
            return _convert_to_rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{file}: found no image, or one truncated beyond recognition, "
            f"expected {', '.join(PICTURE_FORMATS)} or DICOM"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{file}: found more than {most_pixels} pixels, expected no more than that"
        ) from None
    # Pillow's decoders can raise nearly any exception on damaged bytes.
    except Exception as error:
        raise DataError(
            f"{file}: found a truncated or damaged image "
            f"({_first_line(error)}), expected a whole one"
        ) from None


def _first_line(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0].strip())


def _convert_to_rgb(image: "Image") -> "Image":
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image, np.float64)
        return _to_rgb(rescale(values, float(values.min()), float(values.max())))
    if image.mode == "P":
        # Through RGBA, because Pillow warns if a palette's transparency is a table.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _to_rgb(values: Levels) -> "Image":
    """Return the RGB image of `values`, 0 black to 1 white; shape (rows, columns[, 3])."""
    from PIL import Image

    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
