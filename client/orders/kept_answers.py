"""The answers that this site has kept of its own test questions, as they were last scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.task import read_task
from client.site.blob_store import disk_errors_as_site_failed
from client.site.config import Site
from common.errors import StateError
from common.metrics import AnsweredQuestion, majority_answers, read_answers
from common.plan.plan import Plan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswers:
    """One task's answers, with the majority answer and the image of each question.

    Attributes:
        pictures: the number of each question's image.
    """

    stage: Stage
    answers: Sequence[AnsweredQuestion]
    majority: Sequence[AnsweredQuestion]
    images: Sequence[Path]

    @property
    def pictures(self) -> list[int]:
        """The number of each question's image, from 0 as they come."""
        places = {image: place for place, image in enumerate(dict.fromkeys(self.images))}
        return [places[image] for image in self.images]


def kept_answers(plan: Plan, site: Site) -> Iterator[KeptAnswers]:
    """Yield the last answers to each of the plan's tasks at this site.

    Raises:
        StateError: there is none.
        DataError: a task's data or answers can't be read.
    """
    found = False
    for stage in plan.stages:
        if site.name not in stage.sites:
            continue
        own = sorted(_files(site, stage.name), key=_written)
        if not own:
            continue
        data, answers = read_task(site.data / stage.task), read_answers(own[-1])
        asked = [(one.question, one.answer) for one in data.test]
        if [(one.question, one.truth) for one in answers] != asked:
            raise StateError(
                f"{stage.name}: found answers to other test questions than those of "
                f"{site.data / stage.task}, expected the same"
            )
        found = True
        usual = majority_answers([(one.question, one.answer) for one in data.train])
        yield KeptAnswers(
            stage=stage,
            answers=answers,
            majority=[
                AnsweredQuestion(
                    question=one.question,
                    answer=usual(one.question),
                    truth=one.answer,
                    kind=one.kind,
                )
                for one in data.test
            ],
            images=[one.image for one in data.test],
        )
    if not found:
        raise StateError(
            f"{site.store / 'answers'}: found no answers to a task of plan {plan.name!r}, expected "
            "those that scoring it leaves there, where the site file says `keep_answers: true`"
        )


def remove_answers(site: Site, stage: str | None = None, but: Path | None = None) -> None:
    """Remove the kept answers, to all tasks or to one stage's, except one file of them.

    Raises:
        SiteFailed: one can't be removed.
    """
    with disk_errors_as_site_failed():
        for file in _files(site, stage):
            if file != but:
                file.unlink(missing_ok=True)


#: Of an order's digest in the name of its answers, with the dash before it.
_DIGEST = 13


def _files(site: Site, stage: str | None) -> list[Path]:
    """Return the files of answers in the site's store, of one stage or of all."""
    files = (site.store / "answers").glob("*.jsonl" if stage is None else f"{stage}-*.jsonl")
    # Without those of another stage, whose name begins like this one's and a dash.
    return [file for file in files if stage is None or len(file.stem) == len(stage) + _DIGEST]


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns
