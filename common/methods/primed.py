"""Settings of PRIMED: one adapter through all stages, held by distillation on public pairs.

Marks say where a part is from: [P] the paper's text; [G] GIFT's code (CVPR 2025), on which PRIMED
is built, for what the paper leaves open; [R] our reconstruction. docs/methods.md has the formulas.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import product
from typing import Annotated, Self

from pydantic import Field

from common.methods.clip_adapters import OneClipAdapterSettings, Parameters
from common.methods.interface import LayerShape, MethodSettings
from common.plan_fields import Modality, Positive

_Weight = Annotated[float, Field(ge=0)]


class DistillationTeacher(StrEnum):
    """Whose embeddings are distilled [P: the ablation].

    `last` is the release before, at the first stage the base model; `initial` the base model;
    `mean` the base model with half of the release before.
    """

    LAST = "last"
    INITIAL = "initial"
    MEAN = "mean"


class Transfer(StrEnum):
    """Whose embeddings make the student's similarities in CKT [P: the ablation].

    `image` takes the student's of images and the teacher's of captions, `text` the reverse.
    """

    BOTH = "both"
    IMAGE = "image"
    TEXT = "text"


class Guard(StrEnum):
    """How parameters are held to those of the stage before [P: the ablation].

    `dynamic` weights each by the squared gradient of this step's reference loss (DFG), `ewc` by
    that at the stage's start, `l2` all alike.
    """

    DYNAMIC = "dynamic"
    EWC = "ewc"
    L2 = "l2"
    NONE = "none"


class Formulas(StrEnum):
    """Whose formulas: GIFT's code's, or PRIMED's as they are printed.

    Printed, the terms are sums over the batch without a temperature, equal captions count as
    wrong, and the guard's weights are the squared gradients themselves.
    """

    GIFT = "gift"
    PRINTED = "printed"


class Primed(OneClipAdapterSettings):
    """PRIMED on LoRA of both towers [R], or with `parameters: all` on all parameters [P].

    Label smoothing of 0.2 and 64 reference pairs a step are the paper's [P].
    """

    teacher: DistillationTeacher = DistillationTeacher.LAST
    transfer: Transfer = Transfer.BOTH
    guard: Guard = Guard.DYNAMIC
    formulas: Formulas = Formulas.GIFT
    #: alpha, the weight of CKT [P].
    distillation: _Weight = 1.0
    #: beta, the weight of CMC [P].
    matching: _Weight = 0.25
    #: lambda, the weight of the guard [G].
    guard_weight: Positive = 1.0

    @property
    def reference_pairs(self) -> int:
        """The pairs of a step."""
        return self.reference_batch

    @property
    def regularizes_factors(self) -> bool:
        """Whether there is a guard."""
        return self.guard is not Guard.NONE

    @property
    def label(self) -> str:
        """The name, what is not the default of the ablation's switches, and `all` of weights."""
        switches = {
            self.teacher.value: self.teacher is DistillationTeacher.LAST,
            self.transfer.value: self.transfer is Transfer.BOTH,
            self.guard.value: self.guard is Guard.DYNAMIC,
            self.formulas.value: self.formulas is Formulas.GIFT,
        }
        words = {Guard.NONE.value: "unguarded", DistillationTeacher.MEAN.value: "mean_teacher"}
        changed = [words.get(name, name) for name, usual in switches.items() if not usual]
        return "_".join([self.name, *changed, *(["all"] if self.trains_all else [])])

    def regularizer_parameters(
        self, modalities: Sequence[Modality], stage: int, layers: Sequence[LayerShape]
    ) -> int:
        """Return the numbers of what the factors are held to, and of two more gradients of theirs.

        Those are the gradient of the pairs' loss alone and the guard's weights.
        """
        return self.whole_weight_copies(stage) * self.adapter_parameters(layers)

    def whole_weight_copies(self, stage: int) -> int:
        """Return those of the guard, and of the gradient of the pairs' loss."""
        return {Guard.NONE: 1, Guard.L2: 2}.get(self.guard, 3)

    def summary(self) -> str:
        """Return the method's name, what trains and the terms of its loss."""
        trained = "all weights of both towers" if self.trains_all else f"rank {self.rank}"
        return f"{self.label}, {trained}, {self.reference_batch} reference pairs a step"

    def notes(self, tasks: int) -> list[str]:
        """Return where the reference pairs are from, and what trains if it is no LoRA."""
        return [*self.weights_note(), self.reference_note()]

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it with each switch of its ablation, one at a time, on LoRA and on all weights."""
        given = own.model_dump() if isinstance(own, Primed) else {"name": "primed"}
        changes: list[Mapping[str, str]] = [
            {},
            *({"teacher": value} for value in DistillationTeacher),
            *({"transfer": value} for value in Transfer),
            *({"guard": value} for value in Guard),
            *({"formulas": value} for value in Formulas),
        ]
        offered = [
            cls.model_validate({**given, **change, "parameters": parameters})
            for parameters, change in product(Parameters, changes)
        ]
        return {settings.label: settings for settings in offered}
