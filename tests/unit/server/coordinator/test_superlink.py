"""The bundle that sites get: the same from a checkout as from where a wheel was installed."""

import shutil
import tomllib
from pathlib import Path

import pytest

from common.identity import ROOT
from server.coordinator.superlink import make_bundle


# flwr 1.42 uses a name that pathspec has deprecated; not ours to mend.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_wheels_bundle_is_the_checkouts(tmp_path: Path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel["only-include"]:
        source = ROOT / name
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.safetensors", "results")
            shutil.copytree(source, tmp_path / name, ignore=skipped)
        else:
            shutil.copy(source, tmp_path / name)
    for source, place in wheel["force-include"].items():
        shutil.copy(ROOT / source, tmp_path / place)
    assert not (tmp_path / "pyproject.toml").exists()
    assert make_bundle(tmp_path) == make_bundle()
