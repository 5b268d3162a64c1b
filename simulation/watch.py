"""Shows a running simulation: stage, round, and what each site is at."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.plan import Plan
from common.progress import Follower, News

_REFRESH_S = 0.5


@contextmanager
def watching(run: str, plan: Plan, coordinator: Path, sites: Path) -> Generator[None]:
    """Show what is told in these folders while the body runs; `run` is its title."""
    console = Console(stderr=True)
    view = _View(run, plan, console)
    followers = [Follower(coordinator)]
    followers += [Follower(sites / name / "store" / "progress") for name in plan.sites]
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
    with _table(view, console) as redraw:
        while True:
            last = stop.is_set()
            for follower in followers:
                for writer, news in follower.news():
                    view.take(writer, news)
            redraw()
            if last:
                return
            stop.wait(_REFRESH_S)


@contextmanager
def _table(view: "_View", console: Console) -> Generator[Callable[[], None]]:
    """A table that stays at the bottom of a terminal; nothing where there is none."""
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(view.table(), console=console, refresh_per_second=2, transient=True) as live:
        yield lambda: live.update(view.table())


class _View:
    """What was told last of each site, and lines for what is worth keeping."""

    def __init__(self, run: str, plan: Plan, console: Console) -> None:
        self._run = run
        self._plan = plan
        self._console = console
        self._sites: dict[str, News] = {}
        self._title = f"{run}: scoring the base model"
        self._row: dict[int, float] = {}

    def take(self, writer: str, news: News) -> None:
        """Remember one piece of news; print it if it will still matter later."""
        if writer != "coordinator":
            self._sites[writer] = news
            return
        stages = self._plan.stages
        match news["event"]:
            case "stage":
                number = news["stage"]
                stage = stages[number]
                self._row = {}
                self._title = (
                    f"{self._run}: stage {number + 1} of {len(stages)}, "
                    f"{stage.name} ({stage.modality})"
                )
                self._console.print(self._title, style="bold")
            case "round":
                losses = ", ".join(f"{s} {loss:.3f}" for s, loss in news["losses"].items())
                rounds = stages[news["stage"]].rounds
                self._console.print(f"  round {news['round']} of {rounds}: loss {losses}")
            case "refused":
                self._console.print(f"  left out: {news['text']}", style="yellow", markup=False)
            case "score":
                self._row[news["task"]] = news["score"]
                if len(self._row) == news["stage"] + 1:
                    scores = ", ".join(
                        f"{stages[task].name} {100 * score:.0f}"
                        for task, score in self._row.items()
                    )
                    self._console.print(f"  scores: {scores}")
            case _:
                pass

    def table(self) -> Table:
        """The sites as they are now."""
        table = Table(title=self._title, title_justify="left", box=None)
        for column in ("site", "stage", "round", "step", "loss"):
            table.add_column(column, justify="left" if column == "site" else "right")
        for site, news in sorted(self._sites.items()):
            table.add_row(
                site,
                self._plan.stages[news["stage"]].name,
                str(news["round"]),
                f"{news['step']}/{news['steps']}",
                f"{news['loss']:.3f}",
            )
        return table
