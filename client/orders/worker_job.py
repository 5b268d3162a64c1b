"""The folder through which a site's trainer and its workers speak: a job, and what came of it.

The trainer writes `job.json`; the leading worker leaves `update.json` with its adapter,
and a worker that can't do the job `refusal.json`. Each is there whole or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.site.config import Site
from common import errors
from common.durable import DISK, write_file
from common.errors import Refusal, SiteFailed
from common.exchange import Order, Update
from common.identity import canonical_json

_JOB, _UPDATE, _ADAPTER, _REFUSAL = "job.json", "update.json", "adapter", "refusal.json"


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """A job for the workers.

    Attributes:
        site: the site as one worker sees it.
        stage: ZeRO's stage.
        checkpoints: where the training is kept while it lasts, and every how many seconds.
    """

    order: Order
    site: Site
    stage: int
    checkpoints: tuple[Path, float] | None


def write_job(folder: Path, job: WorkerJob) -> None:
    """Write the job into the folder."""
    kept = None if job.checkpoints is None else [str(job.checkpoints[0]), job.checkpoints[1]]
    document = {
        "order": job.order.header(),
        "site": job.site.model_dump(mode="json"),
        "stage": job.stage,
        "checkpoints": kept,
    }
    _write(folder / _JOB, document)


def read_job(folder: Path) -> WorkerJob:
    """Read what `write_job` wrote."""
    document = json.loads((folder / _JOB).read_bytes())
    kept = document["checkpoints"]
    return WorkerJob(
        order=Order.from_header(document["order"]),
        site=Site.model_validate_json(json.dumps(document["site"])),
        stage=document["stage"],
        checkpoints=None if kept is None else (Path(kept[0]), kept[1]),
    )


def leave_update(folder: Path, update: Update) -> None:
    """Write the update: the job is done."""
    write_file(folder / _ADAPTER, update.adapter, DISK)
    _write(folder / _UPDATE, update.header())


def found_update(folder: Path) -> Update | None:
    """Read the job's update; None before it is done."""
    if not (folder / _UPDATE).exists():
        return None
    header = json.loads((folder / _UPDATE).read_bytes())
    return Update.from_parts(header, (folder / _ADAPTER).read_bytes())


def leave_refusal(folder: Path, error: Exception) -> None:
    """Write why the job can't be done, now or at another try."""
    _write(folder / _REFUSAL, {"error": type(error).__name__, "text": str(error)})


def found_refusal(folder: Path) -> Exception | None:
    """Read why the job can't be done, as the worker's error; None where no worker wrote it."""
    if not (folder / _REFUSAL).exists():
        return None
    document = json.loads((folder / _REFUSAL).read_bytes())
    name, text = str(document["error"]), str(document["text"])
    if name == torch.OutOfMemoryError.__name__:
        return torch.OutOfMemoryError(text)
    kind: Any = getattr(errors, name, SiteFailed)
    return kind(text) if issubclass(kind, Refusal) else SiteFailed(text)


def _write(file: Path, document: object) -> None:
    write_file(file, canonical_json(document).encode(), DISK)
