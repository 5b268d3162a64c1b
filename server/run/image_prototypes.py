"""The prototype of a release: what its sites say of their pictures, as one."""

from collections.abc import Mapping

from common.image_prototype import ImagePrototype, from_bytes, merge_prototypes, to_bytes
from common.plan import Plan
from server.run.journal import Closed
from server.run.stage import Desk


def agreed_prototype(plan: Plan, stage: int, closed: Closed, desk: Desk) -> bytes | None:
    """The prototype of all pictures of the sites that counted in the stage's last round.

    None where no site gave one. It follows from the journal alone: a run that was cut off
    comes to the same bytes.
    """
    if plan.routing is None:
        return None
    given = {
        update.site: update.prototype
        for number, update in desk.journal.updates(stage)
        if number == plan.stages[stage].rounds and update.site in closed.sites
    }
    found = {
        site: from_bytes(desk.journal.blobs.get(digest), f"the prototype of site {site}")
        for site, digest in sorted(given.items())
        if digest is not None
    }
    kept = _of_one_width(found)
    for site in sorted(found.keys() - kept.keys()):
        text = f"site {site} gave a prototype of {found[site].vector.size} numbers, unlike others"
        desk.say({"event": "refused", "stage": stage, "site": site, "text": text})
    prototype = merge_prototypes(list(kept.values())) if kept else None
    return None if prototype is None else to_bytes(prototype)


def _of_one_width(found: Mapping[str, ImagePrototype]) -> dict[str, ImagePrototype]:
    """Those of the commonest width; of several that are equally common, the first site's."""
    widths = [one.vector.size for one in found.values()]
    common = max(widths, key=widths.count, default=0)
    return {site: one for site, one in found.items() if one.vector.size == common}
