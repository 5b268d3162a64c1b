"""docs/plan.md names every field of a plan with its default, and every rule."""

import re

import pytest
from pydantic import BaseModel

from common.contrastive import Contrast
from common.identity import ROOT
from common.methods.mslora_cr import MSLoRACR
from common.methods.registry import installed_methods
from common.plan.plan import Evaluation, Plan, Router, Stage, Training
from common.plan.robustness import Robustness
from common.plan.simulation import HospitalDifferences, SimulatedReference, Simulation
from common.plan_fields import Modality
from common.rules.registry import rules

GUIDE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
#: `training.warmup` names the field, too.
NAMED = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", GUIDE)}


@pytest.mark.parametrize(
    "model",
    [
        Plan, Stage, Training, Evaluation, Router, Robustness, Simulation, HospitalDifferences,
        SimulatedReference, MSLoRACR, Contrast,
    ],
)  # fmt: skip
def test_every_field_of_a_plan_is_in_the_guide(model: type[BaseModel]):
    assert set(model.model_fields) - {"name", "sha256"} <= NAMED


def test_every_rule_is_in_the_guide():
    assert set(rules()) <= NAMED


def test_every_modality_is_in_the_guide():
    assert all(re.search(rf"\b{modality}\b", GUIDE) for modality in Modality)


def test_every_method_is_in_a_guide():
    text = GUIDE + (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in installed_methods() if f"`{name}`" not in text] == []
