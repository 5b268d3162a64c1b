"""The aggregation rules that exist: the files of this package, found by their names."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

import common.rules
from common.errors import PlanError
from common.rules.interface import Rule

#: The files of the package that are no rules.
_NOT_RULES = ("interface", "registry")


@cache
def rules() -> Mapping[str, Rule]:
    """Return every rule by its name, in name order.

    Raises:
        TypeError: a file of the package makes no `Rule` of its own name; it is a mistake in it.
    """
    package = common.rules
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    found = {
        name: _rule_in(f"{package.__name__}.{name}", name)
        for name in names
        if name not in _NOT_RULES
    }
    return MappingProxyType(found)


def rule_named(name: str) -> Rule:
    """Return the rule of this name.

    Raises:
        PlanError: there is none.
    """
    if (rule := rules().get(name)) is None:
        raise PlanError(f"aggregation: found {name!r}, expected one of {expected_names()}")
    return rule


def expected_names() -> str:
    """Return the rules' names as an error lists them: 'a', 'b' or 'c'."""
    *others, last = map(repr, rules())
    return f"{', '.join(others)} or {last}" if others else last


def _rule_in(module: str, name: str) -> Rule:
    rule: object = getattr(importlib.import_module(module), "RULE", None)
    if not isinstance(rule, Rule) or rule.name != name:
        raise TypeError(f"{module}: found RULE = {rule!r}, expected a Rule whose name is {name!r}")
    return rule


def _known(name: object) -> object:
    if not isinstance(name, str) or name not in rules():
        # The error that pydantic gives for an enum.
        raise PydanticCustomError(
            "enum", "Input should be {expected}", {"expected": expected_names()}
        )
    return name


#: A field of a plan that names a rule.
RuleName: TypeAlias = Annotated[str, BeforeValidator(_known)]
