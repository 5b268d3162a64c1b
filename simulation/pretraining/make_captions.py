"""What the embedded small CLIP reads of a picture: captions, and which pictures each is true of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.phantoms.captions import PHRASES, caption
from simulation.phantoms.factors import FACTORS, ImageKind, shuffled
from simulation.pretraining.make_album import Album

#: Facts of a phantom in one caption, at most; none is the kind alone.
_MOST_FACTS: Final = 3
#: How a fact of a picture is known: of a phantom (kind, factor, value), of a crop ("", name, word).
Fact = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, and the facts that make it true."""

    text: str
    facts: frozenset[Fact]


def facts_of(album: Album, index: int) -> frozenset[Fact]:
    """Return all facts of a picture, its kind or source included."""
    kind = album.kinds[index]
    if kind is None:
        return frozenset(("", name, word) for name, word in album.words[index].items())
    own = {(str(kind), factor, value) for factor, value in album.factors[index].items()}
    return frozenset({*own, (str(kind), "", "")})


def draw_caption(album: Album, index: int, rng: np.random.Generator) -> Caption:
    """Draw a caption of a picture: its kind and up to three facts."""
    kind = album.kinds[index]
    if kind is None:
        return _crop_caption(album.words[index], rng)
    names = shuffled(rng, list(PHRASES[kind]))[: int(rng.integers(_MOST_FACTS + 1))]
    facts = {name: album.factors[index][name] for name in names}
    own = {(str(kind), name, value) for name, value in facts.items()}
    return Caption(caption(kind, facts), frozenset({*own, (str(kind), "", "")}))


def _crop_caption(words: Mapping[str, str], rng: np.random.Generator) -> Caption:
    others = [name for name in words if name != "source"]
    names = shuffled(rng, others)[: int(rng.integers(_MOST_FACTS))]
    said = [words["source"], *(f"{name} {words[name]}" for name in names)]
    return Caption(
        ", ".join(said), frozenset(("", name, words[name]) for name in ["source", *names])
    )


def truth(pictures: Sequence[frozenset[Fact]], captions: Sequence[Caption]) -> NDArray[np.float32]:
    """Return which caption is true of which picture, (pictures, captions), 1 and 0."""
    rows = [[caption.facts <= facts for caption in captions] for facts in pictures]
    return np.array(rows, np.float32)


def all_texts() -> list[str]:
    """Return the captions of every kind and of every fact of a phantom alone."""
    kinds = [caption(kind, {}) for kind in ImageKind]
    facts = [
        caption(kind, {name: value})
        for kind, factors in FACTORS.items()
        for name, values in factors.items()
        for value in values
    ]
    return [*kinds, *facts]
