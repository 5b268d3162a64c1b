"""The option `--out` of the programs of this package."""

import argparse
from pathlib import Path


def new_folder(text: str) -> Path:
    """Return the folder that an option names, as argparse's `type`.

    Raises:
        ArgumentTypeError: it exists; what an earlier run left would be taken for this one's.
    """
    folder = Path(text)
    if folder.exists():
        raise argparse.ArgumentTypeError(f"found {text}, expected a new folder")
    return folder
