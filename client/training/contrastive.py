"""The contrastive term of the regularizer and its gradient, for a stack of layers.

client/training/regularizer.py has the formulas, and combines stacks and weights.

Legend of shapes: L layers of one shape, K prototypes, R rank; a factor W is (X, Y), which
is (R, inputs) for A and (outputs, R) for B.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional


class ContrastiveTerm(Protocol):
    """A contrastive term over a stack of factors W."""

    def value_and_gradient(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the value (), and M (L, R, R) and D (L, X, Y) of the gradient M W + D.

        In two parts, so that all terms share one product with W. For B it is W M + D.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExpTerm:
    """sum_i sign_i exp(-|W - P_i|) times a weight.

    Attributes:
        prototypes: shape (L, K, X * Y).
        squares: their |P|^2, shape (L, K).
        signed_weight: alpha / |M|, negative where the modality is the same; shape (K,).
    """

    prototypes: torch.Tensor
    squares: torch.Tensor
    signed_weight: torch.Tensor

    def value_and_gradient(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ContrastiveTerm`."""
        d_LK = self._distances(w_LXY.flatten(1), gram_LRR)
        term_LK = self.signed_weight * torch.exp(-d_LK)
        # d/dW exp(-d) = -exp(-d) (W - P) / d; at d = 0 it is set to 0.
        c_LK = torch.where(d_LK > 0, -term_LK / d_LK, 0.0)
        pull_LXY = torch.bmm(-c_LK.unsqueeze(1), self.prototypes).view_as(w_LXY)
        inner_LRR = torch.diag_embed(c_LK.sum(1, keepdim=True).expand(-1, gram_LRR.shape[-1]))
        return term_LK.sum(), inner_LRR, pull_LXY

    def _distances(self, w_LF: torch.Tensor, gram_LRR: torch.Tensor) -> torch.Tensor:
        """Return |W - P_i|, shape (L, K); F is X * Y."""
        if w_LF.dtype == torch.float64:
            # By differences: for checks, and exact even if W is close to P.
            return torch.cdist(
                w_LF.unsqueeze(1), self.prototypes, compute_mode="donot_use_mm_for_euclid_dist"
            ).squeeze(1)
        # |W|^2 - 2 W.P + |P|^2 reads the prototypes once, as a matrix product: 3 to 7 times
        # faster than differences. Distances below the rounding error are set to 0.
        product_LK = torch.bmm(self.prototypes, w_LF.unsqueeze(2)).squeeze(2)
        norms_LK = self.squares + gram_LRR.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        square_LK = norms_LK - 2 * product_LK
        rounding_LK = norms_LK * (32 * torch.finfo(w_LF.dtype).eps)
        return torch.where(square_LK > rounding_LK, square_LK, 0.0).sqrt()


@dataclass(frozen=True, slots=True)
class AttractTerm:
    """|W - P|^2 times a weight; `prototype` has the shape (L, X, Y)."""

    prototype: torch.Tensor
    weight: float

    def value_and_gradient(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ContrastiveTerm`: the gradient is 2 weight (W - P)."""
        value = self.weight * (w_LXY - self.prototype).square().sum()
        inner_RR = (
            2
            * self.weight
            * torch.eye(gram_LRR.shape[-1], dtype=gram_LRR.dtype, device=gram_LRR.device)
        )
        return value, inner_RR.expand_as(gram_LRR), -2 * self.weight * self.prototype


@dataclass(frozen=True, slots=True)
class GrassmannTerm:
    """InfoNCE over the overlap of A's row space with each prototype's, times a weight.

    Attributes:
        bases: orthonormal rows, shape (L, K * R, Y).
        same: the number of prototypes of the same modality; they come first.
    """

    bases: torch.Tensor
    same: int
    temperature: float
    weight: float

    def value_and_gradient(
        self, w_LXY: torch.Tensor, gram_LRR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ContrastiveTerm`.

        The projector on A's rows is A' (A A')^-1 A, so no QR of A is needed:
        z = tr(Y' C) / R with C = A Q', Y = (A A')^-1 C, and
        dz/dA = 2/R (Y Q - Y Y' A).
        """
        rank = gram_LRR.shape[-1]
        overlap_LRC = w_LXY @ self.bases.mT
        y_LRC = torch.cholesky_solve(overlap_LRC, _cholesky(gram_LRR))
        overlaps_LKR = (overlap_LRC * y_LRC).sum(1).unflatten(1, (-1, rank))
        value_L, slope_LK = info_nce(overlaps_LKR.sum(2) / rank, self.same, self.temperature)
        slope_LC = (slope_LK * (2 * self.weight / rank)).repeat_interleave(rank, dim=1)
        weighted_LRC = y_LRC * slope_LC.unsqueeze(1)
        return (
            self.weight * value_L.sum(),
            -weighted_LRC @ y_LRC.mT,
            weighted_LRC @ self.bases,
        )


def info_nce(
    z_LK: torch.Tensor, same: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return InfoNCE of similarities (L,) and its derivative by each of them (L, K).

    The first `same` similarities are positives, the others negatives:
    mean over positives of -log(e^(z_p/T) / (e^(z_p/T) + sum_n e^(z_n/T))). Without positives
    it is pure repulsion, T log(mean_n e^(z_n/T)); without negatives it is 0.
    """
    positive_LP, negative_LN = (z_LK / temperature).split((same, z_LK.shape[1] - same), dim=1)
    negatives_L1 = torch.logsumexp(negative_LN, 1, keepdim=True)
    if same == 0:
        value_L = temperature * (negatives_L1.squeeze(1) - math.log(z_LK.shape[1]))
        return value_L, torch.softmax(negative_LN, 1)
    gap_LP = negatives_L1 - positive_LP
    pull_LP = torch.sigmoid(gap_LP) / (same * temperature)
    push_LN = torch.softmax(negative_LN, 1) * pull_LP.sum(1, keepdim=True)
    return functional.softplus(gap_LP).mean(1), torch.cat([-pull_LP, push_LN], 1)


def _cholesky(gram_LRR: torch.Tensor) -> torch.Tensor:
    # The ridge is below rounding for any A of full rank, and keeps others finite.
    rounding = torch.finfo(gram_LRR.dtype)
    diagonal_LR = gram_LRR.diagonal(dim1=1, dim2=2)
    ridge_L1 = diagonal_LR.mean(1, keepdim=True) * rounding.eps + rounding.tiny
    ridge_LRR = torch.diag_embed(ridge_L1.expand_as(diagonal_LR))
    # `cholesky` would wait for the device to learn whether it failed; `cholesky_ex` does not.
    return torch.linalg.cholesky_ex(gram_LRR + ridge_LRR).L
