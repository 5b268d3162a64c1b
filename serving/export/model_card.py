"""The model card of an exported stage, made from its release."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import yaml

from common.bank.bank import Bank
from common.bank.release import Release
from common.printable import counted

#: The standard normal's quantile of a 95 % interval.
_Z: Final = 1.959963984540054
#: Scores that are shares of right answers, for which the binomial interval holds.
_SHARES: Final = frozenset(("accuracy", "closed_accuracy", "recall", "f1"))


#: How a whole CLIP is asked.
_ASKING: Final = """## How to ask

The picture's class is the one whose text is most like it; the classes are in provenance.json.

```python
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

model = CLIPModel.from_pretrained(FOLDER).eval()
pixels = CLIPImageProcessor.from_pretrained(FOLDER)
texts = [f"a photo of a {name}." for name in CLASSES]
words = AutoTokenizer.from_pretrained(FOLDER)(texts, padding=True, return_tensors="pt")
picture = pixels(Image.open("picture.png").convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    print(CLASSES[int(model(**words, **picture).logits_per_image.argmax())])
```
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the card says beside the release.

    Attributes:
        base_model: the base model's folder, or its id on a hub.
        merged: whether the folder is a whole model.
        prompting: whether it has a processor with a chat template.
        own_template: whether that is the base model's own, and not LLaVA-Med's.
        questions: number of the stage's test questions; None where it is not known.
        version: of fedmslora.
        classifies: whether it is a whole CLIP.
    """

    base_model: str
    merged: bool
    prompting: bool
    questions: int | None
    version: str
    classifies: bool = False
    own_template: bool = False


def model_card(bank: Bank, release: Release, facts: CardFacts) -> bytes:
    """Return README.md of an exported stage."""
    summed = [bank.releases[position] for position in release.sums]
    library = "transformers" if facts.merged else "peft"
    metadata = {
        "library_name": library,
        "base_model": facts.base_model,
        "pipeline_tag": "zero-shot-image-classification"
        if facts.classifies
        else "image-text-to-text",
        "tags": ["fedmslora", "federated-learning", release.modality.value]
        + ([] if facts.merged else ["lora"]),
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {release.name}: {release.modality.value}, task {release.task}\n",
        "> **No medical device.** Research software: no answer may be used for the care of a "
        "patient.\n",
        _what(bank, release, summed, facts),
        _data(summed),
        _scores(release, facts.questions),
        _privacy(summed),
        _prompting(facts),
        _origin(bank, release, facts),
    ]
    return "\n".join(parts).encode()


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` (Wilson 1927, doi 10.2307/2276774).

    Of a mean of values between 0 and 1 it is at least as wide as for a share.
    """
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    half /= 1 + _Z**2 / count
    return max(0.0, centre - half), min(1.0, centre + half)


def _what(bank: Bank, release: Release, summed: Sequence[Release], facts: CardFacts) -> str:
    rank = sum(one.rank for one in summed)
    names = ", ".join(one.name for one in summed)
    if facts.merged:
        kind = "A whole model: the base model with the adapters of these stages in its weights"
    else:
        kind = f"One LoRA adapter of rank {rank}, the exact sum of the adapters of these stages"
    return (
        f"## What it is\n\n{kind}: {names}. It answers the questions of the task "
        f"{release.task} about pictures of the modality {release.modality.value}; for other "
        f"pictures the bank has other stages. Base model: {bank.base_model.name} "
        f"(sha256 {bank.base_model.sha256}).\n"
    )


def _data(summed: Sequence[Release]) -> str:
    rows = [
        f"| {one.name} | {site} | {count:,} |"
        for one in summed
        for site, count in sorted(one.sites.items())
    ]
    total = sum(sum(one.sites.values()) for one in summed)
    return "\n".join(
        [
            "## Data\n",
            f"{total:,} training examples at the hospitals of "
            f"{counted(len(summed), 'stage')}; they stayed there. Sites have pseudonyms.\n",
            "| stage | site | examples |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _scores(release: Release, questions: int | None) -> str:
    lines = ["## Scores\n"]
    if not release.scores:
        return "\n".join([*lines, "The release has none.\n"])
    if questions is None:
        lines.append(
            "On the sites' test questions after this stage. The release does not say how many they "
            "were, so there are no intervals.\n"
        )
    else:
        lines.append(
            f"On {questions:,} test questions of the sites after this stage; 95 % intervals "
            "(Wilson) over questions, for shares of right answers.\n"
        )
    rows = [
        f"| {name} | {value:.3f} | {_interval_of(name, value, questions)} |"
        for name, value in sorted(release.scores.items())
    ]
    return "\n".join([*lines, "| measure | value | 95 % interval |", "|---|---|---|", *rows, ""])


def _interval_of(name: str, value: float, questions: int | None) -> str:
    if questions is None or name not in _SHARES or not 0 <= value <= 1:
        return ""
    low, high = interval(value, questions)
    return f"{low:.3f} to {high:.3f}"


def _privacy(summed: Sequence[Release]) -> str:
    fewest = min((min(one.sites.values(), default=0) for one in summed), default=0)
    return (
        "## Privacy\n\nPictures and questions never left a site; adapters, numbers of examples and "
        "scores did. The release records no guarantee of differential privacy: an adapter may "
        "remember training examples, so treat it as the sites' data would be treated. The "
        f"smallest site of a stage had {counted(fewest, 'example')}.\n"
    )


def _prompting(facts: CardFacts) -> str:
    if facts.classifies:
        return _ASKING
    if not facts.prompting:
        return (
            "## How to prompt\n\nThis folder has no processor: it was exported without the base "
            "model's folder (`fedmslora bank export --base-model DIR`).\n"
        )
    loader, writes = (
        ("AutoModelForImageTextToText", "is the base model's own: it writes one user turn of ")
        if facts.own_template
        else (
            "LlavaForConditionalGeneration",
            "writes `<s>[INST] <image>\\n{question} [/INST]`, pads the picture to a square, and "
            "takes ",
        )
    )
    load = (
        f"model = {loader}.from_pretrained(FOLDER)"
        if facts.merged
        else f'base = {loader}.from_pretrained("{facts.base_model}", '
        "dtype=torch.float32)\nmodel = PeftModel.from_pretrained(base, FOLDER).eval()"
    )
    peft = "" if facts.merged else "from peft import PeftModel\n"
    return (
        "## How to prompt\n\nOnly as below: another prompt gives other, and worse, answers. The "
        f"chat template {writes}one picture and one question. Answers are short and greedy.\n\n"
        f"```python\nimport torch\n{peft}"
        f"from transformers import {', '.join(sorted(('AutoProcessor', loader)))}\n\n"
        'processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")\n'
        f"{load}\n"
        'content = [\n    {"type": "image", "image": "picture.png"},\n'
        '    {"type": "text", "text": QUESTION},\n]\n'
        "inputs = processor.apply_chat_template(\n"
        '    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,\n'
        '    return_dict=True, return_tensors="pt",\n'
        ")\n"
        "new = model.generate(**inputs, do_sample=False, max_new_tokens=64)\n"
        'print(processor.decode(new[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
        "```\n"
    )


def _origin(bank: Bank, release: Release, facts: CardFacts) -> str:
    rows: Mapping[str, str] = {
        "release": f"{release.folder}, hash {release.hash}",
        "bank's head": bank.head,
        "signed by": release.signer,
        "plan": release.plan,
        "aggregation": f"{release.rule}, relative error {release.error:.4f}",
        "code": release.code,
        "exported by": f"fedmslora {facts.version}",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Origin\n", "| | |", "|---|---|", *lines, ""])
