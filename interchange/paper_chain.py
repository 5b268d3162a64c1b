"""Import of the paper's chain of tasks into a bank, and export of a stage as such a chain."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.bank.bank import PROVENANCE_FILE, Bank, provenance
from common.bank.release import ADAPTER_FILE, CONFIG_FILE, Draft, Release
from common.code_digest import code_digest
from common.durable import DISK, Files, remove_if_there, write_file, write_folder, writing
from common.errors import BankError
from common.identity import canonical_json, sha256
from common.plan_fields import BaseModelPin
from common.signing import SigningKey
from interchange.names import (
    CHECKPOINT_FILE,
    SETTINGS_FILE,
    PaperSettings,
    origin_of,
    settings_for,
)
from interchange.paper_checkpoint import (
    PaperFactors,
    PaperFolder,
    checkpoint_bytes,
    first_difference,
    read_factors,
    read_folder,
)
from interchange.paper_tasks import TaskLabel, name_in_folder
from interchange.peft_folder import is_peft_folder, read_peft_folder

#: The sites of an imported adapter and their examples: unknown.
IMPORTED = {"imported": 0}


@dataclass(frozen=True, slots=True)
class PaperTask:
    """A task's adapter in its folder."""

    folder: PaperFolder
    number: int

    @property
    def factors(self) -> PaperFactors:
        """Its factors, by layer."""
        return self.folder.tasks[self.number]

    @property
    def source(self) -> str:
        """Its name in errors."""
        return f"{self.folder.folder / CHECKPOINT_FILE}: task_{self.number}"

    @property
    def found_name(self) -> str | None:
        """Its name according to its folder's name, if that is known."""
        return name_in_folder(self.folder.folder.name, self.number)


@dataclass(frozen=True, slots=True)
class PaperChain:
    """Tasks in their order; if `separate`, none is summed with another."""

    tasks: tuple[PaperTask, ...]
    separate: bool


def read_chain(folders: Sequence[Path], separate: bool) -> PaperChain:
    """Read the tasks in these folders or their sub-folders, in the order of their numbers.

    A task that is in several folders of a chain must be the same in all of them, bit for bit.
    Runs that are `separate` all have the number 0 and keep the given order; PEFT adapters, which
    are models of their own, always are.

    Raises:
        BankError: a folder is invalid, tasks are missing or contradict each other, or their
            shapes, ranks or alphas differ, so that they can't be summed.
    """
    found = [folder for given in folders for folder in _task_folders(given)]
    of_peft = [folder for folder in found if is_peft_folder(folder)]
    if of_peft and len(of_peft) < len(found):
        raise BankError(
            f"{of_peft[0]}: found a PEFT adapter beside folders of the paper's, expected one kind "
            "in an import"
        )
    separate = separate or bool(of_peft)
    read = [read_peft_folder(one) if of_peft else read_folder(one) for one in found]
    tasks = _separate_tasks(read) if separate else _chained_tasks(read)
    for task in tasks:
        _check_same_layout(tasks[0], task, separate)
    return PaperChain(tuple(tasks), separate)


def import_chain(
    chain: PaperChain,
    labels: Sequence[TaskLabel],
    bank: Bank | tuple[Path, BaseModelPin],
    key: Callable[[], SigningKey],
    files: Files = DISK,
) -> tuple[Bank, tuple[Release, ...]]:
    """Release the chain into a bank, or into a new one in that folder; return what is new.

    Task i of a chain becomes release i. A release that the bank already has must be the same.
    A new bank is created atomically; an existing one is extended release by release, and the
    same import continues after the last. `key` is called after all checks.

    Raises:
        BankError: the bank has another release in a task's place, or can't be written.
    """
    if isinstance(bank, Bank):
        _check_continues(chain, labels, bank)
        before = len(bank.releases)
        grown = _add_releases(chain, labels, bank, key(), files)
        return grown, grown.releases[before:]
    folder, pin = bank
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise BankError(f"{folder}: found something there, expected a bank or a new folder")
    if not chain.separate and chain.tasks[0].number:
        raise BankError(f"{chain.tasks[0].source}: found no earlier one, expected task_0 first")
    signer = key()
    with _atomic_folder(folder, files) as temporary:
        grown = _add_releases(chain, labels, Bank.create(temporary, pin, files), signer, files)
    return Bank.open(folder), grown.releases


