"""The tasks that are shipped, each a file of samples beside this one, and the reward of short sentences.

Where SNIPS is from: snips.LICENSE. `brevity` and `list-lookup` were drawn from word lists for this project;
what a held-out prompt asks for is in no training prompt, and shifted ones have rarer words, other phrasings
and longer lists. Greedy held-out scores of SmolLM2-135M-Instruct (Q4_1) before any training, n = 128:
`list-lookup` .34, `brevity` .13.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .guards import own_words, repeats, without_genitive, words
from .rewards import picks_answer
from .task import Completion, Reward, Sample, Task

_LONGEST_SENTENCE = 14  # words of a short sentence


def short_sentence(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself, has 4 to 14 words and the noun asked about, and ends with a period.

    Guards: saying the noun back is not enough: two words must be the answer's own, not the question's and
    not function words; a phrase three times in a row gets 0.
    """
    return float(nearly_short_sentence(completion, sample) == 1.0)


def nearly_short_sentence(completion: Completion, sample: Sample) -> float:
    """1 for what `short_sentence` gives 1, and up to 0.5 for what comes near.

    0.05 for an answer of 24 words that ended by itself, and 0.05 more for every word less; half of it without
    a period.

    Guards: those of `short_sentence`; what the token limit cut gets 0, too.
    """
    text = completion.text.strip()
    sequence, noun = words(text), sample.data["noun"]
    named = any(without_genitive(word) in (noun, _plural(noun)) for word in sequence)
    guarded = len(sequence) >= 4 and named and len(own_words(text, sample)) >= 2
    if not (completion.ended and guarded) or repeats(text):
        return 0.0
    if text.endswith(".") and len(sequence) <= _LONGEST_SENTENCE:
        return 1.0
    near = 0.05 + 0.05 * min(9, max(0, 24 - len(sequence)))
    return near if text.endswith(".") else near / 2


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def only_intents(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples of SNIPS with the name of each call alone for an answer."""
    names = [json.loads(str(sample.answer))["name"] for sample in samples]
    answers = [json.dumps({"intent": name}) for name in names]
    return [dataclasses.replace(each, answer=text) for each, text in zip(samples, answers, strict=True)]


@dataclasses.dataclass(frozen=True)
class ShippedTask:
    """A task's file, its reward where that is not read off the answers, and other fields of its `Task`."""

    path: Path
    reward: Reward | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def finish(self, name: str, task: Task) -> Task:
        """Return what is read from the file as the task that is meant."""
        if name == "snips-intents":
            task = dataclasses.replace(
                task, train=only_intents(task.train), held_out=only_intents(task.held_out)
            )
        return dataclasses.replace(task, **self.fields)


_HERE = Path(__file__).parent
_SNIPS = _HERE / "snips.jsonl"
_BRIEF = {"max_tokens": 24, "temperature": 0.7, "shaped": nearly_short_sentence}
SHIPPED: dict[str, ShippedTask] = {
    "brevity": ShippedTask(_HERE / "brevity.jsonl", short_sentence, _BRIEF),
    "list-lookup": ShippedTask(
        _HERE / "list-lookup.jsonl", picks_answer, {"max_tokens": 16, "temperature": 0.5}
    ),
    "snips": ShippedTask(_SNIPS),
    "snips-intents": ShippedTask(_SNIPS, fields={"max_tokens": 32}),
}
"""The shipped tasks by their names."""
