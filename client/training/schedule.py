"""The batches and learning rates of a round: which examples a step takes, how fast it learns.

A linear warm-up, then half a cosine to zero, over all rounds of a stage.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from client.model.packing import number_distinct, shuffle_by_image, shuffle_image_runs
from client.training.checkpoint import Checkpoint
from common.identity import seed_for
from common.plan.plan import Plan

#: Indices of examples, in the order in which they are trained on.
Permutation: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSchedule:
    """The batches and learning rates of one round of a stage at a site.

    Attributes:
        examples: the number of examples of the stage's own task, from which the number of
            steps follows.
        examples_by_stage: the number of examples of each stage's task, for training on all
            tasks together; the stage's own examples then come first. Empty for training on
            the stage's own task alone.
        replayed: the number of examples that the site has kept of each earlier task, of which
            the method's `replayed_share` is drawn; they follow the stage's own examples.
        image_numbers: the number of each example's image, to draw the examples of one image
            together; empty to draw each example by itself.
        checkpoint: stores the unfinished round; None for no checkpoints.
    """

    plan: Plan
    stage: int
    round: int
    site: str
    examples: int
    examples_by_stage: tuple[int, ...] = ()
    replayed: tuple[int, ...] = ()
    image_numbers: tuple[int, ...] = ()
    checkpoint: Checkpoint | None = None

    def batches(self) -> list[list[int]]:
        """Return the examples of every optimizer step, without repetition within an epoch.

        Sizes differ by at most one: the gradient of a small last batch would be noisy. The
        number of epochs may be fractional; the order depends on (plan seed, stage, round,
        site) alone. With `image_numbers`, an epoch takes them in random order, each with all its
        questions, and only the border between two batches separates those.
        """
        stage = self.plan.stages[self.stage]
        drawn = max(1, round(stage.local_epochs * self.examples))
        steps = math.ceil(drawn / stage.site_batch_size)
        if self.examples_by_stage:
            chosen = self._joint_permutation()
        elif self.replayed:
            chosen = self._replay_permutation(drawn)
        else:
            seed = seed_for(self.plan.seed, "batches", self.stage, self.round, self.site)
            chosen = self._draw(np.random.default_rng(seed), (0, self.examples), drawn)
        return [part.tolist() for part in np.array_split(chosen, steps)]

    def _replay_permutation(self, drawn: int) -> Permutation:
        """Return `drawn` examples in random order: the stage's own, and earlier tasks' among them.

        The earlier tasks have the method's share, each as much of it as any other, so that the
        number of steps is that of the stage's own task whatever the site has kept.
        """
        seed = seed_for(self.plan.seed, "replay", self.stage, self.round, self.site)
        generator = np.random.default_rng(seed)
        again = min(drawn - 1, round(self.plan.method.replayed_share * drawn))
        counts = [drawn - again, *map(len, np.array_split(range(again), len(self.replayed)))]
        ends = np.cumsum([0, self.examples, *self.replayed]).tolist()
        parts = [
            self._draw(generator, indices, count)
            for indices, count in zip(pairwise(ends), counts, strict=True)
            if count
        ]
        return self._shuffled(generator, np.concatenate(parts))

    def _shuffled(self, generator: np.random.Generator, drawn: Permutation) -> Permutation:
        """Return the drawn examples in random order, those of one image together if need be."""
        if self.image_numbers:
            return shuffle_image_runs(generator, drawn, np.asarray(self.image_numbers))
        return generator.permutation(drawn)

    def _joint_permutation(self) -> Permutation:
        """Return this round's part of one long random order of all stages' questions.

        Each task's questions occur as often as in a stage of their own, so that training on
        all of them together differs only in the order. The indices of the stage's own
        questions come first, then those of the other stages by stage.
        """
        generator = np.random.default_rng(seed_for(self.plan.seed, "joint", self.site))
        drawn = np.concatenate(
            [
                self._draw(np.random.default_rng(stage), indices, self._questions_of_stage(stage))
                for stage, indices in enumerate(self._index_ranges())
                if self.examples_by_stage[stage]
            ]
        )
        order = self._shuffled(generator, drawn)
        start = sum(map(self._questions_of_stage, range(self.stage)))
        of_stage = order[start : start + self._questions_of_stage(self.stage)]
        rounds = np.array_split(of_stage, self.plan.stages[self.stage].rounds)
        return rounds[self.round - 1]

    def _index_ranges(self) -> list[tuple[int, int]]:
        """Return the half-open range of the indices of each stage's examples, by stage."""
        others = [stage for stage in range(len(self.examples_by_stage)) if stage != self.stage]
        stages = [self.stage, *others]
        ends = np.cumsum([0, *(self.examples_by_stage[stage] for stage in stages)]).tolist()
        ranges = dict(zip(stages, pairwise(ends), strict=True))
        return [ranges[stage] for stage in range(len(self.examples_by_stage))]

    def _draw(
        self, generator: np.random.Generator, indices: tuple[int, int], drawn: int
    ) -> Permutation:
        """Draw `drawn` examples of the half-open range `indices`, epoch by epoch."""
        first, end = indices
        epochs = range(math.ceil(drawn / (end - first)))
        if self.image_numbers:
            # Renumbered, because the numbers of other tasks' images may come before or after.
            own = np.asarray(number_distinct(self.image_numbers[first:end]))
            permutations = [shuffle_by_image(generator, own) for _ in epochs]
        else:
            permutations = [generator.permutation(end - first) for _ in epochs]
        return first + np.concatenate(permutations)[:drawn]

    def _questions_of_stage(self, stage: int) -> int:
        """Return the number of questions in all rounds of a stage, when trained jointly."""
        planned, examples = self.plan.stages[stage], self.examples_by_stage[stage]
        return planned.rounds * max(1, round(planned.local_epochs * examples)) if examples else 0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (0-based) of the round's `steps`.

        A linear warm-up, then half a cosine to zero, over all rounds of the stage: a restart
        in every round would undo the annealing of the last one. A step counts at its middle,
        so that neither the first nor the last has rate zero. In joint training the stages are
        parts of one training, and the cosine is over all of them.
        """
        stage, warmup = self.plan.stages[self.stage], self.plan.training.warmup
        done = (self.round - 1 + (step + 0.5) / steps) / stage.rounds
        if self.examples_by_stage:
            questions = [self._questions_of_stage(i) for i in range(len(self.examples_by_stage))]
            done = (sum(questions[: self.stage]) + done * questions[self.stage]) / sum(questions)
        if done < warmup:
            return stage.learning_rate * done / warmup
        return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
