"""What the records of a run say of it."""

from __future__ import annotations

from dataclasses import replace

from report_figures import TRAINED

from tinylora_edge.cli.report.records import duration


def test_a_run_that_found_nothing_says_so() -> None:
    text = replace(TRAINED, best_step=0, best_score=0.25, stopped="silence").summary()
    assert "No step was better than the base" in text
    assert "the vector is zero" in text
    assert "ended early: silence" in text
    assert "The vector of step 3 is kept" in TRAINED.summary()
    assert "early" not in TRAINED.summary()


def test_a_run_that_began_with_a_vector_and_found_nothing_keeps_it() -> None:
    begun = TRAINED.options | {"start": [0.5, -0.25]}
    text = replace(TRAINED, best_step=0, best_score=0.25, options=begun).summary()
    assert "No step was better than the start" in text
    assert "the vector is the one that training began with" in text


def test_durations() -> None:
    assert [duration(s) for s in (0.84, 9.94, 42.2, 59.6, 250.0)] == [
        "0.8 s",
        "9.9 s",
        "42 s",
        "1 min 0 s",
        "4 min 10 s",
    ]
