"""The questions of the eight phantom tasks: clinical words for a phantom's factors.

Each task has a function that draws a case: which factors the picture has, and what may be
asked about it. The tasks mirror the paper's (arXiv 2508.11673): questions, then
classification, then reports, for pathology, radiology and dermatology.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from common.plan_fields import Modality
from simulation.phantoms.factors import (
    FACTORS,
    ImageFactors,
    ImageKind,
    choose,
    draw_factors,
    shuffled,
)


@dataclass(frozen=True, slots=True)
class CaseQuestion:
    """A question with its true answer; `closed` where the answers are few and known."""

    question: str
    answer: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A phantom to draw, and everything that may be asked about it."""

    kind: ImageKind
    factors: ImageFactors
    asked: tuple[CaseQuestion, ...]


DrawCase: TypeAlias = Callable[[np.random.Generator], Case]


@dataclass(frozen=True, slots=True)
class PhantomTask:
    """A task: its modality, its number of questions over all its sites, and how it draws a case."""

    modality: Modality
    train: int
    test: int
    draw_case: DrawCase


#: Two wordings for each value of a factor; a report takes either.
_Wordings: TypeAlias = Mapping[str, tuple[str, str]]

#: How often a question task also asks for three sentences of the later report.
_FINDINGS_SHARE: Final = 0.5
#: How often a mole has each typical factor of its class.
_TYPICAL_SHARE: Final = 0.85

TISSUES: Final = {
    "gland": "glandular epithelium",
    "stroma": "fibrous stroma",
    "sheet": "solid tumor",
    "lymphoid": "lymphoid tissue",
}
MODALITIES: Final = {
    ImageKind.CHEST_XRAY: "x-ray",
    ImageKind.CHEST_CT: "ct",
    ImageKind.ABDOMEN_CT: "ct",
    ImageKind.BRAIN_MR: "mri",
}
BODY_PARTS: Final = {
    ImageKind.CHEST_XRAY: "chest",
    ImageKind.CHEST_CT: "chest",
    ImageKind.ABDOMEN_CT: "abdomen",
    ImageKind.BRAIN_MR: "head",
}
COLOUR_SIGNS: Final = {
    "red": "erythema",
    "purple": "violaceous",
    "brown": "hyperpigmentation",
    "white": "hypopigmentation",
}
_SKIN_SIGNS: Final = ("papule", "plaque", "nodule", "pustule", "scale", "crust")

#: The seven classes of HAM10000: how common here, and what is typical for them.
_MOLES: Final[Mapping[str, tuple[float, Mapping[str, str]]]] = {
    "nv": (
        0.22,
        {"colour": "brown", "symmetric": "yes", "border": "fuzzy", "structure": "network"},
    ),
    "mel": (0.18, {"colour": "black", "symmetric": "no", "border": "fuzzy", "structure": "blue"}),
    "bcc": (0.14, {"colour": "pink", "symmetric": "no", "border": "fuzzy", "structure": "blue"}),
    "akiec": (
        0.12,
        {"colour": "pink", "symmetric": "yes", "border": "fuzzy", "structure": "flakes"},
    ),
    "bkl": (0.14, {"colour": "brown", "symmetric": "no", "border": "sharp", "structure": "dots"}),
    "df": (0.10, {"colour": "brown", "symmetric": "yes", "border": "fuzzy", "structure": "white"}),
    "vasc": (
        0.10,
        {"colour": "purple", "symmetric": "yes", "border": "sharp", "structure": "lacunae"},
    ),
}

