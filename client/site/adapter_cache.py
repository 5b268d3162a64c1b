"""The adapters that the last order named, each checked once: most orders name the same again.

Of an adapter only the header is in memory. Who sums it, or compares with it, reads it layer by
layer from the site's store: a bank of 200 stages is as easy to hold as one of two. Where an
adapter is the very same object, what is summed of it need not be summed again
(client/model/lora.py), and its file need not be read.
"""

from collections.abc import Collection
from pathlib import Path

from client.data.file_stamp import Stamp
from client.site import blob_store
from common.adapter import StoredAdapter


class AtHand:
    """Adapters in stores of blobs; they are values, and nobody writes to them."""

    def __init__(self) -> None:
        #: With what `store.stamp` said before the adapter was checked.
        self._held: dict[tuple[Path, str], tuple[Stamp | None, StoredAdapter]] = {}

    def keep_only(self, folder: Path, digests: Collection[str]) -> None:
        """Every adapter but these of this store is forgotten, so that no more is ever held.

        A site calls it with all that an order names, before it asks for the first.
        """
        wanted = {(folder, digest) for digest in digests}
        self._held = {key: held for key, held in self._held.items() if key in wanted}

    def get(self, folder: Path, digest: str, what: str) -> StoredAdapter:
        """The adapter with this digest: the same object as before, if it is held.

        Raises:
            SiteFailed: it is not in the store, or has changed since it was stored.
            BankError: it is no adapter.
        """
        key = (folder, digest)
        stamp, (known, adapter) = (
            blob_store.stamp(folder, digest),
            self._held.get(key, (None, None)),
        )
        if adapter is None or stamp is None or stamp != known:
            self._held.pop(key, None)
            file = blob_store.checked(folder, digest)
            adapter = StoredAdapter.in_file(file, f"{what} {digest[:12]}")
            self._held[key] = stamp, adapter
        return adapter
