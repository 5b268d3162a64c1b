# matplotlib 3.11 leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from report.canvas import STYLE, render
from report.style.colours import COLOURS, INK, ON_DARK, PAPER, dark
from report.style.svg import dark_sheet


def drawn(file: str) -> bytes:
    with rc_context(STYLE):
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        axes.plot([0, 1, 2], [1, 3, 2], marker="o", color=COLOURS[0])
        axes.annotate("end", (2, 2), color=dark(COLOURS[0]))
        return render(figure, file, 'It "rises" & falls', "A line.").content


def test_equal_charts_have_equal_bytes_and_no_id_in_common_with_others():
    one, again, other = drawn("a.svg"), drawn("a.svg"), drawn("b.svg")
    assert one == again
    ids = [
        {found for each in ElementTree.fromstring(svg).iter() if (found := each.get("id"))}
        for svg in (one, other)
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_a_chart_says_what_it_shows_and_has_no_sheet_for_the_whole_page():
    root = ElementTree.fromstring(drawn("a.svg"))
    assert root.get("aria-label") == 'It "rises" & falls. A line.' and root.get("role") == "img"
    assert not [each for each in root.iter() if each.tag.endswith(("style", "metadata"))]


def test_every_colour_of_a_chart_has_one_on_a_dark_page():
    svg, sheet = drawn("a.svg").decode(), dark_sheet()
    assert sheet.startswith("@media screen and (prefers-color-scheme: dark)")
    for colour in (PAPER, INK, COLOURS[0].lower(), dark(COLOURS[0])):
        assert f"fill: {colour}" in svg
        rule = f'[style*="fill: {colour}"] {{ fill: {ON_DARK[colour]} !important; }}'
        assert rule in sheet


def test_the_ending_of_the_file_says_png():
    assert drawn("a.png").startswith(b"\x89PNG") and drawn("a.png") == drawn("a.png")
