"""The processor of an exported LLaVA: tokenizer, pixels and a chat template that gives our prompts.

The prompt is `<s>[INST] <image>\\n{question} [/INST]` (client/model/prompt.py). The template puts
the picture first, whatever its place in the message, as the model was trained.
"""
# transformers leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from client.data.images import pad_to_square
from client.model.llava import image_tokens
from client.model.llava_med import ModelParts
from client.model.prompt import chat_template, encode_prompt
from common.errors import ModelError

#: Of CLIP's image processor, which LLaVA's has, too.
_PIXEL_SETTINGS: Final = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip
_TOKENIZER_SETTINGS: Final = (
    "bos_token", "eos_token", "pad_token", "unk_token", "model_max_length",
)  # fmt: skip
#: Asked of a processor that was written, before anybody uses it.
_PROBES: Final = ("is it normal ?", "What is this?", "  how  many\nspots: 1, 2 or 3 ? é")


def processor_files(parts: ModelParts) -> dict[str, bytes]:
    """Return the files of a processor whose prompts and pixels are ours.

    Raises:
        ModelError: they would be others; nothing is exported then.
    """
    processor = _processor(parts)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        processor.save_pretrained(folder)
        # llama.cpp's converter and older versions of transformers read this file.
        processor.image_processor.save_pretrained(folder)
        _check(AutoProcessor.from_pretrained(folder, backend="pil"), parts)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def messages_of(question: str, image: object) -> list[Mapping[str, Any]]:
    """Return a question about a picture as transformers' chat templates take it."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _processor(parts: ModelParts) -> LlavaProcessor:
    config: Any = parts.config
    tokens = image_tokens(parts.config)
    mark: str = parts.tokenizer.convert_ids_to_tokens(config.image_token_id)
    # Of the general class, which takes tokenizer.json as it is: a LlamaTokenizer would be built
    # anew, with other spaces (transformers 5.24).
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(parts.tokenizer.backend_tokenizer.to_str()),
        clean_up_tokenization_spaces=False,
        **{name: getattr(parts.tokenizer, name) for name in _TOKENIZER_SETTINGS},
    )
    before = len(tokenizer)
    # As a token of its own in a text; it has its id already, and the vocabulary keeps its size.
    tokenizer.add_tokens([mark], special_tokens=True)
    if len(tokenizer) != before or tokenizer.convert_tokens_to_ids(mark) != config.image_token_id:
        raise ModelError(f"tokenizer: found no token {mark!r} for the image, expected one")
    side: int = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    strategy: str = config.vision_feature_select_strategy
    settings = {name: getattr(parts.pixels, name) for name in _PIXEL_SETTINGS}
    if settings["crop_size"] is None:
        settings["crop_size"] = {"height": side, "width": side}
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(**settings, do_pad=True),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        image_token=mark,
        # With the tower's class token, which "default" leaves out.
        num_additional_image_tokens=tokens - patches + (strategy == "default"),
        chat_template=chat_template(mark),
    )


def _check(processor: Any, parts: ModelParts) -> None:  # noqa: ANN401 - transformers' own type
    config: Any = parts.config
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    image = Image.fromarray(noise)
    found: Any = None
    for question in _PROBES:
        found = processor.apply_chat_template(
            messages_of(question, image), add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        ours = encode_prompt(
            parts.tokenizer, question, config.image_token_id, image_tokens(parts.config)
        )
        if found["input_ids"][0].tolist() != ours:
            raise ModelError(
                "tokenizer: found a chat template that gives another prompt than ours, expected "
                f"the same, for {question!r}"
            )
    mean = [int(value * 255) for value in parts.pixels.image_mean]
    square = pad_to_square(image, (mean[0], mean[1], mean[2]))
    pixels = parts.pixels(square, return_tensors="pt")["pixel_values"]
    if not pixels.equal(found["pixel_values"]):
        raise ModelError("image processor: found other pixels than ours, expected the same")
