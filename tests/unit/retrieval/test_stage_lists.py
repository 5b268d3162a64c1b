"""The lists of the stages: which questions are asked, and how many pairs each brings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, PlanError
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan.reference_list import read_list
from common.plan.simulation import How
from common.plan_fields import Modality
from retrieval.database import Database
from retrieval.pairs import silent
from retrieval.questions import (
    KEYWORDS,
    ReferenceQuestion,
    all_questions,
    general_questions,
    inputs_digest,
    stage_questions,
)
from retrieval.search import Cut, QuestionVectors, Searcher
from retrieval.stage_lists import (
    ListOrigin,
    ListSettings,
    QuestionLayer,
    StageList,
    stage_lists,
)
from retrieval.write_list import (
    reference_list,
    write_list,
    write_reference_folder,
)
from tests.unit.retrieval.some_pairs import CAPTIONS, png, word_database
from tests.unit.small_round import document

GENERAL = [
    ReferenceQuestion("a pathology photo of necrosis in the tissue", Modality.PATHOLOGY),
    ReferenceQuestion("a pathology photo of glandular epithelium in the colon", Modality.PATHOLOGY),
    ReferenceQuestion("a dermatology photo of melanoma in the skin", Modality.DERMATOLOGY),
    ReferenceQuestion("an X-ray photo of cardiomegaly in the chest", Modality.XRAY),
    ReferenceQuestion("a CT photo of a kidney stone in the abdomen", Modality.CT),
    ReferenceQuestion("an MRI photo of glioma in the brain", Modality.MR),
]
#: Several pairs a caption, so that the counts of a layer can be told apart.
MANY = [f"{caption} case {number}" for number in range(5) for caption in CAPTIONS]


def plan(seed: int = 3, classes: tuple[str, ...] | None = ("tubular adenoma", "necrosis")) -> Plan:
    """Pathology, then skin, then the skin again."""
    one: dict[str, Any] = document()["stages"][0]
    stages = [
        {**one, "name": name, "modality": modality, "classes": own}
        for name, modality, own in (
            ("tissue", "pathology", classes),
            ("mole", "dermatology", ("melanoma", "nevus")),
            ("rash", "dermatology", ("psoriasis", "eczema")),
        )
    ]
    return parse_plan({**document(), "seed": seed, "stages": stages}, "p")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    return word_database(tmp_path_factory.mktemp("words"), MANY)


def vectors(database: Database) -> QuestionVectors:
    embedder = database.text_embedder()
    assert embedder is not None
    return QuestionVectors(embedder)


def lists(database: Database, settings: ListSettings, seed: int = 3) -> list[StageList]:
    origin = ListOrigin(plan(seed), GENERAL, database, settings)
    return stage_lists(origin, vectors(database), silent)


def test_a_stage_asks_for_earlier_labels_and_seen_domains():
    first, second, third = (stage_questions(plan(), stage, GENERAL) for stage in range(3))
    assert first.task == ()
    assert first.domain == tuple(GENERAL[:2])
    assert first.other == tuple(GENERAL[2:])
    assert [question.text for question in second.task] == [
        "a pathology photo of tubular adenoma",
        "a pathology photo of necrosis",
    ]
    assert second.domain == third.domain == tuple(GENERAL[:3])
    assert [question.text for question in third.task][2:] == [
        "a dermatology photo of melanoma",
        "a dermatology photo of nevus",
    ]


def test_a_stage_without_classes_is_refused():
    with pytest.raises(PlanError, match="stage 1 'tissue', classes: found none, expected the task"):
        stage_questions(plan(classes=None), 1, GENERAL)


def test_the_projects_own_questions_name_every_modality():
    own = general_questions()
    assert {question.modality for question in own} == set(Modality) == set(KEYWORDS)
    assert len({question.text for question in own}) == len(own) > 250
    assert "a pathology photo of serrated lesion in the colon" in [one.text for one in own]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", r"questions\.yaml: not YAML: line 1, column 2: "),
        ("ct: " + "[" * 99, r"questions\.yaml: found values nested deeper than 64 levels, exp"),
        ("ct: " + "x" * 2**20, r"questions\.yaml: found more than 1,048,576 bytes, expected at"),
        (
            f"ct: [{'1,' * 40_000}]",
            r"questions\.yaml: found more than 30,000 values, an alias .* it stands for, exp",
        ),
        ("[]", "the questions: found list, expected a mapping"),
        ("nose: {a: [b]}", "found the modality 'nose', expected one of pathology"),
        ("ct: [a]", "ct: found list, expected a mapping"),
        ("ct: {a: b}", "ct, a: found no list, expected findings"),
    ],
)
def test_bad_general_questions_are_refused(tmp_path: Path, text: str, sentence: str):
    file = tmp_path / "questions.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=sentence):
        general_questions(file)


def test_each_layer_has_the_best_pairs_of_its_questions(database: Database):
    """The layers, written another way: question by question, with the searcher's own ranking."""
    settings = ListSettings(k=12, task=3, domain=2, other=4)
    searcher = Searcher(database, vectors(database), Cut(12, 1))
    found = lists(database, settings)
    for stage in range(3):
        asked = stage_questions(plan(), stage, GENERAL)
        assert found[stage].questions[QuestionLayer.OTHER] == min(
            len(asked.domain), len(asked.other)
        )
        task = {n for q in asked.task for n in searcher.hierarchical([q.text])[0][:3]}
        domain = {n for q in asked.domain for n in searcher.hierarchical([q.text])[0][:2]} - task
        of_layer = {
            layer: {number for number, own in found[stage].pairs.items() if own is layer}
            for layer in QuestionLayer
        }
        assert of_layer[QuestionLayer.TASK] == task
        assert of_layer[QuestionLayer.DOMAIN] == domain
        possible = {n for q in asked.other for n in searcher.hierarchical([q.text])[0][:4]}
        assert of_layer[QuestionLayer.OTHER] <= possible - task - domain


