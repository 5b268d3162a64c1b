"""What dies is started again, and what is stopped leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from common.errors import StateError
from common.process.supervise import (
    Program,
    RestartPolicy,
    running_pid,
    single_instance,
    supervise,
    until_signalled,
)

ROOT = Path(__file__).resolve().parents[4]
QUICK = RestartPolicy(first_pause_s=0.05, longest_pause_s=0.2, grace_s=0.5)


def part(tmp_path: Path, code: str, name: str = "part") -> Program:
    return Program(name, (sys.executable, "-c", code), {"WHO": name}, tmp_path / f"logs/{name}.log")


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(number: int) -> bool:
    """Whether a process is there and not only waiting to be buried."""
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def kept(parts: list[Program], until: Callable[[], bool], pace: RestartPolicy = QUICK) -> list[str]:
    """Keep the parts going until something is true; what the supervisor said."""
    stop, said = Event(), list[str]()

    def watch() -> None:
        try:
            eventually(until)
        finally:
            stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    supervise(parts, stop, said.append, pace)
    watcher.join()
    return said


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_a_part_that_dies_is_started_again_and_that_is_said(tmp_path: Path):
    dying = part(tmp_path, "import os; print(os.environ['WHO'], flush=True); raise SystemExit(3)")
    said = kept([dying], lambda: len(lines(dying.log)) >= 3)
    assert set(lines(dying.log)) == {"part"}
    # How long it lived is the machine's.
    expected = r"part ended \(exit code 3\) after \d+ s; it starts again in 0\.05 s"
    assert re.match(expected, said[0])
    assert "it starts again in 0.1 s" in said[1]


def test_the_signal_that_ended_a_part_is_said_also_one_without_a_name(tmp_path: Path):
    killed = part(tmp_path, "import os; print('here', flush=True); os.kill(os.getpid(), 40)")
    said = kept([killed], lambda: len(lines(killed.log)) >= 2)
    assert said[0].startswith("part ended (signal 40) after ")


def test_the_pauses_grow_to_the_longest(tmp_path: Path):
    dying = part(tmp_path, "print('here', flush=True)")
    said = kept([dying], lambda: len(lines(dying.log)) >= 5)
    pauses = [line.partition("again in ")[2].partition(" s;")[0] for line in said]
    assert pauses[:4] == ["0.05", "0.1", "0.2", "0.2"]


def test_after_a_settled_life_the_pause_is_short_again(tmp_path: Path):
    dying = part(tmp_path, "print('here', flush=True)")
    said = kept(
        [dying], lambda: len(lines(dying.log)) >= 4, RestartPolicy(first_pause_s=0.05, stable_s=0.0)
    )
    assert all("it starts again in 0.05 s" in line for line in said)


def test_stopping_ends_all_parts_and_what_they_started(tmp_path: Path):
    code = (
        "import subprocess, sys, time, os;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(os.getpid(), child.pid, flush=True); time.sleep(600)"
    )
    pair = [part(tmp_path, code, "one"), part(tmp_path, code, "two")]
    kept(pair, lambda: all(lines(one.log) for one in pair))
    numbers = [int(word) for one in pair for word in lines(one.log)[0].split()]
    assert len(numbers) == 4
    eventually(lambda: not any(alive(number) for number in numbers))


def test_a_part_that_does_not_want_to_end_is_killed(tmp_path: Path):
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    stubborn = part(tmp_path, code)
    kept([stubborn], lambda: bool(lines(stubborn.log)))
    assert not alive(int(lines(stubborn.log)[0]))


def test_parts_end_with_a_supervisor_that_is_killed(tmp_path: Path):
    log = tmp_path / "logs/part.log"
    code = f"""
import sys
from pathlib import Path
from common.process.supervise import Program, supervise, until_signalled
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with until_signalled() as stop:
    supervise([Program("part", (sys.executable, "-c", child), {{}}, Path({str(log)!r}))], stop)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    eventually(lambda: bool(lines(log)))
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: not alive(int(lines(log)[0])))


def test_a_log_that_somebody_moves_away_does_not_end_the_parts(tmp_path: Path):
    staying = part(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    dying = part(tmp_path, "print('here', flush=True)", "dying")
    starts_before = list[int]()

    def checked_again() -> bool:
        if not starts_before and lines(staying.log):
            staying.log.rename(tmp_path / "moved.log")
            starts_before.append(len(lines(dying.log)))
        # The supervisor looks at both between two starts.
        return bool(starts_before) and len(lines(dying.log)) > starts_before[0] + 1

    said = kept([staying, dying], checked_again)
    assert all(line.startswith("dying ended") for line in said)


def test_a_long_log_is_put_aside_while_the_part_goes_on_writing(tmp_path: Path):
    code = "import time\nfor i in range(10**9): print(i, flush=True); time.sleep(0.001)"
    talking = part(tmp_path, code)
    aside = talking.log.with_name("part.log.1")
    pace = RestartPolicy(log_bytes=200, grace_s=0.5)
    kept([talking], lambda: bool(lines(aside) and lines(talking.log)), pace)
    assert int(lines(talking.log)[-1]) > int(lines(aside)[0])


def test_a_program_that_is_not_there_is_named(tmp_path: Path):
    gone = Program("part", (str(tmp_path / "gone"),), {}, tmp_path / "log")
    with pytest.raises(StateError, match=r"part: can't start .*gone \(No such file"):
        supervise([gone], Event(), print, QUICK)


def test_only_one_process_is_alone_and_it_is_named(tmp_path: Path):
    file = tmp_path / "folder/start.pid"
    assert running_pid(file) is None
    with single_instance(file):
        assert running_pid(file) == os.getpid()
        with (
            pytest.raises(StateError, match=f"process {os.getpid()} running already"),
            single_instance(file),
        ):
            pass
    assert running_pid(file) is None


def test_a_process_that_was_killed_is_not_running(tmp_path: Path):
    file = tmp_path / "start.pid"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from common.process.supervise import single_instance\n"
        "with single_instance(Path(sys.argv[1])): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT)
    eventually(lambda: running_pid(file) == process.pid)
    process.kill()
    process.wait()
    assert running_pid(file) is None
    assert file.read_text(encoding="utf-8") == f"{process.pid}\n"


def test_a_signal_sets_the_event_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with until_signalled() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(stop.is_set)
    assert signal.getsignal(signal.SIGTERM) is before
