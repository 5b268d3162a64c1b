"""The page in headless Chromium, where there is one: drop a picture, ask, see who answered and why.

Without Chromium (Debian's package `chromium`) these tests are skipped.
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from tests.flow.asked_bank import QUESTIONS, asked_bank
from tests.flow.chromium import Browser, browser, needs_chromium
from tests.flow.serving.running_server import TOKEN, Running, running_server
from tests.flow.serving.test_server import scan

PAGE = Path(__file__).resolve().parents[3] / "serving/page"


def drop(page: Browser, file: Path) -> None:
    """Drop a file on the page, as a person does."""
    content = base64.b64encode(file.read_bytes()).decode()
    page.run(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{content}"), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "{file.name}"));
            const event = new DragEvent("drop", {{dataTransfer: transfer, bubbles: true}});
            document.getElementById("drop").dispatchEvent(event);
        }})()"""
    )
    page.wait_for("!document.getElementById('preview').hidden")


def ask(page: Browser, question: str) -> None:
    before = page.run("document.querySelectorAll('#history li').length")
    page.run(
        f"""(() => {{
            const field = document.getElementById("question");
            field.value = {json.dumps(question)};
            field.dispatchEvent(new Event("input"));
            document.getElementById("send").click();
        }})()"""
    )
    page.wait_for(f"document.querySelectorAll('#history li').length > {before}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    torch.set_num_threads(1)
    with running_server(asked_bank(tmp_path_factory.mktemp("page"))) as found:
        yield found


@needs_chromium
def test_a_person_drops_a_picture_asks_and_sees_who_answered_and_why(
    running: Running, tmp_path: Path
):
    picture = running.asked.pictures["dark"][0]
    url = f"http://127.0.0.1:{running.port}/#token={TOKEN}"
    with browser(tmp_path / "profile", url) as page:
        page.wait_for("document.querySelectorAll('#model option').length === 3")
        assert page.run("location.hash") == "", "the token stays in the address bar"
        assert "No medical device" in page.run("document.body.innerText")
        drop(page, picture)
        ask(page, QUESTIONS[0])
        said = page.run("document.querySelector('#history li').innerText")
        expected = running.answer(picture, QUESTIONS[0], "fedmslora/router")
        assert expected["choices"][0]["message"]["content"] in said
        assert "Stage dark (ct)" in said and "Confidence" in said
        # A DICOM file, which no browser shows by itself.
        drop(page, scan(tmp_path))
        ask(page, QUESTIONS[1])
        assert page.run("document.querySelectorAll('#history li').length") == 2
        shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        (tmp_path / "page.png").write_bytes(base64.b64decode(shot["data"]))
        assert page.run("localStorage.length + sessionStorage.length") == 0
        page.run("location.reload()")
        page.wait_for("document.querySelectorAll('#model option').length !== 1")
        assert page.run("document.querySelectorAll('#history li').length") == 0


@needs_chromium
def test_without_a_token_the_page_asks_for_it(running: Running, tmp_path: Path):
    with browser(tmp_path / "profile", f"http://127.0.0.1:{running.port}/") as page:
        page.wait_for("!document.getElementById('access').hidden")
        page.run(
            f"""(() => {{
                document.getElementById("token").value = "{TOKEN}";
                document.querySelector("#access button").click();
            }})()"""
        )
        page.wait_for("document.querySelectorAll('#model option').length === 3")
        assert page.run("document.getElementById('access').hidden") is True


def test_the_script_is_javascript():
    node = shutil.which("node")
    if node is None:
        pytest.skip("found no node")
    subprocess.run([node, "--check", str(PAGE / "page.js")], check=True)


def test_every_element_that_the_script_names_is_on_the_page():
    import re

    script, page = ((PAGE / name).read_text("utf-8") for name in ("page.js", "index.html"))
    named = set(re.findall(r'\bat\("(\w+)"\)', script))
    assert named and named <= set(re.findall(r'\bid="(\w+)"', page))
