"""The built-in rewards and what combines them; how they are guarded and spelled stands in the package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import TrainError
from ..task import Completion, Reward, Sample, name_of
from ._grammar import parse
from ._languages import STOP_WORDS, guess
from .guards import copies, count_words, own_words, repeats, says_nothing, words
from .numbers import final_number
from .schema import leaves, read_answer, validator


def exact_number(completion: Completion, sample: Sample) -> float:
    r"""1 if the answer arrives at the number at which the reference answer arrives.

    The number is what follows `####`, else what `\boxed{}` holds, else the last one. Commas, currency
    signs, units, percent signs, a trailing period and trailing zeros do not matter: $1,000.00 is 1000.

    Guards: an answer that hedges (marks that disagree, several numbers in one mark) gets 0; so does a
    number that the token limit may have cut, and an answer that is a piece of the prompt, 4 words or more.

    Raises:
        ValueError: the sample has no answer, or one without a number.
    """
    expected = None if sample.answer is None else final_number(sample.answer)
    if expected is None:
        raise ValueError(f"exact_number needs a sample whose answer has a number, not {sample.answer!r}")
    if copies(completion.text, sample):
        return 0.0
    return float(final_number(completion.text, complete=completion.ended) == expected)


def max_words(n: int) -> Reward:
    """1 if the answer ended by itself within n words.

    Guards: an answer that says nothing of its own gets 0 (empty, marks only, words of the prompt, function
    words), and so does one that repeats a phrase three times in a row. Gluing words together does not
    help: 20 characters count as a word, and in scripts without spaces every character does.

    Raises:
        TrainError: n is not a whole number of at least 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise TrainError(f"max_words takes a number of words, 1 or more, not {n!r}")

    def reward(completion: Completion, sample: Sample) -> float:
        short = completion.ended and count_words(completion.text) <= n
        return float(short and _says_something(completion.text, sample))

    return _named(reward, f"max_words({n})")


