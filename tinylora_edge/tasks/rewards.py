r"""The built-in rewards, each guarded against the cheap answers that it invites.

A reward takes a `Completion` and its `Sample`, and returns a number from 0 to 1. Training finds the holes of
a reward: "ends within 12 words", without guards, was met in part by repeating the noun that was asked about.
So each docstring names the guards, and the tests try exactly those answers. Guards judge the form and not the
truth: no reward here knows whether a river is made of water.

Four compare with the sample's own answer. If none is named, the answers of a file decide which of them is
used:

    label     few different short answers: the same text and nothing else
    json      objects, lists, calls of tools: the same values; GRPO learns from their share (`json_fields`)
    number    numbers: the same number
    text      everything else: no completion has a reward, see `text`

`parse_reward` finds these by name, and others, as the command line has them:

    max_words(12)               one with a number
    regex("^Date: ")            one with a pattern
    my_rewards:politeness       a Python callable of yours, module:function
"""

from __future__ import annotations

import importlib
import json
import marshal
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from difflib import SequenceMatcher
from fractions import Fraction
from functools import cache
from operator import eq
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import TrainError
from ..jsonio import parse_json
from .sample import CALL, CALL_BEGIN, Sample, untagged
from .task import Completion, Reward, name_of

_SHORT = 64  # characters of a label at most
_LONGEST_SENTENCE = 14  # words of a short sentence at most
_FEW_NUMBERS = 10  # so many different numbers, or fewer, are labels: 0 and 1, or one to five stars
_PLAIN = re.compile(  # a number, not a telephone number or postal code, which begin with 0
    r"[-+\u2212]?[$€£¥₹]?[-\u2212]?(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*)?(?:\.[0-9]+)?\s?%?"
)


