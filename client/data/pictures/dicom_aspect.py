"""The shape of a DICOM image's pixels, and the size that shows them square."""

from typing import TYPE_CHECKING, Final

from client.data.pictures.dicom_elements import frame_groups, numbers
from client.data.pictures.dicom_pixels import Layout

if TYPE_CHECKING:
    from pydicom import Dataset

#: Spacing between rows, then columns, of the first of these that there is; the ratio comes last
#: (DICOM PS3.3 C.7.6.3.1.7).
_SPACINGS: Final = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
#: A pixel longer than this is a mistake in the header.
_LONGEST: Final = 20.0


def square_size(dataset: "Dataset", layout: Layout, frame: int) -> tuple[int, int]:
    """Return the width and height in which the image's pixels are square; one of them is its own.

    A viewer shows a sagittal slice of thick slabs this way; without it bodies are flat.
    """
    ratio = _pixel_height(dataset, frame)
    if ratio >= 1.0:
        return layout.columns, round(layout.rows * ratio)
    return round(layout.columns / ratio), layout.rows


def _pixel_height(dataset: "Dataset", frame: int) -> float:
    """Return how high a pixel is, in its widths; 1 where nothing usable is said."""
    for group in frame_groups(dataset, frame, "PixelMeasuresSequence"):
        for keyword in _SPACINGS:
            spacing = numbers(group, keyword)
            if len(spacing) == 2 and min(spacing) > 0:
                ratio = spacing[0] / spacing[1]
                return ratio if 1 / _LONGEST <= ratio <= _LONGEST else 1.0
    return 1.0
