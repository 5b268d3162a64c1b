"""What a simulated site wrote into its own log, for the person who runs all of them."""

import re
from pathlib import Path

from client.site.failures import FAILURES_FILE
from common.exchange import Reason

_REASONS = "|".join(re.escape(reason) for reason in Reason)
#: How the coordinator tells of a failure that it knows only by its reason or its class, and
#: its reference.
_REFERENCE = re.compile(
    rf"(?:{_REASONS}|\w+) \(the site's own log has the text under ([0-9a-f]{{8}})\)"
)


def in_the_sites_words(told: str, sites: Path) -> str:
    """`told`, with what the sites' logs say in place of the references to them.

    A coordinator never learns it; on one machine the sites' folders are the user's own.
    """

    def words(found: re.Match[str]) -> str:
        for log in sorted(sites.glob(f"*/store/{FAILURES_FILE}")):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                reference, _, text = line.partition(" ")
                if reference == found[1]:
                    return f"{text} ({log} has more)"
        return found[0]

    return _REFERENCE.sub(words, told)