def export_chain(bank: Bank, upto: int, folder: Path, files: Files = DISK) -> tuple[str, ...]:
    """Write the adapters that stage `upto` sums as `task_0`, `task_1`, ..., for the paper's code.

    Returns the names of the tasks' folders, in the order in which their code takes them. An
    imported release is exported with the same bits and settings.

    Raises:
        BankError: the folder exists, their format can't represent the adapters, one was
            changed, or the disk can't be written.
    """
    if folder.exists() or folder.is_symlink():
        raise BankError(f"{folder}: found something there, expected a folder that does not exist")
    summed = [bank.release(stage) for stage in bank.release(upto).sums]
    _check_one_rank(bank, summed)
    layout: dict[str, tuple[int, int]] = {}
    names: list[str] = []
    with _atomic_folder(folder, files) as temporary:
        for number, release in enumerate(summed):
            source = str(bank.folder / release.folder / ADAPTER_FILE)
            blob = bank.adapter_bytes(release.stage)
            factors = read_factors(blob, source)
            _check_shapes(layout, factors, source)
            settings = _settings(blob, release, number, source)
            names.append(f"task_{number}")
            blobs = {
                CHECKPOINT_FILE: checkpoint_bytes(factors, number),
                SETTINGS_FILE: settings.to_bytes(),
            }
            write_folder(temporary / names[-1], blobs, files)
        write_file(temporary / PROVENANCE_FILE, provenance(bank, upto), files)
    return tuple(names)


def _task_folders(given: Path) -> list[Path]:
    """Return the folder itself, or the tasks' folders in it, by name."""
    if (given / CHECKPOINT_FILE).exists() or is_peft_folder(given) or not given.is_dir():
        return [given]
    names = (CHECKPOINT_FILE, CONFIG_FILE)
    within = sorted({file.parent for name in names for file in given.glob(f"*/{name}")})
    return within or [given]


def _separate_tasks(folders: Sequence[PaperFolder]) -> list[PaperTask]:
    for folder in folders:
        if len(folder.tasks) != 1:
            raise BankError(
                f"{folder.folder}: found {len(folder.tasks)} tasks, expected one in a run of its "
                "own (--separate)"
            )
    return [PaperTask(folder, next(iter(folder.tasks))) for folder in folders]


def _chained_tasks(folders: Sequence[PaperFolder]) -> list[PaperTask]:
    tasks: dict[int, PaperTask] = {}
    # A task's own folder comes before those of later tasks.
    for folder in sorted(folders, key=lambda folder: max(folder.tasks)):
        for number in sorted(folder.tasks):
            task = PaperTask(folder, number)
            _check_same_adapter(tasks.setdefault(number, task), task)
    for number in range(min(tasks), max(tasks)):
        if number not in tasks:
            raise BankError(
                f"{tasks[max(tasks)].source}: found no task_{number} before it, expected a chain "
                "without a gap"
            )
    return [tasks[number] for number in sorted(tasks)]


def _check_same_adapter(first: PaperTask, again: PaperTask) -> None:
    if (where := first_difference(first.factors, again.factors)) is not None:
        raise BankError(
            f"{again.source}: {where} differs from the one in {first.folder.folder}, expected the "
            "same adapter in both (take runs that are no chain with --separate)"
        )


def _check_same_layout(first: PaperTask, task: PaperTask, separate: bool) -> None:
    ours, theirs = first.folder.settings, task.folder.settings
    if not separate and (ours.rank, ours.alpha) != (theirs.rank, theirs.alpha):
        raise BankError(
            f"{task.source}: found rank {theirs.rank} and alpha {theirs.alpha:g}, expected "
            f"{ours.rank} and {ours.alpha:g} as in {first.folder.folder}: the paper's format has "
            "one rank and alpha for a chain"
        )
    layout: dict[str, tuple[int, int]] = {}
    _check_shapes(layout, first.factors, first.source)
    _check_shapes(layout, task.factors, task.source)


def _check_shapes(layout: dict[str, tuple[int, int]], factors: PaperFactors, source: str) -> None:
    """Check that each layer has the same shape in all adapters; adds new layers to `layout`."""
    for module, pair in factors.items():
        sizes = pair["A"].shape[1], pair["B"].shape[0]
        if layout.setdefault(module, sizes) != sizes:
            raise BankError(
                f"{source}: {module} has {sizes[0]} inputs and {sizes[1]} outputs, expected "
                f"{layout[module][0]} and {layout[module][1]} as in the task before"
            )


