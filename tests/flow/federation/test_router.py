"""A federation with a router: prototypes leave, are released, and pictures choose their stage."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.backbones.llava import LlavaBackbone
from client.data.task import images_of, read_task
from client.inference.image_prototype import (
    image_features,
    prototype_of_features,
    prototype_of_images,
)
from client.model.llava import load_llava
from client.site import audit
from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.errors import BankError
from common.plan_fields import Precision
from common.router.image_prototype import merge_prototypes
from report.json_file import read_report
from simulation.hospitals import BASE_MODELS
from simulation.run import simulate
from tests.flow.cheap_runs import charts_drawn
from tests.flow.forked import exit_code_of
from tests.flow.small_run import OTHER, STAGE, bank_bytes, killed_after, options, small_plan

#: Both stages at two sites; a site has 30 different pictures of a task.
ROUTED = {"router": {"minimum": 20}}
KILLED_AFTER = 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    with charts_drawn():
        simulate(small_plan(folder / "plan.yaml", **ROUTED), options(folder / "run"))
    return folder / "run"


def features(run: Path, site: str, task: str) -> np.ndarray:
    """The features of a site's training pictures, looked at by this test itself."""
    base = load_llava(BASE_MODELS["tiny-llava"], Precision.FP32, torch.device("cpu"))
    return image_features(
        LlavaBackbone(base), images_of(read_task(run / "sites" / site / "data" / task).train)
    )


def test_a_release_has_the_mean_of_its_sites_pictures(finished: Path):
    torch.set_num_threads(1)
    prototypes = Bank.open(finished / "bank").prototypes()
    for stage, task, sites in ((0, "CXP", "ab"), (1, "PCAM", "bc")):
        every = np.concatenate([features(finished, site, task) for site in sites])
        assert prototypes[stage].images == len(every) == 60
        np.testing.assert_allclose(prototypes[stage].vector, every.mean(0), atol=1e-6)
        assert np.linalg.norm(every, axis=1) == pytest.approx(1.0)


def test_what_was_merged_is_what_the_sites_gave(finished: Path):
    torch.set_num_threads(1)
    parts = [prototype_of_features(features(finished, site, "CXP")) for site in "ab"]
    together = merge_prototypes([part for part in parts if part is not None])
    found = Bank.open(finished / "bank").prototypes()[0]
    assert together is not None
    np.testing.assert_array_equal(found.vector, together.vector)
    assert found.std == together.std


def test_a_copy_under_another_name_or_in_another_format_is_no_second_picture(
    finished: Path, tmp_path: Path
):
    torch.set_num_threads(1)
    first, second = images_of(read_task(finished / "sites/a/data/CXP").train)[:2]
    copies = [tmp_path / f"{number}.png" for number in range(3)]
    for copy in copies:
        shutil.copy(first, copy)
    with Image.open(first) as image:
        image.save(tmp_path / "same.bmp")
    base = load_llava(BASE_MODELS["tiny-llava"], Precision.FP32, torch.device("cpu"))
    pictures = [first, *copies, tmp_path / "same.bmp"]
    assert len(image_features(LlavaBackbone(base), pictures)) == 1
    assert prototype_of_images(LlavaBackbone(base), pictures, 2) is None
    together = prototype_of_images(LlavaBackbone(base), [*pictures, second], 2)
    assert together is not None and together.images == 2


def test_pictures_of_two_modalities_choose_their_own_stage(finished: Path):
    (report,) = read_report(finished)
    assert report.routed is not None
    for matrix in (report.routed.stage, report.routed.modality):
        # With one stage released there is no choice; with two each picture finds its own.
        assert matrix == ((1.0, None), (1.0, 1.0))
    # Then the router answers as the oracle does.
    assert report.routed.scores == report.scores
    assert (finished / "routed.svg").exists()
    assert "When the task is not given" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_flipped_byte_in_a_prototype_is_found(finished: Path):
    verify_bank(finished / "bank", Expected())
    file = finished / "bank" / "001-pcam" / "prototype.safetensors"
    blob = file.read_bytes()
    file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    try:
        with pytest.raises(BankError, match=r"001-pcam/prototype.safetensors: found the digest"):
            verify_bank(finished / "bank", Expected())
    finally:
        file.write_bytes(blob)


def test_what_left_stands_in_the_audit_log_in_words(finished: Path):
    told = [audit.describe(entry) for entry in audit.read(finished / "sites" / "a" / "store")]
    prototypes = [line for line in told if "the prototype of stage 1" in line]
    assert len(prototypes) == 1
    assert "the prototype of stage 1, round 2 of plan small: " in prototypes[0]
    routed = [line for line in told if "received" in line and "the prototype of release 2" in line]
    assert len(routed) == 1


def test_a_site_with_too_few_pictures_keeps_its_prototype_and_the_run_goes_on(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml", router={"minimum": 31}, stages=[STAGE])
    simulate(plan, options(tmp_path / "run"))
    (release,) = Bank.open(tmp_path / "run/bank").releases
    assert release.prototype is None
    (report,) = read_report(tmp_path / "run")
    assert report.routed is None
    assert report.scores[0][0] is not None
    told = [audit.describe(entry) for entry in audit.read(tmp_path / "run/sites/a/store")]
    (line,) = [line for line in told if "withheld" in line]
    assert line.endswith("withheld: the prototype, of fewer than 31 different images")
    assert "round 2 of plan small" in line


def test_without_a_router_nothing_of_it_leaves(tmp_path: Path):
    simulate(small_plan(tmp_path / "plan.yaml", stages=[STAGE]), options(tmp_path / "run"))
    folder = tmp_path / "run/bank/000-cxp"
    names = {file.name for file in folder.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "release.json"}
    assert "prototype" not in json.loads((folder / "release.json").read_text())
    assert "router" not in json.loads((tmp_path / "run/plan.json").read_text())


def test_a_baseline_of_one_adapter_is_not_routed(tmp_path: Path):
    method = {"name": "sequential", "rank": 4, "alpha": 4}
    plan = small_plan(tmp_path / "plan.yaml", method=method, stages=[STAGE, OTHER], **ROUTED)
    simulate(plan, options(tmp_path / "run"))
    assert all(r.prototype is None for r in Bank.open(tmp_path / "run/bank").releases)
    assert read_report(tmp_path / "run")[0].routed is None


def test_a_run_killed_behind_a_prototype_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path):
    plan, out = small_plan(tmp_path / "plan.yaml", **ROUTED), tmp_path / "run"
    for answers in (5, 6, KILLED_AFTER):
        assert exit_code_of(killed_after, answers, plan, out) == -signal.SIGKILL
    simulate(plan, options(out))
    assert bank_bytes(out) == bank_bytes(finished)
    assert read_report(out)[0].routed == read_report(finished)[0].routed
