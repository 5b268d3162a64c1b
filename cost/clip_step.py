"""The operations and memory of a training step on a CLIP, as cost/step.py has them of a LLaVA.

What trains is low-rank factors of one tower or both, or their whole weights, and perhaps vectors at
the text tower's input: every picture goes through its tower in every step, the texts of classes
through the other where something learns there, and a step's public reference pairs through both,
after the pictures' backward pass (client/methods/clip_recipe.py). A teacher's passes, once a round
or a stage, are left out. Legend: n tokens, w width, m width inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Final

from common.clip_shape import ClipShape, TransformerShape
from common.methods.interface import LayerShape
from common.plan_fields import Precision
from cost.step import BYTES, SINGLE, StepMemory, StepOperations

_QKV: Final = frozenset({"q_proj", "k_proj", "v_proj"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipStep:
    """One micro-batch on a CLIP, and its share of the step's reference pairs.

    Attributes:
        adapted: (outputs, inputs) of the layers with pairs, by their paths.
        texts: classes whose texts are embedded; `tokens` are those of one's text.
        of_classes: trained numbers of the classes' prompts.
        batch: pictures of the optimizer step, all micro-batches together.
        pairs: reference pairs of the optimizer step; `caption` are the tokens of one's caption,
            and no two captions are equal.
        kept: numbers that a regularizer keeps.
        a_learns: whether A is trained as well as B.
        proximal: whether what trains is kept as it was at the round's start, too.
        whole: shapes of the weights that train whole, by name.
    """

    shape: ClipShape
    pictures: float
    texts: int
    tokens: float
    rank: int
    adapted: Mapping[str, LayerShape]
    of_classes: int
    batch: float
    pairs: int = 0
    caption: float = 0.0
    kept: int = 0
    a_learns: bool = True
    proximal: bool = False
    whole: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    @property
    def whole_numbers(self) -> int:
        """The numbers of the weights that train whole."""
        return sum(map(prod, self.whole.values()))

    @property
    def patches(self) -> int:
        """Tokens of a picture, the class token included."""
        return (self.shape.pixels // self.shape.patch) ** 2 + 1


@dataclass(frozen=True, slots=True)
class _Tower:
    """One tower with its adapted layers, and what a sequence of n tokens takes there.

    Attributes:
        ends: operations of what is before and after the blocks, forward; `ends_back` of their
            gradients.
        open_below: whether gradients go on below the first block.
        whole: whether all weights train.
        quick_gelu: whether the activation is x sigmoid(1.702 x).
    """

    shape: TransformerShape
    n: float
    adapted: Mapping[str, LayerShape]
    step: ClipStep
    ends: float
    ends_back: float
    open_below: bool
    whole: bool
    quick_gelu: bool

    @property
    def learns(self) -> bool:
        return self.open_below or bool(self.adapted)

    @property
    def factors(self) -> int:
        return sum(self.step.rank * (outputs + inputs) for outputs, inputs in self.adapted.values())

    def forward(self) -> float:
        w, m = self.shape.width, self.shape.inner
        blocks = self.shape.layers * (2 * self.n * (4 * w**2 + 2 * w * m) + 4 * self.n**2 * w)
        return blocks + self.ends + 2 * self.n * self.factors

    def backward(self) -> float:
        """Return those of all gradients; attention's scores are recomputed."""
        if not self.learns:
            return 0.0
        w, m = self.shape.width, self.shape.inner
        blocks = self.shape.layers * (2 * self.n * (4 * w**2 + 2 * w * m) + 10 * self.n**2 * w)
        # The first layer's queries, keys and values have inputs that need no gradient.
        first = 0 if self.open_below else 2 * self.n * 3 * w**2
        of_weights = 2 * self.n * self.shape.layers * (4 * w**2 + 2 * w * m) + self.ends
        return blocks - first + self.ends_back + self._of_factors() + self.whole * of_weights

    def _of_factors(self) -> float:
        """Return the operations of the gradients of factors, and of what goes through them."""
        total, learns = 0.0, self.step.a_learns
        for name, (outputs, inputs) in self.adapted.items():
            kind = name.rpartition(".")[2]
            first = ".layers.0." in name and kind in _QKV and not self.open_below
            b, a = outputs * self.step.rank, inputs * self.step.rank
            # B and its input; A where it is trained; A's input but in the first layer.
            total += b + (0 if first and not learns else b)
            total += (a if learns else 0) + (0 if first else a)
        return 2 * self.n * total

    def kept(self) -> float:
        """Return the numbers of a sequence that a forward pass keeps for the backward pass.

        Of each block both norms' inputs, queries, keys, values, attention's output, and what the
        activation needs: x sigmoid(1.702 x) of OpenAI's keeps both factors, a GELU its input alone.
        Of the pairs the outputs of A, and its inputs where it is trained: layers of one input keep
        it once, and attention's output is kept anyway. Weights that train keep their inputs.
        """
        if not self.learns:
            return 0.0
        w, m = self.shape.width, self.shape.inner
        total = self.shape.layers * (6 * w + (2 if self.quick_gelu else 1) * m)
        # The first layer's norm has an input that needs no gradient.
        total -= 0 if self.open_below else w
        total += self.shape.layers * self.whole * (2 * w + m)
        total += len(self.adapted) * self.step.rank
        if self.step.a_learns:
            normed = {
                name.rpartition(".")[0]
                for name in self.adapted
                if name.rpartition(".")[2] in {*_QKV, "fc1"}
            }
            total += len(normed) * w
            total += sum(m for name in self.adapted if name.endswith("fc2"))
        return self.n * total


