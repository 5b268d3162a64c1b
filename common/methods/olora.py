"""Settings of O-LoRA: all earlier adapters summed, each new one orthogonal to them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

from pydantic import Field

from common.methods.interface import LayerShape, MethodSettings
from common.methods.lora_adapters import LoraSettings
from common.plan_fields import Modality


class OLoRA(LoraSettings):
    """O-LoRA (arXiv 2310.14152): an adapter a stage, whose rows of A avoid the earlier ones'.

    Every task, learned or not, is answered by the sum of all adapters so far: no task need be
    told, so an earlier one may be forgotten. The weights are the authors' lambda_1 and lambda_2;
    the defaults are those of their scripts (github.com/cmnfriend/O-LoRA, order 1).
    """

    routable: ClassVar[bool] = False

    #: lambda_1, of the sum of |A_i A'| over all earlier adapters i and all layers.
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    #: lambda_2, of the sum of the Frobenius norms of the new adapter's A and B.
    norm: Annotated[float, Field(ge=0)] = 0.0

    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return all earlier stages."""
        return tuple(range(stage))

    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return all stages so far, for every task."""
        return tuple(range(after + 1))

    @property
    def regularizes_factors(self) -> bool:
        """Whether one of the two weights is not 0."""
        return bool(self.orthogonality or self.norm)

    def regularizer_parameters(
        self, modalities: Sequence[Modality], stage: int, layers: Sequence[LayerShape]
    ) -> int:
        """Return the numbers of all earlier A's."""
        kept = stage if self.orthogonality else 0
        return kept * self.rank * sum(inputs for _, inputs in layers)

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return it at the own method's rank, with its authors' weights."""
        return {"olora": cls.like(own, name="olora")}
