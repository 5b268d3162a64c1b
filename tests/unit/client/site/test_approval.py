"""What a site's admin is told leaves the site, by the rule."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from client.site.approval import (
    adapted_layers,
    approve,
    describe_plan,
    extra_numbers,
    sent_bytes,
)
from client.site.config import Site
from common.errors import SiteFailed
from common.partial_adapter import AdapterPart
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from tests.unit.client.site.test_policy import site_of
from tests.unit.small_round import document

#: (outputs, inputs), large enough for megabytes to be written with few digits.
Q, DOWN = (300, 200), (200, 500)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    prefix = "language_model.layers.0"
    weights = {f"{prefix}.self_attn.q_proj.weight": Q, f"{prefix}.mlp.down_proj.weight": DOWN}
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in {**weights, "other": Q}.items()},
        tmp_path / "model.safetensors",
    )
    return tmp_path


def site_at(base: Path) -> Site:
    found = site_of(base, modalities=(Modality.CT,))
    return found.model_copy(update={"base_model": base, "name": "a"})


def plan_of(rule: str) -> Plan:
    method = {"name": "mslora_cr", "rank": 8, "alpha": 8, "contrast": None}
    return parse_plan({**document(rounds=3), "method": method, "aggregation": rule}, "p")


def told(base: Path, rule: str) -> str:
    return "\n".join(describe_plan(plan_of(rule), site_at(base)))


def test_bytes_of_a_part_are_its_numbers_in_the_wires_precision(base: Path):
    plan = plan_of("fed_sb")
    layers = adapted_layers(plan, base)
    assert sorted(layers) == sorted([Q, DOWN])
    found = {
        part: sent_bytes(plan, layers, part)
        for part in (AdapterPart.WHOLE, AdapterPart.A, AdapterPart.CORE)
    }
    assert found == {
        AdapterPart.WHOLE: 4 * 8 * (300 + 200 + 200 + 500),
        AdapterPart.A: 4 * 8 * (200 + 500),
        AdapterPart.CORE: 4 * 8 * 8 * 2,
    }
    assert sent_bytes(plan, [], AdapterPart.A) is None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("svd", "after each of 3 rounds an adapter (about 0.038 MB), the number of"),
        (
            "fed_sb",
            "after each of 3 rounds the R between its fixed factors (about 0.0005 MB), or after a "
            "stage's first an adapter (about 0.038 MB), the number of",
        ),
        (
            "fedsa",
            "after each of 3 rounds the factor A of an adapter (about 0.022 MB), or after a "
            "stage's last one an adapter (about 0.038 MB), whose factor B enters the release as a "
            "part of the sites' mean, the number of",
        ),
    ],
)
def test_an_admin_reads_which_part_leaves_after_which_round(base: Path, rule: str, said: str):
    assert said in told(base, rule)


def test_an_admin_reads_what_stays_and_where(base: Path):
    stays = "What stays at this site: the factor B of each stage's adapter as it was trained here"
    assert stays in told(base, "fedsa")
    assert "the folder own_b of its store" in told(base, "fedsa")
    assert "What stays" not in told(base, "svd")


def test_a_site_without_weights_is_told_that_the_size_is_unknown(tmp_path: Path):
    assert "(of unknown size: no base model in safetensors was found)" in told(tmp_path, "fedsa")


def clip_config(folder: Path) -> Path:
    """OpenAI's ViT-B/16 by its config alone, which is all that approval reads of a CLIP."""
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16}
    document = {"model_type": "clip", "vision_config": vision, "text_config": {"hidden_size": 512}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("decide", "of_a_class"), [("base_prior", 2049), ("prototype", 2562)])
