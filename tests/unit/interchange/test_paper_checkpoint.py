# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.errors import BankError
from common.plan_fields import Modality
from interchange.names import alpha_for, paper_name, parse_paper_name, settings_of
from interchange.paper_checkpoint import (
    checkpoint_bytes,
    first_difference,
    read_factors,
    read_folder,
)
from interchange.paper_tasks import PAPER_TASKS, TaskLabel, TaskOptions, name_in_folder, task_labels
from tests.unit.small_paper import RANK, read, same, settings, tensors, write

Q = "model.layers.0.self_attn.q_proj.cl_lora_pool.task_0_lora.lora_"
OUR_Q = "model.language_model.layers.0.self_attn.q_proj"
FORMATS = (torch.float32, torch.float16, torch.bfloat16)


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def refused(folder: Path) -> str:
    with pytest.raises(BankError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def changed(tmp_path: Path, **replaced: Tensor | None) -> str:
    """What is said of a file in which factors A or B of the first layer are others."""
    named = tensors([0])
    for factor, value in replaced.items():
        if value is None:
            del named[Q + factor]
        else:
            named[Q + factor] = value
    return refused(write(tmp_path / "x", named, settings(1)))


def test_a_layer_has_their_name_and_ours():
    name = "model.layers.31.mlp.gate_proj.cl_lora_pool.task_7_lora.lora_B"
    ours = (7, "model.language_model.layers.31.mlp.gate_proj", "B")
    assert parse_paper_name(name) == ours
    assert paper_name(ours[1], ours[0], ours[2]) == name
    for other in (f"module.{name}", name + ".weight", name.replace("task_7", "task_x"), "alpha"):
        assert parse_paper_name(other) is None


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_keeps_every_bit_on_its_way_through_a_banks_format(
    tmp_path: Path, dtype: torch.dtype, zipped: bool
):
    named = tensors([3], dtype=dtype)
    named[Q.replace("task_0", "task_3") + "A"][0, :2] = torch.tensor([-0.0, 1e-7], dtype=dtype)
    folder = write(tmp_path / "x", named, settings(4))
    torch.save(named, folder / "cl_lora.bin", _use_new_zipfile_serialization=zipped)
    blob = read_folder(folder).blob(3)
    (folder / "cl_lora.bin").write_bytes(checkpoint_bytes(read_factors(blob, "x"), 3))
    assert same(read(folder), named)


def test_the_blob_is_an_adapter_with_the_scale_of_the_settings(tmp_path: Path):
    named = tensors([0], dtype=torch.float32)
    adapter = from_bytes(
        read_folder(write(tmp_path / "x", named, settings(1, alpha=3))).blob(0), "x"
    )
    assert (adapter.scale, adapter.rank, len(adapter.pairs)) == (1.5, RANK, 2)
    np.testing.assert_array_equal(adapter.pairs[OUR_Q].a, named[Q + "A"].numpy())
    np.testing.assert_array_equal(adapter.pairs[OUR_Q].b, named[Q + "B"].numpy())


def test_equal_folders_give_equal_bytes(tmp_path: Path):
    blobs = [read_folder(write(tmp_path / n, tensors([0]), settings(1))).blob(0) for n in "xy"]
    assert blobs[0] == blobs[1]


def test_regularizer_weights_that_were_trained_are_dropped_and_named(tmp_path: Path):
    """Without --alpha and --beta the authors' code learns them, and saves them, too."""
    named = {**tensors([0]), "alpha": torch.tensor(-4.6), "beta": torch.tensor(-4.6)}
    folder = read_folder(write(tmp_path / "x", named, settings(1, alpha=2)))
    assert folder.dropped == ("alpha", "beta")
    assert same(read_back(folder.blob(0), 0, tmp_path), tensors([0]))


def read_back(blob: bytes, number: int, tmp_path: Path) -> dict[str, Tensor]:
    file = tmp_path / "back" / "cl_lora.bin"
    file.parent.mkdir()
    file.write_bytes(checkpoint_bytes(read_factors(blob, "x"), number))
    return read(file.parent)


def test_views_of_a_larger_tensor_are_taken_as_what_they_show(tmp_path: Path):
    named = tensors([0])
    whole = torch.randn(6, 2 * RANK).to(torch.bfloat16)
    named[Q + "A"] = whole[:, :RANK].T
    blob = read_folder(write(tmp_path / "x", named, settings(1))).blob(0)
    assert torch.equal(read_back(blob, 0, tmp_path)[Q + "A"], whole[:, :RANK].T)


def test_a_zip_archive_that_somebody_compressed_reads_the_same(tmp_path: Path):
    folder = write(tmp_path / "x", tensors([0]), settings(1))
    plain = read_folder(folder)
    with zipfile.ZipFile(folder / "cl_lora.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    packed = write(tmp_path / "y", {}, settings(1))
    with zipfile.ZipFile(packed / "cl_lora.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert first_difference(read_folder(packed).tasks[0], plain.tasks[0]) is None


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "in the dictionary", "as a name"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, zipped: bool, place: str):
    proof = tmp_path / "it-ran"
    bomb = Call(os.mkdir, str(proof))
    named: Any = {
        "alone": bomb,
        "in the dictionary": {**tensors([0]), "alpha": bomb},
        "as a name": {**tensors([0]), bomb: torch.zeros(1)},
    }[place]
    folder = write(tmp_path / "x", {}, settings(1))
    torch.save(named, folder / "cl_lora.bin", _use_new_zipfile_serialization=zipped)
    assert "found a pickle with more than tensors, which might run code" in refused(folder)
    assert not proof.exists()
    torch.load(folder / "cl_lora.bin", weights_only=False)
    assert proof.exists(), "the file would have shown that it ran"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "argument"), [(os.mkdir, "{}"), (eval, "__import__('os').mkdir('{}')")]
)
def test_a_bare_pickle_with_code_is_refused_and_does_not_run(
    tmp_path: Path, protocol: int, function: Callable[..., Any], argument: str
):
    proof = tmp_path / "it-ran"
    call = Call(function, argument.format(proof))
    folder = write(tmp_path / "x", {}, settings(1))
    (folder / "cl_lora.bin").write_bytes(pickle.dumps(call, protocol))
    assert "found a pickle with more than tensors, which might run code" in refused(folder)
    assert not proof.exists()
    pickle.loads((folder / "cl_lora.bin").read_bytes())
    assert proof.exists(), "the file would have shown that it ran"


