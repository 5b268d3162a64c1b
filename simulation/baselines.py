"""What a plan's method is compared with: the same stages and data, another method or other sites.

`local` is the federation's method at each hospital alone, as if it used the product by itself;
`pooled` is the same with the data of all hospitals at one site.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import count
from typing import Final

from common.errors import PlanError
from common.methods.interface import MethodSettings
from common.methods.registry import all_settings
from common.plan.plan import BatchScope, Earlier, Evaluation, Plan, Stage
from common.plan_fields import MOST_EPOCHS
from common.printable import counted, listed

LOCAL: Final = "local"
POOLED: Final = "pooled"
#: What the federation's run scores, and a run with one site does not score again.
_NOT_AGAIN: Final = {"zero_shot": False, "local": False}
#: The longest name of a task's folder.
_LONGEST_NAME = 40


def comparisons(own: MethodSettings, stages: int) -> Mapping[str, MethodSettings]:
    """Return what every installed method offers to compare `own` with, by label.

    `stages` is the number of the plan's stages.
    """
    return {
        label: settings
        for method in all_settings().values()
        for label, settings in method.comparisons(own, stages).items()
    }


def known_methods(plan: Plan) -> list[str]:
    """Return the labels of the plan's own method and of what it can be compared with."""
    offered = comparisons(plan.method, len(plan.stages))
    return list(dict.fromkeys([plan.method.label, *offered, LOCAL, POOLED]))


def check_labels(plan: Plan, labels: Iterable[str], where: str) -> None:
    """Check that each label is one of `known_methods`.

    Raises:
        PlanError: naming `where` they are given, those that are none, and what is spelt like them.
    """
    known = known_methods(plan)
    if unknown := [name[:60] for name in labels if name not in known]:
        # A search for what was meant takes long; nobody reads thousands.
        meant = (get_close_matches(one[:40], known, n=3) for one in unknown[:12])
        near = dict.fromkeys(name for names in meant for name in names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise PlanError(
            f"{where}: found {listed(unknown)}, expected some of "
            f"{plan.method.label!r}, {LOCAL!r}, {POOLED!r} and the labels of docs/methods.md" + hint
        )


def check_learning_rates(plan: Plan) -> None:
    """Check that the plan's `simulation.learning_rates` are of what it can be compared with.

    Raises:
        PlanError: one is not.
    """
    where = "the plan's simulation.learning_rates"
    rates = plan.simulation.learning_rates if plan.simulation else dict[str, float]()
    check_labels(plan, rates, where)
    if plan.method.label in rates:
        raise PlanError(
            f"{where}: found {plan.method.label!r}, expected only what it is compared with: the "
            "learning rate of the plan's own method is each stage's"
        )


def with_method(plan: Plan, label: str) -> Plan:
    """Return the plan with a method of `comparisons`, at its own learning rate if it has one.

    The label of the plan's own method gives the plan unchanged.
    """
    if label == plan.method.label:
        return plan
    method = comparisons(plan.method, len(plan.stages))[label]
    return changed(with_learning_rate(plan, label), method=method)


def with_seed(plan: Plan, seed: int) -> Plan:
    """Return the plan with another seed: other data, other starts, other batches."""
    return changed(plan, seed=seed)


def with_learning_rate(plan: Plan, label: str) -> Plan:
    """Return the plan with the learning rate that its simulation gives to the label, if any."""
    rate = plan.simulation.learning_rates.get(label) if plan.simulation else None
    if rate is None:
        return plan
    stages = tuple(stage.model_copy(update={"learning_rate": rate}) for stage in plan.stages)
    return changed(plan, stages=stages)


def local_plan(plan: Plan, site: str) -> Plan:
    """Return the plan of one hospital alone: its own stages, with the same method and passes.

    Its batches are those that it has in the federation. The base model, routed pictures and the
    earlier tasks after every stage are scored in the federation's run only.
    """
    stages = tuple(
        _at_one_site(stage, site, stage.site_batch_size)
        for stage in with_learning_rate(plan, LOCAL).stages
        if site in stage.sites
    )
    all_again = plan.evaluation.earlier is Earlier.ALL
    scored = {"earlier": Earlier.LAST} if all_again else {}
    evaluation = plan.evaluation.model_copy(update={**scored, "future": False, **_NOT_AGAIN})
    return _of_one_site(plan, stages, evaluation)


def pooled_plan(plan: Plan) -> Plan:
    """Return the plan with all data at one site: the same stages, method, passes and batches."""
    tasks = pooled_tasks(plan)
    stages = tuple(
        _at_one_site(stage, POOLED, stage.batch_size).model_copy(update={"task": task})
        for stage, task in zip(with_learning_rate(plan, POOLED).stages, tasks, strict=True)
    )
    return _of_one_site(plan, stages, plan.evaluation.model_copy(update=_NOT_AGAIN))


def pooled_tasks(plan: Plan) -> list[str]:
    """Return the name of each stage's pooled data; a task has several if its sites change.

    So it has if they change their order, which is that of the questions.
    """
    sites = {(stage.task, stage.sites) for stage in plan.stages}
    tasks = [task for task, _ in sites]
    return [
        stage.task if tasks.count(stage.task) == 1 else _numbered(stage.task, number, plan)
        for number, stage in enumerate(plan.stages, 1)
    ]


def _numbered(task: str, number: int, plan: Plan) -> str:
    """Return a name that neither a task of the plan nor another stage's pooled data has."""
    taken = {stage.task for stage in plan.stages}
    # Steps of the number of stages: no other stage comes to the same number.
    names = (f"{task[: _LONGEST_NAME - 4]}-{n}" for n in count(number, len(plan.stages)))
    return next(name for name in names if name not in taken)


def _of_one_site(plan: Plan, stages: tuple[Stage, ...], evaluation: Evaluation) -> Plan:
    """Return the plan with these stages of one site each; there a robust rule outvotes nobody."""
    robust = plan.rule.robust
    return changed(
        plan,
        stages=stages,
        evaluation=evaluation,
        aggregation=plan.aggregation if robust is None else robust.alone,
        router=None,
        simulation=None,
    )


def _at_one_site(stage: Stage, site: str, batch_size: int) -> Stage:
    changes = {"sites": (site,), "quorum": None, "batch_size": batch_size, "batch": BatchScope.SITE}
    return stage.model_copy(update=changes)


def with_equal_steps(plan: Plan, questions: Mapping[str, int], first: int) -> Plan:
    """Return the plan with as many steps on the first questions of a task as on all of them.

    Args:
        questions: the training questions that the site has of each task.
        first: how many of each task it trains on, where it has so many.

    Raises:
        PlanError: so many steps would be more passes than a stage may have.
    """
    stages = tuple(
        stage.model_copy(
            update={"local_epochs": stage.local_epochs * max(1.0, questions[stage.task] / first)}
        )
        for stage in plan.stages
    )
    for stage in stages:
        if stage.local_epochs > MOST_EPOCHS:
            raise PlanError(
                f"the curve, {counted(first, 'question')} of the task {stage.task!r}: found "
                f"{stage.local_epochs:g} passes for as many steps as on all "
                f"{questions[stage.task]}, expected at most {MOST_EPOCHS}; take more questions, or "
                "simulation.curve_schedule: passes"
            )
    return changed(plan, stages=stages)


def changed(plan: Plan, **changes: object) -> Plan:
    """Return the plan with other values in these fields."""
    # model_copy leaves the cached digest behind, so the plan is made anew.
    fields = {field: getattr(plan, field) for field in Plan.model_fields}
    return Plan.model_validate({**fields, **changes})
