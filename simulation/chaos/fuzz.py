"""Damaged pictures, DICOM files and task files: none may crash, hang, or be shown as another.

Whole small files are damaged by a seeded mutation and read as a site reads them. What counts:
the process dies, a file takes longer than 5 s, memory grows by more than 1 GB, an error is not
one printable sentence, or a file that was cut off shows another picture than the whole one.

    python -m simulation.chaos.fuzz --files 20000 --seed 1

A process of its own reads the files; where it dies, the file is named and the next one takes over.
"""

import argparse
import faulthandler
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import numpy as np

from client.data.images import decode_image, decoder_warnings_ignored
from client.data.pictures.codestream import ends_in_zeros
from client.data.pictures.grey_levels import NO_MEMORY
from client.data.task import TEST_FILE, TRAIN_FILE, inspect_task
from common.errors import DataError, StateError
from common.identity import ROOT
from simulation.chaos.fuzz_seeds import Zeros, picture_seeds, task_seed
from simulation.command_line.arguments import whole_from
from simulation.command_line.exit_codes import with_exit_codes

#: Seconds that one file may take; twice as much, and its process is ended.
MOST_S: Final = 5.0
#: Bytes that a file may take beside what the process had before.
MOST_BYTES: Final = 2**30
#: Of the files, every so many is a task's.
_TASKS: Final = 5

Mutation: TypeAlias = Callable[[bytearray, random.Random], None]


@dataclass(frozen=True, slots=True)
class Misreading:
    """A file that was not read as it should be: its number says how to make it again."""

    number: int
    name: str
    what: str


def flip_bits(data: bytearray, draw: random.Random) -> None:
    """Flip a few bits anywhere."""
    for _ in range(draw.choice((1, 2, 8, 32))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def damage_header(data: bytearray, draw: random.Random) -> None:
    """Write values that break arithmetic into the first bytes."""
    for _ in range(draw.choice((1, 2, 4))):
        at = draw.randrange(min(len(data), 1500))
        value = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        width = draw.choice((1, 2, 4))
        order = draw.choice(("little", "big"))
        data[at : at + width] = (value % 256**width).to_bytes(width, order)


def fill_block(data: bytearray, draw: random.Random) -> None:
    """Overwrite a block with one byte, or with noise."""
    at = draw.randrange(len(data))
    length = min(draw.choice((4, 64, 512, 4096)), len(data) - at)
    byte = draw.choice((0x00, 0xFF, 0x20, None))
    data[at : at + length] = draw.randbytes(length) if byte is None else bytes([byte]) * length


def move_block(data: bytearray, draw: random.Random) -> None:
    """Take a block out, or put it in elsewhere, too."""
    at, length = draw.randrange(len(data)), draw.choice((1, 2, 16, 300))
    block = data[at : at + length]
    if draw.random() < 0.5:
        del data[at : at + length]
    else:
        to = draw.randrange(len(data))
        data[to:to] = block
    if not data:
        data += b"\0"


def cut_off(data: bytearray, draw: random.Random) -> None:
    """Leave out the end."""
    del data[draw.randrange(1, len(data) + 1) :]


def blank_end(data: bytearray, draw: random.Random) -> None:
    """Replace the end by zeros: a copy that failed, with the length of the whole."""
    at = draw.randrange(len(data))
    data[at:] = bytes(len(data) - at)


#: Damage that any content may follow from, and damage after which only the whole may be shown.
MUTATIONS: Final[Sequence[Mutation]] = (flip_bits, damage_header, fill_block, move_block)
LOSSES: Final[Sequence[Mutation]] = (cut_off, blank_end)


class Fuzzer:
    """Reads the mutated files of a seed, one after the other, in this process."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the whole files, and read each once."""
        self._folder = folder
        self._seed = seed
        self._pictures = list(picture_seeds())
        self._wholes = [self._pixels(whole.name, whole.data) for whole in self._pictures]
        self._task = task_seed(folder / "task")
        self._usual = _peak_bytes()

    def read(self, number: int) -> Misreading | None:
        """Read the file of this number; None where all is well."""
        draw = random.Random(f"{self._seed} {number}")
        started = time.monotonic()
        is_task = number % _TASKS == 0
        try:
            name, what = self._read_task(draw) if is_task else self._read_picture(draw)
        except MemoryError:
            name, what = "?", "out of memory"
        took = time.monotonic() - started
        peak = _peak_bytes()
        grown = peak - self._usual
        if took > MOST_S:
            what = f"took {took:.1f} s"
        elif grown > MOST_BYTES:
            what = f"grew by {grown / 2**20:.0f} MiB"
        if grown > MOST_BYTES:
            # The peak stays: the next files have not taken it.
            self._usual = peak
        return Misreading(number, name, what) if what else None

    def _read_picture(self, draw: random.Random) -> tuple[str, str]:
        place = draw.randrange(len(self._pictures))
        seed, whole = self._pictures[place], self._wholes[place]
        data = bytearray(seed.data)
        mutation = draw.choice((*MUTATIONS, *LOSSES))
        mutation(data, draw)
        lost = mutation is cut_off or (
            mutation is blank_end
            and seed.zeros is not Zeros.PIXELS
            and (seed.zeros is Zeros.LOSS or ends_in_zeros(bytes(data)))
        )
        name = f"{seed.name} {mutation.__name__}"
        try:
            found = self._pixels(seed.name, bytes(data))
        except DataError as error:
            return name, self._wrong_sentence(str(error))
        except Exception as error:
            return name, f"{type(error).__name__}: {str(error)[:200]}"
        if lost and (whole.shape != found.shape or not np.array_equal(whole, found)):
            return name, "a picture that ends early is shown"
        return name, ""

    def _read_task(self, draw: random.Random) -> tuple[str, str]:
        wholes = {name: (self._task / name).read_bytes() for name in (TRAIN_FILE, TEST_FILE)}
        name = draw.choice((TRAIN_FILE, TEST_FILE))
        data = bytearray(wholes[name])
        mutation = draw.choice((*MUTATIONS, *LOSSES))
        mutation(data, draw)
        (self._task / name).write_bytes(data)
        label = f"{name} {mutation.__name__}"
        try:
            contents = inspect_task(self._task)
            for example in (*contents.train, *contents.test):
                # What a tokenizer, a disk and the report take.
                f"{example.question_id}{example.question}{example.answer}".encode()
            wrong = (self._wrong_sentence(mistake) for mistake in contents.mistakes)
            return label, next(filter(None, wrong), "")
        except Exception as error:
            return label, f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            (self._task / name).write_bytes(wholes[name])

    def _wrong_sentence(self, text: str) -> str:
        rest = text.replace(str(self._folder), "")
        if NO_MEMORY in rest:
            return "out of memory"
        if not rest.isprintable():
            return f"no sentence to print: {rest[:200]!r}"
        return f"a sentence of {len(rest)} letters" if len(rest) > 500 else ""

    def _pixels(self, name: str, data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        file = self._folder / name
        file.write_bytes(data)
        with decoder_warnings_ignored():
            return np.asarray(decode_image(file))


def _peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_range(first: int, last: int, seed: int) -> Iterator[Misreading]:
    """Read the files from `first` to before `last` in this process, within its bounds."""
    with TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), seed)
        # Address space beside what is mapped already, so that no file can take the machine's.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MOST_BYTES, resource.RLIM_INFINITY))
        for number in range(first, last):
            # Ends the process also where a decoder never comes back.
            faulthandler.dump_traceback_later(2 * MOST_S, exit=True)
            print(number, flush=True)
            finding = fuzzer.read(number)
            faulthandler.cancel_dump_traceback_later()
            if finding is not None:
                yield finding


