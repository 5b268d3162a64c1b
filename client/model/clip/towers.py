"""The two towers of a CLIP, behind one role for both layouts.

Legend of shapes: B images, S side of an image, C texts, T tokens, D width of a token's embedding,
E width of the common space.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import BertModel, CLIPModel, ViTModel


class ClipTowers(Protocol):
    """Both towers with their projections; what they return has no unit length yet."""

    def image(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the images' embeddings, (B, E)."""
        ...

    def text(self, tokens_CTD: Tensor, mask_CT: Tensor) -> Tensor:
        """Return the embeddings (C, E) of texts from those of their tokens, without positions.

        The mask is 1 at tokens and 0 at padding, which is on the right.
        """
        ...

    def token_embedding(self) -> nn.Embedding:
        """Return the table of the tokens' embeddings."""
        ...


class TransformersTowers(nn.Module):
    """The towers of transformers' `CLIPModel`; a text is pooled at its end token."""

    def __init__(self, network: CLIPModel) -> None:
        super().__init__()
        self.network = network

    def image(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the images' embeddings, (B, E)."""
        states = self.network.vision_model(pixel_values=pixels_B3SS)
        return self.network.visual_projection(states.pooler_output)

    def text(self, tokens_CTD: Tensor, mask_CT: Tensor) -> Tensor:
        """Return the texts' embeddings, (C, E)."""
        tower = self.network.text_model
        # transformers' own forward (5.24) takes ids alone. There is no mask besides the causal
        # one: an end token never sees the padding on its right.
        states_CTD = tower.encoder(
            inputs_embeds=tower.embeddings(inputs_embeds=tokens_CTD), is_causal=True
        ).last_hidden_state
        ends = mask_CT.sum(1) - 1
        pooled_CD = states_CTD[torch.arange(len(ends), device=ends.device), ends]
        return self.network.text_projection(tower.final_layer_norm(pooled_CD))

    def token_embedding(self) -> nn.Embedding:
        """Return the table of the tokens' embeddings."""
        return self.network.text_model.embeddings.token_embedding


class OpenClipTowers(nn.Module):
    """The towers of BiomedCLIP: a ViT, and a BERT that is pooled at its first token."""

    def __init__(
        self, vision: ViTModel, text: BertModel, projections: tuple[nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.vision_model = vision
        self.text_model = text
        self.visual_projection, self.text_projection = projections
        #: The logarithm of the factor of every similarity.
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def image(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the images' embeddings, (B, E)."""
        states = self.vision_model(pixel_values=pixels_B3SS).last_hidden_state
        return self.visual_projection(states[:, 0])

    def text(self, tokens_CTD: Tensor, mask_CT: Tensor) -> Tensor:
        """Return the texts' embeddings, (C, E)."""
        bert: Any = self.text_model
        states = bert(inputs_embeds=tokens_CTD, attention_mask=mask_CT).last_hidden_state
        return self.text_projection(states[:, 0])

    def token_embedding(self) -> nn.Embedding:
        """Return the table of the tokens' embeddings."""
        return self.text_model.embeddings.word_embeddings
