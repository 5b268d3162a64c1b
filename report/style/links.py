"""Links from the top of a page to its sections."""

import re

from markupsafe import Markup

#: Where in the page the links are put.
PLACE = "<!-- links -->"
_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


def with_links(page: str) -> str:
    """Give every section of the page an address, and put links to them at its place.

    Args:
        page: HTML, whose sections begin with `<h2>`.
    """
    titles = [" ".join(_TAG.sub("", title).split()) for title in _HEADING.findall(page)]
    numbers = iter(range(1, len(titles) + 1))
    addressed = _HEADING.sub(lambda found: f'<h2 id="s{next(numbers)}">{found[1]}</h2>', page)
    links = "\n".join(f'<a href="#s{number}">{title}</a>' for number, title in enumerate(titles, 1))
    return addressed.replace(PLACE, Markup("<nav>{}</nav>").format(Markup(links)), 1)
