"""Dual-modality adaptation on a tiny CLIP: two sites, two stages, and each part by itself."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import json
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPModel

from client.backbones.registry import load_backbone
from client.data.task import Example, read_task
from client.methods import dual_modality as of
from client.methods.clip_recipe import clip_of
from client.methods.interface import Assignment
from client.model.base_digest import base_digest
from client.orders.ask import Inquiry, ask
from client.training.optimizer import LocalOptimizer
from common.adapter import Adapter, StoredAdapter
from common.bank.bank import Bank, export
from common.bank.release import Release
from common.clip_shape import read_clip_shape
from common.errors import BankError, ModelError, SiteFailed
from common.metrics import CLASS_METRICS
from common.partial_adapter import AdapterPart, part_of, three_factors
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from cost.sizes import blob_sizes, index_bytes, release_bytes
from cost.traffic import order_traffic
from report.json_file import read_report
from server.run.folder import RunFolder
from server.run.journal import Journal
from serving.open_bank import OpenBank
from simulation.hospitals import BASE_MODELS
from simulation.run import simulate
from simulation.task_folder.write_task import Question, write_task
from tests.flow.forked import exit_code_of
from tests.flow.small_run import bank_bytes, killed_after, options
from tests.flow.tiny_clip import write_clip

CLASSES = (("red", "green"), ("blue", "skin"))
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (20, 40, 220),
    "skin": (230, 180, 150),
}
#: Site b has no green picture to train on.
LACKS = {("b", "green")}
SETTINGS: dict[str, Any] = {"name": "dual_modality", "rank": 2, "alpha": 2.0}


def questions(names: tuple[str, ...], each: int, seed: int) -> list[Question]:
    rng = np.random.default_rng(seed)
    found: list[Question] = []
    for group, name in enumerate(names * each):
        pixels = np.clip(rng.normal(COLOURS[name], 25, (32, 32, 3)), 0, 255).astype(np.uint8)
        found.append(Question(pixels, "what is it ?", name.capitalize(), True, group + 100 * seed))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and two sites' tasks."""
    root = tmp_path_factory.mktemp("clip")
    write_clip(root / "clip")
    for number, site in enumerate("ab"):
        for stage, names in enumerate(CLASSES):
            own = tuple(name for name in names if (site, name) not in LACKS)
            train = questions(own, 4 + 2 * number, 1 + number)
            write_task(
                root / "data" / site / f"task{stage}", train, questions(names, 3, 5 + number)
            )
    return root


def document(folder: Path, **method: Any) -> dict[str, Any]:
    stage = {
        "modality": "dermatology", "sites": ["a", "b"], "rounds": 2, "local_epochs": 2,
        "learning_rate": 0.02, "batch_size": 4, "metric": "balanced_accuracy",
    }  # fmt: skip
    return {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny", "sha256": base_digest(folder / "clip")},
        "method": {**SETTINGS, **method},
        "aggregation": "svd",
        "wire": "fp32",
        "training": {"warmup": 0.0, "micro_batch": 3},
        "stages": [
            {**stage, "name": f"s{number}", "task": f"task{number}", "classes": list(names)}
            for number, names in enumerate(CLASSES)
        ],
    }


def plan_of(folder: Path, **method: Any) -> Plan:
    return parse_plan(document(folder, **method), "p")


