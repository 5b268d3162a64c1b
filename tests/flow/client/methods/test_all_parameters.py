"""The CLIP methods on all parameters: a run of two sites and two stages, and each part alone."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from typer.testing import CliRunner

from client.methods import clip_finetune, primed, reference_recipe
from client.methods.clip_recipe import ClassLoss, clip_of
from client.methods.fisher_recipe import fisher_arrays
from client.methods.interface import method_code
from client.model.clip.load import load_clip
from client.site.approval import adapted_layers, extra_numbers, sent_bytes
from client.training.checkpoint import Checkpoint, JobCancelled
from client.training.loop import Progress
from commands.bank import app
from common.adapter import DELTA_PREFIX, Adapter, deltas_in, to_bytes
from common.bank.bank import Bank
from common.clip_shape import read_clip_shape
from common.methods.clip_finetune import FISHER_DIAGONAL, ClipFinetune
from common.methods.primed import Primed
from common.partial_adapter import AdapterPart
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from cost.sizes import blob_sizes
from cost.traffic import order_traffic
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.baselines import with_method
from simulation.run import simulate
from tests.flow import clip_run
from tests.flow.clip_run import CLASSES, assignment, examples, reference_pin, write_clip_run
from tests.flow.small_run import options

METHODS = ("finetune_all", "wise_ft_all", "ewc_all", "primed_all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_run(tmp_path_factory.mktemp("clip"))


def method_of(folder: Path, name: str, **method: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": name, "parameters": "all", "reference_batch": 4}
    fields |= {"fisher_images": 4} if name == "clip_finetune" else {}
    return {**fields, "reference": reference_pin(folder), **method}


def plan_of(folder: Path, name: str, **method: Any) -> Plan:
    return clip_run.plan_of(folder, method_of(folder, name, **method))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of continual fine-tuning of all weights, and of the others beside it."""
    root = tmp_path_factory.mktemp("run")
    document = clip_run.document(folder, method_of(folder, "clip_finetune"), aggregation="fedavg")
    stages = [{**stage, "learning_rate": 1e-3} for stage in document["stages"]]
    (root / "plan.yaml").write_text(yaml.safe_dump({**document, "stages": stages}))
    where = {"data": folder / "data", "base_model": folder / "clip"}
    simulate(root / "plan.yaml", options(root / "run", methods=METHODS, **where))
    return root / "run"


def bank_of(run: Path, label: str) -> Bank:
    return Bank.open((run if label == "finetune_all" else run / "methods" / label) / "bank")


def test_a_release_has_the_change_of_every_weight_and_no_factor(run: Path, folder: Path):
    weights = read_clip_shape(folder / "clip").weights()
    last: list[np.ndarray[Any, Any]] = []
    for label in METHODS:
        for adapter in map(bank_of(run, label).adapter, range(2)):
            found = {name: adapter.extra(extra) for name, extra in deltas_in(adapter).items()}
            assert {name: value.shape for name, value in found.items()} == weights
            assert adapter.modules == () and adapter.rank == 0
            assert all(value.any() for value in found.values())
        last.append(bank_of(run, label).adapter(1).extra(f"{DELTA_PREFIX}visual_projection.weight"))
    assert all(np.abs(a - b).max() > 1e-6 for i, a in enumerate(last) for b in last[:i])


def test_wise_ft_releases_half_of_every_change_and_goes_on_with_the_whole(run: Path):
    plain, half = (bank_of(run, label) for label in ("finetune_all", "wise_ft_all"))
    for stage in range(2):
        whole, released = plain.adapter(stage).extras, half.adapter(stage).extras
        for name, value in whole.items():
            np.testing.assert_allclose(released[name], value / 2, rtol=1e-3, atol=1e-7)


def test_a_release_is_the_mean_of_the_sites_changes(run: Path):
    """The journal's updates of the last round, weighted by examples as no bound concerns them."""
    plan = load_plan(run.parent / "plan.yaml")
    with closing(Journal(RunFolder(run), plan)) as journal:
        shares = {one.site: one.share for stage, number, one in journal.influences()
                  if (stage, number) == (1, 2)}  # fmt: skip
        scaled = [one.scaled for _, _, one in journal.influences()]
    # Site a has six training pictures of a task, site b eight.
    assert shares == pytest.approx({"a": 6 / 14, "b": 8 / 14}, rel=1e-6)
    assert scaled == [1.0] * len(scaled)


