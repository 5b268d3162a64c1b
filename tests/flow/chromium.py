"""Headless Chromium by the DevTools protocol, for tests of pages."""

import json
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="found no chromium")


class Browser:
    """A tab, by the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            found = json.loads(self._connection.recv(30))
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until an expression is true; at most a minute."""
        deadline = time.monotonic() + 60
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)


@contextmanager
def browser(profile: Path, url: str) -> Generator[Browser]:
    """A new tab at `url`."""
    assert CHROMIUM is not None
    options = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "--no-first-run", "--window-size=420,1400",
    )  # fmt: skip
    process = subprocess.Popen([CHROMIUM, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "DevTools listening on" in line)
        address = line.split()[-1]
        with connect(address, max_size=None) as root:
            targets = Browser(root).call("Target.getTargets")["targetInfos"]
            (tab,) = [one["targetId"] for one in targets if one["type"] == "page"]
        host = address.split("/devtools/")[0]
        with connect(f"{host}/devtools/page/{tab}", max_size=None) as connection:
            opened = Browser(connection)
            opened.call("Page.navigate", url=url)
            opened.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
            yield opened
    finally:
        process.kill()
        process.communicate()
