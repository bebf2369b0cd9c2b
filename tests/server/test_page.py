"""The page in headless Chromium: generate, cancel, gallery, two tabs, compare, narrow, dark, accessible."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from .conftest import ServerProcess

pytestmark = pytest.mark.slow

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WAIT = 90_000

# The contrast of every text with what is behind it (WCAG 2.1, relative luminance), as the browser draws it.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const numbers = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!texts || !node.checkVisibility() || node.closest(".hidden, noscript")) continue;
    const [front, back] = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
# Everything that takes input and has no name for a screen reader.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, a, progress, video, dialog, img")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby") || node.title
    || node.textContent.trim() && !node.matches("select, textarea")
    || [...(node.labels ?? [])].some((label) => label.textContent.trim())
    || node.tagName === "IMG" && node.hasAttribute("alt")))
  .map((node) => node.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install it, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[ServerProcess]:
    started = ServerProcess(tmp_path_factory.mktemp("served"), "--preset", "tiny", "--max-steps", "400")
    yield started
    started.stop()


class Tab:
    """A page, whose errors and foreign requests fail the test."""

    def __init__(self, browser: Browser, server: ServerProcess, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on(
            "request",
            lambda request: (
                None if request.url.startswith((server.url, "data:", "blob:")) else self.problems.append(request.url)
            ),
        )
        self.page.goto(server.url)
        self.page.locator("body[data-ready]").wait_for()

    def generate(self, prompt: str, steps: int = 3) -> None:
        if not self.page.locator("#settings[open]").count():
            self.page.locator("summary").click()
        for side in self.page.locator(".sides fieldset").all():
            side.locator("[name=steps]").fill(str(steps))
        self.page.get_by_label("What should be seen?").fill(prompt)
        self.page.get_by_role("button", name="Generate").click()


@pytest.fixture
def open_tab(browser: Browser, server: ServerProcess) -> Iterator[Any]:
    tabs: list[Tab] = []

    def make(**options: Any) -> Tab:
        tabs.append(Tab(browser, server, **options))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.context.close()
        assert tab.problems == []


def test_generate_watch_search_download_and_delete(open_tab: Any, tmp_path: Path) -> None:
    tab = open_tab()
    page = tab.page
    tab.generate("a red heart", steps=40)
    stage = page.locator("#stage")
    expect(stage.get_by_alt_text("Preview")).to_have_attribute("src", re.compile("^data:image/jpeg"), timeout=WAIT)
    first = stage.get_by_alt_text("Preview").get_attribute("src")
    expect(stage.get_by_alt_text("Preview")).not_to_have_attribute("src", first or "", timeout=WAIT)
    expect(stage.get_by_text(re.compile(r"Step \d+ of 40"))).to_be_visible()
    clip = stage.locator("video")
    expect(clip).to_be_visible(timeout=WAIT)
    expect(clip).to_have_js_property("loop", True)
    expect(clip).to_have_js_property("paused", False)
    expect(clip).to_have_js_property("videoWidth", 64)
    stage.get_by_role("button", name="Pause").click()
    expect(clip).to_have_js_property("paused", True)
    with page.expect_download() as started:
        stage.get_by_role("link", name="Download as GIF").click()
    assert started.value.suggested_filename.endswith(".gif")
    assert Path(started.value.path()).read_bytes().startswith(b"GIF89a")

    tiles = page.locator("#tiles li")
    expect(tiles.filter(has_text="a red heart")).to_have_count(1)
    page.get_by_label("Search the gallery").fill("HEART")
    expect(tiles).to_have_count(1)
    page.get_by_label("Search the gallery").fill("no such thing")
    expect(page.get_by_text("No sentence holds this.")).to_be_visible()
    page.get_by_label("Search the gallery").fill("")
    tiles.filter(has_text="a red heart").get_by_role("button").click()
    viewer = page.locator("#viewer")
    expect(viewer.locator("video")).to_be_visible()
    viewer.get_by_role("button", name="Delete").click()
    expect(viewer).to_be_hidden()
    expect(tiles.filter(has_text="a red heart")).to_have_count(0)
    expect(stage).to_be_hidden()


def test_cancel(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    tab.generate("a long wait", steps=400)
    stage = tab.page.locator("#stage")
    expect(stage.get_by_text(re.compile(r"Step \d+ of 400"))).to_be_visible(timeout=WAIT)
    stage.get_by_role("button", name="Cancel").click()
    expect(stage.get_by_text("Cancelled")).to_be_visible(timeout=WAIT)
    expect(tab.page.locator("#tiles li").filter(has_text="a long wait")).to_have_count(0)
    assert server.http.get("/health").json()["queued"] == 0


def test_two_tabs_make_their_clips_and_see_both(open_tab: Any) -> None:
    tabs = [open_tab(), open_tab()]
    for number, tab in enumerate(tabs):
        tab.generate(f"tab number {number}")
    for tab in tabs:
        expect(tab.page.locator("#stage video")).to_be_visible(timeout=WAIT)
    for tab in tabs:
        tab.page.evaluate("window.dispatchEvent(new Event('focus'))")
        expect(tab.page.locator("#tiles li").filter(has_text="tab number").locator("img")).to_have_count(2)


def test_compare_changes_only_what_was_changed(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    tab.page.get_by_label("Compare two settings").check()
    tab.page.locator("#side-b [name=guidance_scale]").fill("1")
    tab.generate("compared")
    expect(tab.page.locator("#stage video")).to_have_count(2, timeout=WAIT)
    found = server.http.get("/v1/videos", params={"search": "compared", "order": "asc"}).json()["data"]
    assert [video["guidance_scale"] for video in found] == [7.5, 1.0]
    assert found[0]["seed"] == found[1]["seed"]


def test_an_image_its_code_and_another_seed(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    page = tab.page
    page.get_by_text("Image", exact=True).click()
    tab.generate('it\'s a "still" picture', steps=2)
    expect(page.get_by_role("img", name='it\'s a "still" picture')).to_be_visible(timeout=WAIT)
    stage = page.locator("#stage")
    stage.get_by_role("button", name="Python").click()
    code = page.evaluate("navigator.clipboard.readText()")
    compile(code, "copied", "exec")
    assert 'prompt="it\'s a \\"still\\" picture"' in code
    assert f'base_url="{server.url}/v1"' in code
    buttons = stage.locator(".actions", has_text="Copy as").get_by_role("button")
    buttons.nth(1).click()
    expect(buttons.nth(1)).to_have_text("Copied")
    command = shlex.split(page.evaluate("navigator.clipboard.readText()").splitlines()[0])
    assert command[:2] == ["curl", f"{server.url}/v1/videos"]
    again = server.http.post("/v1/videos", content=command[-1], headers={"Content-Type": "application/json"}).json()
    assert again["prompt"] == 'it\'s a "still" picture'
    server.http.delete(f"/v1/videos/{again['id']}")
    stage.get_by_role("button", name="Another seed").click()
    expect(stage.get_by_role("button", name="Another seed")).to_be_hidden()
    expect(stage.get_by_role("button", name="Another seed")).to_be_visible(timeout=WAIT)
    newest, *_, oldest = server.http.get("/v1/videos", params={"search": "still"}).json()["data"]
    assert newest["seed"] != oldest["seed"]
    assert newest["frames"] == oldest["frames"] == 1


def test_the_keyboard_is_enough(open_tab: Any) -> None:
    tab = open_tab()
    page = tab.page
    page.get_by_label("What should be seen?").focus()
    page.keyboard.type("keys")
    for _ in range(3):  # past the modes and the box to the button
        page.keyboard.press("Tab")
    focused = page.locator(":focus-visible")
    expect(focused).to_have_text("Generate")
    assert focused.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.get_by_label("What should be seen?").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage video")).to_be_visible(timeout=WAIT)
    tile = page.locator("#tiles button").first
    expect(tile.locator("img")).to_be_visible()
    tile.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#viewer video")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()


def test_a_problem_is_said(open_tab: Any) -> None:
    tab = open_tab()
    tab.page.get_by_label("What should be seen?").evaluate("node => node.removeAttribute('maxlength')")
    tab.generate("x" * 1001)
    expect(tab.page.get_by_role("alert")).to_have_text(
        "prompt must have at most 1000 characters, got '1001 characters'"
    )
    assert all("400" in problem for problem in tab.problems)
    tab.problems.clear()


def test_with_api_keys(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "keys.txt").write_text("secret-one\n")
    server = ServerProcess(tmp_path / "served", "--preset", "tiny", "--api-keys", str(tmp_path / "keys.txt"))
    request.addfinalizer(lambda: server.stop())
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    dialog = page.locator("#key")
    for key in ("wrong", "secret-one"):
        expect(dialog).to_be_visible()
        dialog.get_by_label("API key").fill(key)
        dialog.get_by_role("button", name="Use it").click()
    page.locator("body[data-ready]").wait_for()
    expect(dialog).to_be_hidden()
    page.locator("summary").click()
    page.locator("[name=steps]").fill("2")
    page.get_by_label("What should be seen?").fill("behind a key")
    page.get_by_role("button", name="Generate").click()
    clip = page.locator("#stage video")
    expect(clip).to_have_js_property("videoWidth", 64, timeout=WAIT)
    expect(clip).to_have_attribute("src", re.compile("^blob:"))
    with page.expect_download() as started:
        page.get_by_role("link", name="Download as PNG").first.click()
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")
    expect(page.locator("#tiles img")).to_have_attribute("src", re.compile("^blob:"))
    page.reload()  # the key lives as long as the tab
    expect(page.locator("#tiles li")).to_have_count(1)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_names_contrast_width_and_paint(open_tab: Any, scheme: str, width: int) -> None:
    tab = open_tab(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = tab.page
    page.get_by_label("Compare two settings").check()
    tab.generate("a very long sentence without an end " * 5, steps=2)
    expect(page.locator("#stage video").nth(1)).to_be_visible(timeout=WAIT)

    def check() -> None:
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check()
    page.locator("#tiles button").first.click()
    expect(page.locator("#viewer video")).to_be_visible()
    check()
    page.reload()
    page.locator("body[data-ready]").wait_for()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000
    page.goto(page.url + "docs")
    expect(page.get_by_role("heading", name="POST /v1/videos")).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
