"""A user's own data: the reward that is read off its answers, and what its user should know of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answers import completed, question

from tinylora_edge import TrainError
from tinylora_edge.tasks import Sample, Task, load_task, rewards
from tinylora_edge.tasks.rewards import REWARDS

Write = Callable[..., Path]


def row(prompt: str, answer: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer}


TOPICS = ("card arrival", "card linking", "exchange rate", "lost or stolen card")
UTTERANCES = [
    row(f"{start} {what}, please?", TOPICS[number % 4])
    for number, what in enumerate(("my card", "the new card", "pounds", "a stolen wallet", "top ups"))
    for start in ("Where is", "Can you track", "How do I get", "What about")
]
CALLS = [
    row(f"Wake me at {hour} on {day}", {"name": "alarm", "arguments": {"hour": hour, "day": day}})
    for hour in range(5, 9)
    for day in ("Monday", "Tuesday", "Friday")
]
SUMS = [row(f"A crate holds {n} pears. Pears in 12 crates?", 12 * n) for n in range(3, 23)]
STORIES = [
    row(f"The {animal} {end}. How did it end?", f"The {animal} {end}, and came home late.\nSo it was.")
    for animal in ("fox", "hen", "owl", "cat", "dog")
    for end in ("met a friend", "found a river", "saw the sea")
]


def everything(task: Task) -> list[Sample]:
    return [*task.train, *task.held_out, *task.shifted]


@pytest.mark.parametrize(
    ("rows", "name", "why", "tokens"),
    [
        (UTTERANCES, "label", "read off 4 different answers, of which 'card arrival' is 40 % of all", 20),
        ([{**row, "answer": number % 2} for number, row in enumerate(SUMS)], "label", "2 different", 16),
        (CALLS, "json", "all 12 answers are JSON", 62),
        (SUMS, "number", "all 20 answers are numbers", 64),
        ([{**row, "answer": f"12 * n\n#### {row['answer']:,}"} for row in SUMS], "number", "numbers", 64),
        ([{**row, "answer": f"0{row['answer']}-55"} for row in SUMS], "text", "20 of 20", 16),
        (STORIES, "text", "longer than 64 characters or a line", 54),
        ([*CALLS, STORIES[0]], "text", "13 of 13", 62),
        ([{**row, "answer": "x" * (900 + n)} for n, row in enumerate(SUMS)], "text", "different", 512),
    ],
)
def test_the_reward_is_read_off_the_answers(write, rows, name, why, tokens):
    task = load_task(write(*rows))
    assert task.reward.__name__ == name
    assert task.notes[0].startswith(f"reward: {name}, ")
    assert why in task.notes[0]
    assert task.max_tokens == tokens
    assert (task.shaped is not None) == (name == "json")
    assert rewards.is_text(task.reward) == (name == "text")
    named = load_task(write(*rows), reward=name)
    assert (named.reward, named.shaped, named.notes) == (task.reward, task.shaped, [])
    if name != "text":
        assert [task.score(completed(str(s.answer)), s) for s in everything(task)] == [1.0] * len(rows)


CALL = question(
    'Wake me at 6 on Monday. Answer as {"name": "alarm", "arguments": {"hour": 5, "day": "Monday"}}',
    json.dumps({"name": "alarm", "arguments": {"hour": 6, "day": "Monday"}}),
)


@pytest.mark.parametrize(
    ("text", "whole", "share"),
    [
        ('{"arguments": {"day":"Monday","hour":6.0},\n "name":"alarm"}', 1, 1),
        ('```json\n{"name": "alarm", "arguments": {"hour": 6, "day": "Monday"}}\n```', 1, 1),
        ('{"name": "alarm", "arguments": {"hour": 7, "day": "Monday"}}', 0, 2 / 3),
        ('{"name": "alarm", "arguments": {}}', 0, 1 / 4),
        ('{"name": "alarm", "arguments": {"hour": 6, "day": "Monday", "week": 1}}', 0, 3 / 4),
        ("", 0, 0),
        ('{"name": "alarm", "name": "alarm"}', 0, 0),
        ('{"name": "alarm", "arguments": {"hour": 5, "day": "Monday"}}', 0, 0),  # it stands in the prompt
        (CALL.text, 0, 0),
        ('{"a":' * 900 + "1" + "}" * 900, 0, 0),
    ],
)
def test_json_is_right_as_a_whole_and_learned_by_fields(text: str, whole: float, share: float) -> None:
    task = Task("calls", [CALL], [CALL], REWARDS["json"])
    assert task.score(completed(text), CALL) == whole
    shaped = load_task("snips").shaped
    assert shaped is not None
    assert shaped(completed(text), CALL) == pytest.approx(share)
    cut = completed(text, ended=False)
    assert shaped(cut, CALL) == REWARDS["json"](cut, CALL) == 0


CALLED = '<tool_call>\n{"name": "wave", "arguments": {"hands": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ('{"on": true}', ['{"on":true}'], ['{"on": 1}', '{"on": "true"}']),
        ("[1e400]", ["[10e399]"], ["[1e999]", "[1e401]", "[Infinity]", "[9e9999999999999999999]"]),
        ("[9007199254740992]", ["[9007199254740992.0]"], ["[9007199254740993.0]"]),
        ('{"x": [1]}', ['{"x": [1.0]}'], ['{"x": [1], "x": [1]}', '{"x": NaN}', f'{{"x": {"9" * 10_000}}}']),
        ("[1]", ["```JSON \n[1]\n ```"], ["```\n" + " " * (1 << 22) + "x"]),  # read in one go
        (CALLED, [f" {CALLED}\n"], []),
        (CALLED, [f"```\n{CALLED[12:-13]}\n```"], ['[[["wave", {"hands": 2}]]]', f"So: {CALLED[12:-13]}"]),
        (CALLED[12:-13], ['{"arguments": {"hands": 2}, "name": "wave"}'], [CALLED]),
    ],
)
def test_json_is_compared_exactly(answer: str, right: list[str], wrong: list[str]) -> None:
    assert [REWARDS["json"](completed(text), question("?", answer)) for text in right] == [1] * len(right)
    assert [REWARDS["json"](completed(text), question("?", answer)) for text in wrong] == [0] * len(wrong)


@pytest.mark.parametrize(
    ("text", "ended", "score"),
    [
        ("\n lost or stolen card ", True, 1),
        ("lost or stolen card", False, 0),
        ("The topic is: lost or stolen card", True, 0),
        ("", True, 0),
    ],
)
def test_a_label_is_the_answer_and_nothing_else(text: str, ended: bool, score: float) -> None:
    sample = question("Where is my wallet?", "lost or stolen card")
    assert rewards.label(completed(text, ended=ended), sample) == score


def test_the_schema_of_labels_is_the_answers(write: Write, tmp_path: Path) -> None:
    rows = [*UTTERANCES, {"prompt": "Far away?", "answer": "a new one"}]
    task = load_task(write(*rows), held_out=1, schema="label", reward="label")
    assert task.schema == ["a new one", *TOPICS]
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}')
    for name, schema in ((write(*CALLS), path), ("snips", {"type": "object"})):
        assert load_task(name, schema=schema).schema == {"type": "object"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("label", "the schema label needs the reward label, but the reward is json: name it"),
        ("nowhere.json", "schema 'nowhere.json': No such file or directory: expected a file, or label"),
        (__file__, "not JSON"),
    ],
)
def test_a_schema_that_does_not_suit(write: Write, schema: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_task(write(*CALLS), schema=schema)


def test_what_stands_twice(write: Write) -> None:
    path = write(*UTTERANCES, UTTERANCES[0], UTTERANCES[1])
    repeated, _ = load_task(path).notes
    assert repeated == f"2 lines that repeat another, such as {path}:21 (--drop-duplicates leaves them out)"
    task = load_task(path, drop_duplicates=True)
    assert len(everything(task)) == 20
    assert task.notes[0].startswith("left out 2 lines that repeat another")


def test_what_is_measured_is_dropped_from_training(write: Write) -> None:
    sides = ["held_out", "shifted"] * 3
    measured = [{**row, "split": split} for row, split in zip(SUMS[:6], sides, strict=True)]
    path = write(*({**row, "split": "train"} for row in SUMS), *measured)
    with pytest.raises(TrainError, match=r"own\.jsonl:1: its split is 'train', but .* 'held_out' at .*:21"):
        load_task(path)
    task = load_task(path, drop_duplicates=True)
    assert (len(task.train), len(task.held_out), len(task.shifted)) == (14, 3, 3)
    assert task.notes[0] == "left out 6 lines whose prompt is measured on, too"


UNANSWERED = [{"prompt": row["prompt"]} for row in STORIES]
SAME = [{**row, "answer": "yes"} for row in SUMS]
NO_JSON = "the answer is 'The fox met a friend, and came home late.*, expected a JSON object or list"


@pytest.mark.parametrize(
    ("rows", "reward", "message"),
    [
        (UNANSWERED[:2], None, ':.: there is no "answer", and no reward: expected an answer'),
        (SAME, None, ": all 20 answers are 'yes': there is nothing to learn"),
        (STORIES, "json", f":1: {NO_JSON}"),
        (STORIES, "number", ":1: the answer is 'The .*, expected one number"),
        (UNANSWERED, "label", ':1: there is no "answer", with which the reward label compares'),
    ],
)
def test_answers_that_teach_nothing(write: Write, rows: list[Any], reward: str | None, message: str) -> None:
    with pytest.raises(TrainError, match=rf"own\.jsonl{message}"):
        load_task(write(*rows), reward=reward)
