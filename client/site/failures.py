"""Failures at a site: the text stays in its own log, only a class and a reference leave."""

import errno
import os
import secrets
import traceback
from pathlib import Path

from client.site.config import Site
from common.errors import Refusal
from common.exchange import Failure, Reason

#: In a site's store: a line with the reference and the text of each failure, then its traceback.
FAILURES_FILE = "failures.log"
#: The texts may name patients' files: only the site's own user may read them.
_OWNER_ONLY = 0o600


class OrderRefused(Refusal):
    """A site's refusal of an order; `reason` may leave the site, the text may not."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def record_failure(site: Site, error: Exception) -> Failure:
    """Write the error to the site's log; return what of it may leave the site."""
    reference, kind = secrets.token_hex(4), type(error).__name__
    text = " / ".join(str(error).splitlines())
    try:
        lines = [f"{reference} {kind}: {text}\n", *traceback.format_exception(error)]
        append_private(site.store / FAILURES_FILE, "".join(lines))
    except OSError as trouble:
        # A full disk, often the very error: the system's text for it names no file.
        kind = f"{kind}, and its log can't be written: {trouble.strerror}"
    reason = error.reason if isinstance(error, OrderRefused) else None
    if reason is None and _is_disk_full(error):
        reason = Reason.DISK
    return Failure(site=site.name, error=kind, reference=reference, reason=reason)


def _is_disk_full(error: BaseException | None) -> bool:
    """Return whether the error, or one that led to it, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def append_private(file: Path, text: str) -> None:
    """Append `text` to `file`, which only its owner may read.

    Raises:
        OSError: the disk is full or can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _OWNER_ONLY)
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as log:
        os.fchmod(descriptor, _OWNER_ONLY)  # older releases made it readable to all
        log.write(text)
