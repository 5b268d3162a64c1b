"""A stage of a bank as a folder for other programs: an adapter, or a whole model."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from client.backbones.clip import ClipBackbone
from client.backbones.image_text import ImageTextBackbone
from client.backbones.llava import LlavaBackbone
from client.model.base_digest import base_digest
from client.model.clip.towers import TransformersTowers
from client.model.kinds import IMAGE_TEXT, LLAVA, base_kind, has_own_processor
from client.model.llava import model_parts
from client.model.llava_med_files import MODEL_TYPE, model_type
from client.model.lora import AdaptedLinear
from client.orders.ask import AskSettings, ResidentBank
from common.adapter import DELTA_PREFIX, StoredAdapter, deltas_in
from common.bank.bank import (
    PROVENANCE_FILE,
    Bank,
    check_new,
    export_blobs,
    provenance,
    write_export,
)
from common.bank.peft import PeftBase
from common.bank.release import ADAPTER_FILE, Release
from common.clip_shape import CLIP
from common.durable import DISK, remove_if_there, write_file, writing
from common.errors import BankError, ModelError
from common.methods.interface import BaseRole
from common.plan.plan import VisionWeights
from common.plan_fields import Composition, Precision
from serving.export.model_card import CardFacts, model_card
from serving.export.processor import processor_files

CARD_FILE: Final = "README.md"
#: The classes of transformers that load a model which writes text about pictures, and a CLIP.
_WRITER_CLASS: Final = "AutoModelForImageTextToText"
_CLIP_CLASS: Final = "AutoModel"
#: Arrays of an adapter that later training reads, and no answer.
_OF_TRAINING: Final = ("fisher.",)
_WRITERS: Final = (*IMAGE_TEXT, MODEL_TYPE)
#: A base model's own files of text and pixels, which are copied.
_CODERS: Final = (
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "processor_config.json", "video_preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What is exported, beside the adapters.

    Attributes:
        base_model: the base model's folder; None where it is not at hand.
        base_id: what other programs load the base model by, if not by its folder.
        vision: whose tower a LLaVA-Med in its original layout gets.
        questions: number of the stage's test questions; None where it is not known.
        version: of fedmslora.
    """

    base_model: Path | None
    base_id: str | None = None
    vision: VisionWeights = VisionWeights.OPENAI
    questions: int | None = None
    version: str = ""


def export_adapter(bank: Bank, release: Release, folder: Path, settings: ExportSettings) -> bool:
    """Write a stage as one PEFT adapter with its processor and card; return whether it has all.

    It has not all without the base model's folder: then there is no processor.

    Raises:
        BankError: the folder exists or can't be written, or an adapter was changed.
        ModelError: the base model is not the bank's.
    """
    check_new(folder)
    coders, auto_class = {}, None
    if settings.base_model is not None:
        _check_base(bank, settings.base_model)
        coders = _coder_files(settings.base_model, settings.vision)
        auto_class = _auto_class(settings.base_model)
    facts = _facts(bank, settings, merged=False)
    blobs = export_blobs(bank, release.stage, PeftBase(facts.base_model, auto_class))
    write_export(folder, {**coders, **blobs, CARD_FILE: model_card(bank, release, facts)})
    return bool(coders)


def export_merged(
    bank: Bank, release: Release, folder: Path, settings: ExportSettings, dtype: torch.dtype
) -> None:
    """Write a stage as a whole model in transformers' layout, with its processor and card.

    Raises:
        BankError: the folder exists or can't be written, or an adapter was changed.
        ModelError: the base model is not the bank's, not at hand, or neither writes answers nor is
            a CLIP in transformers' layout.
    """
    check_new(folder)
    base = settings.base_model
    if base is None or model_type(base) not in (*_WRITERS, CLIP):
        found = "no folder of the base model" if base is None else f"{base}, which is neither"
        raise ModelError(
            f"a whole model: found {found}, expected --base-model with {BaseRole.WRITER}, or "
            f"{BaseRole.CLIP} in transformers' layout"
        )
    coders = _coder_files(base, settings.vision)
    # The sum is exact in 32 bits, and rounded once where fewer are wanted.
    asked = AskSettings(vision=settings.vision, precision=Precision.FP32)
    network = _without_adapter_layers(
        _frozen_network(ResidentBank(bank, base, asked), release), dtype
    )
    facts = _facts(bank, settings, merged=True)
    blobs = {
        **coders,
        PROVENANCE_FILE: provenance(bank, release.stage),
        CARD_FILE: model_card(bank, release, facts),
    }
    _write_model(folder, network, blobs)


