"""Questions that share their picture's prefix in a row, against one question a row.

A LLaVA of random weights with the decoder of benchmarks/step.py behind 576 image tokens, and
questions as long as PathVQA's: a prefix of 580 tokens, and 25 behind it, of which 5 are the
answer's. Seven or eight questions a picture, 7.6 in the mean. Both ways train the same
adapter on the same questions; ours through `Batches` and `Decoder`, as a site does. One
thread, fp32. The tower is in neither: features are kept (client/model/image_cache.py).
"""
# transformers and torch are partly untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from benchmarks.shapes_7b import QUESTIONS, examples_in
from benchmarks.step import StepResult, StepSizes, base, difference, one_thread, some_adapters
from benchmarks.words import Words
from client.data.task import Example
from client.model.image_cache import ImageCache
from client.model.llava import LlavaModel
from client.model.lora import inject_adapter_layers
from client.model.prompt import IGNORE_INDEX, encode_example
from client.training.batches import Batches, pad_rows
from client.training.optimizer import backward
from client.training.token_loss import DecoderLoss, token_loss
from common.rules.interface import Factor

#: The side of a picture in patches: 576 of them, as in CLIP-L/14-336.
SIDE = 24
#: The token that stands for an image feature, and the first number that is not a word's token.
_IMAGE, _WORDS = 3, 1000


@dataclass(frozen=True, slots=True)
class PackingTask:
    """A model whose adapter learns, and what it learns from."""

    model: LlavaModel
    examples: Sequence[Example]


def run(
    repeats: int = 3,
    size: StepSizes | None = None,
    questions: Sequence[int] = QUESTIONS,
    side: int = SIDE,
) -> BenchmarkResult:
    """Time loss and gradients of so many questions of each picture, packed and one per row."""
    size = size or StepSizes(hidden=256)
    with one_thread(), TemporaryDirectory() as folder:
        task = _task(Path(folder), size, questions, side)
        packed = our_way(task, packing=True)
        timing = compare(packed, paper_way(task), repeats)
        apart = compare(packed, our_way(task, packing=False), repeats)
    asked = sum(questions)
    settings = {
        "hidden": size.hidden, "layers": size.layers, "rank": size.rank, "dtype": "float32",
        "threads": 1, "torch": str(torch.__version__), "timed": "forward and backward",
        "pictures": len(questions), "questions": asked,
        "questions_a_picture": asked / len(questions), **_tokens(task),
        "our_samples_a_second": asked / timing.ours,
        "their_samples_a_second": asked / timing.theirs,
        "over_ours_without_packing": apart.paired_ratio,
        "equal_to_ours_without_packing": difference(apart.our_result, apart.their_result),
    }  # fmt: skip
    equal_to = difference(timing.our_result, timing.their_result)
    return benchmark_result("packing", timing, equal_to, settings)


def our_way(task: PackingTask, packing: bool) -> Callable[[], StepResult]:
    """Return a site's own step: its batch, its decoder and its loss, in one micro-batch."""
    batches = Batches(task.model, task.examples, packing)
    loss_of = token_loss(DecoderLoss(task.model), batches, None, (0, 1))
    return _measured(task, lambda: next(iter(loss_of(range(len(task.examples))))))


def paper_way(task: PackingTask) -> Callable[[], StepResult]:
    """Return a step with one question per row, as the paper's code trains.

    It follows LLaVA-Med, which the paper builds on: train.py, `DataCollatorForSupervisedDataset`
    and llava_arch.py, `prepare_inputs_labels_for_multimodal` (rows padded on the right, with
    an attention mask), and llava_mistral.py, `forward` (transformers' own loss, its logits at
    every place). The linear layers are ours, with no earlier task in them.
    """
    model = task.model
    rows = [
        encode_example(model.tokenizer, e.question, e.answer, model.image_token, model.image_tokens)
        for e in task.examples
    ]
    width = max(len(row.ids) for row in rows)
    ids = torch.from_numpy(pad_rows([row.ids for row in rows], width, model.tokenizer.eos_token_id))
    labels = torch.from_numpy(pad_rows([row.labels for row in rows], width, IGNORE_INDEX))
    mask = torch.from_numpy(pad_rows([[1] * len(row.ids) for row in rows], width, 0))

    def loss() -> Tensor:
        features = model.image_features([example.image for example in task.examples])
        embedded = model.embed(ids, features)
        network: Any = model.network
        return network(
            inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False
        ).loss

    return _measured(task, loss)


def _measured(task: PackingTask, loss_of: Callable[[], Tensor]) -> Callable[[], StepResult]:
    learning = task.model.adapted.trainable_parameters()

    def step() -> StepResult:
        for parameter in learning:
            parameter.grad = None
        loss = loss_of()
        backward(loss)
        return StepResult(loss.detach(), [p.grad for p in learning if p.grad is not None])

    return step


def _task(folder: Path, size: StepSizes, questions: Sequence[int], side: int) -> PackingTask:
    examples = examples_in(folder, questions, words=_WORDS)
    return PackingTask(_model(size, side), examples)


def _model(size: StepSizes, side: int) -> LlavaModel:
    text = base(size).config
    torch.manual_seed(0)
    patch = 8
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=side * patch, patch_size=patch,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE)
    network = LlavaForConditionalGeneration(config).eval()
    adapted = inject_adapter_layers(network)
    (adapter,) = some_adapters(adapted, 1, size)
    adapted.attach(adapter, Factor.BOTH)
    square = {"height": side * patch, "width": side * patch}
    return LlavaModel(
        network=network,
        adapted=adapted,
        tokenizer=Words(),
        pixels=CLIPImageProcessorPil(size=square, do_center_crop=False),
        image_token=_IMAGE,
        image_tokens=side * side,
        cache=ImageCache(),
        identity="benchmark",
    )


def _tokens(task: PackingTask) -> dict[str, float]:
    """Return the mean lengths of the parts of a question."""
    batches, model = Batches(task.model, task.examples), task.model
    everything = range(len(task.examples))
    prefix = 1 + len(Words().encode("[INST] ", add_special_tokens=False)) + model.image_tokens
    whole = sum(map(batches.examples.token_count, everything)) / len(everything)
    labels = batches.examples.label_count(everything) / len(everything)
    return {"prefix": prefix, "behind_it": whole - prefix, "labels": labels}
