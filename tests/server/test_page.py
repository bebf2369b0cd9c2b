"""The page in headless Chromium: generate, cancel, gallery, two tabs, compare, narrow, dark, accessible."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import check_page, chromium, first_paint_ms, watch
from playwright.sync_api import Browser, Page, Route, expect

from .conftest import ServerProcess, is_done

pytestmark = pytest.mark.slow

WAIT = 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


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
        self.problems = watch(self.page, server.url)
        self.page.goto(server.url)
        self.page.locator("body[data-ready]").wait_for()

    def forgive(self, status: int) -> None:
        """The browser notes every answer that is a refusal."""
        assert self.problems
        assert all(f"status of {status}" in problem for problem in self.problems), self.problems
        self.problems.clear()

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
        tab.page.unroute_all(behavior="ignoreErrors")
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


def test_an_image_and_another_seed(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    page = tab.page
    page.get_by_text("Image", exact=True).click()
    tab.generate('it\'s a "still" picture', steps=2)
    expect(page.get_by_role("img", name='it\'s a "still" picture')).to_be_visible(timeout=WAIT)
    stage = page.locator("#stage")
    stage.get_by_role("button", name="Another seed").click()
    expect(stage.get_by_role("button", name="Another seed")).to_be_hidden()
    expect(stage.get_by_role("button", name="Another seed")).to_be_visible(timeout=WAIT)
    newest, *_, oldest = server.http.get("/v1/videos", params={"search": "still"}).json()["data"]
    assert newest["seed"] != oldest["seed"]
    assert newest["frames"] == oldest["frames"] == 1


def test_another_seed_keeps_the_frame_rate(open_tab: Any, server: ServerProcess) -> None:
    video_id = server.create(prompt="slow frames", steps=1, frames=2, fps=2.5)["id"]
    server.wait(video_id, is_done)
    tab = open_tab()
    tab.page.locator("#tiles li").filter(has_text="slow frames").get_by_role("button").click()
    tab.page.locator("#viewer").get_by_role("button", name="Another seed").click()
    expect(tab.page.locator("#stage video")).to_be_visible(timeout=WAIT)
    found = server.http.get("/v1/videos", params={"search": "slow frames"}).json()["data"]
    assert [(video["fps"], video["frames"]) for video in found] == [(2.5, 2)] * 2


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_the_copied_programs_make_it_again(open_tab: Any, server: ServerProcess, tmp_path: Path, kind: str) -> None:
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    page = tab.page
    prompt = f'it\'s a "copied" {kind} \\ $HOME "status":"failed"'
    page.get_by_text(kind.capitalize(), exact=True).click()
    tab.generate(prompt, steps=2)
    stage = page.locator("#stage")
    for label, command in (("Python", [sys.executable, "-c"]), ("curl", ["sh", "-c"])):
        stage.get_by_role("button", name=label).click(timeout=WAIT)
        expect(stage.get_by_role("button", name="Copied")).to_be_visible()
        code = page.evaluate("navigator.clipboard.readText()")
        place = tmp_path / label
        place.mkdir()
        subprocess.run([*command, code], cwd=place, check=True, timeout=100)
        (saved,) = place.iterdir()
        start = saved.read_bytes()[:12]
        assert (saved.name, start[:4]) == ("image.png", b"\x89PNG") or (saved.name, start[4:8]) == ("clip.mp4", b"ftyp")
        assert saved.name == ("image.png" if kind == "image" else "clip.mp4")
    found = server.http.get("/v1/videos", params={"search": f'"copied" {kind}'}).json()["data"]
    told_apart = ("id", "created_at", "started_at", "completed_at", "expires_at")
    first, *others = [{name: video[name] for name in video if name not in told_apart} for video in found]
    assert others == [first, first]
    assert first["prompt"] == prompt


def test_a_copied_curl_program_says_what_went_wrong(open_tab: Any, tmp_path: Path) -> None:
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    tab.generate("to be refused", steps=2)
    tab.page.locator("#stage").get_by_role("button", name="curl").click(timeout=WAIT)
    code = tab.page.evaluate("navigator.clipboard.readText()").replace('"steps":2', '"steps":0')
    ended = subprocess.run(["sh", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "steps: Input should be greater than or equal to 1" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_was_taken_is_shown_though_the_second_was_refused(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    page = tab.page
    seen: list[Route] = []
    refusal = {"error": {"message": "the queue is full"}}

    def answer(route: Route) -> None:
        seen.append(route)
        if len(seen) == 1:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"Retry-After": "7"}, json=refusal)

    page.route(re.compile("/v1/videos$"), answer)
    page.get_by_label("Compare two settings").check()
    tab.generate("half of two", steps=400)
    expect(page.locator("#stage").get_by_role("button", name="Cancel")).to_have_count(1, timeout=WAIT)
    expect(page.locator("#problem")).to_have_text("The second was not taken: the queue is full; try again in 7 s")
    page.locator("#stage").get_by_role("button", name="Cancel").click()
    expect(page.locator("#stage").get_by_text("Cancelled")).to_be_visible(timeout=WAIT)
    tab.forgive(429)


def test_a_double_enter_makes_one_job(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    tab.page.get_by_label("What should be seen?").fill("entered twice")
    disabled = tab.page.evaluate(
        """() => {
          const form = document.getElementById("compose");
          form.requestSubmit();
          form.requestSubmit();
          return form.querySelector("[type=submit]").disabled;
        }"""
    )
    assert disabled
    expect(tab.page.locator("#stage video")).to_be_visible(timeout=WAIT)
    expect(tab.page.get_by_role("button", name="Generate")).to_be_enabled()
    assert len(server.http.get("/v1/videos", params={"search": "entered twice"}).json()["data"]) == 1


def test_more_of_the_gallery_stays_open_and_goes_on(open_tab: Any, server: ServerProcess) -> None:
    many = [server.create(prompt=f"many {number}", steps=1, frames=1)["id"] for number in range(50)]
    for video_id in many:
        server.wait(video_id, is_done)
    tab = open_tab()
    page = tab.page
    page.get_by_label("Search the gallery").fill("many")
    tiles = page.locator("#tiles li")
    expect(tiles).to_have_count(24)
    overtaken = "() => { document.getElementById('more').click(); window.dispatchEvent(new Event('focus')); }"
    page.evaluate(overtaken)
    expect(tiles).to_have_count(48)
    expect(tiles.nth(24).get_by_role("button")).to_be_focused()
    tiles.nth(40).get_by_role("button").click()
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(tiles.filter(has_text=re.compile("^many 9$"))).to_have_count(0)
    expect(tiles).to_have_count(48)
    late = server.create(prompt="many late", steps=60, frames=1)["id"]
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(tiles.first).to_contain_text("many late")
    expect(tiles).to_have_count(48)
    expect(tiles.first.locator("img")).to_be_visible(timeout=WAIT)  # by itself
    expect(tiles).to_have_count(48)
    page.route(re.compile(r"/v1/videos\?"), lambda route: route.abort())
    page.get_by_role("button", name="More").click()
    expect(page.locator("#gallery-problem")).to_be_visible()
    assert all("ERR_FAILED" in problem for problem in tab.problems)
    tab.problems.clear()
    for video_id in [*many, late]:
        server.http.delete(f"/v1/videos/{video_id}")


def test_what_was_deleted_elsewhere_is_said(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab()
    page = tab.page
    page.get_by_label("Search the gallery").fill("elsewhere")
    tiles = page.locator("#tiles li")
    said = page.locator("#gallery-problem")

    def make() -> str:
        video_id: str = server.create(prompt="elsewhere", steps=1, frames=1)["id"]
        server.wait(video_id, is_done)
        page.evaluate("window.dispatchEvent(new Event('focus'))")
        expect(tiles.locator("img")).to_have_count(1)
        return video_id

    server.http.delete(f"/v1/videos/{make()}")
    tiles.get_by_role("button").click()
    expect(said).to_have_text("It was deleted elsewhere.")
    expect(tiles).to_have_count(0)
    second = make()
    tiles.get_by_role("button").click()
    expect(said).to_be_hidden()
    server.http.delete(f"/v1/videos/{second}")
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(said).to_have_text("It was deleted before.")
    expect(tiles).to_have_count(0)
    tab.forgive(404)
    tab.generate("elsewhere", steps=400)
    expect(page.locator("#stage").get_by_role("button", name="Cancel")).to_be_visible()
    (video,) = server.http.get("/v1/videos", params={"search": "elsewhere"}).json()["data"]
    server.http.delete(f"/v1/videos/{video['id']}")
    expect(page.locator("#stage").get_by_text("Cancelled")).to_be_visible(timeout=WAIT)


def fail_all(page: Page) -> None:
    """Jobs look as if they had failed: of a healthy model none does."""

    def failed(video: dict[str, Any]) -> dict[str, Any]:
        return {**video, "status": "failed", "error": {"code": "generation_failed", "message": "out of memory"}}

    def answer(route: Route) -> None:
        found = route.fetch().json()
        route.fulfill(json={**found, "data": list(map(failed, found["data"]))} if "data" in found else failed(found))

    page.route(
        re.compile(r"/v1/videos(\?.*|/[^/]+)$"),
        lambda route: route.fallback() if route.request.method != "GET" else answer(route),
    )


def test_a_failed_job_can_be_tried_again_and_deleted(open_tab: Any, server: ServerProcess) -> None:
    video_id = server.create(prompt="failing", steps=1, frames=1)["id"]
    server.wait(video_id, is_done)
    tab = open_tab()
    page = tab.page
    page.get_by_label("Search the gallery").fill("failing")
    expect(page.locator("#tiles li")).to_have_count(1)
    fail_all(page)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    tile = page.locator("#tiles li").filter(has_text="Failed")
    viewer = page.locator("#viewer")
    tile.get_by_role("button").click()
    expect(viewer.get_by_text("out of memory")).to_be_visible()
    viewer.get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("What should be seen?")).to_have_value("failing")
    tile.get_by_role("button").click()
    expect(viewer.get_by_role("button", name="Another seed")).to_be_visible()
    viewer.get_by_role("button", name="Delete").click()
    expect(page.locator("#tiles li")).to_have_count(0)
    assert server.http.get(f"/v1/videos/{video_id}").status_code == 404


def count_streams(page: Page) -> dict[str, set[Any]]:
    """The streams that the page asked for, and those that are held now."""
    counts: dict[str, set[Any]] = {"asked": set(), "held": set()}

    def begin(request: Any) -> None:
        if request.url.endswith("/events"):
            counts["asked"].add(request)
            counts["held"].add(request)

    page.on("request", begin)
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: counts["held"].discard(request))
    return counts


def test_streams_are_let_go_when_hidden_and_with_two_cards(open_tab: Any, server: ServerProcess) -> None:
    """A browser has six connections to a server: eight jobs that wait in four tabs would take them all."""
    tab = open_tab()
    page = tab.page
    counts = count_streams(page)
    tab.generate("one is streamed", steps=400)
    cancel = page.locator("#stage").get_by_role("button", name="Cancel")
    expect(cancel).to_have_count(1)
    page.wait_for_timeout(2500)
    assert (len(counts["asked"]), len(counts["held"])) == (1, 1)
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { get: () => true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(3500)
    assert len(counts["asked"]) > 2
    cancel.click()
    expect(page.locator("#stage").get_by_text("Cancelled")).to_be_visible(timeout=WAIT)

    other = open_tab()
    counts = count_streams(other.page)
    other.page.get_by_label("Compare two settings").check()
    other.generate("two take turns", steps=400)
    cancel = other.page.locator("#stage").get_by_role("button", name="Cancel")
    expect(cancel).to_have_count(2)
    expect(other.page.locator("#stage").get_by_alt_text("Preview")).to_be_visible(timeout=WAIT)
    other.page.wait_for_timeout(3500)
    assert len(counts["asked"]) > 4
    for _ in range(2):
        cancel.first.click()
        expect(cancel.filter(has_not=other.page.locator(":disabled"))).not_to_have_count(2)
    expect(other.page.locator("#stage").get_by_text("Cancelled")).to_have_count(2, timeout=WAIT)
    other.page.wait_for_timeout(500)
    assert not counts["held"]


def test_a_clip_is_followed_through_a_restart_behind_a_proxy(open_tab: Any) -> None:
    tab = open_tab()
    failed: list[str] = []

    def fail_once(route: Route) -> None:
        if failed:
            route.fallback()
        else:
            failed.append(route.request.url)
            route.fulfill(status=502, body="Bad Gateway")

    tab.page.route(re.compile("/events$"), fail_once)
    tab.generate("behind a proxy")
    expect(tab.page.locator("#stage video")).to_be_visible(timeout=WAIT)
    assert failed
    tab.forgive(502)


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
    expect(dialog).to_be_visible()
    check_page(page, "page-key")
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
    picture = page.locator("#tiles img")
    expect(picture).to_have_attribute("src", re.compile("^blob:"))
    still = picture.get_attribute("src") or ""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(3):
        page.locator("#tiles button").hover()
        expect(picture).not_to_have_attribute("src", still)
        page.locator("h1").hover()
        expect(picture).to_have_attribute("src", still)
    assert len([url for url in asked if url.endswith("variant=webp")]) == 1
    assert not [url for url in asked if url.endswith("variant=thumbnail")]
    page.reload()  # the key lives as long as the tab
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(picture).to_have_attribute("src", re.compile("^blob:"))
    address = picture.get_attribute("src")
    shows = """url => new Promise((done) => {
      Object.assign(new Image(), { src: url, onload: () => done(true), onerror: () => done(false) });
    })"""
    assert page.evaluate(shows, address)
    page.locator("#tiles button").click()
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    expect(page.locator("#tiles li")).to_have_count(0)
    assert not page.evaluate(shows, address)
    page.evaluate(
        """async () => {
          const api = await import("/static/api.js");
          api.setKey("wrong");
          window.both = Promise.all([api.models(), api.listVideos({})]);
        }"""
    )
    dialog.get_by_label("API key").fill("secret-one")
    dialog.get_by_role("button", name="Use it").click()
    assert len(page.evaluate("window.both")) == 2  # one question for both
    context.close()


def test_every_state_is_accessible_in_light_and_dark_narrow_and_wide(open_tab: Any, server: ServerProcess) -> None:
    tab = open_tab(viewport={"width": 1000, "height": 800})
    page = tab.page
    stage, viewer = page.locator("#stage"), page.locator("#viewer")
    check_page(page, "page-start")
    page.get_by_label("Compare two settings").check()
    tab.generate("a very long sentence without an end " * 5, steps=400)
    expect(stage.get_by_alt_text("Preview")).to_be_visible(timeout=WAIT)
    check_page(page, "page-making")
    for _ in range(2):
        stage.get_by_role("button", name="Cancel").first.click()
        expect(stage.get_by_role("button", name="Cancel").and_(page.locator(":enabled"))).not_to_have_count(2)
    expect(stage.get_by_text("Cancelled")).to_have_count(2, timeout=WAIT)
    check_page(page, "page-cancelled")
    tab.generate("two side by side", steps=2)
    expect(stage.locator("video")).to_have_count(2, timeout=WAIT)
    check_page(page, "page-compared")
    page.get_by_label("Compare two settings").uncheck()
    tab.generate("one alone", steps=2)
    expect(stage.locator("video")).to_have_count(1, timeout=WAIT)
    expect(page.locator("#tiles li", has_text="one alone").locator("img")).to_be_visible()
    check_page(page, "page-done")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    stage.get_by_role("button", name="curl").click()
    expect(page.locator("#copy")).to_be_visible()
    check_page(page, "page-copy")
    page.locator("#copy").get_by_role("button", name="Close").click()
    page.locator("#tiles button").first.click()
    expect(viewer.locator("video")).to_be_visible()
    check_page(page, "page-viewer")
    viewer.get_by_role("button", name="Close").click()
    page.get_by_label("What should be seen?").evaluate("node => node.removeAttribute('maxlength')")
    tab.generate("x" * 1001)
    expect(page.locator("#problem")).to_be_visible()
    check_page(page, "page-refused")
    tab.forgive(400)
    fail_all(page)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#tiles li").filter(has_text="Failed").first).to_be_visible()
    page.locator("#tiles button").first.click()
    expect(viewer.get_by_text("out of memory")).to_be_visible()
    check_page(page, "page-failed")


def test_the_page_of_the_api_is_accessible(open_tab: Any) -> None:
    page = open_tab().page
    page.goto(page.url + "docs")
    expect(page.get_by_role("heading", name="POST /v1/videos")).to_be_visible()
    check_page(page, "page-api")


def test_the_first_paint_is_within_a_second(browser: Browser, server: ServerProcess) -> None:
    assert first_paint_ms(browser, server.url) < 1000
