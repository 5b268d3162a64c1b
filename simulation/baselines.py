"""What a plan's method is compared with: the same plan, stages and data, another method."""

from collections.abc import Callable, Mapping

from common.plan import Active, MethodPlan, MSLoRACR, Plan, Sequential


def _sequential(method: MethodPlan) -> MethodPlan:
    """One LoRA, fine-tuned on and on."""
    return Sequential(name="sequential", rank=method.rank, alpha=method.alpha)


def _separate(method: MethodPlan) -> MethodPlan:
    """One LoRA each, on the bare base model."""
    return _summed(method, Active.NONE)


def _mslora(method: MethodPlan) -> MethodPlan:
    """The sum of the adapters, without a regularizer."""
    active = method.active if isinstance(method, MSLoRACR) else Active.ALL
    return _summed(method, active)


def _summed(method: MethodPlan, active: Active) -> MethodPlan:
    return MSLoRACR(
        name="mslora_cr", rank=method.rank, alpha=method.alpha, active=active, contrast=None
    )


BASELINES: Mapping[str, Callable[[MethodPlan], MethodPlan]] = {
    "sequential": _sequential,
    "separate": _separate,
    "mslora": _mslora,
}


def known_methods(plan: Plan) -> list[str]:
    """The plan's own method, and what it can be compared with."""
    return list(dict.fromkeys([plan.method.name, *BASELINES]))


def with_method(plan: Plan, name: str) -> Plan:
    """The plan with a method of `known_methods`; its own gives the plan unchanged."""
    if name == plan.method.name:
        return plan
    # model_copy leaves the cached digest behind, so the plan is made anew.
    fields = {field: getattr(plan, field) for field in Plan.model_fields}
    return Plan.model_validate({**fields, "method": BASELINES[name](plan.method)})


def with_seed(plan: Plan, seed: int) -> Plan:
    """The plan with another seed: other data, other starts, other batches."""
    fields = {field: getattr(plan, field) for field in Plan.model_fields}
    return Plan.model_validate({**fields, "seed": seed})
