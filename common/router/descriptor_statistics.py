"""What a release says of how its stage's pictures vary, so that a router can call one foreign.

A picture's descriptor is DESCRIPTORS numbers (client/inference/descriptor.py). A release has
their mean and covariance over the stage's different training pictures, and how many of the
pictures lie how far from the others. What it can reveal: docs/adr/0009-router.md.
Legend of shapes: D descriptors, B bins of distances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from common.tensors import Array

#: Numbers of a descriptor: of the pixels, and random projections of the tower's features.
PIXEL_NUMBERS: Final = 34
PROJECTIONS: Final = 32
DESCRIPTORS: Final = PIXEL_NUMBERS + PROJECTIONS
#: Added to the covariance, as a share of the usual variance of each number: what keeps a number
#: that is the same in all pictures of a stage from deciding alone.
RIDGE: Final = 0.03
#: Usual standard deviation within a stage, by groups of numbers in the descriptor's order: means
#: and deviations of colours, chroma, quantiles and extremes of grey, energies and their
#: peakedness in turn, and directions of five scales. Rounded from the demo's nine tasks.
PIXEL_SCALES: Final = np.array(
    [0.13] * 3 + [0.07] * 3 + [0.045] * 4 + [0.15] * 7 + [0.13, 0.05] + [0.95, 0.35] * 5 + [1.0] * 5
)
#: Edges of the bins: squared Mahalanobis distances divided by D, from 1/8 to 32.
_FIRST, _STEPS, _PER_OCTAVE = -3, 32, 4
BINS: Final = _STEPS + 2
#: No mean of a descriptor is as large, nor a covariance.
_LARGEST: Final = 100.0
_ROUNDING: Final = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class DescriptorStatistics:
    """The statistics of some pictures' descriptors.

    Attributes:
        mean: float32, shape (D,).
        covariance: divided by the number of pictures, float32, shape (D, D).
        distances: number of pictures by the bin of their distance to the others of their site.
        code: DICOM's code of the modality that the header of every picture has; empty where
            they have none, or several.
    """

    mean: Array
    covariance: Array
    distances: tuple[int, ...]
    code: str


def scales(tower_variance: float, width: int) -> npt.NDArray[np.float64]:
    """Return the usual deviation of each number (D,).

    A projection of a feature of `width` numbers has the mean of their variances, whose sum is
    `tower_variance`.
    """
    projected = math.sqrt(max(tower_variance, 1e-6) / width)
    return np.concatenate([PIXEL_SCALES, np.full(PROJECTIONS, projected)])


def regular(
    covariance: npt.NDArray[np.float64], usual: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the covariance with its ridge, (D, D)."""
    return covariance + RIDGE * np.diag(usual**2)


def distances_to_others(
    rows: npt.NDArray[np.float64], usual: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return each row's squared Mahalanobis distance to the other rows' mean, shape (N,).

    With n rows, d = x_i - m and the covariance C, without row i the mean is m - d / (n - 1) and
    the covariance n/(n-1) C - a d d^T with a = n/(n-1)^2; of B = n/(n-1) C + ridge the inverse
    follows by Sherman and Morrison, so that with q = d^T B^-1 d the squared distance is
    (n/(n-1))^2 q / (1 - a q).
    """
    count = len(rows)
    apart: npt.NDArray[np.float64] = rows - rows.mean(0)
    others = regular(apart.T @ apart / (count - 1), usual)
    q = np.einsum("nd,de,ne->n", apart, np.linalg.inv(others), apart)
    ratio = count / (count - 1)
    return ratio**2 * q / (1 - ratio / (count - 1) * q)


def histogram(distances: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Return how many squared distances are in each of the bins."""
    places = np.clip(np.floor(_position(distances)).astype(int) + 1, 0, BINS - 1)
    return tuple(np.bincount(places, minlength=BINS).tolist())


def tail_share(counts: Sequence[int], distance: float) -> float:
    """Return the share of the pictures, with this one, that lie as far or farther (a p-value).

    Within a bin pictures count as evenly spread over the logarithm. Of exchangeable pictures at
    most a share of e has a value of e or less (conformal prediction, Vovk et al. 2005), up to
    the bins' width.
    """
    position = float(_position(np.array([distance]))[0])
    place = min(max(math.floor(position) + 1, 0), BINS - 1)
    within = position - math.floor(position) if 0 < place < BINS - 1 else 0.0
    farther = sum(counts[place + 1 :]) + (1 - within) * counts[place]
    return (farther + 1) / (sum(counts) + 1)


def fault_of(found: DescriptorStatistics, images: int) -> str | None:
    """Return why at most so many pictures can't have these statistics; None if they can."""
    if found.mean.shape != (DESCRIPTORS,) or found.covariance.shape != (DESCRIPTORS, DESCRIPTORS):
        return f"found statistics of another shape, expected {DESCRIPTORS} numbers"
    values = (found.mean, found.covariance)
    if not all(np.isfinite(one).all() and np.abs(one).max() <= _LARGEST for one in values):
        return f"found a statistic beyond {_LARGEST:g}, expected usual ones"
    covariance = found.covariance.astype(np.float64)
    lowest = float(np.linalg.eigvalsh((covariance + covariance.T) / 2)[0])
    if np.abs(covariance - covariance.T).max() > _ROUNDING or lowest < -_ROUNDING:
        return "found a covariance that is none, expected a symmetric and positive one"
    counted = len(found.distances) == BINS and min(found.distances) >= 0
    if not counted or not 1 <= sum(found.distances) <= images:
        return f"found other counts of distances, expected 1 to {images} in {BINS} bins"
    if found.code and not (found.code.isascii() and found.code.isalnum() and len(found.code) <= 16):
        return "found a code of a modality that is none, expected letters and digits"
    return None


def merge_statistics(
    parts: Sequence[tuple[DescriptorStatistics, int]],
) -> DescriptorStatistics | None:
    """Merge statistics, each with its number of pictures, into those of all; None of none.

    Mean and covariance are exact. Distances stay those to a site's own pictures.
    """
    if not parts:
        return None
    total = sum(images for _, images in parts)
    mean = np.zeros(DESCRIPTORS)
    moments = np.zeros((DESCRIPTORS, DESCRIPTORS))
    counts = np.zeros(BINS)
    for one, images in parts:
        own = one.mean.astype(np.float64)
        mean += images / total * own
        moments += images / total * (one.covariance.astype(np.float64) + np.outer(own, own))
        counts += np.array(one.distances) * min(1.0, images / sum(one.distances))
    if not (whole := np.floor(counts).astype(int)).any():
        return None
    covariance = moments - np.outer(mean, mean)
    codes = {one.code for one, _ in parts}
    return DescriptorStatistics(
        mean.astype(np.float32),
        ((covariance + covariance.T) / 2).astype(np.float32),
        tuple(whole.tolist()),
        codes.pop() if len(codes) == 1 else "",
    )


def _position(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return where squared distances are among the edges: 0 at the first one, 1 at the next."""
    smallest = 2.0 ** (_FIRST - 1)
    octaves = np.log2(np.maximum(distances / DESCRIPTORS, smallest)) - _FIRST
    return octaves * _PER_OCTAVE
