"""A plan: what a federation will do, stage by stage. common/plan_file.py reads it.

A plan travels to every site, so it holds no path and no hospital's name: sites are
pseudonyms (`a`, `north`), a base model is a name and a digest.
"""

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from common.identity import canonical_json, sha256


class Modality(StrEnum):
    """A kind of image: what attracts (the same) and repels (another) in the regularizer."""

    PATHOLOGY = "pathology"
    RADIOLOGY = "radiology"
    DERMATOLOGY = "dermatology"
    FUNDUS = "fundus"
    MICROSCOPY = "microscopy"
    CT = "ct"
    MR = "mr"
    XRAY = "xray"
    ULTRASOUND = "ultrasound"
    ENDOSCOPY = "endoscopy"
    OCT = "oct"


class Rule(StrEnum):
    """How a round's updates become one adapter (server/aggregation/rules.py)."""

    FEDAVG = "fedavg"
    SVD = "svd"
    FROZEN_A = "frozen_a"
    ALTERNATING = "alternating"


class Active(StrEnum):
    """Which earlier adapters are summed under the one that trains."""

    ALL = "all"
    SAME_MODALITY = "same_modality"
    NONE = "none"


class Composition(StrEnum):
    """How the earlier adapters are held in memory; both are exact."""

    FOLD = "fold"
    STACK = "stack"


class Similarity(StrEnum):
    """How alike two adapters are to the contrastive regularizer."""

    EXP = "exp"
    GRASSMANN = "grassmann"
    #: No repulsion: a pull to the mean of the modality's own prototypes.
    ATTRACT = "attract"
    NONE = "none"


class Start(StrEnum):
    """What a stage's adapter begins with: nothing learned, or something of the bank.

    `modality`: the mean of the adapters of the stage's own modality. `nearest`: the one
    adapter with which the site's own training questions have the least loss. `gradient`:
    nothing learned, but A spans the directions in which their loss falls fastest.
    """

    FRESH = "fresh"
    MODALITY = "modality"
    NEAREST = "nearest"
    GRADIENT = "gradient"


class Prototypes(StrEnum):
    """What the regularizer compares with: every earlier task, or a mean per modality."""

    TASK = "task"
    MODALITY = "modality"


class Metric(StrEnum):
    """The one measure of a task that enters the score matrix; a fraction of 0 to 1."""

    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    F1 = "f1"
    RECALL = "recall"
    BLEU = "bleu"


class Precision(StrEnum):
    """A number format: of the base model and its forward pass, or of adapters on the wire."""

    FP32 = "fp32"
    BF16 = "bf16"


class VisionWeights(StrEnum):
    """Whose vision tower a LLaVA-Med in its original layout gets; the reference takes OpenAI's."""

    OPENAI = "openai"
    CHECKPOINT = "checkpoint"


class Earlier(StrEnum):
    """When tasks that were learned before are scored again."""

    ALL = "all"
    LAST = "last"
    NONE = "none"


class DataSource(StrEnum):
    """What stands in for the hospitals' data in a simulation."""

    PICTURES = "pictures"
    PHANTOMS = "phantoms"


class Strict(BaseModel):
    """No unknown field, no silent conversion, no change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Slug: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
#: The name of a task's folder; the paper's have capitals.
TaskName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]


class BaseModelPin(Strict):
    """The frozen model that everything is added to, pinned by the digest of its files."""

    name: Slug
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Contrast(Strict):
    """MSLoRA-CR's regularizer (arXiv 2508.11673): `weight` is its alpha."""

    similarity: Similarity = Similarity.EXP
    weight: Annotated[float, Field(ge=0)] = 0.1
    temperature: Positive = 0.1
    prototypes: Prototypes = Prototypes.TASK
    #: The paper's beta; null turns the orthogonality term off.
    orthogonality: Positive | None = 0.01


class MSLoRACR(Strict):
    """Modality-specific LoRA with contrastive regularization (client/methods/mslora_cr.py)."""

    name: Literal["mslora_cr"]
    rank: Count
    alpha: Positive
    active: Active = Active.ALL
    hold: Composition = Composition.FOLD
    start: Start = Start.FRESH
    contrast: Contrast | None

    @property
    def label(self) -> str:
        """What a comparison calls the method with these settings.

        The paper's names, and behind them what differs from the paper: `mslora` is the sum
        of all adapters, `mslora_same_gradient` that of the modality's, with another start.
        """
        if self.contrast is None:
            name = "separate" if self.active is Active.NONE else "mslora"
        else:
            name = "mslora_cr" if self.contrast.orthogonality is None else "mslora_cr_ortho"
            name += "_alone" if self.active is Active.NONE else ""
        name += "_same" if self.active is Active.SAME_MODALITY else ""
        return name if self.start is Start.FRESH else f"{name}_{self.start}"


class OneAdapter(Strict):
    """A baseline of one adapter that goes through all stages; a release is how it then stands.

    `sequential` is fine-tuned on and on, and forgets; `joint` learns all tasks at once, meant
    as an upper bound; `zero_shot` learns nothing (client/methods/, a file each).
    """

    name: Literal["sequential", "joint", "zero_shot"]
    rank: Count
    alpha: Positive

    @property
    def label(self) -> str:
        """What a comparison calls the method."""
        return self.name


