"""docs/architecture.md has a line for every file, as the file says it."""

from tests.file_index import HEADING, PAGE, with_index


def test_the_page_lists_every_file_as_it_describes_itself():
    page = PAGE.read_text(encoding="utf-8")
    assert with_index(page) == page, "`python -m tests.file_index` writes the list anew"


def test_a_line_is_the_first_paragraph_of_a_docstring():
    index = PAGE.read_text(encoding="utf-8").partition(HEADING)[2]
    assert (
        "- `server/run/reported_ranges.py`: The ranges of what sites report of themselves; nobody"
        " can check it any further.\n" in index
    )
    assert "- `configs/experiments/rules.yaml`: Which rule aggregates best over four sites" in index
    # A folder's index is folded on a page that shows HTML.
    assert index.count("<details>") == index.count("</details>") == 14


def test_an_index_that_is_there_is_replaced():
    assert with_index("# Page\n") == with_index(with_index("# Page\n"))
    assert with_index("# Page\n").startswith("# Page\n\n## Every file in a line\n")
