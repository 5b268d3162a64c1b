"""Loading a base model as the backbone that its config.json names, and keeping the last one."""

from importlib import import_module
from pathlib import Path

import torch

from client.model.backbone import Backbone
from client.model.base_digest import base_digest
from client.model.kinds import LOADERS, base_kind
from common.errors import ModelError, Refusal
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from common.printable import one_line


def load_backbone(
    folder: Path,
    precision: Precision,
    device: torch.device,
    vision: VisionWeights = VisionWeights.OPENAI,
) -> Backbone:
    """Load the model in `folder`, complete, frozen and on `device`; no network is asked.

    Args:
        vision: whose tower a LLaVA-Med in its original layout gets; any other has one alone.

    Raises:
        ModelError: no backbone is for this kind of model, or it can't be loaded.
    """
    kind = base_kind(folder)
    try:
        return import_module(LOADERS[kind]).load(folder, precision, device, vision)
    except (Refusal, OSError, MemoryError, torch.OutOfMemoryError, ModuleNotFoundError):
        raise
    # Of a config or a template that is not as it should be, transformers and what it calls raise
    # nearly anything: AttributeError, ZeroDivisionError, errors of their own.
    except Exception as error:
        raise ModelError(
            f"{folder}: the model can't be loaded as {kind} ({type(error).__name__}: "
            f"{one_line(error)})"
        ) from error


class BackboneCache:
    """The backbone that was loaded last; a process has memory for one."""

    def __init__(self) -> None:
        self._key: tuple[Path, str, Precision, str, VisionWeights] | None = None
        self._backbone: Backbone | None = None

    def get(
        self, folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
    ) -> Backbone:
        """Return the model, loaded anew where it is another than last time, or was replaced.

        Raises:
            ModelError: it can't be loaded.
        """
        # By its digest, too: a model that is replaced is loaded again.
        key = (folder.resolve(), base_digest(folder), precision, str(device), vision)
        if self._backbone is None or key != self._key:
            self.clear()
            self._backbone, self._key = load_backbone(folder, precision, device, vision), key
        return self._backbone

    def clear(self) -> None:
        """Drop the model, so that its memory is free."""
        self._backbone = self._key = None
