"""The page as a person uses it: headless Chromium, a server of its own, and the real model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import support
from browsing import browser
from serving import playing

from tinylora_edge import Basis, MicroVector, Policy, load_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=60_000)  # five seconds are few where a model computes on the same core


@pytest.fixture(scope="module")
def basis(smollm2_bundle: Path) -> Basis:
    return load_bundle(smollm2_bundle).basis(numbers=13)


@pytest.fixture(scope="module")
def address(chromium, smollm2_bundle, basis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("played")
    vector = MicroVector(np.float32([0.5, -0.25, *[0] * (basis.size - 2)]))
    (folder / "first.bin").write_bytes(vector.to_bytes(basis))
    with playing(folder, smollm2_bundle, "--vector", folder / "first.bin") as (server, page):
        yield page
        assert server.text() == "Ctrl-C ends it\n"


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    with browser.opened(chromium, address) as opened:
        ready(opened)
        yield opened


def ready(page: Page) -> None:
    page.locator("body[data-ready]").wait_for()
    page.locator("summary", has_text="Settings").click()
    page.fill("#length", "10")


def wait_until_answered(page: Page) -> None:
    expect(page.locator("#send")).to_have_text("Ask")


def ask(page: Page, prompt: str = "What is the moon?") -> tuple[str, str]:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    wait_until_answered(page)
    return answers(page)


def answers(page: Page) -> tuple[str, str]:
    return page.locator("#base .answer").inner_text(), page.locator("#personal .answer").inner_text()


def values(page: Page) -> list[float]:
    texts = page.locator("#sliders output").all_inner_texts()
    return [float(value.replace("\N{MINUS SIGN}", "-")) for value in texts]


def test_a_slider_moves_and_the_right_answer_changes(page: Page) -> None:
    base, personal = ask(page)
    assert base
    assert personal
    for pane in ("#base", "#personal"):
        expect(page.locator(f"{pane} .speed")).to_have_text(re.compile(r"^\d+ tokens, [\d.]+ tokens/s$"))
    page.locator("#base .answer").evaluate("place => place.firstChild.untouched = true")
    page.fill("#value-7", "-1")  # as far as it goes
    expect(page.locator("#personal .answer")).not_to_have_text(personal)
    wait_until_answered(page)
    after = answers(page)
    assert after[0] == base
    assert page.locator("#base .answer").evaluate("place => place.firstChild.untouched")
    assert after[1] not in ("", base, personal)
    assert page.locator("#norm").inner_text() == f"{np.linalg.norm([0.5, -1, -0.25]):.2f}"
    page.click("#reset")
    expect(page.locator("#personal .answer")).to_have_text(base)  # at 0 it is the base
    assert page.locator("#hint").inner_text().startswith("All values are 0")


def test_a_click_moves_a_bar(page: Page) -> None:
    before = values(page)
    ask(page, "Say yes.")
    page.evaluate("() => { own = fetch; fetch = () => { fetch = own; throw new Error('no network'); } }")
    page.click("#personal [data-reward='1']")
    expect(page.locator("#status.bad")).to_be_visible()
    page.click("#personal [data-reward='1']")  # what failed can be clicked again
    expect(page.locator("#status")).to_contain_text("Learned", timeout=120_000)
    wait_until_answered(page)
    after = values(page)
    assert after != before
    change = np.subtract(after, before)
    moved = page.locator(".axis.moved label").all_inner_texts()
    assert moved == [f"v{i + 1}" for i in np.flatnonzero(change)]
    page.reload()  # the token is found again, and what was learned
    ready(page)
    np.testing.assert_allclose(values(page), change, atol=0.0015)
    assert page.url.endswith("/")


def test_a_frame_is_saved_and_loaded_again(page: Page, basis: Basis, tmp_path: Path) -> None:
    page.fill("#value-5", "0.750")
    set_to = values(page)
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == "me.bin"
    vector = Policy().check(saved.read_bytes(), basis, user="me")
    np.testing.assert_allclose(vector.values, set_to, atol=0.006)
    page.click("#reset")
    expect(page.locator("#norm")).to_have_text("0.00")
    page.set_input_files("#file", saved)
    expect(page.locator("#value-5")).to_have_attribute("aria-valuetext", "0.750")
    np.testing.assert_allclose(values(page), set_to, atol=0.0015)  # bf16 has 8 bits


def test_a_vector_of_840_numbers_has_no_sliders(page: Page, smollm2_bundle: Path, tmp_path: Path) -> None:
    base, _ = ask(page)
    grown = load_bundle(smollm2_bundle).basis(rank=2)
    frame = MicroVector(support.of_norm(grown, 3.0).values, "int8").to_bytes(grown)
    (tmp_path / "grown.bin").write_bytes(frame)
    page.set_input_files("#file", tmp_path / "grown.bin")
    expect(page.locator("#hint")).to_have_text("No slider moves these 840 numbers. Set to 0 to move 13.")
    assert page.locator("#sliders").is_hidden()
    expect(page.locator("#personal [data-reward='1']")).to_be_hidden()
    wait_until_answered(page)
    assert answers(page)[0] == base != answers(page)[1]
    assert page.locator("#norm").inner_text() == "3.00"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "saved.bin")
    assert len((tmp_path / "saved.bin").read_bytes()) == len(frame) == 855
    page.click("#reset")
    expect(page.locator("#personal .answer")).to_have_text(base)
    assert values(page) == [0.0] * 13


@pytest.mark.parametrize(("screen", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_it_fits_and_can_be_read(chromium: Browser, address: str, screen: str, scheme: str) -> None:
    with browser.opened(chromium, address, screen=screen, scheme=scheme) as page:
        ready(page)
        ask(page)
        assert browser.overflow(page) == 0
        assert browser.pale(page) == {}
