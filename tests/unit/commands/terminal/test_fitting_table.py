"""Tables of a terminal that is too narrow for them."""

from rich.console import Console
from rich.table import Table

from commands.terminal.fitting_table import FittingTable


def printed(width: int) -> str:
    table = Table(pad_edge=False)
    for head in ("release", "modality", "aggregation\nerror"):
        table.add_column(head)
    table.add_row("000-stain", "pathology", "0.0125")
    table.add_row("001-nuclei", "microscopy", "")
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(FittingTable(table))
    return captured.get()


def test_it_is_a_table_where_its_words_fit():
    assert "┃ modality" in printed(60)


def test_no_word_is_cut_where_they_do_not():
    assert printed(30).splitlines()[:3] == [
        "000-stain",
        "  modality pathology,         ",
        "  aggregation error 0.0125    ",
    ]
    # An empty cell is left out.
    assert printed(30).count("aggregation error") == 1
