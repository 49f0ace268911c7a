"""Preambles: what stands before a prompt, and what the model then sees."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import (
    Completion,
    Preamble,
    Reward,
    Sample,
    Task,
    draw_examples,
    instruction,
    load_task,
    rewards,
)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


EXAMPLE = Sample("1 + 1?", "2")
ASKED = Sample("2 + 2?", "4", {"any": "key"})


def test_system_examples_and_question_are_messages_in_that_order() -> None:
    found = Preamble("Bé brief.", (EXAMPLE,)).before(ASKED)
    assert found.prompt == (
        message("system", "Bé brief."),
        message("user", "1 + 1?"),
        message("assistant", "2"),
        message("user", "2 + 2?"),
    )
    assert (found.answer, found.data) == ("4", {"any": "key"})


def test_a_system_prompt_of_the_samples_own_stays_behind_the_preambles() -> None:
    sample = Sample((message("system", "Tools: x."), message("user", "c")))
    system, *turns = Preamble("Be brief.", (EXAMPLE,)).before(sample).prompt
    assert system == message("system", "Be brief.\n\nTools: x.")
    assert turns == [message("user", "1 + 1?"), message("assistant", "2"), message("user", "c")]


def test_what_is_refused() -> None:
    with pytest.raises(TrainError, match="the system prompt is blank"):
        Preamble(" ")
    with pytest.raises(TrainError, match="example 'p' is raw, or has no answer"):
        Preamble(None, (EXAMPLE, Sample("p")))
    with pytest.raises(TrainError, match="example 'p' is raw, or has no answer"):
        Preamble(None, (Sample("p", "a", raw=True),))
    with pytest.raises(TrainError, match="'2 ' is raw: it goes past the chat template"):
        Preamble("Be brief.").before(Sample("2 ", raw=True))


def test_texts_stand_before_a_text_without_a_prompt() -> None:
    shown, asked = Sample("", "k", raw=True), Sample("", "c u", raw=True)
    found = Preamble(None, (shown, Sample("", "ok!", raw=True))).before(asked)
    assert (found.earlier, found.answer, found.without_preamble) == (("k", "ok!"), "c u", asked)
    (drawn,) = draw_examples(Task("texts", [shown, asked], [asked], echoes), 1)
    assert drawn == shown
    with pytest.raises(TrainError, match=r"'c u' is raw: .*so no system prompt can stand before it"):
        Preamble("Be brief.").before(asked)


def echoes(completion: Completion, sample: Sample) -> float:
    return float(completion.text in sample.text)


def task(**options: object) -> Task:
    train, held_out = [EXAMPLE, Sample("3 + 3?", "6")], [ASKED]
    return Task("sums", train, held_out, echoes, shifted=[Sample("two and two?", "4")], **options)  # type: ignore[arg-type]


def test_a_task_behind_a_preamble_is_judged_as_without() -> None:
    preamble = Preamble("Be brief.", (EXAMPLE,))
    behind = preamble.before_task(task())
    # What is shown is not asked.
    assert [sample.without_preamble for sample in behind.train] == [Sample("3 + 3?", "6")]
    assert behind.held_out == [preamble.before(ASKED)]
    assert behind.shifted[0].without_preamble == Sample("two and two?", "4")
    assert behind.preamble == {"system": "Be brief.", "examples": [{"question": "1 + 1?", "answer": "2"}]}
    for answer, score in (("2 + 2", 1.0), ("Be brief.", 0.0)):
        assert behind.score(Completion(answer, ended=True, tokens=1), behind.held_out[0]) == score
    assert Preamble().before_task(behind) is behind


def test_what_stands_before_no_task() -> None:
    for asked in (ASKED, Sample("two and two?", "4")):
        with pytest.raises(TrainError, match="is a held-out prompt of task sums"):
            Preamble(None, (asked,)).before_task(task())
    behind = Preamble("Be brief.").before_task(task())
    with pytest.raises(TrainError, match="has a preamble already"):
        Preamble("Be kind.").before_task(behind)


def test_examples_are_drawn_from_the_training_split_by_seed() -> None:
    found = load_task("list-lookup", held_out=10)
    shown = draw_examples(found, 4)
    elsewhere = replace(found, name=f"elsewhere/{found.name}")
    assert shown == draw_examples(elsewhere, 4) != draw_examples(found, 4, seed=1)
    assert len({sample.text for sample in shown}) == 4
    assert all(sample in found.train for sample in shown)
    behind = Preamble(None, shown).before_task(found)
    assert len(behind.train) == len(found.train) - 4


def test_examples_need_answers() -> None:
    with pytest.raises(TrainError, match="3 worked examples of task sums were asked for, and 2 training"):
        draw_examples(task(), 3)
    with pytest.raises(TrainError, match="and 0 training prompts have an answer"):
        draw_examples(load_task("brevity", held_out=2), 1)
    hidden = Task("sums", [EXAMPLE, ASKED, Sample("p", "a", raw=True)], [ASKED], echoes)
    assert draw_examples(hidden, 1) == (EXAMPLE,), "neither what is measured on, nor what is no chat turn"


def about(reward: Reward, *answers: str) -> str | None:
    return instruction(Task("t", [Sample(f"p{i}", each) for i, each in enumerate(answers)], [], reward))


def test_the_instruction_says_what_the_answers_show() -> None:
    assert about(rewards.label, "no", "yes", "no") == (
        "Answer with one of these labels and nothing else:\nno\nyes"
    )
    rows = [{"kind": "ab"[i % 2], "who": {"name": f"n{i}"}} | ({"age": i} if i else {}) for i in range(4)]
    said = about(rewards.json_value, *map(json.dumps, rows))
    assert said == (
        "Answer with a JSON object and nothing else. Its fields (a.b is the field b of a):\n"
        '"kind": one of "a", "b"\n'
        '"who.name", such as "n0", "n1"\n'
        '"age" (not in every answer), such as 1, 2'
    )
    assert about(rewards.number, "7", "12") == "Answer with a number and nothing else."
    assert about(rewards.number, "2 + 5\n#### 7") is None
    assert about(rewards.text, "anything") is None
    assert about(rewards.label, *map(str, range(300))) is None, "too many labels to list"
    assert about(rewards.json_value, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>') is None


def test_examples_show_each_answer_before_one_is_shown_again() -> None:
    samples = [Sample(f"p{i}", "often" if i % 10 else f"rare {i}") for i in range(40)]
    found = Task("labels", samples, [], echoes)
    assert {each.answer for each in draw_examples(found, 5)} == {each.answer for each in samples}
    assert [each.answer for each in draw_examples(found, 9)].count("often") == 5
