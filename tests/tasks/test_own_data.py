"""A user's own file: its forms, the reward that is read off its answers, and errors of one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from answers import asked, said

from tinylora_edge import TrainError, runtime
from tinylora_edge.runtime.answers import Text
from tinylora_edge.runtime.schema import Tools
from tinylora_edge.tasks import Completion, Sample, Task, files, load_task, rewards
from tinylora_edge.tasks.rewards import REWARDS, parse_reward

Write = Callable[..., Path]

TOPICS = ("card arrival", "card linking", "exchange rate", "lost or stolen card")
UTTERANCES = [
    {"prompt": f"{start} {what}, please?", "answer": TOPICS[number % 4]}
    for number, what in enumerate(
        ("my card", "the new card", "pounds to euros", "a stolen wallet", "top ups")
    )
    for start in ("Where is", "Can you track", "How do I get", "What about")
]
CALLS = [
    {
        "prompt": f"Wake me at {hour} on {day}",
        "answer": {"name": "alarm", "arguments": {"hour": hour, "day": day}},
    }
    for hour in range(5, 9)
    for day in ("Monday", "Tuesday", "Friday")
]
SUMS = [{"prompt": f"A crate holds {n} pears. Pears in 12 crates?", "answer": 12 * n} for n in range(3, 23)]
STORIES = [
    {
        "prompt": f"The {animal} {end}. How did it end?",
        "answer": f"The {animal} {end}, and came home late.\nSo it was.",
    }
    for animal in ("fox", "hen", "owl", "cat", "dog")
    for end in ("met a friend", "found a river", "saw the sea")
]


def everything(task: Task) -> list[Sample]:
    return [*task.train, *task.held_out, *task.shifted]


# Forms of a file


def test_openais_form_is_prompt_and_answer(write: Write) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "Ann"}]
    turns = [*chat, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
    last = {"role": "assistant", "content": " Goodbye. ", "weight": 1, "refusal": None}
    task = load_task(
        write(
            {"messages": [*chat, {"role": "assistant", "content": "Hello."}], "split": "train"},
            {"messages": [*turns, last], "functions": [{"name": "wave"}], "split": "held_out"},
        )
    )
    plain = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    assert task.train == (Sample(plain, "Hello."),)
    (held_out,) = task.held_out
    assert (held_out.answer, len(held_out.prompt), held_out.text) == (
        "Goodbye.",
        4,
        "Be kind.\nHi\nHello!\nBye",
    )
    assert "the name of a message is not shown to the model (2 lines)" in task.notes
    assert "functions is not shown to the model (1 line)" in task.notes


WAVE = {"type": "function", "function": {"name": "wave", "parameters": {"type": "object", "properties": {}}}}


def called(name: str = "wave", **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": name, "type": "function", "function": function}]}


def test_calls_of_tools_are_answers_as_the_server_reads_them(write: Write, smollm2_bundle: Path) -> None:
    asked, result = (
        {"role": "user", "content": "Hi"},
        {"role": "tool", "tool_call_id": "wave", "content": "1"},
    )
    path = write(
        {"messages": [asked, called(hands=2)], "tools": [WAVE], "split": "train"},
        {"messages": [asked, called(hands=1), result, called()], "tools": [WAVE], "split": "held_out"},
    )
    task = load_task(path)
    assert task.reward is REWARDS["json"]
    (first,), (last,) = task.train, task.held_out
    text = str(first.answer)
    (call,) = Text(tools=Tools.read([WAVE], "auto", True)).add(text.encode()).calls
    assert (call.name, json.loads(call.arguments)) == ("wave", {"hands": 2})
    for answer, worth in ((text, 1), (text.replace("2", "3"), 0), (text[12:-13], 0)):
        assert task.score(Completion(answer, True, 9), first) == worth
    with closing(runtime.load(smollm2_bundle, engine="llama", n_ctx=64)) as llm:
        shown = llm.detokenize(llm.encode(last)[0]).decode()
    assert all(said in shown for said in ('"name": "wave"', '"hands": 1', "<tool_response>\n1"))


def test_a_message_of_calls_needs_no_content() -> None:
    result = {"role": "tool", "tool_call_id": "wave", "content": "1"}
    sample = Sample.of([{"role": "user", "content": "Hi"}, called(), {**called(), "content": None}, result])
    assert sample.text == "Hi\n\n\n1"
    assert 0 <= files.rank(sample) < 1


def test_calls_that_are_none(write: Write) -> None:
    asked = {"role": "user", "content": "Hi"}
    for line, why in (
        ({"messages": [asked, called("bow")], "tools": [WAVE]}, "calls 'bow', which is none of its"),
        ({"messages": [asked, called()], "tools": "wave"}, "tools is no list"),
        ({"messages": [{**asked, "tool_calls": called()["tool_calls"]}]}, "expected .*TEXT"),
        ({"messages": [asked, {"role": "tool", "content": "1"}]}, "has the tool_call_id None"),
        ({"messages": [asked, called(hands=math.nan)], "tools": [WAVE]}, "is no call"),
        ({"prompt": "Hi", "raw": True, "tools": [WAVE], "answer": "x"}, "only a template tells"),
    ):
        with pytest.raises(TrainError, match=rf":1: .*{why}"):
            load_task(write(line))


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


def test_an_answer_that_is_json_becomes_its_text(write: Write) -> None:
    answers = [{"b": "Grüße", "a": [1, None]}, ["x", {"y": 2.5}], True, 7]
    task = load_task(write(*({"prompt": str(each), "answer": each} for each in answers)), reward="label")
    found = {sample.answer for sample in everything(task)}
    assert found == {'{"b": "Grüße", "a": [1, null]}', '["x", {"y": 2.5}]', "true", "7"}


@pytest.mark.parametrize("count", [2, 5, 60])
def test_a_small_file_has_both_sides_whatever_its_hashes(write: Write, count: int) -> None:
    for start in range(0, 2000, 100):
        rows = [{"prompt": f"Question {start + number}?", "answer": str(number)} for number in range(count)]
        task = load_task(write(*rows), reward="label")
        assert min(8, max(1, count // 5)) <= len(task.held_out) <= max(1, count // 3)
        assert len(task.train) + len(task.held_out) == count


# The reward that is read off


@pytest.mark.parametrize(
    ("rows", "name", "why", "tokens"),
    [
        (UTTERANCES, "label", "read off 4 different answers, of which 'card arrival' is 40 % of all", 20),
        (
            [{**row, "answer": number % 2} for number, row in enumerate(SUMS)],
            "label",
            "2 different answers",
            16,
        ),
        (CALLS, "json", "all 12 answers are JSON", 62),
        (SUMS, "number", "all 20 answers are numbers", 64),
        ([{**row, "answer": f"12 * n\n#### {row['answer']:,}"} for row in SUMS], "number", "numbers", 64),
        ([{**row, "answer": f"0{row['answer']}-55"} for row in SUMS], "text", "20 of 20", 16),
        (STORIES, "text", "longer than 64 characters or a line", 54),
        ([*CALLS, STORIES[0]], "text", "12 are JSON, but 'The fox met a friend", 62),
        ([{**row, "answer": "x" * (900 + n)} for n, row in enumerate(SUMS)], "text", "different", 512),
    ],
)
def test_the_reward_is_read_off_the_answers(
    write: Write, rows: Sequence[dict[str, Any]], name: str, why: str, tokens: int
) -> None:
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
        assert [task.score(said(str(each.answer)), each) for each in everything(task)] == [1.0] * len(rows)


def test_one_reward_on_all_lines_is_the_tasks(write: Write) -> None:
    task = load_task(write(*({**row, "reward": "json"} for row in CALLS)))
    assert (task.reward, task.shaped) == (REWARDS["json"], load_task("snips").shaped)
    short = load_task(write(*({**row, "answer": "7", "reward": "max_words(12)"} for row in CALLS)))
    assert (short.reward.__name__, short.shaped, short.max_tokens) == ("max_words(12)", None, 64)


def test_free_text_has_no_reward_for_a_completion(write: Write) -> None:
    task = load_task(write(*STORIES))
    assert task.reward is parse_reward("text") is rewards.text
    with pytest.raises(TrainError, match=r"text has no reward for a completion: .*learned by SFT"):
        task.score(said("The fox slept."), task.train[0])


CALL = asked(
    'Wake me at 6 on Monday. Answer as {"name": "alarm", "arguments": {"hour": 5, "day": "Monday"}}',
    json.dumps({"name": "alarm", "arguments": {"hour": 6, "day": "Monday"}}),
)


@pytest.mark.parametrize(
    ("text", "whole", "share"),
    [
        ('{"arguments": {"day":"Monday","hour":6.0},\n "name":"alarm"}', 1, 1),
        ('```json\n{"name": "alarm", "arguments": {"hour": 6, "day": "Monday"}}\n```', 1, 1),
        ('{"name": "alarm", "arguments": {"hour": 7, "day": "Monday"}}', 0, 2 / 3),
        ('{"name": "alarm", "arguments": {"hour": "6", "day": "Monday"}}', 0, 2 / 3),
        ('{"name": "alarm", "arguments": {}}', 0, 1 / 4),
        ('{"name": "alarm", "arguments": {"hour": 6, "day": "Monday", "week": 1}}', 0, 3 / 4),
        ("{}", 0, 0),
        ("6", 0, 0),
        ("", 0, 0),
        ('{"name": "alarm", "name": "alarm"}', 0, 0),
        ('{"name": "alarm", "arguments": {"hour": 5, "day": "Monday"}}', 0, 0),  # it stands in the prompt
        (CALL.text, 0, 0),
        ('{"name": "alarm"} {"name": "alarm"}', 0, 0),
        ('{"a":' * 900 + "1" + "}" * 900, 0, 0),
    ],
)
def test_json_is_right_as_a_whole_and_learned_by_fields(text: str, whole: float, share: float) -> None:
    task = Task("calls", [CALL], [CALL], REWARDS["json"])
    assert task.score(said(text), CALL) == whole
    shaped = load_task("snips").shaped
    assert shaped is not None
    assert shaped(said(text), CALL) == pytest.approx(share)
    assert shaped(said(text, ended=False), CALL) == REWARDS["json"](said(text, ended=False), CALL) == 0


CALLED = '<tool_call>\n{"name": "wave", "arguments": {"hands": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ('{"on": true}', ['{"on":true}'], ['{"on": 1}', '{"on": "true"}']),
        ("{ }", ["{}"], ["[]", "", "0"]),
        ("[1e400]", ["[10e399]"], ["[1e999]", "[1e401]", "[Infinity]", "[9e9999999999999999999]"]),
        ("[0.1]", ["[0.10]", "[1e-1]"], ["[0.10000000000000000001]", f"[0.1{99 * '0'}]"]),
        ("[9007199254740992]", ["[9007199254740992.0]"], ["[9007199254740993.0]"]),
        ('{"x": [1]}', ['{"x": [1.0]}'], ['{"x": [1], "x": [1]}', '{"x": NaN}', f'{{"x": {"9" * 10_000}}}']),
        (CALLED, [CALLED], ['{"<tool_call>": [["wave", {"hands": 2}]]}', '[[["wave", {"hands": 2}]]]']),
    ],
)
def test_json_is_compared_exactly(answer: str, right: list[str], wrong: list[str]) -> None:
    assert [REWARDS["json"](said(text), asked("?", answer)) for text in right] == [1] * len(right)
    assert [REWARDS["json"](said(text), asked("?", answer)) for text in wrong] == [0] * len(wrong)


@pytest.mark.parametrize(
    ("text", "ended", "score"),
    [
        ("\n lost or stolen card ", True, 1),
        ("lost or stolen card", False, 0),
        ("lost or stolen card.", True, 0),
        ("The topic is: lost or stolen card", True, 0),
        ("", True, 0),
    ],
)
def test_a_label_is_the_answer_and_nothing_else(text: str, ended: bool, score: float) -> None:
    assert (
        rewards.label(said(text, ended=ended), asked("Where is my wallet?", "lost or stolen card")) == score
    )


# What answers are held to


def test_the_schema_of_labels_is_the_answers(write: Write, tmp_path: Path) -> None:
    rows = [*UTTERANCES, {"prompt": "Far away?", "answer": "a new one"}]
    assert load_task(write(*rows), held_out=1, train=2, schema="label", reward="label").schema == [
        "a new one",
        *TOPICS,
    ]
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}')
    assert load_task(write(*CALLS), schema=path).schema == {"type": "object"} == load_task(
        "snips", schema={"type": "object"}
    ).schema  # fmt: skip


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


def test_a_thousand_labels_are_the_most(write: Write) -> None:
    rows = [{"prompt": f"Item {number}", "answer": f"shelf {number // 2}"} for number in range(2002)]
    with pytest.raises(TrainError, match="1,001 different answers, expected 1,000 labels at most"):
        load_task(write(*rows), schema="label")


# What its user should know


def test_what_stands_twice_is_told(write: Write) -> None:
    again = {"prompt": UTTERANCES[2]["prompt"].upper(), "answer": "card linking"}
    path = write(*UTTERANCES, UTTERANCES[0], UTTERANCES[1], again)
    repeated, differing, _ = load_task(path).notes
    assert (
        repeated
        == f"2 lines with prompt and answer of another, such as {path}:21 (--drop-duplicates leaves them out)"
    )
    assert differing == (
        f"1 prompt has different answers, such as 'card arrival' at {path}:3 and 'card linking' at {path}:23"
    )
    task = load_task(path, drop_duplicates=True)
    assert len(everything(task)) == 21
    assert task.notes[0].startswith("left out 2 lines with prompt and answer of another")


def test_what_is_measured_is_dropped_from_training(write: Write) -> None:
    measured = [
        {**row, "split": split} for row, split in zip(SUMS[:6], ["held_out", "shifted"] * 3, strict=True)
    ]
    path = write(*({**row, "split": "train"} for row in SUMS), *measured)
    with pytest.raises(TrainError, match=r"own\.jsonl:1: its split is 'train', but .* 'held_out' at .*:21"):
        load_task(path)
    task = load_task(path, drop_duplicates=True)
    assert (len(task.train), len(task.held_out), len(task.shifted)) == (14, 3, 3)
    assert task.notes[0] == "left out 6 lines whose prompt is measured on, too"


def test_labels_most_of_which_are_json_are_told(write: Write) -> None:
    rows = [{"prompt": f"{n}?", "answer": '{"x": NaN}' if n % 10 == 0 else '{"x": 1}'} for n in range(60)]
    assert """; 54 are JSON, but '{"x": NaN}' is not""" in load_task(write(*rows)).notes[0]


def test_labels_that_are_never_trained_on_are_told(write: Write) -> None:
    rows = [{**row, "split": "held_out" if row["answer"] == TOPICS[1] else "train"} for row in UTTERANCES]
    assert (
        load_task(write(*rows)).notes[-1] == "1 of these answers are never trained on, such as 'card linking'"
    )


# What is wrong with it

GREETING = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"prompt": "a"}, {"prompt": "b"}],
            ':.: there is no "answer", and no reward: expected an answer on every',
        ),
        ([{**row, "answer": "yes"} for row in SUMS], ": all 20 answers are 'yes': there is nothing to learn"),
        ([{"prompt": "a", "answer": "\n"}], ':1: "answer" is blank text, expected what the model should say'),
        ([b"\xff\xfe{\x00"], ":1: the file is in UTF-16: save it as UTF-8"),
        (["[", '{"prompt": "a"}', "]"], ":1: not JSON: .*, expected one JSON object a line"),
        ([SUMS[0], b'{"prompt": "NaN", "answer": {"x": NaN}}'], ":2: not JSON: NaN is no JSON"),
        ([SUMS[0], b'{"prompt": "a", "x": -Infinity}'], ":2: not JSON: -Infinity is no JSON"),
        ([b'{"prompt": "a", "answer": 1e999}'], ":1: not JSON: the number 1e999 is too large"),
        ([b'{"prompt": "a", "answer": {"x": 1, "x": 2}}'], ":1: not JSON: the key 'x' is there twice"),
        ([b'{"prompt": "' + b"a" * (1 << 24) + b'"}'], ":1: the line is longer than 16,777,216 bytes"),
        ([SUMS[0]], ": it has 0 training and 1 held-out samples"),
        (
            [{"messages": [*GREETING, {"role": "assistant", "content": "Hi"}], "answer": "b"}],
            ":1: found .answer., and",
        ),
        (
            [{"messages": [*GREETING, {"role": "assistant", "content": "Hi", "weight": 0}]}],
            ":1: the last message has the weight 0, but it is what is learned",
        ),
        (
            [{"messages": [*GREETING, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}],
            r":1: messages\[1\].tool_calls\[0\] is no call",
        ),
        (
            [{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            ":1: the message to be answered is from 'system', expected 'user'",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(write: Write, lines: list[Any], message: str) -> None:
    with pytest.raises(TrainError, match=rf"own\.jsonl{message}") as caught:
        load_task(write(*lines))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("json", "the answer is 'The fox met a friend, and came home late.*, expected a JSON object or list"),
        ("number", "the answer is 'The .*, expected one number"),
        ("label", 'there is no "answer", with which the reward label compares'),
    ],
)
def test_a_reward_that_the_answers_do_not_suit(write: Write, reward: str, message: str) -> None:
    rows = [{"prompt": row["prompt"]} for row in STORIES] if reward == "label" else STORIES
    with pytest.raises(TrainError, match=rf"own\.jsonl:1: {message}"):
        load_task(write(*rows), reward=reward)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the file is empty, expected rows under a header with prompt and answer"),
        ("prompt\nHi\n", ":1: one column, 'prompt', expected prompt and answer, with a comma between"),
        ("prompt;answer\nHi;Ho\n", ":1: one column, 'prompt;answer', expected"),
        ("prompt,answer,answer\nHi,Ho,Ha\n", ":1: the columns are .*, but none twice"),
        ('prompt,answer\n"Hi\nyou",Ho\nHi, you,Ho\n', ":4: 3 columns, expected 2 as in the header"),
        ("prompt,answer\nHi,Ho\nHi,\n", ':3: "answer" is blank text'),
        ("prompt,answer\n ,Ho\n", ':2: "prompt" is blank text'),
        ('prompt,answer\nHi,Ho\n"Hi,Ho\n', ":3: not CSV: unexpected end of data"),
        ("prompt,answer,raw\nHi,Ho,perhaps\n", ":2: \"raw\" is the string 'perhaps', expected true or false"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(TrainError, match=rf"own\.csv{message}"):
        load_task(path)


def test_a_file_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "zeros.jsonl", tmp_path / "zeros.csv"):
        path.symlink_to("/dev/zero")
        with pytest.raises(TrainError, match=r"zeros\.\w+:1: the line is longer than 16,777,216 bytes"):
            load_task(path)
    (tmp_path / "blank.jsonl").write_bytes(b"\n" * 2000)
    monkeypatch.setattr(files, "DATA_BYTES", 1000)
    with pytest.raises(TrainError, match=r"blank\.jsonl:1001: the file is longer than 1,000 bytes"):
        load_task(tmp_path / "blank.jsonl")


def test_a_csv_in_latin_1_is_refused_with_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes("prompt,answer\nHi,Grüße\n".encode("latin-1"))
    with pytest.raises(
        TrainError, match=r"own\.csv:2: byte 6 of the line is 0xfc, which is no UTF-8: save it as"
    ):
        load_task(path)
