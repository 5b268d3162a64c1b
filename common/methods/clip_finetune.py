"""Settings of continual fine-tuning of a CLIP, and of what is commonly done against its forgetting.

Marks say where a part is from: [P] the paper of the method; [Z] the code of ZSCL's authors
(github.com/Thunderbeee/ZSCL), whose benchmark has these baselines; [R] our reconstruction.
docs/methods.md has the formulas.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import product
from math import prod
from typing import Annotated, Any, Final, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from common.adapter import ROW_WEIGHT_SUFFIX
from common.methods.clip_adapters import OneClipAdapterSettings, Parameters, Towers
from common.methods.interface import LayerShape, MethodSettings
from common.plan_fields import ClassScope, Count, Modality, Positive

#: The arrays that a release of `hold: ewc` has beside its pairs: the two factors of its stage's
#: Fisher, of all layers one after another, in one row each.
FISHER_OUTPUTS: Final = "fisher.outputs"
FISHER_INPUTS: Final = "fisher.inputs"
#: With `parameters: all`: its diagonal, of all weights one after another by name, in one row.
FISHER_DIAGONAL: Final = "fisher.diagonal"
_Weight = Annotated[float, Field(ge=0)]


class Hold(StrEnum):
    """How the weights are held to those that the stage starts with.

    `l2`: all alike [Z]. `ewc`: the more, the larger the Fisher information of the earlier stages'
    tasks is there (Kirkpatrick et al. 2017) [P, factored: R].
    """

    NONE = "none"
    L2 = "l2"
    EWC = "ewc"


class Distil(StrEnum):
    """What is distilled of an older model.

    `lwf`: what the model that the stage starts with says of the stage's own images (Li and Hoiem
    2016) [P]. `zscl`: the base model's similarities of public pairs (arXiv 2303.06628) [P].
    """

    NONE = "none"
    LWF = "lwf"
    ZSCL = "zscl"


class Ensemble(StrEnum):
    """Which weights a release is a mean of.

    `steps`: those after each step of the stage's last round, and those before it, as ZSCL's weight
    ensemble. `zero_shot`: the trained ones and the base model's, as WiSE-FT (arXiv 2109.01903).
    `previous`: the trained ones and the previous release's [Z].
    """

    NONE = "none"
    STEPS = "steps"
    ZERO_SHOT = "zero_shot"
    PREVIOUS = "previous"


class ClipFinetune(OneClipAdapterSettings):
    """Continual fine-tuning of a CLIP: cross-entropy among the stage's class texts.

    With `train_scope: seen` the texts of earlier stages' classes are among them, without a picture
    of theirs [R]. One LoRA trains [R], or with `parameters: all` all weights [P].
    """

    towers: Towers = Towers.BOTH
    #: Among which classes the cross-entropy is: the stage's own [Z], or all so far [R].
    train_scope: ClassScope = ClassScope.OWN
    hold: Hold = Hold.NONE
    #: lambda of `hold`; 1 for l2 [Z].
    hold_weight: Positive = 1.0
    #: Most images of a stage from which a site estimates the Fisher information.
    fisher_images: Count = 128
    distil: Distil = Distil.NONE
    #: lambda of `distil` [P].
    distil_weight: _Weight = 1.0
    ensemble: Ensemble = Ensemble.NONE
    #: alpha: the share of the trained weights in `ensemble: zero_shot` and `previous` [P: 0.5].
    trained_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    @model_serializer(mode="wrap")
    def without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields without those that are off, so that such plans keep their digest."""
        fields = super().without_default(handler)
        if self.train_scope is ClassScope.OWN:
            fields.pop("train_scope", None)
        return fields

    @property
    def adapted_towers(self) -> Towers:
        """The plan's."""
        return self.towers

    @property
    def reference_pairs(self) -> int:
        """The pairs of a step; 0 without `distil: zscl`."""
        return self.reference_batch if self.distil is Distil.ZSCL else 0

    @property
    def regularizes_factors(self) -> bool:
        """Whether the product of the factors is held, or the factors are mixed with others."""
        return self.hold is not Hold.NONE or self.ensemble is Ensemble.PREVIOUS

    @property
    def label(self) -> str:
        """`finetune`, or what is done against forgetting; `_image` where that tower alone trains.

        `_seen` where it trains among the classes of all stages so far. `_all` where its weights
        train, not LoRA. `zscl` has its weight ensemble, and `wise_ft` is interpolation with the
        base model.
        """
        distil = "" if self.distil is Distil.NONE else self.distil.value
        hold = "" if self.hold is Hold.NONE else self.hold.value
        usual = Ensemble.STEPS if self.distil is Distil.ZSCL else Ensemble.NONE
        ensemble = "" if self.ensemble is usual else _ENSEMBLES[self.ensemble]
        words = [word for word in (distil, hold, ensemble) if word]
        where = ["seen"] if self.train_scope is ClassScope.SEEN else []
        where += ["image"] if self.towers is Towers.IMAGE else []
        where += ["all"] if self.trains_all else []
        return "_".join([*(words or ["finetune"]), *where])

    def layer_arrays(self, layers: Sequence[LayerShape]) -> Mapping[str, tuple[int, ...]]:
        """Return the arrays of the Fisher information of LoRA's layers, with `hold: ewc`."""
        if self.hold is not Hold.EWC or self.trains_all:
            return {}
        return {
            FISHER_OUTPUTS: (1, sum(outputs for outputs, _ in layers)),
            FISHER_OUTPUTS + ROW_WEIGHT_SUFFIX: (1,),
            FISHER_INPUTS: (1, sum(inputs for _, inputs in layers)),
            FISHER_INPUTS + ROW_WEIGHT_SUFFIX: (1,),
        }

    def weight_arrays(
        self, weights: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the changes, and with `hold: ewc` the Fisher information of all of them."""
        changes = super().weight_arrays(weights)
        if not changes or self.hold is not Hold.EWC:
            return changes
        total = sum(map(prod, changes.values()))
        return {
            **changes,
            FISHER_DIAGONAL: (1, total),
            FISHER_DIAGONAL + ROW_WEIGHT_SUFFIX: (1,),
        }

    def whole_weight_copies(self, stage: int) -> int:
        """Return those of what holds the weights, of earlier stages' information and of a mean."""
        held = {Hold.NONE: 0, Hold.L2: 1, Hold.EWC: 1 + stage}[self.hold]
        return held + (self.ensemble is Ensemble.STEPS)

    @property
    def begins_with_release(self) -> bool:
        """Whether weights train whole, and a release has neither a mean of them nor more."""
        mixed = self.ensemble is Ensemble.ZERO_SHOT or self.hold is Hold.EWC
        return self.trains_all and not mixed

    def texts_of_a_step(self, classes: Sequence[int], stage: int) -> int:
        """Return the number of classes whose texts are encoded.

        They are the stage's own; with `distil: lwf` or `train_scope: seen` earlier stages', too.
        """
        encodes_earlier = self.distil is Distil.LWF or self.train_scope is ClassScope.SEEN
        return sum(classes[0 if encodes_earlier else stage : stage + 1])

    def regularizer_parameters(
        self, modalities: Sequence[Modality], stage: int, layers: Sequence[LayerShape]
    ) -> int:
        """Return the numbers of what the weights are held to, and of the Fisher information."""
        if self.hold is Hold.NONE:
            return 0
        of_stage = sum(outputs + inputs for outputs, inputs in layers)
        kept = self.adapter_parameters(layers)
        return kept + (stage * of_stage if self.hold is Hold.EWC else 0)

    def summary(self) -> str:
        """Return the comparison's name of the method, its rank and what is trained."""
        trained = "both towers" if self.towers is Towers.BOTH else "the image tower"
        what = "all weights" if self.trains_all else f"rank {self.rank}, LoRA"
        return f"{self.name} ({self.label}), {what} of {trained}"

    def notes(self, tasks: int) -> list[str]:
        """Return what else a step trains on, and what is beside the LoRA in an update."""
        told = self.weights_note()
        if self.distil is Distil.ZSCL:
            told.append(self.reference_note())
        if self.hold is Hold.EWC:
            of = (
                "for each adapted layer the mean square of each of its inputs, and of the loss's "
                "gradient by each output"
            )
            if self.trains_all:
                of = "for each weight the mean square of the loss's gradient by it"
            told.append(
                f"With the last round of each stage the task's Fisher information leaves: {of}, "
                f"over at most {self.fisher_images} of this site's images. "
                "They are means and no images, but reveal which features the images have. Of "
                "fewer different images than this site's policy.images none leave. The sites' mean "
                "is released with the adapter, to whoever gets the bank."
            )
        return told

    @classmethod
    def comparisons(cls, own: MethodSettings, stages: int) -> Mapping[str, Self]:
        """Return the usual baselines, with the layout of the plan's own method on a CLIP."""
        given: dict[str, Any] = {"name": "clip_finetune"}
        if isinstance(own, OneClipAdapterSettings):
            given |= own.shared_fields()
        if isinstance(own, cls):
            weights = ("hold_weight", "fisher_images", "distil_weight", "trained_share")
            given |= {name: getattr(own, name) for name in weights}
        zscl: dict[str, Any] = {"distil": Distil.ZSCL, "ensemble": Ensemble.STEPS}
        changes: list[dict[str, Any]] = [
            {},
            {"train_scope": ClassScope.SEEN},
            {"hold": Hold.L2},
            {"hold": Hold.EWC},
            {"distil": Distil.LWF},
            zscl,
            {**zscl, "hold": Hold.L2},
            {"ensemble": Ensemble.ZERO_SHOT},
            {"ensemble": Ensemble.PREVIOUS, "trained_share": 0.8},
        ]
        offered = [
            cls.model_validate({**given, **change, "towers": towers, "parameters": parameters})
            for parameters, towers, change in product(Parameters, Towers, changes)
        ]
        return {settings.label: settings for settings in offered}


_ENSEMBLES: Final[Mapping[Ensemble, str]] = {
    Ensemble.NONE: "unaveraged",
    Ensemble.STEPS: "averaged",
    Ensemble.ZERO_SHOT: "wise_ft",
    Ensemble.PREVIOUS: "wise_ft_previous",
}
