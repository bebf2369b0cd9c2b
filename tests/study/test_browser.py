"""The page in headless Chromium: raters who look at pixels, the keyboard, two links, narrow, dark, accessible."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import check_page, chromium, first_paint_ms, watch
from playwright.sync_api import Browser, Page, expect

from latent_shift.media import write_video
from latent_shift.study import Store, read_report

from .conftest import StudyProcess

pytestmark = pytest.mark.slow

WAIT = 60_000
PAIRS, RATERS, SPARE = 12, 5, 3

# What a canvas shows: how blue its middle is, and at how many places neighbouring pixels of a row differ much.
LOOK = """(id) => {
  const canvas = document.getElementById(id);
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = (x, y, c) => data[4 * (y * width + x) + c];
  let jumps = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 1; x < width; x += 1) jumps += Math.abs(at(x, y, 1) - at(x - 1, y, 1)) > 25;
  }
  return { blue: at(width >> 1, height >> 1, 2), jumps };
}"""


def write_systems(folder: Path) -> list[Path]:
    """Two systems of the same moving ramp: the middle of one is blue, of the other not. Formats differ.

    The first has some more, for the checks.
    """
    places = [folder / "bluish", folder / "plain"]
    for place, blue, suffix, more in zip(places, (220, 30), ("webp", "mp4"), (SPARE, 0), strict=True):
        place.mkdir()
        for number in range(PAIRS + more):
            ramp = np.linspace(0, 230, 96, dtype=np.uint8)
            frames = np.zeros((6, 96, 96, 3), np.uint8)
            for index in range(6):
                frames[index, ..., 1] = np.minimum(ramp + 4 * index, 230)[:, None]
            frames[:, 36:60, 36:60, 2] = blue
            write_video(place / f"{number:02d}.{suffix}", frames, 12, {"prompt": f"thing {number}"})
    return places


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def serve(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Makes a study with the command line, and serves it."""
    servers: list[StudyProcess] = []

    def start(*settings: str) -> StudyProcess:
        places, study = map(str, write_systems(tmp_path)), tmp_path / "study"
        command = ["create", str(study), *places, *(word for setting in settings for word in ("--set", setting))]
        subprocess.run([sys.executable, "-m", "latent_shift", "study", *command], check=True, stdout=subprocess.DEVNULL)
        servers.append(StudyProcess(study))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class Rater:
    """A person at the page. Errors of the page and requests to other hosts fail the test."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.problems = watch(self.page, re.sub(r"(://[^/]+).*", r"\1", url))
        self.open(url)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.locator("body[data-ready]").wait_for(timeout=WAIT)

    def consent(self) -> None:
        self.page.get_by_label("I have read this").check()
        self.page.get_by_role("button", name="Begin").click()
        self.wait()

    def wait(self) -> None:
        """Until the clips are there, or the pairs are over."""
        self.page.locator(
            "#rating:not([hidden]) #loading[hidden], main > section:not(#rating, #welcome):not([hidden])"
        ).first.wait_for(timeout=WAIT, state="attached")

    def look(self) -> dict[str, dict[str, float]]:
        return {side: self.page.evaluate(LOOK, side) for side in ("left", "right")}

    def whole(self) -> str | None:
        """The side that is not in pieces, if the other one is."""
        jumps = {side: seen["jumps"] for side, seen in self.look().items()}
        fewest = min(jumps, key=jumps.__getitem__)
        return fewest if max(jumps.values()) > 2 * min(jumps.values()) + 100 else None

    def bluer(self) -> str:
        seen = self.look()
        return max(seen, key=lambda side: seen[side]["blue"])

    def answer(self, quality: str, faithfulness: str) -> None:
        """Says it, and waits for what comes next."""
        before = self.page.locator("#count").inner_text()
        for question, side in (("quality", quality), ("faithfulness", faithfulness)):
            self.page.locator(f"#{question} input[value={side}]").check(force=True)
        self.page.locator("#next").click()
        expect(self.page.locator("#count")).not_to_have_text(before, timeout=WAIT)
        self.wait()

    def train(self) -> None:
        side = self.whole()
        assert side is not None
        for question in ("quality", "faithfulness"):
            self.page.locator(f"#{question} input[value={side}]").check(force=True)
        self.page.locator("#next").click()
        self.page.locator("#example").wait_for(state="hidden", timeout=WAIT)
        self.wait()

    def is_rating(self) -> bool:
        return self.page.locator("#rating").is_visible()

    def close(self) -> None:
        self.context.close()
        assert self.problems == []


def other(side: str) -> str:
    return {"left": "right", "right": "left"}[side]


def coin(*words: object) -> float:
    """A number in [0, 1) that follows from the words."""
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:8], 16) / 2**32


def test_a_planted_preference_is_found_and_a_planted_null_is_not(browser: Browser, serve: Any) -> None:
    """Raters like blue in four of five pairs, and toss a coin about the sentence. They see nothing but pixels."""
    server = serve(f"raters_per_pair={RATERS}", f"pairs_per_rater={PAIRS}", "checks_per_rater=2")
    for number in range(RATERS):
        rater = Rater(browser, f"{server.url}/?worker=w{number}")
        rater.consent()
        rater.train()
        while rater.is_rating():
            checked = rater.whole()
            blue, prompt = rater.bluer(), rater.page.locator("#prompt").inner_text()
            quality = blue if coin("quality", number, prompt) < 0.8 else other(blue)
            faithful = blue if coin("faithfulness", number, prompt) < 0.5 else other(blue)
            rater.answer(checked or quality, checked or faithful)
        rater.page.get_by_role("button", name="Finish").last.click()
        code = rater.page.locator("#code")
        expect(code).to_have_text(re.compile("^[0-9A-F]{10}$"), timeout=WAIT)
        rater.close()
    store = Store(server.folder)
    report = read_report(store)
    store.close()
    (comparison,) = report.comparisons
    assert (comparison.first, comparison.second, comparison.complete) == ("bluish", "plain", PAIRS)
    planted = {
        name: sum(
            sum(coin(name, rater, f"thing {pair}") < share for rater in range(RATERS)) > RATERS / 2
            for pair in range(PAIRS)
        )
        for name, share in (("quality", 0.8), ("faithfulness", 0.5))
    }
    quality, faithfulness = comparison.questions
    assert (quality.wins, quality.losses, quality.ties) == (planted["quality"], PAIRS - planted["quality"], 0)
    assert quality.p < 0.05
    assert quality.low > 0.5
    assert faithfulness.wins == planted["faithfulness"]
    assert faithfulness.p > 0.2
    assert faithfulness.low < 0.5 < faithfulness.high
    assert faithfulness.kappa is not None
    assert abs(faithfulness.kappa) < 0.2
    assert [(rater.checks_passed, rater.checks, rater.finished) for rater in report.raters] == [(2, 2, True)] * RATERS


def test_the_clips_are_in_step_and_pause(browser: Browser, serve: Any) -> None:
    server = serve()
    rater = Rater(browser, server.url)
    rater.consent()
    frames = rater.page.evaluate(
        """() => new Promise((done) => {
          const seen = [];
          const note = () => {
            seen.push(["left", "right"].map((id) => document.getElementById(id).dataset.frame));
            if (seen.length < 60) requestAnimationFrame(note); else done(seen);
          };
          requestAnimationFrame(note);
        })"""
    )
    assert all(left == right for left, right in frames)
    assert {left for left, _ in frames} == {"0", "1", "2", "3", "4", "5"}
    rater.page.get_by_role("button", name="Pause").click()
    left = rater.page.locator("#left")
    stopped = left.get_attribute("data-frame") or ""
    rater.page.wait_for_timeout(400)
    expect(left).to_have_attribute("data-frame", stopped)
    rater.page.get_by_role("button", name="Play").click()
    expect(left).not_to_have_attribute("data-frame", stopped)
    rater.close()


def test_keyboard_back_and_resume_by_link(browser: Browser, serve: Any) -> None:
    server = serve("pairs_per_rater=3", "checks_per_rater=0", "allow_ties=true")
    rater = Rater(browser, server.url)
    page = rater.page
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    rater.wait()
    wrong = other(rater.whole() or "")
    key = {"left": "ArrowLeft", "right": "ArrowRight"}
    page.keyboard.press(key[wrong])
    page.keyboard.press(key[wrong])
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Look again")
    for question in ("quality", "faithfulness"):
        page.locator(f"#{question} input:checked").focus()
        page.keyboard.press(key[other(wrong)])
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#example")).to_be_hidden(timeout=WAIT)
    expect(page.get_by_role("alert")).to_be_hidden()
    rater.wait()
    first = page.locator("#prompt").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1 of 3", timeout=WAIT)
    rater.wait()
    expect(page.locator("#quality input:checked")).to_have_count(0)
    page.keyboard.press("Backspace")
    expect(page.locator("#prompt")).to_have_text(first, timeout=WAIT)
    expect(page.locator("#quality input:checked")).to_have_value("left")
    expect(page.locator("#faithfulness input:checked")).to_have_value("same")
    rater.wait()
    link = page.url
    rater.close()

    again = Rater(browser, link)  # another browser, where nothing is remembered but the link
    again.wait()
    expect(again.page.locator("#count")).to_have_text("1 of 3")
    again.open(server.url)  # and without it, the browser remembers
    expect(again.page.locator("#count")).to_have_text("1 of 3")
    again.wait()
    while again.is_rating():
        again.answer("left", "right")
    again.page.locator("#ready-back").click()
    expect(again.page.locator("#rating")).to_be_visible(timeout=WAIT)
    again.wait()
    again.page.get_by_role("button", name="Next").click()
    again.page.get_by_role("button", name="Finish").last.click()
    expect(again.page.get_by_role("heading", name="Thank you!")).to_be_visible(timeout=WAIT)
    again.close()


def test_space_chooses_an_answer_that_has_the_focus_and_pauses_elsewhere(browser: Browser, serve: Any) -> None:
    server = serve()
    rater = Rater(browser, server.url)
    rater.consent()
    page = rater.page
    pause = page.locator("#pause")
    page.keyboard.press("Space")
    expect(pause).to_have_text("Play")
    page.keyboard.press("ArrowLeft")  # answers the first question and goes to the second
    page.keyboard.press("Space")
    expect(pause).to_have_text("Pause")
    expect(page.locator("#faithfulness input:checked")).to_have_count(0)
    page.locator("#faithfulness input[value=right]").focus()
    page.keyboard.press("Space")
    expect(page.locator("#faithfulness input:checked")).to_have_value("right")
    expect(pause).to_have_text("Pause")
    rater.close()


def test_several_workers_in_one_browser_are_several_raters(browser: Browser, serve: Any) -> None:
    server = serve("pairs_per_rater=2", "checks_per_rater=0", "completion_url=https://crowd.example/?cc={code}")
    rater = Rater(browser, f"{server.url}/?worker=one")
    rater.consent()
    rater.train()
    while rater.is_rating():
        rater.answer("left", "right")
    rater.page.get_by_role("button", name="Finish").last.click()
    code = rater.page.locator("#code")
    expect(code).to_have_text(re.compile("^[0-9A-F]{10}$"), timeout=WAIT)
    first = code.inner_text()
    expect(rater.page.get_by_role("link", name="Hand it in")).to_have_attribute(
        "href", f"https://crowd.example/?cc={first}"
    )
    somebody = rater.page.get_by_role("button", name="Begin as somebody else")
    expect(somebody).to_be_hidden()
    rater.open(f"{server.url}/?worker=two")
    expect(code).to_be_hidden()
    rater.consent()
    expect(rater.page.locator("#count")).to_have_text("0 of 2")
    rater.open(f"{server.url}/?worker=one")
    expect(code).to_have_text(first)
    rater.open(server.url)
    rater.consent()
    token = rater.page.url
    rater.page.on("dialog", lambda dialog: dialog.accept())
    somebody.click()
    expect(rater.page.get_by_role("button", name="Begin", exact=True)).to_be_visible()
    rater.consent()
    assert rater.page.url != token
    store = Store(server.folder)
    assert [one.worker for one in store.raters()] == ["one", "two", None, None]
    store.close()
    rater.close()


def test_what_is_refused_is_said(browser: Browser, serve: Any) -> None:
    server = serve()
    for url, message in ((f"{server.url}/#nobody", "belongs to nobody"), (f"{server.url}/?worker=a%20b", "worker:")):
        rater = Rater(browser, url)
        if "worker" in url:
            rater.page.get_by_label("I have read this").check()
            rater.page.get_by_role("button", name="Begin").click()
        expect(rater.page.get_by_role("alert")).to_contain_text(message)
        expect(rater.page.get_by_role("button", name="Begin")).to_be_visible()
        assert all("status of 40" in problem for problem in rater.problems)
        rater.problems.clear()
        rater.close()


def test_others_at_the_last_pairs_are_waited_for(browser: Browser, serve: Any) -> None:
    server = serve("raters_per_pair=1", f"pairs_per_rater={PAIRS}", "checks_per_rater=0", "full_code=TOO-LATE")
    store = Store(server.folder)
    tokens = [store.join() for _ in range(PAIRS)]
    both = [{"quality": side, "faithfulness": side} for side in ("left", "right")]
    states = [(token, [store.train(token, side) for side in both] and store.state(token)) for token in tokens]
    rater = Rater(browser, server.url)
    rater.consent()
    rater.train()
    expect(rater.page.get_by_role("heading", name="Others are at work")).to_be_visible()
    expect(rater.page.get_by_role("button", name="Finish now")).to_be_hidden()
    expect(rater.page.locator("#code")).to_have_text("TOO-LATE")
    check_page(rater.page, "study-wait")
    rater.page.route("**/api/state", lambda route: route.fulfill(status=502), times=1)  # a proxy without its server
    expect(rater.page.get_by_role("alert")).to_have_text("The study answered 502.", timeout=WAIT)
    assert all("status of 502" in problem for problem in rater.problems)
    rater.problems.clear()
    for token, state in states:
        assert state.item is not None
        store.answer(token, state.item.position, both[0])
    store.close()
    expect(rater.page.get_by_role("heading", name="Nothing is left to rate")).to_be_visible(timeout=WAIT)
    expect(rater.page.locator("#code")).to_have_text("TOO-LATE")
    check_page(rater.page, "study-full")
    rater.close()


def test_every_state_is_accessible_in_light_and_dark_narrow_and_wide(
    browser: Browser, serve: Any, tmp_path: Path
) -> None:
    title = f"title={'a long title ' * 9}"
    link = "completion_url=https://crowd.example/?cc={code}"
    server = serve("allow_ties=true", "pairs_per_rater=2", "checks_per_rater=0", title, link)
    assert first_paint_ms(browser, server.url) < 1000
    rater = Rater(browser, server.url)
    check_page(rater.page, "study-welcome")
    rater.consent()
    check_page(rater.page, "study-example")
    rater.page.keyboard.press("ArrowDown")
    rater.page.keyboard.press("ArrowDown")
    rater.page.keyboard.press("Enter")
    expect(rater.page.get_by_role("alert")).to_contain_text("Look again")
    check_page(rater.page, "study-look-again")
    rater.train()
    rater.page.locator("summary").click()
    rater.page.keyboard.press("ArrowLeft")
    check_page(rater.page, "study-rating")
    while rater.is_rating():
        rater.answer("left", "same")
    check_page(rater.page, "study-ready")
    rater.page.get_by_role("button", name="Finish").last.click()
    expect(rater.page.locator("#code")).to_be_visible(timeout=WAIT)
    check_page(rater.page, "study-finished")
    rater.close()
    command = ["report", str(server.folder), "-o", str(tmp_path / "report")]
    subprocess.run([sys.executable, "-m", "latent_shift", "study", *command], check=True, stdout=subprocess.DEVNULL)
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "report" / "report.html").as_uri())
    for summary in page.locator("summary").all():
        summary.click()
    check_page(page, "study-report")
    context.close()
