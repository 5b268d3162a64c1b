"""What a release says of the pictures behind it: the mean of their features, no picture's own.

A picture's feature is what the frozen vision tower makes of it, averaged over the patches and
scaled to length 1 (client/inference/image_prototype.py). A prototype is the mean of such
features over the different pictures of a stage's training questions. It tells a router which
stage a new picture is like. What it can reveal: docs/adr/0009-router.md. Legend of shapes: V
width of the tower.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from common.errors import BankError
from common.identity import canonical_json
from common.plan import Plan, Router
from common.plan_fields import Precision
from common.tensors import Array, Writer, read_array, read_header

#: No vision tower is nearly as wide.
MOST_WIDTH: Final = 2**16
#: A blob of that width, and its header.
MOST_BYTES: Final = 4 * MOST_WIDTH + 4096
#: A mean of features is shorter only where they cancel: then it points nowhere.
SHORTEST: Final = 1e-4
_MOST_IMAGES: Final = 10**9
#: What rounding to float32 may add to a length or a variance.
_ROUNDING: Final = 1e-4
_NAME, _METADATA = "prototype", "fedmslora"


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrototype:
    """The mean feature of some pictures.

    Attributes:
        vector: the mean of their features, each of length 1; float32, shape (V,). The more
            alike they are, the longer it is, up to 1.
        std: standard deviation of the pictures' cosines to `vector`.
        images: how many different pictures there are.
    """

    vector: Array
    std: float
    images: int

    @property
    def mean(self) -> float:
        """The mean of the pictures' cosines to `vector`, which is its length.

        mean(f . m / |m|) = m . m / |m| for m = mean(f) and |f| = 1.
        """
        return float(np.linalg.norm(self.vector.astype(np.float64)))


def asked_of(plan: Plan, stage: int, round_number: int) -> Router | None:
    """The router that wants a prototype with the update of this round; None wants none.

    A stage's pictures do not change from round to round, so only its last one has it.
    """
    return plan.routing if round_number == plan.stages[stage].rounds else None


def to_bytes(prototype: ImagePrototype) -> bytes:
    """The one text of this prototype: safetensors, with the two numbers in its metadata."""
    numbers = canonical_json({"images": prototype.images, "std": prototype.std})
    shape = prototype.vector.shape
    writer = Writer({_NAME: shape}, Precision.FP32, {_METADATA: numbers})
    writer.put(_NAME, prototype.vector)
    return writer.blob()


def from_bytes(blob: bytes, source: str) -> ImagePrototype:
    """Read what `to_bytes` wrote.

    Raises:
        BankError: other bytes than it would write, or numbers that no pictures have;
            `source` names it.
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
    """Why no pictures have this prototype: what was found, what was expected; or None."""
    if not 1 <= prototype.vector.size <= MOST_WIDTH:
        return f"found {prototype.vector.size} numbers, expected 1 to {MOST_WIDTH}"
    if not np.isfinite(prototype.vector).all():
        return "found a value that is not finite"
    if not 1 <= prototype.images <= _MOST_IMAGES:
        return f"found {prototype.images} images, expected 1 to {_MOST_IMAGES}"
    if not SHORTEST <= prototype.mean <= 1 + _ROUNDING:
        return f"found the length {prototype.mean:.6g}, expected {SHORTEST:g} to 1"
    widest = _widest(prototype)
    if not 0 <= prototype.std <= widest:
        return (
            f"found the standard deviation {prototype.std:.6g}, expected 0 to {widest:.6g} at "
            f"the length {prototype.mean:.6g}"
        )
    return None


def merged(prototypes: Sequence[ImagePrototype]) -> ImagePrototype | None:
    """The prototype of all the pictures together; None where they cancel and it has no direction.

    Of prototypes without a fault it has none, whatever they claim: counts end at the largest
    that a prototype may have, and the deviation at what its length leaves room for.

    With n_i pictures, mean m_i and deviation s_i each, and N = sum n_i: the mean
    m = sum n_i m_i / N is exact, and so is its length, the mean of all cosines to it. Of the
    variance of these cosines the part between the sites is exact,
    sum n_i (m_i . m / |m| - |m|)^2 / N; for the part within, sum n_i s_i^2 / N stands, which
    is measured along m_i and not along m: exact for one site or for equal directions.

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
    found = replace(found, std=min(found.std, _widest(found)))
    return found if fault_of(found) is None else None


def _widest(prototype: ImagePrototype) -> float:
    """The largest deviation: cosines are at most 1 in size, so it leaves room for their mean's."""
    return math.sqrt(max(0.0, 1 - prototype.mean**2) + _ROUNDING)


def _numbers(text: str, source: str) -> tuple[int, float]:
    """How many images, and their deviation."""
    try:
        found: Mapping[str, object] = json.loads(text)
        images, std = found["images"], found["std"]
    except (ValueError, KeyError, TypeError, RecursionError):
        images = std = None
    # `bool` is an `int` to Python, and JSON can say `true` and NaN.
    if type(images) is not int or type(std) is not float or not math.isfinite(std):
        raise BankError(f"{source}: found no count of images and no deviation, expected both")
    return images, std
