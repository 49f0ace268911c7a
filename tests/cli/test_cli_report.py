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


ARMS = {
    name: {"mean": mean, "standard_error": 0.05, "tokens": tokens, "bytes": size}
    for name, mean, tokens, size in (
        ("base", -2.5, 31.0, 0),
        ("vector", -0.5, 31.0, 13455),
        ("prompt", -1.5, 331.0, 0),
    )
}


def test_the_arms_and_forms_and_answers(tmp_path: Path) -> None:
    measured = {
        "held_out": HELD_OUT,
        "arms": ARMS,
        "prompt": {"system": None, "examples": [{}, {}], "tried": [{}] * 7},
        "forms": {"llama.cpp": HELD_OUT, "ONNX Runtime": HELD_OUT | {"same": 61, "empty": 3}},
        "warning": "do not deploy it",
        "unmeasured": {"examples": "no", "graph": "interrupted", "drift": "interrupted"},
        "answers": [{"asked": "<i>", "wanted": None, "base": "", "vector": "yes & no"}],
    }
    text = page(tmp_path, **measured)
    for part in (
        "<td>2 worked examples</td><td>-1.500 +- 0.050</td><td>331</td><td>0</td>",
        "<td>vector</td><td>-0.500 +- 0.050</td><td>31</td><td>13,455</td>",
        "the best of 7 draws",
        "61 answers word for word as above, 3 empty",
        "do not deploy it",
        "graph, drift: interrupted",
        "<td>asked</td><td>&lt;i&gt;</td>",
        "yes &amp; no",
    ):
        assert part in text
    assert (
        text.index("2 worked examples") < text.index("61 answers") < text.index("<svg") < text.index("asked")
    )
    assert "wanted" not in text


def test_nats_are_shown_as_nats(tmp_path: Path) -> None:
    text = page(tmp_path, held_out=HELD_OUT, arms=ARMS, unit="nats a token")
    assert "<th>nats a token, less is better</th>" in text
    assert "<td>vector</td><td>0.500 +- 0.050</td>" in text
    assert "-0.200 +- 0.060" in text
    assert "The vector lowers the nats a token, beyond two standard errors." in text


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
