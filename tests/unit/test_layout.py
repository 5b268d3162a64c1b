"""The rooms: who may import whom, how full a folder is, and that every path named exists."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import common
from common.identity import ROOT

ROOMS = (
    "common", "report", "cost", "interchange", "server", "client", "retrieval", "serving",
    "simulation", "benchmarks", "commands",
)  # fmt: skip
#: The rooms that a room may import beside itself.
ALLOWED: Mapping[str, set[str]] = {
    "common": set(),
    "report": {"common"},
    "cost": {"common"},
    "interchange": {"common"},
    "server": {"common", "report"},
    "client": {"common"},
    "retrieval": {"common", "client"},
    "serving": {"common", "client"},
    "simulation": {"common", "report", "server", "client", "retrieval"},
    "benchmarks": {
        "common",
        "report",
        "cost",
        "server",
        "client",
        "retrieval",
        "serving",
        "simulation",
    },
    "commands": set(ROOMS),
}
#: The folders within a room and single files of it, lowest first: each may import those before it.
FLOORS: Mapping[str, tuple[str, ...]] = {
    "common": (
        "", "documents", "network", "process", "linear_algebra", "router", "bank", "methods",
        "rules", "plan",
    ),
    "server": ("aggregation", "run", "coordinator", "dashboard", ""),
    "client": (
        "data/pictures", "data", "importing", "site", "model", "model/clip", "model/image_text",
        "training", "inference", "backbones", "methods", "orders", "node", "",
    ),
    "simulation": (
        "command_line", "task_folder", "data_sources.py", "heterogeneity", "phantoms", "pictures",
        "class_tasks", "pretraining", "", "experiments", "results", "chaos", "containers",
    ),
}  # fmt: skip
MOST_MODULES = 20
MOST_LINES = 400
HEAVY = ("torch", "transformers", "peft", "ray", "pydicom")


def sources(room: str) -> list[Path]:
    return sorted(file for file in (ROOT / room).rglob("*.py") if file.name != "__init__.py")


@cache
def imported(file: Path) -> frozenset[str]:
    """The modules that a file imports, also those that it imports only when called."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def our_imports() -> Iterator[tuple[Path, Path]]:
    """(importing file, imported file) of everything of ours."""
    files = {module_of(file): file for room in ROOMS for file in sources(room)}
    for file in files.values():
        for name in imported(file):
            if name in files and files[name] != file:
                yield file, files[name]


def floor_of(file: Path) -> str:
    """The file or the folder within the room that `FLOORS` names, "" for the room's own files."""
    room, *inside = file.relative_to(ROOT).parts
    name = "/".join(inside)
    return name if name in FLOORS[room] else "/".join(inside[:-1])


def test_a_room_imports_only_the_rooms_it_may():
    for file, other in our_imports():
        here, there = (path.relative_to(ROOT).parts[0] for path in (file, other))
        assert there == here or there in ALLOWED[here], f"{file} imports {other}"


def test_no_import_runs_upward_within_a_room():
    for file, other in our_imports():
        room = file.relative_to(ROOT).parts[0]
        if room in FLOORS and other.relative_to(ROOT).parts[0] == room:
            here, there = (FLOORS[room].index(floor_of(path)) for path in (file, other))
            assert there <= here, f"{file} imports {other}, which is a floor above it"


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_every_folder_of_a_room_has_its_floor(room: str):
    assert {floor_of(file) for file in sources(room)} == set(FLOORS[room])


def test_no_module_imports_another_in_a_circle():
    graph: dict[Path, set[Path]] = {}
    for file, other in our_imports():
        graph.setdefault(file, set()).add(other)
    TopologicalSorter(graph).prepare()


def test_no_folder_is_crowded():
    for room in (*ROOMS, "tests"):
        for folder in {file.parent for file in sources(room)}:
            count = len([file for file in sources(room) if file.parent == folder])
            assert count <= MOST_MODULES, f"{folder}: {count} modules"


