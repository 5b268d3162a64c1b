"""What the status says of a site is never at odds with whether it is online."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from commands.terminal.coordinator_status import _tables  # pyright: ignore[reportPrivateUsage]
from common.bank.bank import Bank
from common.errors import StateError
from common.identity import ROOT
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from server.aggregation.influence import SiteInfluence
from server.coordinator.registry import enrolled
from server.coordinator.state import State
from server.coordinator.status import (
    Phase,
    RunStatus,
    StageStatus,
    run_status,
    site_statuses,
    with_presence,
)
from server.coordinator.superlink import Node
from tests.unit.signed_request import new_member
from tests.unit.small_bank import KEY, blob, draft

STAGE = StageStatus(
    name="stain",
    modality=Modality.CT,
    sites=("north",),
    phase=Phase.DONE,
    round=3,
    rounds=3,
    metric="f1",
    scores={"accuracy": 0.25, "bleu": 0.125, "f1": 0.75},
)


def run(doing: str) -> RunStatus:
    return RunStatus("first", True, "training", (STAGE,), {"north": doing}, None, ())


@pytest.mark.parametrize(
    ("online", "awaited", "shown"),
    [
        # The run last said so half a minute ago; the SuperLink knows better.
        (True, "offline", "connecting"),
        (False, "asked", "offline"),
        (False, "working, step 3 of 9", "offline"),
        (False, "offline", "offline"),
        (True, "asked", "asked"),
        (None, "asked", "asked"),
    ],
)
def test_presence_and_activity_agree(tmp_path: Path, online: bool | None, awaited: str, shown: str):
    state = State(tmp_path)
    new_member(state.registry, "north")
    pem = enrolled(state.registry)["north"].pem
    nodes = None if online is None else [Node(7, pem, online, None)]
    status = run(awaited)
    (site,) = site_statuses(state, status, nodes)
    assert (site.online, site.doing) == (online, shown)
    assert with_presence(status, [site]).awaited == {"north": shown}


def test_the_table_shows_the_metric_that_the_plan_names():
    console = Console(width=150)
    with console.capture() as shown:
        console.print(_tables("hub:8443", run("asked"), (), answers=True))
    assert "f1 0.750" in shown.get()
    assert "accuracy" not in shown.get() and "bleu" not in shown.get()


def test_the_table_says_that_a_released_stage_was_not_scored():
    for phase in Phase:
        status = replace(run(""), stages=(replace(STAGE, phase=phase, scores={}),))
        console = Console(width=150)
        with console.capture() as shown:
            console.print(_tables("hub:8443", status, (), answers=True))
        assert ("not scored" in shown.get()) is (phase is Phase.DONE)


def test_the_status_has_what_updates_did_in_the_last_round():
    parts = {
        "north": SiteInfluence("north", 2.5, 0.61, 0.5, 1.0, 120),
        "south": SiteInfluence("south", 7.5, -0.55, 1.0, 0.0, 10, "direction: found a cosine"),
    }
    console = Console(width=150)
    with console.capture() as shown:
        console.print(_tables("hub:8443", replace(run(""), last_round=parts), (), answers=True))
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["north", "100.0", "%", "2.5", "0.61", "0.5"] in lines
    assert ["south", "0.0", "%", "7.5", "-0.55", "direction:", "found", "a", "cosine"] in lines


def test_the_plan_of_another_run_in_a_runs_folder_is_said(tmp_path: Path):
    state = State(tmp_path)
    folder = state.run("first")
    own = load_plan(ROOT / "configs" / "demo.yaml").model_copy(update={"name": "first"})
    folder.root.mkdir(parents=True)

    def written(plan: Plan) -> None:
        folder.plan.write_text(plan.canonical() + "\n", encoding="utf-8")

    written(own.model_copy(update={"name": "next"}))
    with pytest.raises(StateError, match=r"plan\.json: found the plan 'next', expected 'first'"):
        run_status(state, "first")
    written(own)
    bank = Bank.create(folder.bank, own.base_model)
    bank.add(replace(draft(bank, "stain"), plan=own.digest), blob(0), KEY)
    assert run_status(state, "first").stages[0].phase is Phase.DONE
    written(own.model_copy(update={"seed": own.seed + 1}))
    expected = f"expected {own.digest[:12]}, by which 'stain' was released"
    with pytest.raises(StateError, match=expected):
        run_status(state, "first")
