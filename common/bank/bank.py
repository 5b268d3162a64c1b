"""The append-only bank: one adapter a stage, chained by hash, signed, never overwritten.

On disk it is a folder: `bank.json`, and one folder a release with `release.json` and the
two files of a PEFT adapter. common/bank/release.py says what they hold.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.adapter import Adapter, AdapterSource, StoredAdapter, finite_fault, from_bytes
from common.bank.check import (
    Chain,
    Expected,
    content_problems,
    expectation_problems,
    read_chain,
    read_index,
)
from common.bank.commit import clean, commit, undo, undo_create
from common.bank.peft import release_blobs, sum_blobs
from common.bank.release import (
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    PROTOTYPE_FILE,
    RELEASE_FILE,
    Draft,
    Index,
    Release,
    genesis_of,
    signed_bytes,
    text_of,
)
from common.durable import (
    DISK,
    WRITING,
    Files,
    remove_if_there,
    write_file,
    write_folder,
    writing,
)
from common.errors import BankError
from common.identity import sha256
from common.image_prototype import ImagePrototype
from common.image_prototype import from_bytes as prototype_from
from common.plan import BaseModelPin
from common.signing import SigningKey

#: A signature's place in a release that is not signed yet.
_UNSIGNED = "0" * 128
#: Says what an exported sum was made of; PEFT passes it over.
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank as it was when opened. `add` returns a new one, so an old one is a checkpoint."""

    folder: Path
    base_model: BaseModelPin
    releases: tuple[Release, ...]

    @classmethod
    def create(cls, folder: Path, base_model: BaseModelPin, files: Files = DISK) -> "Bank":
        """An empty bank in a folder that is new or empty.

        Raises:
            BankError: something is in the folder, or it can't be written.
        """
        bank = cls(folder, base_model, ())
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(not path.name.startswith(WRITING) for path in folder.iterdir()):
                raise BankError(f"{folder}: found a folder that is not empty, expected a new one")
            write_file(folder / INDEX_FILE, bank.index.to_bytes(), files)
            files.sync(folder.parent)
        except OSError as error:
            undo_create(folder, new, files)
            raise BankError(f"{folder}: can't create a bank ({error.strerror})") from None
        return bank

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        """The bank in `folder`. Its chain is checked, its adapters are not read.

        Raises:
            BankError: there is none, or with one line per broken link.
        """
        chain = read_chain(folder)
        if chain.problems:
            raise BankError("\n".join(chain.problems))
        return _bank_of(folder, chain)

    @property
    def index(self) -> Index:
        """What bank.json holds of it."""
        return Index.over(self.base_model, self.releases)

    @property
    def head(self) -> str:
        """The last release's hash, or the genesis: all that came before follows from it."""
        return self.releases[-1].hash if self.releases else genesis_of(self.base_model)

    def add(self, draft: Draft, blob: bytes, key: SigningKey, files: Files = DISK) -> "Bank":
        """Append a stage's release, durably; a stage is released once and never overwritten.

        `blob` is the adapter as it travelled (`to_bytes`). Its bytes are kept, so the
        release's digest is the one that sites know it by.

        A disk that fails leaves the bank as it was. A run that is cut off leaves it at the
        old head or at the new one, and what it half wrote is passed over.

        Raises:
            BankError: the draft does not continue this bank or its prototype is none, the blob
                is no adapter or holds a value that is not finite, or it can't be written.
        """
        self._check_continues(draft)
        adapter = _sound(blob, f"{self.folder}: the adapter for {draft.name!r}")
        blobs = release_blobs(blob, adapter, self.base_model.name)
        if draft.prototype is not None:
            prototype_from(draft.prototype, f"{self.folder}: the prototype for {draft.name!r}")
            blobs[PROTOTYPE_FILE] = draft.prototype
        release = _signed(self._release(draft, adapter, blobs, key), key)
        blobs[RELEASE_FILE] = release.to_bytes()
        # What could not be read again is not written.
        Release.from_bytes(blobs[RELEASE_FILE], f"the draft of {release.folder}")
        grown = Bank(self.folder, self.base_model, (*self.releases, release))
        try:
            clean(self.folder, self.index, files)
            self._refuse_foreign(release)
            commit(self.folder, grown.index, blobs, files)
        except OSError as error:
            undo(self.folder, self.index, files)
            raise BankError(
                f"{self.folder / release.folder}: can't be written ({error.strerror}); "
                "the bank is as it was before"
            ) from None
        return grown

    def adapter_bytes(self, stage: int) -> bytes:
        """The safetensors of a release, checked against its digest.

        Raises:
            BankError: there is no such release, or its file is missing or changed.
        """
        release = self.release(stage)
        return _read(self.folder / release.folder / ADAPTER_FILE, release.adapter)

    def adapter(self, stage: int) -> Adapter:
        """The adapter of a release; errors as in `adapter_bytes`."""
        blob = self.adapter_bytes(stage)
        return from_bytes(blob, str(self.folder / self.releases[stage].folder / ADAPTER_FILE))

    def prototype_bytes(self, stage: int) -> bytes | None:
        """The prototype's file of a release, checked against its digest; None without one.

        Raises:
            BankError: there is no such release, or its file is missing or changed.
        """
        release = self.release(stage)
        if release.prototype is None:
            return None
        return _read(self.folder / release.folder / PROTOTYPE_FILE, release.prototype)

    def prototypes(self) -> dict[int, ImagePrototype]:
        """The prototypes of the releases that have one, by position.

        Raises:
            BankError: a file is missing or changed.
        """
        blobs = {stage: self.prototype_bytes(stage) for stage in range(len(self.releases))}
        return {
            stage: prototype_from(blob, str(self.folder / self.releases[stage].folder))
            for stage, blob in blobs.items()
            if blob is not None
        }

    def release(self, stage: int) -> Release:
        """The release at a 0-based position.

        Raises:
            BankError: there is none.
        """
        if not 0 <= stage < len(self.releases):
            raise BankError(
                f"{self.folder}: found {len(self.releases)} releases, expected one at "
                f"position {stage} (the first is 0)"
            )
        return self.releases[stage]

    def named(self, name: str) -> Release:
        """The release of that name, or else at the position that `name` spells.

        Raises:
            BankError: there is none.
        """
        for release in self.releases:
            if name in (release.name, release.folder):
                return release
        if name.isdecimal():
            return self.release(int(name))
        known = ", ".join(release.name for release in self.releases) or "none"
        raise BankError(f"{self.folder}: found no release {name!r}, expected one of: {known}")

    def verify(
        self, base_sha256: str | None = None, signer: str | None = None, head: str | None = None
    ) -> None:
        """Every byte in the folder is as released, and the bank is still this one.

        Raises:
            BankError: with one line per problem, each naming the file.
        """
        verify_bank(
            self.folder, Expected(base_sha256=base_sha256, signer=signer, head=head or self.head)
        )

    def _check_continues(self, draft: Draft) -> None:
        on_disk = read_index(self.folder).head
        if on_disk != self.head:
            raise BankError(
                f"{self.folder}: found the head {on_disk} on disk, expected {self.head}: "
                "somebody else has written to the bank since it was opened"
            )
        for release in self.releases:
            if draft.stage == release.stage or draft.name == release.name:
                raise BankError(
                    f"{self.folder}: {release.folder} is released and can't be released again"
                )
        if draft.stage != len(self.releases):
            raise BankError(
                f"{self.folder}: found a release for position {draft.stage}, expected "
                f"{len(self.releases)}, the next one"
            )
        if draft.parent != self.head:
            raise BankError(
                f"{self.folder}: found a release for {draft.name!r} that continues "
                f"{draft.parent}, expected {self.head}, this bank's head"
            )

    def _refuse_foreign(self, release: Release) -> None:
        home = self.folder / release.folder
        if home.exists():
            raise BankError(f"{home}: found, but no release of this bank lists it; move it away")

    def _release(
        self, draft: Draft, adapter: AdapterSource, blobs: Mapping[str, bytes], key: SigningKey
    ) -> Release:
        return Release(
            stage=draft.stage,
            name=draft.name,
            modality=draft.modality,
            task=draft.task,
            parent=draft.parent,
            plan=draft.plan,
            base_model=self.base_model,
            sums=draft.sums,
            sites=dict(draft.sites),
            rule=draft.rule,
            error=draft.error,
            scores=dict(draft.scores),
            code=draft.code,
            adapter=sha256(blobs[ADAPTER_FILE]),
            config=sha256(blobs[CONFIG_FILE]),
            rank=adapter.rank,
            scale=float(adapter.scale),
            signer=key.public_hex,
            signature=_UNSIGNED,
            prototype=None if draft.prototype is None else sha256(draft.prototype),
        )


