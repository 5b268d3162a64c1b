"""What the page says of hospitals that differ: values and sentences for its template."""

from collections.abc import Iterator, Sequence
from typing import Any

from common.printable import counted
from report.format import DASH, percent, readable
from report.heterogeneity.model import HospitalScores, HospitalTask, SimulatedHospital
from report.model import RunReport, kinds

#: How many of a task's answers are listed; of the others only the share is.
_LISTED = 4
#: Letters of an answer: a report's sentences are answers, too.
_LONGEST = 24


def heterogeneity_words(report: RunReport) -> dict[str, Any]:
    """Return what the template needs."""
    hospitals = report.simulated or ()
    unseen = () if report.unseen is None else report.unseen.hospitals
    seen = () if report.unseen is None else report.unseen.sites
    tasks = dict.fromkeys(one.task for hospital in hospitals for one in hospital.tasks)
    return {
        "unseen_headline": unseen_headline(report),
        "unseen_names": [one.hospital for one in unseen],
        "seen_names": [one.hospital for one in seen],
        "unseen_rows": [
            {
                "stage": stage,
                "unseen": [_cell(one, task) for one in unseen],
                "seen": [_cell(one, task) for one in seen],
            }
            for task, stage in enumerate(report.stages)
            if unseen
        ],
        "scanner_heads": ["gamma", "noise", "blur", "red", "green", "blue", "pixels"],
        "simulated": [_drawn(one) for one in hospitals],
        "answers": [
            {"task": task, "cells": [answers_of_task(one, task) for one in hospitals]}
            for task in tasks
        ],
    }


def unseen_headline(report: RunReport) -> str:
    """Return the mean scores at the unseen hospitals and at the sites, measure by measure."""
    if report.unseen is None:
        return ""
    unseen, sites = report.unseen.hospitals, report.unseen.sites
    parts: list[str] = []
    for kind, tasks in kinds(report).items():
        # The sites' means are over the same tasks.
        asked = [task for task in tasks if any(one.questions[task] for one in unseen)]
        if asked:
            after, before, trained = (
                # Of each task first, so that one that more hospitals have counts no more.
                _mean(_mean(scores[task] for scores in found) for task in asked)
                for found in (
                    [one.last for one in unseen],
                    [one.zero_shot for one in unseen],
                    [one.last for one in sites],
                )
            )
            parts.append(
                f"{percent(after)} with the bank and {percent(before)} without, against "
                f"{percent(trained)} at the sites that trained "
                f"({readable(kind.value)}, mean over {counted(len(asked), 'task')})"
            )
    return f"{counted(len(unseen), 'hospital')} that trained nothing: {'; '.join(parts)}."


def answers_of_task(hospital: SimulatedHospital, task: str) -> str:
    """Return the commonest answers of a hospital's questions of a task, with their shares."""
    found = next((one for one in hospital.tasks if one.task == task), None)
    return DASH if found is None else ", ".join(_shares(found))


def _shares(task: HospitalTask) -> Iterator[str]:
    total = sum(task.answers.values())
    listed = list(task.answers.items())[:_LISTED]
    for answer, number in listed:
        yield f"{answer[:_LONGEST]} {100 * number / total:.0f} %"
    if len(task.answers) > _LISTED:
        rest = 1 - sum(number for _, number in listed) / total
        yield f"{len(task.answers) - _LISTED} others {100 * rest:.0f} %"


def _drawn(hospital: SimulatedHospital) -> dict[str, Any]:
    return {
        "name": hospital.name,
        "unseen": hospital.unseen,
        "scanner": _scanner_cells(hospital),
        "train": sum(task.train for task in hospital.tasks),
        "wrong": sum(task.wrong_labels for task in hospital.tasks),
        "test": sum(task.test for task in hospital.tasks),
    }


def _scanner_cells(hospital: SimulatedHospital) -> Sequence[str]:
    found = hospital.scanner
    if found is None:
        return [DASH] * 7
    shares = [f"{100 * found[name]:.1f} %" for name in ("noise", "blur")]
    gains = [f"{found[name]:.2f}" for name in ("red", "green", "blue")]
    return [f"{found['gamma']:.2f}", *shares, *gains, f"{found['coarse']:.1f}"]


def _cell(hospital: HospitalScores, task: int) -> dict[str, Any]:
    return {
        "zero_shot": hospital.zero_shot[task],
        "last": hospital.last[task],
        "questions": hospital.questions[task],
    }


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