def label(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself and is the sample's answer and nothing else.

    White space around both does not matter; upper and lower case do, as they do to the program that reads it.

    Guards: none is needed against an answer that is given whole. The most frequent answer, said to every
    prompt, earns its share of the samples.
    """
    return float(completion.ended and completion.text.strip() == _reference(label, sample).strip())


def json_value(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself and is JSON of the same value as the sample's answer.

    Order of keys and white space do not matter, 1 is 1.0, and one ``` fence may stand around it.

    Guards: text around the JSON and a key that is there twice get 0.
    """
    found, right = _fields(completion, sample)
    return float(found == right)


def json_fields(completion: Completion, sample: Sample) -> float:
    """The share of fields that are right: 1 where `json` gives 1, 0 for what is no JSON.

    The fields are all leaves of both values, nested ones by their path, so that one too many costs as much
    as one that is missing.

    Guards: those of `json`; and a wrong object or list that stands in the prompt, white space aside, gets 0.
    """
    found, right = _fields(completion, sample)
    body = "".join(_body(completion.text).split())
    if found != right and body.startswith(("{", "[")) and body in "".join(sample.text.split()):
        return 0.0
    return len(found.items() & right.items()) / len(found.keys() | right.keys())


def number(completion: Completion, sample: Sample) -> float:
    r"""1 if the answer arrives at the number at which the reference answer arrives.

    One rule reads both (`final_number`): the answer as a whole, a number behind `####`, in `\boxed{}`, or
    behind "answer is". Commas, currency and percent signs, a trailing period and trailing zeros do not
    matter: $1,000.00 is 1000.

    Guards: an answer whose marks disagree, hold more than a number, or have words behind them gets 0; so does
    any other text with numbers, what did not end by itself, and a piece of the prompt, 4 words or more.
    """
    expected = None if sample.answer is None else final_number(sample.answer)
    if expected is None:
        raise ValueError(f"number needs a sample whose answer has a number, not {sample.answer!r}")
    if not completion.ended or copies(completion.text, sample):
        return 0.0
    return float(final_number(completion.text) == expected)


def text(completion: Completion, sample: Sample) -> float:
    """No completion has this reward: a ValueError.

    Free text has many right answers, and none is compared. What is measured is minus the nats a token of
    the reference answer (`Batch.score_each`; higher is better), and what learns from it is SFT.
    """
    raise ValueError(
        "text has no reward for a completion: it is measured by the nats a token of the reference answers, "
        "and learned by SFT. Name a reward that judges completions, such as label or max_words(12)"
    )


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
        count = sum(-(-len(word) // _LONGEST_WORD) for word in words(completion.text))
        return float(completion.ended and count <= n and says_something(completion.text, sample))

    reward.__name__ = f"max_words({n})"  # names the reward in trainers' lists and in states of runs
    return reward


def regex(pattern: str) -> Reward:
    """1 if a regular expression (`re`) is found in the answer; anchor it (^...$) to judge all of it.

    Guards: an empty match counts for nothing; an answer that says nothing of its own gets 0, so that
    a prompt which shows the wanted form cannot simply be said back; so does a phrase three times in a row.

    TrainError: it is no regular expression. The reward raises one where a search takes more than 10 s, as
    repeats inside of repeats may take hours.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise TrainError(f"regex: {pattern!r:.200} is not a regular expression: {error}") from None

    def reward(completion: Completion, sample: Sample) -> float:
        return float(says_something(completion.text, sample) and _finds(pattern, completion.text))

    reward.__name__ = f"regex({pattern!r})"
    return reward


_SEARCH_S = 10.0  # time limit of a search for an expression
_SEARCH = """
import marshal, re, sys
print(any(match[0] for match in re.finditer(*marshal.load(sys.stdin.buffer))))
"""


def _finds(pattern: str, text: str) -> bool:
    """Tell whether an expression matches some text. A process searches, which takes 12 ms, since a thread
    could not be ended."""
    command = [sys.executable, "-I", "-S", "-c", _SEARCH]
    given = marshal.dumps((pattern, text))
    try:  # in a session of its own, so that Ctrl-C does not reach it
        done = subprocess.run(
            command, input=given, capture_output=True, check=True, timeout=_SEARCH_S, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise TrainError(
            f"regex: {pattern!r:.200} takes more than {_SEARCH_S:g} s: write it without repeats inside "
            "repeats"
        ) from None
    return done.stdout.split() == [b"True"]


def picks_answer(completion: Completion, sample: Sample) -> float:
    """1 if the answer has the sample's answer as a word (or words), and none of `data["others"]`.

    Guards: listing the choices gets 0, since the others are among them, also where a word begins with one
    (cats, cat's) or has invisible characters; so does an answer that says the word twice without any other
    word, or a phrase three times in a row.
    """
    others = sample.data.get("others")
    if not sample.answer or not isinstance(others, Sequence) or isinstance(others, str):
        raise ValueError('picks_answer needs a sample with an answer and a list "others"')
    sequence, target = words(visible(completion.text)), words(visible(sample.answer))

    def named(said: str, word: str) -> bool:
        # Many words begin with a choice such as A or 1: there a beginning names no choice.
        longer = len(word) > 2 and word.isalpha() and said not in target
        return said == word or (longer and said.startswith(word))

    listed = (words(visible(other)) for other in others)
    if not contains(sequence, target) or any(contains(sequence, other, named) for other in listed):
        return 0.0
    stutters = len(sequence) > len(target) and not set(sequence) - set(target)
    return float(not stutters and not repeats(completion.text))


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


json_value.__name__ = "json"  # its name for `name_of`


def shaped(reward: Reward) -> Reward | None:
    """Return the reward with credit for coming near that GRPO and tuning learn from in place of a reward, or
    None (`Task.shaped`)."""
    nearly = (json_value, json_fields), (short_sentence, nearly_short_sentence)
    return next((near for whole, near in nearly if reward is whole), None)


def is_text(reward: Reward) -> bool:
    """Tell whether a reward is `text`: given answers are measured, and no completions are judged."""
    return reward is text


def unfit(reward: Reward, answer: str | None) -> str | None:
    """Return why a built-in reward cannot compare with a sample's answer; None where it can."""
    if reward not in (label, json_value, number, text):
        return None
    if answer is None:
        return f'there is no "answer", with which the reward {name_of(reward)} compares'
    if reward is json_value and not _is_json(answer):
        return f"the answer is {answer[:40]!r}, expected a JSON object or list: the reward is json"
    if reward is number and final_number(answer) is None:
        return f"the answer is {answer[:40]!r}, expected one number: the reward is number"
    return None


def read_off(answers: Sequence[str]) -> tuple[Reward, str]:
    """Return the reward that suits the answers, and why, as the end of a sentence."""
    times = Counter(answer.strip() for answer in answers)
    structured = sum(count for answer, count in times.items() if _is_json(answer))
    if structured == len(answers):
        return json_value, f"as all {len(answers):,} answers are JSON"
    short = all(len(answer) <= _SHORT and "\n" not in answer for answer in times)
    few = short and 2 * len(times) <= len(answers)
    bare = (answer for answer in times if "####" not in answer and "\\boxed{" not in answer)
    numbers = all(map(_PLAIN.fullmatch, bare)) and None not in map(final_number, times)
    if numbers and not (few and len(times) <= _FEW_NUMBERS):
        return number, f"as all {len(answers):,} answers are numbers"
    if few:
        (most, count) = times.most_common(1)[0]
        share = f"{most!r} is {100 * count / len(answers):.0f} % of all"
        return label, f"read off {len(times):,} different answers, of which {share}"
    why = f"as {len(times):,} of {len(answers):,} answers are different"
    if not short:
        why += f", and some longer than {_SHORT} characters or a line"
    return text, f"{why}: measured by the nats a token of the reference answers"


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


def parse_reward(text: str) -> Reward:
    """Return the reward of a name: of `REWARDS`, `max_words(12)`, `regex("PATTERN")`, or `module:function`.

    A pattern is taken as it stands between the quotes: regex("\\d+") needs no doubling.

    Raises:
        TrainError: there is no such reward, its argument is not valid, or a module or function cannot be
            imported.
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
            'regex("PATTERN"), or your own function as module:function'
        )
    return _imported(found[1], found[2])


def _imported(module: str, function: str) -> Reward:
    """Return a callable of a module, which may also lie in the current folder."""
    here = str(Path.cwd())
    if added := here not in sys.path:
        sys.path.append(here)
    try:
        value: Any = importlib.import_module(module)
        for part in function.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise TrainError(
            f"the reward {module}:{function} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(value):
        raise TrainError(
            f"the reward {module}:{function} is a {type(value).__name__}, expected a callable of a "
            "Completion and a Sample"
        )
    return value  # type: ignore[no-any-return]  # Task.score checks what it returns


def _reference(reward: Reward, sample: Sample) -> str:
    if sample.answer is None:
        raise ValueError(f"{name_of(reward)} needs a sample with an answer")
    return sample.answer


def _fields(completion: Completion, sample: Sample) -> tuple[Leaves, Leaves]:
    right = leaves(read_answer(_reference(json_value, sample), called=bool(sample.tools)))
    with suppress(ValueError):
        if completion.ended:
            return leaves(read_answer(completion.text, called=(_CALLS, 0, 0) in right)), right
    return {}, right


def _is_json(answer: str) -> bool:
    if not answer.lstrip().startswith(("{", "[", "```", CALL_BEGIN)):
        return False
    try:
        return isinstance(read_answer(answer), dict | list)
    except ValueError:
        return False


# Guards against answers that say nothing, echo their prompt or repeat themselves

# Characters of scripts without spaces between words: each counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LONGEST_WORD = 20  # characters; a longer word counts as several, so that gluing words together is no use

_LONGEST_UNIT = 8  # words of the longest phrase whose repetition is noticed
_ECHO_RUN = 4  # so many consecutive words of the prompt, or more, are an echo; fewer are chance

_FUNCTION_WORDS = """
    a an and are as at be been but by can do does for from had has have he her his how i if in into is it
    its me my no not of on or our she so some such than that the their them then there these they this those
    to us was we were what when where which who why will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that carry no content of their own: an answer made of them alone says nothing."""


def words(text: str) -> list[str]:
    """Return the words of a text, casefolded: runs of letters, marks and digits, with apostrophes inside."""
    return _word().findall(text.casefold())


@cache
def _word() -> re.Pattern[str]:
    # Vowel signs, accents and joiners belong to the letter before them (Extend, Format and ZWJ of UAX 29).
    signs = map(chr, (*range(0xAD, 0x20000), *range(0xE0100, 0xE01F0)))
    marks = "".join(each for each in signs if unicodedata.category(each) in ("Mn", "Mc", "Me", "Cf"))
    marks = marks.replace("\u200b", "")  # the zero-width space, which separates words
    run = rf"[^\W_{_UNSPACED}](?:[^\W_{_UNSPACED}]|[{marks}])*"
    return re.compile(rf"[{_UNSPACED}]|{run}(?:['\u2019]{run})*")


def visible(text: str) -> str:
    """Return a text in compatibility form (NFKC), without invisible characters such as soft hyphens."""
    return _invisible().sub("", unicodedata.normalize("NFKC", text))


@cache
def _invisible() -> re.Pattern[str]:
    formats = "".join(each for each in map(chr, range(0xAD, 0x20000)) if unicodedata.category(each) == "Cf")
    return re.compile(rf"[{formats}\u034f\ufe00-\ufe0f\U000e0000-\U000e0fff]")  # also variation selectors


def own_words(text: str, sample: Sample) -> list[str]:
    """Return the numbers of an answer, and those of its content words that are in its prompt neither in
    singular nor in plural."""
    prompt = set(words(sample.text))
    return [word for word in words(text) if word.isdecimal() or not _known(word, prompt)]


def without_genitive(word: str) -> str:
    """Return "river" for "river's", with either apostrophe."""
    return word.removesuffix("'s").removesuffix("\u2019s")


def _known(word: str, prompt: set[str]) -> bool:
    word = without_genitive(word)
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), f"{word}s", f"{word}es"}
    return word in FUNCTION_WORDS or not forms.isdisjoint(prompt)


def says_something(text: str, sample: Sample) -> bool:
    """Tell whether an answer has words of its own, does not repeat itself, and is no echo.

    Half of an echo or more, at least 4 words, is one uninterrupted run of the prompt's words.
    """
    if not own_words(text, sample) or repeats(text):
        return False
    answer, prompt = words(text), words(sample.text)
    run = SequenceMatcher(None, answer, prompt, autojunk=False).find_longest_match().size
    return run < _ECHO_RUN or 2 * run < len(answer)


def copies(text: str, sample: Sample) -> bool:
    """Tell whether a whole answer, of 4 words or more, is one uninterrupted run of its prompt's words."""
    answer = words(text)
    return len(answer) >= _ECHO_RUN and contains(words(sample.text), answer)


def contains(sequence: list[str], run: list[str], same: Callable[[str, str], bool] = eq) -> bool:
    """Tell whether `run` is an uninterrupted run of `sequence`; `same` compares a word of each."""
    starts = range(len(sequence) - len(run) + 1)
    return bool(run) and any(all(map(same, sequence[start : start + len(run)], run)) for start in starts)


def repeats(text: str) -> bool:
    """Tell whether a phrase of 1 to 8 words occurs three times in a row."""
    sequence = words(text)
    for size in range(1, _LONGEST_UNIT + 1):
        run = 0
        for left, right in zip(sequence, sequence[size:], strict=False):
            run = run + 1 if left == right else 0
            if run == 2 * size:
                return True
    return False


# The number at which an answer arrives, and the leaves of its JSON

_DIGITS = "[0-9]{1,100}"
_SIGN, _MONEY = "[-+\u2212\u2013]", "[$€£¥₹]"  # also the minus sign, and the en dash, which stands for it
_NUMBER = rf"""
    (?: {_MONEY}(?P<inner>{_SIGN}) | (?P<outer>{_SIGN})?{_MONEY}? )
    (?: (?P<latex>\\[dt]?frac\{{)? (?P<over>{_DIGITS})
            (?(latex)\}}\{{|\s?/\s?) (?P<under>{_DIGITS}) (?(latex)\}})
      | (?P<decimal>
            (?: (?: [0-9]{{1,3}}(?:,[0-9]{{3}}){{1,32}} | {_DIGITS} ) (?:\.{_DIGITS})? | \.{_DIGITS} )
            (?: [eE][-+]?[0-9]{{1,3}} )? ) )
    (?: \s?(?:%|{_MONEY}) )?
"""
_ANSWER = rf"\*{{0,2}} {_NUMBER} \*{{0,2}} \.? \*{{0,2}}"  # may be bold, or end a sentence
_MARK = re.compile(r"\#{4} | \\boxed\{", re.VERBOSE)
_NAMED = re.compile(r"\banswer\ is:?", re.VERBOSE | re.IGNORECASE)
_AFTER = re.compile(rf"[ \t]* {_ANSWER} [ \t\r]* (?:\n|\Z)", re.VERBOSE)
_INSIDE = re.compile(rf"\s* {_ANSWER} \s* \}}", re.VERBOSE)
_WHOLE = re.compile(rf"\s* {_ANSWER} \s*", re.VERBOSE)
_CLOSED = re.compile(r"(?: [\s.*$] | \\[\])] )* \Z", re.VERBOSE)  # ends of a sentence, of bold, of a formula

Place: TypeAlias = tuple[str | int | None, ...]
"""Where a leaf of a JSON value is: keys, and places in lists."""

Leaves: TypeAlias = dict[Place, str | float | Decimal]
"""The leaves of a JSON value by their path: numbers as they are, anything else as its JSON text."""

_LONGEST = 100  # characters of a number with a point or an exponent, at most
_CALLS = None  # the key of an answer's calls: JSON has texts as keys, and lists have numbers


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a text arrives at, or None.

    A number is digits, perhaps with commas between groups of three, with a sign (also the minus sign, and the
    en dash that is written for it), decimals and an exponent; or a fraction: `3/4`, `\frac{3}{4}`. Currency
    signs and a percent sign around it are dropped: 50% is 50. At most 100 digits, and 3 of an exponent.

    It is the whole text, or the rest of a line behind `####`, or alone in `\boxed{}`; where neither mark is
    there, the rest of a line behind "answer is". All marks have to agree, and no word stands behind the last.
    Nothing else is looked for, and what continues a number (`5 million`, `5 km`, `minus 5`, `10^2`) makes it
    None.
    """
    for latex, plain in (("{,}", ","), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(latex, plain)
    if whole := _WHOLE.fullmatch(text):
        return _fraction(whole)
    marks = [*_MARK.finditer(text)] or [*_NAMED.finditer(text)]
    found = [(_INSIDE if mark[0] == "\\boxed{" else _AFTER).match(text, mark.end()) for mark in marks]
    if not found or found[-1] is None or not _CLOSED.match(text, found[-1].end()):
        return None
    values = set(map(_fraction, found))
    return values.pop() if len(values) == 1 else None


def _fraction(found: re.Match[str] | None) -> Fraction | None:
    if found is None:
        return None
    sign = 1 if (found["inner"] or found["outer"] or "+") == "+" else -1
    if found["decimal"]:
        return sign * Fraction(found["decimal"].replace(",", ""))
    under = int(found["under"])
    return sign * Fraction(int(found["over"]), under) if under else None


def read_answer(text: str, *, called: bool = False) -> Any:
    """Return the value of an answer that is one JSON text, bare or in one ``` fence, or that is calls.

    Numbers with a point or an exponent are exact (`Decimal`). Calls of tools become an object with the key
    `_CALLS`, and the name and arguments of each. A call without tags is one only if `called`, else an object.
    ValueError: the answer is neither.
    """
    text = text.strip()
    calls = CALL.findall(text) if not CALL.sub("", text) else []
    if called and (call := untagged(text)):
        calls = [call]
    return {_CALLS: [[name, _parsed(each)] for name, each in calls]} if calls else _parsed(_body(text))


def leaves(value: Any) -> Leaves:
    """Return the leaves of a value, by which values are compared: true is not 1, and an empty object or list
    is a leaf."""
    found: Leaves = {}  # without recursion, whose limit a deep answer could reach
    level: list[tuple[Place, Any]] = [((), value)]
    while level:
        path, value = level.pop()
        if value and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            level += (((*path, key), item) for key, item in items)
        elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            found[path] = value
        else:
            found[path] = json.dumps(value, ensure_ascii=False)
    return found


def _body(text: str) -> str:
    """Return what is inside the ``` fence around a text, or the text where there is none."""
    first, _, rest = text.strip().partition("\n")
    fenced = first.rstrip().lower() in ("```", "```json") and rest.endswith("```")
    return rest.removesuffix("```") if fenced else text


def _parsed(text: str) -> Any:
    return parse_json(text, strict=True, parse_float=_exact)


def _exact(text: str) -> Decimal:
    if len(text) > _LONGEST:
        raise ValueError(f"it has a number of more than {_LONGEST} characters")
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"the number {text} has too large an exponent") from None
