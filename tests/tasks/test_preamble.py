"""Preambles: what stands before a prompt, and what the model then sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Completion, Preamble, Sample, Task


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


def echoes(completion: Completion, sample: Sample) -> float:
    """1 for an answer that repeats the prompt that it sees."""
    return float(completion.text in sample.text)


def task(**options: object) -> Task:
    train, held_out = [EXAMPLE, Sample("3 + 3?", "6")], [ASKED]
    return Task("sums", train, held_out, echoes, shifted=[Sample("two and two?", "4")], **options)  # type: ignore[arg-type]


def test_a_task_behind_a_preamble_is_judged_as_without() -> None:
    preamble = Preamble("Be brief.", (EXAMPLE,))
    behind = preamble.before_task(task())
    assert [sample.bare for sample in behind.train] == [Sample("3 + 3?", "6")], "what is shown is not asked"
    assert behind.held_out == [preamble.before(ASKED)]
    assert behind.shifted[0].bare == Sample("two and two?", "4")
    assert Preamble.of(behind.preamble) == preamble
    for answer, score in (("2 + 2", 1.0), ("Be brief.", 0.0)):
        assert behind.score(Completion(answer, ended=True, tokens=1), behind.held_out[0]) == score
    assert Preamble().before_task(behind) is behind
    failing = task(preamble=None)
    with pytest.raises(TrainError, match=r"held_out sample 0 \(prompt '2 \+ 2\?'"):
        preamble.before_task(Task("sums", failing.train, failing.held_out, lambda c, s: float("nan"))).score(
            Completion("", ended=True, tokens=0), preamble.before(ASKED)
        )


def test_what_stands_before_no_task() -> None:
    with pytest.raises(TrainError, match="'2 \\+ 2\\?' is a held-out prompt of task sums"):
        Preamble(None, (ASKED,)).before_task(task())
    with pytest.raises(TrainError, match="'two and two\\?' is a shifted prompt"):
        Preamble(None, (Sample("two and two?", "4"),)).before_task(task())
    behind = Preamble("Be brief.").before_task(task())
    with pytest.raises(TrainError, match="has a preamble already"):
        Preamble("Be kind.").before_task(behind)


def test_a_file_of_it(tmp_path: Path) -> None:
    chat = Sample((message("system", "Tools: x."), message("user", "a")), "b")
    for preamble in (Preamble("Bé brief."), Preamble(None, (EXAMPLE, chat)), Preamble("x", (EXAMPLE,))):
        preamble.write(tmp_path / "p.json")
        assert Preamble.read(tmp_path / "p.json") == preamble


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected {"),
        ("{}", "expected {"),
        ('{"sistem": "x"}', "expected {"),
        ('{"system": 1}', '"system" is to be text'),
        ('{"examples": {}}', "a list"),
        ('{"examples": [1]}', "example 1: expected"),
        ('{"examples": [{"question": [], "answer": "a"}]}', "neither text nor chat messages"),
        ('{"examples": [{"question": [{"role": 1, "content": ""}], "answer": "a"}]}', "neither text nor"),
        ('{"examples": [{"question": "q", "answer": null}]}', "its answer is no text"),
        ('{"examples": [{"question": "q", "answer": " "}]}', "has no answer"),
        ('{"system": " "}', "the system prompt is blank"),
        ("{", "is no preamble"),
    ],
)
def test_what_is_no_file_of_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(TrainError, match="is no preamble") as caught:
        Preamble.read(tmp_path / "p.json")
    assert message in str(caught.value)
