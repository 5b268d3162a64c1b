"""A plan becomes the run that is wanted."""

from contextlib import closing
from pathlib import Path

from common.durable import DISK, write_file
from common.errors import StateError
from common.plan import Plan
from common.plan_file import load_plan
from common.signing import SigningKey
from server.coordinator.events import told_bytes
from server.coordinator.registry import enrolled
from server.coordinator.state import State, Wanted
from server.run.journal import Journal


def want(state: State, plan_file: Path) -> Wanted:
    """From now on the keeper keeps a run of this plan going.

    Raises:
        PlanError: the plan is wrong.
        StateError: a site is not enrolled, another run is going on, or the run of this name
            was begun with another plan.
    """
    plan = load_plan(plan_file)
    _check_sites(state, plan, plan_file)
    before = state.wanted
    if before is not None and before.run != plan.name:
        raise StateError(
            f"{plan_file}: found the run {before.run!r} going on, expected none beside it; "
            "`fedmslora coordinator stop` ends it"
        )
    _prepare(state, plan)
    if before is not None and not before.stop:
        return before
    wanted = Wanted(run=plan.name, since=told_bytes(state.coordinator_news(plan.name)))
    state.want(wanted)
    return wanted


def _check_sites(state: State, plan: Plan, plan_file: Path) -> None:
    known = enrolled(state.registry)
    missing = [site for site in plan.sites if site not in known]
    if missing:
        raise StateError(
            f"{plan_file}: found the sites {', '.join(missing)} that are not enrolled, expected "
            f"only enrolled ones ({', '.join(known) or 'there are none'}); "
            "`fedmslora coordinator enroll` lets them in"
        )


def _prepare(state: State, plan: Plan) -> None:
    folder = state.run(plan.name)
    # Refuses another plan in the folder of an earlier one, and names what changed.
    with closing(Journal(folder, plan)):
        pass
    write_file(folder.plan, plan.canonical().encode(), DISK)
    if not folder.key.exists():
        SigningKey.load(state.key).save(folder.key)
