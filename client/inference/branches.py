"""Several adapted copies of one image tower, a branch each, and the choice among their classes.

[S] and [R] say where a rule is from, as in common/methods/dual_modality.py.

Legend of shapes: B images, C classes of a branch, K of all branches, E width of the common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.model.clip.model import ClipModel
from common.adapter import Adapter
from common.plan_fields import Composition


@dataclass(frozen=True, slots=True)
class Branch:
    """A stage where questions are answered: its image branch, and what is known of its classes.

    Attributes:
        adapter: None where the stage is not released.
        texts_CE: g_c.
        means_CE: mu_c; None without, and zeros for a class that has none.
    """

    adapter: Adapter | None
    texts_CE: Tensor
    means_CE: Tensor | None

    def features(self, model: ClipModel, batches: Sequence[Tensor]) -> Tensor:
        """Return f_i of the pictures, (B, E)."""
        frozen = [] if self.adapter is None else [self.adapter]
        model.adapted.freeze_adapters(frozen, Composition.FOLD)
        return torch.cat([model.image_embeddings(pixels) for pixels in batches])


def by_base_prior(base_BK: Tensor, own: Sequence[Tensor]) -> Tensor:
    """Return log p_0(task of c) + log softmax over C_i of the branch's own logits [R].

    p_0 is the softmax of the frozen model's logits over all classes, summed by task.

    Args:
        own: each branch's logits of its classes, (B, C_i), in the order of `base_BK`.
    """
    log_prior = base_BK.log_softmax(1).split([logits.shape[1] for logits in own], 1)
    return torch.cat(
        [
            prior.logsumexp(1, keepdim=True) + logits.log_softmax(1)
            for prior, logits in zip(log_prior, own, strict=True)
        ],
        1,
    )


def by_prototype(
    features: Sequence[Tensor],
    texts: Sequence[Tensor],
    means: Sequence[Tensor | None],
    weight: float | None,
) -> Tensor:
    """Return f_i . g_c + weight f_i . mu_c; without a weight f_i . mu_c alone [S].

    The mean of a class that has none is zero.
    """
    found: list[Tensor] = []
    for f, g, mu in zip(features, texts, means, strict=True):
        to_mean = f @ (torch.zeros_like(g) if mu is None else mu).T
        found.append(to_mean if weight is None else f @ g.T + weight * to_mean)
    return torch.cat(found, 1)


def by_entropy(logits: Sequence[Tensor]) -> Tensor:
    """Return log p of the branch whose p over all classes has the least entropy [S].

    Of equals the first branch counts.

    Args:
        logits: each branch's, of all classes, (B, K).
    """
    log_p_IBK = torch.stack([one.log_softmax(1) for one in logits])
    surest_B = -(log_p_IBK.exp() * log_p_IBK).sum(2)
    chosen_B = surest_B.argmin(0)
    return log_p_IBK[chosen_B, torch.arange(log_p_IBK.shape[1], device=log_p_IBK.device)]
