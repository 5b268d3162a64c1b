"""Draws the grey phantoms: chest X-ray, CT of abdomen and chest, MR of the brain, ultrasound.

Sides are the patient's: the patient's right is on the left of the picture.
"""

from typing import Final

import numpy as np

from simulation.phantoms.canvas import (
    SIZE,
    Canvas,
    Ellipse,
    X,
    Y,
    circle,
    coverage,
    grey,
    noise,
    paint,
)
from simulation.phantoms.factors import ImageFactors

#: The patient's sides, and which way each lies in the picture.
_SIDE_X: Final = {"right": -1, "left": 1}


def chest_xray(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a chest from the front."""
    picture = np.full((SIZE, SIZE), 0.12, np.float32)
    picture += 0.55 * coverage(Ellipse(0.5, 0.62, 0.52, 0.62, soft=0.25))
    shift = rng.normal(0, 0.012)
    width, height = rng.uniform(0.15, 0.17), rng.uniform(0.30, 0.33)
    lungs = {
        side: Ellipse(0.5 + 0.2 * way + shift, 0.45, width, height, soft=0.18)
        for side, way in _SIDE_X.items()
    }
    for lung in lungs.values():
        picture -= 0.42 * coverage(lung)
    _draw_ribs_and_spine(picture, shift)
    reach = (0.13 if factors["heart"] == "normal" else 0.225) * rng.uniform(0.94, 1.06)
    paint(picture, Ellipse(0.55 + shift, 0.6, reach, 0.13, 0.3, 0.25), 0.74, 0.9)
    for side, lung in lungs.items():
        _draw_lung_findings(rng, picture, lung, side, factors)
    picture += 0.02 * noise(rng, 3) + 0.02 * noise(rng, 1)
    return grey(picture)


def _draw_ribs_and_spine(picture: Canvas, shift: float) -> None:
    within = np.abs(X - 0.5) < 0.4
    for rib in range(7):
        line = 0.2 + 0.09 * rib + 0.35 * (X - 0.5) ** 2
        picture += 0.06 * np.exp(-(((Y - line) / 0.013) ** 2)) * within
    picture += 0.22 * np.exp(-(((X - 0.5 - shift) / 0.035) ** 2))


def _draw_lung_findings(
    rng: np.random.Generator, picture: Canvas, lung: Ellipse, side: str, factors: ImageFactors
) -> None:
    inside = coverage(lung)
    if factors["haze"] in (side, "both"):
        cloud = _bell(lung.x + rng.normal(0, 0.02), rng.uniform(0.42, 0.6), 0.11, 0.12)
        picture += inside * cloud * (0.26 + 0.07 * noise(rng, 2))
    if factors["effusion"] == side:
        level = rng.uniform(0.62, 0.66) + 0.25 * (X - lung.x) * -_SIDE_X[side]
        wider = Ellipse(lung.x, lung.y, 1.1 * lung.rx, 1.05 * lung.ry, soft=0.1)
        picture += 0.42 * coverage(wider) * np.clip((Y - level) / 0.05, 0, 1)
    if factors["nodule"] == side:
        spot = circle(lung.x + rng.uniform(-0.05, 0.05), rng.uniform(0.24, 0.42), 0.036)
        paint(picture, spot, 0.84, 0.95)
    if factors["pneumothorax"] == side:
        outward = (X - lung.x) * _SIDE_X[side] - 0.055
        upper = Y < 0.5
        picture -= 0.16 * inside * np.clip(outward / 0.02, 0, 1) * upper
        picture += 0.24 * inside * np.exp(-((outward / 0.013) ** 2)) * upper


def abdomen_ct(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a slice through liver and kidneys."""
    picture = np.full((SIZE, SIZE), 0.03, np.float32)
    rx, ry = rng.uniform(0.42, 0.46), rng.uniform(0.31, 0.35)
    paint(picture, Ellipse(0.5, 0.5, rx, ry, soft=0.06), 0.3)
    paint(picture, Ellipse(0.5, 0.5, rx - 0.05, ry - 0.05, soft=0.08), 0.45)
    paint(picture, Ellipse(0.33, 0.45, 0.2, 0.17, -0.3, 0.12), 0.58)
    paint(picture, Ellipse(0.72, 0.42, 0.085, 0.1, 0.3, 0.15), 0.56)
    paint(picture, Ellipse(0.56, 0.38, 0.1, 0.06, soft=0.2), 0.2)
    enhanced = factors["contrast"] == "yes"
    for side, way in _SIDE_X.items():
        x = 0.51 + 0.15 * way
        paint(picture, Ellipse(x, 0.64, 0.055, 0.07, soft=0.2), 0.72 if enhanced else 0.52)
        if factors["stone"] == side:
            dx, dy = rng.normal(0, 0.01, 2)
            paint(picture, circle(x + dx, 0.64 + dy, 0.026), 1.0)
    paint(picture, Ellipse(0.51, 0.68, 0.065, 0.06, soft=0.2), 0.9)
    paint(picture, circle(0.52, 0.58, 0.028), 0.95 if enhanced else 0.5)
    if factors["lesion"] == "yes":
        x, y = 0.3 + rng.normal(0, 0.04), 0.44 + rng.normal(0, 0.03)
        paint(picture, circle(x, y, rng.uniform(0.04, 0.055)), 0.3, 0.95)
    picture += 0.025 * noise(rng, 3)
    return grey(picture)


def chest_ct(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a slice through lungs and heart."""
    picture = np.full((SIZE, SIZE), 0.03, np.float32)
    paint(picture, Ellipse(0.5, 0.5, 0.46, 0.34, soft=0.06), 0.5)
    for side, way in _SIDE_X.items():
        x = 0.5 + 0.21 * way
        paint(picture, Ellipse(x, 0.48, 0.16, 0.23, soft=0.12), 0.1)
        if factors["nodule"] == side:
            spot = circle(x + rng.normal(0, 0.03), 0.42 + rng.normal(0, 0.05), 0.032)
            paint(picture, spot, 0.8)
        if factors["effusion"] == side:
            paint(picture, Ellipse(x, 0.7, 0.14, 0.07, soft=0.2), 0.5)
    reach = 0.1 if factors["heart"] == "normal" else 0.17
    paint(picture, Ellipse(0.54, 0.45, reach, 0.9 * reach, 0.2, 0.2), 0.62)
    paint(picture, Ellipse(0.5, 0.74, 0.06, 0.055, soft=0.2), 0.92)
    picture += 0.025 * noise(rng, 3)
    return grey(picture)


def brain_mr(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a head from above or from the side."""
    picture = np.full((SIZE, SIZE), 0.03, np.float32)
    grey_white_fluid = (0.55, 0.38, 0.92) if factors["weighting"] == "t2" else (0.42, 0.62, 0.10)
    if factors["plane"] == "axial":
        _draw_axial(picture, factors, grey_white_fluid)
    else:
        _draw_sagittal(picture, factors, grey_white_fluid)
    if factors["lesion"] != "none":
        x = 0.5 + 0.17 * _SIDE_X[factors["lesion"]] + rng.normal(0, 0.02)
        spot = circle(x, 0.4 + rng.normal(0, 0.06), rng.uniform(0.045, 0.06), 0.5)
        paint(picture, spot, 0.97, 0.9)
    picture += 0.02 * noise(rng, 3) + 0.02 * noise(rng, 2)
    return grey(picture)


def _draw_axial(
    picture: Canvas, factors: ImageFactors, tissues: tuple[float, float, float]
) -> None:
    grey_matter, white_matter, fluid = tissues
    paint(picture, Ellipse(0.5, 0.5, 0.38, 0.45, soft=0.05), 0.8)
    paint(picture, Ellipse(0.5, 0.5, 0.355, 0.425, soft=0.05), 0.08)
    paint(picture, Ellipse(0.5, 0.5, 0.33, 0.4, soft=0.06), grey_matter)
    paint(picture, Ellipse(0.5, 0.5, 0.26, 0.32, soft=0.25), white_matter, 0.9)
    wide = 0.035 if factors["ventricles"] == "normal" else 0.075
    for way in (-1, 1):
        shape = Ellipse(0.5 + way * (wide + 0.015), 0.47, wide, 0.12, -0.2 * way, 0.25)
        paint(picture, shape, fluid)
    cleft = np.exp(-(((X - 0.5) / 0.008) ** 2)) * coverage(Ellipse(0.5, 0.5, 0.32, 0.4, soft=0.1))
    picture += (0.25 if fluid > white_matter else -0.12) * cleft


def _draw_sagittal(
    picture: Canvas, factors: ImageFactors, tissues: tuple[float, float, float]
) -> None:
    grey_matter, white_matter, fluid = tissues
    paint(picture, Ellipse(0.48, 0.42, 0.42, 0.36, soft=0.05), 0.8)
    paint(picture, Ellipse(0.48, 0.42, 0.395, 0.335, soft=0.05), 0.08)
    paint(picture, Ellipse(0.48, 0.42, 0.37, 0.31, soft=0.06), grey_matter)
    paint(picture, Ellipse(0.48, 0.42, 0.29, 0.23, soft=0.25), white_matter, 0.9)
    paint(picture, Ellipse(0.68, 0.68, 0.12, 0.09, 0.3, 0.15), grey_matter)
    paint(picture, Ellipse(0.55, 0.8, 0.05, 0.18, 0.1, 0.2), white_matter)
    wide = 0.03 if factors["ventricles"] == "normal" else 0.065
    paint(picture, Ellipse(0.46, 0.44, 0.14, wide, -0.2, 0.25), fluid)


def ultrasound(rng: np.random.Generator, factors: ImageFactors) -> Canvas:
    """Draw a fan of speckle."""
    fineness = 3 if factors["grain"] == "fine" else 2
    speckle = np.hypot(noise(rng, fineness), noise(rng, fineness))
    picture = (0.22 * speckle * (1.1 - 0.5 * Y)).astype(np.float32)
    if factors["cyst"] == "yes":
        x, y = rng.uniform(0.55, 0.7), rng.uniform(0.5, 0.65)
        paint(picture, Ellipse(x, y, 0.13, 0.1, soft=0.2), 0.02, 0.97)
        below = np.clip((Y - y - 0.1) / 0.05, 0, 1) * np.exp(-(Y - y) / 0.4)
        picture += 0.25 * np.exp(-(((X - x) / 0.09) ** 2)) * below
    if factors["stone"] == "yes":
        x, y = rng.uniform(0.3, 0.45), rng.uniform(0.4, 0.6)
        picture *= 1 - 0.9 * ((np.abs(X - x) < 0.05) & (y < Y))
        paint(picture, Ellipse(x, y, 0.05, 0.02), 1.0)
    fan = (np.abs(X - 0.5) < 0.12 + 0.55 * Y) & (Y > 0.06)
    return grey(picture * fan)


def _bell(x: float, y: float, width: float, height: float) -> Canvas:
    return np.exp(-(((X - x) / width) ** 2 + ((Y - y) / height) ** 2))
