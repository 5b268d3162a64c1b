"""The kinds of work that an order may ask a site for."""

from enum import StrEnum


class Work(StrEnum):
    """The kind of work that an order asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    #: All rounds of a stage at this site alone, from the base model; scores are all that leaves.
    TRAIN_ALONE = "train_alone"

    @property
    def words(self) -> str:
        """As a person reads it."""
        return self.value.replace("_", " ")

    @property
    def message_type(self) -> str:
        """Flower's type of the message that has an order to this work."""
        return "evaluate" if self is Work.EVALUATE else "train"
