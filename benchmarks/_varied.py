"""Training prompts of many phrasings: what a built-in task asks in one, asked in ten.

The words are those of training prompts, and no phrasing is one of the shifted prompts, which such vectors are
measured on. What is held out stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tinylora_edge.tasks import Sample, Task
from tinylora_edge.tasks._split import Draw
from tinylora_edge.tasks.generated._building import ask
from tinylora_edge.tasks.generated.words import TRAIN, plural

_LISTS = (3, 6)  # words of the shortest and the longest list; shifted ones have 5 to 7
_LOOKUPS = (
    "List: {words}. What is the last word in the list?",
    "Words: {words}. What is the last word?",
    "{words}. Which word is the last one?",
    "I wrote down {words}. Which word did I write last?",
    "Repeat only the last of these words: {words}.",
    "Given the sequence {words}, say the word that ends it.",
    "Which word stands at the end of this line? {words}",
    "She said: {words}. What was her last word?",
    "Read {words}. Which word follows all the others?",
    "From the list {words}, pick the one at the end.",
)
_ADDENDS = (2, 29)  # shifted ones are 11 to 49
_SUMS = (
    "{name} has {first} {nouns} and gets {second} more. How many {nouns} does {name} have now?",
    "{name} bought {first} {nouns} on Monday and {second} on Tuesday. How many {nouns} did {name} buy?",
    "In a box there are {first} {nouns}. {name} puts in {second} more. How many {nouns} are in the box?",
    "{name} sees {first} {nouns} on the left and {second} on the right. How many {nouns} does {name} see?",
    "{first} {nouns} are on the table, and {second} on the floor. How many {nouns} does {name} find?",
    "A shop sold {first} {nouns} to {name} and {second} to others. How many {nouns} did it sell?",
    "{name} made {first} {nouns}. Later {name} made {second}. How many {nouns} did {name} make?",
    "{name} keeps {first} {nouns} at home and {second} at work. How many {nouns} are they in all?",
    "First {name} found {first} {nouns}, then {second} more. What is the number of {nouns} now?",
    "If {name} adds {second} {nouns} to {first} {nouns}, how many {nouns} are there?",
)


def varied(task: Task, seed: int) -> Task:
    """Return a task whose training prompts, as many as it has, are asked in ten phrasings.

    Raises:
        SystemExit: no other phrasings were written for it.
    """
    if task.name not in _BUILDERS:
        raise SystemExit(f"{task.name} has one phrasing here: choose {' or '.join(_BUILDERS)}")
    build, draw = _BUILDERS[task.name], Draw(f"{task.name}/varied/{seed}")
    found: dict[str, Sample] = {}
    while len(found) < len(task.train):
        sample = build(draw)
        found.setdefault(sample.text, sample)
    return replace(task, train=tuple(found.values()))


def _lookup(draw: Draw) -> Sample:
    *others, last = draw.some(TRAIN.short, draw.between(*_LISTS))
    question = draw.one(_LOOKUPS).format(words=", ".join([*others, last]))
    return ask(question, last, others=tuple(others))


def _sum(draw: Draw) -> Sample:
    name, nouns = draw.one(TRAIN.names), plural(draw.one(TRAIN.things))
    first, second = (draw.between(*_ADDENDS) for _ in range(2))
    question = draw.one(_SUMS).format(name=name, nouns=nouns, first=first, second=second)
    return ask(question, f"{name} has {first + second} {nouns}.")


_BUILDERS: dict[str, Callable[[Draw], Sample]] = {"list-lookup": _lookup, "word-sums": _sum}
