"""The report as a page: of one run, and of several together."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from invocation import Cli

from tinylora_edge.cli import report

HOSTILE = '<script src="https://example.org/x.js">alert(1)</script> & "more"'


def record(mean: float, **more: Any) -> dict[str, Any]:
    arms = {
        name: {"n": 20, "mean": score, "standard_error": 0.1, "partial": score, "tokens": 31.0, "bytes": size}
        for name, score, size in (("base", 0.1, 0), ("vector", mean, 855), ("prompt", 0.4, 0))
    }
    rows = [
        {"asked": f"q{i}", "wanted": "a", "base": HOSTILE, "vector": " a", "prompt": ""} for i in range(14)
    ]
    drift = {"kl": 0.5, "standard_error": 0.1, "prompts": 32, "tokens": 900, "changed": 7}
    drift |= {"repeating": {"new": 1}, "wrong": {"new": 2}}
    drift |= {"examples": [{"asked": "elsewhere?", "base": "before", "vector": "after"}]}
    curve = [{"event": "start", "validation": 0.1, "validation_loss": 2.0}]
    curve += [{"step": n, "validation": mean * n / 3, "validation_loss": 2 / n} for n in (1, 2, 3)]
    system = {"system": f"Labels: {HOSTILE}", "examples": [], "tried": [{}]}
    return {"arms": arms, "answers": rows, "drift": drift, "curve": curve, "prompt": system, **more}


class Page(HTMLParser):
    """The tags of a page, its texts, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.texts = list[str](), list[str](), list[str]()
        self.loads = list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_is_whole_and_loads_nothing() -> None:
    text = report.page({"v.bin": record(0.8)})
    found = Page(text)
    assert (found.loads, found.tags.count("script"), "http" in re.sub(r"https://example\.org", "", text)) == (
        [], 0, False,
    )  # fmt: skip
    assert found.tags.count("polyline") == 2, "the score and the loss"
    assert found.texts.count(HOSTILE) == report.results.ANSWERS == 10, "as it is, and as text"
    assert text.count('<td class="right">') == 10
    assert {"elsewhere?", "before", "after", "instruction", "0.800 +- 0.100", "855"} <= {*found.texts}


def test_records_are_drawn_together(cli: Cli, tmp_path: Path) -> None:
    for name, mean in (("small", 0.3), ("large", 0.8)):
        (tmp_path / f"{name}.bin.json").write_text(json.dumps(record(mean)))
    files, page = [tmp_path / f"{name}.bin.json" for name in ("small", "large")], tmp_path / "both.html"
    shown = cli("eval", *files, "-o", page).done()
    header, *rows = shown.splitlines()
    assert header.split()[:4] == ["record", "reward", "in", "part"]
    assert [row.split()[0] for row in rows[:6]] == ["small.bin"] * 3 + ["large.bin"] * 3
    found = Page(page.read_text("utf-8"))
    assert found.tags.count("polyline") == 4, "two curves in each of two charts"
    assert {"small.bin", "large.bin", "0.300 +- 0.100", "0.800 +- 0.100"} <= {*found.texts}
    cli("eval", *files, "-o", page).refused("both.html exists already")
    assert list(cli("eval", *files, "--json").record()) == ["small.bin", "large.bin"]


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "not a record of a run"), ("[]", "not a record of a measured run"), ('{"a": 1}', "no \"arms\""),
     (json.dumps(record(0.5, unit="nats a token")), "draw them apart")],
)  # fmt: skip
def test_what_cannot_be_drawn(cli: Cli, tmp_path: Path, content: str, why: str) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(record(0.5)))
    bad.write_text(content)
    cli("eval", good, bad).refused(why)
    cli("eval", tmp_path).misused("BUNDLE and DATA, or records that end in .json")