_PATHOLOGY_WORDINGS: Final[Mapping[str, _Wordings]] = {
    "variation": {
        "mild": ("mild pleomorphism is present", "nuclei show mild pleomorphism"),
        "moderate": ("moderate pleomorphism is present", "nuclei show moderate pleomorphism"),
        "severe": ("severe pleomorphism is present", "nuclei show severe pleomorphism"),
    },
    "crowding": {
        "none": ("no nuclear crowding is seen", "there is no crowding"),
        "mild": ("mild nuclear crowding is seen", "there is mild crowding"),
        "marked": ("marked nuclear crowding is seen", "there is marked crowding"),
    },
    "mitosis": {
        "no": ("mitosis is rare", "mitosis is infrequent"),
        "yes": ("mitosis is frequent", "mitoses are numerous"),
    },
    "nucleoli": {
        "no": ("nucleoli are inconspicuous", "nucleoli are not prominent"),
        "yes": ("nucleoli are prominent", "prominent nucleoli are observed"),
    },
    "necrosis": {
        "no": ("necrosis is absent", "no necrosis is seen"),
        "yes": ("necrosis is present", "an area of necrosis is seen"),
    },
}
_CHEST_WORDINGS: Final[Mapping[str, _Wordings]] = {
    "heart": {
        "normal": ("the heart is normal in size", "heart size is normal"),
        "wide": ("the heart is enlarged", "there is cardiomegaly"),
    },
    "haze": {
        "none": ("the lungs are clear", "no focal consolidation"),
        "left": ("left consolidation is seen", "consolidation in the left lung"),
        "right": ("right consolidation is seen", "consolidation in the right lung"),
        "both": ("bilateral consolidation is seen", "consolidation in both lungs"),
    },
    "effusion": {
        "none": ("no pleural effusion", "there is no effusion"),
        "left": ("left pleural effusion is present", "left effusion"),
        "right": ("right pleural effusion is present", "right effusion"),
    },
    "pneumothorax": {
        "none": ("no pneumothorax", "there is no pneumothorax"),
        "left": ("left pneumothorax is present", "left pneumothorax"),
        "right": ("right pneumothorax is present", "right pneumothorax"),
    },
    "nodule": {
        "none": ("no nodules", "no pulmonary nodule"),
        "left": ("left pulmonary nodule is present", "nodule in the left lung"),
        "right": ("right pulmonary nodule is present", "nodule in the right lung"),
    },
}


def pathology_questions(rng: np.random.Generator) -> Case:
    """Draw a case like PathVQA's: tissue, nuclei, mitoses, necrosis."""
    crowding = "marked" if rng.random() < 0.5 else choose(rng, ("none", "mild"))
    factors = draw_factors(ImageKind.HISTOLOGY, rng, cluster="none", crowding=crowding)
    asked = [
        _yes_no("is necrosis present?", factors["necrosis"] == "yes"),
        _yes_no("are mitoses present?", factors["mitosis"] == "yes"),
        _yes_no("are prominent nucleoli present?", factors["nucleoli"] == "yes"),
        _yes_no("is nuclear crowding present?", crowding == "marked"),
        _open("what tissue is present?", TISSUES[factors["tissue"]]),
        _open("what is the degree of nuclear pleomorphism?", factors["variation"]),
    ]
    findings = _three_findings(rng, _PATHOLOGY_WORDINGS, factors)
    return Case(ImageKind.HISTOLOGY, factors, (*findings, *_shuffled(rng, asked)))


def radiology_questions(rng: np.random.Generator) -> Case:
    """Draw a case like SLAKE's and VQA-RAD's: X-ray, CT and MR of chest, abdomen and head."""
    kinds = (ImageKind.CHEST_XRAY, ImageKind.CHEST_CT, ImageKind.ABDOMEN_CT, ImageKind.BRAIN_MR)
    kind = kinds[int(rng.choice(len(kinds), p=(0.4, 0.2, 0.2, 0.2)))]
    factors = _mostly_healthy(rng, kind)
    asked = [
        _open("what modality is used to take this image?", MODALITIES[kind]),
        _open("which part of the body does this image belong to?", BODY_PARTS[kind]),
    ]
    findings: tuple[CaseQuestion, ...] = ()
    match kind:
        case ImageKind.BRAIN_MR:
            asked += _head_questions(factors)
        case ImageKind.ABDOMEN_CT:
            asked += _abdomen_questions(factors)
        case _:
            asked += _chest_questions(factors)
            if kind is ImageKind.CHEST_XRAY:
                findings = _three_findings(rng, _CHEST_WORDINGS, factors)
    return Case(kind, factors, (*findings, *_shuffled(rng, asked)))


def _chest_questions(factors: ImageFactors) -> list[CaseQuestion]:
    asked = [
        _yes_no("is there cardiomegaly?", factors["heart"] == "wide"),
        _yes_no("is there a pleural effusion?", factors["effusion"] != "none"),
        _yes_no("is a pulmonary nodule present?", factors["nodule"] != "none"),
    ]
    if "haze" in factors:
        asked.append(_yes_no("is there pneumonia?", factors["haze"] != "none"))
        asked.append(_yes_no("is there a pneumothorax?", factors["pneumothorax"] != "none"))
        if factors["haze"] in ("left", "right"):
            asked.append(_open("where is the consolidation?", f"{factors['haze']} lung"))
    if factors["effusion"] != "none":
        asked.append(_open("where is the effusion?", f"{factors['effusion']} lung"))
    return asked


def _abdomen_questions(factors: ImageFactors) -> list[CaseQuestion]:
    return [
        _yes_no("is there a liver lesion?", factors["lesion"] == "yes"),
        _yes_no("are kidney stones present?", factors["stone"] != "none"),
        _yes_no("is this a contrast enhanced scan?", factors["contrast"] == "yes"),
    ]