@pytest.mark.parametrize("label", ["finetune_all", "ewc_all"])
def test_its_bytes_are_those_of_its_plans_cost(run: Path, folder: Path, label: str):
    plan = with_method(load_plan(run.parent / "plan.yaml"), label)
    root = run if label == "finetune_all" else run / "methods" / label
    with closing(Journal(RunFolder(root), plan)) as journal:
        traffic = journal.traffic()
    said = list(order_traffic(plan, blob_sizes(plan, read_clip_shape(folder / "clip"))))
    assert sum(one.down for one in said) == sum(one.bytes_down for one in traffic)
    # The digits of losses and scores.
    up = sum(one.bytes_up for one in traffic)
    assert sum(one.up for one in said) == pytest.approx(up, abs=250 * len(said))
    numbers = extra_numbers(plan, folder / "clip")
    found = sent_bytes(plan, adapted_layers(plan, folder / "clip"), AdapterPart.WHOLE, numbers)
    assert found is not None
    file = next((root / "bank").rglob("*.safetensors"))
    # The header with the arrays' names.
    assert found < file.stat().st_size < found + 20_000


def test_an_export_is_the_whole_model_with_our_logits(run: Path, folder: Path, tmp_path: Path):
    given = ["export", str(run / "bank"), "s1", str(tmp_path / "out"), "--base-model"]
    done = CliRunner().invoke(app, [*given, str(folder / "clip"), "--json"])
    assert done.exit_code == 0 and "no PEFT adapter can; the whole model is" in done.stderr
    assert json.loads(done.stdout)["format"] == "merged"
    theirs = CLIPModel.from_pretrained(tmp_path / "out").eval()
    model = load_clip(folder / "clip", Precision.FP32, torch.device("cpu"))
    texts = [f"a photo of a {name}." for name in CLASSES[1]]
    pixels = model.pixel_values([one.image for one in examples(folder, 1)])
    words = AutoTokenizer.from_pretrained(tmp_path / "out")(
        texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        base = model.logit_scale * model.image_embeddings(pixels) @ model.text_embeddings(texts).T
        model.adapted.freeze_adapters([bank_of(run, "finetune_all").adapter(1)], Composition.FOLD)
        ours = model.logit_scale * model.image_embeddings(pixels) @ model.text_embeddings(texts).T
        found = theirs(**words, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
    assert (ours - base).abs().max() > 1e-2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "How to ask" in card and "zero-shot-image-classification" in card


def test_a_bank_lists_shows_verifies_and_answers(run: Path, folder: Path):
    bank, picture = str(run / "bank"), examples(folder, 1)[0].image
    listed, shown, verified = (
        CliRunner().invoke(app, command)
        for command in (["list", bank], ["show", bank, "s1"], ["verify", bank])
    )
    assert "none" in listed.stdout and "none, 1" in shown.stdout
    assert "parameters all" in shown.stdout and "2 releases verified" in verified.stdout
    asked = ["ask", str(picture), "--bank", bank, "--base-model", str(folder / "clip")]
    answered = CliRunner().invoke(app, [*asked, "--json"])
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["answer"] in {name for own in CLASSES for name in own}


def trained(begin: Adapter, seed: int) -> Adapter:
    """An adapter as if trained; each weight's importance is its own."""
    rng = np.random.default_rng(seed)
    extras = {
        name: rng.normal(0, 0.02, value.shape).astype(np.float32)
        if name.startswith(DELTA_PREFIX)
        else rng.uniform(0, 1, value.shape).astype(np.float32)
        for name, value in begin.extras.items()
    }
    return replace(begin, extras=extras)


def moved(now: Adapter, before: Adapter, deltas: dict[str, Any]) -> dict[str, Tensor]:
    names = {name: f"{DELTA_PREFIX}{name}" for name in deltas}
    return {n: torch.tensor(now.extras[e] - before.extras[e]) for n, e in names.items()}


@pytest.mark.parametrize("hold", ["l2", "ewc"])
def test_what_is_held_is_every_weight(folder: Path, hold: str):
    """2 lambda F (theta - theta'), F the release's diagonal over its mean, by numpy."""
    plan = plan_of(folder, "clip_finetune", hold=hold, hold_weight=0.7)
    given = assignment(folder, plan, 1)
    last = trained(clip_finetune.start(given, ()), 1)
    given = replace(given, bank={0: last})
    model, begin = clip_of(given), clip_finetune.start(given, ())
    now = trained(begin, 2)
    model.adapted.attach(now, Factor.BOTH)
    term = clip_finetune.weight_hold(given, model, begin)
    assert term is not None
    value = term.add_gradient()
    deltas = model.adapted.attached_deltas()
    by = moved(now, last, deltas)
    importance = {name: np.ones(tuple(delta.shape)) for name, delta in deltas.items()}
    if hold == "ewc":
        row = last.extras[FISHER_DIAGONAL][0].astype(np.float64)
        sizes = [by[name].numel() for name in sorted(by)]
        parts = np.split(row / row.mean(), np.cumsum(sizes)[:-1])
        importance = {n: p.reshape(by[n].shape) for n, p in zip(sorted(by), parts, strict=True)}
    total = 0.0
    for name, delta in deltas.items():
        dense = importance[name] * by[name].double().numpy()
        total += 0.7 * float((dense * by[name].double().numpy()).sum())
        assert delta.grad is not None
        np.testing.assert_allclose(delta.grad.numpy(), 1.4 * dense, rtol=1e-3, atol=1e-6)
    assert float(value) == pytest.approx(total, rel=1e-4)
    model.adapted.detach()


def test_the_fisher_information_is_the_mean_square_of_each_weights_gradient(folder: Path):
    given = assignment(folder, plan_of(folder, "clip_finetune", hold="ewc"))
    model, asked = clip_of(given), examples(folder, 0)
    model.adapted.attach(clip_finetune.start(given, ()), Factor.BOTH)
    found = fisher_arrays(given, model, CLASSES[0], asked, 4)
    assert found[f"{FISHER_DIAGONAL}.weight"].tolist() == [4.0]
    row = found[FISHER_DIAGONAL][0]
    assert float(np.linalg.norm(row)) == pytest.approx(0.01, rel=1e-4)
    deltas = model.adapted.attached_deltas()
    # A bias of the last norm has as gradient the sum over images of what it adds to the logits; the
    # keys' bias changes no attention at all.
    parts = np.split(row, np.cumsum([deltas[name].numel() for name in sorted(deltas)])[:-1])
    by_name = dict(zip(sorted(deltas), parts, strict=True))
    keys = "vision_model.encoder.layers.1.self_attn.k_proj"
    assert by_name[f"{keys}.bias"].max() < 1e-6 * by_name[f"{keys}.weight"].max()
    few = fisher_arrays(replace(given, fewest_images=5), model, CLASSES[0], asked, 4)
    assert not any(value.any() for value in few.values())
    model.adapted.detach()


@pytest.mark.parametrize("ensemble", ["zero_shot", "previous"])
def test_a_mean_of_weights_is_exactly_that(folder: Path, ensemble: str):
    plan = plan_of(folder, "clip_finetune", ensemble=ensemble, trained_share=0.8)
    given = assignment(folder, plan)
    begin, model, settings = clip_finetune.start(given, ()), clip_of(given), plan.method
    before, now = trained(begin, 5), trained(begin, 6)
    assert isinstance(settings, ClipFinetune)
    model.adapted.attach(now, Factor.BOTH)
    clip_finetune.mix_factors(model.adapted, settings, Factor.BOTH, before)
    mixed = model.adapted.attached_adapter()
    model.adapted.detach()
    base = 0.0 if ensemble == "zero_shot" else 0.2
    for name, value in now.extras.items():
        expected = 0.8 * value + base * before.extras[name]
        np.testing.assert_allclose(mixed.extras[name], expected, rtol=1e-5, atol=1e-8)


def test_primeds_step_is_the_gradient_of_its_formula_by_the_weights_themselves(folder: Path):
    """Autograd of CE + CKT + CMC + lambda sum W (theta - theta')^2 by theta, the folded weights."""
    plan = plan_of(folder, "primed", guard_weight=0.7)
    given = assignment(folder, plan, 1)
    last = trained(primed.start(given, ()), 1)
    now, given = trained(last, 2), replace(given, bank={0: last})
    model, settings = clip_of(given), plan.method
    assert isinstance(settings, Primed)
    pairs = reference_recipe.reference_pairs(given)
    teacher = reference_recipe.teacher_embeddings(model, [last], pairs)
    batch = reference_recipe.ReferenceBatch(model, pairs, teacher)
    batch.take([0, 4, 1, 3], model.pixel_values([pairs.files[n] for n in (0, 4, 1, 3)]))
    reference = primed.ReferenceLoss(batch, model.logit_scale, settings)
    asked = examples(folder, 1)
    images = model.pixel_values([one.image for one in asked])
    labels = torch.tensor([CLASSES[1].index(one.answer) for one in asked])
    model.adapted.freeze_adapters([], Composition.FOLD)
    model.adapted.attach(last, Factor.BOTH)
    guard = primed.ParameterGuard(model.adapted.trainable_parameters(), settings)
    model.adapted.attach(now, Factor.BOTH)
    deltas = model.adapted.attached_deltas()
    guard.parameters = list(deltas.values())
    ClassLoss(model, CLASSES[1], 0.2)(images, labels).backward()
    _, gradients = reference.add_gradient(guard.parameters)
    guard.add_gradient(gradients)
    found = {name: delta.grad for name, delta in deltas.items()}

    by = moved(now, last, deltas)
    model.adapted.detach()
    model.adapted.freeze_adapters([now], Composition.FOLD)
    towers: Any = model.towers
    theta = {
        name.removeprefix("network.").replace(".base.", "."): weight.requires_grad_()
        for name, weight in towers.named_parameters()
    }
    theta = {name: theta[name] for name in deltas}
    on_pairs = torch.autograd.grad(reference.value(), list(theta.values()))
    logits = (
        model.logit_scale
        * model.image_embeddings(images)
        @ model.text_embeddings([f"a photo of a {name}." for name in CLASSES[1]]).T
    )
    of_task = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2),
        list(theta.values()),
    )
    for (name, mine), g, ce in zip(found.items(), on_pairs, of_task, strict=True):
        expected = ce + g + 2 * 0.7 * g.square() / g.square().mean() * by[name]
        assert mine is not None
        scale = float(expected.abs().max()) + 1e-6
        torch.testing.assert_close(mine / scale, expected / scale, rtol=1e-3, atol=2e-4)


