"""The plan of a step, by its properties: any number of rows and accounts, who come and go at any step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tinylora_edge.runtime.plan import PROMPT, ROWS, SCORED, Piece, Ready, piece, plan, plan_together

CHUNK = 64
SLICE = 64


@dataclass
class Sequence:
    account: str
    tenant: str
    prompt: int
    answer: int  # tokens that it generates; 0: it is scored from the first token on
    held: int = 0
    waits: int = 0  # steps without a piece
    cuts: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.held >= self.prompt + self.answer

    def ready(self, row: int, had: Counter[str]) -> Ready:
        size = max(self.prompt, self.held + 1)
        first = size - 1 if self.answer else self.held
        tokens = had[self.account], had[f"{self.account}/{self.tenant}"]
        return Ready(row, self.account, tokens, self.held % SLICE > 0, row, self.held, size, first)

    def take(self, size: int) -> None:
        self.held += size
        self.cuts.append(self.held)


sequences = st.builds(
    Sequence,
    account=st.integers(0, 39).map(str),
    tenant=st.integers(0, 3).map(str),
    prompt=st.integers(1, 2000),
    answer=st.integers(0, 40),
)
arrivals = st.lists(st.tuples(st.integers(0, 30), sequences), min_size=1, max_size=64)


def alone(sequence: Sequence) -> list[int]:
    only = Sequence(sequence.account, sequence.tenant, sequence.prompt, sequence.answer)
    while not only.over:
        only.take(piece(only.ready(0, Counter()), CHUNK).size)
    return only.cuts


def check_step(found: list[Piece], rows: dict[int, Ready]) -> None:
    assert len({each.row for each in found}) == len(found), "a row has one piece"
    for each in found:
        ready, end = rows[each.row], rows[each.row].held + each.size
        assert ready.held < end <= ready.size
        assert each.wanted == max(0, end - max(ready.held, ready.first)) <= max(SCORED, len(rows))


@settings(deadline=None, max_examples=150)
@given(arrivals, st.integers(1, 64), st.randoms(use_true_random=False))
def test_every_step_evaluates_something_and_everybody_gets_on(arriving, slots, chance) -> None:
    waiting = [each for _, each in sorted(arriving, key=lambda pair: pair[0])]
    rows, had, saved, steps = dict[int, Sequence](), Counter[str](), dict[str, int](), 0
    tokens = Counter[str]()  # of prompts, by account, in steps in which another one generates
    shared = Counter[str]()  # those steps, likewise
    number = 0
    while waiting or rows:
        while waiting and len(rows) < slots:
            rows[number], number = waiting.pop(0), number + 1
        if rows and chance.random() < 0.02:
            del rows[chance.choice(sorted(rows))]  # who leaves at any time
            continue
        ready = {row: sequence.ready(row, had) for row, sequence in rows.items()}
        made = plan([*ready.values()], saved, chunk=CHUNK)
        saved = made.saved
        check_step([*made.together, *made.alone], ready)
        assert made.together or made.alone, "there is work, and nothing is evaluated"
        assert all(each.size == 1 for each in made.together)
        assert sum(each.size for each in made.alone) <= max(CHUNK, 4 * len(rows))
        generating = Counter(rows[each.row].account for each in made.together)
        accounts = Counter(each.account for each in rows.values()).most_common()
        if len(accounts) > 1:
            assert max(generating.values(), default=0) <= max(ROWS, accounts[1][1])
        for account, _ in accounts:
            if {*generating} - {account}:
                shared[account] += 1
            else:
                tokens[account], shared[account] = 0, 0
        for each in made.alone:
            tokens[rows[each.row].account] += each.size
        for account, count in shared.items():
            if count:
                assert tokens[account] <= CHUNK + PROMPT * count, "an account has more than its share"
        for sequence in rows.values():
            sequence.waits += 1
        for each in [*made.together, *made.alone]:
            sequence = rows[each.row]
            sequence.take(each.size)
            sequence.waits = 0
            had.update({sequence.account: each.size, f"{sequence.account}/{sequence.tenant}": each.size})
        # Everybody's piece comes after the others have had as much; a step evaluates a token at least.
        assert max(each.waits for each in rows.values()) <= 64 * (CHUNK // PROMPT + SLICE)
        for row in [row for row, sequence in rows.items() if sequence.over]:
            assert rows[row].cuts == alone(rows[row]), "pieces depend on who else is there"
            del rows[row]
        steps += 1
    assert steps <= sum(each.prompt + each.answer for _, each in arriving)


@settings(deadline=None)
@given(st.lists(sequences, min_size=1, max_size=64))
def test_together_every_step_evaluates_something(running: list[Sequence]) -> None:
    while running:
        ready = {row: sequence.ready(row, Counter()) for row, sequence in enumerate(running)}
        made = plan_together([*ready.values()])
        assert made.together
        assert not made.alone
        check_step(made.together, ready)
        for each in made.together:
            running[each.row].take(each.size)
        running = [each for each in running if not each.over]


def test_two_users_with_long_prompts_in_many_rows() -> None:
    """A step takes 4 tokens a row, an account saves 64: both hold a piece, which is 64 at most."""
    rows = [Ready(row, str(row % 2), (0, 0), False, row, 0, 65, 64) for row in range(32)]
    made = plan(rows, {}, chunk=CHUNK)
    assert (made.together, made.alone) == ([], [Piece(0, 64, 0), Piece(1, 64, 0)])


def test_a_prompt_is_cut_at_multiples_of_the_chunk() -> None:
    cuts = alone(Sequence("a", "a", 130, 2))
    assert cuts == [64, 128, 130, 131, 132]
    assert alone(Sequence("a", "a", 100, 0)) == [32, 64, 96, 100], "with logits at most 32 at once"
