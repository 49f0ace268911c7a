"""Rewards: the built-in ones, each guarded against the cheap answers that it invites.

A reward takes a `Completion` and its `Sample` and returns 0.0 or 1.0. What is trained on a reward finds its
holes: the plain "ends within 12 words" was won in part by saying the noun back. So each docstring names its
guards, and the tests try exactly those answers. Guards judge form, not truth: no reward here knows whether a
river is made of water.

`parse_reward` finds one by its name, as the command line and files of samples have it:

    label                       a reward
    max_words(12)               one with a number
    regex("^Date: ")            one with a pattern
    my_rewards:politeness       a Python callable of yours, module:function: sums, products, anything else
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, TrainError
from .answers import is_text as is_text  # a name of this module, too
from .answers import json_value, label, number, text
from .guards import contains, count_words, repeats, says_something, words
from .sample import Sample
from .task import Completion, Reward


def max_words(n: int) -> Reward:
    """1 if the answer ended by itself within n words.

    It does not know what was asked: "Sure." earns it for every prompt. It makes answers short where something
    else keeps them right: behind a vector that has learned the answers, or inside a reward of yours.

    Guards: an answer that says nothing of its own gets 0 (empty, marks only, words of the prompt, function
    words), and so does one that repeats a phrase three times in a row. Gluing words together does not
    help: 20 characters count as a word, and in scripts without spaces every character does.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise TrainError(f"max_words takes a number of words, 1 or more, not {n!r}")

    def reward(completion: Completion, sample: Sample) -> float:
        short = completion.ended and count_words(completion.text) <= n
        return float(short and says_something(completion.text, sample))

    return _named(reward, f"max_words({n})")


def regex(pattern: str) -> Reward:
    r"""1 if a regular expression is found in the answer; anchor it (^...$) to judge all of it.

    It has RE2's syntax: no look-around and no backreference, \w, \d and \b of ASCII, so that it takes time in
    proportion to the answer whatever the pattern is, which a file of somebody else may bring.

    Guards: an empty match counts for nothing; an answer that says nothing of its own gets 0, so that
    a prompt which shows the wanted form cannot simply be said back; so does a phrase three times in a row.

    Raises:
        TrainError: it is not a regular expression of RE2.
        MissingExtraError: the package google-re2 is not installed.
    """
    try:
        import re2
    except ModuleNotFoundError:
        raise MissingExtraError("the regex reward", "google-re2", "train") from None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, TypeError, ValueError) as error:
        why = error.args[0].decode() if isinstance(error, re2.error) else error
        raise TrainError(f"regex: {pattern!r:.200} is not a regular expression of RE2: {why}") from None

    def reward(completion: Completion, sample: Sample) -> float:
        found = any(match[0] for match in compiled.finditer(completion.text))
        return float(found and says_something(completion.text, sample))

    return _named(reward, f"regex({pattern!r})")


def picks_answer(completion: Completion, sample: Sample) -> float:
    """1 if the answer has the sample's answer as a word (or words), and none of `data["others"]`.

    Guards: listing the choices gets 0, since the others are among them; so does an answer that says the
    word twice without any other word, or a phrase three times in a row.
    """
    others = sample.data.get("others")
    if not sample.answer or not isinstance(others, Sequence) or isinstance(others, str):
        raise ValueError('picks_answer needs a sample with an answer and a list "others"')
    sequence, target = words(completion.text), words(sample.answer)
    if not contains(sequence, target) or any(contains(sequence, words(other)) for other in others):
        return 0.0
    stutters = len(sequence) > len(target) and not set(sequence) - set(target)
    return float(not stutters and not repeats(completion.text))


REWARDS: dict[str, Reward] = {
    "json": json_value,
    "label": label,
    "number": number,
    "picks_answer": picks_answer,
    "text": text,
}
"""Rewards that take no argument, by their names."""

_MAX_WORDS = re.compile(r"max_words\(\s*([0-9]{1,9})\s*\)")
_REGEX = re.compile(r"""regex\(\s*(?:"(.*)"|'(.*)')\s*\)""", re.DOTALL)
_IMPORT = re.compile(r"((?:[^\W\d]\w*\.)*[^\W\d]\w*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def parse_reward(text: str, *, allow_import: bool = True) -> Reward:
    """Return the reward of a name: of `REWARDS`, `max_words(12)`, `regex("PATTERN")`, or `module:function`.

    A pattern is taken as it stands between the quotes: regex("\\d+") needs no doubling. `allow_import` is for
    `module:function`, which files of samples, being data, may not name.

    Raises:
        TrainError: there is no such reward, its argument is not valid, or a module or function cannot be
            imported.
        MissingExtraError: regex needs the package google-re2, and it is not installed.
    """
    text = text.strip()
    if text in REWARDS:
        return REWARDS[text]
    if found := _MAX_WORDS.fullmatch(text):
        return max_words(int(found[1]))
    if found := _REGEX.fullmatch(text):
        return regex(found[1] if found[2] is None else found[2])
    if not (found := _IMPORT.fullmatch(text)):
        raise TrainError(
            f"there is no reward {text!r:.100}: expected one of {', '.join(REWARDS)}, max_words(12), "
            'regex("PATTERN"), or a callable of yours as module:function'
        )
    if not allow_import:
        raise TrainError(f"the reward {text} is code, and a file of samples may not name any")
    return _imported(found[1], found[2])


def _imported(module: str, function: str) -> Reward:
    """Return a callable of a module; those in the current folder are found too, as a script's own are."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        value: Any = importlib.import_module(module)
    except Exception as error:
        raise TrainError(
            f"the module {module!r} of the reward cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    for part in function.split("."):
        if not hasattr(value, part):
            raise TrainError(f"the module {module!r} of the reward has no {function!r}")
        value = getattr(value, part)
    if not callable(value):
        raise TrainError(
            f"the reward {module}:{function} is a {type(value).__name__}, expected a callable of a "
            "Completion and a Sample"
        )
    return value  # type: ignore[no-any-return]  # Task.score checks what it returns


def _named(reward: Reward, name: str) -> Reward:
    reward.__name__ = name  # by which trainers list rewards, and know a run again
    return reward
