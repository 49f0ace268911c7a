"""What a notebook shows of a vector, a basis and a comparison: whole markup that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

from tinylora_edge import Basis, MicroVector
from tinylora_edge.runtime.evaluation import Comparison


def shown(markup: str) -> str:
    """Return the text of markup, its style left out; it is well-formed and names nothing from elsewhere."""
    root = ElementTree.fromstring(markup)
    assert root.get("class") == "tinylora"
    assert "url(" not in markup
    assert "<script" not in markup
    style = root.find("style")
    assert style is not None
    # No rule reaches beyond the drawing: what else a notebook shows keeps its look.
    selectors = re.findall(r"([^{}]+)\{", str(style.text))
    assert all(".tinylora" in part for selector in selectors for part in selector.split(","))
    root.remove(style)
    return "".join(root.itertext())


def test_a_vector(tiny_basis: Callable[..., Basis]) -> None:
    basis = tiny_basis()
    vector = MicroVector.random(basis, 2.0)
    text = shown(vector._repr_html_())
    assert f"{basis.size} values, fp32, sequence 1, norm 2" in text
    for value in vector.values.reshape(-1):
        assert f"{value:+.4g}" in text


def test_a_comparison() -> None:
    text = shown(Comparison(difference=0.2, standard_error=0.05, gained=30, lost=10, p=0.002)._repr_html_())
    assert "+0.200 +- 0.050, paired, p = 0.002" in text
    assert "+30 gained" in text
