"""The task `formats`: nouns, asked for in one of five output formats, each checked by a program. Base: .21.

By format: sentence .50, json .33, bullets .15; capitals and prefix are 0 greedy, and about .02 sampled at the
task's temperature, so that they are learned late or by what carries over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ...documents import parse_json
from ..guards import count_words, own_words, repeats, words
from ..json_answers import read_answer
from ..task import Completion, Draw, Sample
from .words import GeneratedTask, Words, article, ask, has_noun

_PROMPTS = {
    "json": 'Describe {noun} as a JSON object with the keys "name" and "color". Write only the JSON.',
    "bullets": 'List three facts about {noun}. Start each line with "- ".',
    "capitals": "WRITE A SHORT SIGN ABOUT {NOUN}, ALL IN CAPITAL LETTERS.",
    "prefix": 'What is {noun}? Reply with one line that starts with "Answer:".',
    "sentence": "What is {noun}? Answer in one sentence of at most 12 words.",
}
_SHIFTED_PROMPTS = {
    "json": (
        'I keep notes as JSON. Give me one object with a "name" and a "color", for {noun}, and no more.',
        'Could you turn {noun} into a JSON record? Its two keys are "name" and "color". Add nothing else.',
        'Which color would you expect {noun} to have? Reply in JSON alone, with the keys "name" and "color".',
        'Return nothing but a JSON object whose keys are "name" and "color" and whose subject is {noun}.',
    ),
    "bullets": (
        'For my homework I need to know three things about {noun}. Put each on its own line behind "- ".',
        'Give me exactly three notes on {noun}, one below the other, with "- " before every one of them.',
        'What are three good things to know about {noun}? Write a list in which each line begins with "- ".',
        'Sum up {noun} in three points, no more and no less. What stands in front of a point is "- ".',
    ),
    "capitals": (
        "I am painting a notice that warns visitors of {noun}. What should it say? Use upper case only.",
        "Shout at me about {noun}: one short line, and not a single lower-case letter in it.",
        "Think of a headline about {noun}, as it would stand in print, with every letter in upper case.",
        "Announce {noun} to a crowd in a few words, and leave no letter of the whole reply in lower case.",
    ),
    "prefix": (
        'My program reads lines that begin with "Answer:". Tell it, in a single line, what {noun} is.',
        'Explain {noun} to me. The reply must be one line long, and its first word must be "Answer:".',
        'Begin with "Answer:" and say, without starting a new line, what {noun} is good for.',
        'In one line behind the word "Answer:", what would you tell a child about {noun}?',
    ),
    "sentence": (
        "Describe {noun} to somebody who has never seen one, in a single sentence of 12 words or fewer.",
        "I have room for one sentence of no more than 12 words. What should it say about {noun}?",
        "What do people know {noun} for? Reply with one sentence, and stay within 12 words.",
        "Could you define {noun} and stop after one sentence? It may not be longer than 12 words.",
    ),
}
_LONGEST_SENTENCE = 12  # words, as its prompt says
_BULLET = re.compile(r"\s*(?P<mark>[-*•]|[0-9]+[.)])\s+(?P<fact>.+)")
_OBJECT = re.compile(r"(?:```(?:json)?\s*)?(?P<object>\{[^{}]*\})")


def follows_format(completion: Completion, sample: Sample) -> float:
    """1 for the format that `sample.data["format"]` names, 0.5 for one that comes near, 0 for anything else.

    | format   | 1                                              | 0.5                                |
    | -------- | ---------------------------------------------- | ---------------------------------- |
    | json     | one object with name and color, nothing else   | it begins with one, and goes on    |
    | bullets  | three lines that start with "- "               | other bullets, or numbers          |
    | capitals | no lower-case letter                           | most of the words are in capitals  |
    | prefix   | one line that starts with "Answer:"            | more lines, or words before it     |
    | sentence | one sentence of at most 12 words, with period  | a longer sentence                  |

    Guards: 1 is only for answers that ended by themselves. All must have the noun and, outside JSON, at least
    two words of their own, not the question's and not function words; a phrase three times in a row
    gets 0, and so do equal facts, a color that is the noun, and "Answer:" said twice.
    """
    if repeats(completion.text):
        return 0.0
    return _CHECKS[sample.data["format"]](completion, sample)


def _json(completion: Completion, sample: Sample) -> float:
    whole = completion.ended
    try:
        value = read_answer(completion.text)
    except ValueError:
        whole = False
        begins = _OBJECT.match(completion.text.lstrip())
        try:
            value = parse_json(begins["object"]) if begins else None
        except ValueError:
            value = None
    return _grade(whole) if _names_and_colors(value, sample) else 0.0


def _names_and_colors(value: Any, sample: Sample) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "color"}:
        return False
    if not all(isinstance(part, str) and words(part) for part in value.values()):
        return False
    return has_noun(words(value["name"]), sample) and not has_noun(words(value["color"]), sample)


def _bullets(completion: Completion, sample: Sample) -> float:
    lines = [line for line in completion.text.splitlines() if line.strip()]
    items = [match for match in map(_BULLET.fullmatch, lines) if match]
    facts = {" ".join(words(item["fact"])) for item in items}
    if not (len(lines) == len(items) == len(facts) == 3 and _on_topic(completion.text, sample)):
        return 0.0
    if not all(own_words(item["fact"], sample) for item in items):
        return 0.0
    return _grade(completion.ended and all(line.startswith("- ") for line in lines))


def _capitals(completion: Completion, sample: Sample) -> float:
    if not _on_topic(completion.text, sample):
        return 0.0
    cased = [word for word in re.findall(r"[^\W\d_]+", completion.text) if len(word) > 1]
    capital = sum(word.isupper() for word in cased)
    if 2 * capital <= len(cased):
        return 0.0
    return _grade(completion.ended and not any(character.islower() for character in completion.text))


def _prefix(completion: Completion, sample: Sample) -> float:
    before, mark, after = completion.text.strip().partition("Answer:")
    if not mark or "Answer:" in after or not _on_topic(after, sample):
        return 0.0
    return _grade(completion.ended and not before and "\n" not in after)


def _sentence(completion: Completion, sample: Sample) -> float:
    text = completion.text.strip()
    one = completion.ended and text.endswith(".") and not re.search(r"[.!?]\s|\n", text)
    return _grade(count_words(text) <= _LONGEST_SENTENCE) if one and _on_topic(text, sample) else 0.0


def _on_topic(text: str, sample: Sample) -> bool:
    return has_noun(words(text), sample) and len(own_words(text, sample)) >= 2


def _grade(whole: bool) -> float:
    return 1.0 if whole else 0.5


_CHECKS: dict[str, Callable[[Completion, Sample], float]] = {
    "json": _json,
    "bullets": _bullets,
    "capitals": _capitals,
    "prefix": _prefix,
    "sentence": _sentence,
}


def _usual(side: Words, draw: Draw) -> Sample:
    kind, noun = draw.one(tuple(_PROMPTS)), draw.one(side.nouns)
    prompt = _PROMPTS[kind].format(noun=article(noun), NOUN=article(noun).upper())
    return ask(prompt, noun=noun, format=kind)


def _shifted(side: Words, draw: Draw) -> Sample:
    kind, noun = draw.one(tuple(_SHIFTED_PROMPTS)), draw.one(side.nouns)
    prompt = draw.one(_SHIFTED_PROMPTS[kind]).format(noun=article(noun))
    return ask(prompt, noun=noun, format=kind)


FORMATS = GeneratedTask("formats", _usual, _shifted, follows_format, max_tokens=48, temperature=0.7)
