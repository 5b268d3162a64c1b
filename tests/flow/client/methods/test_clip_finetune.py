"""Continual fine-tuning of a tiny CLIP and its kin: one run of all, and each part by itself."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client.methods import clip_finetune as of
from client.methods.clip_recipe import clip_of
from client.methods.fisher_recipe import fisher_arrays
from client.site.approval import adapted_layers, extra_numbers, sent_bytes
from common.adapter import Adapter
from common.bank.bank import Bank
from common.clip_shape import read_clip_shape
from common.methods.clip_finetune import FISHER_INPUTS, FISHER_OUTPUTS, ClipFinetune
from common.partial_adapter import AdapterPart, multiplied, three_factors
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import ClassScope, Composition
from common.rules.interface import Factor
from cost.sizes import blob_sizes
from cost.traffic import order_traffic
from report.json_file import read_report
from report.model import RunReport
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.baselines import with_method
from simulation.run import simulate
from tests.flow import clip_run
from tests.flow.clip_run import CLASSES, assignment, copied, examples, reference_pin, write_clip_run
from tests.flow.small_run import options

METHODS = ("finetune", "ewc", "lwf", "zscl", "wise_ft", "zero_shot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_run(tmp_path_factory.mktemp("clip"))


def method_of(folder: Path, **method: Any) -> dict[str, Any]:
    fields = {"name": "clip_finetune", "rank": 2, "alpha": 2.0, "fisher_images": 4}
    return {**fields, "reference": reference_pin(folder), "reference_batch": 4, **method}


def plan_of(folder: Path, **method: Any) -> Plan:
    return clip_run.plan_of(folder, method_of(folder, **method))


def written(folder: Path, file: Path, **method: Any) -> Path:
    document = clip_run.document(folder, method_of(folder, **method))
    document["stages"] = [{**stage, "rounds": 1} for stage in document["stages"]]
    file.write_text(yaml.safe_dump(document))
    return file


Finished = tuple[Path, dict[str, RunReport]]


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of every method, and its reports by method."""
    root = tmp_path_factory.mktemp("run")
    where = {"data": folder / "data", "base_model": folder / "clip"}
    plan = written(folder, root / "plan.yaml")
    simulate(plan, options(root / "run", methods=METHODS, **where))
    return root / "run", {report.method: report for report in read_report(root / "run")}


def bank_of(finished: Finished, label: str) -> Bank:
    root = finished[0]
    return Bank.open((root if label == "finetune" else root / "methods" / label) / "bank")


def changes(bank: Bank, stage: int) -> dict[str, np.ndarray[Any, Any]]:
    """The change of every adapted layer's weight."""
    adapter = bank.adapter(stage).loaded()
    return {name: adapter.scale * pair.b @ pair.a for name, pair in adapter.pairs.items()}


def test_every_method_is_a_row_beside_zero_shot_and_the_majority(finished: Finished):
    root, reports = finished
    assert tuple(reports) == METHODS
    for report in reports.values():
        assert report.classes is not None
        assert report.classes.scores["balanced_accuracy"][1][0] is not None
        assert report.zero_shot == reports["finetune"].zero_shot
        assert report.majority == (0.5, 0.5)
    base = reports["zero_shot"]
    assert base.scores[1] == base.zero_shot
    summary = json.loads((root / "report.json").read_text())["methods"]["summary"]
    assert [row["method"] for row in summary] == list(METHODS)


def test_each_ends_somewhere_else(finished: Finished):
    """But LwF's first stage, which has no old classes, and EWC's, which has no earlier task."""
    first = changes(bank_of(finished, "finetune"), 0)
    for label in ("lwf", "ewc"):
        found = changes(bank_of(finished, label), 0)
        assert all(np.array_equal(first[name], found[name]) for name in first)
    last = {
        label: np.concatenate(
            [one.ravel() for one in changes(bank_of(finished, label), 1).values()]
        )
        for label in METHODS[:-1]
    }
    pairs = [(one, other) for one in last for other in last if one < other]
    assert all(np.abs(last[one] - last[other]).max() > 1e-5 for one, other in pairs)


def test_wise_ft_releases_half_of_what_was_trained_and_goes_on_with_the_whole(finished: Finished):
    plain, half = (bank_of(finished, label) for label in ("finetune", "wise_ft"))
    for stage in range(2):
        trained, released = changes(plain, stage), changes(half, stage)
        for name in trained:
            np.testing.assert_allclose(released[name], trained[name] / 2, rtol=1e-3, atol=1e-6)


