"""The way from word lists to the samples of a task: distinct prompts in three splits, the same everywhere.

Each split has words of its own (`words`). The seed draws the training prompts; those of the other two splits
are the same for every seed, so that runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import TrainError
from ..files import Draw
from ..guards import without_genitive
from ..task import Reward, Sample, Task
from . import words

Build = Callable[[words.Words, Draw], Sample]
"""Makes one sample from one split's words."""


def generate(
    name: str,
    build: Build,
    reward: Reward,
    seed: int,
    train: int,
    held_out: int,
    *,
    build_shifted: Build,
    max_tokens: int,
    temperature: float,
    shaped: Reward | None = None,
) -> Task:
    """Return a task with distinct prompts in each split, built until there are as many as asked for.

    Args:
        name: of the task; the draws depend on it.
        build: makes the samples of training, and those that are held out.
        reward: of the task, the same for all of them.
        seed: of the training prompts.
        train: number of training samples.
        held_out: number of held-out samples, and of shifted ones.
        build_shifted: makes the shifted samples, in other phrasings and from longer inputs.
        max_tokens: limit of a completion, in tokens.
        temperature: sampling temperature that suits the task in training.
        shaped: the reward with credit for coming near.

    Raises:
        TrainError: the word lists do not give that many different prompts.
    """
    return Task(
        name,
        _distinct(f"{name}/train/{seed}", build, words.TRAIN, train),
        _distinct(f"{name}/held_out", build, words.HELD_OUT, held_out),
        reward,
        max_tokens=max_tokens,
        temperature=temperature,
        shaped=shaped,
        shifted=_distinct(f"{name}/shifted", build_shifted, words.SHIFTED, held_out),
    )


def ask(question: str, answer: str | None = None, **data: object) -> Sample:
    """Return a sample of one user message."""
    return Sample(({"role": "user", "content": question},), answer, data)


def has_noun(sequence: Sequence[str], sample: Sample) -> bool:
    """Whether words have the noun that the sample is about, in singular or plural."""
    noun = sample.data["noun"]
    return any(without_genitive(word) in (noun, words.plural(noun)) for word in sequence)


def _distinct(seed: str, build: Build, side: words.Words, count: int) -> tuple[Sample, ...]:
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
