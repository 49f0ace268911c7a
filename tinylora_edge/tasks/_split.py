"""The split into held out or not: the prompt alone decides, so equal prompts land on the same side."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from ..errors import TrainError
from .task import Sample

HELD_OUT_SHARE = 0.2  # of the distinct prompts, where a file does not say which are held out

_T = TypeVar("_T")


def rank(sample: Sample) -> float:
    """Return a number in [0, 1) that depends on the prompt alone: not on a seed, a file or its order.

    Prompts that differ only in upper and lower case or in spaces have the same one, and so do a text and
    the one message of the user that a template makes of it.
    """
    prompt = sample.prompt
    if isinstance(prompt, str) or [message["role"] for message in prompt] == ["user"]:
        text = sample.text
    else:
        text = "\x00".join(f"{message['role']}\x01{message['content']}" for message in prompt)
    canonical = " ".join(text.casefold().split())
    return (
        int.from_bytes(hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48
    )


def split_by_prompt(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return train and held-out samples: a fifth of the distinct prompts, about, is held out.

    Adding samples to a file moves none of its others to the other side.
    """
    train: list[Sample] = []
    held_out: list[Sample] = []
    for sample in samples:
        (held_out if rank(sample) < HELD_OUT_SHARE else train).append(sample)
    return train, held_out


def limit(
    train: list[Sample],
    held_out: list[Sample],
    *,
    count: int | None,
    held_out_count: int,
    seed: int,
    name: str,
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Cut both sides to the numbers asked for.

    Held-out samples come in the order of their `rank`: the same ones for every seed, and a smaller number
    is the beginning of a larger one, so that measurements stay comparable. Of the training samples the
    seed picks `count` (None: all), in file order.

    Raises:
        TrainError: a side is empty.
    """
    for samples, side in ((train, "training"), (held_out, "held-out")):
        if not samples:
            raise TrainError(
                f"{name}: it has {len(train)} training and {len(held_out)} held-out samples, expected at "
                f'least one {side} sample: add samples, or mark them with "split": "train" or "held_out"'
            )
    kept = range(len(train))
    if count is not None and count < len(train):
        kept = sorted(Draw(f"{name}/train/{seed}").some(kept, count))  # type: ignore[assignment]
    return tuple(train[index] for index in kept), first(held_out, held_out_count)


def first(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """Return the first samples in the order of their `rank`: `count`, or all where there are fewer."""
    return tuple(sorted(samples, key=rank)[:count])


class Draw:
    """Choices that are the same on every platform and Python version.

    Python promises to keep the sequence of `random()` for a seed, but not what `sample` makes of it.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1."""
        return int(self._random.random() * n)

    def between(self, lowest: int, highest: int) -> int:
        """Return a whole number from `lowest` to `highest`, both included."""
        return lowest + self.below(highest - lowest + 1)

    def one(self, items: Sequence[_T]) -> _T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[_T], count: int) -> list[_T]:
        """Return `count` of the items, each at most once, in random order."""
        pool = list(items)
        for index in range(count):
            other = index + self.below(len(pool) - index)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]
