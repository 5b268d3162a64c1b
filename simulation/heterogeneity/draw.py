"""The questions of one simulated hospital: how many, which answers, seen by which scanner."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from common.identity import seed_for
from common.plan.simulation import HospitalDifferences, ScoredSplit, Simulation
from simulation.data_sources import DataSource, MakeQuestions
from simulation.heterogeneity.scan_dicom import scan_dicom
from simulation.heterogeneity.scanner import Scanner, draw_scanner, scan
from simulation.heterogeneity.shares import (
    answer_weights,
    size_share,
    skewed_counts,
    taken,
    with_wrong_answers,
)
from simulation.task_folder.write_task import Question

#: How often more questions are drawn from the source before a rare answer is given up.
MOST_DRAWS: Final = 6


@dataclass(frozen=True, slots=True)
class HospitalQuestions:
    """What a hospital holds of a task; `wrong` of its training answers are known to be wrong."""

    train: list[Question]
    test: list[Question]
    wrong: int = 0


def questions_of(simulation: Simulation, source: DataSource) -> MakeQuestions:
    """Return what makes the source's questions, of the split that the plan scores."""
    validated = simulation.split is ScoredSplit.VALIDATION
    return source.validation if validated and source.validation else source.questions


@dataclass(frozen=True, slots=True)
class TaskDraw:
    """What the questions of a task's hospitals are drawn from.

    Attributes:
        count: among how many hospitals the task is divided.
        hospitals: their names, in the order in which the source numbers them.
    """

    simulation: Simulation
    make: MakeQuestions
    seed: int
    task: str
    count: int
    hospitals: tuple[str, ...]

    def hospital(self, position: int) -> HospitalQuestions:
        """Draw the questions of the hospital at this position; equal draws, equal bytes."""
        train, test = self._draw(position, 0)
        count = max(1, round(self._fraction * len(train)))
        differences = self.simulation.hospitals
        rng = np.random.default_rng(seed_for(self.seed, "thinned"))
        if differences is None:
            kept = _noisy(train[:count], self.simulation.label_noise, rng)
            return HospitalQuestions(kept, test[: self.simulation.test_questions])
        if not train or not test:
            return HospitalQuestions(train, test)
        name = self.hospitals[position]
        pool = _Pool(lambda draw: self._draw(position, draw), train, test)
        weights = self._answer_weights(name, train, differences)
        count = self._size(name, count, differences)
        kept = pool.train(count, weights, self._rng("training answers", name))
        kept = _noisy(kept, self.simulation.label_noise, rng)
        share = differences.noisy_labels.get(name, 0.0)
        kept, wrong = with_wrong_answers(self._rng("wrong labels", name), kept, share)
        most = self.simulation.test_questions or len(test)
        skew = weights if differences.skewed_tests else None
        asked = pool.test(min(most, len(test)), skew, self._rng("test answers", name))
        scanner = draw_scanner(self.seed, name, differences.scanners)
        kept, asked = (seen_by(scanner, part, self.seed, name, self.task) for part in (kept, asked))
        return HospitalQuestions(kept, asked, wrong)

    @property
    def _fraction(self) -> float:
        return self.simulation.train_fractions.get(self.task, self.simulation.train_fraction)

    def _draw(self, position: int, draw: int) -> tuple[list[Question], list[Question]]:
        """Draw from the source; every draw but the first is of another seed."""
        seed = self.seed if draw == 0 else seed_for(self.seed, "more questions", draw)
        return self.make(self.task, position, self.count, seed)

    def _rng(self, purpose: str, hospital: str) -> np.random.Generator:
        return np.random.default_rng(seed_for(self.seed, purpose, hospital, self.task))

    def _answer_weights(
        self, name: str, train: Sequence[Question], differences: HospitalDifferences
    ) -> Mapping[str, float] | None:
        if differences.label_skew is None:
            return None
        counts = Counter(question.answer for question in train)
        usual = {answer: number / len(train) for answer, number in counts.items()}
        return answer_weights(self._rng("label skew", name), usual, differences.label_skew)

    def _size(self, name: str, usual: int, differences: HospitalDifferences) -> int:
        """Return the hospital's number of training questions; the task's stays what it was."""
        if differences.size_shares is not None:
            given = {other: differences.size_shares[other] for other in self.hospitals}
            share = given[name] / sum(given.values())
        elif differences.size_skew is not None:
            share = size_share(self.seed, self.hospitals, differences.size_skew)[name]
        else:
            return usual
        return max(1, round(share * usual * len(self.hospitals)))


