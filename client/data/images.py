"""Loading of image files, DICOM included, as the RGB images that a model sees.

Whatever a file contains, the result is a complete image or a `DataError` of one sentence,
never a partial image or a library's traceback. An orientation in Exif is applied in every format,
and only the first page of a TIFF, the first frame of a WebP is read.
"""

import io
import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from client.data.pictures import png, tiff
from client.data.pictures.bounded_reader import BoundedReader
from client.data.pictures.codestream import (
    ends_in_zeros,
    fill_scans,
    has_end_mark,
    jpeg_header,
    missing_scans,
    replace_zero_tails,
)
from client.data.pictures.dicom import SUFFIXES, is_dicom, read_head, read_picture
from client.data.pictures.grey_levels import (
    MAX_PIXELS,
    NO_MEMORY,
    check_samples,
    check_size,
    distinct_values,
    percentile_levels,
)
from client.data.pictures.other_kinds import name_of
from common.errors import DataError
from common.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

#: Decodes a picture file: `load_image`, or `decode_image` for a second thread.
ReadImage: TypeAlias = "Callable[[Path], Image]"
#: Pillow opens far more formats, some of them through other programs; these are tested.
PICTURE_FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "WebP", "JPEG2000")

#: The modules that a decoder's warnings are attributed to, with ours that call one.
_DECODERS: Final = r"(PIL|pydicom|(py)?libjpeg|openjpeg|rle|client\.data\.(images|pictures))\b"

#: What turns a picture upright, by its orientation in Exif; 1 is upright.
_TURNS: Final = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def load_image(file: Path) -> "Image":
    """Decode the image in `file` completely, in mode RGB.

    Grey images of more than 8 bits are scaled between two percentiles; DICOM files as their
    header says (client/data/pictures/dicom_display.py); of several frames the middle one.

    Raises:
        DataError: there is no such file, or no complete image of a supported format.
    """
    # Sloppy headers make both libraries warn, and pydicom may quote a patient's data.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_image(file)


def keeping_last() -> ReadImage:
    """Return `load_image`, which keeps the picture that it read last, for questions in a row."""
    kept: list[tuple[Path, Image]] = []

    def last(file: Path) -> "Image":
        if not kept or kept[0][0] != file:
            kept[:] = [(file, load_image(file))]
        return kept[0][1]

    return last


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
    head = read_head(file)
    if not head:
        raise DataError(f"{file}: found an empty file, expected an image")
    if not is_dicom(head) and not has_dicom_suffix(file):
        return _load_plain_image(file, head, most_pixels)
    # pydicom 3.0 also logs its warnings, which would end up in the trainer's log.
    logging.getLogger("pydicom").propagate = False
    return _show_dicom(file, most_pixels)


def has_dicom_suffix(file: Path) -> bool:
    """Return whether the name alone makes a file DICOM, whatever its first bytes are."""
    return file.suffix.lower() in SUFFIXES


def pad_to_square(image: "Image", fill: tuple[int, int, int]) -> "Image":
    """Center `image` on a square of colour `fill`, as LLaVA's expand2square does.

    An odd margin leaves the smaller half on the left or on top.
    """
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _show_dicom(file: Path, most_pixels: int) -> "Image":
    from PIL import Image

    picture, size = read_picture(file, most_pixels)
    image = Image.fromarray(picture).convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _load_plain_image(file: Path, head: bytes, most_pixels: int) -> "Image":
    from PIL import Image

    try:
        is_png, is_tiff = head.startswith(png.SIGNATURE), head.startswith(tiff.SIGNATURES)
        whole = png.without_metadata(file.read_bytes()) if is_png else None
        negative = tiff.with_black_as_zero(file) if is_tiff else None
        data = whole if negative is None else negative
        with (
            BoundedReader(io.FileIO(file)) if data is None else io.BytesIO(data) as opened,
            Image.open(opened, formats=PICTURE_FORMATS) as image,
        ):
            if image.format == "TIFF":
                _check_tiff(file, image)
            check_size(file, *image.size, most_pixels)
            if image.format == "JPEG2000":
                check_samples(file, *image.size, len(image.getbands()))
            image.load()
            _check_whole(file, image)
            return _turn_upright(_convert_to_rgb(image, negative is not None), image)
    except DataError:
        raise
    # Pillow's decoders can raise nearly any exception on damaged bytes.
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            found = f"more than {most_pixels} pixels, expected no more than that"
            raise DataError(f"{file}: found {found}") from None
        if isinstance(error, MemoryError):
            raise DataError(f"{file}: {NO_MEMORY}") from None
        raise _refusal(file, head, error) from None