def test_a_release_of_ewc_has_its_tasks_fisher_information(finished: Finished, folder: Path):
    bank, plan = bank_of(finished, "ewc"), plan_of(folder, hold="ewc")
    layers = adapted_layers(plan, folder / "clip")
    arrays = plan.method.layer_arrays(layers)
    for stage in range(2):
        adapter = bank.adapter(stage)
        assert {name: adapter.extra(name).shape for name in adapter.extra_names} == arrays
        assert adapter.extra(f"{FISHER_INPUTS}.weight").tolist() == [1.0]
        assert adapter.extra(FISHER_OUTPUTS).min() >= 0 < adapter.extra(FISHER_OUTPUTS).max()
    file = next((finished[0] / "methods" / "ewc" / "bank").rglob("*.safetensors"))
    said = sent_bytes(plan, layers, AdapterPart.WHOLE, extra_numbers(plan, folder / "clip"))
    assert said is not None
    # The header with the arrays' names.
    assert said < file.stat().st_size < said + 16_000


@pytest.mark.parametrize("label", ["ewc", "zscl"])
def test_its_bytes_are_those_of_its_plans_cost(finished: Finished, folder: Path, label: str):
    plan = with_method(load_plan(finished[0].parent / "plan.yaml"), label)
    with closing(Journal(RunFolder(finished[0] / "methods" / label), plan)) as journal:
        traffic = journal.traffic()
    said = list(order_traffic(plan, blob_sizes(plan, read_clip_shape(folder / "clip"))))
    assert sum(one.down for one in said) == sum(one.bytes_down for one in traffic)
    # The digits of losses and scores.
    up = sum(one.bytes_up for one in traffic)
    assert sum(one.up for one in said) == pytest.approx(up, abs=250 * len(said))


def trained(begin: Adapter, seed: int) -> Adapter:
    """An adapter as if trained: its B's are not zero, and each weight's importance is its own."""
    rng = np.random.default_rng(seed)
    pairs = {
        name: replace(pair, b=rng.normal(0, 0.05, pair.b.shape).astype(np.float32))
        for name, pair in begin.pairs.items()
    }
    extras = {
        name: rng.uniform(0, 1, value.shape).astype(np.float32)
        for name, value in begin.extras.items()
    }
    return replace(begin, pairs=pairs, extras=extras)