def test_a_file_that_is_cut_off_anywhere_is_one_sentence(tmp_path: Path):
    folder = write(tmp_path / "x", tensors([0]), settings(1))
    file = folder / "cl_lora.bin"
    whole = file.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "found no complete file of torch.save" in refused(folder)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([torch.zeros(1)], "found a list, expected tensors by name"),
        ({"x": "text"}, "found a str under 'x'"),
        ({1: torch.zeros(1)}, "found a Tensor under '1'"),
        ({}, "found no adapter in it"),
        ({"alpha": torch.zeros(())}, "found no adapter in it"),
        ({"module." + Q + "A": torch.zeros(2, 6)}, "found the name 'module.model.layers.0."),
    ],
)
def test_a_file_of_other_things_is_one_sentence(tmp_path: Path, found: object, said: str):
    assert said in refused(write(tmp_path / "x", found, settings(1)))


def test_what_is_missing_is_named(tmp_path: Path):
    assert "found no cl_lora.bin" in refused(tmp_path / "nowhere")
    folder = write(tmp_path / "x", tensors([0]), settings(1))
    (folder / "config.json").unlink()
    assert "found no config.json" in refused(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "found no JSON"),
        ("[1]", "found no mslora_cfg"),
        ('{"model_type": "llava_mistral"}', "found no mslora_cfg"),
        ('{"mslora_cfg": {"lora_alpha": 2}}', "lora_rank: found nothing"),
        ('{"mslora_cfg": {"lora_rank": true, "lora_alpha": 2}}', "lora_rank: found True"),
        ('{"mslora_cfg": {"lora_rank": 0, "lora_alpha": 2}}', "lora_rank: found 0"),
        ('{"mslora_cfg": {"lora_rank": 2}}', "lora_alpha: found nothing"),
        ('{"mslora_cfg": {"lora_rank": 2, "lora_alpha": NaN}}', "lora_alpha: found nan"),
        ('{"mslora_cfg": {"lora_rank": 2, "lora_alpha": -1}}', "lora_alpha: found -1"),
    ],
)
def test_settings_without_a_rank_and_alpha_are_one_sentence(tmp_path: Path, text: str, said: str):
    folder = write(tmp_path / "x", tensors([0]), settings(1))
    (folder / "config.json").write_text(text)
    message = refused(folder)
    assert said in message and str(folder / "config.json") in message


