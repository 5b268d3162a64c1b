"""A cache of the adapters that the last order named, since most orders name the same again.

Only an adapter's header is in memory; whoever sums it, or compares with it, reads it layer by
layer from the site's store. So a bank of 200 stages takes hardly more memory than one of two.
A cached adapter is the same object as before: its file need not be hashed again, and sums over
it need not be computed again (client/model/lora.py).
"""

from collections.abc import Collection
from pathlib import Path

from client.data.file_stamp import FileStamp
from client.site import blob_store
from common.adapter import StoredAdapter


class AdapterCache:
    """Immutable adapters from stores of blobs, each verified once."""

    def __init__(self) -> None:
        #: Each with its file's stamp from before it was verified.
        self._cached: dict[tuple[Path, str], tuple[FileStamp | None, StoredAdapter]] = {}

    def keep_only(self, store: Path, digests: Collection[str]) -> None:
        """Drop all adapters but these of this store.

        A site calls it with all that an order names, before it gets the first.
        """
        kept = {(store, digest) for digest in digests}
        self._cached = {key: cached for key, cached in self._cached.items() if key in kept}

    def get(self, store: Path, digest: str, what: str) -> StoredAdapter:
        """Return the adapter with this digest: the same object as before, if it is cached.

        Raises:
            SiteFailed: it is not in the store, or has changed since it was stored.
            BankError: it is no adapter.
        """
        key, stamp = (store, digest), blob_store.stamp(store, digest)
        known, adapter = self._cached.get(key, (None, None))
        if adapter is None or stamp is None or stamp != known:
            self._cached.pop(key, None)
            file = blob_store.verified_file(store, digest)
            adapter = StoredAdapter.in_file(file, f"{what} {digest[:12]}")
            self._cached[key] = stamp, adapter
        return adapter
