"""The proximal term against autograd of its formula, and what it does to a training."""
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor, nn

from client.training.optimizer import LocalOptimizer
from client.training.proximal import ProximalTerm, with_proximal_term
from common.plan.plan import Training

MU = 0.3


def factors(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((2, 3), (4, 2))
    ]


def test_value_and_gradient_are_those_of_the_formula():
    trained, start = factors(1), factors(2)
    begun = [nn.Parameter(p.detach().clone()) for p in start]
    term = ProximalTerm(begun, MU)
    for parameter, now in zip(begun, trained, strict=True):
        parameter.data.copy_(now)
    begun[0].grad = torch.ones_like(begun[0])
    value = term.add_gradient()
    pairs = list(zip(trained, start, strict=True))
    plain = sum(((p - q.detach()).pow(2).sum() for p, q in pairs), torch.zeros(())) * MU / 2
    plain.backward()
    torch.testing.assert_close(value, plain.detach())
    # What was in `.grad` stays: the loss's gradient.
    assert begun[0].grad is not None and trained[0].grad is not None
    torch.testing.assert_close(begun[0].grad, trained[0].grad + 1)
    torch.testing.assert_close(begun[1].grad, trained[1].grad)


def test_a_frozen_factor_has_no_part_in_it():
    trained, frozen = factors(1)
    frozen.requires_grad_(False)
    term = ProximalTerm([trained, frozen], MU)
    frozen.data += 1
    trained.data += 1
    assert float(term.add_gradient()) == MU / 2 * trained.numel()
    assert frozen.grad is None


def test_it_is_added_to_the_methods_own_penalty():
    trained = factors(1)

    def own() -> Tensor:
        trained[0].grad = torch.full_like(trained[0], 5.0)
        return torch.tensor(2.0)

    both = with_proximal_term(own, trained, MU)
    trained[0].data += 1
    assert float(both()) == 2.0 + MU / 2 * trained[0].numel()
    torch.testing.assert_close(trained[0].grad, torch.full_like(trained[0], 5.0 + MU))


def drift(mu: float | None) -> float:
    """How far twenty steps of a linear loss go."""
    (parameter, _) = factors(1)
    start = parameter.detach().clone()
    optimizer = LocalOptimizer(nn.Identity(), [parameter], Training())
    penalty = None if mu is None else with_proximal_term(None, [parameter], mu)
    for _ in range(20):
        optimizer.step([parameter.sum()], penalty, 0.1)
    return float((parameter.detach() - start).norm())


def test_the_larger_mu_the_nearer_a_site_stays_to_its_start():
    free, near, nearer = drift(None), drift(2.0), drift(10.0)
    assert free > 1.2 * near > 1.2 * 1.2 * nearer
