"""What a training step costs at a site: operations and memory, from sizes alone.

Operations are those of matrix products, two for each multiplication with its addition, as
torch's own counter has them; attention is counted in full, though half of it is masked. Norms,
activations and the optimizer are left out: a thousandth of it at the 7B. Memory is what torch
keeps for the backward pass of client/model/lora.py's layers in Mistral's decoder (transformers
5.23). What stands here is compared with measured steps in
tests/flow/cost/test_cost_measured.py.
"""

from dataclasses import dataclass
from typing import Final

from common.plan_fields import Composition, Precision
from cost.geometry import Decoder, Geometry, Tower

#: Bytes of a number of the frozen model.
_BYTES: Final = {Precision.FP32: 4, Precision.BF16: 2}
#: Trained factors, their gradients and AdamW's two moments are float32 whatever the model is.
_SINGLE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What runs through the decoder together.

    Attributes:
        questions: how many there are.
        prefix: tokens in front that the questions of a row share, the picture's among them.
        tail: tokens of one question behind it, its answer among them.
        labels: tokens of one question that carry loss.
        together: questions of a row; 1 where each has the picture in front of it.
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
class Worn:
    """The adapters in the model while it trains.

    Attributes:
        rank: of the pair that trains; 0 where nothing does.
        earlier: how many frozen ones are summed under it.
        hold: how.
        a_learns: whether A is trained with B.
    """

    rank: int
    earlier: int
    hold: Composition
    a_learns: bool = True

    @property
    def stacked(self) -> int:
        """Ranks of the frozen adapters that are products of their own in each step."""
        return self.rank * self.earlier if self.hold is Composition.STACK else 0


@dataclass(frozen=True, slots=True)
class Setting:
    """How a plan trains, as far as memory goes."""

    precision: Precision
    checkpointed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Of one question's training.

    Attributes:
        tower: of looking at the picture: once for each picture, as its features are kept.
        projector: of the picture's way into the decoder, in every step.
        prefix: of the question's share of its row's front, in the decoder's layers.
        tails: of its own tokens there.
        head: of the logits at its labels.
        forward, backward, again: `prefix + tails + head` by pass; the last is what gradient
            checkpointing repeats.
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
        """All of a question but the tower."""
        return self.projector + self.forward + self.backward + self.again


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes while a micro-batch is at its largest.

    Attributes:
        weights: the frozen model.
        held: the earlier adapters' factors. Folded ones take the place of the weights.
        trained: the factors that train, their gradients and AdamW's moments.
        compared: what the regularizer compares with.
        activations: kept for the backward pass.
        logits: at the labels, with what the loss keeps of them.
        features: the tower's, of the micro-batch.
        working: what comes and goes within a layer's backward pass.
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
        """All of it at once, but that the logits are gone when the layers' turn comes."""
        parts = sum(getattr(self, name) for name in self.__slots__)
        return parts - min(self.logits, self.working)


def tower_operations(tower: Tower) -> float:
    """Looking at one picture, through all layers of the tower."""
    tokens = tower.patches + 1
    layer = 2 * tokens * (4 * tower.width**2 + 2 * tower.width * tower.inner)
    layer += 4 * tokens**2 * tower.width
    return tower.layers * layer + 2 * tower.patches * 3 * tower.patch**2 * tower.width


def operations(geometry: Geometry, rows: Rows, worn: Worn, *, checkpointed: bool) -> Operations:
    """Of one question of `rows`."""
    decoder, count = geometry.decoder, rows.questions
    forward, backward = _forward(decoder, rows, worn), _backward(decoder, rows, worn)
    head = 2 * rows.labels * decoder.width * decoder.vocabulary
    # Nothing needs what a layer's last product, down_proj's B, gives: torch stops before it.
    last = 2 * rows.tokens * decoder.layers * worn.rank * decoder.width
    again = forward - last if checkpointed else 0.0
    body = (forward + backward + again) / count
    front = rows.prefix / rows.length
    projected = geometry.feature_width * decoder.width + decoder.width**2
    return Operations(
        tower=tower_operations(geometry.tower),
        projector=2 * geometry.image_tokens * projected / rows.together,
        prefix=front * body,
        tails=(1 - front) * body,
        head=2 * head,
        forward=forward / count + head,
        backward=backward / count + head,
        again=again / count,
    )


