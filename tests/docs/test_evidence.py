"""The evidence in the documents: tables and figures are what the records say."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


def test_tables_and_figures_are_those_of_the_records() -> None:
    words = [sys.executable, "benchmarks/evidence.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("figure", sorted((ROOT / "docs/figures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_can_be_read_without_its_style_sheet(figure: Path) -> None:
    text = figure.read_text("utf-8")
    assert "var(--" not in text
    labels = []
    for one in ElementTree.fromstring(text.encode()).iter("{http://www.w3.org/2000/svg}text"):
        style = dict(re.findall(r"([a-z-]+): ([^;]+)", one.get("style", "")))
        wide = 0.4 * float(style.get("font-size", "13px")[:-2]) * len(one.text or "")
        left = float(one.get("x", 0)) - wide * {"middle": 0.5, "end": 1}.get(style.get("text-anchor", ""), 0)
        labels.append((left, left + wide, float(one.get("y", 0)), one.text))
    for (left, right, y, name), (other, end, below, beside) in itertools.combinations(labels, 2):
        assert abs(y - below) > 5 or right < other or end < left, f"{name!r} is drawn over {beside!r}"
