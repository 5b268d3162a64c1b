"""The PEFT files of an adapter and of a sum, number by number; PEFT itself is in the flow tests."""

import json
from typing import Any

import numpy as np
import pytest

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.bank.peft import PART_OF_A_SUM, PeftBase, release_blobs, sum_blobs
from common.errors import BankError


def layer(rank: int, first: float, inputs: int = 3, outputs: int = 2) -> Pair:
    """Factors whose numbers count up from `first`."""
    a = first + np.arange(rank * inputs, dtype=np.float32).reshape(rank, inputs)
    b = first + np.arange(outputs * rank, dtype=np.float32).reshape(outputs, rank)
    return Pair(a, b)


TINY = PeftBase("tiny")


def config_of(blobs: dict[str, bytes]) -> dict[str, Any]:
    assert set(blobs) == {"adapter_model.safetensors", "adapter_config.json"}
    return json.loads(blobs["adapter_config.json"])


def test_a_release_has_the_blob_as_it_came_and_alpha_is_scale_times_rank():
    adapter = Adapter({"z": layer(2, 1), "q": layer(2, 5)}, scale=1.5)
    blobs = release_blobs(b"as it came", adapter, "tiny")
    assert blobs["adapter_model.safetensors"] == b"as it came"
    assert config_of(blobs) == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": "tiny",
        "inference_mode": True,
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["q", "z"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    # PEFT's own type for a whole alpha is int: equal text, not only equal numbers.
    assert b'"lora_alpha": 3,' in blobs["adapter_config.json"]


def test_a_release_that_is_a_part_says_so_in_a_field_that_peft_warns_of():
    adapter = Adapter({"q": layer(2, 1)}, scale=1.5)
    alone = config_of(release_blobs(b"", adapter, "tiny"))
    part = config_of(release_blobs(b"", adapter, "tiny", ["000-ct", "001-mr"]))
    assert part == {**alone, PART_OF_A_SUM: ["000-ct", "001-mr"]}


def test_an_alpha_that_is_not_whole_stays_a_fraction():
    blobs = release_blobs(b"", Adapter({"q": layer(3, 1)}, scale=0.5), "tiny")
    assert config_of(blobs)["lora_alpha"] == 1.5


def test_an_adapter_without_layers_has_rank_0():
    config = config_of(release_blobs(b"", Adapter({}, scale=2.0), "tiny"))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (0, 0, [])


def test_a_sum_stacks_the_factors_and_scales_b():
    one, other = layer(1, 1), layer(2, 7)
    blobs = sum_blobs(
        [Adapter({"q": one}, scale=2.0), Adapter({"q": other}, scale=0.5)], TINY, "here"
    )
    found = from_bytes(blobs["adapter_model.safetensors"], "sum")
    assert found.scale == 1.0 and list(found.pairs) == ["q"]
    pair = found.pairs["q"]
    # s1 B1 A1 + s2 B2 A2, all by hand and exact in float32.
    np.testing.assert_array_equal(pair.a, [[1, 2, 3], [7, 8, 9], [10, 11, 12]])
    np.testing.assert_array_equal(pair.b, [[2, 3.5, 4], [4, 4.5, 5]])
    expected = 2.0 * one.b @ one.a + 0.5 * other.b @ other.a
    np.testing.assert_array_equal(pair.b @ pair.a, expected)
    assert config_of(blobs)["r"] == config_of(blobs)["lora_alpha"] == 3


def test_a_layer_of_a_smaller_rank_has_its_own_rank_and_alpha():
    blobs = sum_blobs(
        [
            Adapter({"m.q": layer(1, 1), "m.v": layer(1, 2)}, scale=2.0),
            Adapter({"m.q": layer(2, 3), "m.o": layer(2, 4)}, scale=3.0),
        ],
        PeftBase("tiny", "AutoModel"),
        "here",
    )
    config = config_of(blobs)
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == {"^m.v": 1, "^m.o": 2}
    assert config["alpha_pattern"] == {"^m.v": 1, "^m.o": 2}
    assert config["target_modules"] == ["m.o", "m.q", "m.v"]
    assert config["base_model_name_or_path"] == "tiny"
    assert config["auto_mapping"] == {
        "base_model_class": "AutoModel", "parent_library": "transformers",
    }  # fmt: skip


def test_a_sum_is_float32_also_of_releases_in_16_bits():
    half = Pair(np.ones((1, 3), np.float16), np.full((2, 1), 0.1, np.float16))
    blob = sum_blobs([Adapter({"q": half}, scale=0.3)], TINY, "here")["adapter_model.safetensors"]
    found = from_bytes(blob, "sum").pairs["q"]
    expected = half.b.astype(np.float32) * np.float32(0.3)
    np.testing.assert_array_equal(found.b, expected)
    assert blob == to_bytes(Adapter({"q": Pair(half.a.astype(np.float32), expected)}, 1.0))


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (
            [
                Adapter({"q": layer(1, 1)}, 1.0),
                Adapter({"q": layer(1, 1)}, 1.0, {"prompt": np.ones(2, np.float32)}),
            ],
            "here: holds arrays beside low-rank factors, which PEFT can't load",
        ),
        ([Adapter({}, 1.0)], "here: holds no low-rank factor, so there is nothing to export"),
        ([], "here: holds no low-rank factor, so there is nothing to export"),
        (
            [Adapter({"q": layer(1, 1)}, 1.0), Adapter({"q": layer(1, 1, inputs=4)}, 1.0)],
            "here: q: found layers of [(3, 2), (4, 2)] inputs and outputs, not one",
        ),
        (
            [Adapter({"q": layer(1, 1)}, 1.0), Adapter({"q": layer(1, 1, outputs=5)}, 1.0)],
            "here: q: found layers of [(3, 2), (3, 5)] inputs and outputs, not one",
        ),
    ],
)
def test_what_peft_could_not_load_is_one_sentence(adapters: list[Adapter], said: str):
    with pytest.raises(BankError) as refused:
        sum_blobs(adapters, TINY, "here")
    assert str(refused.value) == said
