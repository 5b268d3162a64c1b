"""The operations and memory of a training step at a site, computed from sizes.

Operations are those of matrix products, two for each multiplication with its addition, as
torch's own counter has them; attention is counted in full, though half of it is masked. Norms,
activations and the optimizer are left out: a thousandth of the total at the 7B. Memory is what
torch keeps for the backward pass of client/model/lora.py's layers in Mistral's decoder
(transformers 5.24). tests/flow/cost/test_cost_measured.py compares both with measured steps.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from common.language_shape import DecoderShape, ImageTextShape
from common.plan_fields import Composition, Precision
from cost.geometry import Geometry

#: The sizes of a base model that writes answers.
LanguageShape: TypeAlias = Geometry | ImageTextShape

#: Bytes of a number of the frozen model.
BYTES: Final = {Precision.FP32: 4, Precision.BF16: 2}
#: Trained factors, their gradients and AdamW's two moments are float32 whatever the model is.
SINGLE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The shape of one micro-batch.

    Attributes:
        questions: number of questions.
        prefix: tokens of the prefix that the questions of a row share, the image's included.
        tail: further tokens of one question, its answer included.
        labels: tokens of one question that carry loss.
        together: questions packed into a row; 1 without packing.
    """

    questions: float
    prefix: float
    tail: float
    labels: float
    together: float = 1.0

    @property
    def rows(self) -> float:
        """Rows of the batch; a mean may be fractional."""
        return self.questions / self.together

    @property
    def length(self) -> float:
        """Tokens of a row."""
        return self.prefix + self.together * self.tail

    @property
    def tokens(self) -> float:
        """Tokens of all rows."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedAdapters:
    """The adapters in the model while it trains.

    Attributes:
        rank: rank of the adapter that trains; 0 where none does.
        earlier: number of frozen adapters that are summed with it.
        composition: how these are kept.
        a_learns: whether A is trained as well as B.
    """

    rank: int
    earlier: int
    composition: Composition
    a_learns: bool = True

    @property
    def stacked(self) -> int:
        """Total rank of the frozen adapters that each step multiplies one by one."""
        return self.rank * self.earlier if self.composition is Composition.STACK else 0


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The settings of a plan that decide memory.

    Attributes:
        proximal: whether the factors of the round's start are kept, too.
    """

    precision: Precision
    checkpointed: bool
    proximal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOperations:
    """The operations of training on one question.

    Attributes:
        tower: the vision tower; run once for each image, since its features are cached.
        projector: the projector, in every step.
        prefix: the question's share of its row's prefix, in the decoder's layers.
        tails: its own tokens in the decoder's layers.
        head: the logits at its labels.
        forward, backward, again: `prefix + tails + head` by pass; `again` is what gradient
            checkpointing recomputes.
    """

    tower: float
    projector: float
    prefix: float
    tails: float
    head: float
    forward: float
    backward: float
    again: float

    @property
    def question(self) -> float:
        """All operations of a question but the tower's."""
        return self.projector + self.forward + self.backward + self.again


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """The peak memory of a step, in bytes.

    Attributes:
        weights: the frozen model.
        held: the frozen adapters' factors; folded ones take no memory of their own.
        trained: the factors that train, their gradients, AdamW's moments, and with a proximal
            term their values at the round's start.
        compared: the adapters that the regularizer compares with.
        activations: kept for the backward pass.
        logits: the logits at the labels, with what the loss keeps of them.
        features: the vision tower's features of the micro-batch.
        working: temporary tensors of a layer's backward pass.
    """

    weights: float
    held: float
    trained: float
    compared: float
    activations: float
    logits: float
    features: float
    working: float

    @property
    def total(self) -> float:
        """The sum; logits and working memory are not needed at the same time."""
        parts = sum(getattr(self, name) for name in self.__slots__)
        return parts - min(self.logits, self.working)


def question_operations(
    geometry: LanguageShape, rows: MicroBatch, adapters: AttachedAdapters, *, checkpointed: bool
) -> StepOperations:
    """Return the operations of training on one question of `rows`."""
    decoder, count = geometry.decoder, rows.questions
    forward, backward = _forward(decoder, rows, adapters), _backward(decoder, rows, adapters)
    head = 2 * rows.labels * decoder.width * decoder.vocabulary
    # The recomputation stops before a layer's last product, down_proj's B, which no gradient needs.
    last = 2 * rows.tokens * decoder.layers * adapters.rank * decoder.width
    again = forward - last if checkpointed else 0.0
    body = (forward + backward + again) / count
    front = rows.prefix / rows.length
    return StepOperations(
        tower=geometry.tower_operations,
        projector=geometry.projector_operations / rows.together,
        prefix=front * body,
        tails=(1 - front) * body,
        head=2 * head,
        forward=forward / count + head,
        backward=backward / count + head,
        again=again / count,
    )


