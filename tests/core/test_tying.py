"""Tying maps: the definitions of docs/FORMAT.md, "Modules and tying", and what training relies on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import BasisError
from tinylora_edge.modules import KINDS, canonical_order, parse
from tinylora_edge.projection import SCHEMES, tie

LLAMA = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

modules = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(KINDS)), min_size=1, max_size=120, unique=True
).map(lambda pairs: canonical_order(f"blk.{block}.{kind}.weight" for block, kind in pairs))


def model(blocks: int) -> list[str]:
    return [f"blk.{block}.{kind}.weight" for block in range(blocks) for kind in LLAMA]


@given(modules, st.data())
def test_tiled(names, data):
    groups = data.draw(st.integers(1, len(names)))
    tying = tie(names, "tiled", groups)
    assert tying.dtype == np.int32
    assert tying.tolist() == [j * groups // len(names) for j in range(len(names))]
    assert (np.diff(tying) >= 0).all()
    sizes = np.bincount(tying, minlength=groups)
    assert sizes.size == groups
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


@given(modules, st.data())
def test_structured(names, data):
    kinds = Counter(parse(name)[1] for name in names)
    # every kind has room for its share where no share is larger than the smallest kind
    most = len(kinds) * min(kinds.values())
    groups = data.draw(st.integers(len(kinds), most))
    tying = tie(names, "structured", groups)
    assert tying.dtype == np.int32
    assert set(tying.tolist()) == set(range(groups))
    groups_of = {}
    for kind in kinds:
        rows = [int(g) for name, g in zip(names, tying, strict=True) if parse(name)[1] == kind]
        assert rows == sorted(rows), "tiled over depth"
        sizes = Counter(rows).values()
        assert max(sizes) - min(sizes) <= 1
        groups_of[kind] = set(rows)
    assert sum(len(rows) for rows in groups_of.values()) == groups, "no group serves two kinds"
    shares = [len(rows) for rows in groups_of.values()]
    assert max(shares) - min(shares) <= 1


def test_the_default_on_smollm2():
    tying = tie(model(30), "tiled", 13)
    assert tying.size == 210
    assert sorted(Counter(tying.tolist()).values()) == [16] * 11 + [17] * 2
    assert tying[[0, 16, 17, 209]].tolist() == [0, 0, 1, 12]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("groups", [0, -1, 15])
def test_groups_out_of_range(scheme, groups):
    with pytest.raises(BasisError, match=rf"{groups} groups for 14 modules"):
        tie(model(2), scheme, groups)


def test_errors_name_what_was_asked_and_what_there_is():
    with pytest.raises(BasisError, match=r"'random'.*full, structured, tiled"):
        tie(model(1), "random", 1)
    with pytest.raises(BasisError, match="1 groups for 0 modules"):
        tie([], "tiled", 1)
    with pytest.raises(BasisError, match="canonical order"):
        tie(model(2)[::-1], "tiled", 2)
    with pytest.raises(BasisError, match="one group, not 2"):
        tie(model(2), "full", 2)
    with pytest.raises(BasisError, match=r"7 kinds.*attn_q.*6 were asked"):
        tie(model(2), "structured", 6)


@given(st.integers(1, 10), st.integers(0, 10), st.data())
def test_structured_refuses_more_groups_than_a_kind_has_modules(rare, more, data):
    share = rare + 1
    common = share + 1 + more
    names = [f"blk.{block}.attn_q.weight" for block in range(common)]
    names += [f"blk.{block}.ffn_down.weight" for block in range(rare)]
    with pytest.raises(BasisError, match=rf"{share} groups to the {rare} modules of kind ffn_down"):
        tie(canonical_order(names), "structured", 2 * share - data.draw(st.integers(0, 1)))
