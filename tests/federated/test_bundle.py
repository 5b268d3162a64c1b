"""What Flower would send to a hospital: our code and plans, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.code_digest import code_digest
from common.process.flower_environment import flower_environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.federated


def test_the_app_bundle_holds_the_rooms_of_a_site_and_the_code_that_orders_name(tmp_path: Path):
    quiet = flower_environment(tmp_path / "flwr")
    out = tmp_path / "out"
    out.mkdir()
    flwr = Path(sys.executable).parent / "flwr"
    subprocess.run([flwr, "build", "--app", ROOT], cwd=out, env={**os.environ, **quiet}, check=True)
    (bundle,) = out.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "site")
        folders = {name.split("/")[0] for name in archive.namelist()}
    rooms = {"client", "common", "report", "server"}
    assert folders == {*rooms, "configs", "pyproject.toml", ".info"}
    digest = subprocess.run(
        [sys.executable, "-c", "from common.code_digest import code_digest; print(code_digest())"],
        cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert digest.stdout.strip() == code_digest()
