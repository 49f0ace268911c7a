"""`load_task`: samples of files, splits that no duplicate straddles, and errors with file and line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from answers import completed

from tinylora_edge import TrainError, runtime
from tinylora_edge.runtime.answers import Text
from tinylora_edge.runtime.schema import Tools
from tinylora_edge.tasks import Sample, Task, files, load_task, rewards
from tinylora_edge.tasks.rewards import REWARDS

Write = Callable[..., Path]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {number}?", "answer": str(number)} for number in range(count)]


def load(path: Path, **options: Any) -> Task:
    return load_task(path, reward="max_words(99)", **options)


SPLIT = [{"prompt": "one", "split": "train"}, {"prompt": "two", "split": "held_out"}]
USER = {"role": "user", "content": "Hi"}


def test_a_line_becomes_a_sample(write: Write) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    path = write(
        {"prompt": "Once upon", "split": "train", "genre": "tale", "reward": "os:getcwd"},
        "",
        {"messages": messages, "answer": "4", "split": "held_out"},
        {"prompt": "3 + 3 =", "answer": 6, "split": "train", "raw": True},
        {"prompt": [USER], "split": "train"},
    )
    task = load(path)
    assert task.train == (
        Sample("Once upon", None, {"genre": "tale", "reward": "os:getcwd"}),
        Sample("3 + 3 =", "6", raw=True),
        Sample((USER,)),
    )
    assert task.held_out == (Sample(tuple(messages), "4", {}),)
    rendered = [sample.rendered_by(template=True) for sample in task.train]
    assert rendered == [({"role": "user", "content": "Once upon"},), "3 + 3 =", (USER,)]
    assert task.train[0].rendered_by(template=False) == "Once upon"
    assert (task.name, task.max_tokens, task.temperature) == (str(path), 64, 0.7)


def test_an_answer_that_is_json_becomes_its_text(write: Write) -> None:
    answers = [{"b": "Grüße", "a": [1, None]}, ["x", {"y": 2.5}], True, 7]
    task = load_task(write(*({"prompt": str(each), "answer": each} for each in answers)), reward="label")
    found = {sample.answer for sample in (*task.train, *task.held_out)}
    assert found == {'{"b": "Grüße", "a": [1, null]}', '["x", {"y": 2.5}]', "true", "7"}


def test_openais_form_is_prompt_and_answer(write: Write) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {**USER, "name": "Ann"}]
    turns = [*chat, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
    last = {"role": "assistant", "content": " Goodbye. ", "refusal": None}
    task = load_task(
        write(
            {"messages": [*chat, {"role": "assistant", "content": "Hello."}], "split": "train"},
            {"messages": [*turns, last], "split": "held_out"},
        )
    )
    assert task.train == (Sample((chat[0], USER), "Hello."),)
    (held_out,) = task.held_out
    assert (held_out.answer, len(held_out.prompt)) == ("Goodbye.", 4)
    assert held_out.text == "Be kind.\nHi\nHello!\nBye"


WAVE = {"type": "function", "function": {"name": "wave", "parameters": {"type": "object", "properties": {}}}}
RESULT = {"role": "tool", "tool_call_id": "wave", "content": "1"}


def called(name: str = "wave", **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": name, "type": "function", "function": function}]}


def test_calls_of_tools_are_answers_as_the_server_reads_them(write: Write, smollm2_bundle: Path) -> None:
    steps = [USER, called(hands=1), RESULT, called(), RESULT | {"content": ""}, called()]
    path = write(
        {"messages": [USER, called(hands=2)], "tools": [WAVE], "split": "train"},
        {"messages": steps, "tools": [WAVE], "split": "held_out"},
    )
    task = load_task(path)
    assert task.reward is REWARDS["json"]
    (first,), (last,) = task.train, task.held_out
    text = str(first.answer)
    (call,) = Text(tools=Tools.read([WAVE], "auto", True)).add(text.encode()).calls
    assert (call.name, json.loads(call.arguments)) == ("wave", {"hands": 2})
    for answer, worth in ((f"\n{text}", 1), (text.replace("2", "3"), 0), (text[12:-13], 1)):
        assert task.score(completed(answer), first) == worth
    with closing(runtime.load(smollm2_bundle, engine="llama", n_ctx=64)) as llm:
        prompt = llm.detokenize(llm.encode(last)[0]).decode()
    assert all(part in prompt for part in ('"name": "wave"', '"hands": 1', "<tool_response>\n1"))
    without_content = Sample.of([USER, called(), {**called(), "content": None}, RESULT])
    assert without_content.text == "Hi\n\n\n1"
    assert 0 <= files.rank(without_content) < 1


def test_csv_has_the_columns_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.CSV"
    path.write_bytes(
        "\ufeffprompt,level,answer,split,raw\r\n"
        '"Say ""hi"",\r\nin German",3,Grüß dich,train,\r\n'
        "\r\n,,,,\r\n"
        "Once upon, ,a time,held_out,TRUE\r\n".encode()
    )
    task = load_task(path, reward="label")
    assert task.train == (Sample('Say "hi",\r\nin German', "Grüß dich", {"level": "3"}),)
    assert task.held_out == (Sample("Once upon", "a time", raw=True),)


@pytest.mark.parametrize("name", ["own.jsonl", "own.txt"])
def test_a_text_without_a_prompt_is_learned_as_it_is(write: Write, name: str) -> None:
    texts = [f" c u at {number}, k?" for number in range(40)]
    lines = [f"{text}\r" for text in texts] if name == "own.txt" else [{"text": text} for text in texts]
    path = write(*lines[:7], "", *lines[7:], lines[3], name=name)
    task = load_task(path)
    samples = [*task.train, *task.held_out]
    assert {sample.answer for sample in samples} == {sample.text for sample in samples} == set(texts)
    assert {(sample.prompt, sample.raw, sample.unprompted) for sample in samples} == {("", True, True)}
    assert 5 <= len(task.held_out) <= 14
    assert (task.reward, task.max_tokens) == (rewards.text, 16)
    assert task.notes == [
        f"1 lines that repeat another, such as {path}:42 (--drop-duplicates leaves them out)",
        "41 texts without prompts: learned as they are, measured by nats a token",
    ]
    fewer = len(task.train) - (texts[3] in {sample.text for sample in task.train})
    assert len(load_task(path, drop_duplicates=True).train) == fewer
    assert load_task(path, reward="text").train == task.train
    with pytest.raises(TrainError, match=r"the reward label judges answers, but these are texts without"):
        load_task(path, reward="label")
    with pytest.raises(TrainError, match=r"none\.txt: the file is empty, expected a sample on each line"):
        load_task(write(" ", name="none.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": " "}, '"text" is blank text, expected a text to learn as it is'),
        ({"text": "a", "answer": "b"}, 'found "text" and "answer", which belongs to a "prompt"'),
        ({"prompt": "a", "answer": "b"}, "a file has prompts or texts without one, and not both"),
    ],
)
def test_a_malformed_text_is_named(write: Write, line: Any, message: str) -> None:
    path = write({"text": "one"}, line)
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:2: .*{message}"):
        load_task(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "not JSON: .*, expected one JSON object on each line"),
        ('["a"]', "a list of 1, expected a JSON object"),
        ('{"prompt": "Gr\u00fc\u00dfe"}'.encode("latin-1"), "the byte 0xfc is not UTF-8"),
        ("[" * 100_000, "not JSON: it is nested too deeply"),
        (b'{"prompt": "a", "answer": {"x": 1, "x": 2}}', "not JSON: the key 'x' is there twice"),
        (b'{"prompt": "' + b"a" * (1 << 24) + b'"}', "not JSON: it has more than 16,777,216 bytes"),
        ({}, 'found neither, expected either "prompt" or "messages", or a "text"'),
        ({"prompt": "a", "messages": []}, "found both, expected either"),
        ({"prompt": ""}, '"prompt" is blank text, expected text'),
        ({"prompt": "a", "raw": 1}, '"raw" is 1, expected true or false'),
        ({"prompt": [USER], "raw": True}, '"raw" is true, but "prompt" is messages'),
        ({"prompt": "Hi", "raw": True, "tools": [WAVE]}, "only a template tells"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1 is .* with a role of system, user"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "from no one, expected 'user'"),
        ({"messages": [{"role": "system", "content": "a"}]}, "from 'system', expected 'user'"),
        ({"messages": [USER, {"role": "assistant", "content": "Hi"}], "answer": "b"}, "found .answer., and"),
        ({"messages": [USER, {"role": "assistant", "content": "Hi", "weight": 0}]}, "message 2 is"),
        ({"messages": [USER, called("bow")], "tools": [WAVE]}, "calls 'bow', which is none of its"),
        ({"messages": [USER, {"role": "tool", "content": "1"}]}, "has the tool_call_id None"),
        ({"messages": [USER, called(hands=math.nan)], "tools": [WAVE]}, "is not a call"),
        ({"prompt": "a", "answer": " "}, '"answer" is blank text, expected what the model should say'),
        ({"prompt": "a", "split": "test"}, '"split" is \'test\', expected "train", "held_out" or "shifted"'),
        ({"prompt": "a"}, 'no "split", but other lines have one'),
        ({"prompt": "a", "facts": [{"b\udfff": 1}]}, "surrogates not allowed"),
    ],
)
def test_a_malformed_line_is_named(write: Write, line: Any, message: str) -> None:
    path = write(SPLIT[0], "", line, SPLIT[1])
    with pytest.raises(TrainError, match=rf"^{re.escape(str(path))}:3: .*{message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,answer\n", ": the file is empty, expected a sample on each line"),
        ("prompt\nHi\n", ":1: the columns are 'prompt', expected prompt and answer, and others"),
        ("prompt,answer,answer\nHi,Ho,Ha\n", ":1: the columns are .*, but none twice"),
        ('prompt,answer\n"Hi\nyou",Ho\nHi, you,Ho\n', ":4: other columns than the 2 of the header"),
        ("prompt,answer\nHi,Ho\nHi,\n", ':3: "answer" is blank text'),
        ('prompt,answer\nHi,Ho\n"Hi,Ho\n', ":3: not CSV: unexpected end of data"),
        ("prompt,answer,raw\nHi,Ho,perhaps\n", ":2: \"raw\" is the string 'perhaps', expected true or false"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(TrainError, match=rf"own\.csv{message}"):
        load_task(path)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DATA_BYTES", 1000)
    for path in (tmp_path / "long.jsonl", tmp_path / "long.csv"):
        path.write_bytes(bytes(1001))
        with pytest.raises(TrainError, match=r"long\.\w+: the file is longer than 1,000 bytes"):
            load_task(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "own.jsonl: the file is empty, expected a sample on each line"),
        ([b"\xff\xfe{\x00"], ":1: the byte 0xff is not UTF-8: save the file as UTF-8"),
        ([SPLIT[0]], "1 training and 0 held-out samples, expected at least one held-out"),
        ([SPLIT[1]], "0 training and 1 held-out samples, expected at least one training"),
    ],
)
def test_a_file_without_what_a_task_needs(write: Write, lines: list[Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load(write(*lines))


def test_a_file_that_is_not_there_lists_the_tasks() -> None:
    with pytest.raises(TrainError, match="no task and no file 'list-lokup': choose from brevity, list"):
        load_task("list-lokup")


def test_without_a_split_a_fifth_is_held_out_by_the_prompt_alone(write: Write) -> None:
    rows = prompts(600)
    one = load_task(write(*rows, name="one.jsonl"), reward="number", held_out=1000)
    assert len(one.train) + len(one.held_out) == 600
    assert 90 <= len(one.held_out) <= 150
    more = [{"prompt": f"Another {number}?", "answer": "1"} for number in range(100)]
    other = load_task(write(*more, *reversed(rows), name="two.jsonl"), reward="number", held_out=1000)
    assert {sample.text for sample in one.held_out} <= {sample.text for sample in other.held_out}
    assert {sample.text for sample in one.train} <= {sample.text for sample in other.train}


def test_a_conversation_is_the_same_whatever_the_ids_of_its_calls() -> None:
    calls = ({"id": name, "function": {"name": "f", "arguments": "{}"}} for name in ("call_1", "call_2"))
    one, two = (Sample(({"role": "assistant", "content": None, "tool_calls": [call]},)) for call in calls)
    assert files.rank(one) == files.rank(two)


@pytest.mark.parametrize("count", [2, 5, 60])
def test_a_small_file_has_both_sides_whatever_its_hashes(write: Write, count: int) -> None:
    for start in range(0, 2000, 100):
        rows = [{"prompt": f"Question {start + number}?", "answer": str(number)} for number in range(count)]
        task = load_task(write(*rows), reward="label")
        assert min(8, max(1, count // 5)) <= len(task.held_out) <= max(1, count // 3)
        assert len(task.train) + len(task.held_out) == count


@pytest.mark.parametrize("again", [{"prompt": " ONE"}, {"messages": [{"role": "user", "content": "one"}]}])
def test_a_held_out_prompt_that_is_trained_on_is_named_with_both_lines(write, again):
    message = r"1: its split is 'train', but the same prompt is 'held_out' at .*own\.jsonl:3: .*--drop-dup"
    with pytest.raises(TrainError, match=message):
        load(write(*SPLIT, {**again, "split": "held_out"}))


def test_shifted_lines_are_a_second_set_to_measure_on(write: Write) -> None:
    shifted = [{"prompt": f"Far away {number}?", "split": "shifted"} for number in range(6)]
    path = write(*SPLIT, *shifted)
    task = load(path)
    assert (task.train, task.held_out) == ((Sample("one"),), (Sample("two"),))
    assert {sample.text for sample in task.shifted} == {row["prompt"] for row in shifted}
    assert load(path, held_out=2).shifted == task.shifted[:2]


def test_arguments_replace_the_tasks_own_settings() -> None:
    task = load_task("list-lookup", reward="max_words(3)", held_out=3, max_tokens=5, temperature=1.5)
    assert (len(task.held_out), task.max_tokens, task.temperature) == (3, 5, 1.5)
    assert task.score(completed("Some clouds."), task.train[0]) == 1.0
    assert task.score(completed(f"The last word is {task.train[0].answer}."), task.train[0]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": 0}, "held_out is 0, expected a whole number of at least 1"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"reward": 5}, "reward is 5, expected a callable or text"),
        ({"reward": "text", "schema": {}}, "with the reward text no answer is sampled"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_task("list-lookup", **arguments)
