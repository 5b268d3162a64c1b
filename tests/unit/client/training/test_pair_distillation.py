"""PRIMED's and ZSCL's terms against their formulas, written out number by number in float64."""
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.training.pair_distillation import (
    distillation,
    guard_value_and_gradients,
    guard_weights,
    knowledge_transfer,
    matching,
    student_similarities,
    zscl_distillation,
)
from common.methods.primed import Formulas, Transfer

PAIRS = 5
#: Pairs 0 and 3 share a caption, as do 1, 2 and 4.
CAPTIONS = (7, 2, 2, 7, 2)


def similarities(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(PAIRS, PAIRS, generator=generator, dtype=torch.float64)


def rows(matrix: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix]


def log_softmax(row: Sequence[float]) -> list[float]:
    most = max(row)
    total = math.log(sum(math.exp(value - most) for value in row)) + most
    return [value - total for value in row]


def ckt_by_hand(student: list[list[float]], teacher: list[list[float]], gift: bool) -> float:
    heat = 2.0 if gift else 1.0
    terms: list[float] = []
    for s, t in zip(student, teacher, strict=True):
        log_s = log_softmax([value / heat for value in s])
        log_t = log_softmax([value / heat for value in t])
        if gift:
            terms.append(-sum(math.exp(q) * p for p, q in zip(log_s, log_t, strict=True)))
        else:
            terms.append(sum(math.exp(q) * (q - p) for p, q in zip(log_s, log_t, strict=True)))
    return 4.0 * sum(terms) / len(terms) if gift else sum(terms)


def cmc_by_hand(student: list[list[float]], gift: bool) -> float:
    terms: list[float] = []
    for row, z in enumerate(student):
        equal = [CAPTIONS[row] == other if gift else row == at for at, other in enumerate(CAPTIONS)]
        log_p = log_softmax(z)
        total = 0.0
        for right, value in zip(equal, log_p, strict=True):
            target = 0.8 * (1 / sum(equal) if right else 0.0) + 0.2 / PAIRS
            total -= target * value
        terms.append(total)
    return sum(terms) / len(terms) if gift else sum(terms)


@pytest.mark.parametrize("formulas", Formulas)
def test_ckt_equals_its_formula(formulas: Formulas):
    student, teacher = similarities(1), similarities(2)
    gift = formulas is Formulas.GIFT
    expected = ckt_by_hand(rows(student), rows(teacher), gift)
    expected += ckt_by_hand(rows(student.T), rows(teacher.T), gift)
    assert float(knowledge_transfer(student, teacher, formulas)) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("formulas", Formulas)
def test_cmc_equals_its_formula(formulas: Formulas):
    student = similarities(3)
    gift = formulas is Formulas.GIFT
    expected = cmc_by_hand(rows(student), gift) + cmc_by_hand(rows(student.T), gift)
    assert float(matching(student, CAPTIONS, formulas)) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("formulas", Formulas)
def test_the_gradients_are_those_of_the_values(formulas: Formulas):
    student, teacher = similarities(4).requires_grad_(), similarities(5)

    def ckt(z: Tensor) -> Tensor:
        return knowledge_transfer(z, teacher, formulas)

    def cmc(z: Tensor) -> Tensor:
        return matching(z, CAPTIONS, formulas)

    assert torch.autograd.gradcheck(ckt, (student,))
    assert torch.autograd.gradcheck(cmc, (student,))


def test_a_student_like_its_teacher_has_no_gradient_of_ckt():
    student = similarities(6).requires_grad_()
    for formulas in Formulas:
        (gradient,) = torch.autograd.grad(
            knowledge_transfer(student, student.detach(), formulas), student
        )
        assert float(gradient.abs().max()) < 1e-15


def test_printed_ckt_is_a_batch_times_gifts_at_temperature_one():
    """The gradient of sums over the batch is N times that of means, whatever T and T^2 do."""
    student, teacher = similarities(7).requires_grad_(), similarities(8)
    (printed,) = torch.autograd.grad(
        knowledge_transfer(student, teacher, Formulas.PRINTED), student
    )
    mean = F.cross_entropy(student, torch.softmax(teacher, 1))
    mean = mean + F.cross_entropy(student.T, torch.softmax(teacher.T, 1))
    (of_means,) = torch.autograd.grad(mean, student)
    torch.testing.assert_close(printed, PAIRS * of_means)


@pytest.mark.parametrize(
    ("transfer", "from_image", "from_text"),
    [(Transfer.BOTH, 0, 1), (Transfer.IMAGE, 0, 3), (Transfer.TEXT, 2, 1)],
)
def test_whose_embeddings_the_student_is(transfer: Transfer, from_image: int, from_text: int):
    generator = torch.Generator().manual_seed(9)
    parts = [torch.randn(PAIRS, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    found = student_similarities(parts[0], parts[1], (parts[2], parts[3]), transfer, 1.5)
    for row in range(PAIRS):
        for column in range(PAIRS):
            dot = sum(
                float(a * b)
                for a, b in zip(parts[from_image][row], parts[from_text][column], strict=True)
            )
            assert float(found[row, column]) == pytest.approx(1.5 * dot, rel=1e-12)


def test_the_guards_weights_and_its_gradient():
    gradients = [torch.tensor([1.0, -3.0], dtype=torch.float64), torch.zeros(2, 2)]
    gift, zero = guard_weights(gradients, Formulas.GIFT)
    np.testing.assert_allclose(gift.numpy(), [0.2, 1.8])
    assert not zero.any()
    printed, _ = guard_weights(gradients, Formulas.PRINTED)
    np.testing.assert_allclose(printed.numpy(), [1.0, 9.0])
    moved = [torch.tensor([0.5, -2.0], dtype=torch.float64)]
    value, (gradient,) = guard_value_and_gradients(moved, [gift])
    assert float(value) == pytest.approx(0.2 * 0.25 + 1.8 * 4.0)
    theta = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((gift * theta.square()).sum(), theta)
    torch.testing.assert_close(gradient, expected)
    plain, _ = guard_value_and_gradients(moved, None)
    assert float(plain) == pytest.approx(4.25)


def embeddings(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, captions = (
        F.normalize(torch.randn(PAIRS, 4, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    return images, captions


def cosines(images: Tensor, captions: Tensor, scale: float) -> list[list[float]]:
    return [
        [scale * sum(float(a * b) for a, b in zip(row, other, strict=True)) for other in captions]
        for row in images
    ]


def test_zscl_equals_its_formula_and_its_gradient_reaches_both_towers():
    (images, captions), teacher, scale = embeddings(10), embeddings(11), 6.0
    wanted = cosines(*teacher, scale)
    of_images = cosines(images, teacher[1], scale)
    of_texts = cosines(captions, teacher[0], scale)
    expected = ckt_by_hand(of_images, wanted, True)
    expected += ckt_by_hand(of_texts, [list(column) for column in zip(*wanted, strict=True)], True)
    found = zscl_distillation((images, captions), teacher, scale)
    assert float(found) == pytest.approx(expected, rel=1e-12)

    def term(x: Tensor, y: Tensor) -> Tensor:
        return zscl_distillation((x, y), teacher, scale)

    given = (images.clone().requires_grad_(), captions.clone().requires_grad_())
    assert torch.autograd.gradcheck(term, given)
    of_each = torch.autograd.grad(term(*given), given)
    assert all(float(one.abs().max()) > 1e-3 for one in of_each)
    same = (teacher[0].clone().requires_grad_(), teacher[1].clone().requires_grad_())
    nothing = torch.autograd.grad(term(*same), same)
    assert all(float(one.abs().max()) < 1e-12 for one in nothing)


def test_the_code_of_zscls_authors_is_ckt_of_the_students_images():
    """Its image part is the rows of CKT `image`, and what it calls the text part the columns."""
    (images, _), (of_images, of_captions), scale = embeddings(12), embeddings(13), 6.0
    student = student_similarities(images, images, (of_images, of_captions), Transfer.IMAGE, scale)
    target = scale * of_images @ of_captions.T
    code = distillation(target, student) + distillation(target.T, student.T)
    torch.testing.assert_close(knowledge_transfer(student, target, Formulas.GIFT), code)