def test_half_a_teacher_has_half_of_every_change(folder: Path):
    given = assignment(folder, plan_of(folder, "primed", teacher="mean"), 1)
    last = trained(primed.start(given, ()), 3)
    (half,) = primed.teacher_adapters(replace(given, bank={0: last}))
    for name, value in last.extras.items():
        np.testing.assert_allclose(half.extra(name), value / 2, rtol=1e-6)


CUT: dict[str, dict[str, Any]] = {
    "zscl": {"name": "clip_finetune", "distil": "zscl", "ensemble": "steps", "parameters": "lora"},
    "zscl_all": {"name": "clip_finetune", "distil": "zscl", "ensemble": "steps"},
    "ewc_all": {"name": "clip_finetune", "hold": "ewc"},
    "primed_all": {"name": "primed"},
}


@pytest.mark.parametrize("label", CUT)
def test_a_round_that_is_cut_off_in_the_middle_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, label: str
):
    plan = plan_of(folder, **CUT[label])
    given = assignment(folder, plan, 0, round=2)
    asked, code = examples(folder, 0), method_code(plan.method)
    begin = trained(code.start(given, asked), 7)
    whole, result = code.train(given, begin, asked, ignored)
    assert result.steps == 2
    kept = Checkpoint(tmp_path / "kept", 0.0, cancelled_after(1))
    with pytest.raises(JobCancelled):
        code.train(replace(given, checkpoint=kept), begin, asked, ignored)
    again = Checkpoint(tmp_path / "kept", 0.0)
    assert again.latest() is not None
    found, resumed = code.train(replace(given, checkpoint=again), begin, asked, ignored)
    assert to_bytes(found) == to_bytes(whole) and resumed == result
    assert to_bytes(found) != to_bytes(begin)


def ignored(_: Progress) -> None:
    """Progress, which nobody reads."""


def cancelled_after(checkpoints: int) -> Callable[[], bool]:
    asked = iter(range(checkpoints))
    return lambda: next(asked, checkpoints) < checkpoints - 1
