import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.identity import ROOT
from common.metrics import (
    AnsweredQuestion,
    AnswerKind,
    Bleu,
    bleu,
    judge,
    majority_answers,
    overlap,
    paper_metrics,
    read_answers,
    task_metrics,
)
from common.plan.plan import Metric
from common.vqa_words import normalize
from tests.unit.common import paper_reference
from tests.unit.common.paper_reference import CASES, EXCERPT

OPEN, CLOSED = AnswerKind.OPEN, AnswerKind.CLOSED
OPEN_KEYS = [
    "f1 score",
    "precision",
    "recall",
    "bleu_score",
    "bleu_score_1",
    "bleu_score_2",
    "bleu_score_3",
]
BLEU_KEYS = OPEN_KEYS[3:]
words = st.lists(st.sampled_from(["left", "lung", "is", "clear", "mild"]), max_size=9).map(" ".join)


def closed(answer: str, truth: str) -> AnsweredQuestion:
    return AnsweredQuestion("q", answer, truth, CLOSED)


def opened(answer: str, truth: str) -> AnsweredQuestion:
    return AnsweredQuestion("q", answer, truth, OPEN)


@pytest.mark.parametrize("name", paper_reference.NAMES)
@pytest.mark.parametrize("cases", [EXCERPT, CASES], ids=["excerpt", "all answers"])
def test_the_papers_figures_are_reached_to_the_last_digit(cases: Path, name: str):
    if not cases.is_dir():
        pytest.skip(f"{cases} is not here: the paper's answer files come beside the repository")
    found = paper_metrics(read_answers(cases / name / "answers.jsonl"))
    figures = [[key, f"{value:g}"] for key, value in found.items()]
    assert figures == paper_reference.printed(cases / name)


@pytest.mark.parametrize("name", paper_reference.NAMES)
@pytest.mark.parametrize("cases", [EXCERPT, CASES], ids=["excerpt", "all answers"])
def test_the_reference_of_these_tests_reaches_them_too(cases: Path, name: str):
    if not cases.is_dir():
        pytest.skip(f"{cases} is not here: the paper's answer files come beside the repository")
    lines = paper_reference.lines_of(cases / name / "answers.jsonl")
    assert paper_reference.table(lines) == paper_reference.printed(cases / name)


@pytest.mark.parametrize("name", paper_reference.NAMES)
def test_every_answer_of_the_excerpt_is_judged_as_by_the_reference(name: str):
    file = EXCERPT / name / "answers.jsonl"
    for answer, line in zip(read_answers(file), paper_reference.lines_of(file), strict=True):
        found, expected = judge(answer), paper_reference.judge(line["text"], line["gt"])
        assert found.truth == paper_reference.normal(line["gt"].lower())
        assert found.exact == expected["exact match score"]
        assert found.hit == expected["close accuracy"]
        fields = {**asdict(found.overlap), **asdict(found.bleu)}
        assert list(fields.values()) == pytest.approx(
            [expected[name] for name in ("precision", "recall", "f1 score", *BLEU_KEYS)]
        )


@given(st.text(alphabet="aB0 ,.-?'\n", max_size=50))
def test_normalization_is_the_references(text: str):
    assert normalize(text) == paper_reference.normal(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Chest", "chest"),  # lower case
        ("the left lung", "left lung"),  # articles
        ("a an the", ""),  # nothing but articles
        ("Two lesions, none", "2 lesions 0"),  # number words
        ("x-ray", "x ray"),  # a mark between letters becomes a space
        ("x- ray", "x ray"),  # beside a space it is deleted
        ("x-ray -left", "xray left"),  # and then everywhere in the text
        ("1,000 x-ray", "1000 xray"),  # a number with a comma deletes every mark
        ("1,a x-ray", "1 x ray"),  # a comma without a number behind it doesn't
        ("end. of", "end of"),  # a period goes
        ("2.5 mm", "2.5 mm"),  # unless a digit follows
        ("dont", "don't"),  # contractions
        ("  two\n\tspaces ", "2 spaces"),  # white space
        ("." * 40, "." * 8),  # 32 periods at most
        ("yes?no", "yes no"),
        (" one ", "1"),
    ],
)
def test_normalization_step_by_step(text: str, normal: str):
    assert normalize(text) == normal


def test_a_common_word_counts_as_often_as_the_answer_has_it():
    # answer: left x3, lung x1 (both in the truth) and dark; truth has one word more.
    measured = overlap("left left left lung dark", "left lung clear")
    assert measured.precision == 4 / 5
    assert measured.recall == 4 / (4 + 1)
    assert measured.f1 == pytest.approx(0.8)


def test_the_token_measures_normalize_once_more_past_32_periods():
    # 40 periods: one normalization leaves 8, so "mass........" equals "mass" only after another.
    once = normalize("mass" + "." * 40)
    assert once == "mass" + "." * 8
    assert overlap(once, "mass").f1 == 1.0


