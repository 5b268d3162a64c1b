"""The scores of a run: the matrix as it fills, and the report at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from common.bank.bank import Bank
from common.bank.release import INDEX_FILE, SelfReported
from common.code_digest import code_digest
from common.exchange import Scores
from common.metrics import (
    AMONG_OPTIONS,
    ANSWERED_AN_OPTION,
    AUC,
    CLASS_METRICS,
    FREE_ACCURACY,
    ROUTER_CONFIDENCE,
    ROUTER_KNOWN,
    ROUTER_MODALITY,
    ROUTER_STAGE,
    ZERO_SHOT,
)
from common.plan.plan import Plan
from common.work import Work
from report.model import (
    ClassScores,
    LossPoint,
    PlanFacts,
    Provenance,
    RoundCost,
    Routed,
    RunCost,
    RunReport,
    ScoresAmongOptions,
    SiteCost,
    StageFacts,
)
from report.sites.model import SiteScores
from server.run.journal import AcceptedUpdate, Journal, Traffic
from server.run.pooling import pooled
from server.run.reported_ranges import is_plausible
from server.run.site_parts import site_parts

#: Packages of the coordinator whose versions a report names; it does not know the sites'.
PACKAGES = ("flwr", "numpy", "safetensors", "pydantic")

#: Every metric by (stage, task).
Cells: TypeAlias = dict[tuple[int, int], Mapping[str, float]]
#: Shape (stages, tasks); None where nothing was scored.
Matrix: TypeAlias = tuple[tuple[float | None, ...], ...]


@dataclass(slots=True)
class Scoreboard:
    """The scores of a plan's tasks: before the first stage, and after each.

    `cells[i, j]` holds every metric of task j after stage i, and `routed_cells[i, j]` the same
    where the router chose each image's stage.
    """

    plan: Plan
    before: dict[int, Mapping[str, float]] = field(default_factory=dict[int, Mapping[str, float]])
    majority: dict[int, Mapping[str, float]] = field(default_factory=dict[int, Mapping[str, float]])
    cells: Cells = field(default_factory=dict[tuple[int, int], Mapping[str, float]])
    routed_cells: Cells = field(default_factory=dict[tuple[int, int], Mapping[str, float]])
    #: The same by site, as the sites report them.
    site_cells: dict[str, Cells] = field(default_factory=dict[str, Cells])
    site_bases: dict[str, dict[int, Scores]] = field(default_factory=dict[str, dict[int, Scores]])
    #: By site and task, the number of test questions.
    questions: dict[str, dict[int, int]] = field(default_factory=dict[str, dict[int, int]])

    def record_zero_shot(self, task: int, scores: Mapping[str, Scores]) -> None:
        """Record the scores of the base model alone, and of the most frequent answer."""
        self.before[task] = self._pooled(scores)
        self.majority[task] = self._pooled(scores, of_majority=True)
        for site, found in scores.items():
            self.site_bases.setdefault(site, {})[task] = found
            self.questions.setdefault(site, {})[task] = found.questions

    def record_release(
        self,
        stage: int,
        metrics: Mapping[str, float],
        by_site: Mapping[str, SelfReported] | None = None,
    ) -> None:
        """Record the scores of a stage's release on its own task."""
        self.cells[stage, stage] = metrics
        for site, said in (by_site or {}).items():
            if said.scores:
                self.site_cells.setdefault(site, {})[stage, stage] = said.scores
                self.questions.setdefault(site, {})[stage] = said.questions

    def record_scores(self, stage: int, task: int, scores: Mapping[str, Scores]) -> None:
        """Record the scores on `task` after `stage`."""
        self.cells[stage, task] = self._pooled(scores)
        for site, found in scores.items():
            self.site_cells.setdefault(site, {})[stage, task] = found.metrics
            self.questions.setdefault(site, {})[task] = found.questions

    def _pooled(
        self, scores: Mapping[str, Scores], *, of_majority: bool = False
    ) -> dict[str, float]:
        by_site = ((s.questions, s.majority if of_majority else s.metrics) for s in scores.values())
        return pooled(by_site, self.plan.robustness)

    def record_routed(self, stage: int, task: int, scores: Mapping[str, Scores]) -> None:
        """Record the scores on `task` after `stage` where the router chose each image's stage."""
        self.routed_cells[stage, task] = self._pooled(scores)

    def matrix(self) -> Matrix:
        """Return `matrix[i][j]`, task j after stage i; None where it was not scored."""
        return self._matrix(self.cells)

    def routed(self) -> Routed | None:
        """Return the matrices of the router; None without one."""
        if not self.routed_cells:
            return None
        return Routed(
            scores=self._matrix(self.routed_cells),
            stage=self._matrix(self.routed_cells, ROUTER_STAGE),
            modality=self._matrix(self.routed_cells, ROUTER_MODALITY),
            known=self._matrix(self.routed_cells, ROUTER_KNOWN),
            confidence=self._matrix(self.routed_cells, ROUTER_CONFIDENCE),
        )

    def among_options(self) -> ScoresAmongOptions | None:
        """Return the matrices of closed questions with options; None without any."""
        if not any(AMONG_OPTIONS in metrics for metrics in self.cells.values()):
            return None
        return ScoresAmongOptions(
            among=self._matrix(self.cells, AMONG_OPTIONS),
            free=self._matrix(self.cells, FREE_ACCURACY),
            listed=self._matrix(self.cells, ANSWERED_AN_OPTION),
        )

    def class_scores(self) -> ClassScores | None:
        """Return the measures of tasks with classes; None where the plan has none."""
        stages = self.plan.stages
        if not any(stage.classes for stage in stages):
            return None
        cells = {place: found for place, found in self.cells.items() if stages[place[1]].classes}
        own = {
            (task, task): {f"{ZERO_SHOT}{name}": value for name, value in found.items()}
            for task, found in self.before.items()
            if stages[task].classes
        }
        # When a task was learned it is asked among the classes that the base model was asked.
        base = {**cells, **own}
        return ClassScores(
            scores={name: self._matrix(cells, name) for name in CLASS_METRICS},
            zero_shot={name: self._matrix(base, f"{ZERO_SHOT}{name}") for name in CLASS_METRICS},
            majority={
                name: tuple(
                    self._measure(self.majority.get(task), task, name) if stage.classes else None
                    for task, stage in enumerate(stages)
                )
                for name in CLASS_METRICS
            },
            auc_by_site={
                site: self._matrix(cells, AUC)
                for site, cells in sorted(self.site_cells.items())
                if any(AUC in metrics for metrics in cells.values())
            },
        )

    def by_site(self) -> tuple[SiteScores, ...]:
        """Return each site's own scores in each task's measure."""
        return tuple(
            SiteScores(
                site=site,
                questions=tuple(counts.get(task) for task in range(len(self.plan.stages))),
                zero_shot=self.row(
                    {task: one.metrics for task, one in self.site_bases.get(site, {}).items()}
                ),
                majority=self.row(
                    {task: one.majority for task, one in self.site_bases.get(site, {}).items()}
                ),
                scores=self._matrix(self.site_cells.get(site, {})),
            )
            for site, counts in sorted(self.questions.items())
        )

    def row(self, metrics: Mapping[int, Mapping[str, float]]) -> tuple[float | None, ...]:
        """Return each task's own metric out of `metrics`."""
        return tuple(
            self._measure(metrics.get(task), task) for task in range(len(self.plan.stages))
        )

    def when_learned(self) -> tuple[Mapping[str, float], ...]:
        """Return every metric of each task just after it was learned."""
        stages = range(len(self.plan.stages))
        return tuple(dict(self.cells.get((task, task), {})) for task in stages)

    def _matrix(self, cells: Cells, name: str | None = None) -> Matrix:
        """Return the metric of this name; each task's own where none is given."""
        count = range(len(self.plan.stages))
        return tuple(
            tuple(self._measure(cells.get((stage, task)), task, name) for task in count)
            for stage in count
        )

    def _measure(
        self, metrics: Mapping[str, float] | None, task: int, name: str | None = None
    ) -> float | None:
        metric = name or self.plan.stages[task].metric
        return None if metrics is None else metrics.get(metric)


