"""How strong MSLoRA-CR's regularizer is: by formula at any size, and beside the task's gradient.

`python -m benchmarks.regularizer_strength` prints both as JSON: the formula at the small model's
sizes and at the paper's, and the gradients of a run on the small model, with how often their
norm is above the 1 at which training clips. docs/paper.md says what they mean.

The formula is of a fresh A: entries uniform with variance 1 / (3 inputs), so |A|^2 = rank / 3 and
A A' is about I / 3, and two of them are sqrt(2 rank / 3) apart.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from client.methods.interface import Assignment, method_code
from client.orders.session import SiteSession
from client.site.config import load_site
from client.training.loop import Progress
from client.training.optimizer import LocalOptimizer, Penalty
from common.adapter import AdapterSource
from common.identity import ROOT
from common.plan.file import load_plan, parse_plan
from common.plan.plan import Plan, Training
from simulation.hospitals import check, prepare

PLAN = ROOT / "configs" / "experiments" / "central.yaml"
#: Layers with an adapter: seven in each of the decoder's layers.
SMALL_LAYERS, PAPER_LAYERS = 4 * 7, 32 * 7


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshGradients:
    """Norms over all layers of the regularizer's gradients by a fresh A, with one earlier task.

    Attributes:
        contrast: of alpha C (client/training/regularizer.py), whichever sign it has.
        orthogonality: of the orthogonality term.
    """

    rank: int
    layers: int
    contrast: float
    orthogonality: float

    @property
    def ratio(self) -> float:
        """Orthogonality over contrast."""
        return self.orthogonality / self.contrast


def fresh_gradients(
    rank: int, layers: int, *, contrast: float = 0.1, orthogonality: float = 0.01, tasks: int = 2
) -> FreshGradients:
    """Return the gradients' norms by formula; `tasks` counts the earlier one and the new one.

    One layer's contrast has the gradient alpha / (2 N) exp(-d), d = sqrt(2 rank / 3); its
    orthogonality 4 beta / (N t) |(A A' - I) A| = 4 beta / (N t) (2 / 3) sqrt(rank / 3).
    """
    distance = math.sqrt(2 * rank / 3)
    of_contrast = contrast / (2 * layers) * math.exp(-distance)
    of_orthogonality = 4 * orthogonality / (layers * tasks) * 2 / 3 * math.sqrt(rank / 3)
    return FreshGradients(
        rank=rank,
        layers=layers,
        contrast=math.sqrt(layers) * of_contrast,
        orthogonality=math.sqrt(layers) * of_orthogonality,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNorms:
    """Norms of one step's gradients, before clipping.

    Attributes:
        task: of the cross-entropy's gradient, over all factors; `task_a` over the A's alone.
        penalty, penalty_a: of the regularizer's.
        whole: of their sum, which is what is clipped.
    """

    task: float
    task_a: float
    penalty: float
    penalty_a: float
    whole: float


class MeasuringOptimizer(LocalOptimizer):
    """AdamW that records the norms of every step's gradients."""

    def __init__(
        self,
        record: Callable[[StepNorms], None],
        network: nn.Module,
        factors: Sequence[nn.Parameter],
        training: Training,
    ) -> None:
        super().__init__(network, factors, training)
        # Factors come as (A, B) of one layer after the other.
        self._factors, self._record = factors, record

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """See `Optimizer`."""

        def measured() -> Tensor:
            before = [_gradient(factor).clone() for factor in self._factors]
            value = torch.zeros(()) if penalty is None else penalty()
            after = [_gradient(factor) for factor in self._factors]
            added = [one - other for one, other in zip(after, before, strict=True)]
            self._record(
                StepNorms(
                    task=_norm(before),
                    task_a=_norm(before[::2]),
                    penalty=_norm(added),
                    penalty_a=_norm(added[::2]),
                    whole=_norm(after),
                )
            )
            return value

        loss, value = super().step(losses, measured, rate)
        return loss, None if penalty is None else value


def _gradient(factor: nn.Parameter) -> Tensor:
    return torch.zeros_like(factor) if factor.grad is None else factor.grad


def _norm(gradients: Sequence[Tensor]) -> float:
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
    return float(squares.sum().sqrt())


def measured_norms(plan: Plan) -> list[list[StepNorms]]:
    """Train the stages of a plan with one site one after another; return every step's norms."""
    recorded: list[list[StepNorms]] = []
    with tempfile.TemporaryDirectory() as folder:
        sites = Path(folder)
        prepare(plan, sites, None, check(plan, plan.name, None, None))
        (name,) = plan.sites
        session = SiteSession(load_site(sites / name / "site.yaml"))
        bank: dict[int, AdapterSource] = {}
        for number, stage in enumerate(plan.stages):
            recorded.append([])
            assignment = Assignment(
                plan=plan,
                stage=number,
                round=1,
                site=name,
                backbone=session.backbone(plan),
                bank=dict(bank),
                active=plan.frozen_stages(number),
                candidate=None,
                checkpoint=None,
                make_optimizer=partial(MeasuringOptimizer, recorded[-1].append),
            )
            method, examples = method_code(plan.method), session.task(stage.task).train
            adapter = method.start(assignment, examples)
            for round_number in range(1, stage.rounds + 1):
                of_round = replace(assignment, round=round_number)
                adapter, _ = method.train(of_round, adapter, examples, _silent)
            bank[number] = adapter
    return recorded


def _silent(_: Progress) -> None:
    """Nobody follows."""


def summary(steps: Sequence[StepNorms], largest: float = 1.0) -> dict[str, float]:
    """Return medians over a stage's steps, and the share of steps whose gradient is longer."""
    return {
        "steps": len(steps),
        "penalty_over_task": median(one.penalty / one.task for one in steps),
        "penalty_over_task_on_a": median(one.penalty_a / max(one.task_a, 1e-30) for one in steps),
        "gradient": median(one.whole for one in steps),
        "clipped": sum(one.whole > largest for one in steps) / len(steps),
    }


def small_plan(stages: int, train_fraction: float, orthogonality: float | None) -> Plan:
    """Return the first stages of `PLAN` with the paper's regularizer, on a part of the data."""
    document = load_plan(PLAN).model_dump(mode="json")
    document["method"]["contrast"] = {"weight": 0.1, "orthogonality": orthogonality}
    document["stages"] = document["stages"][:stages]
    document["simulation"]["train_fraction"] = train_fraction
    return parse_plan(document, str(PLAN))


def run(stages: int = 4, train_fraction: float = 0.4) -> dict[str, Any]:
    """Return the formula at both sizes, and by setting and stage what was measured."""
    formula = [fresh_gradients(8, SMALL_LAYERS), fresh_gradients(64, PAPER_LAYERS)]
    found: dict[str, Any] = {
        "formula": [{**asdict(one), "ratio": one.ratio} for one in formula],
        "contrast_small_over_paper": formula[0].contrast / formula[1].contrast,
    }
    for name, orthogonality in (("contrast", None), ("contrast and orthogonality", 0.01)):
        plan = small_plan(stages, train_fraction, orthogonality)
        norms = measured_norms(plan)
        found[name] = {
            stage.name: summary(steps) for stage, steps in zip(plan.stages, norms, strict=True)
        }
        later = [one for steps in norms[1:] for one in steps]
        found[name]["all but the first stage"] = summary(later)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--train-fraction", type=float, default=0.4)
    options = parser.parse_args()
    print(json.dumps(run(options.stages, options.train_fraction), indent=1))
