"""The retrieval benchmark: search and product agree, and each process reports its own memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.retrieval import search as bench
from benchmarks.retrieval.search import IndexSizes, random_vectors, run

SMALL = IndexSizes(vectors=3000, width=16, captions=200, queries=3, top=5, rows=1100)


def test_the_benchmark_reports_what_it_measured(monkeypatch: pytest.MonkeyPatch):
    real = bench.in_own_process
    parts: list[str] = []

    def here(
        part: str, folder: Path, sizes: IndexSizes, threads: int, repeats: int
    ) -> Mapping[str, Any]:
        """Only one part gets a process: each of them takes a second to start."""
        parts.append(part)
        if part == "bm25":
            return real(part, folder, sizes, threads, repeats)
        return bench.measured_part(part, folder, sizes, repeats)

    monkeypatch.setattr(bench, "in_own_process", here)
    outcome = json.loads(json.dumps(run(2, SMALL).to_json()))
    settings = outcome["settings"]
    assert outcome["name"] == "retrieval"
    assert outcome["equal_to"] < 1e-5
    assert outcome["ratio"] == outcome["theirs"] / outcome["ours"]
    assert settings["products"] == 1 / settings["paired_ratio"]
    assert (settings["vectors"], settings["rows"], settings["repeats"]) == (3000, 1100, 2)
    assert set(settings["memory"]) == {"vectors", "query", "bm25", "query_bm25"}
    assert parts == ["vectors", "query", "bm25", "query_bm25", "plain", "time"]
    # An interpreter with numpy and FAISS takes more than 20 MB; the peak of the others is this
    # process's, with all tests that ran in it before.
    assert all(20e6 < size for size in settings["memory"].values())
    assert settings["memory"]["bm25"] < 2e9


def test_vectors_do_not_depend_on_where_a_shard_begins():
    whole = random_vectors(0, 3000, 4)
    np.testing.assert_array_equal(random_vectors(1000, 3000, 4), whole[1000:])
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
