"""How many test questions a stage was scored on, from a run's journal."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote


def scored_questions(journal: Path, stage: int) -> dict[str, int]:
    """Return the number of test questions of each site that was scored on a stage's task.

    Empty where there is no journal, or none that can be read: the scores themselves are in the
    releases.
    """
    try:
        with closing(
            sqlite3.connect(f"file:{quote(os.fsencode(journal))}?mode=ro", uri=True)
        ) as database:
            rows = database.execute(
                "select site, header from answers where stage = ? and work = 'evaluate'"
                " and refused is null order by rowid",
                (stage,),
            ).fetchall()
    except sqlite3.Error:
        return {}
    try:
        return {site: int(json.loads(header)["questions"]) for site, header in rows}
    except (ValueError, KeyError, TypeError):
        return {}
