"""Settings of PRIMED: one adapter through all stages, held by distillation on public pairs.

Marks say where a part is from: [P] the paper's text; [G] GIFT's code (CVPR 2025), on which PRIMED
is built, for what the paper leaves open; [R] our reconstruction. docs/methods.md has the formulas.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field

from common.methods.interface import MethodSettings
from common.methods.lora_adapters import OneAdapterSettings
from common.plan_fields import Count, Positive, ReferencePin

#: The layers of both towers that get a pair, as transformers names them [R].
_ADAPTED: Final = re.compile(
    r"(vision|text)_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.weight"
)
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


class Primed(OneAdapterSettings):
    """PRIMED on LoRA of both towers [R: the paper trains all parameters]."""

    needs_classes: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    unused_training: ClassVar[tuple[str, ...]] = ("packing", "gradient_checkpointing")

    rank: Count = 16
    alpha: Positive = 16.0
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
    #: Of the task's cross-entropy [P].
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2
    #: Reference pairs of an optimizer step [P].
    reference_batch: Annotated[int, Field(ge=2)] = 64
    #: The list of reference pairs (docs/retrieval.md). Null: whichever list of these stages a site
    #: has, as in a simulation that makes it.
    reference: ReferencePin | None = None

    @property
    def pinned_reference(self) -> str | None:
        """The digest that the plan pins."""
        return None if self.reference is None else self.reference.sha256

    @property
    def label(self) -> str:
        """The name, followed by what is not the default of the ablation's switches."""
        switches = {
            self.teacher.value: self.teacher is DistillationTeacher.LAST,
            self.transfer.value: self.transfer is Transfer.BOTH,
            self.guard.value: self.guard is Guard.DYNAMIC,
            self.formulas.value: self.formulas is Formulas.GIFT,
        }
        words = {Guard.NONE.value: "unguarded", DistillationTeacher.MEAN.value: "mean_teacher"}
        changed = [words.get(name, name) for name, usual in switches.items() if not usual]
        return "_".join([self.name, *changed])

    def adapts(self, weight: str) -> bool:
        """Return whether it is a weight of attention, in either tower."""
        return _ADAPTED.fullmatch(weight) is not None

    def summary(self) -> str:
        """Return the method's name, its rank and the terms of its loss."""
        return f"{self.label}, rank {self.rank}, {self.reference_batch} reference pairs a step"

    def notes(self, tasks: int) -> list[str]:
        """Return where the reference pairs are from."""
        pinned = "" if self.reference is None else f" {self.reference.sha256[:16]}"
        return [
            "Method primed: each step also trains on public image-caption pairs of the list"
            f"{pinned}, which this site reads from the folder `reference` of its site file. The "
            "pairs were chosen from the plan alone; nothing of this site's data was asked for."
        ]

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it with each switch of its ablation, one at a time."""
        given = own.model_dump() if isinstance(own, Primed) else {"name": "primed"}
        changes: list[Mapping[str, str]] = [
            {},
            *({"teacher": value} for value in DistillationTeacher),
            *({"transfer": value} for value in Transfer),
            *({"guard": value} for value in Guard),
            *({"formulas": value} for value in Formulas),
        ]
        offered = [cls.model_validate({**given, **change}) for change in changes]
        return {settings.label: settings for settings in offered}
