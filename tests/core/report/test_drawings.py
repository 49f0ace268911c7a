"""Drawings of scores, values and changes: what they show is what they were given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from tinylora_edge.report.changes import changes
from tinylora_edge.report.markup import text
from tinylora_edge.report.scores import Score, scores
from tinylora_edge.report.values import values


def rows(markup: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(markup).findall(".//tr")


def number(element: ElementTree.Element | None, name: str) -> float:
    assert element is not None
    return float(element.attrib[name])


def cells(row: ElementTree.Element) -> list[str]:
    return ["".join(cell.itertext()) for cell in row.findall("td")]


class TestText:
    def test_spaces_and_joiners_of_other_scripts_stay(self) -> None:
        written = "10\u00a0% \u3000\u65e5\u672c a\u202fb \U0001f468\u200d\U0001f469\n\tc"
        assert text(written) == written

    def test_what_no_page_may_hold_is_replaced(self) -> None:
        assert text("a\x00b\x1b[0m\u202ec\ud800\ufeff\u2028") == "a\ufffdb\ufffd[0m\ufffdc" + 3 * "\ufffd"


class TestScores:
    def test_bars_are_as_long_as_rewards_and_whiskers_as_their_errors(self) -> None:
        base, vector = rows(
            scores([Score("base", 0.25, 0.05, "base"), Score("vector", 0.5, 0.0, "vector", "41 tokens")])
        )
        bar, whisker = base.find(".//rect"), base.find(".//line")
        assert (number(bar, "x"), number(bar, "width")) == (0, 25)
        assert (number(whisker, "x1"), number(whisker, "x2")) == pytest.approx((20, 30))
        assert cells(base)[::2] == ["base", "0.250 +- 0.050"]
        assert number(vector.find(".//rect"), "width") == 50
        assert vector.find(".//line") is None
        assert cells(vector)[2] == "0.500 +- 0.000, 41 tokens"

    def test_an_unknown_error_is_said(self) -> None:
        (row,) = rows(scores([Score("one prompt", 1.0, math.nan, "base")]))
        assert cells(row)[2] == "1.000 +- ?"
        assert row.find(".//line") is None

    def test_rewards_outside_of_0_to_1_have_a_wider_axis(self) -> None:
        low, high = rows(scores([Score("a", -1.0, 0.0, "base"), Score("b", 3.0, 0.0, "vector")]))
        assert (number(low.find(".//rect"), "x"), number(low.find(".//rect"), "width")) == (0, 25)
        assert (number(high.find(".//rect"), "x"), number(high.find(".//rect"), "width")) == (25, 75)

    def test_a_whisker_stays_within_the_bar(self) -> None:
        (row,) = rows(scores([Score("a", 0.95, 0.2, "base")]))
        assert number(row.find(".//line"), "x2") == 100


class TestValues:
    def test_bars_go_both_ways_from_zero_and_share_a_scale(self) -> None:
        up, down, none = rows(values([0.5, -0.25, 0.0], ["short", "formal", "list"]))
        assert (number(up.find(".//rect"), "x"), number(up.find(".//rect"), "width")) == (50, 50)
        assert (number(down.find(".//rect"), "x"), number(down.find(".//rect"), "width")) == (25, 25)
        assert number(none.find(".//rect"), "width") == 0
        assert [cells(row)[0] for row in (up, down, none)] == ["short", "formal", "list"]
        assert [cells(row)[2] for row in (up, down, none)] == ["+0.5", "-0.25", "+0"]

    def test_axes_without_names_are_numbered(self) -> None:
        assert [cells(row)[0] for row in rows(values([0.0, 0.0]))] == ["v1", "v2"]

    def test_names_are_escaped(self) -> None:
        (row,) = rows(values([1.0], ["<b>&"]))
        assert cells(row)[0] == "<b>&"


class TestChanges:
    def test_shares_fill_the_bar(self) -> None:
        (row,) = rows(changes(30, 10, 100))
        found = {bar.get("class"): (number(bar, "x"), number(bar, "width")) for bar in row.findall(".//rect")}
        assert found == {"gain": (0, 30), "same": (30, 60), "loss": (90, 10)}
        assert cells(row)[1] == "+30 gained \u00b7 -10 lost \u00b7 60 as before"

    def test_changed_prompts_alone(self) -> None:
        (row,) = rows(changes(3, 1))
        found = {bar.get("class"): number(bar, "width") for bar in row.findall(".//rect")}
        assert found == {"gain": 75, "same": 0, "loss": 25}
        assert cells(row)[1] == "+3 gained \u00b7 -1 lost"

    def test_nothing_changed(self) -> None:
        (row,) = rows(changes(0, 0))
        assert [number(bar, "width") for bar in row.findall(".//rect")] == [0, 0, 0]
