"""The class of a question: which of the plan's class names its answer is."""

from collections.abc import Iterable, Sequence

from client.data.records import quoted
from client.data.task import Example
from common.errors import DataError
from common.vqa_words import as_answer


def class_labels(examples: Iterable[Example], classes: Sequence[str], task: str) -> list[int]:
    """Return each question's class as its position in `classes`; the question's text plays no part.

    An answer is a class if both are the same answer: case, articles and punctuation do not count.

    Raises:
        DataError: an answer is none of the classes; it names the task and the question.
    """
    positions = {as_answer(name): place for place, name in enumerate(classes)}
    found: list[int] = []
    for example in examples:
        place = positions.get(as_answer(example.answer))
        if place is None:
            raise DataError(
                f"task {task}, question {example.question_id}: found the answer "
                f"{quoted(example.answer)}, expected one of the plan's classes: "
                f"{', '.join(map(repr, classes))}"
            )
        found.append(place)
    return found
