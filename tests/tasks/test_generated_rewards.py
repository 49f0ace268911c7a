"""The rewards of the generated tasks, and the cheap answers that they do not pay for."""

from __future__ import annotations

import re

from answers import said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks import Sample, Task, load_task
from tinylora_edge.tasks.generated import TASKS


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
