"""The loss of a LLaVA's decoder over labelled tokens, and the micro-batches that it takes."""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.model.llava import LlavaModel
from client.training.batches import Batch
from client.training.language import TrainingBatches
from client.training.loop import LossOf


class DecoderLoss(nn.Module):
    """The decoder and the head of a LLaVA, with the loss over labelled tokens.

    The vision tower stays out: its features are cached, so processes that train together
    don't run it at the same moments.
    """

    def __init__(self, model: LlavaModel) -> None:
        super().__init__()
        self.language_model = model.network.model.language_model
        self.head = model.network.lm_head
        self._model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropy over the batch's labels; shape ()."""
        hidden = self._model.hidden(self._model.embed(batch.ids, batch.features), batch.layout)
        # The vocabulary is large and labels are few: logits only where there is one.
        logits = self._model.logits(hidden.flatten(0, 1).index_select(0, batch.label_positions))
        exact = torch.promote_types(logits.dtype, torch.float32)
        return functional.cross_entropy(logits.to(exact), batch.labels, reduction="sum")


def token_loss(
    network: Callable[..., Tensor],
    batches: TrainingBatches,
    micro_batch: int | None,
    shard: tuple[int, int],
) -> LossOf:
    """Return the mean cross-entropy over the labelled tokens of a batch, one micro-batch a time.

    The mean is the same for every size of micro-batch and every count of processes, also
    where answers differ in length: each part is its sum divided by the tokens of all.
    """

    def loss_of(chosen: Sequence[int]) -> Iterator[Tensor]:
        tokens = batches.examples.label_count(chosen)
        for part in own_micro_batches(batches, micro_batch, shard, chosen):
            # A process without an example runs one for nothing: the others wait for it.
            loss = network(batches.collate(part or chosen[:1])) / tokens
            yield loss if part else loss * 0.0

    return loss_of


def own_micro_batches(
    batches: TrainingBatches, micro_batch: int | None, shard: tuple[int, int], chosen: Sequence[int]
) -> list[Sequence[int]]:
    """Return this process's micro-batches of a batch, in the order in which they are taken."""
    if not batches.examples.image_numbers:  # the questions of a picture stay together
        chosen = sort_by_length(chosen, batches.examples.token_count, micro_batch, shard[1])
    return micro_batches(chosen, micro_batch, shard)


def prefetch_own(
    batches: TrainingBatches,
    micro_batch: int | None,
    shard: tuple[int, int],
    coming: Sequence[Sequence[int]],
) -> None:
    """Prefetch the pictures of this process's share of the coming batches."""
    parts = [own_micro_batches(batches, micro_batch, shard, chosen) for chosen in coming]
    batches.prefetch([i for part in chain(*parts) for i in part])


def sort_by_length(
    chosen: Sequence[int], length: Callable[[int], int], micro_batch: int | None, count: int
) -> Sequence[int]:
    """Order a batch so that the examples of a micro-batch have about the same length.

    Then little is padded, and processes that wait for each other take equally long. The
    longest come first, so that what does not fit into memory fails at once. Where a
    micro-batch is a whole share, or one example, nothing is gained, and the order stays.
    """
    if micro_batch in (None, 1) or micro_batch * count >= len(chosen):
        return chosen
    ordered = sorted(chosen, key=length, reverse=True)
    return [i for place in range(count) for i in ordered[place::count]]


def micro_batches(
    chosen: Sequence[int], micro_batch: int | None, shard: tuple[int, int]
) -> list[Sequence[int]]:
    """Split this process's share of a batch into micro-batches, equally many in every process.

    The shares are contiguous, and their sizes differ by at most one.
    """
    place, count = shard
    shares = np.array_split(np.asarray(chosen), count)
    size = micro_batch or len(shares[0])
    starts = range(0, len(shares[0]), size)
    return [shares[place][start : start + size].tolist() for start in starts]
