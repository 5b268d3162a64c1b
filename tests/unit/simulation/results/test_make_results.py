from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import StateError
from simulation.experiments.experiments import Experiment, load_experiment
from simulation.experiments.result_file import ResultsFolder, write_result
from simulation.results import make_results as make_results_module
from simulation.results.cells import Collected, collect, load_experiments
from simulation.results.document import DocumentPaths, document
from simulation.results.make_results import ResultsOptions, main, make_results, progress_line
from tests.unit.made_results import SEQUENTIAL, even, result, variants, write_experiment

LAST = {"evaluation.earlier": "last"}
EXP: Any = {"method.contrast": {"similarity": "exp", "orthogonality": None}}
EXPERIMENTS: Any = {
    "order": {
        "order": {"paper": {}, "back": {"stages.order": ["three", "two", "one"]}},
        "method": {"mslora": {}},
    },
    "methods": {"method": {
        "separate": {"method.active": "none"}, "mslora": {},
        "sequential": {"method": SEQUENTIAL, **LAST},
    }},
    "regularizer": {
        "data": {"full": {}, "few": {"simulation.train_fraction": 0.1}},
        "similarity": {"none": {}, "exp": EXP},
        "alpha": {"0": {}, "1": {"method.contrast.weight": 1.0},
                  "10": {"method.contrast.weight": 10.0}},
    },
    "pictures": {"variant": {"mslora": {}, "warm": {"method.start": "modality"}}},
}  # fmt: skip
ONLY: Any = {
    "regularizer": [
        {"similarity": ["none"], "alpha": ["0"]}, {"similarity": ["exp"], "alpha": ["1", "10"]},
    ]
}  # fmt: skip


REFERENCES: Any = {
    "methods": [{"settings": {"method": "separate"}}],
    "regularizer": [{"settings": {"alpha": "10"}}],
}


def made(folder: Path, seeds: int = 3) -> ResultsOptions:
    """Four experiments with all results but those of the last seed of what is regularized."""
    for name, axes in EXPERIMENTS.items():
        file = write_experiment(
            folder / "e", name, axes, only=ONLY.get(name), references=REFERENCES.get(name, [])
        )
        for variant in variants(load_experiment(file)):
            if variant.seed == 2 and "exp" in variant.settings.values():
                continue
            if variant.seed < seeds:
                score = 0.5 + 0.1 * variant.seed + int(variant.plan.digest[:3], 16) / 50_000
                final = [*even(0.3)[:2], [score] * 4] if variant.plan.method.name == "sequential" \
                    else None  # fmt: skip
                write_result(folder / "r", result(variant.plan, even(score), final))
    doc = folder / "docs" / "results.md"
    return ResultsOptions(
        results=folder / "r", experiments=folder / "e", doc=doc, workers=1,
        draw_only=True, resamples=100,
    )  # fmt: skip


def known(options: ResultsOptions) -> list[Collected]:
    results = ResultsFolder(options.results)
    return [collect(one, results) for one in load_experiments(options.experiments)]


def written(options: ResultsOptions) -> dict[str, bytes]:
    return {
        file.relative_to(options.doc.parent).as_posix(): file.read_bytes()
        for file in sorted(options.doc.parent.rglob("*"))
        if file.is_file()
    }


def test_a_second_draw_writes_the_same_bytes(tmp_path: Path):
    options = made(tmp_path)
    assert make_results(options) == 4
    first = written(options)
    assert first.keys() == {
        "results.md", "images/results_methods.png", "images/results_regularizer.png",
        "images/results_order.png", "images/results_pictures.png",
    }  # fmt: skip
    for file in options.doc.parent.rglob("*.png"):
        file.unlink()
    make_results(options)
    assert written(options) == first


def test_every_picture_is_shown_and_every_part_has_its_place(tmp_path: Path):
    options = made(tmp_path)
    found = document(known(options), DocumentPaths("r", "e", "images"), "", 100)
    titles = [line for line in found.text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Set-up", "## How to read it", "## (a) The methods", "## (b) The order of arrival",
        "## (c) Alone, federated, pooled on real pictures", "## (d) The regularizer",
    ]  # fmt: skip
    for picture in found.pictures:
        assert f"](images/{picture.file})" in found.text


def test_the_states_of_the_code_that_made_the_results_are_told(tmp_path: Path):
    options = made(tmp_path)
    make_results(options)
    assert "run by one state of the code, `0`." in options.doc.read_text(encoding="utf-8")
    first = known(options)[0].cells[0]
    write_result(options.results, replace(first.results[0], code="1"))
    make_results(options)
    text = options.doc.read_text(encoding="utf-8")
    assert "run by 2 states of the code" in text and "and `1` (1). A result" in text


