"""The paper's table once more, by its published rules and in plain Python: a reference for tests.

Nothing here is the code under test, but for the word tables of the VQA evaluation, which are data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[3]
#: A part of the paper's answers, with the figures of that part (README.md there).
EXCERPT = Path(__file__).parent / "paper_answers"
#: All of them, with the figures that the authors printed; not in a clone of the repository.
CASES = ROOT.parent / "shared" / "data" / "paper_answers"
NAMES = ("cr8_cxp", "cr8_nmi", "cr8_slake-vqarad", "each_cxp", "each_derm")
TABLES = json.loads((ROOT / "common" / "vqa_normalization.json").read_text(encoding="utf-8"))
#: What BLEU takes for an n-gram order without a match: the smallest normal float.
TINY = 2.0**-1022


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def printed(folder: Path) -> list[list[str]]:
    """The names and figures of a case's metrics.txt."""
    rows = (folder / "metrics.txt").read_text(encoding="utf-8").splitlines()[2:]
    return [row.rsplit(None, 1) for row in rows if row.strip()]


def table(lines: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The rows of metrics.txt for these answers."""
    judged = [(line["answer_type"], judge(line["text"], line["gt"])) for line in lines]
    opened = [one for kind, one in judged if kind == "OPEN"]
    closed = [one for kind, one in judged if kind == "CLOSED"]
    figures = {"exact match score": [one["exact match score"] for _, one in judged]}
    if opened:
        names = [name for name in opened[0] if name not in ("exact match score", "close accuracy")]
        figures |= {name: [one[name] for one in opened] for name in names}
    if closed:
        figures["close accuracy"] = [one["close accuracy"] for one in closed]
    return [[name, f"{100 * fmean(values):g}"] for name, values in figures.items()]


def judge(text: str, truth: str) -> dict[str, float]:
    """Every figure of one answer, a fraction."""
    said, true = normal(text.lower().replace("assistant:", "").strip()), normal(truth.lower())
    precision, recall = token_overlap(normal(said).split(), normal(true).split())
    both = precision + recall
    orders = [clipped_precision(said.split(), true.split(), n) for n in (1, 2, 3, 4)]
    penalty = brevity(len(said.split()), len(true.split())) if orders[0] else 0.0
    shares = [share or TINY for share in orders]
    return {
        "exact match score": said == true,
        "f1 score": 2 * precision * recall / both if both else 0.0,
        "precision": precision,
        "recall": recall,
        "bleu_score": penalty * math.prod(share**0.25 for share in shares),
        "bleu_score_1": penalty * shares[0],
        "bleu_score_2": penalty * shares[1],
        "bleu_score_3": penalty * shares[2],
        "close accuracy": true in said,
    }


def normal(text: str) -> str:
    """The text as the VQA evaluation normalizes a word."""
    padded = f"\n{text}\n"
    thousands = any(
        mark == "," and before.isdigit() and after.isdigit()
        for before, mark, after in zip(padded, padded[1:], padded[2:], strict=False)
    )
    clean = text
    for mark in TABLES["punctuation"]:
        beside_a_space = (mark, " ") in [*pairwise(text)] or (" ", mark) in [*pairwise(text)]
        clean = clean.replace(mark, "" if thousands or beside_a_space else " ")
    kept, removed = "", 0
    for letter, after in pairwise([*clean, ""]):
        if letter == "." and not after.isdigit() and removed < 32:
            removed += 1
        else:
            kept += letter
    words = [TABLES["manual_map"].get(word, word) for word in kept.lower().split()]
    words = [word for word in words if word not in TABLES["articles"]]
    return " ".join(TABLES["contractions"].get(word, word) for word in words)


def token_overlap(said: list[str], true: list[str]) -> tuple[float, float]:
    """Precision and recall; a common word counts as often as the answer has it."""
    common = sum(word in true for word in said)
    missed = sum(word not in said for word in true)
    return (common / len(said), common / (common + missed)) if common else (0.0, 0.0)


def clipped_precision(said: list[str], true: list[str], order: int) -> float:
    """The share of the answer's n-grams that cross out one of the truth's."""
    grams = [said[at : at + order] for at in range(len(said) - order + 1)]
    left = [true[at : at + order] for at in range(len(true) - order + 1)]
    hits = 0
    for gram in grams:
        if gram in left:
            left.remove(gram)
            hits += 1
    return hits / max(1, len(grams))


def brevity(said: int, true: int) -> float:
    return 1.0 if said > true else math.exp(1 - true / said)
