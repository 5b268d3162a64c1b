"""The memory that `bench wire` reports of a process that works for both ways, one after another."""

import os
import subprocess
import sys

from benchmarks.wire import PeakMemory

#: Has 100 MB for a moment.
CODE = "large = b'x' * 100_000_000; del large; print('freed', flush=True); input()"


def test_the_second_way_is_not_told_the_memory_of_the_first():
    words = [sys.executable, "-c", CODE, "flower-superlink"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        memory = PeakMemory(os.getpid())
        memory.sample()
        assert memory.peak["superlink"] > 100_000_000
        memory.restart()
        assert memory.peak == {}
        memory.sample()
        assert memory.peak["superlink"] < 100_000_000
        process.stdin.write(b"\n")
