"""Eight synthetic tasks over three modalities, for comparing methods where truth is known.

They mirror the paper's tasks and their order (arXiv 2508.11673): questions, classification
and reports for pathology, radiology and dermatology. Pictures are drawn, not taken: nothing
here has a medical meaning.
"""

from typing import Final

import numpy as np

from common.errors import DataError
from common.identity import seed_for
from simulation.phantoms.images import render
from simulation.phantoms.tasks import DRAW_CASES, Case
from simulation.task_folder.write_task import Question

#: Every task and its modality, in the paper's order of arrival.
TASKS: Final = (
    ("pathvqa", "pathology"),
    ("slake-vqarad", "radiology"),
    ("derm", "dermatology"),
    ("PCAM", "pathology"),
    ("CXP", "radiology"),
    ("HAM", "dermatology"),
    ("nmi", "pathology"),
    ("iu-x-ray", "radiology"),
)
#: Questions about one picture, at most.
QUESTIONS_PER_IMAGE: Final = 3


def phantom_task(name: str, questions: int, seed: int, site: int) -> list[Question]:
    """`questions` questions of the task as `site` sees it; equal arguments give equal bytes.

    Train and test are two seeds.

    Raises:
        DataError: no task has this name.
    """
    if name not in DRAW_CASES:
        raise DataError(f"phantom task {name!r}: expected one of {', '.join(DRAW_CASES)}")
    rng = np.random.default_rng(seed_for(seed, "phantom", name, site))
    asked: list[Question] = []
    group = 0
    while len(asked) < questions:
        asked += _about(DRAW_CASES[name](rng), group, rng, site)
        group += 1
    return asked[:questions]


def _about(case: Case, group: int, rng: np.random.Generator, site: int) -> list[Question]:
    """The first questions of a case, about its picture."""
    image = render(case.kind, case.factors, rng, site)
    return [
        Question(image, asked.question, asked.answer, asked.closed, group)
        for asked in case.asked[:QUESTIONS_PER_IMAGE]
    ]
