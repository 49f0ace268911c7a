"""The guards of every built-in reward, against answers that say nothing, echo their prompt or run in circles.

A reward is an invitation, and a policy that is trained on it takes the cheapest way in. The ways in that
are common to all rewards are closed here, once; each reward's docstring says which of them it uses.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from functools import cache

from .sample import Sample

# Scripts without spaces between words: each character counts as one word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LONGEST_WORD = 20  # characters; a longer run is taken for words glued together

_LONGEST_UNIT = 8  # words of a phrase whose repetition is noticed
_ECHO_RUN = 4  # consecutive words of the prompt that may be taken for chance at most

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
    # What belongs to the letter before it (Extend, Format and ZWJ of UAX 29): vowel signs, accents, joiners.
    signs = map(chr, (*range(0xAD, 0x20000), *range(0xE0100, 0xE01F0)))
    marks = "".join(each for each in signs if unicodedata.category(each) in ("Mn", "Mc", "Me", "Cf"))
    marks = marks.replace("\u200b", "")  # which is a space without a width
    run = rf"[^\W_{_UNSPACED}](?:[^\W_{_UNSPACED}]|[{marks}])*"
    return re.compile(rf"[{_UNSPACED}]|{run}(?:['\u2019]{run})*")


def count_words(text: str) -> int:
    """Count words so that gluing them together does not help: a run of 20 characters at most is one."""
    return sum(-(-len(word) // _LONGEST_WORD) for word in words(text))


def own_words(text: str, sample: Sample) -> list[str]:
    """The answer's content words that its prompt does not have, in singular or plural, and its numbers."""
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
    """Whether an answer has words of its own, does not run in circles, and is no echo.

    An echo is, by half and by 4 words or more, one uninterrupted run of the prompt's words.
    """
    if not own_words(text, sample) or repeats(text):
        return False
    answer, prompt = words(text), words(sample.text)
    run = SequenceMatcher(None, answer, prompt, autojunk=False).find_longest_match().size
    return run < _ECHO_RUN or 2 * run < len(answer)


def copies(text: str, sample: Sample) -> bool:
    """Whether the whole answer, 4 words or more, is one uninterrupted run of its prompt's words."""
    answer = words(text)
    return len(answer) >= _ECHO_RUN and contains(words(sample.text), answer)


def contains(sequence: list[str], run: list[str]) -> bool:
    """Whether words are an uninterrupted run of a sequence."""
    starts = range(len(sequence) - len(run) + 1)
    return bool(run) and any(sequence[start : start + len(run)] == run for start in starts)


def repeats(text: str) -> bool:
    """Whether a phrase of 1 to 8 words occurs three times in a row."""
    sequence = words(text)
    for size in range(1, _LONGEST_UNIT + 1):
        run = 0
        for left, right in zip(sequence, sequence[size:], strict=False):
            run = run + 1 if left == right else 0
            if run == 2 * size:
                return True
    return False
