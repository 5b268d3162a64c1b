"""Shows a running simulation: stage, round, and what each site is at."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.plan import Plan
from common.process.progress import Follower, ProgressEvent
from simulation.failures import in_the_sites_words

_REFRESH_S = 0.5
#: Where there is no terminal, a line says what is going on after so long without one.
_SILENCE_S = 10.0


@contextmanager
def watching(run: str, plan: Plan, coordinator: Path, sites: Path) -> Generator[None]:
    """Show what is told in these folders while the body runs; `run` is its title."""
    console = Console(stderr=True)
    view = _View(plan, sites, console)
    view.say(run, style="bold")
    followers = [Follower(sites / name / "store" / "progress") for name in plan.sites]
    # The last: what it begins ends what the sites have told so far.
    followers.append(Follower(coordinator))
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(view, followers, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(
    view: "_View", followers: list[Follower], console: Console, stop: threading.Event
) -> None:
    with _shown(view, console) as redraw:
        while True:
            last = stop.is_set()
            for follower in followers:
                for writer, news in follower.events():
                    view.take(writer, news)
            redraw()
            if last:
                return
            stop.wait(_REFRESH_S)


@contextmanager
def _shown(view: "_View", console: Console) -> Generator[Callable[[], None]]:
    """A table that stays at the bottom of a terminal; a line now and then where there is none."""
    if not console.is_terminal:
        yield view.break_silence
        return
    with Live(view.table(), console=console, refresh_per_second=2, transient=True) as live:
        yield lambda: live.update(view.table())


class _View:
    """What was told last of each site, and lines for what is worth keeping."""

    def __init__(self, plan: Plan, sites: Path, console: Console) -> None:
        self._plan = plan
        self._folder = sites
        self._console = console
        self._sites: dict[str, ProgressEvent] = {}
        self._at = "preparing the sites' data"
        self._spoken = time.monotonic()

    def say(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        self._spoken = time.monotonic()

    def take(self, writer: str, news: ProgressEvent) -> None:
        """Remember one piece of news; print it if it will still matter later."""
        if writer == "coordinator":
            self._take(news)
        else:
            self._sites[writer] = news

    def break_silence(self) -> None:
        """A line about now, if there was none for long."""
        if time.monotonic() - self._spoken >= _SILENCE_S:
            sites = "; ".join(
                f"{site} step {news['step']} of {news['steps']}, loss {news['loss']:.3f}"
                for site, news in sorted(self._sites.items())
            )
            self.say(f"  {self._at}{': ' if sites else ''}{sites}")

    def table(self) -> Table:
        """What is going on now, and the sites that train."""
        table = Table(title=self._at, title_justify="left", box=None)
        if not self._sites:
            return table
        for column in ("site", "stage", "round", "step", "loss"):
            table.add_column(column, justify="left" if column == "site" else "right")
        for site, news in sorted(self._sites.items()):
            table.add_row(
                site,
                self._plan.stages[int(news["stage"])].name,
                str(news["round"]),
                f"{news['step']}/{news['steps']}",
                f"{news['loss']:.3f}",
            )
        return table

    def _take(self, news: ProgressEvent) -> None:
        match news["event"]:
            case "meeting":
                self._at = "starting the sites"
            case "scoring":
                self._now_scoring(news)
            case "stage":
                self._now_training(news["stage"], 1)
                stage = self._plan.stages[int(news["stage"])]
                number = f"stage {news['stage'] + 1} of {len(self._plan.stages)}"
                sites = ", ".join(stage.sites)
                self.say(f"{number}: {stage.name} ({stage.modality}) at {sites}", style="bold")
            case "round":
                rounds = self._plan.stages[int(news["stage"])].rounds
                losses = ", ".join(f"{site} {loss:.3f}" for site, loss in news["losses"].items())
                self.say(f"  round {news['round']} of {rounds}: loss {losses}")
                self._now_training(news["stage"], news["round"] + 1)
            case "refused":
                self.say(f"  left out: {in_the_sites_words(news['text'], self._folder)}", "yellow")
            case "base" | "scores":
                self._say_scores(news)
            case "done":
                minutes, seconds = divmod(round(news["seconds"]), 60)
                self.say(f"done in {minutes} min {seconds} s")
            case _:
                pass

    def _now_training(self, stage: int, round_number: int) -> None:
        self._sites = {}
        self._at = f"training {self._plan.stages[stage].name}, round {round_number}"

    def _now_scoring(self, news: ProgressEvent) -> None:
        self._sites = {}
        task = self._plan.stages[int(news["task"])].name
        knowing = "by the base model alone"
        if news["stage"] is not None:
            knowing = f"after stage {news['stage'] + 1}"
        self._at = f"scoring {task} {knowing}"

    def _say_scores(self, news: ProgressEvent) -> None:
        if news["event"] == "base":
            score = "unknown" if news["score"] is None else f"{100 * news['score']:.0f}"
            self.say(f"  base model: {score}")
            self._now_training(int(news["task"]), 1)
            return
        scores = ", ".join(
            f"{stage.name} {100 * score:.0f}"
            for stage, score in zip(self._plan.stages, news["scores"], strict=True)
            if score is not None
        )
        self.say(f"  scores: {scores}")
