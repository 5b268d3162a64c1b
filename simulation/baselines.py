"""What a plan's method is compared with: the same plan, stages and data, another method."""

from collections.abc import Mapping

from common.methods.interface import MethodSettings
from common.methods.registry import all_settings
from common.plan.plan import Plan


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
    return list(dict.fromkeys([plan.method.label, *comparisons(plan.method, len(plan.stages))]))


def with_method(plan: Plan, label: str) -> Plan:
    """Return the plan with a method of `known_methods`; its own gives the plan unchanged."""
    if label == plan.method.label:
        return plan
    return changed(plan, method=comparisons(plan.method, len(plan.stages))[label])


def with_seed(plan: Plan, seed: int) -> Plan:
    """Return the plan with another seed: other data, other starts, other batches."""
    return changed(plan, seed=seed)


def changed(plan: Plan, **changes: object) -> Plan:
    """Return the plan with other values in these fields."""
    # model_copy leaves the cached digest behind, so the plan is made anew.
    fields = {field: getattr(plan, field) for field in Plan.model_fields}
    return Plan.model_validate({**fields, **changes})
