"""Loading weights into transformers' classes, complete or not at all."""
# transformers leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from common.errors import ModelError
from common.plan_fields import Precision
from common.printable import one_line

DTYPES: Final = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}

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
