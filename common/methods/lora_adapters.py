"""What methods with one LoRA pair in every linear layer of the decoder have in common."""

import re
from collections.abc import Sequence
from typing import ClassVar, Final, Self

from common.methods.interface import AdapterLayout, BaseRole, LayerShape, MethodSettings
from common.plan_fields import Modality, Positive, Rank

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
#: Names of the adapted modules: the linear layers of the language model, seven a layer; the
#: vision tower, the projector and the head keep their weights.
LORA_TARGETS: Final = rf".*language_model\.{_LINEAR}"
_WEIGHT: Final = re.compile(rf"(?!.*vision_tower).*{_LINEAR}\.weight")


class LoraSettings(MethodSettings):
    """Settings of a method that trains LoRA (arXiv 2106.09685) on the decoder's linear layers."""

    base_role: ClassVar[BaseRole | None] = BaseRole.WRITER

    rank: Rank
    alpha: Positive

    @property
    def layout(self) -> AdapterLayout:
        """Rank and alpha of the plan."""
        return AdapterLayout(self.rank, self.alpha)

    def adapts(self, weight: str) -> bool:
        """Return whether the weight is of a linear layer of the language model.

        In checkpoints of LLaVA's original layout the language model has no prefix.
        """
        return _WEIGHT.fullmatch(weight) is not None

    def adapter_parameters(self, layers: Sequence[LayerShape]) -> int:
        """Return the numbers of one A and one B a layer: rank * (inputs + outputs)."""
        return sum(self.layout.rank * (outputs + inputs) for outputs, inputs in layers)

    @classmethod
    def like(cls, own: MethodSettings, **fields: object) -> Self:
        """Return these settings at the rank and alpha of another method's adapters."""
        return cls.model_validate(
            {"rank": own.layout.rank, "alpha": own.layout.alpha, **fields}, strict=True
        )

    def summary(self) -> str:
        """Return the method's name and its rank."""
        return f"{self.name}, rank {self.layout.rank}"


class OneAdapterSettings(LoraSettings):
    """Settings of a baseline whose one adapter goes through all stages."""

    routable = False

    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return none: the adapter of the stage before is the one that trains."""
        return ()

    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return the latest stage: its release is how the one adapter is now."""
        return (after,)