@pytest.mark.parametrize(("answer", "truth"), [("", "left"), ("left", ""), ("", ""), ("a", "b")])
def test_nothing_in_common_scores_nothing(answer: str, truth: str):
    measured = overlap(answer, truth)
    assert (measured.precision, measured.recall, measured.f1) == (0.0, 0.0, 0.0)
    assert bleu(answer, truth).all == 0.0


def test_bleu_loads_no_large_packages_and_leaves_them_importable():
    code = (
        "import sys; from common.metrics import bleu; before = list(sys.meta_path); "
        "assert bleu('a b c d e', 'a b c d e').all == 1.0; assert sys.meta_path == before; "
        "print({'scipy', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules)); import scipy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_bleu_by_hand():
    # said: the cat sat on mat (5); truth: the cat sat on the mat (6). Matches by hand:
    # unigrams 5/5, bigrams 3/4, trigrams 2/3, 4-grams 1/2; brevity exp(1 - 6/5).
    found = bleu("the cat sat on mat", "the cat sat on the mat")
    brevity = math.exp(-0.2)
    assert found.one == pytest.approx(brevity, rel=1e-12)
    assert found.two == pytest.approx(brevity * 3 / 4, rel=1e-12)
    assert found.three == pytest.approx(brevity * 2 / 3, rel=1e-12)
    assert found.all == pytest.approx(brevity * (3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-12)


def counted(said: list[str], true: list[str], order: int) -> int:
    """n-grams of `said` with a partner in `true`, each partner once: by crossing out."""
    left = [true[i : i + order] for i in range(len(true) - order + 1)]
    found = 0
    for gram in (said[i : i + order] for i in range(len(said) - order + 1)):
        if gram in left:
            left.remove(gram)
            found += 1
    return found


@given(words, words)
def test_bleu_is_the_brevity_times_the_precisions_of_the_ngrams(answer: str, truth: str):
    said, true = answer.split(), truth.split()
    found = bleu(answer, truth)
    orders = [counted(said, true, order) for order in (1, 2, 3, 4)]
    if orders[0] == 0:
        assert found == Bleu(0.0, 0.0, 0.0, 0.0)
        return
    brevity = min(1.0, math.exp(1 - len(true) / len(said)))
    smallest = sys.float_info.min
    shares = [hits / (len(said) - n) if hits else smallest for n, hits in enumerate(orders)]
    assert [found.one, found.two, found.three] == pytest.approx([brevity * p for p in shares[:3]])
    assert found.all == pytest.approx(brevity * math.prod(p**0.25 for p in shares))


def test_only_the_keys_that_apply_are_there_in_the_papers_order():
    assert list(paper_metrics([closed("yes", "yes")])) == ["exact match score", "close accuracy"]
    assert list(paper_metrics([opened("ct", "ct")])) == ["exact match score", *OPEN_KEYS]
    both = paper_metrics([closed("no", "yes"), opened("ct", "ct")])
    assert list(both) == ["exact match score", *OPEN_KEYS, "close accuracy"]
    assert both["exact match score"] == 50.0 and both["close accuracy"] == 0.0


def test_a_closed_answer_hits_when_it_contains_the_truth_as_text():
    answers = [
        closed("Yes, there is", "yes"),
        closed("nothing", "no"),  # as text, not as a word: the reference does so
        closed("yes", "yes there is"),  # the other way round is none
        closed("", "the"),  # a truth of articles alone is empty, and in any answer
    ]
    found = paper_metrics(answers)
    assert found["close accuracy"] == 75.0
    assert found["exact match score"] == 25.0


def test_the_models_own_label_is_dropped_from_the_answer():
    assert paper_metrics([opened("ASSISTANT: CT", "ct")])["exact match score"] == 100.0


def test_task_metrics_by_hand():
    answers = [
        opened("left lung", "left lung"),  # exact
        opened("left", "left lung"),  # recall 1/2, precision 1, F1 2/3
        closed("yes", "yes"),
        closed("yes indeed", "yes"),  # a hit, not exact; precision 1/2, recall 1, F1 2/3
        closed("yes", "no"),
    ]
    found = task_metrics(answers)
    assert found["accuracy"] == pytest.approx(2 / 5)
    # classes: left lung 1/2, yes 1/2, no 0
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 1 + 2 / 3 + 0) / 5)
    assert found["recall"] == pytest.approx((1 + 1 / 2 + 1 + 1 + 0) / 5)
    assert found["bleu_1"] == pytest.approx((1 + math.exp(1 - 2) + 1 + 1 / 2 + 0) / 5)
    assert found["bleu"] == pytest.approx(0.0)
    assert found["closed_accuracy"] == pytest.approx(2 / 3)
    assert found["open_recall"] == pytest.approx(3 / 4)