def test_missing_results_are_named_and_the_rest_is_told_with_its_n(tmp_path: Path):
    options = made(tmp_path)
    make_results(options)
    text = options.doc.read_text(encoding="utf-8")
    assert (
        "**4 of 18 runs on the test have no result yet**: full, exp, alpha 1; full, exp, alpha 10; "
        in text
    )
    assert "few, exp, alpha 10 (seed 2)." in text
    assert "| regularizer | made (3 tasks) | 6 | 0 | 0 | 18 | 14 |" in text
    rows = [
        line for line in text.splitlines() if line.startswith("| full: exp, alpha 1 less alpha 10")
    ]
    assert [row.split("|")[2].strip() for row in rows] == ["2"]


def test_without_any_result_the_document_claims_nothing(tmp_path: Path):
    options = made(tmp_path, seeds=0)
    make_results(options)
    text = options.doc.read_text(encoding="utf-8")
    assert "## Not run yet\n\n- `methods`: Why?\n- `order`: Why?\n" in text
    assert "| regularizer | made (3 tasks) | 6 | 0 | 0 | 18 | 0 |" in text
    assert "### Tests" not in text and "## (a)" not in text
    assert not [*options.doc.parent.rglob("*.png")]


def test_what_was_written_by_hand_stands_at_the_end(tmp_path: Path):
    options = made(tmp_path)
    make_results(options)
    assert "none is written by hand" in options.doc.read_text(encoding="utf-8")
    by_hand = options.doc.with_name("results_discussion.md")
    by_hand.write_text("## What we make of it\n\nNot much.\n", encoding="utf-8")
    make_results(options)
    text = options.doc.read_text(encoding="utf-8")
    assert text.endswith("\n\n## What we make of it\n\nNot much.\n")
    assert "only the discussion at the end is not" in text


def test_nothing_of_this_machine_stands_in_the_document(tmp_path: Path):
    options = made(tmp_path)
    found = document(
        known(options), DocumentPaths("docs/results", "configs/experiments", "images"), "", 100
    )
    assert str(tmp_path) not in found.text
    assert "| 0 | 3 | 0.1 | 10 | 0.00 | 2 |" in found.text
    assert (
        "- made, batches of 4 at each site: one (pathology, 2 passes, 4 test questions); two ("
        in found.text
    )


def test_where_all_results_are_there_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made(tmp_path)
    arguments = ["--results", str(tmp_path / "r"), "--experiments", str(tmp_path / "e"),
                 "--doc", str(tmp_path / "d" / "results.md"), "--only", "methods"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{tmp_path / 'd' / 'results.md'} (4 results are missing)\n"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--only", "method"], "--only: found 'method', expected one of 'methods', 'order'"),
        (["--without", "twin_*"], "--without: found 'twin_*', expected one of 'methods', 'order'"),
        (["--experiments", "nowhere", "--draw-only"], "nowhere: found no experiment"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
):
    made(tmp_path)
    arguments = ["--results", str(tmp_path / "r"), "--experiments", str(tmp_path / "e"),
                 "--doc", str(tmp_path / "d" / "results.md")]  # fmt: skip
    assert main([*arguments, *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_folder_that_cant_be_written_is_one_sentence(tmp_path: Path):
    options = made(tmp_path)
    options.doc.parent.write_text("a file", encoding="utf-8")
    with pytest.raises(StateError, match="can't be written"):
        make_results(options)


def test_experiments_are_chosen_by_patterns_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options, ran = made(tmp_path), list[str]()

    def run(experiments: Iterable[Experiment], _: ResultsOptions) -> None:
        ran.extend(one.name for one in experiments)

    monkeypatch.setattr(make_results_module, "_run", run)
    chosen = replace(options, draw_only=False, only=["*r*", "methods"], without=["reg*"])
    make_results(chosen)
    assert ran == ["methods", "order", "pictures"]


def test_no_workers_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--workers", "0"])
    assert "--workers: found 0, expected 1 at least" in capsys.readouterr().err


def test_progress_tells_how_much_is_left():
    assert progress_line(3, 10, "made", 20) == "3/10 made, less than a minute left"
    assert progress_line(3, 10, "made", 600) == "3/10 made, about 10 min left"
    assert progress_line(3, 10, "made", 9000) == "3/10 made, about 2.5 h left"
    assert progress_line(10, 10, "made", 0) == "10/10 made"
