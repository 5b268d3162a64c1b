"""`fedmslora data import`: a folder as it lies there becomes a task."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import WORKERS, Json, Workers, refuse_beside, whole_number
from commands.terminal.data_progress import decoding_progress
from common.plan_fields import Modality

if TYPE_CHECKING:
    from client.importing.settings import Form, Take, Uncertain

_FORMS = "auto, folders, table, json, parquet, slake, vqa-rad, pathvqa, pmc-vqa or omnimedvqa"
_COLUMN = "Found by its name otherwise."


def import_source(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder for each class; a CSV, TSV, JSON, JSONL, parquet or arrow file, or a "
            "folder with one, or with some called train and test; or a published set's folder."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="A new or empty folder; its name becomes the task's.")
    ],
    modality: Annotated[
        Modality | None,
        typer.Option(
            help="What kind of picture; of DICOM files alone it is read in their headers."
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="What is asked about a label; {options} names the labels, {label} the finding "
            "of a table with a column for each."
        ),
    ] = None,
    form: Annotated[str, typer.Option("--form", help=f"What SOURCE is: {_FORMS}.")] = "auto",
    pictures: Annotated[
        Path | None, typer.Option(help="The folder of the pictures, if it is not in SOURCE.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help=f"Pictures' files. {_COLUMN}")] = None,
    label_column: Annotated[
        str | None, typer.Option(help=f"Labels, or several columns of 0 and 1: a,b. {_COLUMN}")
    ] = None,
    question_column: Annotated[str | None, typer.Option(help=f"Questions. {_COLUMN}")] = None,
    answer_column: Annotated[str | None, typer.Option(help=f"Answers. {_COLUMN}")] = None,
    patient_column: Annotated[str | None, typer.Option(help=f"Patients. {_COLUMN}")] = None,
    split_column: Annotated[
        str | None, typer.Option(help=f"Train, validation or test. {_COLUMN}")
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="A regular expression; its group in a picture's path is the patient: '(P\\d+)_'."
        ),
    ] = None,
    no_patients: Annotated[
        bool, typer.Option("--no-patients", help="Every picture is a patient of its own.")
    ] = False,
    test: Annotated[
        float, typer.Option(help="The test's share of the questions, where SOURCE has no split.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="The seed of the split.")] = 0,
    resplit: Annotated[
        bool, typer.Option("--resplit", help="Split anew by patient, whatever SOURCE says.")
    ] = False,
    leave_out_shared: Annotated[
        bool,
        typer.Option(
            "--leave-out-shared",
            help="Leave training questions out whose patient or picture the test has, too.",
        ),
    ] = False,
    leave_out_bad: Annotated[
        bool, typer.Option("--leave-out-bad", help="Leave out rows that can't be used.")
    ] = False,
    take: Annotated[
        str,
        typer.Option(
            help="Of a DICOM series of slices, a file of several frames or a NIfTI volume: "
            "middle, all, or so many, spread evenly."
        ),
    ] = "middle",
    axis: Annotated[
        int, typer.Option(help="Of a NIfTI volume: 0 sagittal, 1 coronal, 2 axial slices.")
    ] = 2,
    uncertain: Annotated[
        str, typer.Option(help="What a label of -1 is: out (not asked about), yes or no.")
    ] = "out",
    label_names: Annotated[
        str | None, typer.Option(help="What labels are called: 0=normal,1=pneumonia.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="All labels that there are, a,b,c, where the pictures here may not have each: "
            "sites of one federation ask alike."
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="Of SLAKE's questions: en or zh.")] = "en",
    link: Annotated[
        bool, typer.Option("--link", help="Link pictures symbolically instead of copying them.")
    ] = False,
    workers: Workers = WORKERS,
    as_json: Json = False,
) -> None:
    """Import a folder of pictures, a table or a published set as a task, split by patient.

    OUT gets the task and a report of what went where (import.json, import.txt), which has file
    names and patients: keep it where the data is. With a row that can't be used nothing is
    written. docs/data.md has what can be imported.

    Example: fedmslora data import films data/films --modality xray
    """
    from client.importing.importer import import_task
    from client.importing.settings import Columns, ImportSettings
    from client.importing.write import report_document, report_text

    if no_patients:
        refuse_beside("--no-patients", ("patient_column", "patient_pattern"))
    settings = ImportSettings(
        form=_form(form),
        pictures=pictures,
        columns=Columns(
            image=image_column,
            labels=_names(label_column),
            question=question_column,
            answer=answer_column,
            patient=patient_column,
            split=split_column,
        ),
        question=question,
        patient_pattern=patient_pattern,
        patients=not no_patients,
        test=test,
        seed=seed,
        resplit=resplit,
        leave_out_shared=leave_out_shared,
        leave_out_bad=leave_out_bad,
        take=_take(take),
        axis=axis,
        modality=modality,
        uncertain=_uncertain(uncertain),
        label_names=_label_names(label_names),
        classes=_names(classes),
        language=language,
        link=link,
        workers=workers,
    )
    with decoding_progress() as on_images:
        found = import_task(source, out, settings, on_images)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **report_document(found)}, indent=1))
    else:
        typer.echo(report_text(found))


def _form(name: str) -> "Form":
    from client.importing.settings import Form
    from common.errors import DataError

    if name not in list(Form):
        raise DataError(f"--form: found {name!r}, expected {_FORMS}")
    return Form(name)


def _uncertain(name: str) -> "Uncertain":
    from client.importing.settings import Uncertain
    from common.errors import DataError

    if name not in list(Uncertain):
        raise DataError(f"--uncertain: found {name!r}, expected out, yes or no")
    return Uncertain(name)


def _take(text: str) -> "Take":
    from client.importing.settings import Take
    from common.errors import DataError

    if text in ("middle", "all"):
        return Take(1 if text == "middle" else None)
    if (number := whole_number(text)) is not None:
        return Take(number)
    raise DataError(f"--take: found {text[:60]!r}, expected middle, all or a number such as 5")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _label_names(text: str | None) -> dict[str, str]:
    from common.errors import DataError

    pairs = [pair.partition("=") for pair in _names(text)]
    if not all(label.strip() and name.strip() for label, _, name in pairs):
        raise DataError(
            f"--label-names: found {text!r}, expected pairs such as 0=normal,1=pneumonia"
        )
    labels = [label.strip() for label, _, _ in pairs]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise DataError(f"--label-names: found {twice[0]!r} twice, expected it once")
    return {label.strip(): name.strip() for label, _, name in pairs}
