"""The mistakes that a user can mend. Each message is one clear sentence."""


class Refusal(Exception):
    """Bad input. The command line prints the message alone and exits with 2."""


class PlanError(Refusal):
    """A plan file is wrong; the message has one line per mistake."""


class DataError(Refusal):
    """A task's folder, a question or an image can't be used."""


class ModelError(Refusal):
    """A base model's folder is incomplete, or another than the plan pins."""


class BankError(Refusal):
    """A bank is damaged, foreign, or would be overwritten."""


class AggregationError(Refusal):
    """The updates of a round can't be made into one adapter."""


class SiteFailed(Refusal):
    """A site could not do what an order asks."""


class StateError(Refusal):
    """A run's folder belongs to another plan, or can't be continued."""
