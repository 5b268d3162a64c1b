"""The errors that a user can act on. Each message is one clear sentence."""

from typing import Final

#: Of an empty text in place of a path, which Python takes for the working directory.
EMPTY_PATH: Final = "found an empty text, expected the name of a file or folder"


class Refusal(Exception):
    """Bad input or state. The command line prints the message alone and exits with code 2."""


class PlanError(Refusal):
    """A plan file is wrong; the message has one line per mistake."""


class DataError(Refusal):
    """A task's folder, a question or an image can't be used."""


class ModelError(Refusal):
    """A base model's folder is incomplete, or not the base model that the plan pins."""


class BankError(Refusal):
    """A bank is damaged, is not the expected one, or would be overwritten."""


class AggregationError(Refusal):
    """The updates of a round can't be aggregated."""


class SiteFailed(Refusal):
    """A site could not carry out an order."""


class StateError(Refusal):
    """A run's folder belongs to another plan, or can't be continued."""