@dataclass(frozen=True, slots=True)
class UnseenDraw:
    """What the test questions of a hospital that trains nothing are drawn from.

    Neither their seed nor their number depends on the federation.
    """

    simulation: Simulation
    make: MakeQuestions
    seed: int
    task: str
    hospital: str

    def questions(self) -> HospitalQuestions:
        """Draw the hospital's test questions, as its own scanner shows them."""
        seed = seed_for(self.seed, "unseen", self.hospital)
        _, test = self.make(self.task, 0, 1, seed)
        differences = self.simulation.hospitals
        strength = 0.0 if differences is None else differences.scanners
        scanner = draw_scanner(self.seed, self.hospital, strength)
        asked = test[: self.simulation.test_questions]
        return HospitalQuestions([], seen_by(scanner, asked, self.seed, self.hospital, self.task))


class _Pool:
    """A hospital's questions from as many draws as were needed, each with groups of its own."""

    def __init__(
        self,
        draw: Callable[[int], tuple[list[Question], list[Question]]],
        train: list[Question],
        test: list[Question],
    ) -> None:
        self._draw = draw
        self._drawn = [(train, test)]
        self._first = 1 + max(question.group for question in (*train, *test))

    def train(
        self, count: int, weights: Mapping[str, float] | None, rng: np.random.Generator
    ) -> list[Question]:
        return self._chosen(0, count, weights, rng)

    def test(
        self, count: int, weights: Mapping[str, float] | None, rng: np.random.Generator
    ) -> list[Question]:
        return self._chosen(1, count, weights, rng)

    def _chosen(
        self, part: int, count: int, weights: Mapping[str, float] | None, rng: np.random.Generator
    ) -> list[Question]:
        """Return `count` questions, fewer only where `MOST_DRAWS` do not have as many."""
        first = self._drawn[0][part]
        wanted = None if weights is None else skewed_counts(rng, first, count, weights)
        chosen: list[Question] = []
        for draws in range(1, MOST_DRAWS + 1):
            if draws > len(self._drawn):
                self._draw_more()
            pool = [question for drawn in self._drawn[:draws] for question in drawn[part]]
            chosen = pool[:count] if wanted is None else taken(pool, wanted)
            if len(chosen) == count:
                break
        return chosen

    def _draw_more(self) -> None:
        train, test = self._draw(len(self._drawn))
        last = max(question.group for question in (*train, *test))
        shifted = [
            [replace(question, group=question.group + self._first) for question in part]
            for part in (train, test)
        ]
        self._drawn.append((shifted[0], shifted[1]))
        self._first += last + 1


def seen_by(
    scanner: Scanner | None, questions: Sequence[Question], seed: int, hospital: str, task: str
) -> list[Question]:
    """Return the questions with their pictures as the scanner shows them, each scanned once."""
    if scanner is None:
        return list(questions)
    first = {question.group: question for question in reversed(questions)}
    seen = {
        group: _scanned(question, scanner, seed_for(seed, "grain", hospital, task, group))
        for group, question in first.items()
    }
    return [
        replace(question, image=seen[question.group].image, dicom=seen[question.group].dicom)
        for question in questions
    ]


def _scanned(question: Question, scanner: Scanner, seed: int) -> Question:
    dicom = question.dicom and scan_dicom(question.dicom, scanner, seed)
    return replace(question, image=scan(question.image, scanner, seed), dicom=dicom)


def _noisy(train: list[Question], share: float, rng: np.random.Generator) -> list[Question]:
    """Replace a share of the answers, each by one drawn from all answers to the same question.

    So some are what they were: of two answers that are equally common, half.
    """
    given: dict[str, list[str]] = {}
    for question in train:
        given.setdefault(question.question, []).append(question.answer)
    return [
        replace(question, answer=str(rng.choice(given[question.question])))
        if rng.random() < share
        else question
        for question in train
    ]
