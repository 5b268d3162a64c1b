"""Settings of zero-shot answering: the base model as it is."""

from collections.abc import Mapping
from typing import ClassVar, Self

from common.methods.interface import BaseRole, MethodSettings
from common.methods.lora_adapters import OneAdapterSettings


class ZeroShot(OneAdapterSettings):
    """The base model alone; its adapters change nothing."""

    trains: ClassVar[bool] = False
    base_role: ClassVar[BaseRole | None] = None

    def notes(self, tasks: int) -> list[str]:
        """Return that nothing is trained."""
        return ["Method zero_shot trains nothing: its adapters go back as they came."]

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return the baseline at the own method's rank."""
        return {"zero_shot": cls.like(own, name="zero_shot")}
