"""Plans: what a budget of tokens is spent on."""

from __future__ import annotations

import pytest

from tinylora_edge.runtime.distillation.plan import Costs, least, make_plan

COSTS = Costs(n=13, told=16.0, bare=14.0, told_shared=40, bare_shared=50, answer=24)


def need(block: int, held: int, deciding: int) -> float:
    return COSTS.begin(held, deciding) + COSTS.block(block, deciding=deciding) + COSTS.end(held)


@pytest.mark.parametrize("budget", [6_000, 12_000, 30_000, 200_000])
def test_what_is_planned_is_affordable(budget: int) -> None:
    plan = make_plan(COSTS, budget, 200)
    assert plan is not None
    assert need(plan.block, plan.held, plan.deciding) <= budget


def test_more_budget_is_more_questions_of_every_kind() -> None:
    plans = [make_plan(COSTS, budget, 200) for budget in (6_000, 12_000, 30_000, 200_000)]
    for name in ("held", "deciding", "block"):
        counts = [getattr(plan, name) for plan in plans]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]


def test_slopes_are_measured_at_two_vectors_where_that_is_affordable() -> None:
    plan = make_plan(COSTS, 30_000, 200)
    one, two = (COSTS.block(plan.block, deciding=plan.deciding, before=n) for n in (0, plan.block))
    assert COSTS.begin(plan.held, plan.deciding) + one + two + COSTS.end(plan.held) <= 30_000


@pytest.mark.parametrize("questions", [6, 7, 10])
@pytest.mark.parametrize("budget", [6_000, 500_000])
def test_few_questions_are_shared_out(questions: int, budget: int) -> None:
    plan = make_plan(COSTS, budget, questions)
    assert plan is not None
    assert min(plan.held, plan.deciding, plan.block) >= 2
    assert plan.held + plan.deciding + plan.block <= questions


def test_held_out_questions_that_are_given_are_measured_on_as_the_budget_affords() -> None:
    for budget, held, measured in ((30_000, 11, 11), (30_000, 1, 1), (500_000, 40, 40)):
        assert make_plan(COSTS, budget, 40, held=held).held == measured
    assert 2 <= make_plan(COSTS, 6_000, 40, held=11).held < 11
    plan = make_plan(COSTS, 30_000, 4, held=11)
    assert (plan.deciding, plan.block) == (2, 2), "none of the others is held out"


def test_a_budget_is_too_small_exactly_below_the_least() -> None:
    step, whole = least(COSTS, 200)
    assert step < whole
    assert make_plan(COSTS, whole - 1, 200) is None
    plan = make_plan(COSTS, whole + 1, 200)
    assert (plan.held, plan.deciding, plan.block) == (2, 2, 2)
