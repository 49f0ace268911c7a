"""Several sequences at once in onnxruntime-genai, each with its own micro-vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...vector import MicroVector
from .genai import GenaiModel
from .generator import Feed, append_prompt, new_generator
from .rows import Rows
from .sampling import Sampler, Sampling

Read = Callable[[int, int, NDArray[np.float32]], Any]
"""Numbers of a prompt and of a token of its completion, and the logits that decide that token, float32
[vocabulary] -> what is to be known of them."""


@dataclass(frozen=True)
class Row:
    """One answer of a batch.

    Attributes:
        text: special tokens left out.
        tokens: int32 [n], without the end-of-sequence token.
        finish_reason: `stop` where it ended by itself, else `length`.
        vector: the one that it was generated with; None for the base.
        exploded: it ended where the logits of its row were no longer finite, because its vector is too large
            for the model.
        end: the end-of-sequence token that ended it; None where none did.
    """

    text: str
    tokens: NDArray[np.int32]
    finish_reason: str
    vector: MicroVector | None
    exploded: bool = False
    end: int | None = None


def generate_batch(
    model: GenaiModel,
    basis: Basis,
    prompts: Sequence[Sequence[int]],
    rows: Rows,
    sampling: Sampling,
    max_tokens: int,
    draws: Sequence[int],
) -> list[Row]:
    """Return an answer for each prompt; each is what the prompt would get alone, or says that it exploded.

    Args:
        model: the decoder's model.
        basis: the basis of the rows.
        prompts: token ids; the caller has checked that there is room after each.
        rows: one, or as many as prompts.
        sampling: every row draws by itself.
        max_tokens: longest answer, in tokens; 0 and less: until the context is full.
        draws: a number for each prompt, which decides its random numbers.
    """
    greedy = sampling.temperature <= 0
    samplers = {} if greedy else {i: Sampler(sampling, draw) for i, draw in enumerate(draws)}
    found = _run(model, basis, prompts, rows, samplers, max_tokens)
    vectors = rows.vectors * len(prompts) if len(rows) == 1 else rows.vectors
    return [
        Row(
            model.decode(each.tokens),
            np.array(each.tokens, np.int32),
            each.reason,
            vector,
            each.exploded,
            each.end,
        )
        for vector, each in zip(vectors, (found[i] for i in range(len(prompts))), strict=True)
    ]


def read_batch(
    model: GenaiModel,
    basis: Basis,
    prompts: Sequence[Sequence[int]],
    rows: Rows,
    completions: Sequence[Sequence[int]],
    read: Read,
) -> list[list[Any]]:
    """Return what is read wherever a token of a given completion stands: for each prompt a list, in order.

    Arguments are those of `generate_batch`; completions may be empty. A list is shorter than its completion
    where the logits of the row are not finite from there on: its vector is too large for the model.
    """
    longest = max(map(len, completions), default=0)
    followers = {i: _Follower(tokens, partial(read, i)) for i, tokens in enumerate(completions)}
    if longest:
        _run(model, basis, prompts, rows, followers, longest)
    return [follower.found for follower in followers.values()]


@dataclass
class _Sequence:
    """A sequence that is generated: its tokens so far, and how it ended."""

    tokens: list[int] = field(default_factory=list)
    end: int | None = None
    exploded: bool = False

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.end is not None

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.ended or self.exploded

    @property
    def reason(self) -> str:
        """The finish reason."""
        return "stop" if self.ended else "length"


class _Follower:
    """A sampler that draws nothing: it takes given tokens, and notes what is read at each."""

    def __init__(self, tokens: Sequence[int], read: Callable[[int, NDArray[np.float32]], Any]) -> None:
        self._tokens, self._read = tokens, read
        self.found: list[Any] = []

    def __call__(self, logits: NDArray[np.float32], before: Sequence[int]) -> int:
        """Return the next token, and once they are used up any."""
        if (at := len(self.found)) == len(self._tokens):
            return 0
        self.found.append(self._read(at, logits))
        return int(self._tokens[at])


def _run(
    model: GenaiModel,
    basis: Basis,
    prompts: Sequence[Sequence[int]],
    rows: Rows,
    samplers: Mapping[int, Callable[[NDArray[np.float32], Sequence[int]], int]],
    max_tokens: int,
) -> dict[int, _Sequence]:
    """Return by prompt what follows it."""
    rooms = [model.room(prompt, max_tokens) for prompt in prompts]
    found: dict[int, _Sequence] = {}
    for group in _groups(prompts, rooms, max_tokens, model.pad):
        feed = Feed(model, rows if len(rows) == 1 else rows.select(group), basis)
        limit = rooms[group[0]]
        found.update(_RowGroup(model, feed, {i: prompts[i] for i in group}, samplers, limit).run())
    return found


def _groups(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], max_tokens: int, pad: int
) -> list[list[int]]:
    """Return the rows that can run together, so that none is cut shorter than it would be alone.

    genai pads a batch to its longest prompt, and the padding counts towards the context. Rows whose answer
    fits whole fit beside each other as well; one whose answer the context cuts runs with those of its own
    length. A prompt that ends with the padding token runs alone: genai takes that token for padding.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for row, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        if prompt[-1] == pad:
            key = "alone", row
        elif room == max_tokens:
            key = "whole", 0
        else:
            key = "cut", len(prompt)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


