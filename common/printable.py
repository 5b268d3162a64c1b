"""What a site wrote becomes a line for people: short, and nothing that a terminal obeys."""

_MOST = 400


def plain(text: str) -> str:
    """The text on one line: what can't be printed is a question mark, what is too long ends so."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text[: _MOST + 1])
    return line if len(line) <= _MOST else f"{line[:_MOST]} ..."
