"""Configurations of small models, one for each architecture that parity is tested for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VOCABULARY = 256 + 4  # every byte, and the special tokens

_OWN = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "falcon")
_EXPERTS = ("qwen2moe", "qwen3moe", "gpt-oss", "deepseek2")
GGUF_NAMES = {name: name for name in (*_OWN, *_EXPERTS)} | {"mistral": "llama", "mixtral": "llama"}
"""Architecture -> its `general.architecture`."""


def configuration(architecture: str, hidden: int, blocks: int) -> tuple[PretrainedConfig, type]:
    """A model with grouped-query attention and untied embeddings, and what its family does in its own way."""
    import transformers

    special: dict[str, Any] = {"tie_word_embeddings": False, "attn_implementation": "eager"}
    special |= {"bos_token_id": 256, "eos_token_id": 257}
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        **special,
    }
    windows: dict[str, Any] = {
        "sliding_window": 8,  # shorter than the tests' prompts
        "layer_types": [("sliding_attention", "full_attention")[block % 2] for block in range(blocks)],
    }
    gemma: dict[str, Any] = {"head_dim": 24, "query_pre_attn_scalar": 24, "pad_token_id": 258} | windows
    softcapped: dict[str, Any] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
    softcapped["tie_word_embeddings"] = True  # llama.cpp knows no others here
    scaled = {"embedding_multiplier": 2.0, "residual_multiplier": 0.7}
    scaled |= {"attention_multiplier": 0.2, "logits_scaling": 3.0}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden}
    shared = {"shared_expert_intermediate_size": 96, "norm_topk_prob": False}
    local_experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    make: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("Llama", common),
        "mistral": ("Mistral", common | {"head_dim": 24, "sliding_window": None}),
        "mixtral": ("Mixtral", common | local_experts),
        "qwen2": ("Qwen2", common),
        "qwen3": ("Qwen3", common | {"head_dim": 24}),
        "gemma2": ("Gemma2", common | gemma | softcapped),
        "gemma3": ("Gemma3", common | gemma),
        "phi3": ("Phi3", common | {"pad_token_id": 258}),
        "granite": ("Granite", common | scaled),
        "falcon": (
            "Falcon",
            special
            | {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": blocks}
            | {"num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True}
            | {"bias": False, "alibi": False, "max_position_embeddings": 512}
            | {"activation": "gelu_pytorch_tanh"},  # as llama.cpp has it; trained models use erf
        ),
        "qwen2moe": ("Qwen2Moe", common | experts | shared),
        # norm_topk_prob: as llama.cpp has it
        "qwen3moe": ("Qwen3Moe", common | experts | {"head_dim": 16, "norm_topk_prob": True}),
        # as DeepSeek-V2-Lite: no low rank for q, one dense block, an expert that all tokens share
        "deepseek2": (
            "DeepseekV2",
            common
            | {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32}
            | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
            | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
            | {"moe_intermediate_size": 96, "first_k_dense_replace": 1, "norm_topk_prob": False},
        ),
        "gpt-oss": (
            "GptOss",
            common
            | local_experts
            | windows
            | {"intermediate_size": 96, "head_dim": 24, "pad_token_id": 258}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
        ),
    }
    family, values = make[architecture]
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    return getattr(transformers, name)(**values), getattr(transformers, f"{family}ForCausalLM")