@pytest.mark.parametrize(
    ("factor", "value", "said"),
    [
        ("A", None, "has a factor B and no factor A"),
        ("B", None, "has a factor A and no factor B"),
        ("A", torch.zeros(3, 6), "expected the rank 2"),
        ("B", torch.zeros(4, 3), "expected the rank 2"),
        ("A", torch.zeros(12), "the shape (12,), expected a matrix"),
        ("A", torch.zeros(0), "the shape (0,), expected a matrix"),
        ("B", torch.full((4, 2), torch.nan), "lora_B: found a value that is not finite"),
        ("B", torch.full((4, 2), -torch.inf), "lora_B: found a value that is not finite"),
        ("A", torch.zeros(2, 6, dtype=torch.float64), "the format torch.float64"),
        ("A", torch.zeros(2, 6, dtype=torch.int8), "the format torch.int8"),
        ("A", torch.zeros(2, 6).to_sparse(), "a sparse tensor"),
        ("A", torch.zeros(2, 6, device="meta"), "one without data"),
        ("A", torch.zeros(1, 1).expand(2, 6), "fewer numbers than its shape has"),
    ],
)
def test_a_factor_that_does_not_fit_is_named(
    tmp_path: Path, factor: str, value: Tensor | None, said: str
):
    message = changed(tmp_path, **{factor: value})
    assert said in message and "task_0" in message and OUR_Q in message


def test_adapters_differ_by_a_bit_of_one_number(tmp_path: Path):
    named = tensors([0])
    named[Q + "A"][0, 0] = 0.0
    one = read_folder(write(tmp_path / "x", named, settings(1))).tasks[0]
    named[Q + "A"][0, 0] = -0.0
    other = read_folder(write(tmp_path / "y", named, settings(1))).tasks[0]
    assert first_difference(one, one) is None
    assert first_difference(one, other) == f"{OUR_Q}.lora_A"


def test_what_has_no_name_in_their_format_is_refused():
    pair = Pair(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32))
    tower = Adapter({"model.vision_tower.layers.0.q_proj": pair}, 1.0)
    with pytest.raises(BankError, match=r"found an adapter on model\.vision_tower"):
        read_factors(to_bytes(tower), "x")
    prompts = Adapter({OUR_Q: pair}, 1.0, {"prompts": np.ones(2, np.float32)})
    with pytest.raises(BankError, match="found the array 'prompts'"):
        read_factors(to_bytes(prompts), "x")


@pytest.mark.parametrize(
    ("scale", "rank", "alpha"), [(1.0, 64, 64), (2.0, 3, 6), (0.5, 3, 1.5), (2.1 / 3, 3, 2.1)]
)
def test_a_scale_is_an_alpha_over_the_rank(scale: float, rank: int, alpha: float):
    found = alpha_for(scale, rank, "x")
    assert found == pytest.approx(alpha, rel=1e-15) and found / rank == scale
    assert type(found) is type(alpha)
    document = {"mslora_cfg": {"lora_rank": rank, "lora_alpha": found}}
    assert settings_of(json.loads(json.dumps(document)), "x").scale == scale


