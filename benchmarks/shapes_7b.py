"""LLaVA-Med v1.5's shapes with random weights: the model, its questions, its adapters, its FLOPs.

The geometry is that of the published config.json: CLIP-L/14 at 336 pixels, a projector of two
layers, Mistral-7B. Random weights take as long as trained ones; only, answers never end by
themselves.
"""
# transformers and torch are partly untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.words import Words
from client.data.task import Example
from client.model.image_cache import ImageCache
from client.model.llava import LlavaModel
from client.model.lora import inject_adapter_layers
from common.adapter import Adapter, Pair
from common.metrics import AnswerKind

#: Questions of each picture: 7.6 in the mean, as in PathVQA.
QUESTIONS = (8, 8, 7, 8, 7)
#: The token that stands for an image feature.
_IMAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A LLaVA's geometry, and the rank of its adapters."""

    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32000
    tower_hidden: int = 1024
    tower_layers: int = 24
    tower_heads: int = 16
    pixels: int = 336
    patch: int = 14
    rank: int = 64

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of the seven linear layers of a decoder layer."""
        narrow = self.hidden // self.heads * self.kv_heads
        wide, inner = self.hidden, self.inner
        return {
            "q": (wide, wide), "k": (narrow, wide), "v": (narrow, wide), "o": (wide, wide),
            "gate": (inner, wide), "up": (inner, wide), "down": (wide, inner),
        }  # fmt: skip


#: Tiny shapes, to check that every part runs.
SMALL = Shapes(
    hidden=64, inner=128, layers=2, heads=4, kv_heads=2, vocabulary=512,
    tower_hidden=32, tower_layers=2, tower_heads=2, pixels=28, patch=14, rank=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row of the decoder: a shared prefix, and the tails after it, in tokens."""

    prefix: int
    tails: tuple[int, ...]
    labels: int

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return self.prefix + sum(self.tails)

    @property
    def pairs(self) -> int:
        """How many pairs of tokens see one another: causal, and no tail sees another."""
        return _below(self.prefix) + sum(t * self.prefix + _below(t) for t in self.tails)


def flops(shapes: Shapes, rows: Iterable[TokenRow]) -> float:
    """Return the operations that a training step of the model needs.

    For P weights of the decoder's linear layers, p of the adapter that trains, T tokens, L
    labels, n layers of width d, vocabulary V, and S pairs of tokens that see one another:

        4 P T + 6 p T + 12 n d S + 4 V d L

    Two operations for each multiplication with its addition; a frozen product goes forward
    and hands its gradient down, a trained one has a gradient of its own, too. Not counted:
    padding, what checkpointing computes twice, earlier adapters, the tower (features are
    kept), norms and activations, the optimizer.
    """
    sizes = shapes.linears().values()
    frozen = shapes.layers * sum(outputs * inputs for outputs, inputs in sizes)
    trained = shapes.layers * shapes.rank * sum(outputs + inputs for outputs, inputs in sizes)
    tokens = pairs = labels = 0
    for row in rows:
        tokens, pairs, labels = tokens + row.tokens, pairs + row.pairs, labels + row.labels
    through = (4 * frozen + 6 * trained) * tokens
    seen = 12 * shapes.layers * shapes.hidden * pairs
    return float(through + seen + 4 * shapes.vocabulary * shapes.hidden * labels)


def model_of(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> LlavaModel:
    """Make the model on its device and in its dtype, so that there is one copy."""
    torch.manual_seed(0)
    config = _config(shapes)
    with torch.device(device), _by_default(dtype):
        network = LlavaForConditionalGeneration(config).eval()
    square = {"height": shapes.pixels, "width": shapes.pixels}
    return LlavaModel(
        network=network,
        adapted=inject_adapter_layers(network),
        tokenizer=Words(),
        pixels=CLIPImageProcessorPil(size=square, do_center_crop=False),
        image_token=_IMAGE,
        image_tokens=(shapes.pixels // shapes.patch) ** 2,
        cache=ImageCache(),
        identity="benchmark",
    )


def adapters_of(model: LlavaModel, rank: int, count: int) -> list[Adapter]:
    """Return seeded adapters of scale 1 whose B is not zero, as after training."""
    return [_drawn(model.adapted.layer_shapes(), rank, seed) for seed in range(count)]


def examples_in(
    folder: Path, questions: Sequence[int] = QUESTIONS, words: int = 500
) -> list[Example]:
    """Make so many questions of each picture: 25 tokens after the prefix, 5 of an answer."""
    generator = np.random.default_rng(0)
    examples: list[Example] = []
    for picture, count in enumerate(questions):
        file = folder / f"{picture}.png"
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
        for number in range(count):
            asked = _text(generator, 12 + (picture + 3 * number) % 11, words)
            answer = _text(generator, 2 + (picture + number) % 5, words)
            examples.append(Example(f"{picture}.{number}", file, asked, answer, AnswerKind.OPEN))
    return examples


def vision_config(shapes: Shapes) -> CLIPVisionConfig:
    """Return the vision tower's configuration."""
    return CLIPVisionConfig(
        hidden_size=shapes.tower_hidden,
        intermediate_size=4 * shapes.tower_hidden,
        num_hidden_layers=shapes.tower_layers,
        num_attention_heads=shapes.tower_heads,
        image_size=shapes.pixels,
        patch_size=shapes.patch,
    )


def text_config(shapes: Shapes) -> MistralConfig:
    """Return the decoder's configuration."""
    return MistralConfig(
        vocab_size=shapes.vocabulary,
        hidden_size=shapes.hidden,
        intermediate_size=shapes.inner,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.kv_heads,
        sliding_window=None,
    )


def _config(shapes: Shapes) -> LlavaConfig:
    return LlavaConfig(
        vision_config=vision_config(shapes),
        text_config=text_config(shapes),
        image_token_index=_IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


@contextmanager
def _by_default(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drawn(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    for name, (outputs, inputs) in shapes.items():
        a = generator.standard_normal((rank, inputs), np.float32)
        b = generator.standard_normal((outputs, rank), np.float32)
        pairs[name] = Pair(a * np.float32(inputs**-0.5), b * np.float32(0.01))
    return Adapter(pairs, 1.0)


def _below(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _text(generator: np.random.Generator, count: int, words: int) -> str:
    return " ".join(map(str, generator.integers(20, words, count)))
