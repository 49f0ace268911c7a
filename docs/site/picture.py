"""The picture of the README, docs/figures/try.svg: what `tinylora-edge demo --replay` answers, as SVG.

    tinylora-edge demo --replay --json -o out/demo | python docs/site/picture.py

It shows the answers of base and personalized model to the first prompts, in light and in dark.
"""

from __future__ import annotations

import json
import sys
import textwrap
from html import escape
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parents[1] / "figures" / "try.svg"
SHOWN, LONGEST = 3, 160  # answers, and characters of one
WIDTH, LEFT, MIDDLE, CARD = 760, 16, 388, 356
LINE, PAD = 18, 12
COLUMNS = 50  # of a line of an answer

# Attributes, for renderers without style sheets; the style sheet has only what is other in the dark.
ROOT = 'font-family="system-ui, sans-serif" font-size="13" fill="#24292f"'
LOOKS = {
    "head": ' font-size="15" font-weight="600"',
    "prompt": ' font-weight="600"',
    "dim": ' class="dim" fill="#59636e"',
    "base": 'class="base" fill="#f6f8fa" stroke="#d1d9e0"',
    "yours": 'class="yours" fill="#ddf4ff" stroke="#0969da"',
    "": "",
}
DARK = """
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .dim { fill: #9198a1 }
  .base { fill: #151b23; stroke: #3d444d } .yours { fill: #121d2f; stroke: #4493f8 }
}
"""


def render(found: dict[str, Any]) -> str:
    """Return the picture of a record of `demo --replay --json`."""
    frame = found["frame"]
    parts = [
        _text(LEFT, 22, "the base: 98 MB, frozen", "head"),
        _text(MIDDLE, 22, f"with {frame['bytes']:,} bytes beside it", "head"),
        _text(LEFT, 42, "the same file on every device", "dim"),
        _text(MIDDLE, 42, f"{frame['numbers']:,} numbers, exchanged in milliseconds", "dim"),
    ]
    y = 72
    for answer in found["answers"][:SHOWN]:
        base, yours = (textwrap.wrap(_whole(answer[name]), COLUMNS) for name in ("base", "personalized"))
        parts.append(_text(LEFT, y, answer["prompt"], "prompt"))
        high = LINE * max(len(base), len(yours)) + PAD
        for x, name, lines in ((LEFT, "base", base), (MIDDLE, "yours", yours)):
            parts.append(f'<rect {LOOKS[name]} x="{x}" y="{y + 10}" width="{CARD}" height="{high}" rx="6"/>')
            parts += [_text(x + PAD, y + 28 + LINE * i, line) for i, line in enumerate(lines)]
        y += high + 42
    proof = found["proof"]
    parts.append(
        _text(LEFT, y, f"taken away again: all {proof['logits']:,} logits are the base's, bit for bit", "dim")
    )
    title = f"Answers of a frozen model, and of the same model with {frame['bytes']:,} bytes beside it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" role="img" {ROOT}>\n'
        f"<title>{title}</title>\n<style>{DARK}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _whole(answer: str) -> str:
    """Return an answer, with dots where it was cut."""
    whole = len(answer) <= LONGEST and answer[-1:] in (".", "!", "?", "}")
    return answer if whole else f"{answer[:LONGEST]} ..."


def _text(x: float, y: float, text: str, name: str = "") -> str:
    return f'<text x="{x}" y="{y}"{LOOKS[name]}>{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(render(json.load(sys.stdin)), "utf-8")
