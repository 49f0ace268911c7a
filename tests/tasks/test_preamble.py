"""Preambles: what stands before a prompt, and what the model then sees."""

from __future__ import annotations

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Preamble, Sample


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


EXAMPLE = Sample("1 + 1?", "2")
ASKED = Sample("2 + 2?", "4", {"any": "key"})


def test_nothing_changes_nothing() -> None:
    assert Preamble().before(ASKED) is ASKED
    assert not Preamble()
    assert Preamble().size == 0


def test_system_examples_and_question_are_messages_in_that_order() -> None:
    found = Preamble("Bé brief.", (EXAMPLE,)).before(ASKED)
    assert found.prompt == (
        message("system", "Bé brief."),
        message("user", "1 + 1?"),
        message("assistant", "2"),
        message("user", "2 + 2?"),
    )
    assert (found.answer, found.data) == ("4", {"any": "key"})
    assert Preamble("Bé brief.", (EXAMPLE,)).size == len("Bé brief.".encode()) + len("1 + 1?2")


def test_a_system_prompt_of_the_samples_own_stays_behind_the_preambles() -> None:
    turns = (message("user", "a"), message("assistant", "b"), message("user", "c"))
    sample = Sample((message("system", "Tools: x."), *turns))
    same, other = (Sample((message("system", text), turns[0]), "b") for text in ("Tools: x.", "Tools: y."))
    found = Preamble("Be brief.", (same, other)).before(sample)
    assert found.prompt == (
        message("system", "Be brief.\n\nTools: x."),
        message("user", "a"),
        message("assistant", "b"),
        message("user", "Tools: y.\n\na"),
        message("assistant", "b"),
        *turns,
    )
    assert Preamble(None, (same,)).before(sample).prompt[0] == message("system", "Tools: x.")


def test_what_is_refused() -> None:
    with pytest.raises(TrainError, match="the system prompt is blank"):
        Preamble(" ")
    with pytest.raises(TrainError, match=r"example 2 \('p'\) has no answer"):
        Preamble(None, (EXAMPLE, Sample("p")))
    with pytest.raises(TrainError, match="is raw, and no chat turn"):
        Preamble(None, (Sample("p", "a", raw=True),))
    with pytest.raises(TrainError, match="'2 ' is raw: it goes past the chat template"):
        Preamble("Be brief.").before(Sample("2 ", raw=True))
