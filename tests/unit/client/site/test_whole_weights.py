"""What a site's admin is told where the whole model trains, and which changes a site takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site.adapter_layout import BaseLayout, fault_of_layout, most_bytes
from client.site.approval import describe_plan
from client.site.config import Site
from common.adapter import Adapter
from common.clip_shape import read_clip_shape
from common.partial_adapter import AdapterPart
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from tests.unit.client.site.test_policy import site_of
from tests.unit.small_round import document

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
CONFIG: dict[str, Any] = {
    "model_type": "clip", "projection_dim": 6,
    "vision_config": {**SIZES, "image_size": 8, "patch_size": 4},
    "text_config": {**SIZES, "vocab_size": 11, "max_position_embeddings": 7},
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def plan_of(**method: Any) -> Plan:
    stage = {**document(rounds=3)["stages"][0], "classes": ["red", "skin"]}
    given = {"name": "clip_finetune", "parameters": "all", **method}
    return parse_plan({**document(), "stages": [stage], "method": given}, "p")


def told(base: Path, plan: Plan) -> str:
    site = site_of(base, modalities=(Modality.CT,))
    found: Site = site.model_copy(update={"base_model": base, "name": "a"})
    return "\n".join(describe_plan(plan, found))


def test_the_admin_reads_that_the_whole_model_trains_and_how_many_bytes_leave(base: Path):
    numbers = read_clip_shape(base).parameters - 1
    said = told(base, plan_of())
    assert "clip_finetune (finetune_all), all weights of both towers" in said
    assert "trains the whole model, both towers (parameters: all)" in said
    megabytes = 4 * numbers / 1e6
    assert f"the changes of all weights that train (about {megabytes:.4f} MB)" in said
    image = told(base, plan_of(towers="image"))
    assert "the whole image tower" in image
    ewc = told(base, plan_of(hold="ewc"))
    assert "for each weight the mean square of the loss's gradient" in ewc
    assert f"about {8 * numbers / 1e6:.3f} MB" in ewc


def changes(base: Path) -> dict[str, Any]:
    shapes = read_clip_shape(base).weights()
    return {f"delta.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_a_site_takes_the_change_of_every_weight_of_its_base_and_no_other(base: Path):
    plan = plan_of()
    known = BaseLayout.of(plan, base)

    def fault(**arrays: Any) -> str | None:
        kept = {name: value for name, value in {**changes(base), **arrays}.items() if len(value)}
        return fault_of_layout(Adapter({}, 1.0, kept), AdapterPart.WHOLE, plan, known)

    assert fault() is None
    name = "delta.visual_projection.weight"
    said = f"{name}: found nothing, expected (6, 8) as in the base model"
    assert fault(**{name: []}) == said
    assert fault(**{"delta.more": np.zeros(2)}) == (
        "delta.more: found (2,), expected nothing as in the base model"
    )
    assert fault(**{name: np.zeros((8, 6))}) == (
        f"{name}: found (8, 6), expected (6, 8) as in the base model"
    )
    lora = plan_of(parameters="lora")
    found = Adapter({}, 1.0, changes(base))
    refused = fault_of_layout(found, AdapterPart.WHOLE, lora, BaseLayout.of(lora, base))
    assert refused is not None and "expected low-rank factors" in refused


def test_an_adapter_is_as_large_as_the_model_and_no_larger(base: Path):
    numbers = read_clip_shape(base).parameters - 1
    assert most_bytes(plan_of(), base) == 8 * numbers + 2**20
