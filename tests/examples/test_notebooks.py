"""The notebooks run from top to bottom, at small size, and are kept without what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
LITTLE = {"method": "sft", "steps": 2, "prompts": 2, "validation": 2, "keep": False}
SMALL: dict[str, dict[str, Any]] = {  # in place of what the first cell sets
    "personalize": {"BUDGET": LITTLE, "HELD_OUT": 2},
    "own_messages": {"BUDGET": LITTLE | {"evaluate": False}, "OTHERS": 30, "MEASURE": False},
}


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [each for each in json.loads(path.read_text("utf-8"))["cells"] if each["cell_type"] == kind]


@pytest.mark.usefixtures("training_gains")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, smollm2_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *rest = cells(path, "code")
    names: dict[str, Any] = {}
    exec("".join(first["source"]), names)
    assert first["metadata"]["tags"] == ["parameters"]
    assert SMALL[path.stem].keys() | {"BUNDLE"} <= names.keys()
    names |= SMALL[path.stem] | {"BUNDLE": str(smollm2_bundle)}
    for cell in rest:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    printed = capsys.readouterr().out
    if path.stem == "personalize":
        assert re.search(r"^vector +[01]\.\d+ \+- .* tokens a request, [\d,]+ bytes a user$", printed, re.M)
        assert printed.count("  base:  ") == printed.count("  vector: ") == 2
    else:
        assert re.search(r"^mine   ok see\|", printed, re.M)
        assert [each.name for each in tmp_path.glob("mine.*")] == ["mine.txt"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_leads_to_pages_that_there_are(path):
    assert path.stem in SMALL
    assert [each for each in cells(path, "code") if each["outputs"] or each["execution_count"]] == []
    links = re.findall(r"\]\(([^)]+)\)", "".join("".join(each["source"]) for each in cells(path, "markdown")))
    prefix = "https://github.com/tinylora-edge/tinylora-edge/blob/HEAD/"
    assert links
    assert [link for link in links if not (ROOT / link.removeprefix(prefix)).is_file()] == []
