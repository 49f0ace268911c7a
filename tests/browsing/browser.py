"""A browser for tests of what people look at: Debian's Chromium, headless, driven by Playwright.

Playwright brings its driver along and no browser; a test that finds none is skipped with the reason.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"desktop": (1200, 900), "phone": (390, 844)}
"""Name of a screen -> its width and height, in CSS pixels."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with a new empty profile; skip the test where there is none.

    While it runs, no other event loop can run in this thread: end it with the module that needs it.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, headless=True, chromium_sandbox=False, args=_OPTIONS
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, address: str, *, screen: str = "desktop", scheme: str = "light", expected: str = ""
) -> Iterator[Page]:
    """Open an address in a window of its own; at the end, see that its console had no errors.

    `expected` is a regular expression of what the console may complain about.
    """
    width, height = WIDTHS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        accept_downloads=True,
    )
    complaints: list[str] = []

    def note(text: str) -> None:
        if not (expected and re.search(expected, text)):
            complaints.append(text)

    try:
        page = context.new_page()
        page.on("console", lambda said: note(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.goto(address)
        yield page
        assert not complaints, complaints
    finally:
        context.close()


def overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def pale(page: Page, least: float = 4.5) -> dict[str, float]:
    """Return the visible texts whose contrast (WCAG 2) to what is behind them is below the least one."""
    return page.evaluate(_PALE, least)


_PALE = """least => {
  const parse = text => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [parts[0] * scale, parts[1] * scale, parts[2] * scale, parts[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.unshift(parse(getComputedStyle(at).backgroundColor));
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = colour => {
    const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map(c => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].filter(node => node.nodeType === 3);
    const said = texts.map(node => node.data).join("").trim();
    if (!said || !element.checkVisibility({opacityProperty: true}) || element.disabled) continue;
    const below = behind(element);
    const [a, b] = [over(parse(getComputedStyle(element).color), below), below].map(light);
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < least) found[said.slice(0, 40)] = contrast;
  }
  return found;
}"""
