"""transformers' classes: weights loaded, complete or not at all, and layers checkpointed."""
# transformers leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging as transformers_logging

from client.model.llava_med_files import read_json_object
from common.errors import ModelError
from common.plan_fields import Precision
from common.printable import one_line

DTYPES: Final = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}

#: Files of weights in a base model's folder; the first kind that there is is read.
_WEIGHTS: Final = ("*.safetensors", "*.bin")

Network = TypeVar("Network", bound=nn.Module)


def load_pretrained(
    network_class: type[Network],
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    **settings: object,
) -> Network:
    """Load a network for answering: from `weights`, or where they are None from `folder`.

    `settings` are those of `from_pretrained`, among them `config` and `dtype`. No network is asked.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    # Progress is ours to show, and what is wrong with the weights is our error to raise.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    untyped: Any = network_class
    try:
        network, info = untyped.from_pretrained(
            folder if weights is None else None,
            state_dict=weights,
            attn_implementation="sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model can't be loaded ({one_line(error)})") from None
    _check_loaded(folder, info)
    return network.eval()


def check_memory(base_model: Path, precision: Precision) -> None:
    """Check that the weights fit into the machine's memory in that precision.

    Raises:
        ModelError: they don't; the system would end the process without a word.
    """
    file = base_model / "config.json"
    config = read_json_object(file) if file.is_file() else {}
    stored = config.get("dtype", config.get("torch_dtype"))
    sixteen = stored in ("float16", "bfloat16")
    # A folder may have the same weights in both formats, of which one is read.
    formats = ([*base_model.glob(ending)] for ending in _WEIGHTS)
    files = next(filter(None, formats), [])
    in_file = sum(file.stat().st_size for file in files)
    needed = in_file * 2 if sixteen and precision is Precision.FP32 else in_file
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        remedy = "expected --precision bf16" if in_file < memory and sixteen else "expected a GPU"
        raise ModelError(
            f"{base_model}: found weights of {needed / 1e9:.0f} GB in {precision.value}, "
            f"{remedy}, or more than this machine's {memory / 1e9:.0f} GB of memory"
        )


@contextmanager
def checkpointed_layers(layers: Iterable[Any]) -> Generator[None]:
    """Checkpoint gradients: recompute a decoder's layers in the backward pass."""
    for layer in layers:
        # Set here and not by transformers' own switch, which makes the embedding require
        # a gradient for good. `training` is what a layer goes by; it is not handed down,
        # so that no dropout inside wakes up (transformers 5.24); without any there is
        # nothing random to be repeated either.
        layer._gradient_checkpointing_func = partial(
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _check_loaded(folder: Path, info: Mapping[str, Any]) -> None:
    """Check transformers' report of loading: no weight is missing, unused or of another shape.

    Raises:
        ModelError: one is.
    """
    # A missing weight would be a random one with only a warning; an unused one is a sign
    # of another architecture.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # A mismatched key comes with its two shapes.
        keys = sorted(key[0] if isinstance(key, tuple) else key for key in info[kind])
        if keys:
            raise ModelError(
                f"{folder}: found {len(keys)} {kind.replace('_', ' ')} in the weights, "
                f"expected none; the first: {', '.join(keys[:3])}"
            )
