"""Approval of a plan: what it will have this site do, in words, and the record of the approval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from client.site.config import Federation, Site
from client.site.policy import approval_file, fewest_images
from common.clip_shape import is_clip, read_clip_shape
from common.durable import DISK, write_file
from common.errors import SiteFailed
from common.methods.interface import LayerShape
from common.partial_adapter import AdapterPart
from common.plan.plan import Earlier, Plan, Stage
from common.plan_fields import ClassScope, Precision
from common.printable import counted
from common.router.descriptor_statistics import BINS, DESCRIPTORS, PROJECTIONS

_BYTES: Final = {Precision.BF16: 2, Precision.FP32: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage in which the site takes part, and its 1-based position in the plan."""

    number: int
    stage: Stage


def planned_stages(plan: Plan, site: Site) -> tuple[PlannedStage, ...]:
    """Return the stages of the plan in which the site takes part.

    Raises:
        SiteFailed: there is none, or the site's own policy would refuse one.
    """
    found = tuple(
        PlannedStage(number=number, stage=stage)
        for number, stage in enumerate(plan.stages, start=1)
        if site.name in stage.sites
    )
    if not found:
        raise SiteFailed(
            f"plan {plan.name}: found no stage of site {site.name!r}, only of "
            f"{', '.join(plan.sites)}"
        )
    for planned in found:
        _check_policy(planned.stage, site)
    return found


def describe_plan(plan: Plan, site: Site) -> list[str]:
    """Return what the plan will have this site do, line by line."""
    planned, layers = planned_stages(plan, site), adapted_layers(plan, site.base_model)
    extra = extra_numbers(plan, site.base_model)
    rounds = sum(one.stage.rounds for one in planned)
    prototypes = "" if plan.routing is None else ", their prototypes"
    return [
        f"Plan {plan.name} ({plan.digest[:12]}): {counted(len(plan.stages), 'stage')}, of which "
        f"this site, {site.name}, takes part in {len(planned)}.",
        f"Base model: {plan.base_model.name}, digest {plan.base_model.sha256[:12]}. "
        f"Method: {plan.method.summary()}.",
        *map(_describe_stage, planned),
        *plan.method.notes(len(planned)),
        *_describe_own_b(plan),
        *_describe_prototypes(plan, planned, site),
        _describe_scoring(plan, site),
        *_describe_alone(plan, site),
        f"What leaves this site: after each of {counted(rounds, 'round')} "
        f"{_describe_adapter(plan, planned, layers, extra)}, the number of training examples "
        "and of steps, two mean losses, the time and the memory that it took; after each "
        "evaluation, scores as fractions and the number of questions; in between, the step it has "
        "reached, the digests of the parts of the plan and the bank that it has, or the class of "
        "an error. No image, no question, no answer, no file name.",
        f"What this site receives: the plan, the adapters of the stages so far{prototypes}, and "
        "the stage's own.",
    ]


def approve(plan: Plan, site: Site, federation: Federation) -> Path:
    """Record that the site's admin has approved the plan; return the record's file.

    Raises:
        SiteFailed: the plan has no work for the site, or its policy refuses it.
    """
    planned_stages(plan, site)
    federation.approved.mkdir(parents=True, exist_ok=True)
    file = approval_file(federation.approved, plan.digest)
    write_file(file, plan.canonical().encode(), DISK)
    return file


def adapted_layers(plan: Plan, base_model: Path) -> list[LayerShape]:
    """Return the shapes of the base model's weights that the plan's method adapts.

    Of a CLIP its config says them, of any other base model its safetensors files; empty where there
    are none with such weights.

    Raises:
        SiteFailed: a file is not in safetensors' format.
        ModelError: a CLIP's config says no sizes.
    """
    if is_clip(base_model):
        shapes = read_clip_shape(base_model).linears()
        return [shape for name, shape in shapes.items() if plan.method.adapts(f"{name}.weight")]
    return [
        (shape[0], shape[1])
        for file in sorted(base_model.glob("*.safetensors"))
        for name, shape in _shapes(file).items()
        if plan.method.adapts(name) and len(shape) == 2
    ]


