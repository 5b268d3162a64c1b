"""Approving a plan: what it will have this site do, in words, and the record that it may."""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.site.config import Federation, Site
from client.site.policy import fewest_images
from common.durable import DISK, write_file
from common.errors import SiteFailed
from common.plan import Earlier, Plan, Stage
from common.plan_fields import Precision

#: The weights that get a pair of factors: every linear layer of the language model
#: (client/model/lora.py, TARGETS).
_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BYTES: Final = {Precision.BF16: 2, Precision.FP32: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stage in which the site takes part: 1-based position, and the stage."""

    number: int
    stage: Stage


def parts_in(plan: Plan, site: Site) -> tuple[Part, ...]:
    """The stages of the plan that the site is to take part in.

    Raises:
        SiteFailed: there is none, or the site's own policy would refuse one.
    """
    found = tuple(
        Part(number=number, stage=stage)
        for number, stage in enumerate(plan.stages, start=1)
        if site.name in stage.sites
    )
    if not found:
        raise SiteFailed(
            f"plan {plan.name}: found no stage of site {site.name!r}, only of "
            f"{', '.join(plan.sites)}"
        )
    for part in found:
        _check_policy(part.stage, site)
    return found


def words(plan: Plan, site: Site) -> list[str]:
    """What the plan will have this site do, line by line."""
    parts, size = parts_in(plan, site), adapter_bytes(plan, site.base_model)
    lines = [
        f"Plan {plan.name} ({plan.digest[:12]}): {len(plan.stages)} stages, of which this site, "
        f"{site.name}, takes part in {len(parts)}.",
        f"Base model: {plan.base_model.name}, digest {plan.base_model.sha256[:12]}. "
        f"Method: {plan.method.name}, rank {plan.method.rank}.",
    ]
    lines += [_stage_words(part) for part in parts]
    often = sum(part.stage.rounds for part in parts)
    prototypes = "" if plan.routing is None else ", their prototypes"
    lines += [*_method_words(plan, parts), *_prototype_words(plan, parts, site)]
    lines += [
        _scoring_words(plan),
        f"What leaves this site: after each of {often} rounds an adapter ({_size(size)}), the "
        "number of training examples and of steps, two mean losses, the time and the memory that "
        "it took; after each evaluation, scores as fractions and the number of questions; in "
        "between, how far it is, what it holds of the plan and the bank, or the class of an "
        "error. No image, no question, no answer, no file name.",
        f"What this site gets: the plan, the adapters of the stages so far{prototypes}, and the "
        "stage's own.",
    ]
    return lines


def _method_words(plan: Plan, parts: Sequence[Part]) -> list[str]:
    """What a baseline does otherwise than its stages say."""
    if plan.method.name == "zero_shot":
        return ["Method zero_shot trains nothing: its adapters go back as they came."]
    if plan.method.name == "joint" and len(parts) > 1:
        return ["Method joint: each stage trains on the training questions of all these tasks."]
    return []


def _scoring_words(plan: Plan) -> str:
    """When the site's test questions are scored."""
    wanted, twice = plan.evaluation, ""
    later = {
        Earlier.ALL: "after it and after each later one",
        Earlier.LAST: "after it and after the plan's last one",
        Earlier.NONE: "after it",
    }[wanted.earlier]
    later = "after every stage of the plan" if wanted.future else later
    when = f"before its own stage, {later}" if wanted.zero_shot else later
    if plan.routing is not None:
        twice = (
            " Those after a release are scored twice: also by the stage that each image chooses, "
            "with the share of images that choose this one, or its modality."
        )
    return f"The test questions of each of these tasks are scored {when}.{twice}"


def _prototype_words(plan: Plan, parts: Sequence[Part], site: Site) -> list[str]:
    """What a plan that routes wants beside adapters."""
    last = parts[0]
    fewest = fewest_images(plan, last.number - 1, last.stage.rounds, site)
    if fewest is None:
        return []
    return [
        "With the last round of each of these stages leaves a prototype: the mean of what the "
        "frozen vision tower sees in the task's training images, how far they lie from it, and "
        "how many there are. It is a mean and no image, but whoever has it learns what kind of "
        f"images they are. Of fewer than {fewest} different images none leaves (the larger of "
        "the plan's router.minimum and this site's policy.images). It is released with the "
        "adapter, to whoever gets the bank."
    ]


def approve(plan: Plan, site: Site, federation: Federation) -> Path:
    """The record that the site's admin has approved the plan.

    Raises:
        SiteFailed: the plan has no work for the site, or its policy refuses it.
    """
    parts_in(plan, site)
    federation.approved.mkdir(parents=True, exist_ok=True)
    file = federation.approved / f"{plan.digest}.json"
    write_file(file, plan.canonical().encode(), DISK)
    return file


def adapter_bytes(plan: Plan, base_model: Path) -> int | None:
    """About how large the plan's adapter is on the wire; None without safetensors to tell it by."""
    shapes = [
        shape
        for file in sorted(base_model.glob("*.safetensors"))
        for name, shape in _shapes(file).items()
        if _adapted(name) and len(shape) == 2
    ]
    numbers = sum(plan.method.rank * (inputs + outputs) for outputs, inputs in shapes)
    return numbers * _BYTES[plan.wire] if shapes else None


def _adapted(name: str) -> bool:
    """Whether the weight of this name gets a pair; the vision tower's do not."""
    parts = name.split(".")
    return "vision_tower" not in parts and "layers" in parts and parts[-2] in _TARGETS


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors file, from its header alone."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _check_policy(stage: Stage, site: Site) -> None:
    allowed = site.policy.modalities
    if stage.modality not in allowed:
        raise SiteFailed(
            f"stage {stage.name}: found the modality {stage.modality}, the site's policy allows "
            f"only {', '.join(allowed)}"
        )
    if site.policy.rounds is not None and stage.rounds > site.policy.rounds:
        raise SiteFailed(
            f"stage {stage.name}: found {stage.rounds} rounds, the site's policy allows at most "
            f"{site.policy.rounds}"
        )


def _stage_words(part: Part) -> str:
    stage = part.stage
    others = len(stage.sites) - 1
    company = "alone" if others == 0 else f"with {others} other site{'s' if others > 1 else ''}"
    return (
        f"Stage {part.number}, {stage.name}: {stage.rounds} rounds of {stage.local_epochs:g} "
        f"epochs on the {stage.modality} task {stage.task!r}, {company}."
    )


def _size(size: int | None) -> str:
    if size is None:
        return "its size can't be told: no base model is there, or none in safetensors"
    megabytes = size / 1e6
    digits = 0 if megabytes >= 10 else 1 + max(0, -math.floor(math.log10(max(megabytes, 1e-3))))
    return f"about {megabytes:.{digits}f} MB"
