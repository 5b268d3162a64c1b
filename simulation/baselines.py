"""What a plan's method is compared with: the same plan, stages and data, another method."""

from collections.abc import Callable, Mapping

from common.plan import Active, Composition, Contrast, MethodPlan, MSLoRACR, OneAdapter, Plan

#: The paper's beta, where the plan's own method has none.
_ORTHOGONALITY = Contrast().orthogonality


def _zero_shot(method: MethodPlan) -> MethodPlan:
    """Nothing is trained."""
    return OneAdapter(name="zero_shot", rank=method.rank, alpha=method.alpha)


def _separate(method: MethodPlan) -> MethodPlan:
    """One LoRA each, on the bare base model."""
    return _summed(method, Active.NONE, None)


def _sequential(method: MethodPlan) -> MethodPlan:
    """One LoRA, fine-tuned on and on."""
    return OneAdapter(name="sequential", rank=method.rank, alpha=method.alpha)


def _joint(method: MethodPlan) -> MethodPlan:
    """One LoRA on all tasks that a stage's sites hold: all at once only if each holds all."""
    return OneAdapter(name="joint", rank=method.rank, alpha=method.alpha)


def _mslora(method: MethodPlan) -> MethodPlan:
    """The sum of all adapters, without a regularizer."""
    return _summed(method, Active.ALL, None)


def _mslora_cr(method: MethodPlan) -> MethodPlan:
    """The sum of all adapters, with the contrast alone."""
    contrast = _contrast(method).model_copy(update={"orthogonality": None})
    return _summed(method, Active.ALL, contrast)


def _mslora_cr_ortho(method: MethodPlan) -> MethodPlan:
    """The sum of all adapters, with contrast and orthogonality."""
    contrast = _contrast(method)
    beta = contrast.orthogonality or _ORTHOGONALITY
    return _summed(method, Active.ALL, contrast.model_copy(update={"orthogonality": beta}))


def _contrast(method: MethodPlan) -> Contrast:
    own = method.contrast if isinstance(method, MSLoRACR) else None
    return own or Contrast()


def _summed(method: MethodPlan, active: Active, contrast: Contrast | None) -> MethodPlan:
    return MSLoRACR(
        name="mslora_cr",
        rank=method.rank,
        alpha=method.alpha,
        active=active,
        hold=method.hold if isinstance(method, MSLoRACR) else Composition.FOLD,
        contrast=contrast,
    )


#: In the order in which a comparison shows them.
BASELINES: Mapping[str, Callable[[MethodPlan], MethodPlan]] = {
    "zero_shot": _zero_shot,
    "separate": _separate,
    "sequential": _sequential,
    "joint": _joint,
    "mslora": _mslora,
    "mslora_cr": _mslora_cr,
    "mslora_cr_ortho": _mslora_cr_ortho,
}


def known_methods(plan: Plan) -> list[str]:
    """The plan's own method, and what it can be compared with."""
    return list(dict.fromkeys([plan.method.label, *BASELINES]))


def with_method(plan: Plan, name: str) -> Plan:
    """The plan with a method of `known_methods`; its own gives the plan unchanged."""
    if name == plan.method.label:
        return plan
    return changed(plan, method=BASELINES[name](plan.method))


def with_seed(plan: Plan, seed: int) -> Plan:
    """The plan with another seed: other data, other starts, other batches."""
    return changed(plan, seed=seed)


def changed(plan: Plan, **changes: object) -> Plan:
    """The plan with other values in these fields."""
    # model_copy leaves the cached digest behind, so the plan is made anew.
    fields = {field: getattr(plan, field) for field in Plan.model_fields}
    return Plan.model_validate({**fields, **changes})
