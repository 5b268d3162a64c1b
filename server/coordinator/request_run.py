"""Requests a run of a plan, which the keeper then supervises (server/coordinator/keeper.py)."""

from contextlib import closing
from pathlib import Path

from common.durable import DISK, write_file
from common.errors import StateError
from common.plan.file import load_plan
from common.process.progress import read_events
from common.signing import SigningKey
from server.coordinator.registry import enrolled, read_sites
from server.coordinator.state import RequestedRun, State
from server.run.journal import Journal


def request_run(state: State, plan_file: Path) -> RequestedRun:
    """Request a run of this plan; return the earlier request where there is one.

    A run that has begun continues after a site has left: where a stage's quorum is met without it.

    Raises:
        PlanError: the plan is wrong.
        StateError: a site is not enrolled, a run of another plan is requested, or a run of this
            name has begun with another plan.
    """
    plan = load_plan(plan_file)
    known = set(enrolled(state.registry))
    if state.run(plan.name).journal.exists():
        known |= {site.name for site in read_sites(state.registry)}
    missing = [site for site in plan.sites if site not in known]
    if missing:
        raise StateError(
            f"{plan_file}: found the sites {', '.join(missing)} that are not enrolled, expected "
            f"only enrolled ones ({', '.join(sorted(known)) or 'there are none'}); "
            "`fedmslora coordinator enroll` enrolls them"
        )
    before = state.requested_before(plan.name)
    folder = state.run(plan.name)
    # Refuses a folder that an earlier plan was run in, and names what changed.
    with closing(Journal(folder, plan)):
        pass
    write_file(folder.plan, plan.canonical().encode(), DISK)
    if not folder.key.exists():
        SigningKey.load(state.key).save(folder.key)
    if before is not None and not before.stop:
        return before
    _, written = read_events(state.events_file(plan.name))
    requested = RequestedRun(run=plan.name, since=written)
    state.request(requested)
    return requested
