"""Seconds of the soak: 8 threads, both engines, streams abandoned. The long form is `make soak`."""

from __future__ import annotations

import pytest
from soak import ENGINES, Soak


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_exchange_vectors_and_everybody_gets_an_answer_of_their_own(engine: str) -> None:
    with ENGINES[engine]() as llm:
        soak = Soak(llm, users=10)
        soak.swaps(120)
        soak.steps(200)
    assert soak.wrong == []
    assert soak.counts["steps"] >= 200
    assert len(set(soak.answers)) > 5, "the vectors say nothing"
    assert {"using", "swap", "abandoned", "damaged", "exploding"} < set(soak.counts)
