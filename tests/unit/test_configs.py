"""The paper's plans say what the authors' scripts say (github.com/VentusAislant/MSLoRA_CR)."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from common.contrastive import Similarity
from common.errors import ModelError
from common.methods.mslora_cr import Active, MSLoRACR
from common.plan.file import load_plan
from common.plan.plan import Metric, Plan
from common.plan_fields import Modality, Precision
from simulation.hospitals import BASE_MODELS, check

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = ("paper8", "paper6", "paper8_federated")


@dataclass(frozen=True)
class Row:
    """One stage of a script: its name there, data folder, epochs, learning rate and batch."""

    name: str
    folder: str
    epochs: float
    rate: float
    batch: int


# Read off scripts/finetune_mslora_cr_ortho.sh at 66ce664: DATASET_SPILT, IMAGE_FOLDER, EPOCH,
# the --learning_rate of the call, and BATCH_SIZE as it stands at the call.
EIGHT = (
    Row("pathvqa", "PathVQA", 3, 2e-4, 24),
    Row("slake-vqarad", "Slake-VQARad", 4, 2e-4, 24),
    Row("derm", "Fitzpatrick", 4, 2e-4, 24),
    Row("PCAM", "PCam", 1, 2e-4, 24),
    Row("CXP", "CXP", 1, 2e-4, 24),
    Row("HAM", "HAM", 1, 2e-5, 16),
    Row("nmi", "WSI-DX", 6, 2e-4, 16),
    Row("iu-x-ray", "IU-X-Ray", 9, 2e-4, 16),
)
# The same of scripts/finetune_mslora_cr_ortho_6task.sh.
SIX = (
    Row("pathvqa", "PathVQA", 3, 2e-4, 32),
    Row("slake-vqarad", "Slake-VQARad", 4, 2e-4, 32),
    Row("PCAM", "PCam", 1, 2e-4, 32),
    Row("CXP", "CXP", 1, 2e-4, 32),
    Row("nmi", "WSI-DX", 6, 2e-4, 32),
    Row("iu-x-ray", "IU-X-Ray", 9, 2e-4, 16),
)
# What the scripts pass as --is_same_modality from the second stage on.
SAME_EIGHT = ["0", "0 0", "1 0 0", "0 1 0 0", "0 0 1 0 0", "1 0 0 1 0 0", "0 1 0 0 1 0 0"]
SAME_SIX = ["0", "1 0", "0 1 0", "1 0 1 0", "0 1 0 1 0"]


def preset(name: str) -> Plan:
    return load_plan(CONFIGS / f"{name}.yaml")


def rows(plan: Plan) -> list[Row]:
    return [
        Row(s.name, s.task, s.rounds * s.local_epochs, s.learning_rate, s.batch_size)
        for s in plan.stages
    ]


def lowered(script: tuple[Row, ...]) -> list[Row]:
    """The rows with their names as a plan has them."""
    return [Row(r.name.lower(), r.folder, r.epochs, r.rate, r.batch) for r in script]


def same_modality(plan: Plan) -> list[str]:
    kinds = [stage.modality for stage in plan.stages]
    return [
        " ".join(str(int(earlier is kinds[at])) for earlier in kinds[:at])
        for at in range(1, len(kinds))
    ]


@pytest.mark.parametrize(("name", "script"), [("paper8", EIGHT), ("paper6", SIX)])
def test_order_folders_epochs_rates_and_batches_are_the_scripts(name: str, script: tuple[Row, ...]):
    assert rows(preset(name)) == lowered(script)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("paper8", SAME_EIGHT), ("paper8_federated", SAME_EIGHT), ("paper6", SAME_SIX)],
)
def test_the_same_modality_flags_are_the_scripts(name: str, flags: list[str]):
    assert same_modality(preset(name)) == flags


@pytest.mark.parametrize("name", PRESETS)
def test_method_and_training_are_the_scripts(name: str):
    plan = preset(name)
    method, training = plan.method, plan.training
    assert isinstance(method, MSLoRACR) and method.contrast is not None
    assert (method.rank, method.alpha, method.active) == (64, 64, Active.ALL)
    assert method.contrast.similarity is Similarity.EXP
    assert (method.contrast.weight, method.contrast.orthogonality) == (0.1, 0.01)
    assert (training.warmup, training.weight_decay, training.max_grad_norm) == (0.03, 0, None)
    assert training.precision is Precision.BF16 and training.gradient_checkpointing
    assert plan.seed == 42 and plan.wire is Precision.BF16
    assert {stage.max_new_tokens for stage in plan.stages} == {100}


@pytest.mark.parametrize("name", ["paper8", "paper6"])
def test_the_centralised_plans_have_one_site_and_one_round_a_stage(name: str):
    plan = preset(name)
    assert plan.sites == ("central",)
    assert {stage.rounds for stage in plan.stages} == {1}


def test_six_tasks_are_the_eight_without_dermatology_but_for_the_batch():
    eight, six = preset("paper8"), preset("paper6")
    kept = [stage for stage in eight.stages if stage.modality is not Modality.DERMATOLOGY]
    assert [stage.model_copy(update={"batch_size": 1}) for stage in kept] == [
        stage.model_copy(update={"batch_size": 1}) for stage in six.stages
    ]
    same = {"name": "x", "stages": ()}
    assert eight.model_copy(update=same) == six.model_copy(update=same)


def test_three_sites_make_as_many_passes_and_nearly_as_many_steps_as_one():
    plan, one = preset("paper8_federated"), preset("paper8")
    assert plan.sites == ("a", "b", "c")
    for stage, alone in zip(plan.stages, one.stages, strict=True):
        assert stage.sites == plan.sites
        assert stage.rounds * stage.local_epochs == alone.local_epochs
        assert stage.rounds > 1
        steps = alone.batch_size / (len(stage.sites) * stage.batch_size)
        assert 1 <= steps <= 1.07
        taken = {"sites", "rounds", "local_epochs", "batch_size"}
        assert stage.model_dump(exclude=taken) == alone.model_dump(exclude=taken)


def test_questions_classes_and_reports_have_a_metric_each():
    assert {stage.name: stage.metric for stage in preset("paper8").stages} == {
        "pathvqa": Metric.RECALL,
        "slake-vqarad": Metric.RECALL,
        "derm": Metric.RECALL,
        "pcam": Metric.ACCURACY,
        "cxp": Metric.ACCURACY,
        "ham": Metric.ACCURACY,
        "nmi": Metric.F1,
        "iu-x-ray": Metric.F1,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_the_zeros_are_refused_with_the_digest_that_was_found(name: str, tmp_path: Path):
    folder = BASE_MODELS["tiny-llava"]
    digest = preset("demo").base_model.sha256
    with pytest.raises(ModelError) as caught:
        check(preset(name), name, tmp_path, folder)
    assert str(caught.value) == (
        f"{folder}: found a base model with digest {digest}, expected the plan's {'0' * 64}"
    )
