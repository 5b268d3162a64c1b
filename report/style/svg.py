"""Charts as SVG within a page: texts stay texts, and colours follow the page's."""

import re
from html import escape
from typing import Final

from report.style.colours import ON_DARK

#: Fonts as wide as the one that charts are laid out in, and then any.
_FONTS: Final = "'DejaVu Sans', Verdana, sans-serif"
_NAME_SPACE: Final = ' xmlns="http://www.w3.org/2000/svg"'
_TAG = re.compile(r"<[^>]*>")


def dark_sheet() -> str:
    """Return the style sheet that gives charts within a dark page its colours.

    Matplotlib writes each colour into the element's own style, so that a rule selects by it; by it
    alone, since a marker's copies (`use`) have no ancestors.
    """
    rules = "\n".join(
        f'[style*="{which}: {colour}"] {{ {which}: {on_dark} !important; }}'
        for colour, on_dark in ON_DARK.items()
        for which in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme: dark) {{\n{rules}\n}}\n"


def accessible_svg(drawn: str, text: str) -> str:
    """Return matplotlib's SVG without what a page has no use for, with a text for screen readers.

    Args:
        drawn: written with `svg.fonttype: none`, and with a hash salt of its own, so that no two
            charts of a page have an id in common.
    """
    svg = drawn[drawn.index("<svg") :].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    # The sheet within is for all elements of a page; the root's attribute is inherited likewise.
    svg = re.sub(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg, count=1)
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))

    def short(found: re.Match[str]) -> str:
        tag = found[0].replace("xlink:href=", "href=").replace("'DejaVu Sans'", _FONTS)
        tag = re.sub(r' id="([^"]*)"', lambda one: one[0] if one[1] in referred else "", tag)
        return re.sub(r"(\.\d\d)\d+", r"\1", tag)

    svg = re.sub(r"\n\s*", "\n", _TAG.sub(short, svg))
    root = f'<svg role="img" aria-label="{escape(text)}" stroke-linejoin="round"'
    return svg.replace("<svg", root, 1)


def within_page(svg: bytes) -> str:
    """Return the text of an SVG file as an element of an HTML page, which knows its name space."""
    return svg.decode().replace(_NAME_SPACE, "", 1)