def step_memory(
    geometry: LanguageShape,
    rows: MicroBatch,
    adapters: AttachedAdapters,
    setting: MemorySettings,
    compared: float,
) -> StepMemory:
    """Return the peak memory of a step; the regularizer keeps `compared` numbers."""
    decoder, size = geometry.decoder, BYTES[setting.precision]
    factors = decoder.adapter_parameters(adapters.rank)
    learned = factors if adapters.a_learns else _b_parameters(decoder, adapters.rank)
    labels = rows.questions * rows.labels * decoder.vocabulary
    masked = geometry.masked or rows.together > 1
    kept = _kept_of_layer(decoder, rows, adapters, size, masked=masked)
    inputs = rows.tokens * decoder.width
    return StepMemory(
        weights=geometry.parameters * size,
        held=decoder.adapter_parameters(adapters.stacked) * size,
        trained=(factors + (3 + setting.proximal) * learned) * SINGLE,
        compared=compared * SINGLE,
        activations=_activations(decoder, inputs, kept, setting),
        # The logits, their float32 copy if they have fewer bits, and the loss's own.
        logits=labels * (SINGLE + (size + SINGLE if size < SINGLE else size)),
        features=rows.rows * geometry.image_tokens * geometry.feature_width * size,
        working=2 * rows.tokens * decoder.inner * size,
    )


def _forward(decoder: DecoderShape, rows: MicroBatch, adapters: AttachedAdapters) -> float:
    """Return the operations of the decoder's layers over all rows, forward."""
    token = decoder.linear_parameters + decoder.adapter_parameters(adapters.rank + adapters.stacked)
    return 2 * rows.tokens * token + 4 * _pairs_of_tokens(decoder, rows)


def _backward(decoder: DecoderShape, rows: MicroBatch, adapters: AttachedAdapters) -> float:
    """Return the operations of the gradients of the layers' inputs and of the trained factors.

    The first layer's queries, keys and values have inputs that need no gradient.
    """
    first, low = 2 * decoder.keys + decoder.queries, 3 * decoder.width
    all_factors = decoder.adapter_parameters(adapters.rank)
    factors = all_factors if adapters.a_learns else _b_parameters(decoder, adapters.rank)
    inputs = decoder.linear_parameters - first * decoder.width
    # The first layer's A get gradients where they are trained, their inputs never.
    inputs += all_factors - adapters.rank * (low if adapters.a_learns else low + first)
    inputs += decoder.adapter_parameters(adapters.stacked) - adapters.stacked * (low + first)
    # Attention scores are recomputed, and each of the two forward products has two gradients.
    return 2 * rows.tokens * (inputs + factors) + 10 * _pairs_of_tokens(decoder, rows)


def _pairs_of_tokens(decoder: DecoderShape, rows: MicroBatch) -> float:
    return decoder.layers * rows.rows * rows.length**2 * decoder.queries


def _b_parameters(decoder: DecoderShape, rank: int) -> int:
    return decoder.layers * rank * sum(rows for rows, _ in decoder.linears().values())


def _kept_of_layer(
    decoder: DecoderShape, rows: MicroBatch, adapters: AttachedAdapters, size: int, *, masked: bool
) -> float:
    """Return the bytes that one layer keeps for its backward pass."""
    # Each norm keeps its input in float32, with one number a token.
    norms = decoder.norms * (decoder.width * SINGLE + SINGLE)
    if decoder.head_norms:
        heads = decoder.heads + decoder.kv_heads
        norms += heads * (decoder.head * SINGLE + SINGLE)
    # Queries, keys, values, attention's output (also the input of o_proj's A), and each head's
    # logsumexp. With a mask each head has its own copy of its keys.
    keys = decoder.queries if masked else decoder.keys
    attention = 2 * (decoder.queries + keys) * size + decoder.heads * SINGLE
    # gate, silu(gate), up.
    inner = 3 * decoder.inner * size
    if adapters.a_learns:
        # The inputs of the other A: both norms' outputs, and the product of silu and up.
        norms, inner = norms + 2 * decoder.width * size, inner + decoder.inner * size
    low = len(decoder.linears()) * adapters.rank * size
    kept = rows.tokens * (norms + attention + inner + low)
    if masked:
        kept += rows.rows * rows.length**2 * size  # the mask, as numbers that are added
    if size < SINGLE:
        # The trained factors in the model's own format.
        kept += decoder.adapter_parameters(adapters.rank) / decoder.layers * size
    return kept


def _activations(
    decoder: DecoderShape, inputs: float, kept: float, setting: MemorySettings
) -> float:
    size, last = BYTES[setting.precision], inputs * SINGLE  # the last norm's input
    if not setting.checkpointed:
        # The first norm's input needs no gradient.
        return decoder.layers * kept
    # Every layer's input, and one layer in full while it is recomputed.
    return decoder.layers * inputs * size + kept + last
