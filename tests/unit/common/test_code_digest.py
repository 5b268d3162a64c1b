import shutil
from pathlib import Path

import pytest

from common.code_digest import COVERED, NOT_COVERED, code_digest, code_files
from common.identity import ROOT, files_digest

ROOMS = ("client", "common", "server", "report", "cost", "interchange", "commands", "docs")
LEFT_OUT = [
    "report/html.py",
    "report/terminal.py",
    "cost/plan.py",
    "interchange/paper_chain.py",
    "commands/site.py",
    "docs/hospital.md",
    "client/node/trainer.py",
    "client/node/status.py",
    "client/site/audit.py",
    "server/coordinator/keeper.py",
    "server/coordinator/status.py",
    "server/run/scoreboard.py",
    "common/process/supervise.py",
]
DECIDING = [
    "common/exchange.py",
    "common/plan/plan.py",
    "common/methods/mslora_cr.py",
    "common/rules/svd.py",
    "common/linear_algebra/krylov.py",
    "common/vqa_normalization.json",
    "client/methods/mslora_cr.py",
    "client/backbones/llava.py",
    "client/model/lora.py",
    "client/training/optimizer.py",
    "client/data/images.py",
    "client/inference/generate.py",
    "client/orders/execute.py",
    "server/aggregation/aggregate.py",
    "server/run/stage.py",
    "server/app.py",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def digest_with_another_comment(tree: Path, name: str) -> str:
    file = tree / name
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"\n# another comment\n")
        return files_digest(tree, code_files(tree))
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_only_shows_counts_or_starts_things_leaves_the_digest(tree: Path, name: str):
    assert digest_with_another_comment(tree, name) == files_digest(tree, code_files(tree))


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_a_bit_changes_the_digest(tree: Path, name: str):
    assert digest_with_another_comment(tree, name) != files_digest(tree, code_files(tree))


def test_a_new_template_of_the_report_leaves_the_digest(tree: Path):
    before = files_digest(tree, code_files(tree))
    (tree / "report" / "templates").mkdir(exist_ok=True)
    (tree / "report" / "templates" / "another.j2").write_text("<style>a {}</style>")
    assert files_digest(tree, code_files(tree)) == before


@pytest.mark.parametrize("name", [*COVERED, *NOT_COVERED])
def test_every_name_in_the_lists_is_there(name: str):
    assert (ROOT / name).exists()


def test_the_code_has_one_digest():
    assert code_digest() == code_digest()
    assert len(code_digest()) == 16
    assert code_digest() == files_digest(ROOT, code_files(ROOT))[:16]
