"""What the language model is asked in pretraining: rows of lessons about one picture each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from simulation.phantoms.factors import ImageKind, shuffled
from simulation.phantoms.tasks import TASKS
from simulation.phantoms.words import listed, plain_caption, plain_choice, plain_questions
from simulation.pretraining.clinical_words import clinical_caption, text_lesson
from simulation.pretraining.lesson_words import WORD_QUESTIONS, Lesson, crop_lessons, untrue_lesson
from simulation.pretraining.make_album import Album

#: Lessons about one picture.
PER_PICTURE: Final = 5
#: How often a phantom's lessons include ... (not tuned; the first two as in the feasibility probe)
_CHOICE_SHARE: Final = 0.4
_CLINICAL_SHARE: Final = 0.6
_CAPTION_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class LessonRow:
    """Lessons that share a picture: its index in the album, None for text alone."""

    picture: int | None
    lessons: Sequence[Lesson]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Draws rows of lessons about the pictures of `album`.

    `of_kind` lists the pictures of each kind, crops under None. `word_values` are the words
    that crops are described with.
    """

    album: Album
    of_kind: Mapping[ImageKind | None, Sequence[int]]
    word_values: Mapping[str, Sequence[str]]

    def true_row(self, rng: np.random.Generator) -> LessonRow:
        """Draw true lessons about any picture."""
        picture = int(rng.integers(len(self.album.kinds)))
        kind, words = self.album.kinds[picture], self.album.words[picture]
        if kind is None:
            lessons = crop_lessons(words, rng, PER_PICTURE - 1)
            return LessonRow(picture, [*lessons, self._word_choice(words, rng)])
        factors = self.album.factors[picture]
        lessons = plain_questions(kind, factors, rng)[: PER_PICTURE - 1]
        if rng.random() < _CHOICE_SHARE:
            lessons[0] = plain_choice(kind, factors, rng)
        if rng.random() < _CAPTION_SHARE:
            lessons[1] = plain_caption(kind, factors, rng)
        caption = clinical_caption(kind, factors, rng)
        if caption is not None and rng.random() < _CLINICAL_SHARE:
            lessons[2] = caption
        return LessonRow(picture, [*lessons, *crop_lessons(words, rng, 1)])

    def plain_row(self, picture: int, rng: np.random.Generator) -> LessonRow:
        """Return every plain question about a picture, as it is scored."""
        kind = self.album.kinds[picture]
        if kind is None:
            words = self.album.words[picture]
            return LessonRow(picture, crop_lessons(words, rng, len(words)))
        return LessonRow(picture, plain_questions(kind, self.album.factors[picture], rng))

    def untrue_row(self, rng: np.random.Generator) -> LessonRow:
        """Draw questions of the tasks' form whose answers are unrelated to the picture."""
        if rng.random() < 0.4:
            crops = self.of_kind[None]
            picture = crops[int(rng.integers(len(crops)))]
            return LessonRow(picture, [untrue_lesson(rng) for _ in range(PER_PICTURE)])
        case = list(TASKS.values())[int(rng.integers(len(TASKS)))].draw_case(rng)
        pictures = self.of_kind[case.kind]
        picture = pictures[int(rng.integers(len(pictures)))]
        return LessonRow(
            picture, [(asked.question, asked.answer) for asked in case.asked[:PER_PICTURE]]
        )

    def text_row(self, rng: np.random.Generator) -> LessonRow:
        """Draw lessons without a picture."""
        return LessonRow(None, [text_lesson(rng) for _ in range(PER_PICTURE)])

    def _word_choice(self, words: Mapping[str, str], rng: np.random.Generator) -> Lesson:
        ((question, answer),) = crop_lessons(words, rng, 1)
        name = next(key for key, wordings in WORD_QUESTIONS.items() if question in wordings)
        others = [value for value in self.word_values[name] if value != answer]
        options = [answer, *shuffled(rng, others)[:3]]
        rng.shuffle(options)
        return f"{question} {listed(options, rng)}", answer


def teacher_of(album: Album) -> Teacher:
    """Return a teacher for the pictures of `album`."""
    of_kind: dict[ImageKind | None, list[int]] = {}
    for index, kind in enumerate(album.kinds):
        of_kind.setdefault(kind, []).append(index)
    values: dict[str, list[str]] = {}
    for name in WORD_QUESTIONS:
        values[name] = sorted({words[name] for words in album.words if name in words})
    return Teacher(album, of_kind, values)
