"""What is counted of a piece of work: bytes that live at a time, and operations."""
# pyright: reportUnknownMemberType=false

import torch

from benchmarks.memory import OperationCounter, TensorBytes, peak_bytes


def test_the_peak_is_of_what_lives_at_a_time():
    def work() -> None:
        first = torch.ones(100)
        second = first + 1
        del first
        # 400 bytes live on, and 200 come to them: fewer than the two of before.
        torch.cat([second[:50]])

    assert peak_bytes(work) == 800


def test_views_and_writing_in_place_take_no_memory():
    def work() -> None:
        one = torch.ones(100)
        one.view(10, 10).t().add_(1)
        one.mul_(2)

    assert peak_bytes(work) == 400


def test_what_autograd_keeps_is_counted_until_the_backward_pass_lets_go_of_it():
    weight = torch.ones(100, requires_grad=True)

    def work() -> None:
        loss = (weight.exp()).exp().sum()
        # Two outputs of 400 bytes, and the sum.
        assert counted.alive == 804
        loss.backward()

    with TensorBytes() as counted:
        work()
    assert weight.grad is not None
    # The loss has gone, the graph too; the gradient alone is there.
    assert counted.alive == 400


def test_memory_from_before_is_not_counted():
    before = torch.ones(1000)
    assert peak_bytes(lambda: before.view(10, 100)) == 0


def test_operations_are_named_and_views_left_out():
    one = torch.ones(4)
    with OperationCounter() as counted:
        one.view(2, 2).add_(1)
    assert counted.names == ["aten::add_.Tensor"] and counted.views == 1
