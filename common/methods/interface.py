"""The traits of a method: all that plan, server, cost and approval ask of it; no torch.

A method is a pair of files with one name: `common/methods/NAME.py` has its settings, a
subclass of `MethodSettings`, and `client/methods/NAME.py` its code at a site. Nothing else
names it: everybody else asks the traits below.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from common.adapter import EXTRA_PREFIX, AdapterSource, deltas_in
from common.plan_fields import Composition, Modality, Slug, Strict

#: (outputs, inputs) of a linear layer.
LayerShape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What an update of a plan's method must look like, whatever its arrays are called.

    Attributes:
        rank: rows of every A and columns of every B.
        alpha: the factor of every product B @ A, times the rank.
        deltas: whether it has changes of whole weights in place of pairs; rank and alpha then mean
            nothing.
    """

    rank: int
    alpha: float
    deltas: bool = False

    @property
    def scale(self) -> float:
        """The factor of every product B @ A."""
        return self.alpha / self.rank

    def fault_of(self, update: AdapterSource) -> str | None:
        """Return why an update has another layout, or None.

        A site that chose its own rank or scale would choose its weight in the mean.
        """
        if update.modules and update.rank != self.rank:
            return f"rank: found {update.rank}, expected {self.rank}"
        if update.scale != self.scale:
            return f"scale: found {update.scale}, expected {self.scale}"
        deltas = list(deltas_in(update).values())
        if self.deltas and update.modules:
            return f"{update.modules[0]}: found low-rank factors, expected changes of whole weights"
        if self.deltas and not deltas:
            return "found no change of a weight, expected those of all that train"
        if deltas and not self.deltas:
            return (
                f"{EXTRA_PREFIX}{deltas[0]}: found the change of a whole weight, expected "
                "low-rank factors"
            )
        return None


class BaseRole(StrEnum):
    """What a base model is to a method, as a person would say."""

    WRITER = "a model that writes answers"
    CLIP = "a CLIP"


class MethodSettings(Strict):
    """A plan's `method`: its fields are the subclass's own, its traits are these methods.

    Stages are 0-based positions in the plan; `modalities[i]` is the modality of stage i. The
    abstract ones have no default: a method without them is refused when plans are read.
    """

    #: The name of the method's pair of files.
    name: Slug

    #: Whether every stage trains on the training questions of all tasks that its site holds.
    trains_on_all_tasks: ClassVar[bool] = False
    #: Whether a stage trains at all.
    trains: ClassVar[bool] = True
    #: Whether each task keeps an adapter of its own, so that a router has something to choose.
    routable: ClassVar[bool] = True
    #: Whether it answers with a class of the plan's stages, so that each stage must name its own.
    needs_classes: ClassVar[bool] = False
    #: What its base model must be; None takes any.
    base_role: ClassVar[BaseRole | None] = None
    #: Switches of a plan's `training` that mean nothing to it, so that a plan may not set them.
    unused_training: ClassVar[tuple[str, ...]] = ()

    @property
    def reference_pairs(self) -> int:
        """The public reference pairs of an optimizer step, which a site must have; 0 without."""
        return 0

    @property
    def pinned_reference(self) -> str | None:
        """The digest of the list of reference pairs; None if any list of the stages will do."""
        return None

    @property
    def label(self) -> str:
        """What a comparison calls the method with these settings."""
        return self.name

    @property
    @abstractmethod
    def layout(self) -> AdapterLayout:
        """What the adapter of a stage looks like."""

    @property
    def composition(self) -> Composition:
        """How the frozen adapters are held in memory while a stage trains."""
        return Composition.FOLD

    @property
    def site_dependent_start(self) -> str | None:
        """The setting by which sites begin a stage with different adapters; None without one."""
        return None

    @property
    def regularizes_factors(self) -> bool:
        """Whether the loss has a term of the trained adapter's own A or B."""
        return False

    @property
    def begins_with_release(self) -> bool:
        """Whether a stage but the first begins with exactly what the one before has released."""
        return False

    @property
    def independent_stages(self) -> bool:
        """Whether each stage is trained on the base model alone, as if no other were there."""
        return False

    @property
    def replayed_share(self) -> float:
        """The share of a stage's questions that a site draws from those of earlier tasks."""
        return 0.0

    def other_tasks(self, stages: int, stage: int) -> tuple[int, ...]:
        """Return the other stages whose training questions a site trains on, if it has them."""
        everything = range(stages) if self.trains_on_all_tasks else ()
        return tuple(other for other in everything if other != stage)

    @abstractmethod
    def frozen_stages(self, modalities: Sequence[Modality], stage: int) -> tuple[int, ...]:
        """Return the earlier stages whose adapters are frozen under the one that trains."""

    @abstractmethod
    def answering_stages(
        self, modalities: Sequence[Modality], task: int, after: int
    ) -> tuple[int, ...]:
        """Return the stages whose adapters answer `task` once stage `after` is released."""

    @abstractmethod
    def adapts(self, weight: str) -> bool:
        """Return whether the base model's weight of this name gets a pair of factors."""

    @abstractmethod
    def adapter_parameters(self, layers: Sequence[LayerShape]) -> int:
        """Return the numbers of one adapter on adapted layers of these shapes."""

    def class_arrays(self, text_width: int, embedding: int) -> Mapping[str, tuple[int, ...]]:
        """Return the arrays of an adapter beside its pairs, by the shape of a class's row.

        Args:
            text_width: of the tokens of a CLIP's text tower.
            embedding: of the space that both towers end in.
        """
        return {}

    def layer_arrays(self, layers: Sequence[LayerShape]) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an adapter's arrays that are of its layers, beside its pairs."""
        return {}

    def weight_arrays(
        self, weights: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an adapter's arrays that are of whole weights, beside its pairs.

        `weights` are the shapes of a CLIP's weights by name; the arrays `delta.` and such a name
        are their changes (common/adapter.py), which train.
        """
        return {}

    def whole_weight_copies(self, stage: int) -> int:
        """Return how many numbers a regularizer keeps for each one of a weight that trains whole.

        `regularizer_parameters` has those for layers with pairs.
        """
        return 0

    def texts_of_a_step(self, classes: Sequence[int], stage: int) -> int:
        """Return of how many classes a step passes the texts through a CLIP's text tower.

        `classes` are the numbers of each stage's classes; by default they are the stage's own.
        """
        return classes[stage]

    def released(self) -> Mapping[str, Any] | None:
        """Return the settings as a release names them, as JSON values.

        None where the base model with the sum of the adapters answers, whatever the method was.
        """
        return self.model_dump(mode="json") if self.needs_classes else None

    def regularizer_parameters(
        self, modalities: Sequence[Modality], stage: int, layers: Sequence[LayerShape]
    ) -> int:
        """Return the numbers that a stage's regularizer keeps on the device."""
        return 0

    def summary(self) -> str:
        """Return the method in a few words, for a site's admin."""
        return self.label

    def notes(self, tasks: int) -> list[str]:
        """Return what a site's admin must know of training on so many tasks of theirs."""
        return []

    @classmethod
    def comparisons(cls, own: "MethodSettings", stages: int) -> Mapping[str, Self]:
        """Return this method's settings to compare a plan's own method with, by label.

        `stages` is the number of the plan's stages, for a method whose size follows from it.
        """
        return {}
