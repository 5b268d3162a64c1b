"""The image prototype of a release: the mean of the features of the stage's training images.

An image's feature is the output of the frozen vision tower, averaged over the patches and
scaled to length 1 (client/inference/image_prototype.py). A prototype is the mean of such
features over the different images of a stage's training questions. A router compares a new
image with it. What it can reveal: docs/adr/0009-router.md. Legend of shapes: V width of the
tower.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from common.errors import BankError
from common.identity import canonical_json
from common.plan_fields import Precision
from common.tensors import Array, TensorWriter, read_array, read_header

#: No vision tower is nearly as wide.
MOST_WIDTH: Final = 2**16
#: Size of a blob of that width, with its header.
MOST_BYTES: Final = 4 * MOST_WIDTH + 4096
#: A shorter mean has no meaningful direction: the features have cancelled.
SHORTEST: Final = 1e-4
_MOST_IMAGES: Final = 10**9
#: What rounding to float32 may add to a length or a variance.
_ROUNDING: Final = 1e-4
_NAME, _METADATA = "prototype", "fedmslora"


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrototype:
    """The mean feature of some images.

    Attributes:
        vector: the mean of their features, each of length 1; float32, shape (V,). The more
            alike they are, the longer it is, up to 1.
        std: standard deviation of the images' cosines to `vector`.
        images: number of different images.
    """

    vector: Array
    std: float
    images: int

    @property
    def mean(self) -> float:
        """The mean of the images' cosines to `vector`, which is its length.

        mean(f . m / |m|) = m . m / |m| for m = mean(f) and |f| = 1.
        """
        return float(np.linalg.norm(self.vector.astype(np.float64)))


def to_bytes(prototype: ImagePrototype) -> bytes:
    """Write the prototype as safetensors, with the two numbers in its metadata."""
    numbers = canonical_json({"images": prototype.images, "std": prototype.std})
    shape = prototype.vector.shape
    writer = TensorWriter({_NAME: shape}, Precision.FP32, {_METADATA: numbers})
    writer.put(_NAME, prototype.vector)
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
    if list(header.tensors) != [_NAME] or len(header.tensors[_NAME].shape) != 1:
        raise BankError(f"{source}: found other arrays, expected one vector {_NAME!r}")
    images, std = _numbers(header.metadata.get(_METADATA, ""), source)
    found = ImagePrototype(read_array(read, header.tensors[_NAME], source), std, images)
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
    found = ImagePrototype(mean.astype(np.float32), math.sqrt(variance), min(images, _MOST_IMAGES))
    found = replace(found, std=min(found.std, _max_std(found)))
    return found if fault_of(found) is None else None


def _max_std(prototype: ImagePrototype) -> float:
    """Return the largest possible deviation of cosines with this mean, as they are at most 1."""
    return math.sqrt(max(0.0, 1 - prototype.mean**2) + _ROUNDING)


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
