"""A bound on what the ServerApp takes into memory of a site's message.

Flower's Grid pulls a reply part by part and puts it together, however large it is: 300 MB in place
of an update of 319 kB took 634 MB of this process. Here the parts are counted while they come.
"""
# What is replaced is Flower's own, and it leaves its types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportPrivateImportUsage=false

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import http_grid

from common.bank.release import ADAPTER_FILE
from common.plan.plan import Plan
from server.run.folder import RunFolder

#: In the reason of the error that stands for a message that was too large.
TOO_LARGE: Final = "larger than any message of this plan"
#: Beside the adapter: header, prototype, and what Flower adds.
_SPARE_BYTES: Final = 8 * 2**20
#: Inputs and outputs of all adapted layers of the largest base model that is meant, of 13 * 10^9
#: numbers; before the first adapter is there nothing else says how large one is.
_MOST_WIDTHS: Final = 5_000_000
#: Weights of the largest CLIP that is meant to be trained whole.
_MOST_WEIGHTS: Final = 1_000_000_000
#: Flower's parts of a message; an array of 5 MiB is one.
_MOST_PARTS: Final = 10_000


def most_reply_bytes(plan: Plan, folder: RunFolder) -> int:
    """Return the most bytes of a reply in the run of this plan.

    Three times the largest adapter so far, as one in float32 may be in place of bfloat16, and class
    prompts are added; before the first one, by the plan's rank.
    """
    files = [*folder.blobs.glob("*.safetensors"), *folder.bank.glob(f"*/{ADAPTER_FILE}")]
    largest = max(map(_size, files), default=0)
    layout = plan.method.layout
    first = 4 * (_MOST_WEIGHTS if layout.deltas else _MOST_WIDTHS * layout.rank)
    return (3 * largest or first) + _SPARE_BYTES


def _size(file: Path) -> int:
    with suppress(FileNotFoundError):  # an update that was refused meanwhile
        return file.stat().st_size
    return 0


def bound_replies(most: Callable[[], int]) -> None:
    """Have Flower's Grid of this process refuse replies of more than `most` bytes.

    In place of such a reply comes an error with `TOO_LARGE` in its reason.
    """
    http_grid.pull_objects = bounded(http_grid.pull_objects, most)


def bounded(pull_objects: Callable[..., Any], most: Callable[[], int]) -> Callable[..., Any]:
    """Return Flower's `pull_objects` with a bound on the bytes of all objects together."""

    def pulling(
        object_ids: list[str], pull_object_fn: Callable[[str], bytes], **more: object
    ) -> dict[str, bytes]:
        largest, lock, total = most(), threading.Lock(), 0

        def pull(name: str) -> bytes:
            nonlocal total
            content = pull_object_fn(name)
            with lock:
                total += len(content)
                if total > largest or len(object_ids) > _MOST_PARTS:
                    raise ObjectPullError(name, f"{TOO_LARGE}: {largest} bytes")
            return content

        return pull_objects(object_ids=object_ids, pull_object_fn=pull, **more)

    return pulling
