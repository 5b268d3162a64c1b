"""What every hospital gains, as far as sites agreed to train alone: from their scores only."""

from collections.abc import Mapping
from contextlib import closing

from common.bank.bank import Bank
from common.exchange import Order, Scores
from common.plan.plan import Plan
from report.hospitals.gains import OwnScores, SeedScores, StageMeasure, hospital_results
from report.hospitals.model import ALONE, FEDERATED, HospitalsReport
from server.run.folder import RunFolder
from server.run.journal import Journal
from server.run.pooling import pooled
from server.run.selection import order_at_end
from server.run.stage import ModelSelection, alone_order, scoring_order


def hospitals_of(plan: Plan, folder: RunFolder) -> HospitalsReport | None:
    """Return what every hospital of a finished run gains; None if the plan does not ask.

    A site alone has the base model and its own adapter of the stage. A site that declined has
    no score alone.
    """
    if not plan.evaluation.local:
        return None
    bank = Bank.open(folder.bank)
    own: dict[tuple[str, int], OwnScores] = {}
    elsewhere: dict[int, Mapping[str, float | None]] = {}
    with closing(Journal(folder, None)) as journal:
        for number, stage in enumerate(plan.stages):
            alone = _scores(journal, alone_order(plan, number))
            base = _scores(journal, scoring_order(plan, number, ModelSelection()))
            federated = _scores(journal, order_at_end(plan, bank, number))
            for site in stage.sites:
                found = {ALONE: alone.get(site), FEDERATED: federated.get(site)}
                own[site, number] = OwnScores(
                    scores={
                        column: None if one is None else one.metrics.get(stage.metric)
                        for column, one in found.items()
                    }
                )
            elsewhere[number] = {
                column: pooled(
                    ((one.questions, one.metrics) for one in found.values()), plan.robustness
                ).get(stage.metric)
                for column, found in ((ALONE, base), (FEDERATED, federated))
            }
    stages = [StageMeasure(name=s.name, measure=s.metric, sites=s.sites) for s in plan.stages]
    seed = SeedScores(seed=plan.seed, own=own, elsewhere=elsewhere)
    hospitals, together = hospital_results(stages, [seed])
    return HospitalsReport(
        method=plan.method.label,
        seeds=(plan.seed,),
        hospitals=tuple(hospitals),
        together=tuple(together),
    )


def _scores(journal: Journal, order: Order) -> dict[str, Scores]:
    return {
        site: answer
        for site, answer in journal.answered(order).items()
        if isinstance(answer, Scores)
    }