def fuzz(files: int, seed: int, first: int = 0) -> list[Misreading]:
    """Read mutated files in a process of their own, which is started again where it dies.

    Raises:
        StateError: the process ends before it has read a file.
    """
    findings: list[Misreading] = []
    last = first + files
    while first < last:
        command = [sys.executable, "-m", __spec__.name, "--range", f"{first}:{last}"]
        number = first - 1
        with subprocess.Popen(
            [*command, "--seed", str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as reader:
            for line in reader.stdout or ():
                if line.startswith("{"):
                    findings.append(Misreading(**json.loads(line)))
                elif line.strip().isdecimal():
                    number = int(line)
        ended = reader.returncode
        if ended:
            how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
            if number < first:
                raise StateError(
                    f"{' '.join(command)}: found that it ends before it reads a file ({how}), "
                    "expected it to read them"
                )
            findings.append(Misreading(number, "?", f"the process ended ({how})"))
        first = number + 1 if ended else last
    return findings


@with_exit_codes
def main() -> int:
    """Read mutated files, and print what was not read as it should be."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--files", type=whole_from(1), default=500)
    parser.add_argument("--seed", type=whole_from(0), default=0)
    parser.add_argument("--range", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.range:
        begin, end = map(int, arguments.range.split(":"))
        for finding in read_range(begin, end, arguments.seed):
            fields = {"number": finding.number, "name": finding.name, "what": finding.what}
            print(json.dumps(fields), flush=True)
        return 0
    findings = fuzz(arguments.files, arguments.seed)
    for finding in findings:
        print(f"{finding.number}: {finding.name}: {finding.what}")
    print(f"{len(findings)} findings in {arguments.files} files")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
