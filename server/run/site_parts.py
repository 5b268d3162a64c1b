"""Every site's part in a run, for the report: from the bank and the journal."""

from common.bank.bank import Bank
from common.plan.plan import Plan
from report.sites.model import SiteClaim, SiteParts, UpdatePart
from server.run.journal import Journal


def site_parts(plan: Plan, bank: Bank, journal: Journal) -> SiteParts:
    """Return what each site says of itself, and what its updates did in each round."""
    return SiteParts(
        self_reported={
            release.name: {
                site: SiteClaim(
                    examples=said.examples, questions=said.questions, scores=dict(said.scores)
                )
                for site, said in (release.self_reported or {}).items()
            }
            for release in bank.releases
        },
        updates=tuple(
            UpdatePart(
                stage=plan.stages[stage].name,
                round=number,
                site=one.site,
                norm=one.norm,
                cosine=one.cosine,
                scaled=one.scaled,
                share=one.share,
                outlier=one.outlier,
            )
            for stage, number, one in journal.influences()
        ),
    )