@pytest.mark.parametrize("hold", ["l2", "ewc"])
def test_what_is_held_is_the_weight_itself(folder: Path, hold: str):
    """The gradient by each factor is that of the dense formula, by autograd."""
    given = assignment(folder, plan_of(folder, hold=hold, hold_weight=0.7), 1)
    last = trained(of.start(given, ()), 1)
    given = replace(given, bank={0: last})
    model, now = clip_of(given), trained(last, 2)
    model.adapted.attach(now, given.plan.rule.trained_factors(1))
    term = of.weight_hold(given, model, of.start(given, ()))
    assert term is not None
    value = term.add_gradient()
    pairs = model.adapted.attached_pairs()
    names, total = sorted(pairs), torch.zeros(())
    sizes = {
        name: tuple(last.pairs[name].b.shape[:1] + last.pairs[name].a.shape[1:]) for name in pairs
    }
    weights = {name: torch.ones(sizes[name]) for name in names}
    if hold == "ewc":
        outputs, inputs = (torch.tensor(last.extras[n][0]) for n in (FISHER_OUTPUTS, FISHER_INPUTS))
        rows = dict(zip(names, outputs.split([sizes[n][0] for n in names]), strict=True))
        columns = dict(zip(names, inputs.split([sizes[n][1] for n in names]), strict=True))
        weights = {name: rows[name][:, None] * columns[name] for name in names}
        mean = torch.cat([one.flatten() for one in weights.values()]).mean()
        weights = {name: one / mean for name, one in weights.items()}
    for name, (a, b) in pairs.items():
        before = torch.tensor(last.scale * last.pairs[name].b @ last.pairs[name].a)
        total = total + 0.7 * (weights[name] * (now.scale * b @ a - before).square()).sum()
    torch.testing.assert_close(value, total.detach(), rtol=1e-4, atol=1e-6)
    factors = model.adapted.trainable_parameters()
    for factor, wanted in zip(factors, torch.autograd.grad(total, factors), strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(factor.grad, wanted, rtol=1e-3, atol=1e-5)
    model.adapted.detach()
    assert of.weight_hold(replace(given, bank={}), model, last) is None or hold == "l2"


@pytest.mark.parametrize("rule", ["fedavg", "frozen_a", "fed_sb"])
def test_the_mean_with_the_base_model_is_its_share_of_the_change_whatever_trains(
    folder: Path, rule: str
):
    method = method_of(folder, ensemble="zero_shot", trained_share=0.3)
    given = assignment(folder, clip_run.plan_of(folder, method, aggregation=rule))
    begin, model, plan = of.start(given, ()), clip_of(given), given.plan
    whole = trained(begin, 4)
    for number in (1, 2):
        trains = plan.rule.trained_factors(number)
        adapter = three_factors(whole, None) if trains is Factor.CORE else whole
        model.adapted.attach(adapter, trains)
        assert isinstance(plan.method, ClipFinetune)
        of.mix_factors(model.adapted, plan.method, trains, begin)
        mixed = model.adapted.attached_adapter()
        mixed = multiplied(mixed) if trains is Factor.CORE else mixed
        for name, pair in whole.pairs.items():
            found = mixed.pairs[name].b @ mixed.pairs[name].a
            np.testing.assert_allclose(found, 0.3 * pair.b @ pair.a, rtol=1e-4, atol=1e-6)
            if trains is not Factor.BOTH:
                assert np.array_equal(mixed.pairs[name].a, pair.a)
    model.adapted.detach()


def test_the_mean_with_the_release_before_is_that_of_the_factors(folder: Path):
    given = assignment(folder, plan_of(folder, ensemble="previous", trained_share=0.8))
    before, now = (trained(of.start(given, ()), seed) for seed in (5, 6))
    model, settings = clip_of(given), given.plan.method
    assert isinstance(settings, ClipFinetune)
    model.adapted.attach(now, Factor.BOTH)
    of.mix_factors(model.adapted, settings, Factor.BOTH, before)
    mixed = model.adapted.attached_adapter()
    model.adapted.detach()
    for name, pair in mixed.pairs.items():
        expected = 0.8 * now.pairs[name].b + 0.2 * before.pairs[name].b
        np.testing.assert_allclose(pair.b, expected, rtol=1e-6, atol=1e-8)


def test_old_answers_are_the_release_befores_among_the_old_classes(folder: Path):
    given = assignment(folder, plan_of(folder, distil="lwf"), 1)
    last = trained(of.start(given, ()), 3)
    given, asked = replace(given, bank={0: last}), examples(folder, 1)
    model = clip_of(given)
    groups, found = of.old_answers(given, model, asked)
    assert groups == [CLASSES[0]]
    model.adapted.freeze_adapters([last], Composition.FOLD)
    with torch.no_grad():
        texts = model.text_embeddings([f"a photo of a {name}." for name in CLASSES[0]])
        images = model.image_embeddings(model.pixel_values([one.image for one in asked]))
    torch.testing.assert_close(found, model.logit_scale * images @ texts.T)
    stages = [stage.model_copy(update={"scope": ClassScope.SEEN}) for stage in given.plan.stages]
    three = (*stages, stages[1].model_copy(update={"classes": ("lung", "a")}))
    later = replace(
        given,
        plan=given.plan.model_copy(update={"stages": three}),
        stage=2,
        bank={0: last, 1: last},
    )
    assert of.old_answers(later, model, asked)[0] == [(*CLASSES[0], *CLASSES[1])]
    assert of.old_answers(replace(given, bank={}), model, asked)[0] == []


@pytest.mark.parametrize("distil", ["none", "lwf"])
def test_among_all_classes_so_far_the_cross_entropy_has_the_earlier_ones_too(
    folder: Path, distil: str
):
    """The loss of a stage's first step, of all examples at once, written out in float64."""
    method = method_of(folder, distil=distil, distil_weight=0.0, train_scope="seen")
    stages = [
        {**stage, "rounds": 1, "batch_size": 6}
        for stage in clip_run.document(folder, method)["stages"]
    ]
    given = assignment(folder, clip_run.plan_of(folder, method, stages=stages), 1)
    last, asked = trained(of.start(given, ()), 3), examples(folder, 1)
    given = replace(given, bank={0: last})
    _, result = of.train(given, of.start(given, ()), asked, lambda _: None)
    model = clip_of(given)
    model.adapted.freeze_adapters([last], Composition.FOLD)
    names = [*CLASSES[0], *CLASSES[1]]
    with torch.no_grad():
        texts = model.text_embeddings([f"a photo of a {name}." for name in names])
        images = model.image_embeddings(model.pixel_values([one.image for one in asked]))
    logits = (model.logit_scale * images @ texts.T).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.full(log_p.shape, 0.2 / 4)
    wanted[range(len(asked)), [names.index(one.answer) for one in asked]] += 0.8
    assert (result.steps, len(asked)) == (1, 6)
    assert result.loss == pytest.approx(-(wanted * log_p).sum(1).mean(), rel=1e-5)


def test_of_too_few_different_images_no_fisher_information_leaves(folder: Path):
    given = assignment(folder, plan_of(folder, hold="ewc"))
    model, asked = clip_of(given), examples(folder, 0)
    model.adapted.attach(of.start(given, ()), given.plan.rule.trained_factors(1))
    enough = fisher_arrays(given, model, CLASSES[0], asked, 4)
    again = fisher_arrays(given, model, CLASSES[0], asked, 4)
    assert all(np.array_equal(enough[name], again[name]) for name in enough)
    assert enough[f"{FISHER_OUTPUTS}.weight"].tolist() == [4.0]
    few = fisher_arrays(replace(given, fewest_images=5), model, CLASSES[0], asked, 4)
    assert not any(value.any() for value in few.values())
    # A picture that is there in several files is one.
    same = [replace(asked[0], image=copied(asked[0].image, n)) for n in range(5)]
    alike = fisher_arrays(replace(given, fewest_images=2), model, CLASSES[0], same, 5)
    assert not any(value.any() for value in alike.values())
    model.adapted.detach()
