"""The pictures that the embedded model learns from: phantoms, and crops of real pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.identity import seed_for
from simulation.phantoms.canvas import SIZE
from simulation.phantoms.factors import FACTORS, ImageFactors, ImageKind, draw_factors
from simulation.phantoms.images import render
from simulation.pictures.words import with_ring, words
from simulation.pretraining.lesson_words import WORD_QUESTIONS
from simulation.pretraining.make_crops import pretraining_crops

#: How often each kind is drawn: more where there is more to see.
_KIND_SHARES: Final[Mapping[ImageKind, float]] = {
    ImageKind.HISTOLOGY: 0.24,
    ImageKind.CHEST_XRAY: 0.20,
    ImageKind.ABDOMEN_CT: 0.08,
    ImageKind.CHEST_CT: 0.08,
    ImageKind.BRAIN_MR: 0.08,
    ImageKind.ULTRASOUND: 0.04,
    ImageKind.FUNDUS: 0.06,
    ImageKind.SKIN_PHOTO: 0.11,
    ImageKind.DERMOSCOPY: 0.11,
}
#: Scanners that phantoms are drawn with: many, so that the tower learns to ignore them.
_SITES: Final = 64
#: The share of phantoms with a green ring on them, as real tasks mark a place.
_RING_SHARE: Final = 0.15
#: The label of a fact that the picture does not have: it belongs to another kind.
UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Album:
    """Pictures with all their labels.

    `kinds[i]` is None for a crop of a real picture, whose `factors[i]` is empty.
    `words[i]` are the plain words of simulation/pictures/words.py.
    """

    pixels: NDArray[np.uint8]
    kinds: Sequence[ImageKind | None]
    factors: Sequence[ImageFactors]
    words: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class VisualFact:
    """One label to predict: of a kind of phantom, or (None) of any picture."""

    kind: ImageKind | None
    name: str
    values: tuple[str, ...]


def make_album(phantoms: int, crops: int, seed: int) -> Album:
    """Make `phantoms` phantoms, then `crops` crops of the real pictures' train regions."""
    rng = np.random.default_rng(seed_for(seed, "album"))
    names = list(_KIND_SHARES)
    pixels = np.empty((phantoms + crops, SIZE, SIZE, 3), np.uint8)
    kinds: list[ImageKind | None] = []
    factors: list[ImageFactors] = []
    seen: list[Mapping[str, str]] = []
    for index in range(phantoms):
        kind = names[int(rng.choice(len(names), p=list(_KIND_SHARES.values())))]
        facts = draw_factors(kind, rng)
        shown = render(kind, facts, rng, int(rng.integers(_SITES)))
        ring = _ring(rng) if rng.random() < _RING_SHARE else None
        seen.append(words(shown, ring))
        pixels[index] = shown if ring is None else with_ring(shown, ring)
        kinds.append(kind)
        factors.append(facts)
    real, real_words = pretraining_crops(crops, seed)
    pixels[phantoms:] = real
    blank: ImageFactors = {}
    kinds += [None] * crops
    factors += [blank] * crops
    return Album(pixels, kinds, factors, [*seen, *real_words])


def list_facts(album: Album) -> list[VisualFact]:
    """List every phantom's kind and factors, and every plain word that `album` has."""
    facts = [VisualFact(None, "kind", tuple(ImageKind))]
    for kind, factors in FACTORS.items():
        facts += [VisualFact(kind, name, values) for name, values in factors.items()]
    for name in WORD_QUESTIONS:
        found = sorted({seen[name] for seen in album.words if name in seen})
        facts.append(VisualFact(None, name, tuple(found)))
    return facts


def fact_labels(album: Album, facts: Sequence[VisualFact]) -> NDArray[np.int64]:
    """Return the index of each fact's value, (pictures, facts); UNKNOWN where it has none."""
    labels = np.full((len(album.kinds), len(facts)), UNKNOWN, np.int64)
    for column, fact in enumerate(facts):
        place = {value: index for index, value in enumerate(fact.values)}
        for row in range(len(album.kinds)):
            labels[row, column] = place.get(_value(album, row, fact), UNKNOWN)
    return labels


def _value(album: Album, row: int, fact: VisualFact) -> str:
    """Return the fact's value in a picture; empty where it has none."""
    kind = album.kinds[row]
    if fact.name == "kind":
        return "" if kind is None else kind
    if fact.kind is None:
        return album.words[row].get(fact.name, "")
    return album.factors[row][fact.name] if fact.kind is kind else ""


def _ring(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random centre at which a ring fits wholly into a picture."""
    row, column = rng.integers(8, SIZE - 8, 2)
    return int(row), int(column)
