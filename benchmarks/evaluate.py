"""The answers to a whole test set: ours, and the paper's loop over it.

One thread, fp32, a small LLaVA with random weights and the paper's lengths: 580 tokens before
each question, several questions a picture, most answers short and some long. An answer ends
where the model says `</s>`; as random weights hardly ever say it, that token's row of the
head is scaled up, in the model that both ways have.
"""
# transformers and torch are partly untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig
from transformers.utils import logging as transformers_logging

from benchmarks import paper_loop
from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from benchmarks.step import StepSizes, one_thread, some_adapters
from client.data.images import load_image, pad_to_square
from client.data.task import Example
from client.inference.generate import generate_tokens
from client.model.llava import LlavaModel, load_llava
from client.model.prompt import encode_prompt
from common.adapter import Adapter
from common.metrics import AnswerKind
from common.plan_fields import Composition, Precision
from simulation.hospitals import BASE_MODELS

#: Tokens of every answer, question by question.
AnswerTokens = list[list[int]]


@dataclass(frozen=True, slots=True)
class TestSet:
    """The model and its questions.

    Attributes:
        questions: a picture has, in turn; 7.6 of them as PathVQA's.
        patches: the tower cuts a picture into patches * patches, an image token each.
        ends: the factor on the head's row of `</s>`.
    """

    __test__ = False  # not a test of pytest's

    hidden: int = 512
    layers: int = 4
    rank: int = 16
    patches: int = 24
    pictures: int = 5
    questions: tuple[int, ...] = (8, 7, 8, 7, 8)
    max_new_tokens: int = 60
    batch_size: int = 64
    ends: float = 2.2


def run(tasks: int = 7, repeats: int = 2, size: TestSet | None = None) -> BenchmarkResult:
    """Answer a whole test set after `tasks` earlier tasks, ours beside the paper's loop."""
    size = size or TestSet()
    with one_thread(), TemporaryDirectory() as scratch:
        folder = write_base(Path(scratch) / "base", size)
        questions = _questions(Path(scratch), size)
        ours = CpuTimed(our_way(folder, tasks, questions, size))
        theirs = CpuTimed(paper_way(folder, tasks, questions, size))
        timing = compare(ours, theirs, repeats)
    lengths = [len(row) for row in timing.their_result]
    settings = {**asdict(size), "earlier_tasks": tasks, "threads": 1, "dtype": "float32"}
    settings |= {
        "answers": len(questions),
        "answers_a_second": {
            "ours": len(questions) / timing.ours,
            "theirs": len(questions) / timing.theirs,
        },
        # A machine with other work to do slows down wall-clock time, and this hardly.
        "cpu_ratio": theirs.seconds / ours.seconds,
        "answer_lengths": lengths,
        "equal_to_is": "the share of tokens that differ",
        "torch": str(torch.__version__),
    }
    differing = differing_tokens(timing.our_result, timing.their_result)
    return benchmark_result("evaluate", timing, differing, settings)


class CpuTimed:
    """A way of answering, and the processor's median seconds of a call but the first."""

    def __init__(self, work: Callable[[], AnswerTokens]) -> None:
        self._work = work
        self._seconds: list[float] = []

    def __call__(self) -> AnswerTokens:
        """Do the work, and record its CPU seconds."""
        start = time.process_time()
        result = self._work()
        self._seconds.append(time.process_time() - start)
        return result

    @property
    def seconds(self) -> float:
        """The median; a first call warms up."""
        return median(self._seconds[1:])


def our_way(
    folder: Path, tasks: int, questions: Sequence[Example], size: TestSet
) -> Callable[[], AnswerTokens]:
    """Answer as a site does; each call folds all adapters and encodes every picture anew."""
    model = _fresh(folder)
    adapters = _adapters(model, tasks, size)

    def whole_set() -> AnswerTokens:
        model.adapted.freeze_adapters([], Composition.FOLD)
        model.adapted.freeze_adapters(adapters, Composition.FOLD)
        unseen = replace(model, cache=type(model.cache)())
        return generate_tokens(unseen, questions, size.max_new_tokens, size.batch_size)

    return whole_set


