"""Draws the phantoms of eye and skin: fundus, clinical photograph, dermoscopy."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.phantoms.canvas import SIZE, Canvas, Ellipse, X, Y, circle, noise, paint, scatter
from simulation.phantoms.factors import ImageFactors

_SPOTS: Final = {"none": 0, "few": 4, "many": 15}
_TONES: Final = {
    "light": (0.93, 0.76, 0.66),
    "medium": (0.76, 0.55, 0.42),
    "dark": (0.42, 0.28, 0.21),
}
_SKIN_SPOT: Final = {
    "red": (0.82, 0.22, 0.20),
    "purple": (0.50, 0.22, 0.55),
    "brown": (0.36, 0.20, 0.10),
    "white": (0.97, 0.94, 0.90),
}
_MOLE: Final = {
    "brown": (0.55, 0.34, 0.20),
    "black": (0.20, 0.13, 0.11),
    "pink": (0.90, 0.52, 0.52),
    "purple": (0.55, 0.10, 0.28),
}


def fundus(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw the back of an eye: disc, vessels, red and yellow spots."""
    picture = np.zeros((SIZE, SIZE, 3), np.float32)
    paint(picture, circle(0.5, 0.5, 0.47, 0.06), (0.82, 0.38, 0.14))
    picture *= 1 + 0.06 * noise(rng, 0)[..., None]
    disc = 0.26 if factors["disc"] == "left" else 0.74
    _draw_vessels(picture, disc)
    paint(picture, Ellipse(disc, 0.5, 0.085, 0.1, soft=0.2), (0.99, 0.82, 0.50))
    cup = 0.03 if factors["cup"] == "small" else 0.068
    paint(picture, Ellipse(disc, 0.5, cup, 1.1 * cup, soft=0.3), (1.0, 0.97, 0.85))
    for name, colour in (("red", (0.45, 0.03, 0.03)), ("yellow", (1.0, 0.93, 0.45))):
        for x, y in scatter(rng, (0.5, 0.5), 0.4, _SPOTS[factors[name]]):
            paint(picture, circle(x, y, rng.uniform(0.026, 0.034)), colour, 0.95)
    return picture


def _draw_vessels(picture: Canvas, disc: float) -> None:
    """Draw four arcs from the disc towards the other side."""
    onward = 1 if disc < 0.5 else -1
    for way in (-1, 1):
        for spread in (0.20, 0.44):
            for t in np.linspace(0, 1, 26):
                x, y = disc + 0.55 * onward * t, 0.5 + way * spread * math.sqrt(t)
                if math.hypot(x - 0.5, y - 0.5) < 0.45:
                    paint(picture, circle(x, y, 0.012), (0.5, 0.12, 0.06), 0.8)


