"""Small pictures for a page that stays at the site."""

import io
from pathlib import Path
from typing import Final

from client.data.images import load_image

#: The longer side of a thumbnail in pixels, on screens of two pixels a point too.
LONGEST: Final = 192


def thumbnail(file: Path) -> bytes:
    """Return the picture as the model sees it before it is resized, as a small JPEG.

    It has no metadata: no header of the file is copied.

    Raises:
        DataError: it is no complete picture.
    """
    picture = load_image(file)
    picture.thumbnail((LONGEST, LONGEST))
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=80)
    return content.getvalue()
