"""What methods have in common whose one adapter of a CLIP's towers goes through all stages.

It is a LoRA on attention, or the changes of all weights.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from common.adapter import DELTA_PREFIX
from common.methods.interface import AdapterLayout, BaseRole
from common.methods.lora_adapters import OneAdapterSettings
from common.plan_fields import MOST, Positive, Rank, ReferencePin

#: The layers of a tower that get a pair, as transformers names them.
_ADAPTED: Final = r"\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.weight"
_SHARED: Final = ("rank", "alpha", "label_smoothing", "reference_batch", "reference")


class Towers(StrEnum):
    """Which of a CLIP's towers train."""

    BOTH = "both"
    IMAGE = "image"


class Parameters(StrEnum):
    """What of a tower trains: LoRA on its attention, or all its weights.

    `all` are those of blocks, embeddings, norms and projections, and never logit_scale. What
    travels and is released is then each weight's change against the base model, since the weight
    itself in bf16 would swallow steps of 1e-5.
    """

    LORA = "lora"
    ALL = "all"


#: How the names of a tower's weights begin, with those of its projection.
_WEIGHTS: Final = {
    Towers.IMAGE: ("vision_model.", "visual_projection."),
    Towers.BOTH: ("vision_model.", "visual_projection.", "text_model.", "text_projection."),
}


class OneClipAdapterSettings(OneAdapterSettings):
    """Settings of a method whose one adapter, on a CLIP, goes through all stages."""

    needs_classes: ClassVar[bool] = True
    base_role: ClassVar[BaseRole | None] = BaseRole.CLIP
    unused_training: ClassVar[tuple[str, ...]] = ("packing", "gradient_checkpointing")

    parameters: Parameters = Parameters.LORA
    #: Rank and alpha mean nothing with `parameters: all`.
    rank: Rank = 16
    alpha: Positive = 16.0
    #: Of the task's cross-entropy.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2
    #: Reference pairs of an optimizer step, of a method that trains on them.
    reference_batch: Annotated[int, Field(ge=2, le=MOST)] = 64
    #: The list of reference pairs (docs/retrieval.md). Null: whichever list of these stages a site
    #: has, as in a simulation that makes it.
    reference: ReferencePin | None = None

    @property
    def pinned_reference(self) -> str | None:
        """The digest that the plan pins."""
        return None if self.reference is None else self.reference.sha256

    @model_serializer(mode="wrap")
    def without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields without `parameters: lora`, so that such plans keep their digest."""
        fields: dict[str, Any] = handler(self)
        if self.parameters is Parameters.LORA:
            fields.pop("parameters", None)
        return fields

    @property
    def trains_all(self) -> bool:
        """Whether all weights of a tower train."""
        return self.parameters is Parameters.ALL

    @property
    def layout(self) -> AdapterLayout:
        """Rank and alpha of the plan, or changes of whole weights."""
        if self.trains_all:
            return AdapterLayout(rank=1, alpha=1.0, deltas=True)
        return super().layout

    @property
    def begins_with_release(self) -> bool:
        """Whether weights train whole: those of the latest release go on."""
        return self.trains_all

    @property
    def adapted_towers(self) -> Towers:
        """The towers that train."""
        return Towers.BOTH

    def adapts(self, weight: str) -> bool:
        """Return whether it is a weight of attention in a tower that gets LoRA."""
        towers = "(vision|text)" if self.adapted_towers is Towers.BOTH else "vision"
        pattern = f"{towers}_model{_ADAPTED}"
        return not self.trains_all and re.fullmatch(pattern, weight) is not None

    def weight_arrays(
        self, weights: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the changes of all weights of the towers that train, with `parameters: all`."""
        if not self.trains_all:
            return {}
        towers = _WEIGHTS[self.adapted_towers]
        return {
            f"{DELTA_PREFIX}{name}": shape
            for name, shape in weights.items()
            if name.startswith(towers)
        }

    def shared_fields(self) -> dict[str, Any]:
        """Return what another such method takes over where the two are compared."""
        return {name: getattr(self, name) for name in _SHARED}

    def weights_note(self) -> list[str]:
        """Return, for a site's admin, that whole weights train; nothing with LoRA."""
        if not self.trains_all:
            return []
        whose = "the whole model, both towers"
        if self.adapted_towers is Towers.IMAGE:
            whose = "the whole image tower"
        return [
            f"Method {self.name} trains {whose} (parameters: all): every weight of it, not a small "
            "adapter. What leaves after a round is each weight's change, as many numbers as there "
            "are weights: more of the training images may be drawn from so many than from a LoRA's."
        ]

    def reference_note(self) -> str:
        """Return, for a site's admin, where the reference pairs are from."""
        pinned = "" if self.reference is None else f" {self.reference.sha256[:16]}"
        return (
            f"Method {self.name}: each step also trains on public image-caption pairs of the list"
            f"{pinned}, which this site reads from the folder `reference` of its site file. The "
            "pairs were chosen from the plan alone; nothing of this site's data was asked for."
        )
