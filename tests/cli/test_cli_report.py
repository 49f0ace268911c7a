"""The report of a run: what its page says for figures of every kind, and for hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge.cli.report import write_report

RECORD: dict[str, Any] = {
    "tool": "tinylora-edge 0",
    "task": "list-lookup",
    "basis": "ab" * 32,
    "projection": "entries rank=2",
    "numbers": 840,
    "options": {"method": "grpo", "weights": None, "settings": {"prompts": 8}},
    "result": {"start_score": 0.25, "best_score": 0.75, "best_step": 3, "steps": 3, "stopped": "done"},
    "seconds": 61.0,
    "curve": [
        {"event": "start", "validation": 0.25},
        {"step": 1, "reward": 0.2},
        {"step": 3, "reward": 0.5, "validation": 0.75},
    ],
}
HELD_OUT = {
    "n": 100, "base": 0.3, "base_standard_error": 0.05, "vector": 0.5, "vector_standard_error": 0.05,
    "difference": 0.2, "standard_error": 0.06, "gained": 30, "lost": 10, "p": 0.002,
}  # fmt: skip


def page(folder: Path, **changed: Any) -> str:
    (folder / "v.bin").write_bytes(b"\x11\xab")
    (folder / "v.bin.json").write_text(json.dumps(RECORD | changed), "utf-8")
    return write_report(folder / "v.bin").read_text("utf-8")


def test_the_page_has_the_figures(tmp_path: Path) -> None:
    assert "not measured: eval does that" in page(tmp_path)
    text = page(tmp_path, held_out=HELD_OUT)
    for part in (
        "2 bytes for list-lookup",
        "+0.200 +- 0.060",
        "840, entries rank=2",
        "11ab",
        "prompts 8",
        "<svg",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (0.2, 0.06, "raises"),
        (-0.2, 0.06, "lowers"),
        (0.2, 0.1, "within"),
        (0.0, 0.0, "within"),
        (1, 0, "raises"),
    ],
)
def test_no_claim_without_the_figure(tmp_path: Path, difference: float, error: float, expected: str) -> None:
    text = page(tmp_path, held_out=HELD_OUT | {"difference": difference, "standard_error": error})
    assert expected in text
    assert ("raises" in text) == (difference > 2 * error)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = page(tmp_path, task="</title><script>alert('&\"')</script>\ud800")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
