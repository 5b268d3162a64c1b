"""Labels become questions by a template, and closed questions name their options."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from client.data.answer_options import MOST_OPTIONS, infer_kind, required_options
from client.data.records import quoted, strip_image_mark
from client.importing.question import BadRow, SourceError, SourceItem, SourceQuestion, listed
from client.importing.settings import ImportSettings
from client.importing.values import as_text
from common.errors import DataError
from common.metrics import AnswerKind
from common.printable import has_broken_letter
from common.vqa_words import as_answer

OF_LABEL: Final = "What does this picture show?"
OF_FINDING: Final = "Is there {label} in this picture?"
OPTIONS: Final = "{options}"
LABEL: Final = "{label}"
#: Signs that mean something: plus, more, less, and a minus that is no hyphen or dash.
_SIGNS: Final = re.compile(r"[+<>=]|(?<=\w)-(?!\w)|(?<!\w)-(?=\w)")


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with their texts.

    Attributes:
        classes: the labels, in name order; empty where the source has questions of its own.
        templates: the questions that were made from a template, which are nobody's own words.
    """

    questions: Sequence[SourceQuestion]
    bad_rows: Sequence[BadRow]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    notes: Sequence[str]


def ask(
    items: Iterable[SourceItem], settings: ImportSettings, classes: Sequence[str] = ()
) -> Asked:
    """Ask about each label, and name the options of each question that has some.

    A label's question is the template with the options in place of `{options}`, or after it; of
    more than `MOST_OPTIONS` different labels none is named, and the question is open. A finding's
    question is the template with its name in place of `{label}`. Labels that are equal but for
    case, articles and punctuation are one, in its commonest spelling or that of the given classes.

    Args:
        classes: the labels that the source names, whether a picture has them or not.

    Raises:
        DataError: the template does not fit, there is one label only, or two differ in signs alone.
    """
    items, names = list(items), settings.label_names
    template = None if settings.question is None else strip_image_mark(settings.question)
    notes: list[str] = []
    whole = [_renamed(item, names) if isinstance(item, SourceQuestion) else item for item in items]
    questions = [item for item in whole if isinstance(item, SourceQuestion)]
    labelled = [one for one in questions if one.question is None and one.finding is None]
    findings = [one for one in questions if one.finding is not None]
    _check_template(template, bool(labelled), bool(findings))
    notes += _unused_names(names, items, classes)
    known = _given_classes(settings, [names.get(label, label) for label in classes])
    spelling = _spellings([one.answer for one in labelled], known, notes)
    whole_set = {*spelling.values(), *(known if labelled else ())}
    classes = known if settings.classes else tuple(sorted(whole_set))
    if labelled and len(classes) < 2:
        raise SourceError(
            f"found the label {listed(classes)} alone, expected at least two different ones"
        )
    of_finding = {
        finding: (template or OF_FINDING).replace(LABEL, finding)
        for finding in dict.fromkeys(one.finding for one in findings if one.finding is not None)
    }
    of_label = _label_question(template or OF_LABEL, classes) if labelled else ""
    if len(classes) > MOST_OPTIONS:
        notes.append(
            f"found {len(classes)} different labels, more than {MOST_OPTIONS}: the question does "
            "not name them and counts as open"
        )
    found = [
        _asked_label(item, of_label, spelling[item.answer], classes)
        if isinstance(item, SourceQuestion) and item.question is None and item.finding is None
        else _asked(item, of_finding)
        for item in whole
    ]
    return Asked(
        [item for item in found if isinstance(item, SourceQuestion)],
        [item for item in found if isinstance(item, BadRow)],
        tuple(classes),
        (*filter(None, [of_label]), *of_finding.values()),
        notes,
    )


def _asked_label(
    item: SourceQuestion, question: str, answer: str, classes: Sequence[str]
) -> SourceItem:
    """Return a label as an answer to the question, or what is wrong with it."""
    if answer not in classes:
        return BadRow(item.place, "found a label that is none of --classes")
    kind = AnswerKind.CLOSED if len(classes) <= MOST_OPTIONS else AnswerKind.OPEN
    return _checked(replace(item, question=question, answer=answer, kind=kind))


def _asked(item: SourceItem, of_finding: Mapping[str, str]) -> SourceItem:
    """Return what is no label: a finding with its question, or a question with its options."""
    if isinstance(item, BadRow):
        return item
    if item.finding is not None:
        return _checked(replace(item, question=of_finding[item.finding]))
    return _with_options(item)


def _renamed(item: SourceQuestion, names: Mapping[str, str]) -> SourceQuestion:
    if item.finding is not None:
        return replace(item, finding=names.get(item.finding, item.finding))
    return replace(item, answer=names.get(item.answer, item.answer)) if names else item


def _check_template(template: str | None, labelled: bool, findings: bool) -> None:
    if template is None:
        return
    if not (labelled or findings):
        raise DataError(
            "--question: found a template, but the source has questions of its own, expected none"
        )
    known = LABEL if findings else OPTIONS
    unknown = [name for name in re.findall(r"\{[^}]*\}", template) if name != known]
    if unknown:
        raise DataError(f"--question: found {quoted(unknown[0])}, expected {known} or no braces")
    if findings and LABEL not in template:
        raise DataError(
            f"--question: found no {LABEL}, expected it where the finding's name goes: every row "
            "has several labels"
        )


