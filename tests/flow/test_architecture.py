"""The guides of docs/architecture.md, followed to the letter in a copy of the tree."""
# pyright: reportUnknownMemberType=false

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from client.model.base_digest import base_digest
from common.adapter import from_bytes
from common.bank.bank import Bank
from common.identity import ROOT
from report.json_file import read_report
from simulation.hospitals import BASE_MODELS

GUIDE = ROOT / "docs" / "architecture.md"
ROOMS = (
    "client", "commands", "common", "cost", "interchange", "report", "retrieval", "server",
    "simulation", "fedmslora.py",
)  # fmt: skip
#: Where a guide has a line put into a table, the table's first line.
TABLES = {
    "BUILT_IN": ("simulation/data_sources.py", "BUILT_IN: Final[Mapping[str, str]] = {\n"),
    "LOADERS": ("client/model/kinds.py", "LOADERS: Final[Mapping[str, str]] = {\n"),
}


def blocks() -> dict[str, str]:
    """The guide's pieces of code by the file or the table that their first line names."""
    found = re.findall(r"```python\n# (\S+(?: \S+)?)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return {name.removeprefix("in "): code for name, code in found}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in which every guide was followed."""
    root = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        if (ROOT / room).is_file():
            shutil.copy(ROOT / room, root / room)
        else:
            shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in blocks().items():
        if name in TABLES:
            file, first = TABLES[name]
            before = (root / file).read_text()
            assert before.count(first) == 1
            (root / file).write_text(before.replace(first, first + code))
        else:
            assert not (root / name).exists()
            (root / name).write_text(code)
    return root


def python(root: Path, *arguments: str, packages: Path | None = None) -> str:
    path = os.pathsep.join(map(str, [*([packages] if packages else []), root]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan_file(folder: Path, data: str, task: str, **changes: object) -> Path:
    stage = {
        "name": "one", "modality": "xray", "task": task, "sites": ["a", "b"], "rounds": 2,
        "local_epochs": 1, "learning_rate": 0.05, "batch_size": 2, "max_new_tokens": 2,
    }  # fmt: skip
    plan = {
        "name": "guide",
        "seed": 5,
        "base_model": {"name": "tiny-llava", "sha256": base_digest(BASE_MODELS["tiny-llava"])},
        "aggregation": "fedavg",
        "stages": [stage, {**stage, "name": "two"}],
        "simulation": {"data": data, "train_fraction": 0.1, "test_questions": 4},
        **changes,
    }
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return file


def vectors(run: Path) -> list[np.ndarray]:
    bank = Bank.open(run / "bank")
    return [
        from_bytes(bank.adapter_bytes(release.stage), "release").extras["vector"]
        for release in bank.releases
    ]


def test_a_method_a_rule_and_a_data_source_of_the_guides_run_a_federation_of_two_sites(
    tree: Path, tmp_path: Path
):
    method = {"name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "contrast": None}
    plan = plan_file(
        tmp_path, "teeth", "teeth", method=method, aggregation="uniform_b",
        simulation={"data": "teeth", "compare": ["prompt_vector"]},
    )  # fmt: skip
    run = tmp_path / "run"
    command = ("simulate", str(plan), "--engine", "inprocess", "--out", str(run))
    python(tree, "fedmslora.py", *command)
    releases = Bank.open(run / "bank").releases
    assert [(release.rule, set(release.sites)) for release in releases] == [
        ("uniform_b", {"a", "b"})
    ] * 2
    # Equal counts of examples: what counts all alike is then the weighted mean.
    assert [release.error for release in releases] == [0.0, 0.0]
    ours, other = read_report(run)
    assert (ours.method, other.method) == ("mslora", "prompt_vector")
    first, second = vectors(run / "methods" / "prompt_vector")
    assert first.shape == (4,) and (first > 0).all() and (second > 0).all()
    assert [other.scores[stage][task] for stage, task in ((0, 0), (1, 0), (1, 1))] == [1.0] * 3
    answers = next((run / "sites" / "a" / "store" / "answers").glob("*.jsonl"))
    assert set(json.loads(answers.read_text().splitlines()[0])) >= {"text", "gt"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package with the guide's method, under another name."""
    folder = tmp_path / "packages"
    code, about = folder / "outside_package", folder / "outside_package-1.0.dist-info"
    code.mkdir(parents=True)
    about.mkdir()
    given = blocks()
    settings = given["common/methods/prompt_vector.py"].replace("prompt_vector", "outside")
    (code / "__init__.py").touch()
    (code / "settings.py").write_text(settings)
    (code / "client.py").write_text(given["client/methods/prompt_vector.py"])
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fedmslora.methods]\noutside = outside_package\n")
    return folder


def test_a_method_from_a_package_of_its_own_runs_a_federation_of_two_sites(
    package: Path, tmp_path: Path
):
    digest = ("-c", "from common.code_digest import code_digest; print(code_digest())")
    plan = plan_file(tmp_path, "phantoms", "CXP", method={"name": "outside", "width": 3})
    run = tmp_path / "run"
    command = ("simulate", str(plan), "--engine", "inprocess", "--out", str(run))
    python(ROOT, "fedmslora.py", *command, packages=package)
    first, second = vectors(run)
    assert first.shape == (3,) and (first > 0).all() and (second > 0).all()
    (release, _) = Bank.open(run / "bank").releases
    installed = python(ROOT, *digest, packages=package).strip()
    assert release.code == installed != python(ROOT, *digest).strip()
    with (package / "outside_package" / "client.py").open("a") as file:
        file.write("\n# another comment\n")
    assert python(ROOT, *digest, packages=package).strip() != installed


def test_an_outside_method_of_a_known_name_or_without_a_package_is_one_sentence(
    package: Path, tmp_path: Path
):
    entries = package / "outside_package-1.0.dist-info" / "entry_points.txt"
    show = ("-c", "from common.methods.registry import installed_methods; installed_methods()")
    for points, said in (
        ("joint = outside_package", "method 'joint': found it twice"),
        ("other = no_such_package", "found 'no_such_package', expected an installed package"),
    ):
        entries.write_text(f"[fedmslora.methods]\n{points}\n")
        with pytest.raises(AssertionError, match=said):
            python(ROOT, *show, packages=package)


def test_an_outside_method_without_a_trait_is_refused_when_a_plan_is_read(
    package: Path, tmp_path: Path
):
    settings = package / "outside_package" / "settings.py"
    settings.write_text(settings.read_text().replace("def frozen_stages", "def thawed_stages"))
    plan = plan_file(tmp_path, "phantoms", "CXP", method={"name": "outside", "width": 3})
    said = "method 'outside': found no frozen_stages in PromptVector of outside_package.settings"
    with pytest.raises(AssertionError, match=said) as caught:
        python(ROOT, "fedmslora.py", "plan", "cost", str(plan), packages=package)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """A tiny SigLIP of random weights in transformers' layout."""
    folder = tmp_path / "siglip"
    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_max_length=8,
    ).save_pretrained(folder)  # fmt: skip
    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = SiglipConfig(
        text_config={**sizes, "vocab_size": 8, "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


SIGLIP_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from client.backbones.registry import load_backbone
from client.data.task import Example
from client.inference.image_prototype import image_feature, prototype_of_images
from client.inference.router import route
from client.model.lora_init import kaiming_adapter
from common.metrics import AnswerKind
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor

model, *images = map(Path, sys.argv[1:])
backbone = load_backbone(model, Precision.FP32, torch.device("cpu"))
question = Example("1", images[0], "is it 'red' or 'blue' ?", "red", AnswerKind.CLOSED)
(bare,) = backbone.answer([question], 1, 1)
fresh = kaiming_adapter(backbone.adapted.layer_shapes(), 2, 1.0, 1)
rng = np.random.default_rng(0)
for pair in fresh.pairs.values():
    pair.b[:] = rng.standard_normal(pair.b.shape)
backbone.adapted.freeze_adapters([fresh], Composition.FOLD)
(adapted,) = backbone.answer([question], 1, 1)
backbone.adapted.freeze_adapters([], Composition.FOLD)
prototypes = {n: prototype_of_images(backbone, [image], 1) for n, image in enumerate(images)}
routes = [route(image_feature(backbone, image), prototypes, 0.05).best.stage for image in images]
print(json.dumps({
    "text": bare.text, "scores": dict(bare.class_scores), "adapted": dict(adapted.class_scores),
    "layers": len(fresh.pairs), "routes": routes,
}))
"""


def test_a_siglip_as_a_backbone_answers_takes_adapters_and_is_routed(
    tree: Path, siglip: Path, tmp_path: Path
):
    images: list[str] = []
    for number, colour in enumerate(((250, 10, 10), (10, 10, 250))):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (16, 16), colour).save(file)
        images.append(str(file))
    found = json.loads(python(tree, "-c", SIGLIP_SCRIPT, str(siglip), *images))
    scores = found["scores"]
    assert set(scores) == {"red", "blue"} and all(0 < score < 1 for score in scores.values())
    assert found["text"] == max(scores, key=lambda one: scores[one])
    assert found["adapted"] != scores
    assert found["layers"] == 4
    assert found["routes"] == [0, 1]
