"""The adapters that the last order named, in memory: most orders name the same again.

After a stage each task is scored with the same sum, and the next stage is trained on it.
Where an adapter is the very same object, what is summed of it need not be summed again
(client/lora.py), and its file need not be read.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TypeAlias

from client import store
from common.adapter import Adapter, from_bytes

#: What `store.stamp` said before the adapter was read.
Stamp: TypeAlias = tuple[int, int, int] | None


class AtHand:
    """Adapters read from stores of blobs; they are values, and nobody writes to them."""

    def __init__(self) -> None:
        self._held: dict[tuple[Path, str], tuple[Stamp, Adapter]] = {}

    def keep_only(self, folder: Path, digests: Collection[str]) -> None:
        """Every adapter but these of this store is let go, so that no more is ever held.

        A site calls it with all that an order names, before it asks for the first.
        """
        wanted = {(folder, digest) for digest in digests}
        self._held = {key: held for key, held in self._held.items() if key in wanted}

    def get(self, folder: Path, digest: str, what: str) -> Adapter:
        """The adapter with this digest: the same object as before, if it is held.

        Raises:
            SiteFailed: it is not in the store, or has changed since it was stored.
            BankError: it is no adapter.
        """
        key = (folder, digest)
        # Gone from the store is gone: what a site removes must not live on in its memory.
        stamp, (known, adapter) = store.stamp(folder, digest), self._held.get(key, (None, None))
        if adapter is None or stamp is None or stamp != known:
            self._held.pop(key, None)
            adapter = from_bytes(store.get(folder, digest), f"{what} {digest[:12]}")
            self._held[key] = stamp, adapter
        return adapter
