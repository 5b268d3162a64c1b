"""The sizes of base models that write answers: of their decoder, and of what comes before it."""

from dataclasses import dataclass
from typing import Final

#: The path of the decoder's layers in models of transformers (5.24), as in adapters' names.
_LAYER: Final = "model.language_model.layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The sizes of a decoder with the seven linear layers that adapters are on, as Mistral's.

    Attributes:
        head: width of one attention head.
        tied: whether the head's weights are the embedding's.
        norms: norms of a layer over its width.
        head_norms: whether each head's queries and keys are normalized.
    """

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False
    norms: int = 2
    head_norms: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all key-value heads together."""
        return self.kv_heads * self.head

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of a layer's linear layers, all of which have adapters."""
        return {
            "self_attn.q_proj": (self.queries, self.width),
            "self_attn.k_proj": (self.keys, self.width),
            "self_attn.v_proj": (self.keys, self.width),
            "self_attn.o_proj": (self.width, self.queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }

    def adapted(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of every layer with an adapter, by its path in the model."""
        return {
            f"{_LAYER}.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in self.linears().items()
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers with adapters."""
        return self.layers * sum(rows * columns for rows, columns in self.linears().values())

    def adapter_parameters(self, rank: int) -> int:
        """Return the numbers in an adapter: each layer's A (rank, inputs) and B (outputs, rank)."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.linears().values())

    def largest_pair(self, rank: int) -> int:
        """Return the numbers in the largest layer's A and B."""
        return rank * max(rows + columns for rows, columns in self.linears().values())

    @property
    def parameters(self) -> int:
        """Weights of the decoder and its head; none of its linear layers has a bias."""
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        norms = self.norms * self.width + (2 * self.head if self.head_norms else 0)
        return tables + self.linear_parameters + self.layers * norms + self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTextShape:
    """The sizes of a model with its own processor.

    Features are kept as the decoder gets them, behind any projector.

    Attributes:
        kind: what the model is, as a person would say.
        parameters: weights of the frozen model.
        image_tokens: positions of a picture's features in the decoder's input.
        prompt_tokens: tokens before the first of them.
        feature_width: numbers of each feature.
        tower_operations: of one picture, up to its features.
        masked: whether rows of one question have an attention mask.
    """

    kind: str
    decoder: DecoderShape
    parameters: int
    image_tokens: int
    prompt_tokens: int
    feature_width: int
    tower_operations: float
    masked: bool = True

    @property
    def projector_operations(self) -> float:
        """None in a step: features are kept behind the projector."""
        return 0.0
