"""What a model sees of a picture file, as whole numbers from 0 to 255."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.images import load_image


def pixels_of(file: Path) -> npt.NDArray[np.int64]:
    """All three colours; shape (rows, columns, 3)."""
    image = load_image(file)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def greys_of(file: Path) -> npt.NDArray[np.int64]:
    """The one level of a grey picture; shape (rows, columns)."""
    pixels = pixels_of(file)
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]
