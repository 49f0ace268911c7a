"""Module names, their canonical order, targets, and orders of rows."""

from __future__ import annotations

import random

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import BasisError, modules

# docs/FORMAT.md, "Modules and groups", in its order.
ORDER = [
    *("attn_q", "attn_qkv", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
]


def names(blocks, kinds=ORDER):
    return [f"blk.{block}.{kind}.weight" for block in blocks for kind in kinds]


@given(st.lists(st.tuples(st.integers(0, 120), st.sampled_from(ORDER)), unique=True), st.randoms())
def test_canonical_order_is_by_block_as_a_number_then_by_kind(pairs, shuffle: random.Random):
    expected = [f"blk.{b}.{k}.weight" for b, k in sorted(pairs, key=lambda p: (p[0], ORDER.index(p[1])))]
    mixed = list(expected)
    shuffle.shuffle(mixed)
    assert modules.canonical_order(mixed) == expected


@pytest.mark.parametrize(
    "name", ["", "attn_q", "blk.x.attn_q.weight", "blk.0.attn_q.bias", "blk.0.attn_q.weight\n", "q.weight"]
)
def test_what_is_not_a_module_name(name):
    with pytest.raises(BasisError, match="not a module name"):
        modules.parse(name)
    assert not modules.is_adaptable(name)


def test_parse_and_is_adaptable():
    assert modules.parse("blk.17.attn_v.weight") == (17, "attn_v")
    assert all(modules.is_adaptable(name) for name in names([0, 31], [*modules.KINDS, *modules.BEYOND]))
    for other in ("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight"):
        assert not modules.is_adaptable(other)
    mixed = names([0], [*modules.BEYOND, *modules.KINDS])
    assert modules.canonical_order(mixed) == names([0], [*modules.KINDS, *modules.BEYOND])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, names(range(12), ORDER[:3])),
        ([], names(range(12), ORDER[:3])),
        (["attn_k"], names(range(12), ["attn_k"])),
        (["blk.3.attn_q.weight"], ["blk.3.attn_q.weight"]),
        (["blk.1?.attn_k.weight"], names([10, 11], ["attn_k"])),
        (["attn_qk*", "attn_k", "attn_k"], names(range(12), ["attn_qkv", "attn_k"])),
        (["blk.2.*"], names([2], ORDER[:3])),
        (["light"], names(range(8), ORDER[:3])),
        (["light", "blk.9.attn_q.weight"], [*names(range(8), ORDER[:3]), "blk.9.attn_q.weight"]),
        (["!light"], names(range(8, 12), ORDER[:3])),
    ],
)
def test_select(targets, expected):
    available = names(range(12), ORDER[:3])
    assert modules.select(available[::-1], targets) == expected


def test_a_target_without_a_module_names_the_kinds_that_there_are():
    with pytest.raises(BasisError, match=r"'attn_v'.*attn_q, attn_k, ffn_down"):
        modules.select(names(range(2), ["ffn_down", "attn_k", "attn_q"]), ["attn_q", "attn_v"])


def test_leaving_out_of_all_or_of_what_the_others_choose():
    available = names(range(2), ["attn_q", "attn_k", "ffn_up_exps", "ffn_down_exps"])
    for targets in (["!*_exps"], ["attn_*"]):
        assert modules.select(available, targets) == names(range(2), ["attn_q", "attn_k"])
    for targets in (["attn_*", "!attn_k", "!blk.1.*"], ["!blk.1.*", "attn_q"]):
        assert modules.select(available, targets) == names([0], ["attn_q"])
    with pytest.raises(BasisError, match=r"attn_q, !attn_\* leave no module"):
        modules.select(available, ["attn_q", "!attn_*"])


def test_one_head_of_keys_needs_no_other_order():
    values = {"num_attention_heads": 71, "num_kv_heads": 71, "multi_query": True}
    heads = modules.read_heads(values.get)
    assert heads == (71, 1)
    assert modules.listed_order("falcon", "attn_qkv", 73 * 64, heads).tolist() == list(range(73 * 64))
    assert modules.read_heads((values | {"new_decoder_architecture": True, "num_kv_heads": 8}).get) == (71, 8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (None, None)),
        ({"num_attention_heads": 4}, (4, 4)),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, (4, 2)),
        ({"num_attention_heads": [4, 8], "num_key_value_heads": 0}, (None, None)),
        ({"num_attention_heads": -1}, (None, None)),
    ],
)
def test_heads_of_a_configuration(values, expected):
    assert modules.read_heads(values.get) == expected


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("mistral", "llama"), ("gpt_neox", "gptneox"), ("qwen2", "qwen2"), ("gpt-oss", "gpt-oss"), ("no", None)],
)
def test_names_of_architectures(model_type, expected):
    assert modules.find_architecture(model_type, set(gguf.MODEL_ARCH_NAMES.values())) == expected
