"""The model card of an exported stage says what its release says, and no more."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.bank.bank import Bank
from serving.export.model_card import CardFacts, interval, model_card
from tests.unit.small_bank import bank_of

FACTS = CardFacts(
    base_model="/models/tiny", merged=False, prompting=True, questions=40, version="1.2.3"
)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_of(tmp_path / "bank", "discs", "spots", rank=2)


def card(bank: Bank, facts: CardFacts = FACTS) -> str:
    return model_card(bank, bank.releases[1], facts).decode()


def test_it_has_counts_scores_with_intervals_and_where_it_is_from(bank: Bank):
    text, release = card(bank), bank.releases[1]
    assert "No medical device" in text
    assert "84 training examples" in text and "| spots | north | 12 |" in text
    low, high = interval(0.75, 40)
    assert f"| accuracy | 0.750 | {low:.3f} to {high:.3f} |" in text
    assert "On 40 test questions" in text
    assert "rank 4, the exact sum of the adapters of these stages: discs, spots" in text
    for word in (release.hash, bank.head, release.signer, release.plan, "fedmslora 1.2.3"):
        assert word in text
    assert "no guarantee of differential privacy" in text


def test_its_metadata_is_the_hubs(bank: Bank):
    _, metadata, _ = card(bank).split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "peft",
        "base_model": "/models/tiny",
        "pipeline_tag": "image-text-to-text",
        "tags": ["fedmslora", "federated-learning", "ct", "lora"],
    }


def test_without_a_number_of_questions_there_is_no_interval(bank: Bank):
    text = card(bank, replace(FACTS, questions=None))
    assert "| accuracy | 0.750 |  |" in text and "does not say how many" in text


@pytest.mark.parametrize("merged", [True, False])
def test_it_shows_how_to_load_and_prompt_the_kind_of_model_that_it_is_of(bank: Bank, merged: bool):
    ours, own = (
        card(bank, replace(FACTS, merged=merged, own_template=own)) for own in (False, True)
    )
    assert "`<s>[INST] <image>\\n{question} [/INST]`" in ours
    assert ours.count("LlavaForConditionalGeneration") == 2
    assert "chat template is the base model's own" in own
    assert "[INST]" not in own and "Llava" not in own
    assert "from transformers import AutoModelForImageTextToText, AutoProcessor\n" in own
    for text in (ours, own):
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        compile(code, "card", "exec")


def test_without_a_processor_it_does_not_say_how_to_prompt(bank: Bank):
    text = card(bank, replace(FACTS, prompting=False))
    assert "has no processor" in text and "```python" not in text


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 7), (7, 7), (150, 200)])
def test_the_interval_holds_the_shares_whose_score_test_does_not_reject(right: int, count: int):
    # Wilson's interval is where |p - share| <= z sqrt(p (1 - p) / n), by its definition.
    share, z = right / count, 1.959963984540054
    grid = [step / 100_000 for step in range(100_001)]
    held = [p for p in grid if abs(p - share) <= z * (p * (1 - p) / count) ** 0.5 + 1e-12]
    low, high = interval(share, count)
    assert (low, high) == pytest.approx((min(held), max(held)), abs=2e-5)
    assert low - 1e-12 <= share <= high + 1e-12
