"""A dry step of training at a site, and what it says of the adapter's size."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.backbones.registry import load_backbone
from client.methods import mslora_cr
from client.methods.interface import Assignment
from client.model.base_digest import base_digest
from client.node.check import check_site
from client.orders.trial_step import trial_step
from client.site.approval import adapted_layers, sent_bytes
from client.site.config import Device, Plans, Policy, Site
from client.site.finding import Level
from common.adapter import to_bytes
from common.errors import DataError, SiteFailed
from common.partial_adapter import AdapterPart
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality, Precision
from tests.flow import clip_run
from tests.flow.tiny_llava import write_llava, write_picture, write_task

QUESTIONS = [("Is it round?", "yes"), ("Is it square?", "no"), ("What is it?", "a cell")] * 4


@pytest.fixture
def site(tmp_path: Path) -> Site:
    task = write_task(tmp_path / "data" / "cells", QUESTIONS)
    # Pictures of their own for the test questions: the check looks for shared ones.
    for number in range(4):
        write_picture(task / f"t{number}.png", 100 + number)
    test = (task / "test.jsonl").read_text()
    (task / "test.jsonl").write_text(test.replace('"p', '"t'))
    return Site(
        name="north",
        data=tmp_path / "data",
        base_model=write_llava(tmp_path / "base"),
        store=tmp_path / "store",
        device=Device.CPU,
        threads=1,
        policy=Policy(modalities=tuple(Modality), plans=Plans.ANY, rounds=None, examples=1),
    )


def test_a_check_tells_what_the_sites_own_policy_will_keep_back(site: Site):
    policy = site.policy.model_copy(update={"examples": 13, "images": 50})
    strict = site.model_copy(update={"policy": policy})
    plan = plan_for(site, router={"minimum": 2})
    found = {finding.name: finding for finding in check_site(strict, plan)}
    assert found["policy cells"].level is Level.PROBLEM
    said = "found 12 training questions, expected at least the policy.examples of the site file, 13"
    assert found["policy cells"].text == said
    assert found["prototype cells"].level is Level.WARNING
    assert "of fewer than 50 no prototype leaves" in found["prototype cells"].text
    usual = {finding.name for finding in check_site(site, plan_for(site))}
    assert not usual & {"policy cells", "prototype cells"}


def plan_for(site: Site, **changes: Any) -> Plan:
    stage: dict[str, Any] = {
        "name": "first", "modality": "mr", "task": "other", "sites": ["south"], "rounds": 3,
        "local_epochs": 5, "learning_rate": 1e-2, "batch_size": 4,
    }  # fmt: skip
    plan: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny", "sha256": base_digest(site.base_model)},
        "method": {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": {}},
        "aggregation": "svd",
        "stages": [stage, {**stage, "name": "second", "task": "cells", "sites": ["north"]}],
        **changes,
    }
    return parse_plan(plan, "the test's plan")


@pytest.mark.parametrize("method", ["mslora_cr", "sequential"])
def test_one_step_of_a_later_stage_runs_and_leaves_nothing_behind(site: Site, method: str):
    contrast: dict[str, Any] = {"active": "all", "contrast": {}} if method == "mslora_cr" else {}
    plan = plan_for(site, method={"name": method, "rank": 4, "alpha": 4, **contrast})
    seconds, loss = trial_step(plan, site, stage=1)
    assert seconds > 0
    assert loss > 0
    assert not site.store.exists()


def test_a_site_with_everything_passes_every_check_and_trains_trial_step(site: Site):
    found = {finding.name: finding for finding in check_site(site, plan_for(site))}
    assert all(finding.passed for finding in found.values()), found
    assert found["training step"].level is Level.OK
    assert "12 training and 12 test questions" in found["data cells"].text
    assert found["labels cells"].text == "2 different answers to 8 closed questions"


def test_a_step_on_public_pairs_takes_them_from_the_sites_folder(tmp_path: Path):
    folder = clip_run.write_clip_run(tmp_path)
    method = {
        "name": "primed", "rank": 2, "alpha": 2.0, "reference_batch": 4,
        "reference": clip_run.reference_pin(folder),
    }  # fmt: skip
    site = Site(
        name="a",
        data=folder / "data/a",
        base_model=folder / "clip",
        store=tmp_path / "store",
        device=Device.CPU,
        threads=1,
        policy=Policy(modalities=tuple(Modality), plans=Plans.ANY, rounds=None, examples=1),
        reference=folder / "data/reference",
    )
    _, loss = trial_step(clip_run.plan_of(folder, method), site, stage=0)
    assert loss > 0
    without = site.model_copy(update={"reference": None})
    with pytest.raises(SiteFailed, match="site a, reference: found no folder, expected that of"):
        trial_step(clip_run.plan_of(folder, method), without, stage=0)


def test_data_that_is_missing_fails_the_step(site: Site):
    with pytest.raises(DataError):
        trial_step(plan_for(site), site, stage=0)


@pytest.mark.parametrize("wire", list(Precision))
def test_the_adapter_that_leaves_is_as_large_as_was_said(site: Site, wire: Precision):
    plan = plan_for(site, wire=wire.value)
    backbone = load_backbone(site.base_model, Precision.FP32, torch.device("cpu"))
    assignment = Assignment(
        plan=plan, stage=0, round=1, site="north", bank={}, active=(), candidate=None,
        backbone=backbone, checkpoint=None,
    )  # fmt: skip
    blob = to_bytes(mslora_cr.start(assignment, ()), plan.wire)
    said = sent_bytes(plan, adapted_layers(plan, site.base_model), AdapterPart.WHOLE)
    assert said is not None
    # The rest is the header of names, a few hundred bytes a layer.
    assert 0 < len(blob) - said < 10_000
