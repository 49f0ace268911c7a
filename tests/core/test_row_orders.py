"""Row orders: those of the tests' own converter, and the names and heads that they are looked up by."""

from __future__ import annotations

import gguf
import pytest

from tinylora_edge.modules import find_architecture, listed_order, read_heads

KNOWN = set(gguf.MODEL_ARCH_NAMES.values())


def test_one_head_of_keys_needs_no_other_order():
    values = {"num_attention_heads": 71, "num_kv_heads": 71, "multi_query": True}
    heads = read_heads(values.get)
    assert heads == (71, 1)
    assert listed_order("falcon", "attn_qkv", 73 * 64, heads).tolist() == list(range(73 * 64))
    assert read_heads((values | {"new_decoder_architecture": True, "num_kv_heads": 8}).get) == (71, 8)


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
    assert read_heads(values.get) == expected


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("mistral", "llama"), ("gpt_neox", "gptneox"), ("qwen2", "qwen2"), ("gpt-oss", "gpt-oss"), ("no", None)],
)
def test_names_of_architectures(model_type, expected):
    assert find_architecture(model_type, KNOWN) == expected
