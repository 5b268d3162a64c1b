"""What a simulated site wrote into its own log, for the person who runs the simulation."""

import re
from pathlib import Path

from client.site.failures import FAILURES_FILE
from common.exchange import Reason

_REASONS = "|".join(re.escape(reason) for reason in Reason)
#: How the coordinator reports a failure, of which it knows only the reason or the class and
#: a reference to the site's log.
_REFERENCE = re.compile(
    rf"(?:{_REASONS}|\w+) \(the site's own log has the text under ([0-9a-f]{{8}})\)"
)


def with_log_texts(message: str, sites: Path) -> str:
    """Replace the message's references to sites' logs by what the logs say.

    A coordinator never learns it; on one machine the sites' folders are the user's own.
    """

    def text_of(found: re.Match[str]) -> str:
        for log in sorted(sites.glob(f"*/store/{FAILURES_FILE}")):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                reference, _, text = line.partition(" ")
                if reference == found[1]:
                    return f"{text} ({log} has more)"
        return found[0]

    return _REFERENCE.sub(text_of, message)
