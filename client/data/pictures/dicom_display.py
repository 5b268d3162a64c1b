"""Display levels of stored values, as a viewer shows them (DICOM PS3.3 C.11.1 and C.11.2).

What a header says of the display and can't be used (a slope of zero, a table without entries,
half a window) counts as absent, as in DCMTK: it never makes a picture black.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from client.data.pictures.dicom_elements import (
    LookupTable,
    first,
    frame_groups,
    items,
    lookup_table,
    numbers,
    text,
    whole,
)
from client.data.pictures.dicom_pixels import Layout, Stored
from client.data.pictures.grey_levels import (
    Bytes,
    Levels,
    distinct_values,
    percentile_levels,
    rescale,
)

if TYPE_CHECKING:
    from pydicom import Dataset

#: Of these many bits or fewer, unsigned pixels are made for display.
_DISPLAY_BITS: Final = 8


def grey_bytes(dataset: "Dataset", layout: Layout, stored: Stored, frame: int) -> Bytes:
    """Return what a viewer shows of grey pixels; shape (rows, columns).

    Modality values, then the first that applies: a VOI lookup table; the first window; for up
    to 8 unsigned bits the stored range; else percentiles, because a few extreme pixels (metal,
    the border of a scanner's field) would compress all tissue into a few grey levels.
    """
    found = distinct_values(stored)
    levels = _voi_levels(dataset, layout, frame, found.values)
    if levels is None:
        values = _modality_values(dataset, layout, frame, found.values)
        if layout.stored <= _DISPLAY_BITS and not layout.signed:
            ends = np.array([0.0, 2.0**layout.stored - 1])
            low, high = np.sort(_modality_values(dataset, layout, frame, ends))
            levels = rescale(values, float(low), float(high))
        else:
            counts = np.where(_is_padding(dataset, layout, found.values), 0, found.counts)
            levels = percentile_levels(values, counts if counts.any() else found.counts)
    if _is_inverse(dataset, layout):
        levels = 1.0 - levels
    return found.picture(levels)


def _is_inverse(dataset: "Dataset", layout: Layout) -> bool:
    """Return whether the lowest value is white.

    A shape of the presentation table decides where there is one, as in DCMTK and Weasis; it
    should say what the photometric interpretation says.
    """
    shape = text(dataset, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return layout.photometric == "MONOCHROME1"


def colour_bytes(layout: Layout, stored: Stored) -> Bytes:
    """Return the levels of RGB pixels; shape (rows, columns, 3)."""
    found = distinct_values(stored)
    return found.picture(rescale(found.values, 0.0, 2.0**layout.stored - 1))


def palette_bytes(dataset: "Dataset", layout: Layout, stored: Stored) -> Bytes:
    """Return the palette's colours for `stored`; shape (rows, columns, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    for colour in ("Red", "Green", "Blue"):
        # A table's first input has the sign of the pixels, whatever VR its writer gave it.
        descriptor = dataset[f"{colour}PaletteColorLookupTableDescriptor"]
        count, start, bits = (int(value) for value in descriptor.value)
        descriptor.value = [count, _as_stored(start, layout), bits]
    colours = apply_color_lut(stored, dataset)[..., :3]
    little = dataset.file_meta.TransferSyntaxUID.is_little_endian
    if not little and "RedPaletteColorLookupTableData" in dataset:
        # pydicom 3.0 reads 16-bit tables as little endian even in a big-endian file.
        colours = colours.byteswap()
    bits = min(int(dataset.RedPaletteColorLookupTableDescriptor[2]), 8 * colours.itemsize)
    # The high byte, because many tables contain 8-bit colours with an empty low byte.
    return np.clip(colours >> (bits - 8), 0, 255).astype(np.uint8)


def _voi_levels(dataset: "Dataset", layout: Layout, frame: int, stored: Levels) -> Levels | None:
    """Return the levels of the first VOI lookup table, or else window, that can be used."""
    groups = list(frame_groups(dataset, frame, "FrameVOILUTSequence"))
    values = _modality_values(dataset, layout, frame, stored)
    ends = _modality_values(dataset, layout, frame, np.array(_stored_range(layout)))
    for group in groups:
        for item in items(group, "VOILUTSequence"):
            # The sign of a table's input is that of what the modality's step can yield.
            table = lookup_table(item, signed=float(ends.min()) < 0)
            if table is not None:
                # White is the largest entry: some writers declare 16 bits and fill 12.
                return rescale(table(values), 0.0, float(table.entries.max()))
    for group in groups:
        levels = _window_levels(group, values)
        if levels is not None:
            return levels
    return None


def _stored_range(layout: Layout) -> tuple[float, float]:
    half = 2.0 ** (layout.stored - 1)
    return (-half, half - 1) if layout.signed else (0.0, 2 * half - 1)


def _modality_values(dataset: "Dataset", layout: Layout, frame: int, stored: Levels) -> Levels:
    """Convert stored values to the modality's unit, Hounsfield for CT (DICOM PS3.3 C.11.1)."""
    table = _modality_table(dataset, layout)
    if table is not None:
        return table(stored)
    for group in frame_groups(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = first(group, "RescaleSlope"), first(group, "RescaleIntercept")
        # Half of the pair says nothing, as in DCMTK and pydicom.
        if slope and intercept is not None:
            return stored * slope + intercept
    return stored


def _modality_table(dataset: "Dataset", layout: Layout) -> LookupTable | None:
    for item in items(dataset, "ModalityLUTSequence")[:1]:
        return lookup_table(item, signed=layout.signed)
    return None


def _window_levels(voi: "Dataset", values: Levels) -> Levels | None:
    """Apply the first window of `voi` that has both halves; None without one.

    LINEAR, the default, is defined for widths of 1 and more (C.11.2.1.2), because it counts the
    steps between whole numbers. A narrower window, of values that are none, is LINEAR_EXACT's.
    """
    pairs = zip(numbers(voi, "WindowCenter"), numbers(voi, "WindowWidth"), strict=False)
    center, width = next(
        ((center, width) for center, width in pairs if center == center and width > 0),
        (0.0, 0.0),
    )
    if width == 0.0:
        return None
    function = text(voi, "VOILUTFunction")
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (x - c) / w)), in a form that can't overflow.
        return 0.5 + 0.5 * np.tanh(2.0 * (values - center) / width)
    if function == "LINEAR_EXACT" or width < 1.0:
        return rescale(values, center - width / 2, center + width / 2)
    middle, half = center - 0.5, (width - 1.0) / 2
    if half == 0.0:
        return (values > middle).astype(np.float64)
    return rescale(values, middle - half, middle + half)


def _is_padding(dataset: "Dataset", layout: Layout, stored: Levels) -> npt.NDArray[np.bool_]:
    """Return which stored values are padding: one, or a range (DICOM PS3.3 C.7.5.1.1.2)."""
    prefix = ""
    if layout.floating:
        prefix = "Float" if layout.stored == 32 else "DoubleFloat"
    read = first if layout.floating else whole
    value = read(dataset, f"{prefix}PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    limit = read(dataset, f"{prefix}PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if not layout.floating:
        ends = [_as_stored(int(end), layout) for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _as_stored(value: int, layout: Layout) -> int:
    """Return a header's value as pixels hold it, whatever sign its writer's VR gave it.

    One that no pixel can hold is cut to the stored bits, as the pixels are.
    """
    smallest, largest = _stored_range(layout)
    for bits in (16, layout.stored):
        unsigned = value % 2**bits
        found = unsigned - 2**bits if layout.signed and unsigned >> (bits - 1) else unsigned
        if smallest <= found <= largest:
            return found
    return value
