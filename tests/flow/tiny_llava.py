"""A tiny LLaVA with random weights and a tokenizer made on the spot, for tests."""
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<image>"]
WORDS = "what colour is this picture red green blue yes no the left right side of it ?"


def write_llava(folder: Path, seed: int = 0, vision_feature_layer: int = -2) -> Path:
    """A whole model folder: 64 pixels in 4 image tokens, 2 decoder layers of width 32."""
    coder = Tokenizer(models.BPE())
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    coder.train_from_iterator([WORDS] * 3, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=coder, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    _network(seed, vision_feature_layer).save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_center_crop": False,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.3, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _network(seed: int, vision_feature_layer: int) -> LlavaForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=64,
                    patch_size=32,
                ),
                text_config=MistralConfig(
                    vocab_size=300,
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    max_position_embeddings=256,
                    sliding_window=None,
                    bos_token_id=1,
                    eos_token_id=2,
                    pad_token_id=0,
                    tie_word_embeddings=False,
                    initializer_range=0.2,
                ),
                image_token_index=6,
                image_seq_length=4,
                vision_feature_layer=vision_feature_layer,
            )
        )
    # Without sampling settings of its own, as LLaVA-Med's.
    network.generation_config.pad_token_id = 0
    return network


def write_picture(file: Path, seed: int, size: tuple[int, int] = (50, 40)) -> Path:
    """A picture of random pixels, so that no two are alike."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def write_task(folder: Path, questions: Sequence[tuple[str, str]], pictures: int = 4) -> Path:
    """The paper's layout: these questions with answers, once to train on and once to test."""
    for number in range(pictures):
        write_picture(folder / f"p{number}.png", number)
    train = [
        {
            "id": str(number),
            "image": f"p{number % pictures}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for number, (question, answer) in enumerate(questions)
    ]
    test = [
        {
            "question_id": number,
            "image": f"p{number % pictures}.png",
            "text": question,
            "gt": answer,
            "answer_type": "OPEN",
        }
        for number, (question, answer) in enumerate(questions)
    ]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in test))
    return folder
