"""A table where it fits the terminal, and its rows one below another where it would be cut."""

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


class FittingTable:
    """A table that is no table where the terminal is too narrow for the longest words."""

    def __init__(self, table: Table) -> None:
        """Take the table, whose first column names its rows."""
        self.table = table

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        """Yield the table, or a name for each row and what the others say of it."""
        wide = options.update_width(10 * options.max_width)
        if Measurement.get(console, wide, self.table).minimum <= options.max_width:
            return [self.table]
        return self._rows(console)

    def _rows(self, console: Console) -> Iterator[RenderableType]:
        heads = [" ".join(_text(console, one.header).plain.split()) for one in self.table.columns]
        cells = [[_text(console, cell) for cell in one.cells] for one in self.table.columns]
        for name, *others in zip(*cells, strict=True):
            yield Text(name.plain, style="bold")
            said = [
                Text(f"{head} ").append_text(cell)
                for head, cell in zip(heads[1:], others, strict=True)
                if cell.plain
            ]
            yield Padding(Text(", ").join(said), (0, 0, 0, 2))


def _text(console: Console, cell: RenderableType) -> Text:
    return console.render_str(cell) if isinstance(cell, str) else Text(str(cell))
