"""`load_task`: samples of JSONL files, splits that no duplicate straddles, and errors with file and line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answers import said

from tinylora_edge import TrainError
from tinylora_edge.tasks import Sample, load_task

Write = Callable[..., Path]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {number}?", "answer": str(number)} for number in range(count)]


SPLIT = [{"prompt": "one", "split": "train"}, {"prompt": "two", "split": "held_out"}]


# What a line becomes


def test_a_line_becomes_a_sample(write: Write) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    path = write(
        {"prompt": "Once upon", "split": "train", "genre": "tale", "level": 3},
        "",
        {"messages": messages, "answer": "4", "split": "held_out"},
        {"prompt": "3 + 3 =", "answer": 6, "split": "train"},
    )
    task = load_task(path, reward="max_words(99)")
    assert task.train == (
        Sample("Once upon", None, {"genre": "tale", "level": 3}),
        Sample("3 + 3 =", "6", {}),
    )
    assert task.held_out == (Sample(tuple(messages), "4", {}),)
    assert (task.name, task.max_tokens, task.temperature) == (str(path), 64, 0.7)
    assert task.score(said("water"), task.train[0]) == 1.0


def test_a_prompt_may_be_messages_and_text_may_be_raw(write: Write) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    path = write(
        {"prompt": messages, "split": "train"},
        {"prompt": "Once upon", "raw": True, "split": "train"},
        {"prompt": "3 + 3 =", "split": "held_out", "raw": False},
    )
    task = load_task(path, reward="max_words(99)")
    assert task.train == (Sample(tuple(messages)), Sample("Once upon", raw=True))
    assert task.held_out == (Sample("3 + 3 ="),)
    rendered = [sample.rendered_by(template=True) for sample in (*task.train, *task.held_out)]
    assert rendered == [tuple(messages), "Once upon", ({"role": "user", "content": "3 + 3 ="},)]
    assert task.held_out[0].rendered_by(template=False) == "3 + 3 ="


@pytest.mark.parametrize(("number", "text"), [("1e-05", "0.00001"), ("1e22", "1" + 22 * "0")])
def test_a_number_is_an_answer_without_an_exponent(write: Write, number: str, text: str) -> None:
    line = f'{{"prompt": "How much?", "answer": {number}, "split": "train"}}'
    task = load_task(write(line, {**SPLIT[1], "answer": 2}), reward="number")
    assert task.train[0].answer == text
    assert task.score(said(f"It is {text}."), task.train[0]) == 1.0


# Malformed lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "not JSON: .*, expected one JSON object a line"),
        ('["a"]', "a list of 1, expected a JSON object"),
        (
            '{"prompt": "Gr\u00fc\u00dfe"}'.encode("latin-1"),
            "byte 15 of the line is 0xfc, which is no UTF-8: save",
        ),
        ("[" * 100_000, "not JSON: it is nested too deeply"),
        ({}, 'found neither, expected either "prompt" or "messages"'),
        ({"prompt": "a", "messages": []}, "found both, expected either"),
        ({"prompt": ""}, '"prompt" is blank text, expected text'),
        ({"prompt": ["a"]}, 'message 1 is "a", expected'),
        ({"prompt": "a", "raw": 1}, '"raw" is 1, expected true or false'),
        (
            {"prompt": [{"role": "user", "content": "a"}], "raw": True},
            '"raw" is true, but "prompt" is messages, which a template renders',
        ),
        ({"messages": []}, '"messages" is a list of 0, expected a list of messages'),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1 is .* with a role of system, user"),
        ({"messages": [{"role": "user", "content": ""}]}, 'message 1 is .*"content": TEXT'),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            "the message to be answered is from no one, expected 'user'",
        ),
        ({"prompt": "a", "answer": " "}, '"answer" is blank text, expected what the model should say'),
        ({"prompt": "a", "split": "test"}, '"split" is \'test\', expected "train", "held_out" or "shifted"'),
        ({"prompt": "a"}, 'no "split", but other lines have one'),
        ({"prompt": "a", "facts": [{"b\udfff": 1}]}, "surrogates not allowed"),
    ],
)
def test_a_malformed_line_is_named(write: Write, line: Any, message: str) -> None:
    path = write(SPLIT[0], "", line, SPLIT[1])
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:3: .*{message}"):
        load_task(path, reward="max_words(99)")


@pytest.mark.parametrize(
    "again",
    [{"prompt": " ONE"}, {"messages": [{"role": "user", "content": "one"}]}],
    ids=["text", "messages"],
)
def test_a_held_out_prompt_that_is_trained_on_is_named_with_both_lines(
    write: Write, again: dict[str, Any]
) -> None:
    path = write(SPLIT[0], SPLIT[1], {**again, "split": "held_out"})
    with pytest.raises(
        TrainError,
        match=r"1: its split is 'train', but the same prompt is 'held_out' at .*own\.jsonl:3: .*--drop-dup",
    ):
        load_task(path, reward="max_words(99)")


def test_shifted_lines_are_a_second_set_to_measure_on(write: Write) -> None:
    shifted = [{"prompt": f"Far away {number}?", "split": "shifted"} for number in range(6)]
    path = write(*SPLIT, *shifted)
    task = load_task(path, reward="max_words(99)")
    assert (task.train, task.held_out) == ((Sample("one"),), (Sample("two"),))
    assert {sample.text for sample in task.shifted} == {row["prompt"] for row in shifted}
    assert load_task(path, reward="max_words(99)", held_out=2, seed=1).shifted == task.shifted[:2]
    assert load_task(write(*SPLIT), reward="max_words(99)").shifted == ()
    assert load_task(write(*prompts(40)), reward="max_words(99)").shifted == ()


# Files without what a task needs


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainError, match=r"empty\.jsonl: the file is empty, expected one JSON object a line"):
        load_task(path, reward="max_words(99)")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "1 training and 0 held-out samples, expected at least one held-out"),
        ("held_out", "0 training and 1 held-out samples, expected at least one training"),
    ],
)
def test_a_side_without_samples(write: Write, split: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_task(write({"prompt": "a", "split": split}), reward="max_words(99)")


def test_a_file_that_is_not_there_lists_the_tasks(tmp_path: Path) -> None:
    with pytest.raises(
        TrainError,
        match="no task and no file 'list-lokup': choose from brevity, gsm8k, list-lookup",
    ):
        load_task("list-lokup")


# Rewards of files


def test_each_line_may_have_its_own_reward(write: Write) -> None:
    path = write(
        {"prompt": "Say it short.", "split": "train", "reward": "max_words(3)"},
        {"prompt": "2 + 2?", "answer": "4", "split": "train", "reward": "number"},
        {"prompt": "Whisper.", "split": "held_out", "reward": "regex('^[a-z ]+$')"},
    )
    task = load_task(path)
    first, second, held = *task.train, *task.held_out
    assert [task.score(said(text), first) for text in ("Fine words.", "Far too many words here.")] == [
        1.0,
        0.0,
    ]
    assert [task.score(said(text), second) for text in ("4", "Fine words.")] == [1.0, 0.0]
    assert [task.score(said(text), held) for text in ("quiet words", "Fine words")] == [1.0, 0.0]
    assert load_task(path, reward="max_words(99)").score(said("Far too many words here."), first) == 1.0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nonsense", "there is no reward 'nonsense'"),
        ("os:getcwd", "is code"),
        (5, 'no "reward"'),
        ("max_words(", "reward"),
    ],
)
def test_a_wrong_reward_on_a_line_is_named(write: Write, reward: object, message: str) -> None:
    path = write({**SPLIT[0], "reward": "max_words(99)"}, {**SPLIT[1], "reward": reward})
    with pytest.raises(TrainError, match=rf"own\.jsonl:2: .*{message}"):
        load_task(path)


# The split


def test_without_a_split_a_fifth_is_held_out(write: Write) -> None:
    task = load_task(write(*prompts(1000)), reward="number", held_out=1000)
    assert len(task.train) + len(task.held_out) == 1000
    assert 160 <= len(task.held_out) <= 240


def test_the_split_depends_on_the_prompt_alone(write: Write) -> None:
    rows = prompts(300)
    one = load_task(write(*rows, name="one.jsonl"), reward="number", held_out=1000)
    more = [{"prompt": f"Another {number}?", "answer": "1"} for number in range(100)]
    other = load_task(write(*more, *reversed(rows), name="two.jsonl"), reward="number", seed=5, held_out=1000)
    assert {sample.text for sample in one.held_out} <= {sample.text for sample in other.held_out}
    assert {sample.text for sample in one.train} <= {sample.text for sample in other.train}


def test_the_seed_chooses_among_the_training_samples(write: Write) -> None:
    path = write(*prompts(300))
    everything = load_task(path, reward="number").train
    first, again, other = (load_task(path, reward="number", train=20, seed=seed).train for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 20
    positions = [everything.index(sample) for sample in first]
    assert positions == sorted(positions)
    assert load_task(path, reward="number", train=10_000).train == everything


# What is there by name


def test_arguments_replace_the_tasks_own_settings() -> None:
    task = load_task("list-lookup", reward="max_words(3)", train=7, held_out=3, max_tokens=5, temperature=1.5)
    assert (len(task.train), len(task.held_out), task.max_tokens, task.temperature) == (7, 3, 5, 1.5)
    assert task.score(said("Some clouds."), task.train[0]) == 1.0
    assert task.score(said(f"The last word is {task.train[0].answer}."), task.train[0]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": 0}, "held_out is 0, expected a whole number of at least 1"),
        ({"train": True}, "train is True"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"reward": 5}, "reward is 5, expected a callable or text"),
        ({"reward": "nonsense"}, "there is no reward 'nonsense'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_task("list-lookup", **arguments)
