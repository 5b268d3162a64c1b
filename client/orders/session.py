"""What a site's process keeps from one order to the next: it saves time, and decides no answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.backbones.registry import BackboneCache
from client.data.file_stamp import FileStamp, file_stamp
from client.data.task import TEST_FILE, TRAIN_FILE, TaskData, read_task
from client.model.backbone import Backbone
from client.model.device import device_of
from client.model.feature_store import FeatureStore, open_feature_store
from client.site import blob_store
from client.site.adapter_cache import AdapterCache
from client.site.config import Site
from common.adapter import StoredAdapter
from common.exchange import Order
from common.plan.file import read_plan
from common.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class OrderedAdapters:
    """The adapters of an order: the releases by stage, its own, and what that one is a part of."""

    releases: Mapping[int, StoredAdapter]
    adapter: StoredAdapter | None
    base: StoredAdapter | None


class SiteSession:
    """A site's plan, tasks, adapters and base model, each read again only where it changed.

    Attributes:
        backbones: the base model, which several simulated sites of one process share.
        features: the site's store for features of pictures; None where it keeps none.
    """

    def __init__(self, site: Site, backbones: BackboneCache | None = None) -> None:
        self.site = site
        self.backbones = backbones or BackboneCache()
        self.features: FeatureStore | None = open_feature_store(site.store, site.feature_cache_gib)
        self._adapters = AdapterCache()
        self._plan: tuple[str, Plan] | None = None
        self._read_task = lru_cache(maxsize=16)(_read_task)

    def plan(self, digest: str) -> Plan:
        """Return the plan of this digest, from the site's store.

        Raises:
            SiteFailed: it is not there.
            PlanError: it is no plan.
        """
        document = blob_store.get(self.site.store, digest)
        if self._plan is None or self._plan[0] != digest:
            self._plan = digest, read_plan(document, digest, "the order's plan")
        return self._plan[1]

    def task(self, name: str) -> TaskData:
        """Return the site's questions of a task.

        Raises:
            DataError: the site has no such task, or it can't be used.
        """
        folder = self.site.data / name
        files = (folder / TRAIN_FILE, folder / TEST_FILE)
        return self._read_task(folder, tuple(map(file_stamp, files)))

    def adapters(self, order: Order) -> "OrderedAdapters":
        """Return the adapters that the order names.

        Those of earlier orders are dropped, but for the ones that this order names, too.

        Raises:
            SiteFailed: one is not in the store, or has changed since it was stored.
            BankError: one is no adapter.
        """
        named = [ref.sha256 for ref in order.releases]
        named += [digest for digest in (order.base, order.adapter) if digest is not None]
        store = self.site.store
        self._adapters.keep_only(store, named)
        releases = {
            ref.stage: self._adapters.get(store, ref.sha256, "release") for ref in order.releases
        }
        base, adapter = (
            None if digest is None else self._adapters.get(store, digest, what)
            for digest, what in (
                (order.base, "the order's base"),
                (order.adapter, "the order's adapter"),
            )
        )
        return OrderedAdapters(releases, adapter, base)

    def backbone(self, plan: Plan) -> Backbone:
        """Return the site's base model as the plan wants it.

        Raises:
            ModelError: it can't be loaded.
            SiteFailed: the site's device is missing.
        """
        site, precision = self.site, plan.training.precision
        if self.features is not None:
            self.features.evict_if_due()
        found = self.backbones.get(site.base_model, precision, device_of(site), plan.vision_weights)
        return found if self.features is None else found.with_features(self.features)

    def free_memory(self) -> None:
        """Drop the base model and the adapters, before other processes load their own."""
        self.backbones.clear()
        self._adapters.keep_only(self.site.store, [])


class Sessions:
    """The sessions of the simulated sites of one process, which share a base model."""

    def __init__(self) -> None:
        self._backbones = BackboneCache()
        self._sessions: dict[Site, SiteSession] = {}

    def of(self, site: Site) -> SiteSession:
        """Return the site's session; a site whose file has changed gets a new one."""
        if site not in self._sessions:
            self._sessions[site] = SiteSession(site, self._backbones)
        return self._sessions[site]


def _read_task(folder: Path, stamps: tuple[FileStamp | None, ...]) -> TaskData:
    # Keyed by the stamps, too: a file that is replaced is read again.
    return read_task(folder)
