"""The tasks that ask for a word, a short sentence or a sum.

Greedy held-out scores of SmolLM2-135M-Instruct (Q4_1) before any training, n = 128: `list-lookup` .34,
`brevity` .13, `plain-brevity` .06, `word-sums` .25.
"""

from __future__ import annotations

from ..answers import number
from ..guards import own_words, repeats, words
from ..numbers import numbers_in
from ..rewards import picks_answer
from ..task import Completion, Draw, Sample
from .words import GeneratedTask, Words, article, ask, has_noun, plural

_LIST_LENGTH = 4
_QUESTIONS = (
    "What is {noun}?",
    "How would you define {noun}?",
    "What makes {noun} special?",
    "What is the purpose of {noun}?",
    "Why do people like {noun}?",
)
_LONGEST_SENTENCE = 14  # words of a short sentence
_ADDENDS = (2, 9)  # the smallest and the largest one of word sums

# Shifted prompts: the same tasks in other words, with more to read.
_SHIFTED_LISTS = (5, 7)  # the shortest and the longest one
_SHIFTED_LOOKUPS = (
    "Here are some words: {words}. Which one comes at the very end?",
    "{words}. Name the final word of those above.",
    "Someone read these words out to me: {words}. Which one did I hear last?",
    "Look at {words}, and tell me the closing word.",
    "Of the words {words}, which one has no other word after it?",
)
_SHIFTED_QUESTIONS = (
    "Please explain to a child what {noun} is. One short sentence will do.",
    "My neighbor mentioned {noun} yesterday. What did she mean? Keep it very brief.",
    "What does {noun} look like, and where would somebody find one? Be short.",
    "Tell me in a handful of words what people do with {noun}, and why.",
    "I have to write a caption for a picture of {noun}. What should it say, in one brief sentence?",
)
_SHIFTED_ADDENDS = (11, 49)
_SHIFTED_SUMS = (
    (
        "{name} owns {first} {nouns}, and a friend brings {second} more to the party. What is the total?",
        "{name} owns {total} {nouns}.",
    ),
    (
        "At dawn {name} counted {first} {nouns}, and at noon {second}. How many {nouns} is that altogether?",
        "{name} counted {total} {nouns} altogether.",
    ),
    (
        "There were {first} {nouns} in the room before {name} carried in {second} more. How many are there?",
        "There are {total} {nouns} in the room.",
    ),
    (
        "{name}, who had {first} {nouns}, finds {second} others and counts all of them. Which number is it?",
        "{name} counts {total} {nouns}.",
    ),
)


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
    sequence = words(text)
    guarded = len(sequence) >= 4 and has_noun(sequence, sample) and len(own_words(text, sample)) >= 2
    if not (completion.ended and guarded) or repeats(text):
        return 0.0
    if text.endswith(".") and len(sequence) <= _LONGEST_SENTENCE:
        return 1.0
    near = 0.05 + 0.05 * min(9, max(0, 24 - len(sequence)))
    return near if text.endswith(".") else near / 2


def short(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself within 12 words: the hackable one, kept for comparison.

    Not guarded, on purpose: "River." gets 1, and so does an empty answer. Training on it shows what guards
    are for: it is won in part by saying the noun back.
    """
    return float(completion.ended and len(completion.text.split()) <= 12)


def sum_alone(completion: Completion, sample: Sample) -> float:
    """`number`, and no number besides those of the question and the result.

    Guards: those of `number`; and since only the last number counts there, running through numbers
    until the limit cuts would sometimes stop at the right one: any further number gets 0.
    """
    given = set(numbers_in(sample.text)) | set(numbers_in(sample.answer or ""))
    return float(set(numbers_in(completion.text)) <= given and number(completion, sample) == 1.0)


def _lookup(side: Words, draw: Draw) -> Sample:
    *others, last = draw.some(side.short, _LIST_LENGTH)
    question = f"List: {', '.join([*others, last])}. What is the last word in the list?"
    return ask(question, answer=last, others=tuple(others))


def _shifted_lookup(side: Words, draw: Draw) -> Sample:
    *others, last = draw.some(side.short, draw.between(*_SHIFTED_LISTS))
    question = draw.one(_SHIFTED_LOOKUPS).format(words=", ".join([*others, last]))
    return ask(question, answer=last, others=tuple(others))


def _question(side: Words, draw: Draw) -> Sample:
    noun = draw.one(side.nouns)
    question = draw.one(_QUESTIONS).format(noun=article(noun))
    return ask(f"{question} Answer in a few words.", noun=noun)


def _shifted_question(side: Words, draw: Draw) -> Sample:
    noun = draw.one(side.nouns)
    return ask(draw.one(_SHIFTED_QUESTIONS).format(noun=article(noun)), noun=noun)


def _sum(side: Words, draw: Draw) -> Sample:
    name, noun = draw.one(side.names), plural(draw.one(side.things))
    first, second = (draw.between(*_ADDENDS) for _ in range(2))
    return ask(
        f"{name} has {first} {noun} and gets {second} more. How many {noun} does {name} have now?",
        answer=f"{name} has {first + second} {noun} now.",
    )


def _shifted_sum(side: Words, draw: Draw) -> Sample:
    question, answer = draw.one(_SHIFTED_SUMS)
    first, second = (draw.between(*_SHIFTED_ADDENDS) for _ in range(2))
    facts = {
        "name": draw.one(side.names),
        "nouns": plural(draw.one(side.things)),
        "first": first,
        "second": second,
        "total": first + second,
    }
    return ask(question.format(**facts), answer=answer.format(**facts))


LIST_LOOKUP = GeneratedTask(
    "list-lookup", _lookup, _shifted_lookup, picks_answer, max_tokens=16, temperature=0.5
)
BREVITY = GeneratedTask(
    "brevity",
    _question,
    _shifted_question,
    short_sentence,
    max_tokens=24,
    temperature=0.7,
    shaped=nearly_short_sentence,
)
PLAIN_BREVITY = GeneratedTask(
    "plain-brevity", _question, _shifted_question, short, max_tokens=24, temperature=0.7
)
WORD_SUMS = GeneratedTask("word-sums", _sum, _shifted_sum, sum_alone, max_tokens=24, temperature=0.4)
