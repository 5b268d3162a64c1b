"""A picture's class from a bank whose releases name their method: no plan and no router is needed.

The method's own code (client/methods/) answers with all releases, as it does at the federation's
sites.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from client.data.task import Example
from client.methods.interface import Assignment, method_code
from client.model.backbone import Backbone, Prediction
from common.adapter import AdapterSource
from common.bank.bank import Bank
from common.bank.release import Release
from common.errors import BankError
from common.methods.interface import MethodSettings
from common.methods.registry import parse_method
from common.plan.plan import Plan, Stage
from common.plan_fields import ClassScope

#: The site of an answer: no site of a plan is asked.
_ASKER: Final = "bank"


def has_method(bank: Bank) -> bool:
    """Return whether the bank's releases name the method by which they answer."""
    return any(release.method is not None for release in bank.releases)


def repeated_classes(bank: Bank) -> list[str]:
    """Return the classes that more than one release has learned."""
    names = Counter(name for release in bank.releases for name in release.classes or ())
    return [name for name, count in names.items() if count > 1]


def plan_to_answer(bank: Bank, told: Release | None) -> Plan:
    """Return as much of the bank's plan as an answer needs; what it says of training is made up.

    Args:
        told: the release whose classes alone are asked; None asks among those of all.

    Raises:
        BankError: the releases name several methods or one that is not installed here, a release
            has no classes, or a class is in two releases and none is told.
    """
    twice = repeated_classes(bank)
    if twice and told is None:
        raise BankError(
            f"{bank.folder}: found the class {twice[0]!r} in more than one release, expected "
            "--stage: without it the answer is asked among the classes of all releases"
        )
    return Plan(
        name=_ASKER,
        seed=0,
        base_model=bank.base_model,
        method=_method_of(bank),
        aggregation="fedavg",
        stages=tuple(_stage(bank, release, told) for release in bank.releases),
    )


def answer_by_method(
    backbone: Backbone,
    bank: Bank,
    plan: Plan,
    asked: Example,
    own_b: Mapping[int, AdapterSource],
) -> Prediction:
    """Return the class of a picture, with a score for each that is asked.

    Args:
        plan: of `plan_to_answer`.
        own_b: a site's own B's, by stage (docs/adr/0019-own-b.md).

    Raises:
        BankError: an adapter was changed.
    """
    last = len(bank.releases) - 1
    own = [stage for stage, one in enumerate(plan.stages) if one.scope is ClassScope.OWN]
    stage = own[0] if own else last
    assignment = Assignment(
        plan=plan,
        stage=stage,
        round=0,
        site=_ASKER,
        backbone=backbone,
        bank={release.stage: bank.adapter(release.stage) for release in bank.releases},
        active=plan.answering_stages(stage, last),
        candidate=None,
        checkpoint=None,
        own_b=own_b,
    )
    (prediction,) = method_code(plan.method).answer(assignment, [asked])
    return prediction


def release_of_class(bank: Bank, name: str) -> Release:
    """Return the release that learned a class."""
    return next(release for release in bank.releases if name in (release.classes or ()))


def _method_of(bank: Bank) -> MethodSettings:
    settings = bank.releases[-1].method
    for release in bank.releases:
        if release.method != settings:
            raise BankError(
                f"{bank.folder}, release {release.folder}, method: found other settings than those "
                f"of {bank.releases[-1].folder}, expected the same in all releases"
            )
    try:
        return parse_method(settings)
    except (ValidationError, PydanticCustomError):
        name = None if settings is None else settings.get("name")
        raise BankError(
            f"{bank.folder}, method: found {name!r} with settings that this version does not "
            "know, expected a method that is installed here"
        ) from None


def _stage(bank: Bank, release: Release, told: Release | None) -> Stage:
    if release.classes is None:
        raise BankError(
            f"{bank.folder}, release {release.folder}: found no classes, expected them in every "
            "release of a method that answers with one"
        )
    return Stage(
        name=release.name,
        modality=release.modality,
        task=release.task,
        sites=(_ASKER,),
        rounds=1,
        local_epochs=1.0,
        learning_rate=1.0,
        batch_size=1,
        classes=release.classes,
        scope=ClassScope.OWN if told is not None and told == release else ClassScope.SEEN,
    )
