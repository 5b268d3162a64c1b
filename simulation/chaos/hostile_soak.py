"""A federation of which one site of four lies at random, in every answer: does it still end well?

    python -m simulation.chaos.hostile_soak --seed 1 --out DIR

In one process, on the plan of configs/soak.yaml with a fourth site. The exit code is 0 only if the
bank verifies and the scores at the honest sites are within two points of the run without the liar.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import yaml
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import app as client
from common.bank.bank import Bank
from common.exchange import Order
from common.identity import ROOT
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.printable import counted
from common.work import Work
from server.app import SiteConnection, run
from server.network import Patience
from server.run.folder import RunFolder
from simulation.chaos.liar import LIES, HostileSites, Lie
from simulation.command_line.arguments import new_folder, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.hospitals import BASE_MODELS, prepare
from simulation.inprocess import run_in_process

PLAN = ROOT / "configs" / "soak.yaml"
LIAR = "zero"
#: How far the honest sites' scores may be from those of the run without the liar: two points.
MOST_LOST = 0.02
#: Of each site and task: over three sites and stages a run's score has a standard error of a point.
TEST_QUESTIONS = 120
_PATIENT = Patience(wait_s=0.0, slack_s=600.0, poll_s=0.01, appear_s=None)


def plan_with(folder: Path, liar: bool) -> Plan:
    """Write the soak's plan, with the liar in every stage or without it, and load it."""
    document: dict[str, Any] = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    for stage in document["stages"]:
        stage["sites"] = ["north", "south", "west", *([LIAR] if liar else [])]
        stage["quorum"] = 3
    document["simulation"]["test_questions"] = TEST_QUESTIONS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_plan(file)


def at_random(seed: int) -> Callable[[Order], Lie | None]:
    """Return what chooses a lie for every answer; it now and then tells the truth."""
    drawn = random.Random(seed)
    lies = [None, *LIES.values()]

    def choose(order: Order) -> Lie | None:
        lie = drawn.choice(lies)
        # Another number of questions than at first would be refused.
        return (
            replace(lie or LIES["perfect scores"], claims=True)
            if order.work is not Work.TRAIN
            else lie
        )

    return choose


def honest_scores(folder: Path, liar: bool, choose: Callable[[Order], Lie | None]) -> float:
    """Run the plan, with the liar or without it; return the honest sites' mean score.

    The score of each task when it was learned. The honest sites have the same data either way: a
    fourth of them all.

    Raises:
        BankError: the bank does not verify.
    """
    homes = folder / "sites"
    of_all = plan_with(folder, liar=True)
    prepare(of_all, homes, None, BASE_MODELS[of_all.base_model.name])
    plan = plan_with(folder, liar)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        run(plan, RunFolder(folder), grid, SiteConnection(_PATIENT, lambda: plan.sites))

    nodes = [{"name": name, "site-file": str(homes / name / "site.yaml")} for name in plan.sites]
    run_in_process(app, cast(ClientApp, HostileSites(client, LIAR, choose)), nodes, {})
    bank = Bank.open(folder / "bank")
    bank.verify()
    return mean(
        said.scores[stage.metric.value]
        for stage, release in zip(plan.stages, bank.releases, strict=True)
        for site, said in (release.self_reported or {}).items()
        if site != LIAR
    )


@with_exit_codes
def main() -> int:
    """Run it from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.chaos.hostile_soak", description=__doc__
    )
    parser.add_argument("--seed", type=whole_from(0), default=1, help="of the first liar")
    parser.add_argument(
        "--liars", type=whole_from(1), default=1, help="runs, each with another liar"
    )
    parser.add_argument("--out", type=new_folder, default="runs/soak-hostile", help="a new folder")
    options = parser.parse_args()
    held = _held(options.out, range(options.seed, options.seed + options.liars))
    return 0 if held else 1


def _held(out: Path, seeds: Sequence[int]) -> bool:
    """Run it without a liar and with one of each seed; print and return how it held."""
    without = honest_scores(out / "without", False, lambda _: None)
    stages, held = counted(len(load_plan(PLAN).stages), "stage"), True
    for seed in seeds:
        found = honest_scores(out / f"with-{seed}", True, at_random(seed))
        within = without - found <= MOST_LOST
        held = held and within
        print(
            f"{stages}, the honest sites' scores: {100 * without:.1f} without the liar, "
            f"{100 * found:.1f} with it (seed {seed}): {'within' if within else 'NOT WITHIN'} "
            f"{100 * MOST_LOST:.0f} points",
            flush=True,
        )
    return held


if __name__ == "__main__":
    sys.exit(main())