def paper_way(
    folder: Path, tasks: int, questions: Sequence[Example], size: TestSet
) -> Callable[[], AnswerTokens]:
    """Answer one question after another: llava/eval/model_vqa.py, the loop of `eval_model`.

    There the picture is opened, padded and processed for each question, and `generate` goes
    greedily from prompt and pixels, with its cache; all tasks' adapters are separate and active.
    """
    model = _fresh(folder)
    adapters = _adapters(model, tasks, size)
    paper_loop.in_the_papers_way(model.network, model.adapted, adapters)
    paper_loop.mask_tasks(model.network, len(adapters))
    return lambda: [_generated(model, question, size.max_new_tokens) for question in questions]


def differing_tokens(ours: AnswerTokens, theirs: AnswerTokens) -> float:
    """Return the share of positions in all answers whose tokens differ; 0.0 is equal."""
    places = differing = 0
    for our_row, their_row in zip(ours, theirs, strict=True):
        longest = max(len(our_row), len(their_row))
        same = sum(a == b for a, b in zip(our_row, their_row, strict=False))
        places, differing = places + longest, differing + longest - same
    return differing / max(places, 1)


@torch.inference_mode()
def _generated(model: LlavaModel, question: Example, tokens: int) -> list[int]:
    prompt = encode_prompt(
        model.tokenizer, question.question, model.image_token, model.image_tokens
    )
    ids = torch.tensor([prompt])
    square = pad_to_square(load_image(question.image), (122, 116, 104))
    network: Any = model.network  # transformers types no `generate`
    new = network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=model.pixels(square, return_tensors="pt")["pixel_values"],
        do_sample=False,
        max_new_tokens=tokens,
        use_cache=True,
    )[0, len(prompt) :].tolist()
    return new[:-1] if new[-1] == model.tokenizer.eos_token_id else new


def _fresh(folder: Path) -> LlavaModel:
    """Load a model of its own: the two ways change the layers of theirs."""
    model = load_llava(folder, Precision.FP32, torch.device("cpu"))
    return model


def _adapters(model: LlavaModel, tasks: int, size: TestSet) -> list[Adapter]:
    return some_adapters(model.adapted, tasks + 1, StepSizes(size.hidden, size.layers, size.rank))


def _questions(folder: Path, size: TestSet) -> list[Example]:
    """Make questions of ten to thirty tokens, as many for each picture as `size` says."""
    generator = np.random.default_rng(0)
    words = "is the left upper area of this picture bright or dark and how many are there".split()
    found: list[Example] = []
    for picture in range(size.pictures):
        file = folder / f"{picture}.png"
        pixels = generator.integers(0, 256, (size.patches * 14,) * 2 + (3,), np.uint8)
        Image.fromarray(pixels).save(file)
        for _ in range(size.questions[picture % len(size.questions)]):
            asked = " ".join(generator.choice(words, generator.integers(5, 20)))
            found.append(Example(str(len(found)), file, asked, "", AnswerKind.OPEN))
    return found


def write_base(folder: Path, size: TestSet) -> Path:
    """Write a LLaVA with seeded weights and the embedded model's tokenizer."""
    embedded = BASE_MODELS["tiny-llava"]
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder / name)
    side = size.patches * 14
    pixels = json.loads((embedded / "preprocessor_config.json").read_text(encoding="utf-8"))
    pixels |= {"size": {"height": side, "width": side}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
    network = _network(size, json.loads((embedded / "config.json").read_text(encoding="utf-8")))
    transformers_logging.disable_progress_bar()
    network.save_pretrained(folder)
    return folder


def _network(size: TestSet, embedded: dict[str, Any]) -> LlavaForConditionalGeneration:
    heads = max(4, size.hidden // 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlavaForConditionalGeneration(
            LlavaConfig(
                # About a twentieth of the decoder's work, as CLIP-L beside the 7B.
                vision_config=CLIPVisionConfig(
                    hidden_size=192,
                    intermediate_size=768,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=size.patches * 14,
                    patch_size=14,
                ),
                text_config=MistralConfig(
                    vocab_size=embedded["text_config"]["vocab_size"],
                    hidden_size=size.hidden,
                    intermediate_size=size.hidden * 7 // 2,
                    num_hidden_layers=size.layers,
                    num_attention_heads=heads,
                    num_key_value_heads=heads // 4,
                    sliding_window=None,
                    bos_token_id=1,
                    eos_token_id=2,
                    pad_token_id=0,
                    tie_word_embeddings=False,
                    initializer_range=0.06,
                ),
                image_token_index=embedded["image_token_index"],
                image_seq_length=size.patches**2,
                vision_feature_layer=-2,
            )
        )
    network.generation_config.pad_token_id = 0
    with torch.no_grad():
        network.lm_head.weight[2] *= size.ends
    return network
