"""Test several files at a time, in processes forked from the one that collected them.

`python -m pytest -p tests.file_workers --workers 3`. Workers of pytest-xdist import and collect
everything again, each for itself: with torch, Transformers, Flower and 5,400 tests that is a
minute of processor time for each. Here it is done once, and a worker that has finished a file
takes the next. What tests fork comes from one server, which has all of it imported, too.
"""

import gc
import logging
import multiprocessing
import os
import secrets
import socket
import struct
import warnings
from collections.abc import Sequence
from itertools import groupby, pairwise
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import pytest

#: They wait for a slow line, so nothing may come before them.
_FIRST = ("tests/federated/test_slow_link.py",)
#: A file's place in the list of files, as the queue has it: a pipe, from which each worker reads.
_PLACE = struct.Struct("<I")

#: So long a worker may take to end once its tests are done.
_PATIENCE_S = 30.0

#: The tests of a file, in their order.
File: TypeAlias = Sequence[pytest.Item]
#: Each worker's process, by where its results come from.
Workers: TypeAlias = dict[Connection, BaseProcess]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=1, help="files that are tested at a time")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Take the place of pytest's own loop, if several files are to be tested at a time."""
    config = session.config
    count: int = config.option.workers
    if count < 2 or session.testsfailed or config.option.collectonly:
        return None
    files = _files_of(session)
    # Before the workers are there, so that they share it and this process removes it.
    config._tmp_path_factory.getbasetemp()  # pyright: ignore
    # What the imports have made stays: no search for garbage goes through it any more.
    gc.collect()
    gc.freeze()
    share_fork_server()
    queue = _queue_of(len(files))
    context = multiprocessing.get_context("fork")
    workers: Workers = {}
    for _ in range(min(count, len(files))):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(session, files, queue, theirs))
        process.start()
        theirs.close()
        workers[mine] = process
    try:
        _report(session, dict(workers))
    except BaseException:
        for process in workers.values():
            process.terminate()
        raise
    finally:
        os.close(queue)
        for process in workers.values():
            # What a test has left running may keep its process.
            process.join(_PATIENCE_S)
            process.kill()
    return True


class _InheritedForkServer(forkserver.ForkServer):
    """A fork server that was started by the process which this one was forked from."""

    def __init__(self, address: str | bytes, alive: int) -> None:
        super().__init__()
        self._forkserver_address = address
        self._forkserver_alive_fd = alive

    def ensure_running(self) -> None:
        """It is: it ends with the last process that has inherited `alive`."""


def share_fork_server() -> None:
    """Fork the fork server of multiprocessing from this process, for it and its own forks.

    Otherwise each worker would start one of its own, which would import the same for 13 s.
    """
    listener = socket.socket(socket.AF_UNIX)
    # Without a file, as multiprocessing's own: in Linux's abstract names.
    listener.bind(f"\0fedmslora-tests-{secrets.token_hex(8)}")
    listener.listen()
    ended, alive = os.pipe()
    resource_tracker.ensure_running()
    if os.fork() == 0:
        try:
            os.close(alive)
            # What pytest has set for tests is not set for a program: warnings are no errors.
            warnings.simplefilter("ignore")
            logging.getLogger().handlers.clear()
            # What a fork prints is nobody's captured output; a program has its log.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            forkserver.main(listener.detach(), ended, [])
        finally:
            os._exit(0)
    os.close(ended)
    server = _InheritedForkServer(listener.getsockname(), alive)
    listener.close()
    forkserver.connect_to_new_process = server.connect_to_new_process


def _files_of(session: pytest.Session) -> list[File]:
    files = [list(items) for _, items in groupby(session.items, lambda item: item.path)]
    return sorted(files, key=lambda file: not file[0].nodeid.startswith(_FIRST))


def _queue_of(count: int) -> int:
    """The end to read from of a pipe with the places of so many files."""
    queue, end = os.pipe()
    os.write(end, b"".join(map(_PLACE.pack, range(count))))
    os.close(end)
    return queue


class _Told:
    """Sends what a worker's tests come to."""

    def __init__(self, config: pytest.Config, results: Connection) -> None:
        self._config = config
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        self._results.send(hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._results.send((nodeid, location))


def _work(session: pytest.Session, files: list[File], queue: int, results: Connection) -> None:
    plugins = session.config.pluginmanager
    plugins.unregister(name="terminalreporter")
    # What is captured lies in files, which the workers would share.
    capture: Any = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()
    plugins.register(_Told(session.config, results))
    while not session.shouldfail and (place := os.read(queue, _PLACE.size)):
        (number,) = _PLACE.unpack(place)
        file: list[pytest.Item | None] = [*files[number], None]
        for item, following in pairwise(file):
            assert item is not None
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                break
    results.send(None)


def _report(session: pytest.Session, workers: Workers) -> None:
    """Hand on what the workers send, until the last has said that it is done, or has ended."""
    hook = session.config.hook
    missing = {item.nodeid: item for item in session.items}
    while workers:
        ended = [results for results, process in workers.items() if not process.is_alive()]
        for results in wait(list(workers), _PATIENCE_S / 10) or ended:
            assert isinstance(results, Connection)
            match _received(results):
                case None:
                    del workers[results]
                case (str(nodeid), location):
                    hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
                    del missing[nodeid]
                case told:
                    report = hook.pytest_report_from_serializable(config=session.config, data=told)
                    hook.pytest_runtest_logreport(report=report)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    for item in missing.values():
        hook.pytest_runtest_logreport(report=_untested(item))


def _received(results: Connection) -> Any:
    """The next message; None at the end, also where a fork of a dead worker keeps the pipe."""
    try:
        return results.recv() if results.poll() else None
    except EOFError:
        return None


def _untested(item: pytest.Item) -> pytest.TestReport:
    why = "not tested to its end: the process that had this file ended"
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")