def skin_photo(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw skin with bumps, a patch or a lump on it."""
    tone = (np.array(_TONES[factors["tone"]]) + rng.normal(0, 0.02, 3)).astype(np.float32)
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = tone
    picture *= (1 + 0.04 * noise(rng, 0) + 0.03 * noise(rng, 3))[..., None]
    colour = 0.8 * np.array(_SKIN_SPOT[factors["colour"]], np.float32) + 0.2 * tone
    spots = _spots(rng, factors["form"])
    for spot in spots:
        paint(picture, spot, colour, 0.9)
        if factors["form"] == "nodule":
            _draw_bulge(picture, spot, colour)
    _draw_cover(rng, picture, spots, factors)
    return picture


def _spots(rng: np.random.Generator, form: str) -> list[Ellipse]:
    match form:
        case "papule":
            count, place, size = int(rng.integers(9, 14)), (0.12, 0.88), (0.035, 0.05)
        case "plaque":
            count, place, size = 1, (0.42, 0.58), (0.28, 0.34)
        case _:
            count, place, size = 1, (0.38, 0.62), (0.14, 0.18)
    found: list[Ellipse] = []
    for _ in range(count):
        (x, y), radius = rng.uniform(*place, 2), rng.uniform(*size)
        angle = rng.uniform(0, math.pi)
        found.append(Ellipse(x, y, radius * rng.uniform(0.95, 1.2), radius, angle, 0.3))
    return found


def _draw_bulge(picture: Canvas, spot: Ellipse, colour: NDArray[np.floating]) -> None:
    """Shade a disc as a lump, with light from the upper left."""
    size = spot.ry
    shine = circle(spot.x - 0.35 * size, spot.y - 0.35 * size, 0.3 * size, 0.8)
    paint(picture, shine, np.minimum(colour + np.float32(0.3), 1), 0.7)
    shade = circle(spot.x + 0.4 * size, spot.y + 0.5 * size, 0.5 * size, 0.8)
    paint(picture, shade, colour * np.float32(0.5), 0.4)


def _draw_cover(
    rng: np.random.Generator, picture: Canvas, spots: list[Ellipse], factors: ImageFactors
) -> None:
    """Draw what covers the spots: yellow tips, white flakes, golden crumbs."""
    if factors["pustule"] == "yes":
        for x, y in _on_spots(rng, spots, 9):
            paint(picture, circle(x, y, 0.034), (0.99, 0.95, 0.50))
    if factors["scale"] == "yes":
        for x, y in _on_spots(rng, spots, 16):
            flake = Ellipse(x, y, 0.055, 0.016, rng.uniform(-0.5, 0.5))
            paint(picture, flake, (0.97, 0.97, 0.98), 0.95)
    if factors["crust"] == "yes":
        for x, y in _on_spots(rng, spots, 6):
            crumb = Ellipse(x, y, 0.052, 0.042, rng.uniform(0, math.pi), 0.5)
            paint(picture, crumb, (0.68, 0.46, 0.08), 0.95)


def _on_spots(
    rng: np.random.Generator, spots: list[Ellipse], count: int
) -> list[tuple[float, float]]:
    chosen = (spots[int(rng.integers(len(spots)))] for _ in range(count))
    return [place for s in chosen for place in scatter(rng, (s.x, s.y), 0.85 * s.ry, 1)]


def dermoscopy(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a mole as seen through a dermatoscope."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = np.array([0.87, 0.68, 0.60]) + rng.normal(0, 0.015, 3)
    picture *= 1 + 0.03 * noise(rng, 1)[..., None]
    x, y = rng.uniform(0.46, 0.54, 2)
    mole = circle(x, y, rng.uniform(0.26, 0.30))
    cover = _mole_cover(rng, mole, factors)[..., None]
    picture += cover * (_mole_colour(rng, mole, factors) - picture)
    _draw_structure(rng, picture, mole, factors["structure"])
    if factors["hair"] == "yes":
        for _ in range(4):
            angle, offset = rng.uniform(0, math.pi), rng.uniform(-0.3, 0.3)
            away = (X - 0.5) * math.sin(angle) - (Y - 0.5) * math.cos(angle) - offset
            picture *= 1 - 0.75 * np.exp(-((away / 0.009) ** 2))[..., None]
    lens = np.clip((0.62 - np.hypot(X - 0.5, Y - 0.5)) / 0.06, 0, 1)
    return picture * lens[..., None]


def _mole_cover(rng: np.random.Generator, mole: Ellipse, factors: ImageFactors) -> Canvas:
    """Return how much of each pixel is mole: round or jagged, with a sharp or a fuzzy rim."""
    radius = np.full((SIZE, SIZE), mole.rx, np.float32)
    if factors["symmetric"] == "no":
        around = np.arctan2(Y - mole.y, X - mole.x)
        for waves, depth in ((1, 0.24), (3, 0.16), (5, 0.10)):
            radius += mole.rx * depth * np.sin(waves * around + rng.uniform(0, 2 * math.pi))
    fade = 0.03 if factors["border"] == "sharp" else 0.17
    return np.clip((radius - np.hypot(X - mole.x, Y - mole.y)) / fade + 0.5, 0, 1)


def _mole_colour(rng: np.random.Generator, mole: Ellipse, factors: ImageFactors) -> Canvas:
    even = np.array(_MOLE[factors["colour"]], np.float32)
    colour = even * (1 + 0.1 * noise(rng, 1))[..., None]
    if factors["symmetric"] == "no":
        around = np.arctan2(Y - mole.y, X - mole.x)
        half = np.sign(np.cos(around - rng.uniform(0, 2 * math.pi)))
        colour *= (1 + 0.175 * half)[..., None]
    if factors["structure"] == "network":
        lines = (np.sin(18 * math.pi * X) > 0.6) | (np.sin(18 * math.pi * Y) > 0.6)
        colour = np.where(lines[..., None], 0.6 * colour, colour)
    return colour.astype(np.float32)


def _draw_structure(
    rng: np.random.Generator, picture: Canvas, mole: Ellipse, structure: str
) -> None:
    """Draw the structure inside the mole; a network is part of its colour."""
    if structure == "white":
        paint(picture, circle(mole.x, mole.y, 0.45 * mole.rx, 0.4), (0.97, 0.92, 0.90), 0.95)
    count = {"blue": 5, "dots": 16, "lacunae": 8, "flakes": 13}.get(structure, 0)
    for x, y in scatter(rng, (mole.x, mole.y), 0.7 * mole.rx, count):
        match structure:
            case "blue":
                blot = Ellipse(x, y, 0.05, 0.04, rng.uniform(0, math.pi), 0.5)
                paint(picture, blot, (0.38, 0.45, 0.66), 0.9)
            case "dots":
                paint(picture, circle(x, y, 0.024), (0.99, 0.95, 0.80))
            case "lacunae":
                paint(picture, Ellipse(x, y, 0.045, 0.04, soft=0.25), (0.75, 0.05, 0.10), 0.9)
            case _:
                flake = Ellipse(x, y, 0.05, 0.017, rng.uniform(-0.4, 0.4))
                paint(picture, flake, (0.98, 0.97, 0.96), 0.95)
