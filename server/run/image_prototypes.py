"""The image prototype of a release: the mean of its sites' prototypes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from common.plan.robustness import Robustness
from common.router.image_prototype import ImagePrototype, from_bytes, merge_prototypes, to_bytes
from server.aggregation.shares import capped
from server.run.context import RunContext
from server.run.journal import ClosedRound


def release_prototype(run: RunContext, stage: int, closed: ClosedRound) -> bytes | None:
    """Merge the prototypes of the sites that counted in the stage's last round.

    None where no site gave one. It follows from the journal alone: a run that was interrupted
    has the same bytes.
    """
    plan, journal = run.plan, run.journal
    if plan.routing is None:
        return None
    given = {
        update.site: update.prototype
        for number, update in journal.updates(stage)
        if number == plan.stages[stage].rounds and update.site in closed.sites
    }
    found = {
        site: from_bytes(journal.blobs.get(digest), f"the prototype of site {site}")
        for site, digest in sorted(given.items())
        if digest is not None
    }
    kept = _of_one_width(found)
    for site in sorted(found.keys() - kept.keys()):
        text = f"site {site} gave a prototype of {found[site].vector.size} numbers, unlike others"
        run.on_event({"event": "refused", "stage": stage, "site": site, "text": text})
    prototype = merge_prototypes(limited(list(kept.values()), plan.robustness)) if kept else None
    return None if prototype is None else to_bytes(prototype)


def limited(prototypes: Sequence[ImagePrototype], robustness: Robustness) -> list[ImagePrototype]:
    """Return the prototypes, of which none has more images than the plan's largest share.

    The number of its images is a site's own word, and its weight in the mean.
    """
    largest = robustness.share_of(len(prototypes))
    images = capped([one.images for one in prototypes], largest)
    return [
        replace(one, images=max(1, int(count)))
        for one, count in zip(prototypes, images, strict=True)
    ]


def _of_one_width(found: Mapping[str, ImagePrototype]) -> dict[str, ImagePrototype]:
    """Return those of the most frequent width; of several equally frequent, the first site's."""
    widths = [one.vector.size for one in found.values()]
    common = max(widths, key=widths.count, default=0)
    return {site: one for site, one in found.items() if one.vector.size == common}