def run_of(folder: Path, out: Path) -> Path:
    plan = out.parent / "plan.yaml"
    plan.write_text(yaml.safe_dump(document(folder)))
    simulate(plan, options(out, data=folder / "data", base_model=folder / "clip"))
    return out


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # The sites' updates stay on the disk, to be looked at.
        patch.setattr(Journal, "prune", lambda journal, stage: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        return run_of(folder, tmp_path_factory.mktemp("run") / "run")


def test_a_release_holds_the_lora_and_its_classes_prompts(finished: Path):
    bank = Bank.open(finished / "bank")
    for stage in range(2):
        adapter = bank.adapter(stage)
        assert set(adapter.extra_names) == {"prompts", "prompts.weight"}
        assert adapter.extra("prompts").shape == (2, 4, 16)
        assert adapter.extra("prompts.weight").tolist() == [1.0, 1.0]
        assert {name.rsplit(".", 1)[1] for name in adapter.modules} == {"k_proj", "v_proj"}
        assert all(name.startswith("vision_model.") for name in adapter.modules)
        assert bank.releases[stage].sums == (stage,)


def test_a_class_that_one_site_has_is_that_sites_own_and_counts_travel_with_the_update(
    finished: Path, folder: Path
):
    plan = parse_plan(yaml.safe_load((finished.parent / "plan.yaml").read_text()), "p")
    journal = Journal(RunFolder(finished), plan)
    last = {
        update.site: StoredAdapter.in_file(journal.blobs.path(update.adapter), update.site)
        for number, update in journal.updates(0)
        if number == 2
    }
    journal.close()
    weights = {site: adapter.extra("prompts.weight").tolist() for site, adapter in last.items()}
    assert weights == {"a": [4.0, 4.0], "b": [6.0, 0.0]}
    released = Bank.open(finished / "bank").adapter(0).extra("prompts")
    rows = {site: adapter.extra("prompts") for site, adapter in last.items()}
    assert released[1].tobytes() == rows["a"][1].tobytes()
    assert not np.array_equal(rows["a"][1], rows["b"][1])
    mean = (4 * rows["a"][0].astype(float) + 6 * rows["b"][0].astype(float)) / 10
    np.testing.assert_allclose(released[0], mean, rtol=1e-6)


def test_the_report_has_each_measure_beside_zero_shot_and_majority_and_by_site(finished: Path):
    (report,) = read_report(finished)
    found = report.classes
    assert found is not None
    for name in CLASS_METRICS:
        for stage, task in ((0, 0), (1, 0), (1, 1)):
            assert found.scores[name][stage][task] is not None
            assert found.zero_shot[name][stage][task] is not None
        assert found.scores[name][0][1] is None
    assert found.majority["auc"] == (0.5, 0.5)
    assert found.majority["balanced_accuracy"] == (0.5, 0.5)
    sites = [found.auc_by_site[site][1][0] for site in "ab"]
    # Both sites have six test questions.
    assert found.scores["auc"][1][0] == pytest.approx(np.mean([one for one in sites if one]))
    assert report.zero_shot[0] == found.zero_shot["balanced_accuracy"][0][0]
    page = (finished / "report.html").read_text()
    assert "not the AUC of all sites' questions together" in page.replace("&#39;", "'")


def test_its_bytes_and_its_bank_are_those_of_its_plans_cost(finished: Path, folder: Path):
    plan, shape = plan_of(folder), read_clip_shape(folder / "clip")
    with closing(Journal(RunFolder(finished), plan)) as journal:
        traffic = journal.traffic()
    sizes = blob_sizes(plan, shape)
    said = list(order_traffic(plan, sizes))
    assert sum(one.down for one in said) == sum(one.bytes_down for one in traffic)
    # The digits of losses and scores.
    up = sum(one.bytes_up for one in traffic)
    assert sum(one.up for one in said) == pytest.approx(up, abs=250 * len(said))
    files = [file for file in (finished / "bank").rglob("*") if file.is_file()]
    bank = index_bytes(plan, 2) + sum(release_bytes(plan, shape, sizes))
    assert sum(file.stat().st_size for file in files) == pytest.approx(bank, abs=900)


def test_an_export_is_loaded_by_plain_transformers_and_peft_with_its_prompts_beside(
    finished: Path, folder: Path, tmp_path: Path
):
    bank = Bank.open(finished / "bank")
    assert [release.classes for release in bank.releases] == list(CLASSES)
    out = export(bank, 1, tmp_path / "out")
    network = PeftModel.from_pretrained(CLIPModel.from_pretrained(folder / "clip"), out).eval()
    given = assignment(folder, plan_of(folder))
    model, asked = clip_of(given), [one.image for one in examples(folder, 1)]
    pixels = model.pixel_values(asked)
    model.adapted.freeze_adapters([bank.adapter(1)], Composition.FOLD)
    with torch.no_grad():
        found = network.get_image_features(pixel_values=pixels).pooler_output
        expected = model.image_embeddings(pixels)
    torch.testing.assert_close(functional.normalize(found, dim=1), expected, atol=1e-5, rtol=1e-4)
    prompts = load_file(out / "extras.safetensors")["extras.prompts"]
    assert prompts.numpy().tobytes() == bank.adapter(1).extra("prompts").tobytes()
    told = json.loads((out / "provenance.json").read_text())
    assert told["classes"] == list(CLASSES[1]) and told["method"]["decide"] == "own_max"


@pytest.mark.parametrize("told", [None, "s0"])
def test_a_bank_alone_answers_as_its_method_does_at_a_site(
    finished: Path, folder: Path, told: str | None
):
    bank = Bank.open(finished / "bank")
    assert bank.releases[1].method == plan_of(folder).method.model_dump(mode="json")
    (question, *_) = examples(folder, 0)
    inquiry = Inquiry(image=question.image, question="", stage=told, max_new_tokens=1)
    found = ask(bank, folder / "clip", inquiry)
    scope = {} if told is None else {"scope": "own"}
    asked = document(folder)
    plan = parse_plan({**asked, "stages": [{**one, **scope} for one in asked["stages"]]}, "p")
    released = {stage: bank.adapter(stage) for stage in range(2)}
    given = assignment(folder, plan, 0 if told else 1, bank=released, active=(0, 1))
    (expected,) = of.answer(given, [question])
    assert found.prediction == expected and found.by_method
    assert found.prediction.text in (found.release.classes or ())
    assert len(expected.class_scores or {}) == (2 if told else 4)
    opened = OpenBank(bank, folder / "clip")
    answered = opened if told is None else opened.model(told)
    assert answered.ask(question.image, "what is it ?").text == expected.text


def test_a_bank_of_which_releases_name_several_methods_or_none_is_refused_in_a_sentence(
    finished: Path, folder: Path
):
    bank = Bank.open(finished / "bank")
    first, second = bank.releases
    image = examples(folder, 0)[0].image
    inquiry = Inquiry(image=image, question="what ?", stage="s0", max_new_tokens=1)

    def refusal(*releases: Release) -> str:
        with pytest.raises(BankError) as caught:
            ask(replace(bank, releases=releases), folder / "clip", inquiry)
        return str(caught.value)

    nameless = [replace(one, method=None) for one in bank.releases]
    assert "release 000-s0: found arrays beside its LoRA (prompts)" in refusal(*nameless)
    other = replace(second, method={**(second.method or {}), "rank": 3})
    assert "release 000-s0, method: found other settings than those of 001-s1" in refusal(
        first, other
    )
    foreign = [replace(one, method={"name": "magic"}) for one in bank.releases]
    assert "method: found 'magic' with settings that this version does not know" in refusal(
        *foreign
    )


def test_cut_off_and_resumed_it_ends_with_the_same_bytes(
    finished: Path, folder: Path, tmp_path: Path
):
    plan = tmp_path / "plan.yaml"
    plan.write_text((finished.parent / "plan.yaml").read_text())
    where = {"data": folder / "data", "base_model": folder / "clip"}
    killed = partial(killed_after, 7, plan, tmp_path / "run", **where)
    assert exit_code_of(killed) == -signal.SIGKILL
    assert len(Bank.open(tmp_path / "run" / "bank").releases) < 2
    simulate(plan, options(tmp_path / "run", **where))
    first, second = (bank_bytes(run) for run in (finished, tmp_path / "run"))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert len(weights) == 2
    assert {name: first[name] for name in weights} == {name: second[name] for name in weights}


def assignment(folder: Path, plan: Plan, stage: int = 0, **changes: Any) -> Assignment:
    backbone = load_backbone(folder / "clip", Precision.FP32, torch.device("cpu"))
    fields: dict[str, Any] = {
        "plan": plan, "stage": stage, "round": 2, "site": "b", "backbone": backbone, "bank": {},
        "active": (), "candidate": None, "checkpoint": None,
    }  # fmt: skip
    return Assignment(**{**fields, **changes})


def examples(folder: Path, stage: int, site: str = "a") -> tuple[Example, ...]:
    return read_task(folder / "data" / site / f"task{stage}").train


def some_branch(given: Assignment, seed: int) -> Adapter:
    """A branch as if trained: no factor and no prompt is what a stage starts with."""
    torch.set_num_threads(1)
    begin, rng = of.start(given, ()), np.random.default_rng(seed)
    pairs = {
        name: replace(pair, b=rng.normal(0, 0.3, pair.b.shape).astype(np.float32))
        for name, pair in begin.pairs.items()
    }
    extras = {
        name: (value + rng.normal(0, 0.3, value.shape)).astype(np.float32)
        for name, value in begin.extras.items()
    }
    return replace(begin, pairs=pairs, extras=extras)


def test_a_stage_starts_the_same_everywhere_near_the_words_and_changes_nothing(folder: Path):
    given = assignment(folder, plan_of(folder))
    first, second = of.start(given, ()), of.start(replace(given, site="a"), examples(folder, 0))
    assert first.extras["prompts"].tobytes() == second.extras["prompts"].tobytes()
    words = clip_of(given).word_embeddings("a photo of a red.", 4).numpy()
    noise = first.extras["prompts"] - words
    assert 0.01 < noise.std() < 0.03 and abs(noise.mean()) < 0.01
    assert not any(pair.b.any() for pair in first.pairs.values())
    assert not first.extras["prompts.weight"].any()


def test_a_class_without_examples_goes_back_as_it_came_with_weight_zero(folder: Path):
    given = assignment(folder, plan_of(folder))
    begin = some_branch(given, 3)
    trained, result = of.train(given, begin, examples(folder, 0, "b"), lambda _: None)
    rows, before = trained.extras["prompts"], begin.extras["prompts"]
    assert rows[1].tobytes() == before[1].tobytes() and not np.array_equal(rows[0], before[0])
    assert trained.extras["prompts.weight"].tolist() == [6.0, 0.0]
    assert any(not np.array_equal(trained.pairs[n].b, begin.pairs[n].b) for n in begin.pairs)
    assert result.steps == 3 and np.isfinite(result.loss)
    # A start is not trained in place.
    assert before.tobytes() == some_branch(given, 3).extras["prompts"].tobytes()


def gradients(folder: Path, reuse: str) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss of stage 2 on all its examples, and its gradients of prompts and of one B."""
    plan = plan_of(folder, reuse=reuse, margin=0.1)
    old = some_branch(assignment(folder, plan), 1)
    given = assignment(folder, plan, 1, bank={0: old})
    begin, model = some_branch(given, 2), clip_of(given)
    model.adapted.freeze_adapters([], Composition.FOLD)
    model.adapted.attach(begin, plan.rule.trained_factors(1))
    asked = examples(folder, 1)
    prompts = of.StagePrompts(
        model, CLASSES[1], begin.extras["prompts"], torch.tensor([True, True])
    )
    settings = plan.method
    assert isinstance(settings, of.DualModality)
    texts = of.earlier_texts(given, model)
    loss = of.StageLoss(model, prompts, texts, settings)
    labels = torch.tensor(of.class_labels(asked, CLASSES[1], "t"))
    found = loss(model.pixel_values([one.image for one in asked]), labels)
    (_, b) = next(iter(model.adapted.attached_pairs().values()))
    of_prompts, of_b = torch.autograd.grad(found, (prompts.trained, b))
    return found.item(), of_prompts, of_b


def test_each_reuse_changes_the_gradient_of_what_it_should(folder: Path):
    none, prompts, distance, negatives = (
        gradients(folder, name) for name in ("none", "prompts", "distance", "negatives")
    )
    # `prompts` and `distance` leave the LoRA's gradient alone, to the last bits of a sum.
    for added in (prompts, distance):
        torch.testing.assert_close(added[2], none[2], rtol=1e-4, atol=1e-7)
        assert added[0] > none[0]
        assert (added[1] - none[1]).abs().max() > 1e-4
    assert (negatives[2] - none[2]).abs().max() > 1e-4 and negatives[0] > none[0]


@pytest.mark.parametrize("decide", ["base_prior", "prototype", "entropy", "own_max"])
def test_answers_come_from_all_branches_by_the_rule(folder: Path, decide: str):
    plan = plan_of(folder, decide=decide)
    given = assignment(folder, plan)
    branches = [some_branch(given, 1), some_branch(replace(given, stage=1), 2)]
    given = replace(given, bank=dict(enumerate(branches)), round=0)
    asked = examples(folder, 0)[:3]
    found = of.answer(given, asked)
    model, names = clip_of(given), [*CLASSES[0], *CLASSES[1]]
    pixels = model.pixel_values([one.image for one in asked])
    model.adapted.freeze_adapters([], Composition.FOLD)
    scale, texts = model.logit_scale, []
    for names_of, branch in zip(CLASSES, branches, strict=True):
        prompts = torch.tensor(branch.extras["prompts"])
        texts.append(model.prompted_embeddings(prompts, [f"a photo of a {n}." for n in names_of]))
    plain = model.text_embeddings([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        base = model.image_embeddings(pixels)
        features: list[torch.Tensor] = []
        for branch in branches:
            model.adapted.attach(replace(branch, extras={}), plan.rule.trained_factors(1))
            features.append(model.image_embeddings(pixels))
            model.adapted.detach()
    for row, said in enumerate(found):
        cosines = [features[i][row] @ texts[i].T for i in range(2)]
        match decide:
            case "base_prior":
                p_0 = (scale * base[row] @ plain.T).softmax(0)
                expected = [
                    torch.log(p_0[2 * i : 2 * i + 2].sum() * (scale * cosines[i]).softmax(0))
                    for i in range(2)
                ]
            case "prototype":
                means = [torch.tensor(branch.extras["means"]) for branch in branches]
                expected = [cosines[i] + means[i] @ features[i][row] for i in range(2)]
            case "entropy":
                ps = [(scale * f[row] @ torch.cat(texts).T).softmax(0) for f in features]
                surest = min(ps, key=lambda p: -(p * p.log()).sum())
                expected = [surest.log()]
            case _:
                expected = cosines
        assert said.class_scores is not None and list(said.class_scores) == names
        scores = torch.tensor([*said.class_scores.values()])
        torch.testing.assert_close(scores, torch.cat(expected).detach(), rtol=1e-4, atol=1e-5)
        assert said.text == names[int(scores.argmax())]


def test_told_the_task_its_own_branch_answers_and_a_branch_that_is_missing_is_the_base_model(
    folder: Path,
):
    told = document(folder, decide="own_max")
    told["stages"] = [{**stage, "scope": "own"} for stage in told["stages"]]
    given = assignment(folder, parse_plan(told, "p"))
    branches = [some_branch(given, 1), some_branch(replace(given, stage=1), 2)]
    asked = examples(folder, 0)[:2]
    after_both = of.answer(replace(given, bank=dict(enumerate(branches))), asked)
    alone = of.answer(replace(given, candidate=branches[0]), asked)
    assert [one.class_scores for one in after_both] == [one.class_scores for one in alone]
    assert [*(after_both[0].class_scores or {})] == list(CLASSES[0])
    # A site alone at its second stage: the first one's classes are asked, too.
    second = assignment(folder, plan_of(folder, decide="own_max"), 1, candidate=branches[1])
    found, model = of.answer(second, asked)[0], clip_of(second)
    with torch.no_grad(), model.adapted.bypassed():
        image = model.image_embeddings(model.pixel_values([asked[0].image]))[0]
        plain = model.text_embeddings([f"a photo of a {name}." for name in CLASSES[0]])
    assert [*(found.class_scores or {})] == [*CLASSES[0], *CLASSES[1]]
    expected = functional.normalize(plain, dim=1) @ image
    assert list((found.class_scores or {}).values())[:2] == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_a_mean_leaves_in_the_last_round_alone_of_enough_different_pictures(folder: Path):
    plan = plan_of(folder, decide="prototype", prototype_minimum=4)
    given = assignment(folder, plan)
    begin, own = of.start(given, ()), examples(folder, 0)
    # A picture that comes twice is one picture.
    own = (*own, replace(own[0], question_id="again"))
    early, _ = of.train(replace(given, round=1), begin, own, lambda _: None)
    assert early.extras["means.weight"].tolist() == [0.0, 0.0] and not early.extras["means"].any()
    last, _ = of.train(given, begin, own, lambda _: None)
    assert last.extras["prompts.weight"].tolist() == [5.0, 4.0]
    assert last.extras["means.weight"].tolist() == [4.0, 4.0]
    model = clip_of(given)
    model.adapted.freeze_adapters([replace(last, extras={})], Composition.FOLD)
    for place, name in enumerate(CLASSES[0]):
        images = [one.image for one in own[:-1] if one.answer.lower() == name]
        with torch.no_grad():
            mean = model.image_embeddings(model.pixel_values(images)).double().mean(0)
        np.testing.assert_allclose(last.extras["means"][place], mean.numpy(), atol=1e-5)
    # The site's own policy asks for more, and no plan can change that.
    strict, _ = of.train(replace(given, fewest_images=5), begin, own, lambda _: None)
    assert strict.extras["means.weight"].tolist() == [0.0, 0.0] and not strict.extras["means"].any()


@pytest.mark.parametrize("reuse", ["prompts", "distance", "negatives"])
def test_the_micro_batch_and_a_proximal_term_of_nothing_change_no_step(folder: Path, reuse: str):
    given = document(folder, reuse=reuse, margin=0.0)
    old = some_branch(assignment(folder, parse_plan(given, "p")), 1)
    found: list[Adapter] = []
    for training in ({"micro_batch": 1}, {"micro_batch": 4, "proximal": 1e-12}, {}):
        plan = parse_plan({**given, "training": {"warmup": 0.0, **training}}, "p")
        own = assignment(folder, plan, 1, bank={0: old}, round=1)
        found.append(of.train(own, some_branch(own, 2), examples(folder, 1), lambda _: None)[0])
    for one in found[1:]:
        for name in ("prompts", *found[0].pairs):
            expected, value = (
                a.extras[name] if name == "prompts" else a.pairs[name].b for a in (found[0], one)
            )
            # A thousandth of what four steps of AdamW move a number.
            np.testing.assert_allclose(value, expected, atol=1e-4)


def test_several_workers_are_refused_in_a_sentence(folder: Path):
    class OfTwo(LocalOptimizer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.shard = (0, 2)

    given = assignment(folder, plan_of(folder), make_optimizer=OfTwo)
    with pytest.raises(SiteFailed, match="site b: found several workers, expected 1"):
        of.train(given, of.start(given, ()), examples(folder, 0), lambda _: None)
    assert not clip_of(given).adapted.attached_factors()


def test_another_base_model_is_refused_in_a_sentence(folder: Path):
    llava = load_backbone(BASE_MODELS["tiny-llava"], Precision.FP32, torch.device("cpu"))
    given = assignment(folder, plan_of(folder), backbone=llava)
    with pytest.raises(ModelError, match="found the base model LLaVA, expected a CLIP"):
        of.start(given, ())


def test_a_rule_of_which_a_part_travels_sends_the_prompts_whole(folder: Path):
    plan = parse_plan({**document(folder), "aggregation": "fed_sb"}, "p")
    assert plan.rule.part(2, 2) is AdapterPart.CORE
    given = assignment(folder, plan)
    begin = three_factors(some_branch(given, 1), None)
    trained, _ = of.train(given, begin, examples(folder, 0), lambda _: None)
    sent = part_of(trained, AdapterPart.CORE)
    assert not sent.pairs and {"prompts", "prompts.weight"} <= set(sent.extras)
    changed = [n for n in begin.extras if n.startswith("part.")]
    assert changed and any(not np.array_equal(trained.extras[n], begin.extras[n]) for n in changed)