def run_report(plan: Plan, bank: Bank, journal: Journal, board: Scoreboard) -> RunReport:
    """Return the report of a finished run."""
    return RunReport(
        plan=PlanFacts(name=plan.name, hash=plan.digest),
        method=plan.method.label,
        seed=plan.seed,
        stages=tuple(
            StageFacts(
                name=stage.name,
                modality=stage.modality,
                task=stage.task,
                sites=stage.sites,
                metric=stage.metric,
            )
            for stage in plan.stages
        ),
        scores=board.matrix(),
        routed=board.routed(),
        options=board.among_options(),
        classes=board.class_scores(),
        all_tasks_at_once=plan.method.trains_on_all_tasks,
        zero_shot=board.row(board.before),
        majority=board.row(board.majority),
        task_metrics=board.when_learned(),
        cost=_cost(plan, journal),
        aggregation_error=tuple(release.error for release in bank.releases),
        curves=_curves(plan, journal),
        provenance=Provenance(
            base_model=plan.base_model.sha256, bank_head=bank.head, code=code_digest()
        ),
        versions={package: version(package) for package in PACKAGES},
        sites=site_parts(plan, bank, journal),
        by_site=board.by_site(),
        finished=_day(bank.folder / INDEX_FILE),
    )


def _day(file: Path) -> str:
    """Return the day on which the file was last written, in UTC."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()


def _curves(plan: Plan, journal: Journal) -> tuple[LossPoint, ...]:
    return tuple(
        LossPoint(
            stage=stage.name,
            round=round_number,
            site=update.site,
            # A journal from before such a number was refused may have it.
            loss=update.loss if is_plausible("loss", update.loss) else None,
        )
        for number, stage in enumerate(plan.stages)
        for round_number, update in journal.updates(number)
    )


def _cost(plan: Plan, journal: Journal) -> RunCost:
    traffic = journal.traffic()
    learned = [one for stage in range(len(plan.stages)) for _, one in journal.updates(stage)]
    return RunCost(
        sites={site: _site_cost(plan, site, traffic) for site in plan.sites},
        seconds=journal.seconds(),
        peak_memory_bytes=max(_plausible(learned, "peak_memory"), default=0),
        steps=sum(_plausible(learned, "steps")),
        training_seconds=sum(_plausible(learned, "seconds")),
    )


def _plausible(updates: Sequence[AcceptedUpdate], field: str) -> list[Any]:
    """Return a number of every update, without those that an earlier version let pass."""
    values = (getattr(update, field) for update in updates)
    return [value for value in values if is_plausible(field, value)]


def _site_cost(plan: Plan, site: str, traffic: Sequence[Traffic]) -> SiteCost:
    own = [part for part in traffic if part.site == site]
    return SiteCost(
        bytes_up=sum(part.bytes_up for part in own),
        bytes_down=sum(part.bytes_down for part in own),
        by_round=tuple(
            RoundCost(
                stage=plan.stages[part.stage].name,
                round=part.round,
                bytes_up=part.bytes_up,
                bytes_down=part.bytes_down,
            )
            for part in own
            if part.work == Work.TRAIN
        ),
    )
