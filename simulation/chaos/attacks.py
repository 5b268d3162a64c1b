"""What one hostile site does to a release: the scores at the honest sites, with and without it.

    python -m simulation.chaos.attacks --sites 3 --seeds 3 --out runs/attacks

One stage on phantoms, at sites of which the last one lies in every round. A line for each attack
and rule: the accuracy at the honest sites, in percent, by seed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

import yaml
from flwr.clientapp import ClientApp

from client.app import app as client
from client.model.base_digest import base_digest
from common.bank.bank import Bank
from common.plan.file import load_plan
from common.rules.registry import rules
from server.app import app as server
from simulation.chaos.liar import LIES, HostileSites, Lie
from simulation.command_line.arguments import new_folder, whole_from
from simulation.command_line.exit_codes import with_exit_codes
from simulation.hospitals import BASE_MODELS, prepare
from simulation.inprocess import run_in_process

_MODEL = "tiny-llava"
#: As it was before there were bounds.
UNBOUNDED = {"clip": None, "largest_share": 1.0, "least_cosine": None}
ATTACKS = ("none", *LIES)


def plan_of(sites: int, seed: int, rule: str, robustness: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a plan of one stage."""
    return {
        "name": "attacks",
        "seed": seed,
        "base_model": {"name": _MODEL, "sha256": base_digest(BASE_MODELS[_MODEL])},
        "method": {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": None},
        "aggregation": rule,
        "wire": "fp32",
        "evaluation": {"zero_shot": False},
        **({"robustness": robustness} if robustness else {}),
        "stages": [
            {
                "name": "cxp", "modality": "radiology", "task": "CXP",
                "sites": [f"s{number + 1}" for number in range(sites)], "rounds": 3,
                "local_epochs": 4, "learning_rate": 5e-3, "batch_size": 8, "max_new_tokens": 4,
            }
        ],
        "simulation": {"data": "phantoms", "train_fraction": 0.5, "test_questions": 60},
    }  # fmt: skip


def accuracy(folder: Path, fields: dict[str, Any], lie: Lie | None) -> tuple[float, float]:
    """Run the plan with its last site lying; return the others' accuracy, and the release's."""
    folder.mkdir(parents=True)
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    plan = load_plan(file)
    homes = folder / "sites"
    prepare(plan, homes, None, BASE_MODELS[_MODEL])
    hostile = HostileSites(client, plan.sites[-1], lambda _: lie)
    nodes = [{"site-file": str(one)} for one in sorted(homes.glob("*/site.yaml"))]
    run_in_process(
        server, cast(ClientApp, hostile), nodes, {"plan": str(file), "folder": str(folder)}
    )
    (release,) = Bank.open(folder / "bank").releases
    said = release.self_reported or {}
    honest = [said[site].scores["accuracy"] for site in plan.sites[:-1]]
    return mean(honest), release.scores["accuracy"]


def attack_names(text: str) -> list[str]:
    """Return the attacks that an option names, as argparse's `type`.

    Raises:
        ArgumentTypeError: one is none of `ATTACKS`.
    """
    return _named(text, ATTACKS)


def rule_names(text: str) -> list[str]:
    """Return the aggregation rules that an option names, as argparse's `type`.

    Raises:
        ArgumentTypeError: there is none of this name.
    """
    return _named(text, [*rules()])


def _named(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(
            f"found {unknown[0]!r}, expected some of {', '.join(known)}, with commas between"
        )
    return names


def measure(out: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each rule and attack."""
    bounds = UNBOUNDED if options.unbounded else {}
    for rule in options.rules:
        for name in options.attacks:
            found = [
                accuracy(
                    out / f"{rule}-{name.replace(' ', '_')}-{seed}",
                    plan_of(options.sites, seed, rule, bounds),
                    LIES.get(name),
                )
                for seed in range(1, options.seeds + 1)
            ]
            yield {
                "sites": options.sites, "rule": rule, "bounded": not options.unbounded,
                "attack": name, "honest": [round(one[0], 4) for one in found],
                "release": [round(one[1], 4) for one in found],
            }  # fmt: skip


@with_exit_codes
def main() -> int:
    """Measure from the command line; one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.attacks", description=__doc__)
    parser.add_argument("--sites", type=whole_from(2), default=3, help="the last one lies")
    parser.add_argument("--seeds", type=whole_from(1), default=3)
    parser.add_argument("--rules", type=rule_names, default=["svd"], help="of aggregation")
    parser.add_argument("--unbounded", action="store_true", help="without the default bounds")
    parser.add_argument("--out", type=new_folder, default="runs/attacks", help="a new folder")
    parser.add_argument(
        "--attacks", type=attack_names, default=list(ATTACKS), help="some of them; by default all"
    )
    options = parser.parse_args()
    for row in measure(options.out, options):
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