def test_equal_plans_give_equal_lists_and_another_seed_draws_others(database: Database):
    settings = ListSettings(k=12, task=3, domain=2, other=1)
    one, again = lists(database, settings), lists(database, settings)
    assert one == again
    others = [lists(database, settings, seed) for seed in range(5)]
    assert len({tuple(stage.pairs) for drawn in others for stage in drawn[:1]}) > 1


@pytest.mark.parametrize("how", [How.DENSE, How.BM25])
def test_the_flat_variants_ask_all_questions_alike(database: Database, how: How):
    settings = ListSettings(how=how, k=5, task=6, domain=3, other=3)
    found = lists(database, settings)
    third = found[2]
    # (4 * 6 + 3 * 3 + 3 * 3) places for 10 questions are 4 each.
    share = round((4 * 6 + 3 * 3 + 3 * 3) / 10)
    searcher = Searcher(database, vectors(database), Cut(max(5, share), 1))
    way = searcher.dense if how is How.DENSE else searcher.bm25
    asked = stage_questions(plan(), 2, GENERAL)
    texts = [question.text for question in (*asked.task, *asked.domain, *asked.other)]
    expected = {number for ranked in way(texts) for number in ranked[:share]}
    assert set(third.pairs) == expected


def test_the_uniform_variant_is_the_same_for_every_stage(database: Database):
    keywords = sum(map(len, KEYWORDS.values()))
    first, *rest = lists(database, ListSettings(how=How.UNIFORM, size=2 * keywords))
    assert all(stage.pairs == first.pairs for stage in rest)
    assert 2 <= len(first.pairs) <= 2 * keywords
    assert set(first.pairs.values()) == {QuestionLayer.OTHER}


def test_the_list_and_the_sites_folder(database: Database, tmp_path: Path):
    settings = ListSettings(k=4, task=2, domain=2, other=1)
    origin = ListOrigin(plan(), GENERAL, database, settings)
    stages = lists(database, settings)
    listed = reference_list(origin, stages, silent)
    write_list(tmp_path / "list.json", listed)
    write_reference_folder(tmp_path / "folder", listed, database)
    assert (tmp_path / "list.json").read_bytes() == (tmp_path / "folder/list.json").read_bytes()
    found = read_list(tmp_path / "folder/list.json", listed.digest)
    assert found == listed
    assert found.inputs == inputs_digest(plan(), GENERAL) != inputs_digest(plan(4), GENERAL)
    assert "size" not in found.settings
    for number, stage in enumerate(stages):
        ids = [
            f"p{pair}"
            for layer in QuestionLayer
            for pair, own in stage.pairs.items()
            if own is layer
        ]
        assert [pair.id for pair in found.pairs_of_stage(number)] == ids
        for pair in found.pairs_of_stage(number):
            blob = (tmp_path / "folder/images" / pair.image).read_bytes()
            assert blob == png(int(pair.id[1:]))
            assert pair.caption == MANY[int(pair.id[1:])]


def test_all_questions_are_those_of_every_stage():
    texts = all_questions(plan(), GENERAL)
    for stage in range(3):
        asked = stage_questions(plan(), stage, GENERAL)
        assert {q.text for q in (*asked.task, *asked.domain, *asked.other)} <= set(texts)
    assert len(texts) == len(set(texts))
    assert np.all([isinstance(text, str) for text in texts])
