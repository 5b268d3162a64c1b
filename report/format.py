"""Numbers and names as a report writes them, on the page and in the terminal."""

from markupsafe import Markup

from common.printable import byte_size, counted
from report.spread import Spread

#: Printed where there is no number.
DASH = "\N{EN DASH}"


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return DASH
    if seconds < 120:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent."""
    return DASH if fraction is None else typographic(f"{100 * fraction:.1f}")


def points(fraction: float | None) -> str:
    """Return a difference of fractions in points, with its sign."""
    return DASH if fraction is None else typographic(f"{100 * fraction:+.1f}")


def small_percent(fraction: float | None) -> str:
    """Return a fraction in percent, to two significant digits."""
    return DASH if fraction is None else f"{100 * fraction:.2g}"


def mean_spread(found: Spread | None) -> str:
    """Return mean and deviation in percent."""
    return DASH if found is None else percent(found.mean) + _deviation(found)


def signed_spread(found: Spread | None) -> str:
    """Return mean and deviation of a difference, in points."""
    return DASH if found is None else points(found.mean) + _deviation(found)


def _deviation(found: Spread) -> str:
    return "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"


def whole(number: float | None) -> str:
    """Return a mean count as a whole number."""
    return DASH if number is None else f"{number:.0f}"


def short(number: float | None) -> str:
    """Return a number to three significant digits."""
    return DASH if number is None else typographic(f"{number:.3g}")


def p_value(p: float) -> str:
    """Return a p to two significant digits; a very small one as a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def known_size(count: float | None) -> str:
    """Return a number of bytes in decimal units; a dash for none."""
    return DASH if count is None else byte_size(count)


def typographic(number: str) -> str:
    """Return the number with a typographic minus; zero has no sign."""
    unsigned = number.lstrip("+-")
    return unsigned if float(unsigned) == 0 else number.replace("-", "\N{MINUS SIGN}")


def readable(name: str) -> str:
    """Return an identifier with spaces for its underscores."""
    return name.replace("_", " ")


def breakable(text: str) -> Markup:
    """Return the text as HTML that may wrap after an underscore, which browsers don't do."""
    return Markup("_<wbr>").join(text.split("_"))
