"""From 8 to 200 stages and from 8 to 1,000 sites: what grows, measured and drawn.

    python -m benchmarks.scale [--json FILE] [--images FOLDER]

Minutes on one core. Figures are process time, which a busy machine disturbs less than a clock's;
docs/scale.md says what they mean.
"""
# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.scale.sites import SITES, sites
from benchmarks.scale.stages import STAGES, Series, stages
from benchmarks.step import one_thread
from report.canvas import MARKERS, STYLE, Chart, render
from report.style.colours import COLOURS

#: What the picture of the stages shows.
_OF_STAGES = (
    "step, fold", "step, stack", "fold: read and sum the adapters",
    "site: check the releases, first time",
    "bank open, first time", "bank open, again",
)  # fmt: skip
_OF_SITES = (
    "a round: messages", "check the updates' compatibility", "merge, fedavg", "merge, svd",
    "a round: accept, journal, merge",
)  # fmt: skip


def run(
    stage_counts: Sequence[int] = STAGES, site_counts: Sequence[int] = SITES, repeats: int = 5
) -> dict[str, dict[str, Series]]:
    """Measure every series along the stages and along the sites, by name."""
    with one_thread():
        return {"stages": stages(stage_counts, repeats), "sites": sites(site_counts, repeats)}


def document(found: Mapping[str, Mapping[str, Series]]) -> dict[str, object]:
    """Return the series as JSON: unit, figures by count, and the last over the first."""
    return {
        along: {
            one.name: {
                "unit": one.unit,
                "values": {str(count): value for count, value in one.values.items()},
                "growth": one.growth,
            }
            for one in series.values()
        }
        for along, series in found.items()
    }


def pictures(found: Mapping[str, Mapping[str, Series]]) -> list[Chart]:
    """Draw one chart of the stages and one of the sites; titles follow from the figures."""
    of_stages, of_sites = found["stages"], found["sites"]
    step, opened = of_stages["step, fold"], of_stages["bank open, first time"]
    many, whole = list(step.values)[-1], of_sites["a round: accept, journal, merge"]
    return [
        _drawn(
            "scale_stages.png",
            f"A step on {many} folded adapters takes {step.growth:.2f} times one on "
            f"{next(iter(step.values))}; the bank opens in {opened.values[many]:.0f} ms",
            "stages in the bank",
            [of_stages[name] for name in _OF_STAGES],
        ),
        _drawn(
            "scale_sites.png",
            f"From {next(iter(whole.values))} to {list(whole.values)[-1]} sites the coordinator's "
            f"work for one grows {whole.growth:.1f} times, {of_sites['merge, svd'].growth:.1f} "
            "times in svd alone",
            "sites of a round",
            [of_sites[name] for name in _OF_SITES],
        ),
    ]


def _drawn(file: str, finding: str, across: str, series: Sequence[Series]) -> Chart:
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2))
        axes = figure.subplots()
        for one, colour, marker in zip(series, COLOURS, MARKERS, strict=False):
            axes.plot(
                list(one.values), list(one.values.values()), color=colour, marker=marker,
                markersize=4, linewidth=1.4, label=f"{one.name} ({one.unit})",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=across, ylabel="ms of process time")
        counts = sorted({count for one in series for count in one.values})
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(True, which="major")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        described = "; ".join(f"{one.name}: {_words(one)}" for one in series)
        return render(figure, file, finding, described)


def _words(one: Series) -> str:
    return ", ".join(f"{value:.3g} at {count}" for count, value in one.values.items())


def main(arguments: Sequence[str]) -> int:
    """Measure, print the figures, write the files that are asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--images", type=Path, help="write the charts to this folder")
    options = parser.parse_args(arguments)
    found = run()
    for along, series in found.items():
        for one in series.values():
            sys.stdout.write(f"{along:7} {one.name:34} {one.unit:10} {_words(one)}\n")
    if options.json is not None:
        options.json.write_text(json.dumps(document(found), indent=1) + "\n", encoding="utf-8")
    if options.images is not None:
        options.images.mkdir(parents=True, exist_ok=True)
        for one in pictures(found):
            (options.images / one.file).write_bytes(one.content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