def _spellings(labels: Sequence[str], classes: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Return each label's spelling: that of the classes, or its commonest one."""
    counts = Counter(labels)
    given = {_compared(name): name for name in classes}
    same: dict[str, list[str]] = {}
    for label in sorted(counts):
        same.setdefault(_compared(label), []).append(label)
    found: dict[str, str] = {}
    for key, spellings in same.items():
        _check_signs({*spellings, *filter(None, [given.get(key)])})
        usual = given.get(key) or min(spellings, key=lambda label: (-counts[label], label))
        found |= dict.fromkeys(spellings, usual)
        if len(spellings) > 1:
            notes.append(f"the labels {listed(spellings)} are taken for one: {quoted(usual)}")
    return found


def _unused_names(
    names: Mapping[str, str], items: Sequence[SourceItem], classes: Sequence[str]
) -> list[str]:
    """Return a note on names that were given to labels which there are none of."""
    questions = [item for item in items if isinstance(item, SourceQuestion)]
    found = {*classes, *(one.finding or one.answer for one in questions)}
    unused = [label for label in names if label not in found]
    return [f"--label-names: found no label that is called {listed(unused)}"] if unused else []


def _given_classes(settings: ImportSettings, named: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the user, or those that the source names, each once.

    Raises:
        DataError: the user names two that are one answer, or the source two that differ in signs.
    """
    classes = [as_text(name) or name for name in settings.classes or named]
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(_compared(name), []).append(name)
    for spellings in same.values():
        _check_signs(spellings)
        if settings.classes and len(spellings) > 1:
            raise DataError(
                f"--classes: found {listed(spellings)}, which are one, expected it once"
            )
    return tuple(spellings[0] for spellings in same.values())


def _compared(label: str) -> str:
    """Return what labels are compared by, as answers are; one without a word by its letters."""
    return as_answer(label) or label.casefold()


def _check_signs(spellings: Iterable[str]) -> None:
    """Check that labels which are one answer are one label, as `ER+` and `ER-` are not.

    Raises:
        SourceError: they differ in signs, which answers are compared without.
    """
    by_signs = {tuple(_SIGNS.findall(label)): label for label in sorted(spellings)}
    if len(by_signs) > 1:
        first, second, *_ = by_signs.values()
        raise SourceError(
            f"found the labels {listed(by_signs.values())}, which are one answer for the scores, "
            f"expected labels that differ in words: --label-names {first}=...,{second}=..."
        )


def _label_question(template: str, classes: Sequence[str]) -> str:
    if len(classes) > MOST_OPTIONS:
        if OPTIONS in template:
            raise DataError(
                f"--question: found {OPTIONS} and {len(classes)} labels, expected at most "
                f"{MOST_OPTIONS} to be named"
            )
        return template
    question = _naming(template if OPTIONS in template else f"{template} {OPTIONS}", classes)
    if question is None:
        odd = [label for label in classes if _naming(OPTIONS, (label, "no such")) is None]
        raise SourceError(
            f"found the labels {listed(odd or classes)}, which can't be named between quotation "
            "marks, expected others: --label-names gives them new names"
        )
    return question


def _naming(template: str, options: Sequence[str]) -> str | None:
    """Return the template with the options named; None if they would not be read as they are."""
    wanted = sorted({as_required(option) for option in options})
    for mark in ("'", '"'):
        quotes = [f"{mark}{option}{mark}" for option in options]
        sentence = f"Only output {', '.join(quotes[:-1])} or {quotes[-1]}."
        question = template.replace(OPTIONS, sentence)
        if sorted(set(required_options(question))) == wanted:
            return question
    return None


def as_required(option: str) -> str:
    """Return an option as `required_options` would return it."""
    return option.strip().rstrip(".").strip().lower()


def _with_options(item: SourceQuestion) -> SourceItem:
    """Name the options after the question's own text, unless it is one of yes or no."""
    question, kind = item.question or "", item.kind
    options = tuple(dict.fromkeys(item.options))
    if len(options) > 1 and required_options(question) == ():
        named = _naming(f"{question} {OPTIONS}", options)
        if named is None:
            reason = "found options that can't be named between quotation marks, expected others"
            return BadRow(item.place, reason)
        question, kind = named, AnswerKind.CLOSED
    kind = kind or infer_kind(question, item.answer)
    return _checked(replace(item, question=question, kind=kind))


def _checked(item: SourceQuestion) -> SourceItem:
    if not strip_image_mark(item.answer):
        return BadRow(item.place, "found the mark of a picture as the answer, expected a text")
    if not (has_broken_letter(item.answer) or has_broken_letter(item.question or "")):
        return item
    reason = "found half of a surrogate pair in its text, expected whole letters"
    return BadRow(item.place, reason)
