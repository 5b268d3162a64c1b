"""Classes of phantoms: a class fixes some factors of a kind, the others are drawn evenly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.identity import seed_for
from common.plan_fields import Modality
from simulation.class_tasks.class_task import ClassPicture, Draw, Purpose
from simulation.phantoms.factors import ImageFactors, ImageKind, draw_factors
from simulation.phantoms.images import render


@dataclass(frozen=True, slots=True)
class PhantomClasses:
    """Classes of one kind of phantoms.

    Attributes:
        fixed: by the class's name, the factors that make it.
    """

    modality: Modality
    kind: ImageKind
    fixed: Mapping[str, ImageFactors]

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""
        return tuple(self.fixed)

    def pictures(self, name: str, draw: Draw, each: int) -> list[ClassPicture]:
        """Draw `each` phantoms of every class, through the hospital's own scanner."""
        # What is learned from does not depend on what is asked.
        part = Purpose.TRAIN if draw.purpose is Purpose.TRAIN_BESIDE_VALIDATION else draw.purpose
        rng = np.random.default_rng(
            seed_for(draw.seed, "phantom classes", name, part.value, draw.position)
        )
        drawn: list[ClassPicture] = []
        for _ in range(each):
            for label, fixed in self.fixed.items():
                factors = draw_factors(self.kind, rng, **fixed)
                drawn.append((render(self.kind, factors, rng, draw.position), label))
        return drawn
