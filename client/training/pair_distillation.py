"""PRIMED's and ZSCL's loss terms on reference pairs: functions of embeddings, and of gradients.

PRIMED distils a teacher on pairs of an image and a caption (CKT), keeps the pairs matched (CMC)
and holds the parameters back where the pairs' loss is steep (DFG). GIFT (CVPR 2025), on which it
is built, gives what PRIMED leaves open: a temperature, means in place of sums, equal captions as
equally right, and weights of mean one in every tensor. `Formulas` says which is taken.

Legend of shapes: N reference pairs of a batch, E embedding width. Embeddings have length 1.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from common.methods.primed import Formulas, Transfer

#: Of CMC's targets, as of the task's cross-entropy (PRIMED).
LABEL_SMOOTHING: Final = 0.2
#: Of CKT under GIFT's formulas (GIFT's code; PRIMED's have none), of ZSCL and of LwF.
TEMPERATURE: Final = 2.0


def student_similarities(
    images_NE: Tensor,
    captions_NE: Tensor,
    teacher: tuple[Tensor, Tensor],
    transfer: Transfer,
    scale: float,
) -> Tensor:
    """Return the student's similarities exp(s) f.g that CKT compares, (N, N), a row an image.

    Args:
        teacher: the teacher's embeddings of images and of captions.
        scale: exp(logit_scale), the same for student and teacher.
    """
    teacher_images_NE, teacher_captions_NE = teacher
    if transfer is Transfer.IMAGE:
        captions_NE = teacher_captions_NE
    elif transfer is Transfer.TEXT:
        images_NE = teacher_images_NE
    return scale * images_NE @ captions_NE.T


def knowledge_transfer(student_NN: Tensor, teacher_NN: Tensor, formulas: Formulas) -> Tensor:
    """Return CKT, shape (): the teacher's similarities as targets, by rows and by columns.

    GIFT: T^2 mean_rows CE(softmax(Z_t / T), Z_s / T) and the same on columns, T = 2. Printed:
    the sum over rows of KL(softmax(Z_t) || softmax(Z_s)), and columns. CE and KL have the same
    gradient: they differ by the teacher's entropy.
    """
    return sum(
        (
            _transferred(student, teacher, formulas)
            for student, teacher in ((student_NN, teacher_NN), (student_NN.T, teacher_NN.T))
        ),
        start=student_NN.new_zeros(()),
    )


def _transferred(student_NN: Tensor, teacher_NN: Tensor, formulas: Formulas) -> Tensor:
    if formulas is Formulas.GIFT:
        return distillation(teacher_NN, student_NN)
    return F.kl_div(
        F.log_softmax(student_NN, dim=1),
        F.log_softmax(teacher_NN, dim=1),
        reduction="sum",
        log_target=True,
    )


def distillation(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """Return T^2 mean_rows CE(softmax(Z_t / T), Z_s / T), T = 2, shape () (arXiv 1503.02531)."""
    targets_BK = torch.softmax(teacher_BK / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.cross_entropy(student_BK / TEMPERATURE, targets_BK)


def zscl_distillation(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """Return ZSCL's loss, shape (): its image part and its text part (arXiv 2303.06628, 3.2).

    The student's images are compared with the teacher's captions, and the student's captions with
    the teacher's images, each with the teacher's own similarities as targets. The authors' code has
    the columns of the image part in place of the text part, so no gradient reaches the text tower.

    Args:
        student, teacher: their embeddings of images and of captions, (N, E) each.
        scale: exp(logit_scale).
    """
    (images_NE, captions_NE), (of_images_NE, of_captions_NE) = student, teacher
    target_NN = scale * of_images_NE @ of_captions_NE.T
    return distillation(target_NN, scale * images_NE @ of_captions_NE.T) + distillation(
        target_NN.T, scale * captions_NE @ of_images_NE.T
    )


def matching(student_NN: Tensor, captions: Sequence[int], formulas: Formulas) -> Tensor:
    """Return CMC, shape (): cross-entropy of the pairs with smoothed targets, rows and columns.

    Args:
        captions: a number for each pair; pairs with equal ones have the same caption. GIFT: the k
            pairs of a caption share the target, 1 / k each. Printed: only a pair itself is right.
    """
    number = torch.tensor(captions, device=student_NN.device)
    if formulas is Formulas.GIFT:
        same_NN = (number[:, None] == number[None, :]).to(student_NN.dtype)
        targets_NN = same_NN / same_NN.sum(dim=1, keepdim=True)
    else:
        targets_NN = torch.eye(len(number), dtype=student_NN.dtype, device=student_NN.device)
    reduction = "mean" if formulas is Formulas.GIFT else "sum"
    # Both targets are symmetric.
    rows, columns = (
        F.cross_entropy(z, targets_NN, label_smoothing=LABEL_SMOOTHING, reduction=reduction)
        for z in (student_NN, student_NN.T)
    )
    return rows + columns


def guard_weights(gradients: Sequence[Tensor], formulas: Formulas) -> list[Tensor]:
    """Return W of each tensor: its squared gradient, under GIFT's formulas divided by the mean.

    A tensor whose gradient is zero has weights of zero.
    """
    weights: list[Tensor] = []
    for gradient in gradients:
        squared = gradient.detach().square()
        if formulas is Formulas.GIFT:
            mean = squared.mean()
            squared = torch.where(mean > 0, squared / mean, torch.zeros_like(squared))
        weights.append(squared)
    return weights


def guard_value_and_gradients(
    moved: Sequence[Tensor], weights: Sequence[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Return sum W (theta - theta')^2, shape (), and its gradient 2 W (theta - theta').

    Args:
        moved: theta - theta' of each tensor; theta' are the parameters of the stage before.
        weights: W of each tensor, a constant; None for 1 everywhere.
    """
    weighted = (
        list(moved) if weights is None else [w * by for w, by in zip(weights, moved, strict=True)]
    )
    value = torch.stack([(w * by).sum() for w, by in zip(weighted, moved, strict=True)]).sum()
    return value, [2 * part for part in weighted]
