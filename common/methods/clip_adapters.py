"""What methods with one LoRA on attention in a CLIP's towers have in common."""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from common.methods.interface import BaseRole
from common.methods.lora_adapters import OneAdapterSettings
from common.plan_fields import Count, Positive, ReferencePin

#: The layers of a tower that get a pair, as transformers names them.
_ADAPTED: Final = r"\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.weight"
_SHARED: Final = ("rank", "alpha", "label_smoothing", "reference_batch", "reference")


class Towers(StrEnum):
    """Which of a CLIP's towers get LoRA."""

    BOTH = "both"
    IMAGE = "image"


class OneClipAdapterSettings(OneAdapterSettings):
    """Settings of a method whose one LoRA, on a CLIP, goes through all stages."""

    needs_classes: ClassVar[bool] = True
    base_role: ClassVar[BaseRole | None] = BaseRole.CLIP
    unused_training: ClassVar[tuple[str, ...]] = ("packing", "gradient_checkpointing")

    rank: Count = 16
    alpha: Positive = 16.0
    #: Of the task's cross-entropy.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2
    #: Reference pairs of an optimizer step, of a method that trains on them.
    reference_batch: Annotated[int, Field(ge=2)] = 64
    #: The list of reference pairs (docs/retrieval.md). Null: whichever list of these stages a site
    #: has, as in a simulation that makes it.
    reference: ReferencePin | None = None

    @property
    def pinned_reference(self) -> str | None:
        """The digest that the plan pins."""
        return None if self.reference is None else self.reference.sha256

    @property
    def adapted_towers(self) -> Towers:
        """The towers that get LoRA."""
        return Towers.BOTH

    def adapts(self, weight: str) -> bool:
        """Return whether it is a weight of attention in a tower that gets LoRA."""
        towers = "(vision|text)" if self.adapted_towers is Towers.BOTH else "vision"
        return re.fullmatch(f"{towers}_model{_ADAPTED}", weight) is not None

    def shared_fields(self) -> dict[str, Any]:
        """Return what another such method takes over where the two are compared."""
        return {name: getattr(self, name) for name in _SHARED}

    def reference_note(self) -> str:
        """Return, for a site's admin, where the reference pairs are from."""
        pinned = "" if self.reference is None else f" {self.reference.sha256[:16]}"
        return (
            f"Method {self.name}: each step also trains on public image-caption pairs of the list"
            f"{pinned}, which this site reads from the folder `reference` of its site file. The "
            "pairs were chosen from the plan alone; nothing of this site's data was asked for."
        )