def test_class_prompts_are_told_with_their_bytes_and_what_they_reveal(
    tmp_path: Path, decide: str, of_a_class: int
):
    stage = {**document()["stages"][0], "classes": ["normal", "stone", "cyst"]}
    method = {"name": "dual_modality", "decide": decide}
    given = {**document(), "method": method, "stages": [stage], "wire": "bf16"}
    plan, base = parse_plan(given, "p"), clip_config(tmp_path / "clip")
    layers, of_classes = adapted_layers(plan, base), extra_numbers(plan, base)
    assert layers == [(768, 768)] * 24 and of_classes == 3 * of_a_class
    size = sent_bytes(plan, layers, AdapterPart.WHOLE, of_classes)
    assert size == 2 * (884_736 + 3 * of_a_class)
    said = "\n".join(describe_plan(plan, site_at(base)))
    assert "so far, of which these are its own: normal, stone, cyst." in said
    assert "an adapter (about 1.8 MB)" in said
    assert "the number of this site's training examples of it" in said
    assert ("a mean leaves for each class" in said) is (decide == "prototype")
    assert ("Of fewer than 50 different images of a class" in said) is (decide == "prototype")


def test_continual_fine_tuning_is_told_with_its_bytes_and_ewc_with_what_it_reveals(tmp_path: Path):
    stage = {**document()["stages"][0], "classes": ["normal", "stone"]}
    base, said = clip_config(tmp_path / "clip"), dict[str, str]()
    for label, fields in {"ewc": {"hold": "ewc"}, "image": {"towers": "image"}}.items():
        method = {"name": "clip_finetune", **fields}
        given = {**document(), "method": method, "stages": [stage], "wire": "bf16"}
        plan = parse_plan(given, "p")
        layers, extra = adapted_layers(plan, base), extra_numbers(plan, base)
        found = sent_bytes(plan, layers, AdapterPart.WHOLE, extra)
        # q, k, v and out of 12 layers of width 768, and of 12 of width 512.
        vision, text = 12 * 4 * 2 * 768, 12 * 4 * 2 * 512
        fisher = vision + text + 2
        expected = 16 * (vision + text) + fisher if label == "ewc" else 16 * vision
        assert found == 2 * expected
        said[label] = "\n".join(describe_plan(plan, site_at(base)))
    assert "Method: clip_finetune (ewc), rank 16, LoRA of both towers." in said["ewc"]
    assert "the task's Fisher information leaves" in said["ewc"]
    assert "an adapter (about 4.2 MB)" in said["ewc"]
    assert "Fisher" not in said["image"] and "an adapter (about 2.4 MB)" in said["image"]


def test_a_stage_that_tells_the_task_is_asked_among_its_own_classes(base: Path):
    stage = {**document()["stages"][0], "classes": ["normal", "stone"], "scope": "own"}
    plan = parse_plan({**document(), "stages": [stage]}, "p")
    said = "\n".join(describe_plan(plan, site_at(base)))
    assert "The test asks for one of these classes: normal, stone." in said
    assert extra_numbers(plan, base) == 0


def test_an_admin_reads_of_how_few_questions_no_score_leaves(base: Path):
    fewest = site_at(base).policy.test_questions
    assert f"No score of fewer than {fewest} test questions leaves" in told(base, "svd")


def test_a_plan_that_the_policy_refuses_is_not_approved(base: Path):
    site = site_at(base)
    assert site.federation is not None
    policy = site.policy.model_copy(update={"modalities": (Modality.MR,)})
    with pytest.raises(SiteFailed, match="the site's policy allows only mr"):
        approve(plan_of("svd"), site.model_copy(update={"policy": policy}), site.federation)
    assert not (site.federation.approved / f"{plan_of('svd').digest}.json").exists()
    assert approve(plan_of("svd"), site, site.federation).is_file()


def test_the_rounds_of_all_stages_of_the_site_are_told_together(base: Path):
    one = document()["stages"][0]
    stages = [one, {**one, "name": "two", "rounds": 5}, {**one, "name": "other", "sites": ["b"]}]
    plan = parse_plan({**document(), "stages": stages}, "p")
    said = "\n".join(describe_plan(plan, site_at(base)))
    assert "after each of 7 rounds an adapter" in said


def test_the_bytes_of_class_prompts_are_those_of_the_stage_with_most_classes(tmp_path: Path):
    one = {**document()["stages"][0], "classes": ["normal", "stone", "cyst"]}
    stages = [one, {**one, "name": "two", "classes": ["a", "b"]}]
    given = {**document(), "method": {"name": "dual_modality"}, "stages": stages}
    base = clip_config(tmp_path / "clip")
    assert extra_numbers(parse_plan(given, "p"), base) == 3 * 2049
