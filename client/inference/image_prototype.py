"""A site's image prototype: the mean of the frozen tower's features of its training images.

Legend of shapes: V width of the tower, N patches, I images.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from client.data.file_modality import HeaderFacts, header_facts
from client.data.images import ReadImage, load_image
from client.inference.descriptor import descriptor, is_flat
from client.inference.router import Picture
from client.model.backbone import Backbone
from common.errors import DataError
from common.router.descriptor_statistics import (
    DESCRIPTORS,
    DescriptorStatistics,
    distances_to_others,
    histogram,
    scales,
)
from common.router.image_prototype import SHORTEST, ImagePrototype, fault_of


def image_feature(
    model: Backbone, image: Path, read: ReadImage = load_image
) -> npt.NDArray[np.float64]:
    """Return the tower's features of an image, averaged over patches and normalized; shape (V,).

    Raises:
        DataError: the image can't be read, or its features are zero or not finite.
    """
    features = model.image_features([image], read)[0].double().mean(0).cpu().numpy()
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


def picture_of(model: Backbone, image: Path, facts: HeaderFacts | None = None) -> Picture:
    """Return what a router knows of an image.

    Args:
        facts: what the header says; by default its own.

    Raises:
        DataError: as `image_feature`.
    """
    decoded: list[Image] = []

    def read(file: Path) -> Image:
        decoded.append(load_image(file))
        return decoded[-1]

    feature = image_feature(model, image, read)
    # Not read where the feature was known.
    pixels = decoded[0] if decoded else load_image(image)
    found = header_facts(image) if facts is None else facts
    flat = is_flat(pixels)
    return Picture(feature, descriptor(pixels, feature), found.modality, flat, found.body_part)


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
    model: Backbone, images: Sequence[Path], fewest: int, *, statistics: bool = False
) -> ImagePrototype | None:
    """Return the prototype of these images; None if fewer than `fewest` are different.

    Args:
        statistics: whether it gets those of the images' descriptors, too; it has none of fewer
            images than a descriptor has numbers, whose covariance would tell what they span.

    Raises:
        DataError: an image can't be read.
    """
    features = image_features(model, images)
    if len(features) < fewest or (found := prototype_of_features(features)) is None:
        return None
    if not statistics or found.images < DESCRIPTORS:
        return found
    return replace(found, statistics=_statistics(model, images, found))


def _statistics(
    model: Backbone, images: Sequence[Path], prototype: ImagePrototype
) -> DescriptorStatistics:
    """Return the statistics of the different images' descriptors."""
    rows: dict[bytes, npt.NDArray[np.float64]] = {}
    codes: set[str] = set()
    for image in dict.fromkeys(images):
        feature = image_feature(model, image)
        codes.add(header_facts(image).modality)
        if feature.tobytes() not in rows:
            rows[feature.tobytes()] = descriptor(load_image(image), feature)
    found = np.stack(list(rows.values()))
    usual = scales(1 - prototype.mean**2, prototype.vector.size)
    return DescriptorStatistics(
        mean=found.mean(0).astype(np.float32),
        covariance=np.cov(found.T, bias=True).astype(np.float32),
        distances=histogram(distances_to_others(found, usual)),
        code=codes.pop() if len(codes) == 1 else "",
    )
