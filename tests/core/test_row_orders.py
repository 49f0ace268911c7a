"""Row orders: those of the tests' own converter, and the names and heads that they are looked up by."""

from __future__ import annotations

import architectures
import gguf
import models
import numpy as np
import pytest

from tinylora_edge.modules import (
    find_architecture,
    inverse,
    listed_order,
    parse,
    read_heads,
)

KNOWN = set(gguf.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize("architecture", ["llama", "mistral", "granite", "qwen2", "phi3", "falcon"])
def test_the_listed_order_is_that_of_the_gguf(architecture):
    model = models.tiny_model(architecture)
    config = model.config
    heads = read_heads(lambda name: getattr(config, name, None))
    name = find_architecture(config.model_type, KNOWN)
    assert name == architectures.GGUF_NAMES[architecture]
    hf = {key: value.numpy() for key, value in model.state_dict().items()}
    table = gguf.get_tensor_name_map({n: a for a, n in gguf.MODEL_ARCH_NAMES.items()}[name], 2)
    by_module = {f"{table.get_name(key.removesuffix('.weight'))}.weight": value for key, value in hf.items()}
    seen = 0
    for module, converted in models.gguf_tensors(model).items():
        if module.startswith("blk.") and converted.ndim == 2:
            weight = by_module[module]
            order = listed_order(name, parse(module)[1], len(weight), heads)
            assert order.dtype == np.int64
            np.testing.assert_array_equal(weight[order], converted)
            np.testing.assert_array_equal(converted[inverse(order)], weight)
            seen += 1
    assert seen >= 8


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
