"""Every reader under a seeded mutator: whatever comes in, it is read, or refused with an error of the tree.

The long form is `make fuzz`, which drives the same harnesses by coverage (docs/RELIABILITY.md).
"""

from __future__ import annotations

import tracemalloc
import warnings
from random import Random

import harness
import pytest
from mutations import STRANGE, as_json, changed, damaged
from readers import READERS

CASES = 400


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses(name: str) -> None:
    reader = READERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accepted = [reader.accepts(case) for case in reader.cases(CASES)]
    assert True in accepted, "the harness makes nothing that its reader takes"
    assert accepted.count(False) > CASES // 10, "the harness damages nothing"


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_no_more_memory_than_it_may(name: str) -> None:
    reader, random = READERS[name], Random(name)
    cases = [reader.make(random) for _ in range(10)]
    cases += [piece * (200_000 // len(piece)) for case in cases[:3] if (piece := case[-64:])]
    cases += [case + bytes(1 << 19) for case in cases[:2]]
    tracemalloc.start()
    try:
        for case in cases:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.accepts(case)
            assert tracemalloc.get_traced_memory()[1] - before < harness.MEMORY
    finally:
        tracemalloc.stop()


def test_cases_follow_from_their_seed() -> None:
    reader = READERS["frame"]
    assert list(reader.cases(50)) == list(reader.cases(50)) != list(reader.cases(50, seed=1))


def test_the_mutator_damages_and_stays_within_its_bounds() -> None:
    random = Random(0)
    lengths = {len(damaged(b"0123456789", random, 100_000)) for _ in range(3000)}
    assert max(lengths) <= 100_000
    assert {0, 9, 10, 11} < lengths
    assert len({as_json(changed({"a": STRANGE}, random)) for _ in range(200)}) > 100


def test_a_violation_is_seen() -> None:
    """Neither the harness nor `accepts` hides an error of another tree."""
    broken = harness.Harness("broken", lambda random: b"x", lambda data: [][len(data)])
    with pytest.raises(IndexError):
        list(map(broken.accepts, broken.cases(1)))