def changes_whole_weights(bank: Bank, release: Release) -> bool:
    """Return whether a stage's adapter has changes of whole weights, which PEFT has no place for.

    Raises:
        BankError: its file can't be read.
    """
    file = bank.folder / release.folder / ADAPTER_FILE
    return bool(deltas_in(StoredAdapter.in_file(file, str(file))))


def _frozen_network(resident: ResidentBank, release: Release) -> Any:  # noqa: ANN401
    """Return transformers' network with what the release sums frozen into it.

    Raises:
        BankError: an adapter was changed, or has more than the network's weights have a place for.
    """
    backbone, bank = resident.backbone, resident.bank
    if not isinstance(backbone, ClipBackbone):
        resident.freeze(release)
        assert isinstance(backbone, LlavaBackbone | ImageTextBackbone)
        return backbone.model.network
    adapters = [bank.adapter(stage) for stage in release.sums]
    names = [name for adapter in adapters for name in adapter.extra_names]
    if beside := [name for name in names if not name.startswith((DELTA_PREFIX, *_OF_TRAINING))]:
        raise BankError(
            f"{bank.folder}, release {release.folder}: found {beside[0]}, expected only what is in "
            "a CLIP's weights: its method answers with it, too, and the whole model would not"
        )
    backbone.adapted.detach()
    backbone.adapted.freeze_adapters(adapters, Composition.FOLD)
    towers = backbone.model.towers
    assert isinstance(towers, TransformersTowers)
    return towers.network


def _write_model(folder: Path, network: Any, blobs: dict[str, bytes]) -> None:  # noqa: ANN401
    temporary = writing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_if_there(temporary, DISK)
        DISK.make_folder(temporary)
        network.save_pretrained(temporary, save_original_format=False)
        for name, blob in blobs.items():
            write_file(temporary / name, blob, DISK)
        for file in temporary.iterdir():
            DISK.sync(file)
        DISK.rename(temporary, folder)
        DISK.sync(folder.parent)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(temporary, DISK)
        raise BankError(f"{folder}: can't be written ({error.strerror})") from None


def _without_adapter_layers(network: Any, dtype: torch.dtype) -> nn.Module:  # noqa: ANN401
    """Return the network with plain linear layers, which have the folded weights, in `dtype`."""
    found = [(p, m) for p, m in network.named_modules() if isinstance(m, AdaptedLinear)]
    for path, layer in found:
        parent, _, last = path.rpartition(".")
        layer.merge_permanently()
        setattr(network.get_submodule(parent), last, layer.base)
    torch.nn.Module.to(network, dtype)
    network.config.dtype = dtype
    return network


def _auto_class(base: Path) -> str | None:
    """Return the class of transformers that loads the base model; None where none does."""
    kind = base_kind(base)
    if kind in _WRITERS:
        return _WRITER_CLASS
    return _CLIP_CLASS if kind == CLIP else None


def _coder_files(base: Path, vision: VisionWeights) -> dict[str, bytes]:
    if model_type(base) in (LLAVA, MODEL_TYPE) and not has_own_processor(base):
        return processor_files(model_parts(base, vision))
    return {name: (base / name).read_bytes() for name in _CODERS if (base / name).is_file()}


def _check_base(bank: Bank, base: Path) -> None:
    found, pin = base_digest(base), bank.base_model
    if found != pin.sha256:
        raise ModelError(
            f"{base}: found a base model with digest {found}, expected the bank's {pin.name}, "
            f"{pin.sha256}"
        )


def _facts(bank: Bank, settings: ExportSettings, *, merged: bool) -> CardFacts:
    base = settings.base_model
    folder = bank.base_model.name if base is None else str(base.resolve())
    return CardFacts(
        base_model=settings.base_id or folder,
        merged=merged,
        prompting=base is not None and model_type(base) in _WRITERS,
        classifies=merged and base is not None and model_type(base) == CLIP,
        questions=settings.questions,
        version=settings.version,
        own_template=base is not None and has_own_processor(base),
    )
