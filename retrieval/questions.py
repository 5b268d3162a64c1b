"""The questions that reference pairs are retrieved by: from the plan alone, never from patients.

PRIMED asks, before stage i, M_i = M_0 and the labels of the tasks before i. M_0 are general
questions about a domain, a site and a disease; ours are in retrieval/general_questions.yaml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import yaml

from common.documents.yaml_text import load_yaml
from common.errors import DataError, PlanError
from common.identity import canonical_json, sha256
from common.plan.plan import Plan
from common.plan_fields import Modality

GENERAL: Final = Path(__file__).with_name("general_questions.yaml")
#: How a modality is called in a question; PRIMED's own example is "a pathology photo of ...".
NAMES: Final[Mapping[Modality, str]] = {
    Modality.PATHOLOGY: "a pathology",
    Modality.RADIOLOGY: "a radiology",
    Modality.DERMATOLOGY: "a dermatology",
    Modality.FUNDUS: "a fundus",
    Modality.MICROSCOPY: "a microscopy",
    Modality.CT: "a CT",
    Modality.MR: "an MRI",
    Modality.XRAY: "an X-ray",
    Modality.ULTRASOUND: "an ultrasound",
    Modality.ENDOSCOPY: "an endoscopy",
    Modality.OCT: "an OCT",
}
#: What a domain is called beside that, for the uniform variant: about 30 keywords in all.
KEYWORDS: Final[Mapping[Modality, tuple[str, ...]]] = {
    Modality.PATHOLOGY: ("pathology", "histology", "stained tissue section", "biopsy"),
    Modality.RADIOLOGY: ("radiology", "radiograph"),
    Modality.DERMATOLOGY: ("dermatology", "dermoscopy", "skin lesion", "clinical photograph"),
    Modality.FUNDUS: ("fundus", "retina", "ophthalmology"),
    Modality.MICROSCOPY: ("microscopy", "fluorescence", "cell culture"),
    Modality.CT: ("CT", "computed tomography"),
    Modality.MR: ("MRI", "magnetic resonance"),
    Modality.XRAY: ("X-ray", "chest film", "plain film"),
    Modality.ULTRASOUND: ("ultrasound", "echocardiography", "doppler"),
    Modality.ENDOSCOPY: ("endoscopy", "colonoscopy"),
    Modality.OCT: ("OCT", "optical coherence tomography"),
}


@dataclass(frozen=True, slots=True)
class ReferenceQuestion:
    """A question and the domain that it is about."""

    text: str
    modality: Modality


@dataclass(frozen=True, slots=True)
class StageQuestions:
    """What is asked before a stage, 0-based.

    Attributes:
        task: about the classes of the stages before.
        domain: those of the general ones whose domain is that of the stage or of one before.
        other: the other general ones.
    """

    task: tuple[ReferenceQuestion, ...]
    domain: tuple[ReferenceQuestion, ...]
    other: tuple[ReferenceQuestion, ...]


def photo_of(modality: Modality, what: str) -> str:
    """Return a question, worded like the paper's."""
    return f"{NAMES[modality]} photo of {what}"


def general_questions(file: Path = GENERAL) -> list[ReferenceQuestion]:
    """Read general questions: by modality and site, a list of findings.

    Raises:
        DataError: the file can't be read, or has another layout.
    """
    try:
        document: Any = load_yaml(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{file}: found no questions ({reason}), expected YAML") from None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: {error}") from None
    questions: list[ReferenceQuestion] = []
    for name, sites in _items(document, f"{file}: the questions"):
        if name not in list(Modality):
            known = ", ".join(Modality)
            raise DataError(f"{file}: found the modality {name[:40]!r}, expected one of {known}")
        modality = Modality(name)
        for site, findings in _items(sites, f"{file}: {name}"):
            if not isinstance(findings, list) or not findings:
                raise DataError(f"{file}: {name}, {site}: found no list, expected findings")
            questions += [
                ReferenceQuestion(photo_of(modality, f"{finding} in the {site}"), modality)
                for finding in cast(list[object], findings)
            ]
    # A finding that is listed twice would be asked for twice.
    return list(dict.fromkeys(questions))


def _items(value: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(value, dict) or not value:
        found = type(cast(object, value)).__name__
        raise DataError(f"{where}: found {found}, expected a mapping")
    return [(str(key), part) for key, part in cast(dict[object, object], value).items()]


def stage_questions(plan: Plan, stage: int, general: Sequence[ReferenceQuestion]) -> StageQuestions:
    """Return what is asked before stage `stage` (0-based).

    The paper counts a domain as seen by a classifier of images; here a stage says its modality.
    At the first stage there is no label yet, and the domain is the stage's own.

    Raises:
        PlanError: a stage before names no classes.
    """
    seen = set(plan.modalities[: stage + 1])
    task: list[ReferenceQuestion] = []
    for number, earlier in enumerate(plan.stages[:stage], 1):
        if not earlier.classes:
            raise PlanError(
                f"plan {plan.name}: stage {number} {earlier.name!r}, classes: found none, expected "
                "the task's classes, which reference pairs are retrieved by"
            )
        task += [
            ReferenceQuestion(photo_of(earlier.modality, name), earlier.modality)
            for name in earlier.classes
        ]
    return StageQuestions(
        task=tuple(dict.fromkeys(task)),
        domain=tuple(question for question in general if question.modality in seen),
        other=tuple(question for question in general if question.modality not in seen),
    )


def keyword_questions() -> list[ReferenceQuestion]:
    """Return the questions of the uniform variant: the domains by their keywords."""
    return [
        ReferenceQuestion(f"{word} image", modality)
        for modality, words in KEYWORDS.items()
        for word in words
    ]


def inputs_digest(plan: Plan, general: Sequence[ReferenceQuestion]) -> str:
    """Return the SHA-256 of all that a list takes from a plan: what its digest can't contain.

    A plan pins the list that is made from it, so the list can't name the plan's own digest.
    """
    stages = [[stage.name, stage.modality, stage.classes] for stage in plan.stages]
    asked = [[question.text, question.modality] for question in general]
    return sha256(canonical_json([plan.name, plan.seed, stages, asked]).encode())


def all_questions(plan: Plan, general: Sequence[ReferenceQuestion]) -> list[str]:
    """Return the text of every question that any stage of the plan may ask, each once.

    Raises:
        PlanError: see `stage_questions`.
    """
    last = len(plan.stages) - 1
    asked = stage_questions(plan, last, general)
    everything = [*asked.task, *general, *keyword_questions()]
    return list(dict.fromkeys(question.text for question in everything))