def extra_numbers(plan: Plan, base_model: Path) -> int:
    """Return the numbers that an adapter has beside its pairs, in the stage of the most classes.

    Raises:
        SiteFailed: a file is not in safetensors' format.
        ModelError: a CLIP's config says no sizes.
    """
    layers = adapted_layers(plan, base_model)
    of_layers = sum(map(math.prod, plan.method.layer_arrays(layers).values())) if layers else 0
    if not is_clip(base_model):
        return of_layers
    shape = read_clip_shape(base_model)
    of_layers += sum(map(math.prod, plan.method.weight_arrays(shape.weights()).values()))
    most = max(len(stage.classes or ()) for stage in plan.stages)
    rows = plan.method.class_arrays(shape.text.width, shape.embedding).values()
    return of_layers + most * sum(map(math.prod, rows))


def sent_bytes(
    plan: Plan, layers: Sequence[LayerShape], part: AdapterPart, extra: int = 0
) -> int | None:
    """Estimate the bytes of a part of the plan's adapter on the wire; None if nothing is known.

    `extra` are its `extra_numbers`, which travel with any part.
    """
    if not layers and not (extra and plan.method.layout.deltas):
        return None
    rank = plan.method.layout.rank
    numbers = {
        AdapterPart.A: sum(rank * inputs for _, inputs in layers),
        AdapterPart.CORE: rank * rank * len(layers),
    }.get(part, plan.method.adapter_parameters(layers))
    return (numbers + extra) * _BYTES[plan.wire]


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a safetensors file; only its header is read."""
    try:
        reader: Any = safe_open(file, framework="numpy")
        with reader as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}
    except SafetensorError:
        raise SiteFailed(f"{file}: found a damaged file, expected safetensors") from None


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


def _describe_stage(planned: PlannedStage) -> str:
    stage = planned.stage
    others = len(stage.sites) - 1
    company = "alone" if others == 0 else f"with {counted(others, 'other site')}"
    epochs = f"{stage.local_epochs:g} {'epoch' if stage.local_epochs == 1 else 'epochs'}"
    return (
        f"Stage {planned.number}, {stage.name}: {counted(stage.rounds, 'round')} of {epochs} on "
        f"the {stage.modality} task {stage.task!r}, {company}."
        f"{_describe_classes(stage)}{_describe_questions(stage)}"
    )


def _describe_classes(stage: Stage) -> str:
    if stage.classes is None:
        return ""
    among = (
        "these classes"
        if stage.scope is ClassScope.OWN
        else "the classes of all stages so far, of which these are its own"
    )
    return f" The test asks for one of {among}: {', '.join(stage.classes)}."


def _describe_questions(stage: Stage) -> str:
    parts = f" Its pictures show {', '.join(stage.body_parts)}." if stage.body_parts else ""
    listed = "; ".join(map(repr, stage.questions or ()))
    return parts + (f" The plan lists these questions for it: {listed}." if listed else "")


def _describe_adapter(
    plan: Plan, planned: Sequence[PlannedStage], layers: Sequence[LayerShape], extra: int
) -> str:
    """Return what of the adapter leaves after a round, and what stays."""
    rounds = max(one.stage.rounds for one in planned)
    parts = {plan.rule.part(number, rounds) for number in range(1, rounds + 1)}
    sizes = {part: _size(sent_bytes(plan, layers, part, extra)) for part in parts}
    what = "the changes of all weights that train" if plan.method.layout.deltas else "an adapter"
    whole = f"{what} ({sizes[AdapterPart.WHOLE]})"
    if AdapterPart.A in parts:
        return (
            f"the factor A of an adapter ({sizes[AdapterPart.A]}), or after a stage's last one "
            f"{whole}, whose factor B enters the release as a part of the sites' mean"
        )
    if AdapterPart.CORE in parts:
        core = f"the R between its fixed factors ({sizes[AdapterPart.CORE]})"
        return f"{core}, or after a stage's first {whole}"
    return whole


def _describe_own_b(plan: Plan) -> list[str]:
    if not plan.rule.own_b:
        return []
    return [
        "What stays at this site: the factor B of each stage's adapter as it was trained here, in "
        "the folder own_b of its store. The site's own questions are answered with it, and scored "
        "both with it and with the released one; without the folder the released one answers."
    ]


def _describe_prototypes(plan: Plan, planned: Sequence[PlannedStage], site: Site) -> list[str]:
    first = planned[0]
    fewest = fewest_images(plan, first.number - 1, first.stage.rounds, site)
    if fewest is None:
        return []
    return [
        "With the last round of each of these stages a prototype leaves: the mean of the frozen "
        "vision tower's features over the task's training images, the spread of the features "
        "around it, and the number of images. It is a mean and not an image, but it reveals what "
        f"kind of images they are. Of fewer than {fewest} different images none leaves (the larger "
        "of the plan's router.minimum and this site's policy.images). It is released with the "
        "adapter, to whoever gets the bank.",
        *_describe_statistics(plan),
    ]


def _describe_statistics(plan: Plan) -> list[str]:
    if plan.routing is None or not plan.routing.statistics:
        return []
    return [
        f"With each prototype of at least {DESCRIPTORS} different images leave the mean and the "
        f"covariance of {DESCRIPTORS} numbers of an image (colours, grey levels, the energy at "
        f"each scale, {PROJECTIONS} random projections of its feature), the number of images by "
        f"{BINS} ranges of their distance to the others, and DICOM's code of the modality where "
        "the headers of all the images have the same one. With them the router says which images "
        "are unlike all that it knows (docs/adr/0009-router.md). No question and no word of one "
        "leaves for the router."
    ]


def _describe_scoring(plan: Plan, site: Site) -> str:
    evaluation = plan.evaluation
    later = {
        Earlier.ALL: "after it and after each later one",
        Earlier.LAST: "after it and after the plan's last one",
        Earlier.NONE: "after it",
    }[evaluation.earlier]
    later = "after every stage of the plan" if evaluation.future else later
    when = f"before the task's own stage, {later}" if evaluation.zero_shot else later
    routed = ""
    if plan.routing is not None:
        routed = (
            " Those after a release are scored twice: also by the stage that the router chooses "
            "for each image and its file's header, with the share of images for which it chooses "
            "this stage, or its modality, the share that it calls known, and its mean confidence."
        )
        if any(stage.questions for stage in plan.stages):
            routed += (
                " It compares the words of each test question, here, with the questions that the "
                "plan lists for its stages; read those, as these figures say how like them the "
                "site's own are, over all of them."
            )
    fewest = (
        f" No score of fewer than {site.policy.test_questions} test questions leaves, nor of a "
        "class or a kind of question with fewer (policy.test_questions)."
    )
    return f"The test questions of each of these tasks are scored {when}.{routed}{fewest}"


def _describe_alone(plan: Plan, site: Site) -> list[str]:
    if not plan.evaluation.local:
        return []
    asked = (
        "After each of these stages the plan asks this site to train the stage once more, alone: "
        "from the base model, on its own data, with as many passes."
    )
    if not site.policy.train_alone:
        return [
            f"{asked} This site's policy declines it (policy.train_alone: false); the report then "
            "says that it was not measured here."
        ]
    return [
        f"{asked} It takes as long as the stage's rounds together. That adapter is dropped at the "
        "end and never leaves; its scores on this site's test questions do. The report says "
        "what this site scores alone, under its pseudonym, to whoever gets the report."
    ]


def _size(size: int | None) -> str:
    if size is None:
        return "of unknown size: no base model in safetensors was found"
    megabytes = size / 1e6
    digits = 0 if megabytes >= 10 else 1 + max(0, -math.floor(math.log10(max(megabytes, 1e-3))))
    return f"about {megabytes:.{digits}f} MB"
