"""What is known of architectures: names, the order of rows, and where llama.cpp applies adapters."""

from __future__ import annotations

RENAMED = {
    "mistral": "llama",
    "mixtral": "llama",
    "smollm": "llama",
    "phi": "phi2",
    "gemma3_text": "gemma3",
    "gpt_bigcode": "starcoder",
    "cohere": "command-r",
    "hunyuan_v1_dense": "hunyuan-dense",
    "gpt_oss": "gpt-oss",
}
"""`model_type` -> `general.architecture`, where they differ by more than punctuation."""

PERMUTED = frozenset(
    {
        "llama", "granite", "granitemoe", "granitehybrid", "minicpm", "deepseek", "arcee", "baichuan",
        "xverse", "internlm2", "olmo", "smollm3", "nanbeige", "llada",
    }
)  # fmt: skip
"""`general.architecture` of those whose rows of q and k it permutes (its classes with `undo_permute`, and
three with a permutation of their own)."""

TESTED = frozenset(
    {
        "deepseek2", "falcon", "gemma2", "gemma3", "gpt-oss", "granite", "llama", "phi3", "qwen2", "qwen2moe",
        "qwen3", "qwen3moe",
    }
)  # fmt: skip
"""Those for which a test compares llama.cpp's logits under a vector with torch's."""

_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"})
_DENSE = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_SHARED = frozenset({"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"})

DIRECT: dict[str, frozenset[str]] = {
    "bailingmoe3": _ATTENTION,
    "deepseek2": frozenset({"attn_q"}),
    "glm5-next": _ATTENTION,
    "granite-switch": _ATTENTION | _DENSE,
    "kimi-k3": _ATTENTION | _DENSE | _SHARED,
    "kimi-linear": _ATTENTION,
    "plm": frozenset({"attn_q"}),
}
"""Kinds whose weights llama.cpp multiplies itself, past `build_lora_mm`: an adapter there does nothing.

Read from the sources of llama.cpp in llama-cpp-python 0.3.36. A kind that is multiplied directly in some
blocks and not in others counts.
"""

SHARED_KV = "{architecture}.attention.shared_kv_layers"
"""GGUF key: so many blocks at the end take keys and values from earlier ones, and ignore their own."""

SHARED_KV_FROM = {"gemma3n": 20}
"""The first block that does, in an architecture whose GGUF does not say it."""

NEXT_TOKENS = "{architecture}.nextn_predict_layers"
"""GGUF key: so many blocks at the end predict further tokens, and take no part in decoding."""
