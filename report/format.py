"""Numbers and names as a report says them, on the page and in the terminal."""

from markupsafe import Markup

from report.spread import Spread

#: Stands where there is no number.
NOTHING = "\N{EN DASH}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """A time in the unit that a reader would choose."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def percent(fraction: float | None) -> str:
    """A fraction in percent."""
    return NOTHING if fraction is None else minus(f"{100 * fraction:.1f}")


def points(fraction: float | None) -> str:
    """A difference of fractions in points, with its sign."""
    return NOTHING if fraction is None else minus(f"{100 * fraction:+.1f}")


def share(fraction: float | None) -> str:
    """Percent with as many digits as a small error needs."""
    return NOTHING if fraction is None else f"{100 * fraction:.2g}"


def mean_spread(found: Spread | None) -> str:
    """Mean and deviation in percent."""
    return NOTHING if found is None else percent(found.mean) + _deviation(found)


def signed_spread(found: Spread | None) -> str:
    """Mean and deviation of differences, in points."""
    return NOTHING if found is None else points(found.mean) + _deviation(found)


def _deviation(found: Spread) -> str:
    return "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"


def whole(number: float | None) -> str:
    """A mean count, without digits that say nothing."""
    return NOTHING if number is None else f"{number:.0f}"


def chance(p: float) -> str:
    """A p as far as a reader looks."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def byte_size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def minus(number: str) -> str:
    """A typographic minus; zero has no sign."""
    plain = number.lstrip("+-")
    return plain if float(plain) == 0 else number.replace("-", "\N{MINUS SIGN}")


def words(name: str) -> str:
    """A name of ours as words."""
    return name.replace("_", " ")


def broken(text: str) -> Markup:
    """Text that may be broken behind an underscore, which browsers don't do by themselves."""
    return Markup("_<wbr>").join(text.split("_"))
