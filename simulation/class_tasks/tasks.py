"""The tasks with classes of the scaled-down twins of MGTIL, and the order of new diseases.

A class's name is in words that the embedded CLIP knows in part: it has learned the kind of picture
and some of the signs (simulation/phantoms/captions.py), and never the diagnosis. So zero-shot tells
some classes and guesses among others, as a model that was trained on captions of publications does
with a hospital's own categories. Nothing here has a medical meaning: a phantom's "melanoma" is a
drawing with blue blots.
"""

from collections.abc import Mapping
from typing import Final

from common.plan_fields import Modality
from simulation.class_tasks.class_task import ClassTask
from simulation.class_tasks.phantom_classes import PhantomClasses
from simulation.class_tasks.picture_classes import PictureClasses
from simulation.phantoms.factors import ImageFactors, ImageKind
from simulation.pictures import tasks as picture_tasks
from simulation.pictures import truths

_PICTURES: Final = {task.name: task for task in picture_tasks.MEASURED}

#: One task for each of six modalities.
ACROSS: Final[Mapping[str, ClassTask]] = {
    "lungs": PhantomClasses(
        Modality.XRAY,
        ImageKind.CHEST_XRAY,
        {
            "chest x-ray with clear lungs": {"haze": "none"},
            "chest x-ray with left pneumonia": {"haze": "left"},
            "chest x-ray with right lobar infiltrate": {"haze": "right"},
            "chest x-ray with diffuse infiltrates": {"haze": "both"},
        },
    ),
    "growth": PhantomClasses(
        Modality.PATHOLOGY,
        ImageKind.HISTOLOGY,
        {
            "histology slide with glandular adenoma": {"tissue": "gland"},
            "histology slide with fibrous sarcoma": {"tissue": "stroma"},
            "histology slide with solid carcinoma": {"tissue": "sheet"},
            "histology slide with lymphoid infiltrate": {"tissue": "lymphoid"},
        },
    ),
    "retina": PhantomClasses(
        Modality.FUNDUS,
        ImageKind.FUNDUS,
        {
            "fundus photograph with no retinopathy": {"red": "none", "yellow": "none"},
            "fundus photograph with few microaneurysms": {"red": "few", "yellow": "none"},
            "fundus photograph with many microaneurysms": {"red": "many", "yellow": "none"},
            "fundus photograph with exudates": {"red": "many", "yellow": "many"},
        },
    ),
    "mole": PhantomClasses(
        Modality.DERMATOLOGY,
        ImageKind.DERMOSCOPY,
        {
            "dermoscopy image with network of nevus": {"structure": "network"},
            "dermoscopy image with veil of melanoma": {"structure": "blue"},
            "dermoscopy image with scar of dermatofibroma": {"structure": "white"},
            "dermoscopy image with angioma": {"structure": "lacunae"},
        },
    ),
    "plane": PictureClasses(
        _PICTURES["plane"],
        picture_tasks.PLANE,
        {
            "axial": "brain mr slice with axial plane",
            "coronal": "brain mr slice with coronal plane",
            "sagittal": "brain mr slice with sagittal plane",
        },
    ),
    "flow": PictureClasses(
        _PICTURES["flow"],
        truths.FLOW,
        {
            "red": "ultrasound image with flow towards the probe",
            "blue": "ultrasound image with flow away from the probe",
            "none": "ultrasound image without flow",
        },
    ),
}

#: Twelve diagnoses of one modality: two of each sign, which the base model knows by its name; which
#: of the two it is shows at the border.
_DIAGNOSES: Final[Mapping[str, ImageFactors]] = {
    f"dermoscopy image of {diagnosis} with {sign}": {"structure": structure, "border": border}
    for structure, sign, diagnoses in (
        ("network", "pigment network", ("nevus", "dysplastic nevus")),
        ("blue", "blue veil", ("blue nevus", "melanoma")),
        ("white", "central scar", ("dermatofibroma", "morphea")),
        ("dots", "dots and globules", ("keratosis", "spitz nevus")),
        ("lacunae", "red lacunae", ("angioma", "kaposi sarcoma")),
        ("flakes", "surface scale", ("actinic keratosis", "bowen disease")),
    )
    for border, diagnosis in zip(("sharp", "fuzzy"), diagnoses, strict=True)
}
#: Which diagnosis arrives when: `numpy.random.RandomState(1993).permutation(12)`, the seed by which
#: class-incremental work shuffles classes, that of dual-modality's authors included.
_ORDER: Final = (4, 2, 6, 7, 8, 0, 3, 5, 10, 11, 9, 1)
_NAMES: Final = [[*_DIAGNOSES][place] for place in _ORDER]

#: Four arrivals of three new diagnoses each.
WITHIN: Final[Mapping[str, ClassTask]] = {
    f"diagnoses-{number}": PhantomClasses(
        Modality.DERMATOLOGY,
        ImageKind.DERMOSCOPY,
        {name: _DIAGNOSES[name] for name in _NAMES[3 * number - 3 : 3 * number]},
    )
    for number in range(1, 5)
}


def _shown(task: str, question: str, kind: str, **names: str) -> PictureClasses:
    """Return the classes of a task of the demo, each named by its kind of picture and its words."""
    return PictureClasses(
        _PICTURES[task], question, {answer: f"{kind} {words}" for answer, words in names.items()}
    )


#: The demo's pictures by class: of each of its tasks the first question.
SHOWN: Final[Mapping[str, PictureClasses]] = {
    "stain-class": _shown(
        "stain", truths.STAIN, "stained tissue with", none="no brown", some="some brown",
        most="much brown",
    ),
    "nuclei-class": _shown(
        "nuclei", truths.NUCLEI, "glowing cells with", few="few nuclei", several="several nuclei",
        many="many nuclei",
    ),
    "fundus-class": _shown(
        "fundus", truths.FIELD_END, "eye ground cut off", left="at its left", right="at its right",
        top="above", bottom="below", nowhere="nowhere",
    ),
    "plane-class": _shown(
        "plane", picture_tasks.PLANE, "head", axial="from above", coronal="from the front",
        sagittal="from the side",
    ),
    "bone-class": _shown(
        "bone", truths.BONE, "ct scan with", none="no bone", some="some bone", much="much bone"
    ),
    "crowding-class": _shown(
        "crowding", truths.CROWDING, "tissue with", loose="loose nuclei", dense="dense nuclei"
    ),
    "film-class": _shown("film", truths.BODY_PART, "film of", chest="a chest", leg="a leg"),
    "flow-class": _shown(
        "flow", truths.FLOW, "vessel echo with", red="red flow", blue="blue flow", none="no flow"
    ),
    "matter-class": _shown(
        "matter", picture_tasks.MATTER, "ring on", grey="grey matter", white="white matter",
        fluid="fluid",
    ),
}  # fmt: skip

TASKS: Final[Mapping[str, ClassTask]] = {**ACROSS, **WITHIN, **SHOWN}
