"""What is wrong with a plan, in sentences: where, what was found, what was expected."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from pydantic_core import ErrorDetails

from common.methods.registry import UNKNOWN
from common.plan.plan import BatchScope, Metric, Plan, Stage
from common.plan_fields import PATTERNS, TYPES, ClassScope
from common.printable import listed
from common.rules.interface import Factor
from common.rules.registry import rules
from common.vqa_words import as_answer

#: Fields as a YAML file gives them: anything may stand anywhere.
Fields: TypeAlias = Mapping[str, Any]


def cross_mistakes(document: Fields) -> list[str]:
    """Return mistakes that concern several fields; what has the wrong type is passed over."""
    stages: list[Any] = _listed(document.get("stages"))
    mistakes: list[str] = []
    first: dict[str, int] = {}
    for number, stage in enumerate(stages, 1):
        fields = _fields(stage)
        name, sites, quorum = fields.get("name"), _listed(fields.get("sites")), fields.get("quorum")
        where = _stage_label(number, stage)
        if isinstance(name, str) and first.setdefault(name, number) != number:
            mistakes.append(
                f"{where}, name: found {name!r} again (stage {first[name]} has it), "
                "expected a name of its own"
            )
        mistakes += [f"{where}, {text}" for text in _site_mistakes(sites, quorum)]
        mistakes += [f"{where}, {text}" for text in _batch_mistakes(fields, len(sites))]
    return mistakes


def _site_mistakes(sites: list[Any], quorum: object) -> list[str]:
    mistakes: list[str] = []
    counts = Counter(site for site in sites if isinstance(site, str))
    twice = sorted(site for site, count in counts.items() if count > 1)
    if twice:
        mistakes.append(f"sites: found {listed(twice)} twice, expected each once")
    if sites and isinstance(quorum, int) and quorum > len(sites):
        mistakes.append(f"quorum: found {quorum}, expected at most its {len(sites)} sites")
    return mistakes


def _batch_mistakes(stage: Fields, sites: int) -> list[str]:
    """Return where a global batch can't be shared equally by the stage's sites."""
    size = stage.get("batch_size")
    if stage.get("batch") != BatchScope.GLOBAL or not isinstance(size, int) or not sites:
        return []
    if size >= sites and size % sites == 0:
        return []
    return [
        f"batch_size: found {size} of all {sites} sites together (batch: global), expected a "
        f"multiple of {sites}, so that each site takes as many"
    ]


def start_mistakes(plan: Plan) -> list[str]:
    """Return where sites begin a stage with different adapters under a rule that forbids it."""
    start = plan.method.site_dependent_start
    if start is None or plan.rule.starts_may_differ:
        return []
    others = " or ".join(repr(rule.name) for rule in rules().values() if rule.starts_may_differ)
    return [
        f"{_stage_label(number, stage.model_dump())}, sites: found {len(stage.sites)} with "
        f"{start} and the rule {plan.aggregation!r}, expected one site, or the rule {others}: "
        "each site begins with what its own questions ask for"
        for number, stage in enumerate(plan.stages, 1)
        if len(stage.sites) > 1
    ]


def core_mistakes(plan: Plan) -> list[str]:
    """Return whether a regularizer of A and B has no gradient, since the rule trains neither."""
    rounds = range(1, max(stage.rounds for stage in plan.stages) + 1)
    trained = [plan.rule.trained_factors(round) for round in rounds]
    if Factor.CORE not in trained or not plan.method.regularizes_factors:
        return []
    first = trained.index(Factor.CORE) + 1
    return [
        f"aggregation: found {plan.aggregation!r} with the method {plan.method.label!r}, which "
        f"regularizes A or B, expected a rule that trains one of them in every round: from round "
        f"{first} on this one trains R alone"
    ]


def delta_mistakes(plan: Plan) -> list[str]:
    """Return whether the rule is one of low-rank factors, where whole weights train."""
    if not plan.method.layout.deltas:
        return []
    possible = [name for name, rule in rules().items() if rule.merges_whole_weights]
    if plan.aggregation in possible:
        return []
    return [
        f"aggregation: found {plan.aggregation!r} with the method {plan.method.label!r}, which "
        f"trains whole weights, expected one of {', '.join(possible)}: this rule keeps a factor of "
        "LoRA fixed or at the sites, and there is none"
    ]


def robust_mistakes(plan: Plan) -> list[str]:
    """Return the stages with too few sites for what a robust rule is to withstand."""
    if plan.rule.robust is None:
        return []
    liars = plan.robustness.liars
    least = plan.rule.robust.least_sites(liars)
    found = [
        (number, stage, "sites" if len(stage.sites) < least else "quorum", least)
        for number, stage in enumerate(plan.stages, 1)
        if (stage.quorum or len(stage.sites)) < least
    ]
    return [
        f"{_stage_label(number, stage.model_dump())}, {field}: found "
        f"{len(stage.sites) if field == 'sites' else stage.quorum} with the rule "
        f"{plan.aggregation!r}, expected at least {least}: with fewer it does not withstand "
        f"{liars} that lie (robustness.liars)"
        for number, stage, field, least in found
    ]


def unused_training_mistakes(plan: Plan) -> list[str]:
    """Return which switches of the training are on that the method has no use for."""
    return [
        f"training.{name}: found true, expected false: it means nothing to the method "
        f"{plan.method.name!r}"
        for name in plan.method.unused_training
        if getattr(plan.training, name)
    ]


def class_mistakes(plan: Plan) -> list[str]:
    """Return what is wrong with the classes of the stages."""
    mistakes: list[str] = []
    seen = any(stage.classes and stage.scope is ClassScope.SEEN for stage in plan.stages)
    stage_of: dict[str, int] = {}
    for number, stage in enumerate(plan.stages, 1):
        where = _stage_label(number, stage.model_dump())
        own = {as_answer(name): name for name in reversed(stage.classes or ())}
        mistakes += [f"{where}, {text}" for text in _mistakes_of_own_classes(stage, own)]
        if not stage.classes and plan.method.needs_classes:
            mistakes.append(
                f"{where}, classes: found none, expected the task's classes: the method "
                f"{plan.method.name!r} answers with one of them"
            )
        for answer, name in own.items() if seen else ():
            if stage_of.setdefault(answer, number) != number:
                mistakes.append(
                    f"{where}, classes: found {name!r} again (stage {stage_of[answer]} has it), "
                    "expected each class in one stage: the test asks among the classes of all "
                    "stages (scope: seen)"
                )
    return mistakes


def _mistakes_of_own_classes(stage: Stage, own: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a stage's classes alone; `own` are they by their answers."""
    classes, mistakes = stage.classes or (), list[str]()
    counts = Counter(classes)
    twice = [name for name in classes if own[as_answer(name)] != name or counts[name] > 1]
    if twice:
        names = listed(dict.fromkeys(twice))
        mistakes.append(
            f"classes: found {names} more than once (case, articles and punctuation do not "
            "count), expected each class once"
        )
    if len(classes) == 1 and stage.scope is ClassScope.OWN:
        mistakes.append("classes: found one, expected at least two to choose from (scope: own)")
    if not classes and stage.scope is ClassScope.OWN:
        mistakes.append("scope: found 'own' without classes, expected classes, or no scope")
    if not classes and stage.metric is Metric.AUC:
        mistakes.append("metric: found 'auc' without classes, expected classes to be scored")
    return mistakes