def _head_questions(factors: ImageFactors) -> list[CaseQuestion]:
    plane = {"axial": "transverse plane", "sagittal": "sagittal plane"}[factors["plane"]]
    return [
        _open("in what plane is this image scanned?", plane),
        _open("is this a t1 or t2 weighted image?", factors["weighting"]),
        _yes_no("is there hydrocephalus?", factors["ventricles"] == "wide"),
        _yes_no("is there a brain tumor?", factors["lesion"] != "none"),
    ]


def skin_questions(rng: np.random.Generator) -> Case:
    """Draw a case like the skin questions over Fitzpatrick17k: visible signs and the disorder."""
    factors = draw_factors(ImageKind.SKIN_PHOTO, rng)
    there = [factors["form"]]
    there += [name for name in ("pustule", "scale", "crust") if factors[name] == "yes"]
    there.append(COLOUR_SIGNS[factors["colour"]])
    signs = (*_SKIN_SIGNS, *COLOUR_SIGNS.values())
    yes = [_yes_no(f"is {sign} visible in the image?", True) for sign in there]
    no = [_yes_no(f"is {sign} visible in the image?", False) for sign in signs if sign not in there]
    # As many signs that are there as signs that are not, or "no" would nearly always be right.
    asked = [*_shuffled(rng, yes)[:3], *_shuffled(rng, no)[:3]]
    asked.append(_open("list any notable skin traits visible in the picture.", ", ".join(there)))
    asked.append(_open("can you recognize the skin disorder in this photo?", _disorder(factors)))
    return Case(ImageKind.SKIN_PHOTO, factors, _shuffled(rng, asked))


def _disorder(factors: ImageFactors) -> str:
    """Name the disorder by a made-up rule, in which several signs make one name."""
    rules = (
        (factors["form"] == "papule" and factors["pustule"] == "yes", "acne"),
        (factors["form"] == "plaque" and factors["scale"] == "yes", "psoriasis"),
        (factors["form"] == "nodule" and factors["colour"] == "brown", "melanoma"),
        (factors["crust"] == "yes", "impetigo"),
        (factors["colour"] == "white", "vitiligo"),
        (factors["colour"] == "purple", "lichen planus"),
    )
    return next((name for holds, name in rules if holds), "dermatitis")


def pathology_classes(rng: np.random.Generator) -> Case:
    """Draw a case like PCAM's: is there tumour in the middle of a lymph node? Half are positive."""
    cluster = "center" if rng.random() < 0.5 else choose(rng, ("none", "edge"))
    size = choose(rng, ("small", "medium"))
    fixed = {"tissue": "lymphoid", "variation": "mild", "necrosis": "no", "size": size}
    factors = draw_factors(ImageKind.HISTOLOGY, rng, cluster=cluster, **fixed)
    question = (
        "given a histopathologic scan of a lymph node, classify the center of the image. "
        "only output 'positive' or 'negative'."
    )
    answer = "positive" if cluster == "center" else "negative"
    return Case(ImageKind.HISTOLOGY, factors, (CaseQuestion(question, answer, True),))


def radiology_classes(rng: np.random.Generator) -> Case:
    """Draw a case like CXP's: normal chest or pneumonia, half of each; other findings distract."""
    ill = rng.random() < 0.5
    haze = choose(rng, ("left", "right", "both")) if ill else "none"
    distracting = _rarely(rng, ImageKind.CHEST_XRAY, ("effusion", "nodule", "pneumothorax"), 0.4)
    factors = draw_factors(ImageKind.CHEST_XRAY, rng, haze=haze, **distracting)
    question = (
        "given a chest x-ray image, determine whether the patient has a normal chest or "
        "pneumonia. only output 'normal' or 'pneumonia'."
    )
    answer = "pneumonia" if ill else "normal"
    return Case(ImageKind.CHEST_XRAY, factors, (CaseQuestion(question, answer, True),))


def skin_classes(rng: np.random.Generator) -> Case:
    """Draw a case like HAM10000's: seven classes that overlap."""
    names = list(_MOLES)
    name = names[int(rng.choice(len(names), p=[_MOLES[n][0] for n in names]))]
    typical = {k: v for k, v in _MOLES[name][1].items() if rng.random() < _TYPICAL_SHARE}
    factors = draw_factors(ImageKind.DERMOSCOPY, rng, **typical)
    question = (
        "given a dermatoscopic image, classify the lesion. "
        f"only output one of: {', '.join(sorted(names))}."
    )
    return Case(ImageKind.DERMOSCOPY, factors, (CaseQuestion(question, name, True),))


