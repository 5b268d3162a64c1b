"""The whole files that `simulation/chaos/fuzz.py` damages: a small one of every kind."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.task import TEST_FILE, TRAIN_FILE

#: pydicom's files of each encoding, all of them in its wheel.
_DICOM: Final = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "JPGExtended.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_16bit.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_small_odd.dcm", "rtdose_1frame.dcm", "rtdose_rle.dcm",
    "SC_ybr_full_422_uncompressed.dcm", "JPEGLSNearLossless_16.dcm", "ExplVR_BigEnd.dcm",
)  # fmt: skip
#: What of these is stored as it is.
_PLAIN: Final = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "SC_rgb_small_odd.dcm", "rtdose_1frame.dcm", "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm", "ExplVR_BigEnd.dcm",
)  # fmt: skip
_WRITTEN: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("rgb.png", "colour", "PNG", {}),
    ("palette.png", "palette", "PNG", {}),
    ("deep.png", "deep", "PNG", {}),
    ("rgb.jpg", "colour", "JPEG", {}),
    ("grey.jpg", "grey", "JPEG", {"optimize": True}),
    ("progressive.jpg", "colour", "JPEG", {"progressive": True, "subsampling": 0}),
    ("restarts.jpg", "colour", "JPEG", {"restart_marker_rows": 1}),
    ("rgb.tif", "colour", "TIFF", {}),
    ("deep.tif", "deep", "TIFF", {}),
    ("float.tif", "float", "TIFF", {}),
    ("lzw.tif", "colour", "TIFF", {"compression": "tiff_lzw"}),
    ("deflate.tif", "colour", "TIFF", {"compression": "tiff_deflate"}),
    ("jpeg.tif", "colour", "TIFF", {"compression": "jpeg"}),
    ("rgb.bmp", "colour", "BMP", {}),
    ("lossy.webp", "colour", "WEBP", {}),
    ("whole.webp", "colour", "WEBP", {"lossless": True}),
    ("rgb.jp2", "colour", "JPEG2000", {}),
    ("deep.jp2", "deep", "JPEG2000", {}),
    ("lossy.jp2", "colour", "JPEG2000", {"irreversible": True, "quality_layers": [20]}),
)


class Zeros(StrEnum):
    """What zeros in place of a file's end are."""

    #: Pixels like any others, stored as they are.
    PIXELS = "pixels"
    #: Codes of a flat area: only many of them are a loss (`codestream.ends_in_zeros`).
    CODES = "codes"
    #: A loss, however few.
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Seed:
    """A whole file."""

    name: str
    data: bytes
    zeros: Zeros


def picture_seeds() -> Iterator[Seed]:
    """Yield a small picture file of every kind that is read."""
    pictures = _pictures()
    for name, picture, kind, options in _WRITTEN:
        stream = io.BytesIO()
        pictures[picture].save(stream, kind, **options)
        zeros = Zeros.LOSS
        if kind == "BMP" or (kind == "TIFF" and not options):
            zeros = Zeros.PIXELS
        elif kind in ("WEBP", "JPEG2000") or options.get("compression") in ("jpeg", "tiff_lzw"):
            zeros = Zeros.CODES
        yield Seed(name, stream.getvalue(), zeros)
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in _DICOM:
        zeros = Zeros.PIXELS if name in _PLAIN else Zeros.LOSS
        yield Seed(name, (folder / name).read_bytes(), zeros)


def _pictures() -> dict[str, Image.Image]:
    rows, columns = np.mgrid[:96, :128]
    noise = np.random.default_rng(0).integers(0, 12, (96, 128, 3))
    bands: npt.NDArray[Any] = np.stack([columns, rows * 2, rows + columns], -1) + noise
    colour = Image.fromarray(bands.astype(np.uint8))
    deep: npt.NDArray[Any] = columns * 300 + rows * 11 + noise[..., 0]
    return {
        "colour": colour,
        "grey": colour.convert("L"),
        "palette": colour.quantize(64),
        "deep": Image.fromarray(deep.astype(np.uint16)),
        "float": Image.fromarray(deep.astype(np.float32) / 7),
    }


def task_seed(folder: Path) -> Path:
    """Write a whole task into `folder`, and return it."""
    (folder / "images").mkdir(parents=True)
    for grey in range(4):
        Image.new("L", (4, 4), grey).save(folder / "images" / f"{grey}.png")
    questions = [("Is it a l\u00edver?", "yes"), ("Which organ?", "the spleen, probably")]
    train = [
        {
            "id": f"t{at}",
            "image": f"images/{at}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
            "answer_type": "CLOSED",
        }
        for at, (question, answer) in enumerate(questions)
    ]
    test = [
        {"question_id": at, "image": f"images/{at + 2}.png", "text": question, "gt": answer}
        for at, (question, answer) in enumerate(questions)
    ]
    (folder / TRAIN_FILE).write_text(json.dumps(train, indent=1))
    (folder / TEST_FILE).write_text("".join(f"{json.dumps(line)}\n" for line in test))
    return folder
