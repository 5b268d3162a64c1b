"""What is wrong with a plan's simulated hospitals, in sentences."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from common.plan.plan import Plan
from common.plan.simulation import MOST_HOSPITALS, HospitalDifferences, UnseenHospital
from common.printable import counted, listed

#: How far the shares of sizes may be from 1 in all: decimals are rounded.
_TOLERANCE = 1e-6


def hospital_mistakes(plan: Plan) -> list[str]:
    """Return what in `simulation.hospitals` does not fit the plan's sites and tasks."""
    simulation = plan.simulation
    if simulation is None:
        return []
    if (dealt := sum(simulation.deal or ())) > MOST_HOSPITALS:
        return [
            f"simulation.deal: found {dealt} hospitals in all, expected at most {MOST_HOSPITALS}"
        ]
    if simulation.hospitals is None:
        return []
    hospitals = simulation.hospitals
    found = [
        *_name_mistakes(hospitals, simulation.deal),
        *_size_mistakes(hospitals),
        *_unseen_mistakes(hospitals, plan),
    ]
    known = dict.fromkeys(hospitals.names or plan.sites)
    for field, names in (
        ("size_shares", hospitals.size_shares or {}),
        ("noisy_labels", hospitals.noisy_labels),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            found.append(
                f"{field}: found {listed(unknown)}, expected only hospitals of the plan: "
                f"{listed(known)}"
            )
    if hospitals.size_shares and (left := [n for n in known if n not in hospitals.size_shares]):
        found.append(f"size_shares: found no share of {listed(left)}, expected one of each")
    if hospitals.skewed_tests and hospitals.label_skew is None:
        found.append("skewed_tests: found true without label_skew, expected both or neither")
    return [f"simulation.hospitals.{text}" for text in found]


def _name_mistakes(hospitals: HospitalDifferences, deal: tuple[int, ...] | None) -> Iterator[str]:
    names = hospitals.names
    if deal is None and names is not None:
        yield (
            "names: found names without simulation.deal, expected null: "
            "every site is one hospital of its own name"
        )
    elif deal is not None and (names is None or len(names) != sum(deal)):
        found = "nothing" if names is None else counted(len(names), "name")
        yield f"names: found {found}, expected {sum(deal)}: one for each hospital that is dealt"
    if names is not None and (twice := _repeated(names)):
        yield f"names: found {listed(twice)} twice, expected each once"


def _size_mistakes(hospitals: HospitalDifferences) -> Iterator[str]:
    shares = hospitals.size_shares
    if shares is None:
        return
    if hospitals.size_skew is not None:
        yield "size_skew: found it beside size_shares, expected one of the two"
    total = math.fsum(shares.values())
    if abs(total - 1) > _TOLERANCE:
        yield f"size_shares: found shares that sum to {total:g}, expected 1"


def _unseen_mistakes(hospitals: HospitalDifferences, plan: Plan) -> Iterator[str]:
    names = [one.name for one in hospitals.unseen]
    if twice := _repeated(names):
        yield f"unseen: found {listed(twice)} twice, expected each once"
    tasks = dict.fromkeys(stage.task for stage in plan.stages)
    # The first stage of each site.
    stages = {site: stage.name for stage in reversed(plan.stages) for site in stage.sites}
    dealt = frozenset(hospitals.names or ())
    for one in hospitals.unseen:
        yield from _one_unseen(one, stages, dealt, tasks)


def _one_unseen(
    one: UnseenHospital, stages: Mapping[str, str], dealt: Collection[str], tasks: Collection[str]
) -> Iterator[str]:
    if one.name in stages:
        yield (
            f"unseen: found {one.name!r}, which is a site of the stage {stages[one.name]!r}, "
            "expected a hospital that trains in no stage"
        )
    elif one.name in dealt:
        yield f"unseen: found {one.name!r}, which is one of `names`, expected another"
    unknown = [task for task in one.tasks or () if task not in tasks]
    if unknown:
        yield (
            f"unseen, {one.name!r}, tasks: found {listed(unknown)}, "
            f"expected only tasks of the plan: {listed(tasks)}"
        )


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
