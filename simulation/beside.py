"""The demo's banks on the same pictures: `python -m simulation.beside runs/demo runs/demo-classes`.

The LLaVA answers the task's question with the stage that its router picks; the CLIP answers with
one of all its classes, without a router.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from client.data.task import read_test
from client.orders.ask import ResidentBank
from common.bank.bank import Bank
from common.errors import DataError
from common.plan.file import load_plan
from simulation.class_tasks.picture_classes import PictureClasses
from simulation.class_tasks.tasks import SHOWN
from simulation.command_line.exit_codes import with_exit_codes
from simulation.hospitals import BASE_MODELS

#: Test pictures of each task.
PICTURES: Final = 6
_MOST_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class BothAnswers:
    """What both banks say of a picture, and what is true; the CLIP's as the answer of its class.

    Attributes:
        routed: the stage that the LLaVA's router picked.
        clip: None where the class is another task's.
    """

    task: str
    truth: str
    llava: str
    routed: str
    clip: str | None


def both_answers(demo: Path, classes: Path, pictures: int = PICTURES) -> Iterator[BothAnswers]:
    """Ask both banks about the first test pictures of each task.

    Args:
        demo, classes: the folders of the two finished simulations.

    Raises:
        Refusal: a bank or a picture is not there, or the classes are those of other tasks.
    """
    file = classes / "plan.json"
    stages = load_plan(file).stages
    if others := [stage.task for stage in stages if stage.task not in SHOWN]:
        raise DataError(
            f"{file}: found the task {others[0]!r}, expected some of {', '.join(map(repr, SHOWN))}"
        )
    llava = ResidentBank(Bank.open(demo / "bank"), BASE_MODELS["tiny-llava"])
    clip = ResidentBank(Bank.open(classes / "bank"), BASE_MODELS["tiny-clip"])
    for stage in stages:
        task = SHOWN[stage.task]
        folder = classes / "sites" / stage.sites[0] / "data" / stage.task
        for asked in read_test(folder)[:pictures]:
            release = llava.bank.release(llava.route(asked.image, task.question).best.stage)
            (said,) = llava.answer(release, [(asked.image, task.question)], _MOST_TOKENS)
            yield BothAnswers(
                stage.name,
                answer_of(task, asked.answer) or "",
                said.prediction.text,
                release.name,
                answer_of(task, clip.classify(None, asked.image).prediction.text),
            )


def answer_of(task: PictureClasses, name: str) -> str | None:
    """Return the answer that a class stands for; None if the class is another task's."""
    return next((answer for answer, own in task.names.items() if own == name), None)


def lines(found: Sequence[BothAnswers]) -> Iterator[str]:
    """Return a line for each task with how many both have right, and one for all."""
    yield f"{'task':<10} {'pictures':>8} {'LLaVA, routed':>14} {'CLIP, no router':>16}"
    for task in dict.fromkeys(one.task for one in found):
        yield _line(task, [one for one in found if one.task == task])
    yield _line("all", found)


def _line(name: str, own: Sequence[BothAnswers]) -> str:
    llava = sum(one.llava == one.truth for one in own)
    clip = sum(one.clip == one.truth for one in own)
    return f"{name:<10} {len(own):>8} {llava:>14} {clip:>16}"


@with_exit_codes
def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulation.beside", description=__doc__)
    parser.add_argument("demo", type=Path, help="the demo's folder")
    parser.add_argument("classes", type=Path, help="the folder of configs/demo_classes.yaml")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [*both_answers(given.demo, given.classes)]
    print("\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