MethodPlan: TypeAlias = Annotated[MSLoRACR | OneAdapter, Field(discriminator="name")]


class Training(Strict):
    """What holds for every stage's training: AdamW, cosine schedule over the whole stage."""

    warmup: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    precision: Precision = Precision.FP32
    #: Examples of one forward pass; null takes the stage's whole batch at once.
    micro_batch: Count | None = None
    gradient_checkpointing: bool = False
    #: The questions of one picture share its prefix, and are drawn together.
    packing: bool = False

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without packing says nothing of it, so its digest does not know of it."""
        found = cast(dict[str, Any], whole(self))
        return found if self.packing else {k: v for k, v in found.items() if k != "packing"}


class Evaluation(Strict):
    """What is scored after a stage beside its own task and the earlier ones."""

    #: Score tasks that have not arrived yet, too (for forward transfer).
    future: bool = False
    #: Tasks learned before are scored after every stage, after the last one, or never.
    earlier: Earlier = Earlier.ALL
    #: Whether the base model alone is scored on each task that arrives.
    zero_shot: bool = True
    batch_size: Count = 64


class Stage(Strict):
    """One arrival: a task of one modality, and the sites that hold it."""

    name: Slug
    modality: Modality
    task: TaskName
    sites: Annotated[tuple[Slug, ...], Field(min_length=1)]
    rounds: Count
    local_epochs: Positive
    learning_rate: Positive
    batch_size: Count
    metric: Metric = Metric.ACCURACY
    max_new_tokens: Count = 100
    #: Fewest sites whose update makes a round; null asks for all of them.
    quorum: Count | None = None
    #: After so long a round goes on without the sites that have not answered, if the quorum
    #: holds. A simulation never waits.
    deadline_hours: Positive = 72.0


class Router(Strict):
    """What leaves a site so that a picture can choose its stage (common/image_prototype.py)."""

    #: Fewest different images of which a site makes a prototype.
    minimum: Count = 50
    #: Of the softmax over the cosines, as in DISCO (arXiv 2503.12897).
    temperature: Positive = 0.05


class Simulation(Strict):
    """How one machine stands in for the hospitals; real sites ignore it."""

    data: DataSource
    #: Methods run beside the plan's own, on the same data.
    compare: tuple[Slug, ...] = ()
    #: Share of each task's usual training questions.
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    #: The same for some tasks, in its place.
    train_fractions: dict[TaskName, Annotated[float, Field(gt=0, le=1)]] = {}
    #: Most test questions of a hospital and task; null takes all.
    test_questions: Count | None = None
    label_noise: Fraction = 0.0
    #: How many hospitals' data each of a task's sites holds, in their order: [3] pools at one
    #: site what [1, 1, 1] leaves at three. Null deals one to each.
    deal: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None


class Plan(Strict):
    """A federation's whole course, fixed before it starts."""

    name: Slug
    seed: Annotated[int, Field(ge=0)]
    base_model: BaseModelPin
    #: Only a base model in LLaVA-Med's original layout has the choice.
    vision_weights: VisionWeights = VisionWeights.OPENAI
    method: MethodPlan
    aggregation: Rule
    #: The number format in which adapters travel and are released.
    wire: Precision = Precision.BF16
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    #: Null: no prototype leaves a site, and only the oracle's stage is scored.
    router: Router | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    simulation: Simulation | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON."""
        return sha256(self.canonical().encode())

    def canonical(self) -> str:
        """The plan as canonical JSON: what travels, and what is hashed.

        Without a router it says nothing of one, so such a plan's digest does not know of them.
        """
        without = None if self.router else {"router"}
        return canonical_json(self.model_dump(mode="json", exclude=without))

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of every stage, once, in name order."""
        return tuple(sorted({site for stage in self.stages for site in stage.sites}))

    @property
    def routing(self) -> Router | None:
        """The router, where there is a choice: a baseline of one adapter leaves none."""
        return None if isinstance(self.method, OneAdapter) else self.router

    def base_of(self, stage: int) -> tuple[int, ...]:
        """The earlier stages whose adapters are summed under stage `stage` (0-based)."""
        if isinstance(self.method, OneAdapter) or self.method.active is Active.NONE:
            return ()
        if self.method.active is Active.ALL:
            return tuple(range(stage))
        modality = self.stages[stage].modality
        return tuple(i for i in range(stage) if self.stages[i].modality is modality)

    def answering(self, task: int, after: int) -> tuple[int, ...]:
        """The stages summed to answer `task` once stage `after` is released.

        The oracle knows the task (arXiv 2508.11673 does): a task that has arrived is
        answered by the adapters that were there when it was learned; one that has not,
        by what the bank would sum for it. A baseline of one adapter has only its latest.
        """
        if isinstance(self.method, OneAdapter):
            return (after,)
        if task <= after:
            return (*self.base_of(task), task)
        return tuple(stage for stage in self.base_of(task) if stage <= after)

    def scored_after(self, stage: int) -> range:
        """The tasks that are scored with what the bank knows after stage `stage`."""
        count = len(self.stages)
        again = self.evaluation.earlier is Earlier.ALL or (
            self.evaluation.earlier is Earlier.LAST and stage == count - 1
        )
        return range(0 if again else stage + 1, count if self.evaluation.future else stage + 1)