def ends_itself(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself, within the token limit.

    Guards: ending at once is the cheapest way, so an answer that says nothing of its own gets 0 (empty,
    marks only, words of the prompt, function words), and so does a phrase three times in a row. One word
    of its own is enough: combine this reward with one that asks for content.
    """
    return float(completion.ended and _says_something(completion.text, sample))


def regex(pattern: str) -> Reward:
    """1 if a Python regular expression is found in the answer; anchor it (^...$) to judge all of it.

    Guards: an empty match counts for nothing; an answer that says nothing of its own gets 0, so that
    a prompt which shows the wanted form cannot simply be said back; so does a phrase three times in a row.

    Raises:
        TrainError: the pattern is not a valid regular expression.
    """
    try:
        compiled = re.compile(pattern)
    # The last three are for counts of too many digits, counts that do not fit, and groups nested too deeply.
    except (re.error, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TrainError(f"regex: {pattern!r} is not a regular expression: {error}") from None

    def reward(completion: Completion, sample: Sample) -> float:
        found = any(match[0] for match in compiled.finditer(completion.text))
        return float(found and _says_something(completion.text, sample))

    return _named(reward, f"regex({pattern!r})")


def json_schema(schema: Mapping[str, Any] | bool | str) -> Reward:
    """1 if the answer is one JSON text, bare or in one ``` fence, that fits a JSON Schema.

    The schema is given itself, or as the path of a file. A `$ref` to another document is never fetched.

    Guards: `{}`, nulls and blank strings fit many schemas and say nothing, so there must be at least one
    value, and no string without a letter or digit; text around the JSON, a key given twice and an object
    or array that stands in the prompt as it is get 0; so does a string that repeats a phrase three times.

    Raises:
        MissingExtraError: the package jsonschema is not installed.
        TrainError: the schema is not a valid one, or its file cannot be read.
    """
    fits = validator(schema)

    def reward(completion: Completion, sample: Sample) -> float:
        try:
            value = read_answer(completion.text)
        except ValueError:
            return 0.0
        said_back = isinstance(value, dict | list) and _without_spaces(
            json.dumps(value, ensure_ascii=False)
        ) in _without_spaces(sample.text)
        return float(not said_back and _has_content(value) and fits(value))

    return _named(reward, f"json_schema({schema!r})")


def starts_with(s: str) -> Reward:
    """1 if the answer starts with s and goes on. Spaces before it do not matter, upper and lower case do.

    Guards: s alone gets 0: something of its own must follow; so does s said twice, a word that only
    begins like s ("Yesterday" for "Yes"), and a phrase three times in a row.

    Raises:
        TrainError: s is blank.
    """
    if not isinstance(s, str) or not s.strip():
        raise TrainError(f"starts_with takes the text that answers start with, not {s!r}")
    s = s.strip()

    def reward(completion: Completion, sample: Sample) -> float:
        text = completion.text.lstrip()
        if not text.startswith(s):
            return 0.0
        rest = text[len(s) :]
        whole = not (s[-1].isalnum() and rest[:1].isalnum())
        return float(whole and s not in rest and _says_something(rest, sample))

    return _named(reward, f"starts_with({s!r})")


def lowercase(completion: Completion, sample: Sample) -> float:
    """1 if the answer has lower-case letters and no others.

    Guards: digits, marks and scripts without case are not lower case: at least half of the characters
    (spaces aside) must be lower-case letters; an answer that says nothing of its own gets 0, and so does
    a phrase three times in a row.
    """
    marks = [character for character in completion.text if not character.isspace()]
    lower = sum(character.islower() for character in marks)
    only = not any(character.isupper() or character.istitle() for character in marks)
    return float(only and 2 * lower >= len(marks) and _says_something(completion.text, sample))


def language(code: str) -> Reward:
    """1 if the answer seems to be in a language, given by its ISO 639-1 code.

    No more than a share of stop words: the code's must be the most frequent among those of the known
    languages, and between 0.2 and 0.8 of the words. It knows de, en, es, fr, it, nl and pt, is blind to
    all others (Catalan passes for Spanish), and gives 0 below 5 words. For anything finer bring a detector
    as `module:function`.

    Guards: a string of stop words passes 0.8, so it gets 0; so does a phrase three times in a row, fewer
    than two words that are neither stop words nor the prompt's, and a piece of the prompt.

    Raises:
        TrainError: an unknown code.
    """
    if not isinstance(code, str) or code not in STOP_WORDS:
        raise TrainError(f"language: {code!r} is not known: choose one of {', '.join(sorted(STOP_WORDS))}")

    def reward(completion: Completion, sample: Sample) -> float:
        content = set(own_words(completion.text, sample)) - STOP_WORDS[code]
        right = guess(completion.text) == code and len(content) >= 2
        return float(right and _says_something(completion.text, sample))

    return _named(reward, f"language({code!r})")


def picks_answer(completion: Completion, sample: Sample) -> float:
    """1 if the answer has the sample's answer as a word (or words), and none of `data["others"]`.

    Guards: listing the choices gets 0, since the others are among them; so does an answer that says the
    word twice without any other word, or a phrase three times in a row.

    Raises:
        ValueError: the sample has no answer, or its data no "others".
    """
    others = sample.data.get("others")
    if not sample.answer or not isinstance(others, Sequence) or isinstance(others, str):
        raise ValueError('picks_answer needs a sample with an answer and a list "others"')
    sequence = words(completion.text)
    target = words(sample.answer)
    if not _contains(sequence, target) or any(_contains(sequence, words(other)) for other in others):
        return 0.0
    stutters = len(sequence) > len(target) and not set(sequence) - set(target)
    return float(not stutters and not repeats(completion.text))


def weighted_sum(terms: Sequence[tuple[float, Reward]]) -> Reward:
    """The sum of weight times reward.

    Guards: those of its terms, no more: a sum invites collecting the easiest term and forgetting the
    rest. Where one property is worth nothing without another, multiply.
    """

    def reward(completion: Completion, sample: Sample) -> float:
        return sum(weight * term(completion, sample) for weight, term in terms)

    return _named(reward, f"({' + '.join(f'{weight!r}*{name_of(term)}' for weight, term in terms)})")


def product(factors: Sequence[Reward]) -> Reward:
    """The product of rewards: each gates the others, so that no single one is worth collecting alone.

    Guards: those of its factors. Factors behind a zero are not called.
    """

    def reward(completion: Completion, sample: Sample) -> float:
        result = 1.0
        for factor in factors:
            if not result:
                break
            result *= factor(completion, sample)
        return result

    return _named(reward, f"({' * '.join(map(name_of, factors))})")


REWARDS: dict[str, Reward] = {
    "ends_itself": ends_itself,
    "exact_number": exact_number,
    "lowercase": lowercase,
    "picks_answer": picks_answer,
}
"""Rewards that take no argument, by the name that `parse_reward` knows."""

FACTORIES: dict[str, Callable[[Any], Reward]] = {
    "json_schema": json_schema,
    "language": language,
    "max_words": max_words,
    "regex": regex,
    "starts_with": starts_with,
}
"""Rewards that take one argument, by the name that `parse_reward` knows."""


def parse_reward(text: str, *, allow_import: bool = True) -> Reward:
    """Make a reward from text; the docstring of `tinylora_edge.tasks.rewards` shows the grammar.

    Args:
        text: the expression. Backslashes in strings are kept as they are: regex("\\d+") needs no doubling.
        allow_import: whether `module:function` may be imported. JSONL files are data, so what they say
            is parsed without.

    Raises:
        TrainError: the expression is not valid, with the position, or names a reward that does not exist,
            with those that do; or a module or function cannot be imported.
        MissingExtraError: json_schema is used and the package jsonschema is not installed.
    """
    return parse(text, REWARDS, FACTORIES, weighted_sum, product, allow_import=allow_import)


def _says_something(text: str, sample: Sample) -> bool:
    return not says_nothing(text, sample) and not repeats(text)


def _has_content(value: Any) -> bool:
    found = list(leaves(value))
    strings = [leaf for leaf in found if isinstance(leaf, str)]
    return bool(found) and all(words(string) and not repeats(string) for string in strings)


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _contains(sequence: list[str], target: list[str]) -> bool:
    size = len(target)
    return size > 0 and any(
        sequence[start : start + size] == target for start in range(len(sequence) - size + 1)
    )


def _named(reward: Reward, name: str) -> Reward:
    reward.__name__ = name  # by which trainers list rewards, and know a run again
    return reward