def sentence(detail: ErrorDetails, document: Fields, fields: Iterable[str]) -> str:
    """Return one mistake as `where: found this, expected that`."""
    where = _where(detail["loc"], document)
    kind, field = detail["type"], str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(field[:40], fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: found a field {shown(field)}, expected only known fields{hint}"
    if kind == "missing":
        return f"{where}: found nothing, expected a value (it has no default)"
    if kind == UNKNOWN:
        context = detail["ctx"] if "ctx" in detail else {}
        return f"{where}, name: found {shown(context['found'])}, expected one of {context['known']}"
    return f"{where}: found {shown(detail['input'])}, expected {_expected(detail)}"


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "enum":
            return f"one of {context['expected']}"
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "greater_than":
            return f"more than {context['gt']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "too_short":
            return "at least one"
        case "string_pattern_mismatch":
            return PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
        case "string_too_long" | "too_long" as kind:
            of = "letters" if kind == "string_too_long" else "of them"
            return f"at most {context['max_length']} {of}"
        case kind:
            return TYPES.get(kind) or detail["msg"][:1].lower() + detail["msg"][1:]


def _where(location: Sequence[int | str], document: Fields) -> str:
    """Return `stage 2 'fundus', rounds` for ("stages", 1, "rounds")."""
    parts = list(location)
    label = ""
    if len(parts) >= 2 and parts[0] == "stages" and isinstance(parts[1], int):
        label = _stage_label(parts[1] + 1, document["stages"][parts[1]])
        parts = parts[2:]
    path = ".".join(str(part) for part in parts)
    return ", ".join(part for part in (label, path) if part) or "the plan"


def _stage_label(number: int, stage: object) -> str:
    name = _fields(stage).get("name")
    return f"stage {number} {name!r}" if isinstance(name, str) else f"stage {number}"


def shown(value: object) -> str:
    """Return a value as a mistake shows it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(value: object) -> Fields:
    return cast(Fields, value) if isinstance(value, dict) else {}


def _listed(value: object) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []
