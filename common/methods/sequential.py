"""Settings of sequential fine-tuning: one LoRA, trained on and on; the baseline that forgets."""

from collections.abc import Mapping
from typing import Self

from common.methods.interface import MethodSettings
from common.methods.lora_adapters import OneAdapterSettings


class Sequential(OneAdapterSettings):
    """Sequential fine-tuning of one adapter."""

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return the baseline at the own method's rank."""
        return {"sequential": cls.like(own, name="sequential")}