def _check_continues(chain: PaperChain, labels: Sequence[TaskLabel], bank: Bank) -> None:
    """Check that the bank's releases are the chain's first tasks, and that the rest can follow."""
    known = len(bank.releases)
    if not chain.separate and chain.tasks[0].number > known:
        raise BankError(
            f"{chain.tasks[0].source}: found {known} releases in {bank.folder}, expected "
            f"{chain.tasks[0].number}, one for each task before"
        )
    for task, label in zip(chain.tasks, labels, strict=True):
        if not chain.separate:
            _check_rank_continues(bank, task)
        if not chain.separate and task.number < known:
            _check_released(bank, bank.releases[task.number], task, label)
        elif label.name in {release.name for release in bank.releases}:
            raise BankError(
                f"{bank.folder}: {label.name} is released and can't be released again; give "
                f"{task.source} another name"
            )


def _check_rank_continues(bank: Bank, task: PaperTask) -> None:
    """Check rank and scale: their code uses one rank and alpha for all adapters that it sums."""
    theirs = task.folder.settings
    for release in bank.releases:
        if (release.rank, release.scale) != (theirs.rank, theirs.scale):
            raise BankError(
                f"{task.source}: found rank {theirs.rank} and alpha {theirs.alpha:g}, expected "
                f"rank {release.rank} and scale {release.scale:g} as in "
                f"{bank.folder / release.folder}, which it continues"
            )


def _check_released(bank: Bank, release: Release, task: PaperTask, label: TaskLabel) -> None:
    source = str(bank.folder / release.folder)
    where = first_difference(read_factors(bank.adapter_bytes(release.stage), source), task.factors)
    if where is not None:
        raise BankError(
            f"{task.source}: {where} differs from {source}, expected the same adapter: this bank "
            "continues another chain"
        )
    if (label.name, label.modality) != (release.name, release.modality):
        raise BankError(
            f"{task.source}: called {label.name}:{label.modality.value}, expected "
            f"{release.name}:{release.modality.value}, as {source} is"
        )


def _add_releases(
    chain: PaperChain, labels: Sequence[TaskLabel], bank: Bank, key: SigningKey, files: Files
) -> Bank:
    before = len(bank.releases)
    for task, label in zip(chain.tasks, labels, strict=True):
        if chain.separate or task.number >= before:
            draft = _draft(bank, task, label, chain.separate)
            bank = bank.add(draft, task.folder.blob(task.number), key, files)
    return bank


def _draft(bank: Bank, task: PaperTask, label: TaskLabel, separate: bool) -> Draft:
    """Return the release of an imported adapter; nothing is known of its training."""
    stage = len(bank.releases)
    return Draft(
        stage=stage,
        name=label.name,
        modality=label.modality,
        task=label.task,
        parent=bank.head,
        # The digest of the two files' digests, in place of a plan's.
        plan=sha256(canonical_json(dict(task.folder.files)).encode()),
        sums=(stage,) if separate else tuple(range(stage + 1)),
        sites=IMPORTED,
        rule="fedavg",
        error=0.0,
        scores={},
        # The code that imported it; the code that trained it is not known.
        code=code_digest(),
    )


def _check_one_rank(bank: Bank, summed: Sequence[Release]) -> None:
    first = summed[0]
    for release in summed:
        if (release.rank, release.scale) != (first.rank, first.scale):
            raise BankError(
                f"{bank.folder / release.folder}: found rank {release.rank} and scale "
                f"{release.scale:g}, expected {first.rank} and {first.scale:g} as in "
                f"{first.folder}: the paper's format has one rank and alpha for a chain"
            )


def _settings(blob: bytes, release: Release, number: int, source: str) -> PaperSettings:
    """Return the config.json of a release as task `number` of a chain."""
    if (origin := origin_of(blob, source)) is None:
        return settings_for(number, release.rank, release.scale, source)
    return origin.settings if origin.task == number else origin.settings.as_task(number)


@contextmanager
def _atomic_folder(folder: Path, files: Files) -> Generator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end: atomic creation.

    Raises:
        BankError: it can't be written; nothing is left behind.
    """
    temporary = writing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_if_there(temporary, files)
        files.make_folder(temporary)
        yield temporary
        files.sync(temporary)
        files.rename(temporary, folder)
        files.sync(folder.parent)
    except OSError as error:
        raise BankError(f"{folder}: can't be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            remove_if_there(temporary, files)
