"""The plan of a step: which tokens an engine evaluates next, a pure function of what its rows have and want.

Where a prompt is cut depends on the prompt and on the engine's chunk alone. So whoever else is there, a row's
tokens are evaluated in the same pieces, and its logits have the same bits. Fairness decides whose piece is
next, never how long it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROWS, PROMPT = 4, 8
"""The share of an account in a step, where several accounts have rows: the rows that generate, or as many as
the account with the second most rows has; and the tokens of prompts, where another account generates. Tokens
that it does not use are saved, up to a chunk. On two cores another account's step takes 2 to 4 times as long
as alone.
"""

BUDGET_ROW = 4
"""Most tokens of prompts in a step, for each row. It is a chunk at least. Larger budgets make prompts no
faster, and keep those that generate waiting; with smaller ones many rows would stand empty."""

TOGETHER = 512
"""Most tokens of prompts in a step of `plan_together`, as many as engines evaluate at once."""

SCORED = 32
"""Most tokens with logits in one piece: a token's logits are 200 kB, and more at once save no time."""


class Ready(NamedTuple):
    """A row that has tokens to evaluate.

    Attributes:
        row: its number in the engine.
        account: whose it is.
        had: tokens that were evaluated so far for its account, and for its tenant.
        turn: it is in the middle of a turn.
        arrived: the number of its sequence, in the order in which they got rows.
        held: tokens that the row holds.
        size: tokens that are known, more than it holds.
        first: index of the first token whose logits are wanted.
    """

    row: int
    account: str
    had: tuple[int, int]
    turn: bool
    arrived: int
    held: int
    size: int
    first: int


class Piece(NamedTuple):
    """The next tokens of a row: how many, and how many of the last ones have logits that are wanted."""

    row: int
    size: int
    wanted: int


class Plan(NamedTuple):
    """What a step evaluates.

    Attributes:
        together: pieces that one evaluation takes.
        alone: pieces that are evaluated each by itself.
        saved: tokens of prompts that accounts have saved; those that are not in it have saved a chunk.
    """

    together: list[Piece]
    alone: list[Piece]
    saved: dict[str, int]


def piece(ready: Ready, chunk: int) -> Piece:
    """Return a row's next piece: it ends at a multiple of the chunk, or where the known tokens end, or behind
    `SCORED` tokens with logits."""
    end = min(ready.size, ready.held // chunk * chunk + chunk, max(ready.held, ready.first) + SCORED)
    return _piece(ready, end)


def plan(rows: Sequence[Ready], saved: Mapping[str, int], *, chunk: int) -> Plan:
    """Return a step whose logits have the bits that each row has alone.

    As long as there are rows it has a piece. The account for which the fewest tokens were evaluated comes
    first. Of its rows those in the middle of a turn do, then those of the tenant with the fewest tokens.

    Args:
        rows: those that have something to evaluate.
        saved: tokens of prompts that accounts have saved, of the plan before.
        chunk: the engine's.
    """
    pieces = [(ready, piece(ready, chunk)) for ready in sorted(rows, key=_rank)]
    counts = [many for _, many in Counter(ready.account for ready in rows).most_common(2)]
    most_rows = max(ROWS, counts[1]) if len(counts) > 1 else len(rows)
    generating = {ready.account for ready, next_one in pieces if next_one.size == 1}
    saved = {account: tokens + PROMPT for account, tokens in saved.items() if tokens + PROMPT < chunk}
    left, taken = max(chunk, BUDGET_ROW * len(rows)), Counter[str]()
    together, alone = list[Piece](), list[Piece]()
    for ready, next_one in pieces:
        account, size = ready.account, next_one.size
        if size == 1:
            if taken[account] < most_rows:
                taken[account] += 1
                together.append(next_one)
            continue
        has = saved.get(account, chunk)
        if size <= left and (size <= has or generating <= {account}):
            left -= size
            saved[account] = max(0, has - size)
            alone.append(next_one)
    return Plan(together, alone, saved)


def plan_together(rows: Sequence[Ready]) -> Plan:
    """Return a step that evaluates as much as it can at once, in the order of the rows: faster for one client
    with many sequences, and bits depend on what runs beside a row."""
    left, logits, pieces = TOGETHER, max(SCORED, len(rows)), list[Piece]()
    for ready in rows:
        end = min(ready.size, ready.held + left, max(ready.held, ready.first) + logits)
        if end > ready.held:
            pieces.append(next_one := _piece(ready, end))
            left -= next_one.size if next_one.size > 1 else 0
            logits -= next_one.wanted
    return Plan(pieces, [], {})


def _piece(ready: Ready, end: int) -> Piece:
    return Piece(ready.row, end - ready.held, max(0, end - max(ready.held, ready.first)))


def _rank(ready: Ready) -> tuple[int, bool, int, int]:
    account, tenant = ready.had
    return account, not ready.turn, tenant, ready.arrived
