"""The list of what is public is true: names, signatures, and the first words on each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_public_names_and_signatures_are_those_of_the_page() -> None:
    """Where this fails, something public changed: docs/VERSIONS.md says what may. The command
    `python docs/site/api.py` writes the page anew."""
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs/site/api.py")
    assert spec is not None
    assert spec.loader is not None
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    page = api.PAGE.read_text("utf-8")
    assert api.page().splitlines() == page.splitlines()
    assert "0x" not in page.replace("0xFFFF", ""), "no address of an object"
