"""The rewards of the generated tasks, and the cheap answers that they do not pay for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from answers import said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks import Sample, Task, load_task
from tinylora_edge.tasks.generated import TASKS
from tinylora_edge.tasks.generated.house_style import CLOSING, in_house_style
from tinylora_edge.tasks.rewards import REWARDS


def held_out_sample(tasks: dict[str, Task], name: str, text: str) -> Sample:
    return next(sample for sample in tasks[name].held_out if re.search(text, sample.text))


def test_list_lookup(tasks: dict[str, Task]) -> None:
    task = tasks["list-lookup"]
    for sample in task.held_out:
        shown = re.fullmatch(
            r"List: (\w+), (\w+), (\w+), (\w+)\. What is the last word in the list\?", sample.text
        )
        assert shown is not None
        *others, last = shown.groups()
        assert (list(sample.data["others"]), sample.answer) == (others, last)
        assert task.score(said(f'The last word in the list is "{last}."'), sample) == 1.0
        assert task.score(said(last, ended=False), sample) == 1.0
        for wrong in ("", others[0], sample.text, ", ".join([*others, last]), f"{last} " * 9, last[:-1]):
            assert task.score(said(wrong), sample) == 0.0


def test_brevity(tasks: dict[str, Task]) -> None:
    task = tasks["brevity"]
    sample = held_out_sample(tasks, "brevity", "^What is a river")
    assert task.score(said("A river is a long stream of fresh water."), sample) == 1.0
    assert task.score(said("Rivers carry fresh water."), sample) == 1.0
    for cheap in (
        "",
        "River.",
        "A river.",
        "A river is a river.",
        "What is a river? Answer in a few words.",
        "River, river, river, river.",
        "A river is deep, deep, deep water.",
        "A river is a long stream of fresh water",
        "A long stream of fresh water.",  # whatever was asked
        "Rivers go to it.",
        "A river is a long stream of fresh water that flows downhill to the sea.",
    ):
        assert task.score(said(cheap), sample) == 0.0, cheap
    assert task.score(said("A river is a long stream of fresh water.", ended=False), sample) == 0.0


def test_what_comes_near_brevity(tasks: dict[str, Task]) -> None:
    """The shaped reward rises towards the reward, agrees with it at 1, and pays no cheap answer."""
    task, shaped = tasks["brevity"], tasks["brevity"].shaped
    assert shaped is not None
    sample = held_out_sample(tasks, "brevity", "^What is a river")
    sentence = "A river is a long stream of fresh water"
    steps = [
        f"{sentence} that flows from its source in the hills or mountains down the valleys to the sea.",
        f"{sentence} that flows downhill from the mountains to the sea.",
        f"{sentence}.",
    ]
    scores = [shaped(said(text), sample) for text in steps]
    assert scores == sorted(set(scores))
    assert 0 < scores[0] < scores[1] <= 0.5
    assert scores[2] == task.score(said(steps[2]), sample) == 1.0
    assert 0 < shaped(said(sentence), sample) < 0.5, "without a period"
    assert shaped(said(steps[0], ended=False), sample) == 0.0
    for cheap in ("", "River.", "A river is a river.", "River, river, river, river.", sample.text):
        assert shaped(said(cheap), sample) == 0.0, cheap


def test_plain_brevity_can_be_hacked_and_brevity_cannot(tasks: dict[str, Task]) -> None:
    sample = tasks["brevity"].held_out[0]
    for hack in ("", "Pig.", "A pig is a pig, a pig, a pig."):
        assert tasks["plain-brevity"].score(said(hack), sample) == 1.0
        assert tasks["brevity"].score(said(hack), sample) == 0.0
    assert tasks["plain-brevity"].score(said("word " * 13), sample) == 0.0
    assert tasks["plain-brevity"].score(said("Pig", ended=False), sample) == 0.0


def test_word_sums(tasks: dict[str, Task]) -> None:
    task = tasks["word-sums"]
    form = re.compile(r"(\w+) has (\d) (\w+) and gets (\d) more\. How many \3 does \1 have now\?")
    for sample in task.held_out:
        match = form.fullmatch(sample.text)
        assert match is not None
        name, first, things, second = match[1], int(match[2]), match[3], int(match[4])
        total = first + second
        assert 2 <= min(first, second) <= max(first, second) <= 9
        assert task.score(said(sample.answer or ""), sample) == 1.0
        assert (
            task.score(said(f"{name} has {first} + {second} = {total} {things}.\n", ended=False), sample)
            == 1.0
        )
        for wrong in (
            "",
            sample.text,
            f"{total + 1}",
            f"{total} or {total + 1}",
            " ".join(str(guess) for guess in range(total + 1)),  # counting until the limit cuts
            f"{total - 1}, {total}",
        ):
            assert task.score(said(wrong), sample) == 0.0, wrong


FACTS = "- A hamster is small and furry.\n- It eats seeds.\n- Many children keep one."


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("json", '{"name": "hamster", "color": "brown"}', 1.0),
        ("json", '```json\n{"name": "Hamster", "color": "brown"}\n```', 1.0),
        ("json", '{"name": "hamster", "color": "brown"}\nThis JSON object', 0.5),
        ("json", 'Here it is: {"name": "hamster", "color": "brown"}', 0.0),
        ("json", '{"name": "John", "color": "brown"}', 0.0),
        ("json", '{"name": "hamster", "color": "hamster"}', 0.0),
        ("json", '{"name": "hamster", "color": "brown", "age": 1}', 0.0),
        ("bullets", FACTS, 1.0),
        ("bullets", FACTS.replace("- ", "* "), 0.5),
        ("bullets", "1. A hamster is small and furry.\n2. It eats seeds.\n3. Many keep one.", 0.5),
        ("bullets", FACTS + "\n- It sleeps by day.", 0.0),
        ("bullets", "Facts:\n" + FACTS, 0.0),
        ("bullets", "- Seeds.\n- Wheels.\n- Sleep.", 0.0),
        ("capitals", "HAMSTER! PLEASE KNOCK SOFTLY.", 1.0),
        ("capitals", "HAMSTER! PLEASE KNOCK softly.", 0.5),
        ("capitals", "A HAMSTER, ALL IN CAPITAL LETTERS.", 0.0),  # an echo
        ("capitals", "Hamster! Please knock softly.", 0.0),
        ("prefix", "Answer: A hamster is a small furry pet.", 1.0),
        ("prefix", "Answer: A hamster is a small furry pet.\nIt eats seeds.", 0.5),
        ("prefix", "Sure. Answer: A hamster is a small furry pet.", 0.5),
        ("prefix", "Answer: Answer: a hamster is a small furry pet.", 0.0),
        ("sentence", "A hamster is a small furry pet.", 1.0),
        ("sentence", "A hamster is a small furry pet that many children keep in their rooms.", 0.5),
        ("sentence", "A hamster is a small furry pet. It eats seeds.", 0.0),
        ("sentence", "A hamster is a hamster.", 0.0),
    ],
)
def test_formats(tasks: dict[str, Task], form: str, text: str, expected: float) -> None:
    sample = next(
        sample
        for sample in load_task("formats", held_out=500).held_out
        if sample.data["format"] == form and sample.data["noun"] == "hamster"
    )
    assert tasks["formats"].score(said(text), sample) == expected
    cut = {1.0: 0.5, 0.5: 0.5, 0.0: 0.0}[expected] if form != "sentence" else 0.0
    assert tasks["formats"].score(said(text, ended=False), sample) == cut


# House style: the three rules, and the facts without which none of them counts

NOTE = "The belt weighs 12 kilograms. It came on May 3, 2026."
RIGHT = "The belt weighs 12 kg. It came on 2026-05-03."
FACTS_OF_NOTE = (("12 kg", "12 kilograms"), ("2026-05-03", "May 3, 2026"))
BELT = Sample("", f"{RIGHT}\n{CLOSING}", {"note": NOTE, "facts": FACTS_OF_NOTE})


@pytest.mark.parametrize("name", ["house-style", "tool-calls"])
def test_the_answers_of_samples_are_right_and_their_prompts_are_not(
    tasks: dict[str, Task], name: str
) -> None:
    task = tasks[name]
    for sample in (*task.train[:64], *task.held_out[:64], *task.shifted[:64]):
        assert task.score(said(sample.answer or ""), sample) == 1.0
        assert task.score(said(sample.answer or "", ended=False), sample) == 0.0
        assert task.score(said(sample.text), sample) == 0.0
        assert task.score(said(sample.data.get("note", "")), sample) == 0.0


def test_in_house_style() -> None:
    for text in (
        f"{RIGHT}\n{CLOSING}",
        f"{RIGHT} {CLOSING}\n",
        f"The belt weighs 12 kg, and it came on 2026-05-03.\n\n{CLOSING}",
    ):
        assert in_house_style(said(text), BELT) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        RIGHT,
        f"{NOTE} {CLOSING}",
        f"The belt weighs 12 kg. It came on May 3, 2026. {CLOSING}",
        f"The belt weighs 12kg. It came on 2026-05-03. {CLOSING}",
        f"The belt weighs 13 kg. It came on 2026-05-03. {CLOSING}",
        f"The belt weighs 12 kg. It came on 2026-5-3. {CLOSING}",
        f"The belt weighs 12 kg (12 kg). It came on 2026-05-03. {CLOSING}",
        f"The belt weighs fact0. It came on fact1. {CLOSING}",
        f"The boot weighs 12 kg. It came on 2026-05-03. {CLOSING}",
        f"12 kg, 2026-05-03. {CLOSING}",
        f"{NOTE} {RIGHT} {CLOSING}",
        f"{RIGHT} It is heavy. {CLOSING}",
        f"{RIGHT} {CLOSING} At the end.",
        f"{RIGHT} It is it, and it is it, and it is it. {CLOSING}",
        f"Here is the note: {RIGHT} {CLOSING}",
    ],
)
def test_not_in_house_style(text: str) -> None:
    assert in_house_style(said(text), BELT) == 0.0


# Tool calls

CALL = {"tool": "find", "arguments": {"item": "boot"}}


def call(function: Any, **arguments: Any) -> str:
    return json.dumps({"tool": function, "arguments": arguments})


def test_every_prompt_offers_four_functions_and_asks_for_one(tasks: dict[str, Task]) -> None:
    for sample in (*tasks["tool-calls"].train, *tasks["tool-calls"].shifted):
        offer, wanted = sample.data["offer"], json.loads(str(sample.answer))
        assert len(offer) == 4
        assert all(f'"{function}"' in sample.text for function in offer)
        assert set(wanted["arguments"]) == set(offer[wanted["tool"]])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (call("find", item="boot"), 1.0),
        ('{"arguments":{"item":"boot"},"tool":"find"}', 1.0),
        (f"```json\n{json.dumps(CALL, indent=2)}\n```", 1.0),
        (call("sell", item="boot"), 0.0),
        (call("find", item="Boot"), 0.0),
        (call("find", name="boot"), 0.0),
        (call("find", item="boot", name="boot"), 0.0),
        (call("find", item=["boot"]), 0.0),
        (call("find", item="boot") + call("sell", item="boot"), 0.0),
        (call("find", item="boot") + "\nThe JSON object is:", 0.0),
        ('{"tool": "find", "arguments": {"item": "boot"}, "x": 1}', 0.0),
        ('{"tool": "find" or "sell", "arguments": {"item": string}}', 0.0),
        ("", 0.0),
    ],
)
def test_tool_calls(text: str, score: float) -> None:
    assert REWARDS["json"](said(text), Sample("", json.dumps(CALL))) == score


# All of them

PIECES = ["pig", "oven", "a", "is", "7", ".", "-", ",", "\n", '"', "- ", "Answer:", "{", "}", '"name"', "PIG"]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join)


@given(ANSWERS, st.booleans(), st.sampled_from(list(TASKS)), st.integers(0, 127))
def test_any_answer_gets_a_score_between_0_and_1(text: str, ended: bool, name: str, index: int) -> None:
    task = load_task(name, train=1)
    sample = task.held_out[index]
    assert 0.0 <= task.score(said(text, ended=ended), sample) <= 1.0
    if name != "plain-brevity":
        assert task.score(said("", ended=ended), sample) == 0.0
        assert task.score(said(sample.text, ended=ended), sample) == 0.0
