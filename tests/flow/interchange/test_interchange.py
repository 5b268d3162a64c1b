"""The paper's chain into a bank and back, through the command line, bit for bit."""

# torch and peft leave many types open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_blob
from torch import nn
from typer.testing import CliRunner

from commands.bank import app
from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank
from common.durable import Disk
from common.errors import BankError, Refusal
from common.plan.file import load_plan
from common.plan_fields import Precision
from common.signing import SigningKey
from interchange.paper_chain import export_chain, import_chain, read_chain
from interchange.paper_tasks import TaskOptions, task_labels
from tests.flow.interchange.test_bank_export import close, load, logits, small_llava, touched
from tests.unit.small_bank import BASE, KEY, draft
from tests.unit.small_paper import SHAPES, chain, read, same, settings, tensors, write

FORMATS = (torch.float32, torch.float16, torch.bfloat16)
THREE = ("--task", "discs:fundus", "--task", "Lungs:xray", "--task", "skin:dermatology")
ON = ("--base-name", "llava-med-v1.5", "--base-sha256", "a" * 64)
TEXT = "model.language_model"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def output(*arguments: str | Path) -> str:
    """What a command writes on stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(output(*arguments, "--json"))


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(Refusal) as caught:
        output(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def added(tmp_path: Path, before: dict[str, bytes]) -> set[str]:
    return set(tree(tmp_path)) - set(before)


class Pool(nn.Module):
    """A linear layer with a pool of adapters, named as the paper's code names them."""

    def __init__(self, base: nn.Linear, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.base = base
        self.scaling = cfg["lora_alpha"] / cfg["lora_rank"]
        rank, (outputs, inputs) = cfg["lora_rank"], base.weight.shape
        one = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
        self.cl_lora_pool = nn.ModuleDict(
            {
                f"task_{task}_lora": nn.ParameterDict({n: torch.zeros(s) for n, s in one.items()})
                for task in range(cfg["max_task"])
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        for pair in self.cl_lora_pool.values():
            y = y + x @ pair["lora_A"].T @ pair["lora_B"].T * self.scaling  # pyright: ignore
        return y


def as_they_load(folders: Sequence[Path]) -> nn.Module:
    """A small model with the tasks of these folders: settings of the last, one after another."""
    cfg = json.loads((folders[-1] / "config.json").read_bytes())["mslora_cfg"]
    cfg["max_task"] = len(folders)
    model = small_llava()
    decoder = model.model.language_model
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, last = name.rpartition(".")
            setattr(decoder.get_submodule(parent), last, Pool(layer, cfg))
    for folder in folders:
        named = read(folder)
        found = {name.replace("model.", f"{TEXT}.", 1): value for name, value in named.items()}
        assert not model.load_state_dict(found, strict=False).unexpected_keys
    return model


def llava_shapes() -> dict[str, tuple[int, int]]:
    """Layer -> (inputs, outputs) of the small model's decoder, as the paper's code sees it."""
    return {
        name: (layer.in_features, layer.out_features)
        for name, layer in small_llava().model.language_model.named_modules()
        if isinstance(layer, nn.Linear)
    }


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_chain_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    folders = chain(tmp_path / "run", 3, dtype)
    before = tree(tmp_path / "run")
    output("import", tmp_path / "bank", *folders, *ON, *THREE)
    assert "3 releases verified" in output("verify", tmp_path / "bank")
    output("export", tmp_path / "bank", "skin", tmp_path / "out", "--format", "paper")
    for folder in folders:
        back = tmp_path / "out" / folder.name
        assert sorted(path.name for path in back.iterdir()) == ["cl_lora.bin", "config.json"]
        assert same(read(back), read(folder))
        assert (back / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert tree(tmp_path / "run") == before
    output("import", tmp_path / "again", tmp_path / "out", *ON, *THREE)
    adapters = [
        [(release.adapter, release.scale) for release in Bank.open(tmp_path / bank).releases]
        for bank in ("bank", "again")
    ]
    # Of the origin's digests only that of the pickle differs: its bytes are its writer's.
    assert [scale for _, scale in adapters[0]] == [scale for _, scale in adapters[1]]
    for stage in range(3):
        banks = [Bank.open(tmp_path / bank) for bank in ("bank", "again")]
        assert same(*(load_blob(bank.adapter_bytes(stage)) for bank in banks))


def test_an_earlier_stage_is_given_back_with_what_it_sums(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    output("import", tmp_path / "bank", *folders, *ON, *THREE)
    found = document("export", tmp_path / "bank", "1", tmp_path / "out", "--format", "paper")
    assert found == {
        "folder": str(tmp_path / "out"),
        "stage": "lungs",
        "sums": ["discs", "lungs"],
        "format": "paper",
        "tasks": ["task_0", "task_1"],
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "provenance.json",
        "task_0",
        "task_1",
    ]
    made_of = json.loads((tmp_path / "out" / "provenance.json").read_bytes())
    assert [one["folder"] for one in made_of["releases"]] == ["000-discs", "001-lungs"]


def test_a_release_says_that_it_was_imported_and_from_what(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    key = tmp_path / "keys" / "mine"
    said = document("import", tmp_path / "bank", *folders, *ON, *THREE, "--key", key)
    bank = Bank.open(tmp_path / "bank")
    assert said["base_model"] == {"name": "llava-med-v1_5", "sha256": "a" * 64}
    assert said["signers"] == [SigningKey.load(key).public_hex] == [bank.releases[0].signer]
    assert (said["head"], said["imported"]) == (bank.head, 3)
    assert [task["release"] for task in said["tasks"]] == [one.hash for one in bank.releases]
    release = bank.releases[1]
    assert (release.name, release.task, release.modality) == ("lungs", "Lungs", "xray")
    assert (release.sums, release.rank, release.scale) == ((0, 1), 2, 1.0)
    assert (release.sites, release.scores, release.error) == ({"imported": 0}, {}, 0.0)
    files = {
        name: hashlib.sha256((folders[1] / name).read_bytes()).hexdigest()
        for name in ("cl_lora.bin", "config.json")
    }
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    assert release.plan == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_with_the_whole_pool_gives_a_release_for_each_task(tmp_path: Path):
    pool = write(tmp_path / "pool", tensors([2, 0, 1]), settings(3))
    output("import", tmp_path / "bank", pool, *ON, *THREE)
    output("export", tmp_path / "bank", "2", tmp_path / "out", "--format", "paper")
    for task in range(3):
        back = tmp_path / "out" / f"task_{task}"
        assert same(read(back), tensors([task]))
        assert json.loads((back / "config.json").read_bytes()) == settings(task + 1)


def test_folders_that_overlap_must_agree_bit_for_bit(tmp_path: Path):
    first, second = chain(tmp_path / "run", 2)
    grown = tensors([0, 1])
    torch.save(grown, second / "cl_lora.bin")
    two = THREE[:4]
    output("import", tmp_path / "bank", second, first, *ON, *two)
    output("export", tmp_path / "bank", "1", tmp_path / "out", "--format", "paper")
    assert same(read(tmp_path / "out" / "task_0"), read(first))
    name = next(name for name in grown if "task_0" in name)
    bits = grown[name].view(torch.int16)
    bits[0, 0] ^= 1
    torch.save(grown, second / "cl_lora.bin")
    message = refusal("import", tmp_path / "other", first, second, *ON, *two)
    assert "task_0" in message and "q_proj.lora_A differs" in message
    assert not (tmp_path / "other").exists()


def test_a_runs_folder_stands_for_its_tasks_and_their_names_are_the_papers(tmp_path: Path):
    names = ["pathvqa", "pathvqa_slake-vqarad", "pathvqa_slake-vqarad_PCAM"]
    for task, name in enumerate(names):
        write(tmp_path / "run" / name, tensors([task]), settings(task + 1))
    said = document("import", tmp_path / "bank", tmp_path / "run", *ON)
    assert [(one["name"], one["task"], one["modality"]) for one in said["tasks"]] == [
        ("pathvqa", "PathVQA", "pathology"),
        ("slake-vqarad", "Slake-VQARad", "radiology"),
        ("pcam", "PCam", "pathology"),
    ]


@pytest.mark.parametrize(("count", "plan"), [(6, "paper6"), (8, "paper8")])
def test_the_papers_chains_need_no_names_and_are_called_as_in_its_plans(
    tmp_path: Path, count: int, plan: str
):
    folders = chain(tmp_path / "run", count)
    output("import", tmp_path / "bank", *folders, *ON)
    bank, planned = Bank.open(tmp_path / "bank"), load_plan(CONFIGS / f"{plan}.yaml")
    found = [(one.name, one.task, one.modality) for one in bank.releases]
    assert found == [(one.name, one.task, one.modality) for one in planned.stages]
    assert bank.base_model.name == planned.base_model.name
    eight = ["pathvqa", "slake-vqarad", "derm", "pcam", "cxp", "ham", "nmi", "iu-x-ray"]
    assert [name for name, _, _ in found] == [
        name for name in eight if count == 8 or name not in ("derm", "ham")
    ]


def test_runs_that_are_no_chain_are_models_of_their_own(tmp_path: Path):
    """The paper's baseline: one LoRA a data set, each the first task of its run."""
    folders = [
        write(tmp_path / name, tensors([0], seed=seed), settings(1, alpha=1 + seed))
        for seed, name in enumerate(("nmi", "derm"))
    ]
    assert "(take runs that are no chain with --separate)" in refusal(
        "import", tmp_path / "bank", *folders, *ON
    )
    output("import", tmp_path / "bank", *folders, *ON, "--separate")
    bank = Bank.open(tmp_path / "bank")
    assert [(one.name, one.sums, one.scale) for one in bank.releases] == [
        ("nmi", (0,), 0.5),
        ("derm", (1,), 1.0),
    ]
    for folder in folders:
        output("export", bank.folder, folder.name, tmp_path / "out" / folder.name, "--format=paper")
        back = tmp_path / "out" / folder.name / "task_0"
        assert same(read(back), read(folder))
        assert (back / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_bank_grows_by_the_tasks_that_it_lacks(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    output("import", tmp_path / "bank", folders[0], *ON, *THREE[:2])
    first = Bank.open(tmp_path / "bank")
    said = document("import", tmp_path / "bank", *folders, *THREE)
    grown = Bank.open(tmp_path / "bank")
    assert grown.releases[:1] == first.releases and len(grown.releases) == 3
    assert said["imported"] == 2 and said["tasks"][0]["release"] is None
    assert len({release.signer for release in grown.releases}) == 1
    assert document("import", tmp_path / "bank", *folders, *THREE)["imported"] == 0
    assert Bank.open(tmp_path / "bank") == grown
    output("verify", tmp_path / "bank")


def test_a_bank_of_another_chain_or_model_is_left_as_it_is(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    output("import", tmp_path / "bank", *folders[:2], *ON, *THREE[:4])
    before = tree(tmp_path)
    into = ("import", tmp_path / "bank")
    other = [write(tmp_path / "other" / "0", tensors([0], seed=1), settings(1))]
    assert "this bank continues another chain" in refusal(*into, *other, *THREE[:2])
    scaled = write(tmp_path / "other" / "scaled", tensors([0]), settings(1, alpha=4))
    assert "found rank 2 and alpha 4" in refusal(*into, scaled, *THREE[:2])
    assert "expected discs:fundus" in refusal(*into, folders[0], "--task", "discs:ct")
    assert "discs is released" in refusal(*into, folders[2], "--task", "discs:fundus")
    assert "found the base model llava-med-v1_5" in refusal(
        *into, *folders, *THREE, "--base-sha256", "b" * 64
    )
    late = write(tmp_path / "other" / "late", tensors([4]), settings(5))
    assert "found 2 releases" in refusal(*into, late, "--task", "x:ct")
    shutil.rmtree(tmp_path / "other")
    assert tree(tmp_path) == before


WIDER = {**SHAPES, "layers.0.self_attn.q_proj": (7, 4)}


@pytest.mark.parametrize(
    ("named", "document", "said"),
    [
        (tensors([1], rank=3), settings(2, 3, 3), "found rank 3 and alpha 3, expected 2 and 2"),
        (tensors([1]), settings(2, alpha=4), "found rank 2 and alpha 4, expected 2 and 2"),
        (tensors([2]), settings(3), "found no task_1 before it"),
        (tensors([0]), settings(1), "--task: found 2, expected 1, one for each task"),
        (tensors([1], shapes=WIDER), settings(2), "7 inputs and 4 outputs, expected 6 and 4"),
    ],
)
def test_tasks_that_could_not_be_summed_are_no_chain(
    tmp_path: Path, named: dict[str, torch.Tensor], document: dict[str, Any], said: str
):
    first = chain(tmp_path / "run", 1)[0]
    second = write(tmp_path / "run" / "second", named, document)
    assert said in refusal("import", tmp_path / "bank", first, second, *ON, *THREE[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_task_that_continues_a_bank_has_its_rank_and_alpha(tmp_path: Path):
    first = chain(tmp_path / "run", 1)
    output("import", tmp_path / "bank", *first, *ON, *THREE[:2])
    second = write(tmp_path / "run" / "second", tensors([1]), settings(2, alpha=4))
    into = ("import", tmp_path / "bank", second, "--task", "x:ct")
    assert "found rank 2 and alpha 4, expected rank 2 and scale 1" in refusal(*into)


def test_a_chain_starts_with_its_first_task(tmp_path: Path):
    _, second = chain(tmp_path / "run", 2)
    assert "expected task_0 first" in refusal(
        "import", tmp_path / "bank", second, *ON, "--task", "x:ct"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_one_bad_folder_of_many_leaves_nothing_behind(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    before = tree(tmp_path)
    whole = (folders[2] / "cl_lora.bin").read_bytes()
    (folders[2] / "cl_lora.bin").write_bytes(whole[: len(whole) // 2])
    assert "task_2/cl_lora.bin" in refusal("import", tmp_path / "bank", *folders, *ON, *THREE)
    assert added(tmp_path, before) == set()
    assert "expected a task's folder" in refusal("import", tmp_path / "bank", tmp_path, *ON)


class Full(Disk):
    """A disk that is full after so many files."""

    def __init__(self, left: int) -> None:
        self.left = left

    def write(self, file: Path, blob: bytes) -> None:
        if self.left == 0:
            raise OSError(28, os.strerror(28), str(file))
        self.left -= 1
        super().write(file, blob)


def test_a_full_disk_leaves_no_half_of_a_bank_or_an_export(tmp_path: Path):
    found = read_chain(chain(tmp_path / "run", 2), separate=False)
    called = task_labels(TaskOptions(tasks=["a:ct", "b:mr"]), [None, None])
    for left in range(100):
        target = (tmp_path / "bank", BASE)
        try:
            bank, _ = import_chain(found, called, target, lambda: KEY, Full(left))
            break
        except BankError as error:
            assert "No space left on device" in str(error)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    else:
        pytest.fail("it never fitted")
    bank.verify()
    for left in range(5):
        with pytest.raises(BankError, match="No space left"):
            export_chain(bank, 1, tmp_path / "out", Full(left))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bank", "run"]
    assert export_chain(bank, 1, tmp_path / "out", Full(5)) == ("task_0", "task_1")


def test_the_base_model_must_be_said(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    into = ("import", tmp_path / "bank", *folders, *THREE)
    assert "found no base model" in refusal(*into)
    assert "found no base model" in refusal(*into, "--base-name", "x")
    assert "--base-sha256: found 'abc'" in refusal(*into, "--base-name=x", "--base-sha256=abc")
    assert "--base-name: found 'a b'" in refusal(
        *into, "--base-name=a b", f"--base-sha256={'a' * 64}"
    )
    assert "expected the folder" not in refusal(*into, "--base-model", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_base_model_can_be_a_folder(tmp_path: Path):
    base = tmp_path / "Tiny.v1"
    base.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (base / name).write_text(name)
    (base / "config.json").write_text('{"model_type": "llava"}')
    folders = chain(tmp_path / "run", 3)
    into = ("import", tmp_path / "bank", *folders, *THREE, "--base-model", base)
    assert f"expected {'a' * 64}" in refusal(*into, "--base-sha256", "a" * 64)
    found = document(*into)["base_model"]
    assert found["name"] == "tiny_v1" and re.fullmatch("[0-9a-f]{64}", found["sha256"])


def test_a_key_does_not_lie_in_the_bank_that_travels(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    into = ("import", tmp_path / "bank", *folders, *ON, *THREE)
    assert "found the key inside the bank" in refusal(*into, "--key", tmp_path / "bank" / "key")
    output(*into)
    signer = SigningKey.load(tmp_path / "bank.key").public_hex
    assert {release.signer for release in Bank.open(tmp_path / "bank").releases} == {signer}


def test_what_is_in_the_way_stays(tmp_path: Path):
    folders = chain(tmp_path / "run", 3)
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "mine").write_text("mine")
    before = tree(tmp_path)
    assert "found something there" in refusal("import", tmp_path / "bank", *folders, *ON, *THREE)
    output("import", tmp_path / "good", *folders, *ON, *THREE)
    out = ("export", tmp_path / "good", "0", tmp_path / "bank", "--format", "paper")
    assert "found something there" in refusal(*out)
    assert all(name.startswith("good") for name in added(tmp_path, before))


@pytest.mark.parametrize("wire", Precision)
def test_a_bank_that_we_trained_goes_out_and_comes_back_equal(tmp_path: Path, wire: Precision):
    base = small_llava()
    bank = Bank.create(tmp_path / "bank", BASE)
    for stage in range(3):
        adapter = trained(base, rank=3, scale=2.1 / 3, seed=stage)
        bank = bank.add(draft(bank, f"stage{stage}"), to_bytes(adapter, wire), KEY)
    output("export", bank.folder, "2", tmp_path / "out", "--format", "paper")
    cfg = json.loads((tmp_path / "out" / "task_2" / "config.json").read_bytes())
    assert cfg == {
        "mslora_cfg": {"lora_alpha": 2.1, "lora_dropout": 0.0, "lora_rank": 3, "max_task": 3}
    }
    output("import", tmp_path / "again", tmp_path / "out", *ON, *THREE)
    again = Bank.open(tmp_path / "again")
    for stage, release in enumerate(again.releases):
        assert release.scale == bank.releases[stage].scale
        ours, theirs = (load_blob(one.adapter_bytes(stage)) for one in (bank, again))
        assert same(theirs, ours)


def trained(base: nn.Module, rank: int, scale: float, seed: int) -> Adapter:
    draw = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    for layer, (inputs, outputs) in llava_shapes().items():
        a, b = draw.normal(0, 0.3, (rank, inputs)), draw.normal(0, 0.3, (outputs, rank))
        pairs[f"{TEXT}.{layer}"] = Pair(a.astype(np.float32), b.astype(np.float32))
    return Adapter(pairs, scale)


def test_releases_that_are_summed_in_part_are_renumbered(tmp_path: Path):
    """Their code sums whatever folders it is given, from task_0 on."""
    output("import", tmp_path / "one", *chain(tmp_path / "run", 1), *ON, *THREE[:2])
    bank = Bank.open(tmp_path / "one")
    key = SigningKey.load(tmp_path / "one.key")
    skipped = replace(draft(bank, "skipped"), sums=(1,))
    bank = bank.add(skipped, bank.adapter_bytes(0), key)
    third = replace(draft(bank, "third"), sums=(1, 2))
    bank = bank.add(third, bank.adapter_bytes(0), key)
    output("export", bank.folder, "third", tmp_path / "out", "--format", "paper")
    for task in range(2):
        back = tmp_path / "out" / f"task_{task}"
        name = {name.replace(f"task_{task}", "task_0"): v for name, v in read(back).items()}
        assert same(name, tensors([0]))
        assert json.loads((back / "config.json").read_bytes()) == settings(task + 1)


def test_what_the_papers_format_can_not_hold_is_not_exported(tmp_path: Path):
    base = small_llava()
    bank = Bank.create(tmp_path / "bank", BASE)
    layer = f"{TEXT}.layers.0.self_attn.q_proj"
    small = Pair(np.ones((3, 2), np.float32), np.ones((2, 3), np.float32))
    unequal = [
        (trained(base, 3, 1.0, 0), (0,)),
        (trained(base, 4, 1.0, 1), (0, 1)),
        (trained(base, 3, 2.0, 2), (0, 2)),
        (Adapter({layer: small}, 1.0), (0, 3)),
        (Adapter({layer: small}, 0.7), (4,)),
        (Adapter({layer: small}, 1.0, {"prompts": np.ones(2, np.float32)}), (5,)),
        (Adapter({"model.vision_tower.x": small}, 1.0), (6,)),
        (Adapter({}, 1.0), (7,)),
    ]
    for stage, (adapter, sums) in enumerate(unequal):
        drafted = replace(draft(bank, f"stage{stage}"), sums=sums)
        bank = bank.add(drafted, to_bytes(adapter), KEY)
    output("export", bank.folder, "0", tmp_path / "good", "--format", "paper")
    for stage, said in {
        1: "found rank 4 and scale 1, expected 3 and 1 as in 000-stage0",
        2: "found rank 3 and scale 2, expected 3 and 1 as in 000-stage0",
        3: "has 2 inputs and 2 outputs, expected 32 and 32",
        4: "found the scale 0.7 at rank 3",
        5: "found the array 'prompts' beside low-rank factors",
        6: "found an adapter on model.vision_tower.x",
        7: "found no low-rank factor",
    }.items():
        message = refusal("export", bank.folder, str(stage), tmp_path / "out", "--format", "paper")
        assert said in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bank", "good"]


@pytest.mark.parametrize("dtype", FORMATS)
def test_their_code_ours_and_peft_compute_the_same(tmp_path: Path, dtype: torch.dtype):
    shapes = llava_shapes()
    folders = [
        write(
            tmp_path / "run" / f"task_{task}",
            tensors([task], dtype=dtype, shapes=shapes, rank=4),
            settings(task + 1, rank=4, alpha=6),
        )
        for task in range(3)
    ]
    output("import", tmp_path / "bank", *folders, *ON, *THREE)
    output("export", tmp_path / "bank", "2", tmp_path / "peft")
    output("export", tmp_path / "bank", "2", tmp_path / "paper", "--format", "paper")
    expected = logits(as_they_load(folders))
    assert not close(logits(small_llava()), expected)
    again = [tmp_path / "paper" / f"task_{task}" for task in range(3)]
    assert torch.equal(logits(as_they_load(again)), expected)
    peft = load(tmp_path / "peft")
    assert touched(peft) == {f"{TEXT}.{layer}" for layer in shapes}
    assert close(logits(peft), expected)
    # A release alone is a PEFT adapter, too.
    assert close(logits(load(tmp_path / "bank" / "000-discs")), logits(as_they_load(folders[:1])))


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_has_an_example(command: str):
    assert f"Example: fedmslora bank {command} " in output(command, "--help")
