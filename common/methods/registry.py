"""The methods that are installed here: those of this package and those of entry points.

A built-in method NAME is the pair `common/methods/NAME.py` and `client/methods/NAME.py`. A
method from outside the tree is a package with the modules `settings` and `client`, named by
an entry point NAME of the group `fedmslora.methods`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final, cast

from pydantic_core import PydanticCustomError

import common.methods
from common.errors import PlanError
from common.methods.interface import MethodSettings
from common.outside_methods import outside_methods

#: The type of the error that a plan without a known method gets.
UNKNOWN: Final = "unknown_method"

#: Modules of this package that are no method.
_SHARED: Final = ("clip_adapters", "interface", "lora_adapters", "registry")


@dataclass(frozen=True, slots=True)
class InstalledMethod:
    """A method's pair of files.

    Attributes:
        settings: module of the settings and traits.
        client: module of the code at a site; imported there alone, as it needs torch.
    """

    name: str
    settings: str
    client: str

    def settings_class(self) -> type[MethodSettings]:
        """Return the one subclass of `MethodSettings` that the module of settings defines.

        Raises:
            PlanError: the module can't be imported, defines none or several, or one that lacks
                a trait.
        """
        try:
            module = import_module(self.settings)
        except ImportError as error:
            raise PlanError(
                f"method {self.name!r}: can't import {self.settings} ({error})"
            ) from None
        found = [
            one
            for one in vars(module).values()
            if isinstance(one, type)
            and issubclass(one, MethodSettings)
            and one.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise PlanError(
                f"method {self.name!r}: found {len(found)} subclasses of MethodSettings in "
                f"{self.settings}, expected one"
            )
        if lacking := sorted(found[0].__abstractmethods__):
            raise PlanError(
                f"method {self.name!r}: found no {', '.join(lacking)} in {found[0].__name__} of "
                f"{self.settings}, expected every trait without a default"
            )
        return found[0]


@cache
def installed_methods() -> Mapping[str, InstalledMethod]:
    """Return every method of this installation by name, in name order.

    Raises:
        PlanError: an entry point has the name of another method, or names no package.
    """
    built_in = [
        InstalledMethod(
            module.name, f"common.methods.{module.name}", f"client.methods.{module.name}"
        )
        for module in iter_modules(common.methods.__path__)
        if module.name not in _SHARED
    ]
    outside = [
        InstalledMethod(method.name, f"{method.package}.settings", f"{method.package}.client")
        for method in outside_methods()
    ]
    found: dict[str, InstalledMethod] = {}
    for method in (*built_in, *outside):
        if method.name in found:
            raise PlanError(f"method {method.name!r}: found it twice, expected one of this name")
        found[method.name] = method
    return dict(sorted(found.items()))


def all_settings() -> Mapping[str, type[MethodSettings]]:
    """Return the class of every installed method's settings by name.

    Raises:
        PlanError: a method can't be imported.
    """
    return {name: method.settings_class() for name, method in installed_methods().items()}


def parse_method(value: object) -> MethodSettings:
    """Return the settings that a plan's `method` field holds.

    Raises:
        ValidationError: a field is wrong.
        PydanticCustomError: no installed method has the name.
    """
    if isinstance(value, MethodSettings):
        return value
    name = cast(dict[str, Any], value).get("name") if isinstance(value, dict) else value
    method = installed_methods().get(name) if isinstance(name, str) else None
    if method is None or not isinstance(value, dict):
        known = ", ".join(map(repr, installed_methods()))
        raise PydanticCustomError(
            UNKNOWN, "found {found}, expected one of {known}", {"found": name, "known": known}
        )
    # JSON mode: enums come from text, nothing else is converted.
    return method.settings_class().model_validate_json(json.dumps(value, default=str), strict=True)
