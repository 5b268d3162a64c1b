"""The image prototype of a release: the mean of the features of the stage's training images.

An image's feature is the output of the frozen vision tower, averaged over the patches and
scaled to length 1 (client/inference/image_prototype.py). A prototype is the mean of such
features over the different images of a stage's training questions. A router compares a new
image with it. It may have statistics of the images' descriptors, too
(common/router/descriptor_statistics.py). What they can reveal: docs/adr/0009-router.md. Legend of
shapes: V width of the tower.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np

from common.errors import BankError
from common.identity import canonical_json
from common.plan_fields import Precision
from common.router.descriptor_statistics import (
    DESCRIPTORS,
    DescriptorStatistics,
    merge_statistics,
)
from common.router.descriptor_statistics import fault_of as fault_of_statistics
from common.tensors import Array, TensorWriter, read_array, read_header

#: No vision tower is nearly as wide.
MOST_WIDTH: Final = 2**16
#: Size of a blob of that width with statistics and its header.
MOST_BYTES: Final = 4 * MOST_WIDTH + 4 * DESCRIPTORS * (DESCRIPTORS + 1) + 4096
#: A shorter mean has no meaningful direction: the features have cancelled.
SHORTEST: Final = 1e-4
_MOST_IMAGES: Final = 10**9
#: What rounding to float32 may add to a length or a variance.
_ROUNDING: Final = 1e-4
_NAME, _METADATA = "prototype", "fedmslora"
_MEAN, _COVARIANCE = "descriptor_mean", "descriptor_covariance"


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrototype:
    """The mean feature of some images.

    Attributes:
        vector: the mean of their features, each of length 1; float32, shape (V,). The more
            alike they are, the longer it is, up to 1.
        std: standard deviation of the images' cosines to `vector`.
        images: number of different images.
        statistics: of the images' descriptors; None of one that was made without them.
    """

    vector: Array
    std: float
    images: int
    statistics: DescriptorStatistics | None = None

    @property
    def mean(self) -> float:
        """The mean of the images' cosines to `vector`, which is its length.

        mean(f . m / |m|) = m . m / |m| for m = mean(f) and |f| = 1.
        """
        return float(np.linalg.norm(self.vector.astype(np.float64)))


def to_bytes(prototype: ImagePrototype) -> bytes:
    """Write the prototype as safetensors, with what is no array in its metadata."""
    numbers: dict[str, object] = {"images": prototype.images, "std": prototype.std}
    arrays = {_NAME: prototype.vector}
    if (statistics := prototype.statistics) is not None:
        numbers |= {"code": statistics.code, "distances": list(statistics.distances)}
        arrays |= {_MEAN: statistics.mean, _COVARIANCE: statistics.covariance}
    shapes = {name: value.shape for name, value in arrays.items()}
    writer = TensorWriter(shapes, Precision.FP32, {_METADATA: canonical_json(numbers)})
    for name, value in arrays.items():
        writer.put(name, value)
    return writer.blob()


def from_bytes(blob: bytes, source: str) -> ImagePrototype:
    """Read what `to_bytes` wrote.

    Raises:
        BankError: bytes that `to_bytes` would not write, or impossible values; `source` names
            the blob.
    """
    if len(blob) > MOST_BYTES:
        raise BankError(f"{source}: found {len(blob)} bytes, expected at most {MOST_BYTES}")

    def read(offset: int, count: int) -> bytes:
        return blob[offset : offset + count]

    header = read_header(read, len(blob), source)
    names = set(header.tensors)
    known = names in ({_NAME}, {_NAME, _MEAN, _COVARIANCE})
    if not known or len(header.tensors[_NAME].shape) != 1:
        raise BankError(f"{source}: found other arrays, expected one vector {_NAME!r}")
    text = header.metadata.get(_METADATA, "")
    images, std = _numbers(text, source)
    arrays = {name: read_array(read, header.tensors[name], source) for name in names}
    statistics = None
    if len(names) > 1:
        code, distances = _counts(text, source)
        statistics = DescriptorStatistics(arrays[_MEAN], arrays[_COVARIANCE], distances, code)
    found = ImagePrototype(arrays[_NAME], std, images, statistics)
    if (fault := fault_of(found)) is not None:
        raise BankError(f"{source}: {fault}")
    if to_bytes(found) != blob:
        raise BankError(f"{source}: found more than a prototype, or one in another layout")
    return found


def fault_of(prototype: ImagePrototype) -> str | None:
    """Return why no images can have this prototype (found, expected); None if they can."""
    if not 1 <= prototype.vector.size <= MOST_WIDTH:
        return f"found {prototype.vector.size} numbers, expected 1 to {MOST_WIDTH}"
    if not np.isfinite(prototype.vector).all():
        return "found a value that is not finite"
    if not 1 <= prototype.images <= _MOST_IMAGES:
        return f"found {prototype.images} images, expected 1 to {_MOST_IMAGES}"
    if not SHORTEST <= prototype.mean <= 1 + _ROUNDING:
        return f"found the length {prototype.mean:.6g}, expected {SHORTEST:g} to 1"
    max_std = _max_std(prototype)
    if not 0 <= prototype.std <= max_std:
        return (
            f"found the standard deviation {prototype.std:.6g}, expected 0 to {max_std:.6g} at "
            f"the length {prototype.mean:.6g}"
        )
    if prototype.statistics is not None:
        return fault_of_statistics(prototype.statistics, prototype.images)
    return None


def merge_prototypes(prototypes: Sequence[ImagePrototype]) -> ImagePrototype | None:
    """Merge prototypes into that of all their images; None where they cancel each other.

    From valid prototypes a valid one results, whatever values sites have sent: the count and the
    deviation are limited to what a prototype may have.

    With n_i pictures, mean m_i and deviation s_i each, and N = sum n_i: the mean
    m = sum n_i m_i / N is exact, and so is its length, the mean of all cosines to it. Of the
    variance of these cosines the part between the sites is exact,
    sum n_i (m_i . m / |m| - |m|)^2 / N; the part within is taken as sum n_i s_i^2 / N, which is
    measured along m_i instead of m: exact for one site or for equal directions.

    Args:
        prototypes: at least one, all of one width, in an order that does not change.
    """
    images = sum(one.images for one in prototypes)
    shares = [one.images / images for one in prototypes]
    vectors = [one.vector.astype(np.float64) for one in prototypes]
    mean = np.zeros_like(vectors[0])
    for share, vector in zip(shares, vectors, strict=True):
        mean += share * vector
    length = float(np.linalg.norm(mean))
    if length < SHORTEST:
        return None
    variance = 0.0
    for share, vector, one in zip(shares, vectors, prototypes, strict=True):
        variance += share * (one.std**2 + (float(vector @ mean) / length - length) ** 2)
    statistics = merge_statistics(
        [(one.statistics, one.images) for one in prototypes if one.statistics is not None]
    )
    found = ImagePrototype(
        mean.astype(np.float32), math.sqrt(variance), min(images, _MOST_IMAGES), statistics
    )
    found = replace(found, std=min(found.std, _max_std(found)))
    return found if fault_of(found) is None else None


def _max_std(prototype: ImagePrototype) -> float:
    """Return the largest possible deviation of cosines with this mean, as they are at most 1."""
    return math.sqrt(max(0.0, 1 - prototype.mean**2) + _ROUNDING)


def _counts(text: str, source: str) -> tuple[str, tuple[int, ...]]:
    """Read the code of the images' modality and the counts of their distances."""
    found: Mapping[str, object] = json.loads(text)
    code, distances = found.get("code"), found.get("distances")
    numbers = cast(list[object], distances) if isinstance(distances, list) else [None]
    if not isinstance(code, str) or not all(type(one) is int for one in numbers):
        raise BankError(f"{source}: found no code or no counts of distances, expected both")
    return code, tuple(cast(list[int], numbers))


def _numbers(text: str, source: str) -> tuple[int, float]:
    """Read the count of images and their deviation."""
    try:
        found: Mapping[str, object] = json.loads(text)
        images, std = found["images"], found["std"]
    except (ValueError, KeyError, TypeError, RecursionError):
        images = std = None
    # In Python `bool` is an `int`, and JSON may have `true` and NaN.
    if type(images) is not int or type(std) is not float or not math.isfinite(std):
        raise BankError(f"{source}: found no count of images or no deviation, expected both")
    return images, std
