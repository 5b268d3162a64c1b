"""The operations and memory of a training step on a CLIP, as cost/step.py has them of a LLaVA.

What trains is low-rank factors of the image tower and vectors at the text tower's input, as in
client/methods/dual_modality.py: every picture goes through the tower in every step, and the
prompts of all classes of a stage through the other. Legend: n tokens, w width, m width inside.
"""

from dataclasses import dataclass

from common.clip_shape import ClipShape, TransformerShape
from common.methods.interface import LayerShape
from common.plan_fields import Precision
from cost.step import StepMemory, StepOperations

_BYTES = {Precision.FP32: 4, Precision.BF16: 2}
_SINGLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipStep:
    """One micro-batch on a CLIP.

    Attributes:
        adapted: (outputs, inputs) of the image tower's layers with pairs, by their paths.
        classes: of the stage; `tokens` are those of one class's text.
        of_classes: trained numbers of the classes' prompts.
        a_learns: whether A is trained as well as B.
        proximal: whether what trains is kept as it was at the round's start, too.
    """

    shape: ClipShape
    pictures: float
    classes: int
    tokens: float
    rank: int
    adapted: dict[str, LayerShape]
    of_classes: int
    a_learns: bool = True
    proximal: bool = False

    @property
    def patches(self) -> int:
        """Tokens of a picture, the class token included."""
        return (self.shape.pixels // self.shape.patch) ** 2 + 1

    @property
    def factors(self) -> int:
        """Numbers of the factors."""
        return sum(self.rank * (outputs + inputs) for outputs, inputs in self.adapted.values())


def clip_operations(step: ClipStep) -> StepOperations:
    """Return the operations of training on one picture, with its share of the classes' prompts.

    Those between pictures and classes are left out: a thousandth of the total.
    """
    shape, n = step.shape, step.patches
    patch = 2 * (n - 1) * 3 * shape.patch**2 * shape.vision.width
    out = 2 * shape.vision.width * shape.embedding
    low = 2 * n * step.factors
    forward = _layers(shape.vision, n) + patch + out + low
    # Queries, keys and values of the first layer have inputs that need no gradient.
    first = 2 * n * 3 * shape.vision.width**2
    backward = _gradients(shape.vision, n) - first + out + _of_factors(step)
    text = _layers(shape.text, step.tokens) + _text_projection(shape)
    of_text = _gradients(shape.text, step.tokens) + _text_projection(shape)
    share = step.classes / step.pictures
    forward, backward = forward + share * text, backward + share * of_text
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
    """Return the peak memory of a step."""
    shape, size, n = step.shape, _BYTES[precision], step.patches
    learned = step.of_classes + (
        step.factors
        if step.a_learns
        else sum(step.rank * outputs for outputs, _ in step.adapted.values())
    )
    pictures = step.pictures * n * size
    low = len(step.adapted) * step.rank * pictures
    # The inputs of A, kept where A is trained: layers of one input keep it once.
    inputs = {name.rsplit(".", 1)[0]: shape_[1] for name, shape_ in step.adapted.items()}
    kept = sum(inputs.values()) * pictures if step.a_learns else 0.0
    of_images = pictures * _kept(shape.vision, shape.token_types == 0) + low + kept
    # The first layer's norm has an input that needs no gradient.
    of_images -= pictures * shape.vision.width
    of_text = step.classes * step.tokens * size * _kept(shape.text, shape.token_types == 0)
    return StepMemory(
        weights=shape.parameters * size,
        held=0.0,
        trained=(step.factors + step.of_classes + (3 + step.proximal) * learned) * _SINGLE,
        compared=0.0,
        activations=of_images + of_text,
        logits=0.0,
        features=step.pictures * 3 * shape.pixels**2 * _SINGLE,
        working=2 * pictures * shape.vision.inner,
    )


def _layers(tower: TransformerShape, n: float) -> float:
    """Return the operations of one sequence through all blocks."""
    w, m = tower.width, tower.inner
    return tower.layers * (2 * n * (4 * w**2 + 2 * w * m) + 4 * n**2 * w)


def _gradients(tower: TransformerShape, n: float) -> float:
    """Return those of the gradients of all inputs; attention's scores are recomputed."""
    w, m = tower.width, tower.inner
    return tower.layers * (2 * n * (4 * w**2 + 2 * w * m) + 10 * n**2 * w)


def _of_factors(step: ClipStep) -> float:
    """Return the operations of the gradients of factors, and of what goes through them."""
    total = 0.0
    for name, (outputs, inputs) in step.adapted.items():
        first = ".layers.0." in name and "self_attn" in name and "out_proj" not in name
        b, a = outputs * step.rank, inputs * step.rank
        # B and its input; A where it is trained; A's input but in the first layer.
        total += b + (0 if first and not step.a_learns else b)
        total += (a if step.a_learns else 0) + (0 if first else a)
    return 2 * step.patches * total


def _kept(tower: TransformerShape, quick_gelu: bool) -> float:
    """Return the numbers of a token that a forward pass keeps for the backward pass.

    Both norms' inputs, queries, keys, values, attention's output, and what the activation needs:
    x sigmoid(1.702 x) of OpenAI's keeps both factors, a GELU its input alone.
    """
    activation = 2 if quick_gelu else 1
    return tower.layers * (6 * tower.width + activation * tower.inner)


def _text_projection(shape: ClipShape) -> float:
    if shape.projection is None:
        return 2 * shape.text.width * shape.embedding
    return 2 * shape.projection * (shape.text.width + shape.embedding)
