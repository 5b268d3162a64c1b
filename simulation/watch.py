"""Shows a running simulation: its stage and round, and the last step of each site."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.plan.plan import Plan
from common.process.progress import Follower, ProgressEvent
from simulation.failures import with_log_texts

_REFRESH_S = 0.5
#: Where there is no terminal, a line with the current state is printed at least so often.
_STATUS_EVERY_S = 10.0


@contextmanager
def watching(run: str, plan: Plan, coordinator: Path, sites: Path) -> Generator[None]:
    """Show the events of the run while the body runs.

    Args:
        run: its title.
        coordinator: the folder with the ServerApp's events.
        sites: the folder of the sites' folders.
    """
    console = Console(stderr=True)
    view = _View(plan, sites, console)
    view.say(run, style="bold")
    tell: list[tuple[Follower, Callable[[str, ProgressEvent], None]]] = [
        (Follower(sites / name / "store" / "progress"), view.update_site) for name in plan.sites
    ]
    # Last: a stage or round that it begins clears what the sites have reported.
    tell.append((Follower(coordinator), view.update_coordinator))
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(view, tell, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(
    view: "_View",
    tell: Sequence[tuple[Follower, Callable[[str, ProgressEvent], None]]],
    console: Console,
    stop: threading.Event,
) -> None:
    with _displayed(view, console) as redraw:
        while True:
            last = stop.is_set()
            for follower, update in tell:
                for writer, event in follower.events():
                    update(writer, event)
            redraw()
            if last:
                return
            stop.wait(_REFRESH_S)


@contextmanager
def _displayed(view: "_View", console: Console) -> Generator[Callable[[], None]]:
    """Keep a table at the bottom of a terminal; without one, print a line now and then."""
    if not console.is_terminal:
        yield view.print_if_quiet
        return
    with Live(view.table(), console=console, refresh_per_second=2, transient=True) as live:
        yield lambda: live.update(view.table())


class _View:
    """The last event of each site, and lines for the events worth keeping."""

    def __init__(self, plan: Plan, sites: Path, console: Console) -> None:
        self._plan = plan
        self._folder = sites
        self._console = console
        self._sites: dict[str, ProgressEvent] = {}
        self._activity = "preparing the sites' data"
        self._printed_at = time.monotonic()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line that stays."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        self._printed_at = time.monotonic()

    def update_site(self, site: str, event: ProgressEvent) -> None:
        """Remember a site's last event."""
        self._sites[site] = event

    def print_if_quiet(self) -> None:
        """Print the current state if nothing was printed for `_STATUS_EVERY_S` seconds."""
        if time.monotonic() - self._printed_at >= _STATUS_EVERY_S:
            sites = "; ".join(
                f"{site} step {event['step']} of {event['steps']}, loss {event['loss']:.3f}"
                for site, event in sorted(self._sites.items())
            )
            self.say(f"  {self._activity}{': ' if sites else ''}{sites}")

    def table(self) -> Table:
        """Return the current activity and the sites that train, as a table."""
        table = Table(title=self._activity, title_justify="left", box=None)
        if not self._sites:
            return table
        for column in ("site", "stage", "round", "step", "loss"):
            table.add_column(column, justify="left" if column == "site" else "right")
        for site, event in sorted(self._sites.items()):
            table.add_row(
                site,
                self._plan.stages[int(event["stage"])].name,
                str(event["round"]),
                f"{event['step']}/{event['steps']}",
                f"{event['loss']:.3f}",
            )
        return table

    def update_coordinator(self, _: str, event: ProgressEvent) -> None:
        """Remember what the run is at; print what still matters later."""
        match event["event"]:
            case "meeting":
                self._activity = "starting the sites"
            case "scoring":
                self._now_scoring(event)
            case "stage":
                self._now_training(event["stage"], 1)
                stage = self._plan.stages[int(event["stage"])]
                number = f"stage {event['stage'] + 1} of {len(self._plan.stages)}"
                sites = ", ".join(stage.sites)
                self.say(f"{number}: {stage.name} ({stage.modality}) at {sites}", style="bold")
            case "round":
                rounds = self._plan.stages[int(event["stage"])].rounds
                losses = ", ".join(f"{site} {loss:.3f}" for site, loss in event["losses"].items())
                self.say(f"  round {event['round']} of {rounds}: loss {losses}")
                self._now_training(event["stage"], event["round"] + 1)
            case "refused" | "report failed":
                said = "left out: " if event["event"] == "refused" else ""
                self.say(f"  {said}{with_log_texts(event['text'], self._folder)}", "yellow")
            case "base" | "scores":
                self._say_scores(event)
            case "done":
                minutes, seconds = divmod(round(event["seconds"]), 60)
                self.say(f"done in {minutes} min {seconds} s")
            case _:
                pass

    def _now_training(self, stage: int, round_number: int) -> None:
        self._sites = {}
        self._activity = f"training {self._plan.stages[stage].name}, round {round_number}"

    def _now_scoring(self, event: ProgressEvent) -> None:
        self._sites = {}
        task = self._plan.stages[int(event["task"])].name
        model = "with the base model alone"
        if event["stage"] is not None:
            model = f"after stage {event['stage'] + 1}"
        model = "by each site, which trains it alone" if event.get("alone") else model
        self._activity = f"scoring {task} {model}"

    def _say_scores(self, event: ProgressEvent) -> None:
        if event["event"] == "base":
            score = "unknown" if event["score"] is None else f"{100 * event['score']:.0f}"
            self.say(f"  base model: {score}")
            self._now_training(int(event["task"]), 1)
            return
        scores = ", ".join(
            f"{stage.name} {100 * score:.0f}"
            for stage, score in zip(self._plan.stages, event["scores"], strict=True)
            if score is not None
        )
        self.say(f"  scores: {scores}")
