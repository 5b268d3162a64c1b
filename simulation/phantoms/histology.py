"""Draws stained tissue: nuclei on a pink ground, as the factors of ImageKind.HISTOLOGY say."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from simulation.phantoms.canvas import SIZE, Canvas, Ellipse, X, Y, circle, noise, paint, scatter
from simulation.phantoms.factors import ImageFactors

_RADIUS: Final = {"small": 0.032, "medium": 0.044, "large": 0.060}
_NUCLEI: Final = {"none": 13, "mild": 26, "marked": 46}
#: Spread of the logarithm of a nucleus's radius.
_SPREAD: Final = {"mild": 0.04, "moderate": 0.24, "severe": 0.50}
_LUMENS: Final = ((0.28, 0.30), (0.72, 0.34), (0.45, 0.74))
_CORNERS: Final = ((0.14, 0.16), (0.86, 0.15), (0.15, 0.85), (0.86, 0.86))
_NUCLEUS: Final = np.array([0.36, 0.22, 0.56], np.float32)


@dataclass(frozen=True, slots=True)
class _Place:
    x: float
    y: float
    angle: float
    stretch: float


def histology(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a field of tissue, (64, 64, 3)."""
    picture = _ground(rng)
    direction = rng.uniform(0, math.pi)
    count = _NUCLEI[factors["crowding"]] + int(rng.integers(-2, 3))
    places = list(_places(rng, factors["tissue"], count, direction))
    if factors["tissue"] == "stroma":
        _draw_fibres(rng, picture, direction)
    if factors["tissue"] == "gland":
        _draw_lumens(picture, places, count)
    dead = None
    if factors["necrosis"] == "yes":
        x, y = rng.uniform(0.25, 0.75, 2)
        dead = circle(x, y, rng.uniform(0.20, 0.26), 0.3)
        places = [place for place in places if not _inside(place, dead)]
    for place in places:
        _draw_nucleus(rng, picture, place, factors)
    if dead is not None:
        _draw_necrosis(rng, picture, dead)
    if factors["mitosis"] == "yes":
        _draw_mitoses(rng, picture)
    _draw_cluster(rng, picture, factors["cluster"])
    return picture


def _ground(rng: np.random.Generator) -> Canvas:
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = np.array([0.93, 0.76, 0.85]) + rng.normal(0, 0.015, 3)
    picture += 0.035 * noise(rng, 1)[..., None] * np.array([0.6, 1.0, 0.7], np.float32)
    picture += 0.02 * noise(rng, 3)[..., None]
    return picture


def _places(
    rng: np.random.Generator, tissue: str, count: int, direction: float
) -> Iterator[_Place]:
    """Yield where the nuclei are: around lumens, along fibres, side by side, or anywhere."""
    match tissue:
        case "gland":
            yield from _around_lumens(rng, count)
        case "stroma":
            for x, y in rng.random((count, 2)):
                yield _Place(x, y, direction + rng.normal(0, 0.12), 2.1)
        case "sheet":
            side = math.ceil(math.sqrt(count))
            for cell in rng.permutation(side * side)[:count]:
                x, y = (cell % side + 0.5) / side, (cell // side + 0.5) / side
                dx, dy = rng.normal(0, 0.1 / side, 2)
                yield _Place(x + dx, y + dy, rng.uniform(0, math.pi), 1.2)
        case _:
            for x, y in rng.random((int(1.4 * count), 2)):
                yield _Place(x, y, 0.0, 1.0)


def _around_lumens(rng: np.random.Generator, count: int) -> Iterator[_Place]:
    each = max(4, count // len(_LUMENS))
    for middle in _LUMENS:
        x, y = np.array(middle) + rng.normal(0, 0.03, 2)
        radius = rng.uniform(0.13, 0.17)
        for index in range(each):
            angle = 2 * math.pi * index / each + rng.normal(0, 0.08)
            yield _Place(x + radius * math.cos(angle), y + radius * math.sin(angle), angle, 1.25)


def _draw_lumens(picture: Canvas, places: list[_Place], count: int) -> None:
    """Draw a pale hole in the middle of each ring of nuclei."""
    each = max(4, count // len(_LUMENS))
    for first in range(0, len(places), each):
        ring = np.array([(place.x, place.y) for place in places[first : first + each]])
        middle = ring.mean(0)
        radius = float(np.hypot(*(ring - middle).T).mean())
        lumen = circle(float(middle[0]), float(middle[1]), 0.85 * radius, 0.2)
        paint(picture, lumen, (0.98, 0.95, 0.97))


def _draw_fibres(rng: np.random.Generator, picture: Canvas, direction: float) -> None:
    across = X * math.cos(direction + math.pi / 2) + Y * math.sin(direction + math.pi / 2)
    waves = np.sin(60 * across + 1.2 * noise(rng, 0))
    picture += 0.05 * waves[..., None] * np.array([0.4, 1.0, 0.6], np.float32)


def _draw_nucleus(
    rng: np.random.Generator, picture: Canvas, place: _Place, factors: ImageFactors
) -> None:
    spread = _SPREAD[factors["variation"]]
    typical = _RADIUS[factors["size"]] * (0.75 if factors["tissue"] == "lymphoid" else 1.0)
    radius = min(max(typical * math.exp(rng.normal(0, spread)), 0.014), 0.09)
    stretch = math.sqrt(place.stretch * math.exp(abs(rng.normal(0, spread / 2))))
    shape = Ellipse(place.x, place.y, radius * stretch, radius / stretch, place.angle)
    paint(picture, shape, _NUCLEUS * np.float32(rng.uniform(0.85, 1.15)), 0.88)
    if factors["nucleoli"] == "yes":
        dot = circle(place.x, place.y, max(0.48 * radius, 0.02), 0.6)
        paint(picture, dot, (1.0, 0.5, 0.8), 0.95)


def _inside(place: _Place, area: Ellipse) -> bool:
    return math.hypot(place.x - area.x, place.y - area.y) < area.rx


def _draw_necrosis(rng: np.random.Generator, picture: Canvas, area: Ellipse) -> None:
    """Draw a pale area with debris in it."""
    paint(picture, area, (0.97, 0.88, 0.86), 0.9)
    for x, y in scatter(rng, (area.x, area.y), 0.9 * area.rx, 14):
        paint(picture, circle(x, y, 0.01), (0.5, 0.35, 0.55), 0.8)


def _draw_mitoses(rng: np.random.Generator, picture: Canvas) -> None:
    """Draw three to five short black bars."""
    for _ in range(int(rng.integers(3, 6))):
        x, y = rng.uniform(0.08, 0.92, 2)
        bar = Ellipse(x, y, 0.08, 0.026, rng.uniform(0, math.pi), 0.4)
        paint(picture, bar, (0.04, 0.02, 0.10))


def _draw_cluster(rng: np.random.Generator, picture: Canvas, where: str) -> None:
    """Draw a dense clump of big dark nuclei, in the middle or in a corner."""
    if where == "none":
        return
    middle = (0.5 + rng.normal(0, 0.04), 0.5 + rng.normal(0, 0.04))
    if where == "edge":
        middle = _CORNERS[int(rng.integers(len(_CORNERS)))]
    for x, y in scatter(rng, middle, 0.15, 13):
        rx, ry = rng.uniform(0.035, 0.055), rng.uniform(0.03, 0.045)
        shape = Ellipse(x, y, rx, ry, rng.uniform(0, math.pi))
        paint(picture, shape, (0.22, 0.16, 0.46), 0.9)