def pathology_report(rng: np.random.Generator) -> Case:
    """Draw a case with a report of a whole slide: five findings and a grade."""
    tissue = choose(rng, ("gland", "sheet"))
    factors = draw_factors(ImageKind.HISTOLOGY, rng, cluster="none", tissue=tissue)
    high = factors["variation"] == "severe" or factors["mitosis"] == "yes"
    sentences = [
        *_findings(rng, _PATHOLOGY_WORDINGS, factors),
        f"{'high' if high else 'low'} grade",
    ]
    question = "given the pathology slide image, generate a detailed report."
    return Case(ImageKind.HISTOLOGY, factors, (_open(question, _prose(sentences)),))


def radiology_report(rng: np.random.Generator) -> Case:
    """Draw a case like IU X-ray's: five findings and an impression."""
    findings = ("haze", "effusion", "nodule", "pneumothorax")
    factors = draw_factors(
        ImageKind.CHEST_XRAY, rng, **_rarely(rng, ImageKind.CHEST_XRAY, findings, 0.65)
    )
    sentences = [*_findings(rng, _CHEST_WORDINGS, factors), _impression(factors)]
    question = "provide a detailed report that includes both findings and impressions."
    return Case(ImageKind.CHEST_XRAY, factors, (_open(question, _prose(sentences)),))


def _impression(factors: ImageFactors) -> str:
    if factors["haze"] != "none":
        return "pneumonia"
    others = (factors[name] for name in ("effusion", "nodule", "pneumothorax"))
    healthy = factors["heart"] == "normal" and all(value == "none" for value in others)
    return "no acute disease" if healthy else "abnormal chest"


def _mostly_healthy(rng: np.random.Generator, kind: ImageKind) -> dict[str, str]:
    """Draw factors with each finding in half of the cases, so that neither yes nor no is safe."""
    if kind is ImageKind.ABDOMEN_CT:
        return draw_factors(kind, rng, **_rarely(rng, kind, ("stone",), 0.75))
    findings = tuple(n for n, values in FACTORS[kind].items() if values[0] == "none")
    return draw_factors(kind, rng, **_rarely(rng, kind, findings, 0.75))


def _rarely(
    rng: np.random.Generator, kind: ImageKind, names: tuple[str, ...], share: float
) -> dict[str, str]:
    """Draw each factor evenly with probability `share`, and "none" otherwise."""
    return {
        name: choose(rng, FACTORS[kind][name]) if rng.random() < share else "none" for name in names
    }


def _findings(
    rng: np.random.Generator, wordings: Mapping[str, _Wordings], factors: ImageFactors
) -> list[str]:
    """Return one sentence for each factor of `wordings`, in their order."""
    return [own[factors[name]][int(rng.integers(2))] for name, own in wordings.items()]


def _three_findings(
    rng: np.random.Generator, wordings: Mapping[str, _Wordings], factors: ImageFactors
) -> tuple[CaseQuestion, ...]:
    """Ask, in a share of the cases, for three sentences of the later report."""
    if rng.random() >= _FINDINGS_SHARE:
        return ()
    sentences = _findings(rng, wordings, factors)
    kept = sorted(shuffled(rng, range(len(sentences)))[:3])
    return (_open("what are the findings?", _prose([sentences[index] for index in kept])),)


def _prose(sentences: list[str]) -> str:
    return " ".join(f"{sentence}." for sentence in sentences)


def _shuffled(rng: np.random.Generator, asked: list[CaseQuestion]) -> tuple[CaseQuestion, ...]:
    return tuple(shuffled(rng, asked))


def _yes_no(question: str, holds: bool) -> CaseQuestion:
    return CaseQuestion(question, "yes" if holds else "no", True)


def _open(question: str, answer: str) -> CaseQuestion:
    return CaseQuestion(question, answer, False)


#: Every task, in the paper's order of arrival; few-shot from the fourth on, as knowledge of a
#: modality is meant to help the tasks that come late.
TASKS: Final[Mapping[str, PhantomTask]] = {
    "pathvqa": PhantomTask(Modality.PATHOLOGY, 600, 240, pathology_questions),
    "slake-vqarad": PhantomTask(Modality.RADIOLOGY, 600, 240, radiology_questions),
    "derm": PhantomTask(Modality.DERMATOLOGY, 600, 240, skin_questions),
    "PCAM": PhantomTask(Modality.PATHOLOGY, 200, 240, pathology_classes),
    "CXP": PhantomTask(Modality.RADIOLOGY, 200, 240, radiology_classes),
    "HAM": PhantomTask(Modality.DERMATOLOGY, 300, 240, skin_classes),
    "nmi": PhantomTask(Modality.PATHOLOGY, 120, 240, pathology_report),
    "iu-x-ray": PhantomTask(Modality.RADIOLOGY, 120, 240, radiology_report),
}
