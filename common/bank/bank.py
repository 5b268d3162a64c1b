"""The append-only bank: one signed adapter per stage, in a hash chain, never overwritten.

On disk it is a folder: `bank.json`, and one folder per release with `release.json` and the
two files of a PEFT adapter. common/bank/release.py defines the contents.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.adapter import (
    Adapter,
    AdapterSource,
    StoredAdapter,
    finite_fault,
    from_bytes,
    to_bytes,
)
from common.bank.check import (
    Chain,
    Expected,
    content_problems,
    expectation_problems,
    is_endless,
    read_chain,
    read_index,
)
from common.bank.commit import clean, commit, undo, undo_create
from common.bank.peft import PeftBase, release_blobs, sum_blobs
from common.bank.release import (
    ADAPTER_FILE,
    CONFIG_FILE,
    EXTRAS_FILE,
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
from common.plan_fields import BaseModelPin
from common.router.image_prototype import ImagePrototype
from common.router.image_prototype import from_bytes as prototype_from
from common.signing import SigningKey

#: Stands for the signature in a release that is not signed yet.
_UNSIGNED = "0" * 128
#: Lists the releases that an exported adapter is the sum of; PEFT ignores the file.
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank as it was when opened. `add` returns a new one, so an old one is a checkpoint."""

    folder: Path
    base_model: BaseModelPin
    releases: tuple[Release, ...]

    @classmethod
    def create(cls, folder: Path, base_model: BaseModelPin, files: Files = DISK) -> "Bank":
        """Create an empty bank in a folder that is new or empty.

        Raises:
            BankError: the folder is not empty, or can't be written.
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
        """Open the bank in `folder`. Its hash chain is checked; its adapters are not read.

        Raises:
            BankError: there is no bank, or its chain is broken; one line per problem.
        """
        chain = read_chain(folder)
        if chain.problems:
            raise BankError("\n".join(chain.problems))
        return _bank_of(folder, chain)

    @property
    def index(self) -> Index:
        """The content of bank.json."""
        return Index.over(self.base_model, self.releases)

    @property
    def head(self) -> str:
        """The last release's hash, or the genesis hash; it covers everything before it."""
        return self.releases[-1].hash if self.releases else genesis_of(self.base_model)

    def add(self, draft: Draft, blob: bytes, key: SigningKey, files: Files = DISK) -> "Bank":
        """Append a stage's release, durably; a stage is released once and never overwritten.

        `blob` is the adapter as it was sent to the sites (`to_bytes`). Its bytes are kept, so the
        release has the digest that the sites know.

        If the disk fails, the bank stays as it was. If the process dies, the bank has the old head
        or the new one, and what was written incompletely is ignored.

        Raises:
            BankError: the draft does not continue this bank, the prototype or the adapter is not
                valid, the adapter has a value that is not finite, or the disk fails.
        """
        self._check_continues(draft)
        source = f"{self.folder}: the adapter for {draft.name!r}"
        adapter = StoredAdapter.in_bytes(blob, source)
        # Checked first: a release can't be corrected.
        if (fault := finite_fault(adapter)) is not None:
            raise BankError(f"{source}: {fault}")
        earlier = [one.folder for one in self.releases if one.stage in draft.sums]
        blobs = release_blobs(blob, adapter, self.base_model.name, earlier)
        if draft.prototype is not None:
            prototype_from(draft.prototype, f"{self.folder}: the prototype for {draft.name!r}")
            blobs[PROTOTYPE_FILE] = draft.prototype
        unsigned = self._unsigned_release(draft, adapter, blobs, key)
        release = replace(unsigned, signature=key.sign(signed_bytes(unsigned.hash)))
        blobs[RELEASE_FILE] = release.to_bytes()
        # Fails before anything is written, should the file not be readable.
        Release.from_bytes(blobs[RELEASE_FILE], f"the draft of {release.folder}")
        grown = Bank(self.folder, self.base_model, (*self.releases, release))
        try:
            clean(self.folder, self.index, files)
            if (self.folder / release.folder).exists():
                raise BankError(
                    f"{self.folder / release.folder}: found, but no release of this bank lists "
                    "it; move it away"
                )
            commit(self.folder, grown.index, blobs, files)
        except OSError as error:
            undo(self.folder, self.index, files)
            raise BankError(
                f"{self.folder / release.folder}: can't be written ({error.strerror}); "
                "the bank is as it was before"
            ) from None
        return grown

    def adapter_bytes(self, stage: int) -> bytes:
        """Read the adapter's file of a release, and check it against its digest.

        Raises:
            BankError: there is no such release, or its file is missing or was changed.
        """
        release = self.release(stage)
        return _read(self.folder / release.folder / ADAPTER_FILE, release.adapter)

    def adapter(self, stage: int) -> Adapter:
        """Read the adapter of a release; errors as in `adapter_bytes`."""
        blob = self.adapter_bytes(stage)
        return from_bytes(blob, str(self.folder / self.releases[stage].folder / ADAPTER_FILE))

    def prototype_bytes(self, stage: int) -> bytes | None:
        """Read the prototype's file of a release, and check its digest; None if it has none.

        Raises:
            BankError: there is no such release, or its file is missing or was changed.
        """
        release = self.release(stage)
        if release.prototype is None:
            return None
        return _read(self.folder / release.folder / PROTOTYPE_FILE, release.prototype)

    def prototypes(self) -> dict[int, ImagePrototype]:
        """Read the prototypes of the releases that have one, by position.

        Raises:
            BankError: a file is missing or was changed.
        """
        blobs = {stage: self.prototype_bytes(stage) for stage in range(len(self.releases))}
        return {
            stage: prototype_from(blob, str(self.folder / self.releases[stage].folder))
            for stage, blob in blobs.items()
            if blob is not None
        }

    def release(self, stage: int) -> Release:
        """Return the release at a 0-based position.

        Raises:
            BankError: there is none.
        """
        if not 0 <= stage < len(self.releases):
            raise BankError(
                f"{self.folder}: found {len(self.releases)} releases, expected one at "
                f"position {stage} (the first is 0)"
            )
        return self.releases[stage]

    def summed_by(self, stage: int) -> tuple[Release, ...]:
        """Return the later releases that sum this one: who withdraws it takes those, too."""
        return tuple(one for one in self.releases[stage + 1 :] if stage in one.sums)

    def named(self, name: str) -> Release:
        """Return the release of that name or folder, or else the one at that position.

        Raises:
            BankError: there is none.
        """
        for release in self.releases:
            if name in (release.name, release.folder):
                return release
        if name.isascii() and name.isdecimal() and len(name) <= 9:
            return self.release(int(name))
        known = ", ".join(release.name for release in self.releases) or "none"
        raise BankError(f"{self.folder}: found no release {name!r}, expected one of: {known}")

    def verify(
        self, base_sha256: str | None = None, signer: str | None = None, head: str | None = None
    ) -> None:
        """Check that every byte in the folder is as released, and that its head is this bank's.

        Raises:
            BankError: something is wrong; one line per problem, each naming the file.
        """
        verify_bank(
            self.folder, Expected(base_sha256=base_sha256, signer=signer, head=head or self.head)
        )

    def _check_continues(self, draft: Draft) -> None:
        on_disk = read_index(self.folder).head
        if on_disk != self.head:
            raise BankError(
                f"{self.folder}: found the head {on_disk} on disk, expected {self.head}: "
                "another process has written to the bank since it was opened"
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

    def _unsigned_release(
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
            classes=draft.classes,
            self_reported=draft.self_reported,
            method=draft.method,
            questions=draft.questions,
            body_parts=draft.body_parts,
        )


def verify_bank(folder: Path, expected: Expected) -> Bank:
    """Check every byte of a bank, and that it is the expected one; return it.

    Raises:
        BankError: something is wrong; one line per problem, each naming the file.
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
    """Write one PEFT adapter that is the sum of the releases that stage `upto` sums.

    Raises:
        BankError: the folder exists or can't be written, or an adapter was changed.
    """
    blobs = export_blobs(bank, upto, PeftBase(bank.base_model.name))
    return write_export(folder, blobs, files)


def export_blobs(bank: Bank, upto: int, base: PeftBase) -> dict[str, bytes]:
    """Return the files of one PEFT adapter that is the sum of the releases of stage `upto`.

    Arrays beside the low-rank factors, as prompts of classes, are in a file of their own, where the
    stage sums no other; the provenance has the classes' names.

    Raises:
        BankError: an adapter was changed, or can't be summed.
    """
    release = bank.release(upto)
    adapters = [bank.adapter(stage) for stage in release.sums]
    beside = {PROVENANCE_FILE: provenance(bank, upto)}
    if len(adapters) == 1 and adapters[0].extras:
        beside[EXTRAS_FILE] = to_bytes(Adapter({}, 1.0, adapters[0].extras))
        adapters = [Adapter(adapters[0].pairs, adapters[0].scale)]
    return sum_blobs(adapters, base, f"{bank.folder}, the sum for {release.folder}") | beside


def write_export(folder: Path, blobs: Mapping[str, bytes], files: Files = DISK) -> Path:
    """Write a folder of exported files, atomically.

    Raises:
        BankError: the folder exists or can't be written.
    """
    check_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, blobs, files)
    except OSError as error:
        with suppress(OSError):
            remove_if_there(writing(folder), files)
        raise BankError(f"{folder}: can't be written ({error.strerror})") from None
    return folder


def check_new(folder: Path) -> None:
    """Check that nothing is at `folder`.

    Raises:
        BankError: something is.
    """
    if folder.exists() or folder.is_symlink():
        raise BankError(f"{folder}: found something there, expected a folder that does not exist")


def provenance(bank: Bank, upto: int) -> bytes:
    """Return the releases that an exported stage is the sum of, as JSON."""
    release = bank.release(upto)
    summed = [bank.release(stage) for stage in release.sums]
    return text_of(
        {
            "base_model": bank.base_model.model_dump(),
            "stage": release.name,
            **({} if release.classes is None else {"classes": list(release.classes)}),
            **({} if release.method is None else {"method": dict(release.method)}),
            "releases": [{"folder": one.folder, "hash": one.hash} for one in summed],
        }
    )


def _bank_of(folder: Path, chain: Chain) -> Bank:
    releases = tuple(release for release in chain.releases if release is not None)
    return Bank(folder, chain.index.base_model, releases)


def _read(file: Path, expected: str) -> bytes:
    """Read a release's file, and check its digest."""
    try:
        blob = b"" if is_endless(file) else file.read_bytes()
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
    if (found := sha256(blob)) != expected:
        changed = "its bytes were changed"
        raise BankError(f"{file}: found the digest {found}, expected {expected}: {changed}")
    return blob