def memory(geometry: Geometry, rows: Rows, worn: Worn, setting: Setting, compared: float) -> Memory:
    """Of a step over a micro-batch `rows`; the regularizer holds `compared` numbers."""
    decoder, size = geometry.decoder, _BYTES[setting.precision]
    factors = decoder.adapter_parameters(worn.rank)
    learned = factors if worn.a_learns else _b_parameters(decoder, worn.rank)
    labels = rows.questions * rows.labels * decoder.vocabulary
    kept = _kept_of_layer(decoder, rows, worn, size)
    inputs = rows.tokens * decoder.width
    return Memory(
        weights=geometry.parameters * size,
        held=decoder.adapter_parameters(worn.stacked) * size,
        trained=(factors + 3 * learned) * _SINGLE,
        compared=compared * _SINGLE,
        activations=_activations(decoder, inputs, kept, setting),
        # The logits, their float32 copy where they are shorter, and the loss's own.
        logits=labels * (_SINGLE + (size + _SINGLE if size < _SINGLE else size)),
        features=rows.rows * geometry.image_tokens * geometry.feature_width * size,
        working=2 * rows.tokens * decoder.inner * size,
    )


def _forward(decoder: Decoder, rows: Rows, worn: Worn) -> float:
    """The decoder's layers over all rows."""
    token = decoder.linear_parameters + decoder.adapter_parameters(worn.rank + worn.stacked)
    return 2 * rows.tokens * token + 4 * _pairs_of_tokens(decoder, rows)


def _backward(decoder: Decoder, rows: Rows, worn: Worn) -> float:
    """To the layers' inputs and to the factors that learn.

    The first layer's queries, keys and values have inputs that need no gradient.
    """
    first, low = 2 * decoder.keys + decoder.queries, 3 * decoder.width
    all_factors = decoder.adapter_parameters(worn.rank)
    factors = all_factors if worn.a_learns else _b_parameters(decoder, worn.rank)
    inputs = decoder.linear_parameters - first * decoder.width
    # To the first A's, where they learn, gradients come; to what they are given, none.
    inputs += all_factors - worn.rank * (low if worn.a_learns else low + first)
    inputs += decoder.adapter_parameters(worn.stacked) - worn.stacked * (low + first)
    # The scores once more, and two products for each of the two that the forward pass has.
    return 2 * rows.tokens * (inputs + factors) + 10 * _pairs_of_tokens(decoder, rows)


def _pairs_of_tokens(decoder: Decoder, rows: Rows) -> float:
    return decoder.layers * rows.rows * rows.length**2 * decoder.queries


def _b_parameters(decoder: Decoder, rank: int) -> int:
    return decoder.layers * rank * sum(rows for rows, _ in decoder.linears().values())


def _kept_of_layer(decoder: Decoder, rows: Rows, worn: Worn, size: int) -> float:
    """Bytes that one layer keeps for its backward pass."""
    # Each norm keeps its input in float32, with one number a token.
    norms = 2 * (decoder.width * _SINGLE + _SINGLE)
    # Queries, keys, values, what attention makes of them (also the input of o_proj's A), and
    # the logarithm of each head's sum. With a mask each head has its own copy of its keys.
    keys = decoder.queries if rows.together > 1 else decoder.keys
    attention = 2 * (decoder.queries + keys) * size + decoder.heads * _SINGLE
    # gate, silu(gate), up.
    inner = 3 * decoder.inner * size
    if worn.a_learns:
        # The inputs of the other A's: both norms' outputs, and the product of silu and up.
        norms, inner = norms + 2 * decoder.width * size, inner + decoder.inner * size
    low = len(decoder.linears()) * worn.rank * size
    kept = rows.tokens * (norms + attention + inner + low)
    if rows.together > 1:
        kept += rows.rows * rows.length**2 * size  # the mask, as numbers that are added
    if size < _SINGLE:
        # The trained factors in the model's own format.
        kept += decoder.adapter_parameters(worn.rank) / decoder.layers * size
    return kept


def _activations(decoder: Decoder, inputs: float, kept: float, setting: Setting) -> float:
    size, last = _BYTES[setting.precision], inputs * _SINGLE  # the last norm's input
    if not setting.checkpointed:
        # The first norm's input needs no gradient.
        return decoder.layers * kept
    # Every layer's input, and one layer in full while it is gone through again.
    return decoder.layers * inputs * size + kept + last