def verify_bank(folder: Path, expected: Expected) -> Bank:
    """Read every byte of a bank; the bank, if it is whole and the one that was expected.

    Raises:
        BankError: with one line per problem, each naming the file.
    """
    chain = read_chain(folder)
    problems = [
        *chain.problems,
        *content_problems(folder, chain),
        *expectation_problems(folder, chain, expected),
    ]
    if problems:
        raise BankError("\n".join(problems))
    return _bank_of(folder, chain)


def export(bank: Bank, upto: int, folder: Path, files: Files = DISK) -> Path:
    """`folder` is one PEFT adapter that adds what the releases summed for stage `upto` add.

    Raises:
        BankError: the folder exists, an adapter was changed, or it can't be written.
    """
    if folder.exists() or folder.is_symlink():
        raise BankError(f"{folder}: found something there, expected a folder that does not exist")
    release = bank.release(upto)
    adapters = [bank.adapter(stage) for stage in release.sums]
    source = f"{bank.folder}, the sum for {release.folder}"
    blobs = sum_blobs(adapters, bank.base_model.name, source)
    blobs[PROVENANCE_FILE] = provenance(bank, upto)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, blobs, files)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(folder), files)
        raise BankError(f"{folder}: can't be written ({error.strerror})") from None
    return folder


def provenance(bank: Bank, upto: int) -> bytes:
    """What an exported stage was made of, as a JSON text."""
    release = bank.release(upto)
    summed = [bank.release(stage) for stage in release.sums]
    return text_of(
        {
            "base_model": bank.base_model.model_dump(),
            "stage": release.name,
            "releases": [{"folder": one.folder, "hash": one.hash} for one in summed],
        }
    )


def _bank_of(folder: Path, chain: Chain) -> Bank:
    releases = tuple(release for release in chain.releases if release is not None)
    return Bank(folder, chain.index.base_model, releases)


def _read(file: Path, expected: str) -> bytes:
    """The bytes of a release's file, which has this digest."""
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
    if (found := sha256(blob)) != expected:
        raise BankError(
            f"{file}: found the digest {found}, expected {expected}: its bytes were changed"
        )
    return blob


def _sound(blob: bytes, source: str) -> AdapterSource:
    # What is released once is never mended, so it is looked at before.
    adapter = StoredAdapter.in_bytes(blob, source)
    if (fault := finite_fault(adapter)) is not None:
        raise BankError(f"{source}: {fault}")
    return adapter


def _signed(release: Release, key: SigningKey) -> Release:
    return replace(release, signature=key.sign(signed_bytes(release.hash)))