@pytest.mark.parametrize(
    ("scale", "rank"), [(0.7, 3), (-1.0, 2), (0.0, 2), (float("inf"), 2), (1e300, 2)]
)
def test_a_scale_without_an_alpha_is_one_sentence(scale: float, rank: int):
    with pytest.raises(
        BankError, match=r"x: found the scale .* the paper's format has no other scale"
    ):
        alpha_for(scale, rank, "x")


def test_the_papers_tasks_are_called_by_their_number_or_their_folders():
    eight = task_labels(TaskOptions(), [None] * 8)
    assert [label.name for label in eight] == [
        "pathvqa", "slake-vqarad", "derm", "pcam", "cxp", "ham", "nmi", "iu-x-ray"
    ]  # fmt: skip
    assert [label.task for label in eight] == [
        "PathVQA", "Slake-VQARad", "Fitzpatrick", "PCam", "CXP", "HAM", "WSI-DX", "IU-X-Ray"
    ]  # fmt: skip
    assert "".join(label.modality.value[0] for label in eight) == "prdprdpr"
    six = task_labels(TaskOptions(), [None] * 6)
    assert list(six) == [label for label in eight if label.name not in ("derm", "ham")]
    assert six[2] == PAPER_TASKS["PCAM"] == TaskLabel("pcam", "PCam", Modality.PATHOLOGY)
    assert name_in_folder("pathvqa_slake-vqarad_derm", 2) == "derm"
    assert name_in_folder("pathvqa_slake-vqarad_derm", 3) is None
    assert name_in_folder("task_0", 0) is None
    assert [label.name for label in task_labels(TaskOptions(), ["nmi", "derm"])] == ["nmi", "derm"]


def test_tasks_are_called_what_the_user_says():
    said = task_labels(TaskOptions(tasks=["Eyes:fundus", "lungs:ct"]), [None, None])
    assert [(one.task, one.name, one.modality) for one in said] == [
        ("Eyes", "eyes", Modality.FUNDUS),
        ("lungs", "lungs", Modality.CT),
    ]
    assert (
        task_labels(TaskOptions(names=["Eyes", "lungs"], modalities=["fundus", "ct"]), [None] * 2)
        == said
    )
    numbered = task_labels(TaskOptions(modalities=["ct", "mr"]), [None, None])
    assert [one.name for one in numbered] == ["task_0", "task_1"]
    assert task_labels(TaskOptions(names=["PCAM"]), [None]) == (PAPER_TASKS["PCAM"],)
    assert task_labels(TaskOptions(modalities=["ct"]), ["PCAM"]) == (
        TaskLabel("pcam", "PCam", Modality.CT),
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (TaskOptions(), "--task: found none for 2 tasks"),
        (TaskOptions(tasks=["a:ct"]), "--task: found 1, expected 2"),
        (TaskOptions(tasks=["a:ct", "b"]), "found 'b', expected NAME:MODALITY"),
        (TaskOptions(tasks=["a:ct", "b:xry"]), "found 'xry', expected one of pathology"),
        (TaskOptions(tasks=["a:ct", "a b:ct"]), "found the name 'a b'"),
        (TaskOptions(tasks=["a:ct", "A:ct"]), "found the name 'a' twice"),
        (TaskOptions(tasks=["a:ct", "b:ct"], names=["a"]), "expected only one of these"),
        (TaskOptions(names=["a", "b"]), "found 'a' without a modality"),
        (TaskOptions(names=["a"], modalities=["ct", "ct"]), "--name: found 1, expected 2"),
        (TaskOptions(modalities=["ct"]), "--modality: found 1, expected 2"),
    ],
)
def test_what_is_said_of_the_tasks_must_fit(said: TaskOptions, message: str):
    with pytest.raises(BankError, match=message):
        task_labels(said, [None, None])
