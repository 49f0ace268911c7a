"""The shipped tasks: their prompts, their rewards, and cheap answers; and the general prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

from answers import completed

from tinylora_edge.tasks import Sample, Task, load_task
from tinylora_edge.tasks.files import rank

NAMES = "brevity", "list-lookup"


def test_the_prompts_are_those_that_were_measured(tasks: dict[str, Task]) -> None:
    """Published figures are of these very prompts."""
    for name, digest in zip(NAMES, ("4a3ed0ace71a463e", "a6b255fa1f6ea73a"), strict=True):
        sides = tasks[name].train, tasks[name].held_out, tasks[name].shifted
        assert [len(side) for side in sides] == [512, 128, 128]
        rows = sorted(sample.text for side in sides for sample in side)
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == digest


def river(task: Task) -> Sample:
    return next(sample for sample in task.held_out if sample.text.startswith("What is a river"))


def test_list_lookup(tasks: dict[str, Task]) -> None:
    task = tasks["list-lookup"]
    for sample in task.held_out:
        *others, last = re.findall(r"\w+", sample.text.partition(".")[0])[1:]
        assert (list(sample.data["others"]), sample.answer) == (others, last)
        assert task.score(completed(f'The last word in the list is "{last}."'), sample) == 1.0
        assert task.score(completed(last, ended=False), sample) == 1.0
        for wrong in ("", others[0], sample.text, ", ".join([*others, last]), f"{last} " * 9, last[:-1]):
            assert task.score(completed(wrong), sample) == 0.0


def test_brevity(tasks: dict[str, Task]) -> None:
    task = tasks["brevity"]
    sample = river(task)
    assert task.score(completed("A river is a long stream of fresh water."), sample) == 1.0
    assert task.score(completed("Rivers carry fresh water."), sample) == 1.0
    for cheap in (
        "",
        "River.",
        "A river.",
        "A river is a river.",
        "What is a river? Answer in a few words.",
        "River, river, river, river.",
        "A river is deep, deep, deep water.",
        "A river is a long stream of fresh water",
        "A long stream of fresh water.",  # whatever the question
        "Rivers go to it.",
        "A river is a long stream of fresh water that flows downhill to the sea.",
    ):
        assert task.score(completed(cheap), sample) == 0.0, cheap
    assert task.score(completed("A river is a long stream of fresh water.", ended=False), sample) == 0.0


def test_what_comes_near_brevity(tasks: dict[str, Task]) -> None:
    """The shaped reward rises towards the reward, agrees with it at 1, and pays no cheap answer."""
    task, shaped = tasks["brevity"], tasks["brevity"].shaped
    assert shaped is not None
    sample = river(task)
    sentence = "A river is a long stream of fresh water"
    steps = [
        f"{sentence} that flows from its source in the hills or mountains down the valleys to the sea.",
        f"{sentence} that flows downhill from the mountains to the sea.",
        f"{sentence}.",
    ]
    scores = [shaped(completed(text), sample) for text in steps]
    assert scores == sorted(set(scores))
    assert 0 < scores[0] < scores[1] <= 0.5
    assert scores[2] == task.score(completed(steps[2]), sample) == 1.0
    assert 0 < shaped(completed(sentence), sample) < 0.5, "without a period"
    assert shaped(completed(steps[0], ended=False), sample) == 0.0
    for cheap in ("", "River.", "A river is a river.", "River, river, river, river.", sample.text):
        assert shaped(completed(cheap), sample) == 0.0, cheap


def test_snips_holds_utterances_out_and_has_the_intents_of_its_calls() -> None:
    snips, intents = (load_task(name, held_out=200) for name in ("snips", "snips-intents"))
    names = [[json.loads(str(e.answer))["name"] for e in side] for side in (snips.train, snips.held_out)]
    assert not {rank(sample) for sample in snips.train} & {rank(sample) for sample in snips.held_out}
    assert [set(Counter(side).values()) for side in names] == [{70}, {20}]
    for one, other, name in zip(intents.held_out, snips.held_out, names[1], strict=True):
        assert (one.prompt, json.loads(str(one.answer))) == (other.prompt, {"intent": name})
    assert (len(intents.train), intents.reward) == (490, snips.reward)
