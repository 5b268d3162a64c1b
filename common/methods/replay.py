"""Settings of replay: sequential fine-tuning, and what each site keeps of earlier tasks."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from common.methods.interface import MethodSettings
from common.methods.lora_adapters import OneAdapterSettings
from common.plan_fields import Count


class Replay(OneAdapterSettings):
    """Sequential fine-tuning with experience replay (arXiv 1811.11682, 1902.10486).

    A site's questions never leave it, so it may keep them and train on them again: in every stage
    on some of those earlier tasks of the plan that it holds itself. A site without any trains on
    the stage's own questions alone. The optimizer steps are those of the stage's own task.
    """

    #: Most training questions that a site keeps of each earlier task; null keeps all of them.
    buffer: Count | None = None
    #: Share of a stage's questions that are drawn from the kept ones, equally many of each task.
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @property
    def label(self) -> str:
        """`replay` with all questions kept, otherwise how many of each task."""
        return self.name if self.buffer is None else f"{self.name}_{self.buffer}"

    @property
    def replayed_share(self) -> float:
        """The plan's share."""
        return self.share

    def other_tasks(self, stages: int, stage: int) -> tuple[int, ...]:
        """Return the earlier stages."""
        return tuple(range(stage))

    def notes(self, tasks: int) -> list[str]:
        """Return that each stage trains on earlier tasks of the site, too."""
        if tasks < 2:
            return []
        kept = "" if self.buffer is None else f", at most {self.buffer} of each task"
        return [
            "Method replay: each stage trains on the training questions of these tasks that came "
            f"before it, too{kept}; they stay at this site."
        ]

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it at the own method's rank, with all questions kept and with few."""
        offered = [cls.like(own, name="replay"), cls.like(own, name="replay", buffer=20)]
        return {settings.label: settings for settings in offered}
