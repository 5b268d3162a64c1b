"""Settings of MSLoRA-CR: a LoRA for each stage on frozen earlier ones (arXiv 2508.11673)."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Self

from common.contrastive import Contrast, Prototypes, Similarity
from common.methods.interface import LayerShape, MethodSettings
from common.methods.lora_adapters import LoraSettings
from common.plan_fields import Composition, Modality


class Active(StrEnum):
    """Which earlier adapters are summed under the one that trains."""

    ALL = "all"
    SAME_MODALITY = "same_modality"
    NONE = "none"


class Start(StrEnum):
    """What a stage's adapter is initialized with: nothing learned, or something of the bank.

    `modality`: the mean of the adapters of the stage's own modality. `nearest`: the one
    adapter with which the site's own training questions have the least loss. `gradient`:
    nothing learned, but A spans the directions in which their loss falls fastest.
    """

    FRESH = "fresh"
    MODALITY = "modality"
    NEAREST = "nearest"
    GRADIENT = "gradient"


class MSLoRACR(LoraSettings):
    """Modality-specific LoRA with contrastive regularization."""

    active: Active = Active.NONE
    hold: Composition = Composition.FOLD
    start: Start = Start.FRESH
    contrast: Contrast | None

    @property
    def label(self) -> str:
        """What a comparison calls the method with these settings.

        The paper's names, followed by what differs from the paper: `mslora` is the sum of
        all adapters, `mslora_same_gradient` that of the modality's, with another start.
        """
        if self.contrast is None:
            label = "separate" if self.active is Active.NONE else "mslora"
        else:
            label = "mslora_cr" if self.contrast.orthogonality is None else "mslora_cr_ortho"
            label += "_alone" if self.active is Active.NONE else ""
        label += "_same" if self.active is Active.SAME_MODALITY else ""
        return label if self.start is Start.FRESH else f"{label}_{self.start}"

    @property
    def composition(self) -> Composition:
        """How the earlier adapters are held in memory."""
        return self.hold

    @property
    def independent_stages(self) -> bool:
        """Whether nothing of an earlier stage is summed, compared with or begun with."""
        fresh = self.start is Start.FRESH
        return self.active is Active.NONE and self.contrast is None and fresh

    @property
    def regularizes_factors(self) -> bool:
        """Whether it contrasts adapters."""
        return self.contrast is not None

    @property
    def site_dependent_start(self) -> str | None:
        """The start, where it depends on a site's own questions."""
        differs = self.start in (Start.NEAREST, Start.GRADIENT)
        return f"method.start {self.start.value!r}" if differs else None

    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return all earlier stages, those of the stage's modality, or none."""
        match self.active:
            case Active.ALL:
                return tuple(range(stage))
            case Active.SAME_MODALITY:
                own = modalities[stage]
                return tuple(i for i in range(stage) if modalities[i] is own)
            case Active.NONE:
                return ()

    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return the stages that were summed when the task was learned, and its own.

        The task is told, as in arXiv 2508.11673: one that has arrived is answered by the
        adapters it was learned with, one that has not by what the bank would sum for it.
        """
        frozen = self.frozen_stages(modalities, task)
        if task <= after:
            return (*frozen, task)
        return tuple(stage for stage in frozen if stage <= after)

    def regularizer_parameters(
        self, modalities: Sequence[Modality], stage: int, layers: Sequence[LayerShape]
    ) -> int:
        """Return the numbers of the prototypes: adapters, or orthonormal bases of their rows."""
        if self.contrast is None:
            return 0
        earlier = set(modalities[:stage])
        by_task = self.contrast.prototypes is Prototypes.TASK
        count = stage if by_task else len(earlier)
        match self.contrast.similarity:
            case Similarity.EXP:
                return count * self.adapter_parameters(layers)
            case Similarity.GRASSMANN:
                return count * self.rank * sum(inputs for _, inputs in layers)
            case Similarity.ATTRACT:
                return (modalities[stage] in earlier) * self.adapter_parameters(layers)
            case Similarity.NONE:
                return 0

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return separate adapters, and all adapters summed: alone, and with each regularizer."""
        given = own.contrast if isinstance(own, MSLoRACR) else None
        contrast = given or Contrast()
        beta = contrast.orthogonality or Contrast().orthogonality

        def summed(active: Active, contrast: Contrast | None) -> Self:
            hold = own.hold if isinstance(own, MSLoRACR) else Composition.FOLD
            return cls.like(own, name="mslora_cr", active=active, hold=hold, contrast=contrast)

        return {
            "separate": summed(Active.NONE, None),
            "mslora": summed(Active.ALL, None),
            "mslora_cr": summed(Active.ALL, contrast.model_copy(update={"orthogonality": None})),
            "mslora_cr_ortho": summed(
                Active.ALL, contrast.model_copy(update={"orthogonality": beta})
            ),
        }
