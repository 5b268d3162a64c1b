"""Methods of other packages: an entry point that names none is a sentence."""

from importlib.metadata import EntryPoint

import pytest

from common import outside_methods
from common.errors import PlanError


@pytest.mark.parametrize("value", ["no_such_package", "no_such_package.inner", "json:loads", ""])
def test_an_entry_point_without_a_package_is_named(monkeypatch: pytest.MonkeyPatch, value: str):
    def found(group: str) -> list[EntryPoint]:
        return [EntryPoint("mine", value, group)]

    monkeypatch.setattr(outside_methods, "entry_points", found)
    with pytest.raises(PlanError) as caught:
        outside_methods.outside_methods.__wrapped__()
    assert str(caught.value) == (
        f"entry point 'mine' of fedmslora.methods: found {value!r}, expected an installed package "
        "with the modules settings and client"
    )