class _RowGroup:
    """Sequences that run together, in one generator.

    `prompts` and `samplers` are by the number of the sequence; there are no samplers for greedy answers.
    `limit` is how many tokens each may get: the context has room for them after the longest prompt.
    """

    def __init__(
        self,
        model: GenaiModel,
        feed: Feed,
        prompts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Callable[[NDArray[np.float32], Sequence[int]], int]],
        limit: int,
    ) -> None:
        self._names = list(prompts)
        self._greedy = not samplers
        self._samplers = [samplers[name] for name in self._names if not self._greedy]
        self._eos = model.eos
        longest = max(map(len, prompts.values()))
        self._limit = limit
        self._feed = feed
        self._generator = new_generator(model, feed, batch_size=len(prompts), max_length=longest + limit)
        if len(prompts) == 1:
            append_prompt(self._generator, prompts[self._names[0]], model.pad)
        else:
            self._append_padded(prompts, longest, model.pad)

    def _append_padded(self, prompts: Mapping[int, Sequence[int]], longest: int, pad: int) -> None:
        padded = np.full((len(prompts), longest), pad, np.int32)
        for line, prompt in zip(padded, prompts.values(), strict=True):
            line[: len(prompt)] = prompt
        self._generator.append_tokens(padded)

    def run(self) -> dict[int, _Sequence]:
        """Return each sequence by its name."""
        found = {name: _Sequence() for name in self._names}
        rows = list(found.values())
        for _ in range(self._limit):
            logits = self._generator.get_logits().reshape(len(rows), -1)
            for row, top in zip(rows, logits.max(axis=1), strict=True):
                row.exploded = row.exploded or not (row.ended or np.isfinite(top))
            if all(row.over for row in rows):
                break
            for row, token in zip(rows, self._step(rows), strict=True):
                if row.over:
                    continue
                if token in self._eos:
                    row.end = token
                else:
                    row.tokens.append(token)
        return found

    def _step(self, rows: Sequence[_Sequence]) -> list[int]:
        if not self._greedy or any(row.exploded for row in rows):
            self._choose(rows)
        self._generator.generate_next_token()
        return [int(token) for token in self._generator.get_next_tokens()]

    def _choose(self, rows: Sequence[_Sequence]) -> None:
        """Choose every row's token by itself, and leave genai's greedy search no other choice."""
        logits = self._generator.get_logits()
        flat = logits.reshape(len(self._names), -1)
        chosen = np.full_like(flat, np.finfo(np.float32).min)
        for number, row in enumerate(rows):
            if row.over:
                token = 0
            elif self._greedy:
                token = int(flat[number].argmax())
            else:
                token = self._samplers[number](flat[number], ())
            chosen[number, token] = 0
        self._generator.set_logits(chosen.reshape(logits.shape))
