"""Settings of one adapter a modality, which goes on training when its modality comes again."""

from collections.abc import Mapping, Sequence
from typing import Self

from common.methods.interface import MethodSettings
from common.methods.lora_adapters import LoraSettings
from common.plan_fields import Modality


class PerModality(LoraSettings):
    """One LoRA for each modality: sequential fine-tuning within it, nothing shared across.

    An earlier task is answered by its modality's newest adapter, so it may be forgotten when the
    modality comes again, and never by another modality's.
    """

    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return none: the modality's adapter so far is the one that trains."""
        return ()

    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return the latest stage of the task's modality, if there is one."""
        return latest_of_modality(modalities, task, after + 1)

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it at the own method's rank."""
        return {"per_modality": cls.like(own, name="per_modality")}


def latest_of_modality(modalities: Sequence[Modality], stage: int, before: int) -> tuple[int, ...]:
    """Return the latest stage before `before` of the modality of `stage`; empty if none is."""
    same = [other for other in range(before) if modalities[other] is modalities[stage]]
    return tuple(same[-1:])
