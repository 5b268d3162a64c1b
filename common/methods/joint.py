"""Settings of joint training: one LoRA on the questions of every task at once."""

from collections.abc import Mapping
from typing import ClassVar, Self

from common.methods.interface import MethodSettings
from common.methods.lora_adapters import OneAdapterSettings


class Joint(OneAdapterSettings):
    """Joint training of one adapter, meant as an upper bound.

    All tasks at once only if each of a stage's sites holds all of them.
    """

    trains_on_all_tasks: ClassVar[bool] = True

    def notes(self, tasks: int) -> list[str]:
        """Return that each stage trains on all tasks of the site."""
        if tasks < 2:
            return []
        return ["Method joint: each stage trains on the training questions of all these tasks."]

    @classmethod
    def comparisons(cls, own: MethodSettings) -> Mapping[str, Self]:
        """Return the baseline at the own method's rank."""
        return {"joint": cls.like(own, name="joint")}