def _check_tiff(file: Path, image: "Image") -> None:
    if tiff.is_misread(image):
        raise DataError(
            f"{file}: found {tiff.describe(file)}, which is not read, expected its channels "
            "together, or compressed"
        )
    if (largest := tiff.larger_page(file)) is not None:
        raise DataError(
            f"{file}: found a TIFF whose first page has {image.width} x {image.height} pixels and "
            f"another one {largest[0]} x {largest[1]}, as a slide with its label, its thumbnail or "
            "a smaller level first, expected one picture: export the level that is to be read"
        )


def _refusal(file: Path, head: bytes, error: Exception) -> DataError:
    """Return what is wrong with a file that Pillow refused; a whole one is not called damaged."""
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError | KeyError | NotImplementedError)
    unknown = unknown or "not supported" in str(error) or "unknown raw mode" in str(error)
    if not unknown:
        return DataError(
            f"{file}: found a truncated or damaged image ({_first_line(error)}), expected a "
            "whole one"
        )
    kind = tiff.describe(file) if head.startswith(tiff.SIGNATURES) else ""
    kind = kind or name_of(file)
    found = (
        f"{kind}, which is not read" if kind else "no image, or one truncated beyond recognition"
    )
    return DataError(f"{file}: found {found}, expected {', '.join(PICTURE_FORMATS)} or DICOM")


def _first_line(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0].strip())


def _check_whole(file: Path, image: "Image") -> None:
    """Check that a decoded image's data didn't end early, where its decoder says nothing."""
    early, data = False, file.read_bytes()
    if image.format == "PNG":
        # Rows that are missing are black, and the last one lacks first; Adam7 sends it earlier.
        last = image.crop((0, image.height - 1, image.width, image.height))
        black = last.getbbox() is None or "interlace" in image.info
        early = png.has_wrong_checksum(data) or (black and png.ends_early(data))
    elif image.format in ("JPEG", "MPO"):
        early = not has_end_mark(data) or missing_scans(data) or _lacks_codes(data, image)
    elif image.format == "TIFF":
        early = ends_in_zeros(data) if tiff.is_compressed(image) else tiff.lacks_strips(image)
    elif image.format in ("WEBP", "JPEG2000"):
        early = ends_in_zeros(data)
    if early:
        raise DataError(
            f"{file}: found a picture whose data ends early (truncated), expected a whole one"
        )


def _lacks_codes(data: bytes, image: "Image") -> bool:
    """Return whether the scans of a decoded JPEG end early, or in zeros that none of it needs."""
    header = jpeg_header(data)
    if header is None or header.arithmetic:
        return False
    trimmed = replace_zero_tails(data)
    return not _draws(fill_scans(data), image) or (trimmed is not None and _draws(trimmed, image))


def _draws(data: bytes, image: "Image") -> bool:
    """Return whether the JPEG `data` is the same picture as `image`."""
    from PIL import Image, ImageChops

    with Image.open(io.BytesIO(data), formats=("JPEG",)) as other:
        # In strips: the difference of a large picture would be as large again.
        strips = [
            (0, top, image.width, min(top + _STRIP, image.height))
            for top in range(0, image.height, _STRIP)
        ]
        return all(
            ImageChops.difference(other.crop(strip), image.crop(strip)).getbbox() is None
            for strip in strips
        )


_STRIP: Final = 1024


def _convert_to_rgb(image: "Image", negative: bool) -> "Image":
    from PIL import Image

    deep = tiff.deep_values(image) if image.format == "TIFF" else None
    if deep is not None or image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip everything above 255 to white.
        found = distinct_values(np.asarray(image) if deep is None else deep)
        levels = percentile_levels(found.values, found.counts)
        negative = negative or (image.format == "TIFF" and tiff.is_negative(image))
        return Image.fromarray(found.picture(1.0 - levels if negative else levels)).convert("RGB")
    if image.mode == "P":
        # Through RGBA, because Pillow warns if a palette's transparency is a table.
        return image.convert("RGBA").convert("RGB")
    if image.mode in ("La", "RGBa"):
        return image.convert(image.mode.upper()).convert("RGB")
    return image.convert("RGB")


def _turn_upright(shown: "Image", image: "Image") -> "Image":
    """Turn what is shown of `image` as its Exif says; a damaged Exif says nothing."""
    from PIL import Image
    from PIL.ExifTags import Base

    try:
        turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
    except Exception:  # Pillow's parser may raise nearly anything on damaged Exif
        turn = None
    return shown if turn is None else shown.transpose(Image.Transpose(turn))