def test_no_module_is_long():
    for file in (file for room in ROOMS for file in sources(room)):
        count = len(file.read_text(encoding="utf-8").splitlines())
        assert count <= MOST_LINES, f"{file}: {count} lines"


def test_tests_mirror_the_rooms():
    own = {"flow": {"federation"}, "unit": {"configs", "docker", "layout"}}
    for kind in ("unit", "flow"):
        for folder in {file.parent for file in (ROOT / "tests" / kind).rglob("test_*.py")}:
            where = folder.relative_to(ROOT / "tests" / kind).as_posix()
            assert (ROOT / where).is_dir() or where in own[kind], f"{folder} mirrors no room"


def test_every_package_has_an_empty_init():
    for room in ROOMS:
        for folder in {file.parent for file in sources(room)}:
            assert (folder / "__init__.py").read_bytes() == b""


def test_a_public_type_name_means_one_thing():
    found: dict[str, set[str]] = {}
    for file in (file for room in ROOMS for file in sources(room)):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(module_of(file))
    assert {name: where for name, where in found.items() if len(where) > 1} == {}


def named_paths(text: str) -> set[str]:
    """What looks like a path of ours in a text: it begins with one of our folders."""
    roots = "|".join((*ROOMS, "configs", "docker", "docs", "sites", "tests"))
    found = re.findall(rf"(?<![\w./-])((?:{roots})/[\w./*-]*[\w*])(?![\w/<{{])", text)
    return {path for path in found if "*" not in path}


def texts() -> list[Path]:
    """Every guide and container file, and every Python file for its docstrings and comments."""
    folders = [*(file for room in ROOMS for file in sources(room)), *ROOT.glob("*.md")]
    docs = [file for file in (ROOT / "docs").rglob("*.md") if file.name != "log.md"]
    docker = [file for file in (ROOT / "docker").rglob("*") if file.is_file()]
    return [*folders, *docs, *docker, *(ROOT / "configs").rglob("*.yaml"), ROOT / "Makefile"]


#: Files of the guides in docs/architecture.md, and what a user makes.
MADE = {
    "common/methods/NAME.py", "client/methods/NAME.py", "common/methods/prompt_vector.py",
    "client/methods/prompt_vector.py", "common/rules/uniform_b.py", "simulation/teeth.py",
    "client/backbones/siglip.py", "docker/coordinator/.env", "docker/site/.env",
    # Docker's own.
    "docker/dockerfile",
}  # fmt: skip


def test_every_path_that_is_named_exists():
    missing = {
        str(file.relative_to(ROOT)): sorted(absent)
        for file in texts()
        if (absent := {path for path in _named_in(file) if not (ROOT / path).exists()})
    }
    assert missing == {}


def _named_in(file: Path) -> set[str]:
    named = named_paths(file.read_text(encoding="utf-8", errors="ignore"))
    return {path.rstrip(".") for path in named} - MADE


def test_only_the_edges_outside_the_simulation_touch_flower():
    messages = {"server/network.py", "server/app.py", "client/app.py"}
    messages |= {"common/exchange.py", "common/wire.py", "server/message_bound.py"}
    processes = {
        "server/coordinator/superlink.py", "server/coordinator/proxy.py", "client/launcher.py",
        "client/node/enrolment.py", "client/node/supernode.py",
    }  # fmt: skip
    for file in (file for room in ("common", "server", "client") for file in sources(room)):
        if any(name.split(".")[0] == "flwr" for name in imported(file)):
            assert file.relative_to(ROOT).as_posix() in messages | processes


def test_our_packages_are_the_repositorys_and_not_somebody_elses():
    assert Path(common.__file__).is_relative_to(Path(__file__).resolve().parents[2])


def test_the_coordinators_rooms_import_without_torch():
    modules = [
        module_of(f) for room in ("common", "server", "report", "cost") for f in sources(room)
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
