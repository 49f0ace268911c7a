"""The demo's words and its page: what they say for figures of every kind, and for hostile text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from report_figures import FOUND, HELD_OUT

from tinylora_edge.cli.demo.report import render


def texts(page: str) -> str:
    return "".join(ElementTree.fromstring(page).itertext())


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (0.2, 0.06, "raises the reward on prompts never trained on from 0.300 to 0.500"),
        (-0.2, 0.06, "lowers"),
        (0.2, 0.1, "within two standard errors"),
        (-0.1, 0.06, "within two standard errors"),
        (0.0, 0.0, "within two standard errors"),
        (1.0, 0.0, "raises"),
    ],
)
def test_no_claim_without_the_figure(difference: float, error: float, expected: str) -> None:
    verdict = replace(HELD_OUT, difference=difference, standard_error=error).verdict()
    assert expected in verdict
    assert ("raises" in verdict) == (difference > 2 * error)
    assert verdict in texts(
        render(replace(FOUND, held_out=replace(HELD_OUT, difference=difference, standard_error=error)))
    )


def test_a_prompt_stands_beside_the_vector() -> None:
    text = texts(render(FOUND))
    for part in (
        "a prompt instead",
        "0.400 +- 0.050",
        "Vector over the prompt: +0.100 +- 0.050, paired, McNemar p = 0.099",
        "the best of 11 on training prompts (176 answers",
        "'Answer with one word.'. A request has 45 tokens with it, and 41 with the vector.",
    ):
        assert part in text


def test_hostile_text_stays_text() -> None:
    hostile = "</td><script>alert('&amp;\"')</script>\x00\x1b[31m\u202e\ud800 ]]>"
    answer = replace(FOUND.answers.first[0], prompt=hostile, base=hostile, personalized=hostile)
    page = render(replace(FOUND, answers=replace(FOUND.answers, first=[answer]), model=hostile))
    assert "<script" not in page
    page.encode()  # as it is written
    text = texts(page)
    assert text.count("</td><script>alert('&amp;\"')</script>\ufffd\ufffd[31m\ufffd\ufffd ]]>") == 5
    assert "\x00" not in text


def test_the_page_has_the_figures() -> None:
    text = texts(render(FOUND))
    for part in ("0.300 +- 0.050", "+0.200 +- 0.060", "McNemar p = 0.002", "11ab", "1 min 1 s", "1.50"):
        assert part in text
    assert "short run" not in text
    assert "short run" in texts(render(replace(FOUND, quick=True)))
    assert "settings.validation" in text
    assert "weights" not in text  # None: the run decides


def test_the_page_says_how_the_answers_were_chosen() -> None:
    assert "whose answers differ" not in texts(render(FOUND))
    other = replace(FOUND.answers.first[0], prompt="another")
    text = texts(render(replace(FOUND, answers=replace(FOUND.answers, differing=[other], changed=7))))
    assert "the first 1 of these prompts" in text
    assert "the first 1 others of the 7 whose answers differ" in text
    assert "another" in text
