"""Reports as people see them: in Chromium, on a desktop and a phone, in light and in dark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing.browser import SCHEMES, WIDTHS, brightness, opened, overflow, pale
from report_figures import FOUND

from tinylora_edge import MicroVector
from tinylora_edge.cli.demo.report import render
from tinylora_edge.report.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LONG = "a word that is long: " + "Donaudampfschifffahrtsgesellschaft" * 3


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a demo's report with answers that gain, lose, and are long."""
    answer = FOUND.answers.first[0]
    lost = replace(answer, base_reward=1.0, personalized_reward=0.0, prompt=LONG, base=LONG)
    frame = replace(FOUND.frame, values=[0.5, -0.25, 0.0])
    answers = replace(FOUND.answers, first=[answer, lost])
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(replace(FOUND, answers=answers, frame=frame)), "utf-8")
    return path.as_uri()


@pytest.mark.parametrize("screen", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_report_fits_and_can_be_read(chromium: Browser, report: str, screen: str, scheme: str) -> None:
    with opened(chromium, report, screen=screen, scheme=scheme) as shown:
        assert overflow(shown) == 0
        assert pale(shown) == {}
        assert (brightness(shown.screenshot()) > 128) == (scheme == "light")
        assert shown.locator("td.gain").count() == 1
        assert shown.locator("td.loss").count() == 1
        settings = shown.locator("details")
        assert not settings.locator("table").is_visible()
        settings.locator("summary").click()
        assert settings.locator("table").is_visible()
        assert overflow(shown) == 0


def test_bars_are_as_long_as_what_they_show(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as shown:
        bars = {
            tone: shown.locator(f"td.bar rect.{tone}").first.bounding_box() for tone in ("base", "vector")
        }
        base, vector = bars["base"], bars["vector"]
        assert base is not None
        assert vector is not None
        assert base["width"] / vector["width"] == pytest.approx(0.3 / 0.5, rel=0.02)


def test_a_notebooks_drawing_is_seen(chromium: Browser, tmp_path: Path) -> None:
    import numpy as np

    vector = MicroVector(np.array([[0.5], [-0.25]], np.float32))
    path = tmp_path / "cell.html"
    path.write_text(page("cell", [vector._repr_html_()]), "utf-8")
    with opened(chromium, path.as_uri(), screen="phone") as shown:
        assert shown.locator("td.bar rect.vector").count() == 2
        assert overflow(shown) == 0
