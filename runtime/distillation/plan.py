"""The plan of distilling on the device: what a budget of tokens is spent on, before any of it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .replacement import SHOWN, SHOWN_TOKENS, TIMED

FEWEST = 6
"""Questions at least: two to learn from, two that decide, two to measure on."""

_HELD, _DECIDING = 16, 8  # questions at most
_SHARE_HELD, _SHARE_DECIDING = 0.12, 0.15  # of the budget, about
_BLOCK = 16  # questions at most whose slopes are measured at one vector
_HALF = 4  # and at least, where the slopes are measured at two
_AGAIN = 1.15  # evaluations a slope: some steps are taken twice
_STEPS = 3  # in each block, on average


@dataclass(frozen=True)
class Costs:
    """What evaluations cost, in tokens.

    Attributes:
        n: values of v.
        told, bare: tokens of a question's prompt with what it says and without, mean, what all share aside.
        told_shared, bare_shared: tokens that all prompts share; each call evaluates them once a lane.
        answer: tokens of an answer at most.
    """

    n: int
    told: float
    bare: float
    told_shared: int
    bare_shared: int
    answer: int

    def teach(self, questions: int) -> float:
        """Tokens that it takes to have answers, and what the prompted model says at each of their tokens."""
        return 2 * (self.told_shared + questions * (self.told + self.answer)) if questions else 0.0

    def score(self, questions: int) -> float:
        """Tokens of one evaluation of the student."""
        return self.bare_shared + questions * (self.bare + self.answer) if questions else 0.0

    def slopes(self, questions: int) -> float:
        """Tokens of the slopes for all values."""
        halves = self.score(questions) + self.bare_shared
        return _AGAIN * self.n * halves

    def block(self, questions: int, *, deciding: int, before: int = 0, steps: int = _STEPS) -> float:
        """Tokens of a block: its lesson, its slopes, and steps on it and on what was there before."""
        taken = steps * (self.score(deciding) + self.score(before + questions))
        return self.teach(questions) + self.score(questions) + self.slopes(questions) + taken

    def end(self, held: int) -> float:
        """Tokens of measuring what was found."""
        told, bare = self.told + self.told_shared, self.bare + self.bare_shared
        shown = min(held, SHOWN) * (told + 2 * bare + 3 * SHOWN_TOKENS)
        return self.score(held) + shown + (min(held, TIMED) + 1) * (told + bare)

    def begin(self, held: int, deciding: int) -> float:
        """Tokens of the lessons that are not learned from, and of the student's first evaluation."""
        return self.teach(held) + self.score(held) + self.teach(deciding) + self.score(deciding)


@dataclass(frozen=True)
class Plan:
    """How many questions do what.

    Attributes:
        held: are measured on, and nothing else.
        deciding: decide whether a step is taken.
        block: have their slopes measured at one vector.
    """

    held: int
    deciding: int
    block: int


def make_plan(costs: Costs, tokens: float, questions: int, held: int | None = None) -> Plan | None:
    """Plan what a budget is spent on; None where it is too small for one step.

    Args:
        costs: of everything.
        tokens: of the budget.
        questions: that there are, without the held-out ones where these are given.
        held: held-out questions that there are; None takes some of `questions`.
    """
    if tokens < least(costs, questions, held)[1]:
        return None
    plan = _sides(costs, tokens, questions, held)
    if not _fits(costs, plan, tokens, plan.block):
        plan = _sides(costs, 0.0, questions, held)
    pool = questions - plan.deciding - (plan.held if held is None else 0)
    # Some of the questions show a step, and others what is right after it.
    most = min(_BLOCK, -(-pool // 2))
    halves = [size for size in range(_HALF, most + 1) if _fits(costs, plan, tokens, size, size)]
    whole = [size for size in range(2, min(_BLOCK, pool) + 1) if _fits(costs, plan, tokens, size)]
    return replace(plan, block=max(halves or whole))


def least(costs: Costs, questions: int, held: int | None = None) -> tuple[float, float]:
    """Return the tokens of the smallest step, and all in all those of the smallest budget."""
    plan = _sides(costs, 0.0, questions, held)
    step = costs.block(plan.block, deciding=plan.deciding)
    return step, costs.begin(plan.held, plan.deciding) + step + costs.end(plan.held)


def _sides(costs: Costs, tokens: float, questions: int, held: int | None) -> Plan:
    each = costs.told + costs.bare + 2 * costs.answer
    most = min(_HELD, questions // 3) if held is None else held
    measured = _clip(_SHARE_HELD * tokens / (2 * each), min(2, most), most)
    deciding = _clip(_SHARE_DECIDING * tokens / (6 * each), 2, min(_DECIDING, questions // 3))
    return Plan(measured, deciding, 2)


def _fits(costs: Costs, plan: Plan, tokens: float, *blocks: int) -> bool:
    """Whether so many tokens suffice for blocks of so many questions, and for all that is around them."""
    need, before = costs.begin(plan.held, plan.deciding) + costs.end(plan.held), 0
    for block in blocks:
        need += costs.block(block, deciding=plan.deciding, before=before)
        before += block
    return need <= tokens


def _clip(value: float, low: int, high: int) -> int:
    return max(low, min(int(value), high))
