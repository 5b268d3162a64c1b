"""Settings of joint training: one LoRA on the questions of every task at once."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from common.methods.interface import AdapterLayout, MethodSettings
from common.methods.lora_adapters import OneAdapterSettings
from common.plan_fields import MOST_RANK, MOST_STAGES


class Joint(OneAdapterSettings):
    """Joint training of one adapter on all tasks at once.

    `joint` has the rank of one stage's adapter: where a method with an adapter a stage ends with
    T of them, it has a T-th of their parameters, so it is a baseline and no upper bound.
    `joint_wide` has T times the rank, as many parameters as T adapters, and is meant as the bound.
    alpha grows with the rank, so that alpha / rank, the factor of B A, stays. AdamW's steps do
    not shrink with the rank, so one of `joint_wide` changes B A by more: it needs a learning rate
    of its own (docs/log.md).

    All tasks at once only if each of a stage's sites holds all of them.
    """

    trains_on_all_tasks: ClassVar[bool] = True

    #: The adapter has the parameters of so many adapters of this rank and alpha.
    adapters: Annotated[int, Field(ge=1, le=MOST_STAGES)] = 1

    @model_validator(mode="after")
    def _within_rank(self) -> Self:
        """Check that the one adapter's rank is one that an adapter may have."""
        if self.layout.rank > MOST_RANK:
            told = "a rank times adapters of at most {most}"
            raise PydanticCustomError("too_wide", told, {"most": MOST_RANK})
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `adapters` out where it is 1, so that such plans keep their digest."""
        found = cast(dict[str, Any], whole(self))
        return found if self.adapters > 1 else {k: v for k, v in found.items() if k != "adapters"}

    @property
    def label(self) -> str:
        """`joint`, or `joint_wide` with the parameters of several adapters."""
        return self.name if self.adapters == 1 else f"{self.name}_wide"

    @property
    def layout(self) -> AdapterLayout:
        """Rank and alpha, times the adapters whose parameters it has."""
        return AdapterLayout(self.rank * self.adapters, self.alpha * self.adapters)

    def notes(self, tasks: int) -> list[str]:
        """Return that each stage trains on all tasks of the site."""
        if tasks < 2:
            return []
        return ["Method joint: each stage trains on the training questions of all these tasks."]

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it with the parameters of one stage's adapter, and with those of all stages'.

        The latter only where they make no rank that an adapter can't have.
        """
        counts = {1, stages} if own.layout.rank * stages <= MOST_RANK else {1}
        offered = [cls.like(own, name="joint", adapters=count) for count in sorted(counts)]
        return {settings.label: settings for settings in offered}
