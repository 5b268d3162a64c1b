"""Settings of dual-modality adaptation: a LoRA a task in CLIP's image tower, a prompt a class.

Marks say where a part is from: [P] the paper's abstract, all of it that is public; [S] code or
papers of the same authors (github.com/Fatflower/CIL_Adapted_VLM, arXiv 2512.09441, 2508.03094);
[R] our reconstruction. docs/methods.md has the formulas.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import product
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field

from common.adapter import ROW_WEIGHT_SUFFIX
from common.methods.interface import BaseRole, MethodSettings
from common.methods.lora_adapters import LoraSettings
from common.plan_fields import Count, Modality, Positive, Rank

#: The arrays of an adapter beside its pairs, a row a class.
PROMPTS: Final = "prompts"
MEANS: Final = "means"
#: Tokens of "a photo of a", in whose places the vectors of a prompt stand.
LONGEST_PROMPT: Final = 4
#: The layers of CLIP's image tower that get a pair, as transformers names them [S].
_ADAPTED: Final = re.compile(r"vision_model\.encoder\.layers\.\d+\.self_attn\.[kv]_proj\.weight")


class Reuse(StrEnum):
    """How the prompts of earlier stages take part in training [P: that they do].

    `prompts`: the stage's prompts are also told from the old ones, on image features that pass no
    gradient [R]. `distance`: they are kept from being similar to any other prompt [S]. `negatives`:
    the one cross-entropy is over the old classes, too, so that the LoRA learns them as well [R].
    `none`: they take no part.
    """

    PROMPTS = "prompts"
    DISTANCE = "distance"
    NEGATIVES = "negatives"
    NONE = "none"


class Decide(StrEnum):
    """How a class is chosen over all stages' branches where the task is not told.

    `base_prior`: by the frozen CLIP's probability of the task, and the branch's of the class
    within it [R]. `prototype`: by the branch's similarity to prompt and mean feature [S].
    `entropy`: by the branch that is surest over all classes [S, arXiv 2512.09441]. `own_max`: by
    the largest similarity of a branch to a prompt of its own [R].
    """

    BASE_PRIOR = "base_prior"
    PROTOTYPE = "prototype"
    ENTROPY = "entropy"
    OWN_MAX = "own_max"


class DualModality(LoraSettings):
    """Dual-modality adaptation: image branch by LoRA, text branch by class prompts [P].

    A release is a branch: it is trained on the base model alone, and never changes. Answers come
    from all branches that are released, so nothing need be told and no router is used.
    """

    routable: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True
    base_role: ClassVar[BaseRole | None] = BaseRole.CLIP
    unused_training: ClassVar[tuple[str, ...]] = ("packing", "gradient_checkpointing")

    rank: Rank = 24  # [S]
    alpha: Positive = 1.0  # [S: loralib's default]
    #: Vectors of a class's prompt [S].
    prompt_length: Annotated[int, Field(ge=1, le=LONGEST_PROMPT)] = 4
    reuse: Reuse = Reuse.PROMPTS
    #: s of `reuse: distance`: the similarity from which on two prompts repel each other [S].
    margin: Annotated[float, Field(ge=-1, le=1)] = 0.7
    decide: Decide = Decide.OWN_MAX
    #: lambda of `decide: prototype`; null decides by the mean feature alone [S].
    prototype_weight: Positive | None = 1.0
    #: Fewest different images of which a site gives a class's mean feature away.
    prototype_minimum: Count = 50

    @property
    def label(self) -> str:
        """The name, followed by `reuse` and `decide` where they are not the defaults."""
        words = [self.name]
        words += [self.reuse.value] if self.reuse is not Reuse.PROMPTS else []
        words += [self.decide.value] if self.decide is not Decide.OWN_MAX else []
        return "_".join(words)

    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return none: each branch is trained on the base model alone."""
        return ()

    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return all stages so far, for every task."""
        return tuple(range(after + 1))

    def adapts(self, weight: str) -> bool:
        """Return whether it is the weight of keys or values in the image tower [S]."""
        return _ADAPTED.fullmatch(weight) is not None

    def class_arrays(self, text_width: int, embedding: int) -> Mapping[str, tuple[int, ...]]:
        """Return a class's prompt, with `decide: prototype` its mean feature, and their weights."""
        prompt = {PROMPTS: (self.prompt_length, text_width), PROMPTS + ROW_WEIGHT_SUFFIX: ()}
        if self.decide is not Decide.PROTOTYPE:
            return prompt
        return {**prompt, MEANS: (embedding,), MEANS + ROW_WEIGHT_SUFFIX: ()}

    def summary(self) -> str:
        """Return the method's name, its rank and the length of its prompts."""
        return f"{self.label}, rank {self.rank}, {self.prompt_length} prompt vectors a class"

    def notes(self, tasks: int) -> list[str]:
        """Return what is beside the LoRA in an update, and what is released of it."""
        told = [
            "Method dual_modality: with each adapter leave the prompt vectors of the stage's "
            "classes and, for each class, the number of this site's training examples of it, by "
            "which the coordinator weights them. The prompts are released; the counts are not."
        ]
        if self.decide is Decide.PROTOTYPE:
            told.append(
                "With the last round of each stage a mean leaves for each class (decide: "
                "prototype): that of the image tower's features of this site's training images of "
                "the class, with their number. It is a mean and not an image, but it reveals what "
                "the class's images look like here, and more so the fewer they are. Of fewer than "
                f"{self.prototype_minimum} different images of a class, or of this site's "
                "policy.images if that is more, none leaves. The sites' mean is released with the "
                "adapter, to whoever gets the bank."
            )
        return told

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it with each `reuse` and `decide`: otherwise as the own one, or by default.

        Its plain name is the plan's own settings where the plan has it; the usual `reuse` and
        `decide` are then told by theirs.
        """
        given = own.model_dump() if isinstance(own, DualModality) else {"name": "dual_modality"}
        offered = [
            cls.model_validate({**given, "reuse": reuse, "decide": decide})
            for reuse, decide in product(Reuse, Decide)
        ]
        found = {settings.label: settings for settings in offered}
        if isinstance(own, cls) and own.label != own.name:
            usual = next(one for one in offered if one.label == one.name)
            named = f"{usual.name}_{usual.reuse.value}_{usual.decide.value}"
            found |= {usual.name: own, named: usual}
        return found
