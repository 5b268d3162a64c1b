"""A site's image prototype: the mean of the frozen tower's features of its training images.

Legend of shapes: V width of the tower, N patches, I images.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.model.backbone import Backbone
from common.errors import DataError
from common.image_prototype import SHORTEST, ImagePrototype, fault_of


def image_feature(model: Backbone, image: Path) -> npt.NDArray[np.float64]:
    """Return the tower's features of an image, averaged over patches and normalized; shape (V,).

    Raises:
        DataError: the image can't be read, or its features are zero or not finite.
    """
    features = model.image_features([image])[0].double().mean(0).cpu().numpy()
    length = float(np.linalg.norm(features))
    if not length > 0 or not np.isfinite(length):
        raise DataError(f"{image}: found an image without a feature, expected one with a feature")
    return features / length


def image_features(model: Backbone, images: Iterable[Path]) -> npt.NDArray[np.float64]:
    """Return the features of the different images, shape (I, V).

    A copy under another name, or in another format with the same pixels, counts as the same
    image: the mean over copies of one image would reveal its own feature.

    Raises:
        DataError: an image can't be read.
    """
    found: dict[bytes, npt.NDArray[np.float64]] = {}
    for image in dict.fromkeys(images):
        feature = image_feature(model, image)
        found.setdefault(feature.tobytes(), feature)
    return np.stack(list(found.values()))


def prototype_of_features(features: npt.NDArray[np.float64]) -> ImagePrototype | None:
    """Return the prototype of images with these features (I, V); None if they cancel out."""
    mean = features.mean(0)
    length = float(np.linalg.norm(mean))
    if length < SHORTEST:
        return None
    cosines = features @ (mean / length)
    found = ImagePrototype(mean.astype(np.float32), float(cosines.std()), len(features))
    assert fault_of(found) is None, fault_of(found)
    return found


def prototype_of_images(
    model: Backbone, images: Sequence[Path], fewest: int
) -> ImagePrototype | None:
    """Return the prototype of these images; None if fewer than `fewest` are different.

    Raises:
        DataError: an image can't be read.
    """
    features = image_features(model, images)
    return prototype_of_features(features) if len(features) >= fewest else None
