"""Text for people: made safe for a log or a terminal, and numbers with their nouns."""

from collections.abc import Iterable

_MAX_LENGTH = 400


def printable(text: str, most: int = _MAX_LENGTH) -> str:
    """Replace unprintable characters by question marks, and cut what is too long."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]} ..."


def has_broken_letter(text: str) -> bool:
    r"""Return whether `text` has half of a surrogate pair, such as "\ud83d".

    JSON can write it, and Python has it for a byte of a file's name that is no UTF-8, but it is no
    letter: no tokenizer takes it and no file holds it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return some of the names, quoted, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(repr, every[:most])) + more


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return the number with its noun, as in `1 round` and `2 rounds`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def byte_size(count: float) -> str:
    """Return a number of bytes in decimal units, as in `850 bytes` and `164 kB`."""
    if count < 999.5:
        return counted(round(count), "byte")
    for size, unit in ((1e3, "kB"), (1e6, "MB"), (1e9, "GB")):
        if count < 999.5 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e12:.3g} TB"


def rough_duration(seconds: float) -> str:
    """Return a duration in its largest unit, as in `40 s`, `3 min`, `2 h` and `4 days`."""
    for unit_s, unit, least in ((86400, "days", 2), (3600, "h", 2), (60, "min", 2)):
        if seconds >= least * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def one_line(error: Exception) -> str:
    """Return an error's text in one line of at most 200 characters, for a sentence of ours."""
    return " ".join(str(error).split())[:200]
