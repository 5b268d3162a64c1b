"""The rooms stay apart: who may import whom, and no torch where a coordinator has none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import common

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "common", "server", "client", "report", "cost", "interchange", "simulation", "commands",
    "benchmarks",
)  # fmt: skip
ALLOWED = {
    "common": {"common"},
    "report": {"report", "common"},
    "cost": {"cost", "common"},
    "interchange": {"interchange", "common"},
    "server": {"server", "report", "common"},
    "client": {"client", "common"},
}
HEAVY = ("torch", "transformers", "peft", "ray", "pydicom")


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_rooms_it_may(room: str):
    for file in (ROOT / room).rglob("*.py"):
        ours = imported(file) & set(ROOMS)
        assert ours <= ALLOWED[room], f"{file.relative_to(ROOT)} imports {ours - ALLOWED[room]}"


def test_nothing_a_hospital_runs_imports_the_simulation():
    for room in ("common", "server", "client"):
        for file in (ROOT / room).rglob("*.py"):
            assert "simulation" not in imported(file), file


def test_only_the_edges_outside_the_simulation_touch_flower():
    messages = {"server/network.py", "server/app.py", "client/app.py"}
    messages |= {"common/exchange.py", "common/wire.py"}
    processes = {
        "server/coordinator/superlink.py",
        "server/coordinator/proxy.py",
        "client/launcher.py",
        "client/node/enrolment.py",
    }
    edges = messages | processes
    for room in ("common", "server", "client"):
        for file in (ROOT / room).rglob("*.py"):
            if "flwr" in imported(file):
                assert file.relative_to(ROOT).as_posix() in edges


def test_our_packages_are_the_repositorys_and_not_somebody_elses():
    assert Path(common.__file__).is_relative_to(ROOT)


def test_the_coordinators_rooms_import_without_torch():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for room in ("common", "server")
        for file in sorted((ROOT / room).rglob("*.py"))
        if file.name != "__init__.py"
    ]
    code = f"""
import sys, importlib
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
assert not set({HEAVY!r}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
