"""Tasks that need no download: prompts built from fixed word lists, the same for a seed everywhere.

Training and held-out prompts are built from disjoint lists of words (`_words`). The seed draws the training
prompts; the held-out ones are the same for every seed, so that runs can be compared. The figures in the
docstrings are greedy held-out scores of SmolLM2-135M-Instruct (Q4_1) before any training, n = 128.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import TrainError
from . import _words
from ._split import Draw
from .rewards import exact_number, picks_answer
from .rewards.guards import own_words, repeats, without_genitive, words
from .rewards.numbers import numbers_in
from .task import Completion, Reward, Sample, Task

Build = Callable[[_words.Words, Draw], Sample]
"""Makes one sample from one side's words."""

_LIST_LENGTH = 4
_QUESTIONS = (
    "What is {noun}?",
    "How would you define {noun}?",
    "What makes {noun} special?",
    "What is the purpose of {noun}?",
    "Why do people like {noun}?",
)
_LONGEST_SENTENCE = 14  # words of a short sentence
_SMALLEST, _LARGEST = 2, 9  # the addends of word sums


def generate(
    name: str,
    build: Build,
    reward: Reward,
    seed: int,
    train: int,
    held_out: int,
    *,
    max_tokens: int,
    temperature: float,
    shaped: Reward | None = None,
) -> Task:
    """Return a task with distinct prompts on each side, built until there are as many as asked for.

    Raises:
        TrainError: the word lists do not give that many different prompts.
    """
    return Task(
        name,
        _distinct(f"{name}/train/{seed}", build, _words.TRAIN, train),
        _distinct(f"{name}/held_out", build, _words.HELD_OUT, held_out),
        reward,
        max_tokens=max_tokens,
        temperature=temperature,
        shaped=shaped,
    )


def list_lookup(seed: int, train: int, held_out: int) -> Task:
    """Which of four words is the last one: 1 if the answer has it, and none of the others. Base: .34."""

    def build(side: _words.Words, draw: Draw) -> Sample:
        *others, last = draw.some(side.short, _LIST_LENGTH)
        return ask(
            f"List: {', '.join([*others, last])}. What is the last word in the list?",
            answer=last,
            others=tuple(others),
        )

    return generate("list-lookup", build, picks_answer, seed, train, held_out, max_tokens=16, temperature=0.5)


def brevity(seed: int, train: int, held_out: int) -> Task:
    """A question about a noun, to be answered in a few words: see `short_sentence`. Base: .13."""
    return generate(
        "brevity",
        _question,
        short_sentence,
        seed,
        train,
        held_out,
        max_tokens=24,
        temperature=0.7,
        shaped=nearly_short_sentence,
    )


def plain_brevity(seed: int, train: int, held_out: int) -> Task:
    """The prompts of `brevity` with a reward that can be hacked, kept for comparison: see `short`.

    Base: .06.
    """
    return generate("plain-brevity", _question, short, seed, train, held_out, max_tokens=24, temperature=0.7)


def word_sums(seed: int, train: int, held_out: int) -> Task:
    """Sums of two numbers from 2 to 9, told as a story: see `sum_alone`. Base: .25."""

    def build(side: _words.Words, draw: Draw) -> Sample:
        name, noun = draw.one(side.names), _words.plural(draw.one(side.things))
        first, second = (_SMALLEST + draw.below(_LARGEST - _SMALLEST + 1) for _ in range(2))
        return ask(
            f"{name} has {first} {noun} and gets {second} more. How many {noun} does {name} have now?",
            answer=f"{name} has {first + second} {noun} now.",
        )

    return generate("word-sums", build, sum_alone, seed, train, held_out, max_tokens=24, temperature=0.4)


def short_sentence(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself, has 4 to 14 words and the noun asked about, and ends with a period.

    Guards: saying the noun back is not enough: two words must be the answer's own, not the question's and
    not function words; a phrase three times in a row gets 0.
    """
    text = completion.text.strip()
    sequence = words(text)
    return float(
        completion.ended
        and 4 <= len(sequence) <= _LONGEST_SENTENCE
        and text.endswith(".")
        and has_noun(sequence, sample)
        and len(own_words(text, sample)) >= 2
        and not repeats(text)
    )


def nearly_short_sentence(completion: Completion, sample: Sample) -> float:
    """1 for what `short_sentence` gives 1, and up to 0.5 for what comes near.

    0.05 for an answer of 24 words that ended by itself, and 0.05 more for every word less; half of it without
    a period.

    Guards: those of `short_sentence`: less than 4 words, no noun, less than two words of its own, or a phrase
    three times in a row get 0, however short. So does what the token limit cut.
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
    """`exact_number`, and no number besides those of the question and the result.

    Guards: those of `exact_number`; and since only the last number counts there, running through numbers
    until the limit cuts would sometimes stop at the right one: any further number gets 0.
    """
    given = set(numbers_in(sample.text)) | set(numbers_in(sample.answer or ""))
    return float(set(numbers_in(completion.text)) <= given and exact_number(completion, sample) == 1.0)


def has_noun(sequence: Sequence[str], sample: Sample) -> bool:
    """Whether words have the noun that the sample is about, in singular or plural."""
    noun = sample.data["noun"]
    return any(without_genitive(word) in (noun, _words.plural(noun)) for word in sequence)


def ask(question: str, answer: str | None = None, **data: object) -> Sample:
    """Return a sample of one user message."""
    return Sample(({"role": "user", "content": question},), answer, data)


def _question(side: _words.Words, draw: Draw) -> Sample:
    noun = draw.one(side.nouns)
    question = draw.one(_QUESTIONS).format(noun=_words.article(noun))
    return ask(f"{question} Answer in a few words.", noun=noun)


def _distinct(seed: str, build: Build, side: _words.Words, count: int) -> tuple[Sample, ...]:
    draw = Draw(seed)
    found: dict[str, Sample] = {}
    vain = 0
    while len(found) < count:
        sample = build(side, draw)
        vain = vain + 1 if sample.text in found else 0
        found.setdefault(sample.text, sample)
        if vain > 2000:
            raise TrainError(
                f"{seed.split('/')[0]}: the word lists give about {len(found)} different prompts on the "
                f"{seed.split('/')[1]} side, but {count} were asked for: ask for fewer"
            )
    return tuple(found.values())
