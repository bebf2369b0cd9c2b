"""What the tests of both web pages share: Chromium, what axe-core finds on a page, its first paint, pictures of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
SCREENSHOTS = os.environ.get("LATENT_SHIFT_SCREENSHOTS")
"""A folder for pictures of every state of the pages, to be looked at."""
WIDTHS = {"narrow": 360, "wide": 1200}

# The contrast of every text with what is behind it (WCAG 2.1, relative luminance), as the browser draws it: before a
# dialog's backdrop axe-core does not judge it.
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


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: install it, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def watch(page: Page, host: str) -> list[str]:
    """A list that fills with the page's errors and with its requests to other hosts."""
    problems: list[str] = []
    own = (host, "data:", "blob:")
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith(own) else problems.append(asked.url))
    return problems


def check_page(page: Page, name: str) -> None:
    """The page as it is: axe-core finds nothing in light and in dark, and it fits a narrow and a wide window."""
    before = page.viewport_size
    for scheme, size in (("light", "narrow"), ("dark", "wide"), ("light", "wide"), ("dark", "narrow")):
        page.set_viewport_size({"width": WIDTHS[size], "height": 800})
        page.emulate_media(color_scheme=scheme)
        if (scheme, size) in (("light", "narrow"), ("dark", "wide")):
            found = _violations(page)
            assert not found, "\n".join([f"{name}, {scheme}, {size}", *found])
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size], f"{name}, {size}"
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            dialog = page.locator("dialog[open]").count() > 0
            page.screenshot(path=Path(SCREENSHOTS, f"{name}-{scheme}-{size}.png"), full_page=not dialog)
    page.emulate_media(color_scheme="light")
    if before is not None:
        page.set_viewport_size(before)


def _violations(page: Page) -> list[str]:
    """What is wrong, and where."""
    found = Axe().run(page).response["violations"]
    return [
        *page.evaluate(CONTRAST),
        *(
            f"{rule['id']}: {' '.join(node['html'].split())[:120]} {node['failureSummary'][:200]}"
            for rule in found
            for node in rule["nodes"]
        ),
    ]


def first_paint_ms(browser: Browser, url: str) -> float:
    """Until something is drawn, with nothing cached; the best of three, since the machine does other things too."""

    def once() -> float:
        with contextlib.closing(browser.new_context()) as context:
            page = context.new_page()
            page.goto(url)
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            return float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))

    return min(once() for _ in range(3))
