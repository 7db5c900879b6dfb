"""The studio's page in a real browser: click, paint, compare, cancel, reload, two tabs, a server that is killed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, read_pixels, texture
from PIL import Image
from runs import save_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BINARY = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PATIENCE = 60_000  # milliseconds

pytest.importorskip("starlette")
pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")


class Server:
    """`pixcell studio` in a process of its own."""

    def __init__(self, folder: Path, weights: Path):
        self.folder = folder
        run = save_run(folder / "run", folder, 1280, 256, ssl_prefix="mobilenetv2")
        self.image = folder / "tissue.png"
        texture(1024, 1).crop((0, 0, 900, 700)).save(self.image)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = [
            "--workdir",
            run,
            "--encoder",
            weights,
            "--out",
            folder / "studio",
            "--port",
            self.port,
            "--device",
            "cpu",
        ]
        self.call = [sys.executable, "-m", "pixcell", "studio", self.image, *options]
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            list(map(str, self.call)), cwd=self.folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert self.address[:-1] in line, line

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, mobilenet_weights) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("page"), mobilenet_weights)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BINARY, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page, with all that its console says and all that it asks for."""

    def __init__(self, context: Any, server: Server):
        self.page, self.said, self.asked = context.new_page(), [], []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.server = server
        self.open()

    def open(self) -> None:
        self.page.goto(self.server.address)
        wait(lambda: "pixels" in self.page.inner_text("#network"))
        self.page.wait_for_selector(".leaflet-tile-loaded")

    def click(self, x: int = 250, y: int = 200) -> None:
        self.page.click("#map", position={"x": x, "y": y})
        self.page.wait_for_selector("#canvas:not([hidden])")
        wait(lambda: self.page.is_enabled("#run"))

    def choose(self, action: str) -> None:
        self.page.locator(f"input[value={action}]").check(force=True)

    def run(self, steps: int = 1, wait: bool = True) -> None:
        self.page.fill("#steps", str(steps))
        self.page.fill("#guidance", "1")
        self.page.click("#run")
        if wait:
            self.done()

    def done(self) -> None:
        wait(lambda: self.status().startswith("Done"))
        self.page.wait_for_selector("#done:not([hidden])")

    def status(self) -> str:
        return self.page.inner_text("#status")

    def picture(self, name: str) -> np.ndarray:
        """The pixels of `before` or `after`, as they are shown."""
        source = self.page.get_attribute(f"#{name}", "src")
        content = self.page.request.get(f"{self.server.address[:-1]}{source}").body()
        return np.asarray(Image.open(io.BytesIO(content)))

    def check(self) -> None:
        """Nothing was wrong in the console, and no other host was asked."""
        assert self.said == []
        assert all(url.startswith((self.server.address, "data:", "blob:")) for url in self.asked), self.asked


@pytest.fixture
def context(chromium) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1300, "height": 1000}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def tab(context, server) -> Tab:
    return Tab(context, server)


