"""Follows a run as it tells what it does: lines that stay, and what it is at."""

from collections.abc import Iterator
from pathlib import Path

from common.errors import StateError
from common.plan import Plan
from common.plan_file import load_plan
from common.process.progress import News
from server.coordinator.events import ending, read_news, read_on, told_bytes
from server.coordinator.state import State, Wanted
from server.coordinator.status import doing


class Follow:
    """One run, followed from the moment it was wanted.

    Attributes:
        at: what is going on now, in words.
    """

    def __init__(self, state: State, wanted: Wanted) -> None:
        self._state = state
        self._wanted = wanted
        self._plan: Plan = load_plan(state.run(wanted.run).plan)
        self._file = state.coordinator_news(wanted.run)
        self._keeper = self._file.with_name("keeper.jsonl")
        self._read = {self._file: wanted.since, self._keeper: told_bytes(self._keeper)}
        self._said: set[str] = set()
        self.at = ""

    def lines(self) -> Iterator[str]:
        """A line for each thing that was told since the last call and is worth keeping."""
        for news in self._new(self._keeper):
            if news.get("after"):
                yield f"started again (before: {news['after']})"
        for news in self._new(self._file):
            self.at = self._at(news) or self.at
            line = _line(self._plan, news)
            if line and line not in self._said:
                # A run that resumes tells again what it did before.
                self._said.add(line)
                yield line

    def ended(self) -> bool:
        """Whether the run is done.

        Raises:
            StateError: it failed, or somebody stopped it.
        """
        # Before the news: a run that ends tells so first, and is wanted no more then.
        wanted = self._state.wanted
        end = ending(read_news(self._file, self._wanted.since))
        if end is not None and end["event"] == "failed":
            raise StateError(str(end["text"]))
        if end is None and wanted != self._wanted:
            raise StateError(f"{self._wanted.run}: stopped; `fedmslora coordinator run` goes on")
        return end is not None

    def _new(self, file: Path) -> list[News]:
        news, self._read[file] = read_on(file, self._read[file])
        return news

    def _at(self, news: News) -> str:
        if news["event"] != "waiting":
            return doing(self._plan, news)
        waits = ", ".join(f"{site} ({what})" for site, what in news["for"].items())
        at = doing(self._plan, news) or self.at.partition("; waiting for ")[0]
        return f"{at}; waiting for {waits}" if waits else at


def _line(plan: Plan, news: News) -> str:
    """What stays on the screen of a piece of news; empty for most."""
    match news["event"]:
        case "stage":
            stage = plan.stages[int(news["stage"])]
            number = f"stage {news['stage'] + 1} of {len(plan.stages)}"
            return f"{number}: {stage.name} ({stage.modality}) at {', '.join(stage.sites)}"
        case "round":
            losses = ", ".join(f"{site} {loss:.3f}" for site, loss in news["losses"].items())
            rounds = plan.stages[int(news["stage"])].rounds
            return f"  round {news['round']} of {rounds}: loss {losses}"
        case "refused":
            return f"  left out: {news['text']}"
        case "released":
            return f"  released {plan.stages[int(news['stage'])].name}"
        case "scores":
            return f"  scores: {_scores(plan, news)}"
        case "done":
            minutes, seconds = divmod(round(news["seconds"]), 60)
            return f"done in {minutes} min {seconds} s"
        case _:
            return ""


def _scores(plan: Plan, news: News) -> str:
    return ", ".join(
        f"{stage.name} {100 * score:.0f}"
        for stage, score in zip(plan.stages, news["scores"], strict=True)
        if score is not None
    )