def clip_operations(step: ClipStep) -> StepOperations:
    """Return the operations of training on one picture, with its share of texts and of pairs.

    Those between pictures and texts are left out: a thousandth of the total.
    """
    images, texts = _image_tower(step), _text_tower(step, step.tokens)
    captions = _text_tower(step, step.caption)
    share, of_pairs = step.texts / step.pictures, step.pairs / step.batch
    spoken = texts.forward() if texts.learns else 0.0
    forward = images.forward() + share * spoken
    forward += of_pairs * (images.forward() + captions.forward())
    backward = images.backward() + share * texts.backward()
    backward += of_pairs * (images.backward() + captions.backward())
    return StepOperations(
        tower=0.0,
        projector=0.0,
        prefix=0.0,
        tails=forward + backward,
        head=0.0,
        forward=forward,
        backward=backward,
        again=0.0,
    )


def clip_memory(step: ClipStep, precision: Precision) -> StepMemory:
    """Return the peak memory of a step: of its pictures or of its pairs, whichever is more."""
    shape, size = step.shape, BYTES[precision]
    images, texts = _image_tower(step), _text_tower(step, step.tokens)
    captions = _text_tower(step, step.caption)
    factors = images.factors + texts.factors
    of_b = sum(step.rank * outputs for outputs, _ in step.adapted.values())
    whole = step.whole_numbers
    learned = step.of_classes + (factors if step.a_learns else of_b) + whole
    own = step.pictures * images.kept() + step.texts * texts.kept()
    of_pairs = step.pairs * (images.kept() + captions.kept())
    pictures = max(step.pictures, step.pairs)
    return StepMemory(
        weights=shape.parameters * size,
        held=0.0,
        trained=(factors + step.of_classes + whole + (3 + step.proximal) * learned) * SINGLE,
        compared=step.kept * SINGLE,
        # A weight with its change is computed for the pass, and kept for the way back.
        activations=size * (max(own, of_pairs) + whole),
        logits=0.0,
        features=pictures * 3 * shape.pixels**2 * SINGLE,
        working=2 * pictures * images.n * size * shape.vision.inner,
    )


def _image_tower(step: ClipStep) -> _Tower:
    shape, n = step.shape, step.patches
    out = 2 * shape.vision.width * shape.embedding
    patch = 2 * (n - 1) * 3 * shape.patch**2 * shape.vision.width
    return _Tower(
        shape=shape.vision,
        n=n,
        adapted=_of_tower(step, "vision_model."),
        step=step,
        ends=patch + out,
        ends_back=out,
        open_below=_is_whole(step, "vision_model."),
        whole=_is_whole(step, "vision_model."),
        quick_gelu=shape.token_types == 0,
    )


def _text_tower(step: ClipStep, tokens: float) -> _Tower:
    shape = step.shape
    inner, width = shape.projection, shape.text.width
    out = 2 * (width * shape.embedding if inner is None else inner * (width + shape.embedding))
    return _Tower(
        shape=shape.text,
        n=tokens,
        adapted=_of_tower(step, "text_model."),
        step=step,
        ends=out,
        ends_back=out,
        open_below=step.of_classes > 0 or _is_whole(step, "text_model."),
        whole=_is_whole(step, "text_model."),
        quick_gelu=shape.token_types == 0,
    )


def _of_tower(step: ClipStep, tower: str) -> dict[str, LayerShape]:
    return {name: size for name, size in step.adapted.items() if name.startswith(tower)}


def _is_whole(step: ClipStep, tower: str) -> bool:
    return any(name.startswith(tower) for name in step.whole)