def test_every_metric_a_plan_can_name_is_measured():
    # The AUC is of class scores, and no text has any: client/orders/class_metrics.py.
    of_answers = {metric.value for metric in Metric if metric is not Metric.AUC}
    assert of_answers <= set(task_metrics([opened("ct", "ct")]))


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8))
def test_the_order_of_answers_changes_no_bit(pairs: list[tuple[str, str]]):
    answers = [opened(said, true) for said, true in pairs]
    assert task_metrics(answers) == task_metrics(answers[::-1])


@given(st.lists(words, min_size=1, max_size=8))
def test_perfect_answers_score_one(truths: list[str]):
    found = task_metrics([closed(truth, truth) for truth in truths])
    assert found["accuracy"] == found["balanced_accuracy"] == found["closed_accuracy"] == 1.0


def test_no_answers_is_an_error_not_a_zero():
    with pytest.raises(DataError, match="no answer to score"):
        task_metrics([])


def test_the_majority_answer_is_per_question_then_overall():
    answer = majority_answers(
        [
            *[("side?", "left"), ("side?", "right"), ("side?", "right")],
            *[("seen?", "yes"), ("seen?", "no"), ("kind?", "yes")],
        ]
    )
    assert answer("side?") == "right"
    assert answer("seen?") == "no"  # a tie: the one that sorts first
    assert answer("never asked") == "right"  # right and yes have two each: a tie again
    with pytest.raises(DataError, match="no training pair"):
        majority_answers([])


def test_answers_are_read_with_numbers_as_text_and_open_as_the_rule(tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    lines: list[dict[str, object]] = [
        {"prompt": "how many?", "text": 2, "gt": "2", "question_id": None},
        {"text": "n", "gt": "y"},
    ]
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    assert read_answers(file) == [
        AnsweredQuestion("how many?", "2", "2", OPEN),
        AnsweredQuestion("", "n", "y", OPEN),
    ]


def test_answers_are_read_as_the_papers_evaluator_reads_them(tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    # Line ends of Windows, a blank line, the other names of two fields, ids of two types, a
    # truth value (as Python writes it), and a line separator that ends no line of a file.
    lines = [
        '{"question_id": 7, "prompt": "p", "prediction": "Yes\\n", "ground_truth": true}',
        "",
        '{"question_id": "x", "prediction": "no", "text": "a\u2028b", "gt": "\\ud83d"}',
    ]
    file.write_bytes("\r\n".join(lines).encode())
    assert read_answers(file) == [
        AnsweredQuestion("p", "Yes\n", "True", OPEN, "7"),
        AnsweredQuestion("", "a\u2028b", "\ud83d", OPEN, "x"),
    ]


def test_white_space_of_any_kind_parts_words_and_counts_for_no_mark():
    # A newline beside a mark is no space: the mark becomes one, and nothing is glued together.
    assert normalize("no effusion.\nClear-\nlungs") == "no effusion clear lungs"
    assert normalize("left\u00a0lung\u2028\x85") == "left lung"


@pytest.mark.parametrize(
    ("answer", "truth", "exact"),
    [
        ("", "", True),
        ("Assistant: ", "the", True),  # both are empty once normalized
        ("x\nASSISTANT: y", "x y", True),
        ("yes ", "yes", True),
        # A space beside a mark glues words together: one at an answer's end is stripped before.
        ("l/r/ ", "l r", True),
        ("l r", "l/r/ ", False),
        ("lr", "l/r/ ", True),
        ("none", "0", True),
        ("2", "two", True),
        ("é", "e", False),
    ],
)
def test_exact_match_of_what_is_hardly_an_answer(answer: str, truth: str, exact: bool):
    assert judge(opened(answer, truth)).exact is exact


def test_a_judged_answer_has_what_the_table_averages():
    judged = judge(closed("Yes, indeed", "yes"))
    assert (judged.truth, judged.exact, judged.hit) == ("yes", False, True)
    assert (judged.overlap.recall, judged.overlap.precision) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "found no answer, expected one JSON object a line"),
        ('{"text": "a", "gt": "b"}\n{"text": ', "line 2: not JSON"),
        ("[1]", r"line 1: found \[1\], expected a JSON object"),
        ('{"text": "a"}', "line 1, gt: found nothing, expected text"),
        ('{"text": "a", "gt": ["b"]}', r'line 1, gt: found \["b"\], expected text'),
        ('{"text": "a", "gt": "b", "question_id": {}}', "question_id: found {}, expected text"),
        ('{"gt": ' + "9" * 5000 + "}", "line 1: found JSON that can't be read"),
        ("[" * 100_000, "line 1: found JSON that can't be read"),
        ('{"text": null, "gt": "b"}', "line 1, text: found null, expected text"),
        # As pandas writes what is missing.
        ('{"text": "a", "gt": NaN}', "line 1, gt: found NaN, expected text"),
        (
            '{"text": "a", "gt": "b", "answer_type": "YESNO"}',
            "line 1, answer_type: found 'YESNO', expected 'OPEN' or 'CLOSED'",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str, sentence: str):
    file = tmp_path / "answers.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=sentence) as error:
        read_answers(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        read_answers(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_answers(tmp_path / "latin.jsonl")