def wait(condition: Callable[[], Any]) -> None:
    """Wait for what is so in a page; its policy lets nobody have it evaluate a text again and again."""
    for _ in range(PATIENCE // 50):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not become so")


def test_a_click_a_sample_and_what_was_there_beside_it(tab, tmp_path):
    page = tab.page
    tab.click()
    tab.run()
    assert tab.status().startswith("Done in")
    before, after = tab.picture("before"), tab.picture("after")
    assert before.shape == after.shape == (256, 256, 3) and not np.array_equal(before, after)
    x, y = map(int, re.findall(r"--part (\d+) (\d+) 256 256", page.input_value("#command"))[0])
    assert np.array_equal(before, read_pixels(tab.server.image)[y : y + 256, x : x + 256])
    for view, visible in (
        ("side", (True, True)),
        ("after", (False, True)),
        ("before", (True, False)),
        ("slider", (True, True)),
    ):
        page.select_option("#view", view)
        assert (page.is_visible("#figure-before"), page.is_visible("#figure-after")) == visible
    page.locator("#cut").fill("20")
    assert (
        page.evaluate("getComputedStyle(document.getElementById('figure-after')).clipPath") == "inset(0px 0px 0px 20%)"
    )
    with page.expect_download() as caught:
        page.click("#download")
    caught.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as image:
        note = json.loads(image.info["pixcell"])
        assert np.array_equal(np.asarray(image), after) and note["sampling_steps"] == 1
    assert page.locator("#history li").count() >= 1
    tab.check()


def test_what_is_painted_is_replaced_and_the_rest_stays(tab):
    """With the mouse; a polygon by the keyboard alone."""
    page = tab.page
    tab.click()
    tab.choose("repair")
    page.click("#run")
    wait(lambda: "Nothing is painted" in tab.status())
    box = page.locator("#canvas").bounding_box()
    scale = box["width"] / 256
    page.locator("#brush").fill("20")
    page.mouse.move(box["x"] + 60 * scale, box["y"] + 80 * scale)
    page.mouse.down()
    page.mouse.move(box["x"] + 160 * scale, box["y"] + 80 * scale, steps=8)
    page.mouse.up()
    tab.run()
    changed = (tab.picture("before") != tab.picture("after")).any(-1)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 60 and rows.max() <= 100 and columns.min() >= 40 and columns.max() <= 180
    assert changed[75:85, 70:150].mean() > 0.8

    page.click("#again")
    page.click("#clear")
    page.select_option("#tool", "polygon")
    page.focus("#canvas")
    for key, times in (("Enter", 1), ("ArrowRight", 8), ("Enter", 1), ("ArrowDown", 8), ("Enter", 1)):
        for _ in range(times):
            page.keyboard.press(key)
    tab.run()
    changed = (tab.picture("before") != tab.picture("after")).any(-1)
    assert changed[90:100, 208:216].mean() > 0.8 and not changed[:78].any() and not changed[:, :158].any()
    tab.check()


def test_a_point_is_painted_undone_and_put_back_into_the_picture(tab, tmp_path):
    """A point by one click, and by the keyboard; what is undone does not count; the repaired picture as a whole is there to download."""
    page = tab.page
    tab.click()
    tab.choose("repair")
    box = page.locator("#canvas").bounding_box()
    scale = box["width"] / 256
    page.locator("#brush").fill("24")
    page.mouse.click(box["x"] + 60 * scale, box["y"] + 200 * scale)
    page.focus("#canvas")
    for _ in range(10):
        page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    page.fill("#steps", "7")
    undoing = (
        lambda: page.keyboard.press("Control+z"),
        lambda: page.click("#undo"),
        lambda: (page.focus("#clear"), page.keyboard.press("Control+z")),
    )
    for undo in undoing:
        page.mouse.click(box["x"] + 200 * scale, box["y"] + 100 * scale)
        undo()
    page.click("#clear")
    page.click("#undo")
    assert page.input_value("#steps") == "7", "what is typed is not what is undone"
    tab.run()
    changed = (tab.picture("before") != tab.picture("after")).any(-1)
    assert changed[195:205, 55:65].mean() > 0.8 and changed[115:125, 55:65].mean() > 0.8
    assert not changed[140:180].any() and not changed[:, 80:].any()
    x, y = map(int, re.findall(r"--part (\d+) (\d+) 256 256", page.input_value("#command"))[0])
    assert page.is_hidden("#download-picture")
    result = tab.picture("after")
    page.click("#put-back")
    wait(lambda: "copy of tissue" in tab.status())
    wait(lambda: "A square of tissue_edited_1" in page.inner_text("#of") and page.is_visible("#canvas"))
    assert "tissue_edited_1" in page.locator("#pictures option:checked").inner_text()
    with page.expect_download() as caught:
        page.click("#download-picture")
    caught.value.save_as(tmp_path / "whole.png")
    expected = read_pixels(tab.server.image).copy()
    expected[y : y + 256, x : x + 256] = result
    assert np.array_equal(read_pixels(tmp_path / "whole.png"), expected)
    page.select_option("#pictures", index=0)
    tab.check()


def test_the_square_stays_while_other_pictures_are_looked_at(tab, tmp_path):
    """A look of another picture; another size of the square; a result that is removed."""
    page = tab.page
    texture(512, 9).save(tmp_path / "other.png")
    tab.click()
    page.set_input_files("#upload", tmp_path / "other.png")
    wait(lambda: "other" in page.locator("#pictures option:checked").inner_text())
    wait(lambda: "512 × 512" in page.inner_text("#picture-note"))
    page.click("#pick")
    page.click("#map", position={"x": 250, "y": 200})
    wait(lambda: "chosen" in tab.status())
    tab.run()
    assert "tissue.png" in page.input_value("#command") and "look.png" in page.input_value("#command")
    assert "A square of tissue" in page.inner_text("#of")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#history .remove").first.click()
    wait(lambda: page.is_hidden("#done") and page.is_visible("#canvas"))
    page.select_option("#pictures", index=0)
    wait(lambda: "900 × 700" in page.inner_text("#picture-note"))
    page.select_option("#side", "128")
    wait(lambda: "128 × 128" in page.inner_text("#of"))
    tab.run()
    assert re.search(r"--part \d+ \d+ 128 128", page.input_value("#command"))
    page.fill("#seed", "99")
    page.select_option("#look", "")
    page.click("#settings-again")
    assert page.input_value("#seed") == "0"
    assert "other at" in page.locator("#look option:checked").inner_text(), "the look that it had"
    page.select_option("#look", "")
    tab.choose("extend")
    page.fill("#left", "9999")
    page.click("#run")
    wait(lambda: tab.status() == "Left is 9999: expected 0 to 4096, whole.")
    tab.choose("sample")
    page.fill("#guidance", "2.25")  # whatever fields that are hidden have, the others count
    page.click("#run")
    tab.done()
    assert "--guidance 2.25" in page.input_value("#command")
    tab.check()


def test_the_keyboard_alone_selects_and_samples(tab):
    page = tab.page
    page.focus(".leaflet-control-zoom-in")
    page.keyboard.press("Enter")
    wait(lambda: page.evaluate("map.getZoom()") > 0)
    assert page.is_hidden("#canvas"), "Enter on a button of the viewer is the button's"
    page.focus("#map")
    page.keyboard.press("Enter")
    page.wait_for_selector("#canvas:not([hidden])")
    page.focus("#steps")
    page.fill("#steps", "1")
    wait(lambda: page.is_enabled("#run"))
    page.keyboard.press("Enter")
    tab.done()
    tab.check()


def test_a_job_is_cancelled_and_another_goes_on_after_a_reload(tab):
    page = tab.page
    tab.click()
    tab.run(steps=900, wait=False)
    wait(lambda: "Step" in tab.status())
    page.wait_for_selector("#preview:not([hidden])")
    page.click("#cancel")
    wait(lambda: tab.status() == "Cancelled.")
    assert page.is_hidden("#preview") and page.is_enabled("#run")
    tab.choose("vary")
    page.fill("#seed", "41")
    tab.run(steps=120, wait=False)
    wait(lambda: "Step" in tab.status())
    square = page.inner_text("#of")
    page.click("#map", position={"x": 330, "y": 280})
    wait(lambda: "Its square stays" in tab.status())
    assert page.inner_text("#of") == square
    page.reload()
    tab.done()
    assert "--steps 120" in page.input_value("#command")
    assert (page.input_value("#seed"), page.input_value("#steps")) == ("41", "120")
    assert page.is_checked("input[value=vary]"), "what was set is there after a reload"
    tab.check()


def test_two_tabs_do_not_mix(context, server):
    first, second = Tab(context, server), Tab(context, server)
    first.click(200, 200), second.click(300, 250)
    first.page.fill("#seed", "11"), second.page.fill("#seed", "22")
    first.run(steps=150, wait=False)
    wait(lambda: "Step" in first.status())
    second.run(steps=1, wait=False)
    wait(lambda: "Waiting: 1" in second.status())
    for tab, seed in ((first, "--seed 11"), (second, "--seed 22")):
        tab.done()
        assert seed in tab.page.input_value("#command")
        tab.check()


def test_a_killed_server_is_said_and_results_are_there_when_it_is_back(tab):
    page, server = tab.page, tab.server
    tab.click()
    tab.run()
    kept = page.locator("#history li").count()
    tab.check()
    tab.run(steps=900, wait=False)
    wait(lambda: "Step" in tab.status())
    server.kill()
    page.wait_for_selector("#banner:not([hidden])")
    assert "does not answer" in page.inner_text("#banner")
    server.start()
    page.wait_for_selector("#banner", state="hidden")
    wait(lambda: "Run it again" in tab.status())
    wait(lambda: page.is_enabled("#run"))
    assert page.locator("#history li").count() == kept
    tab.said.clear()  # what a browser itself says of a server that is gone
    tab.run()
    tab.check()
    left = [place for place in (server.folder / "studio/history").iterdir() if not (place / "entry.json").is_file()]
    assert not left


def test_every_control_has_a_name_in_the_dark_and_on_a_phone(chromium, server):
    context = chromium.new_context(viewport={"width": 375, "height": 800}, color_scheme="dark", has_touch=True)
    try:
        tab = Tab(context, server)
        page = tab.page
        tab.click(150, 150)
        for action in ("sample", "repair", "extend", "enlarge", "colours"):
            tab.choose(action)
            unnamed = page.evaluate(
                """() => [...document.querySelectorAll('button, input, select, textarea, canvas, a[href], progress')]
                    .filter((each) => each.checkVisibility() && !(each.labels && each.labels.length && each.labels[0].innerText.trim())
                        && !each.getAttribute('aria-label') && !each.innerText.trim() && !each.title)
                    .map((each) => each.outerHTML)"""
            )
            assert unnamed == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 375, action
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60
        page.click("#theme")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(map(int, re.findall(r"\d+", colour)[:3])) > 200
        assert (
            page.evaluate("document.querySelectorAll('h1').length") == 1
            and page.evaluate("document.documentElement.lang") == "en"
        )
        tab.check()
    finally:
        context.close()
