"""What a run has measured, for reading: gains, arms, and no claim without the figure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tinylora_edge.cli import results
from tinylora_edge.train.options import Phase

HELD_OUT = {
    "n": 100, "base": 0.3, "base_standard_error": 0.05, "vector": 0.5, "vector_standard_error": 0.05,
    "difference": 0.2, "standard_error": 0.06, "gained": 30, "lost": 10, "p": 0.002,
}  # fmt: skip
ARMS = {
    name: {"mean": mean, "standard_error": 0.05, "tokens": tokens, "bytes": size}
    for name, mean, tokens, size in (
        ("base", -2.5, 31.0, 0), ("vector", -0.5, 31.0, 13455), ("prompt", -1.5, 331.0, 0)
    )
}  # fmt: skip


def facts(**record: Any) -> dict[str, str]:
    return dict(results.rows(record))


def test_arms() -> None:
    record = {
        "held_out": HELD_OUT,
        "arms": ARMS,
        "prompt": {"system": None, "examples": [{"question": "q"}] * 2, "tried": [{}] * 7},
        "unmeasured": {"examples": "no", "arms": "interrupted", "drift": "interrupted"},
    }
    assert results.table(record)[2:] == [
        ("2 worked examples", "-1.500 +- 0.050", "331", "0"),
        ("vector", "-0.500 +- 0.050", "31", "13,455"),
    ]
    found = facts(**record)
    assert "the best of 7 prompts" in found["prompt"]
    assert found["not measured"] == "arms, drift: interrupted"


def test_the_last_line_says_which_is_ahead_and_how_sure_that_is() -> None:
    ahead = HELD_OUT | {"difference": -0.16, "standard_error": 0.06, "p": 0.02}
    record: dict[str, Any] = {"held_out": HELD_OUT, "arms": ARMS, "ahead": ahead}
    (label, text) = results.rows(record)[-1]
    assert label == "ahead"
    assert text.startswith("the prompt is ahead of the vector by 0.160 +- 0.060 reward (paired, p = 0.02)")
    assert text.endswith("Take the prompt, or give more examples or --minutes")
    for found, part in (
        ({"difference": 0.16}, "the vector is ahead of the prompt by 0.160"),
        ({"standard_error": 0.1}, "neither for sure: the prompt is ahead by 0.160"),
        ({"standard_error": 0.0}, "the prompt is ahead of the vector by 0.160"),  # by as much each time
        ({"standard_error": None}, "neither for sure"),
        ({"difference": 0.0}, "neither: vector and prompt do equally well"),
    ):
        assert part in facts(**record | {"ahead": ahead | found})["ahead"]
    nats = facts(**record, unit="nats a token")["ahead"]
    assert nats.startswith("the prompt is ahead of the vector by 0.160 +- 0.060 nats a token")


def test_what_still_gained_says_how_to_go_on() -> None:
    sft = asdict(Phase("sft", 0.1, 0.5, best_step=9, steps=9, stopped="done", gaining=True))
    scores = ((0, 0.1, 2.0), (3, 0.2, 1.5), (6, 0.4, 1.2), (9, 0.5, 1.0))
    curve = [
        {"method": "sft", "step": step, "validation": score, "validation_loss": loss}
        for step, score, loss in scores
    ]
    record: dict[str, Any] = {"result": {"phases": [sft]}, "file": "v.bin", "curve": curve}
    said = facts(**record)["go on"]
    assert said.startswith(
        "the budget ended while SFT still gained: in its last 6 steps 0.200 -> 0.500 reward"
    )
    assert said.endswith("--start v.bin trains on")
    level = [row | {"validation": 0.0} for row in curve]
    assert "1.500 -> 1.000 nats a token on held-back prompts" in facts(**record | {"curve": level})["go on"]
    texts = facts(**record | {"unit": "nats a token", "curve": [row | {"validation": -1.0} for row in curve]})
    assert "nats a token" in texts["go on"]

    # GRPO's steps go on from those of SFT.
    grpo = asdict(Phase("grpo", 0.5, 0.8, best_step=4, steps=4, stopped="done", gaining=True))
    more = [
        {"method": "grpo", "event": "start", "validation": 0.5},
        {"method": "grpo", "step": 13, "validation": 0.8},
    ]
    both = record | {"result": {"phases": [sft | {"gaining": False}, grpo]}, "curve": curve + more}
    assert "while GRPO still gained: in its last 4 steps 0.500 -> 0.800" in facts(**both)["go on"]
    assert "go on" not in facts(**record | {"result": {"phases": [sft | {"gaining": False}]}})


def test_nats_stay_nats() -> None:
    record: dict[str, Any] = {"held_out": HELD_OUT, "arms": ARMS, "unit": "nats a token"}
    header, *rows = results.table(record)
    assert header[1] == "nats a token, less is better"
    assert [row[1] for row in rows] == ["2.500 +- 0.050", "1.500 +- 0.050", "0.500 +- 0.050"]
    assert facts(**record)["vector - base"].startswith("-0.200 +- 0.060")
    sft = asdict(Phase("sft", -2.5, -1.5, start_loss=2.6, best_loss=1.6, steps=1, seconds=2.0))
    (phase,) = results.phases({"data": {"reward": "text"}, "result": {"phases": [sft]}})
    assert phase == ("sft", "1 step, 2 s, held back 2.500 -> 1.500 nats a token")
    assert facts(**record)[""] == "The vector lowers the nats a token, beyond two standard errors."


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [(0.2, 0.06, "raises"), (-0.2, 0.06, "lowers"), (0.2, 0.1, "within"), (0, 0, "within"), (1, 0, "raises"),
     (1, float("nan"), "within"), (1, None, "within")],
)  # fmt: skip
def test_no_claim_without_the_figure(difference: float, error: float, expected: str) -> None:
    held = HELD_OUT | {"difference": difference, "standard_error": error}
    assert expected in facts(held_out=held)[""]
