"""What the templates of single answers are filled with."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from report.answers.examples import AnsweredPicture
from report.answers.model import AnswerFigures
from report.style.colours import shade, text_on


def answers_part(
    figures: AnswerFigures | None, examples: Sequence[AnsweredPicture]
) -> dict[str, Any]:
    """Return the values of the templates CONFUSION and EXAMPLES."""
    tasks = () if figures is None else figures.tasks
    return {
        "confusions": [(task.task, task.confusion) for task in tasks if task.confusion],
        "examples": [
            (task, list(own)) for task, own in groupby(examples, key=lambda one: one.task)
        ],
    }


def shaded(count: int, row: Sequence[int]) -> tuple[str, str]:
    """Return the background and the text colour of a cell, by its share of its row."""
    share = count / max(1, sum(row))
    return shade(share), text_on(share)
