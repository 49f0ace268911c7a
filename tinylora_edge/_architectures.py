"""What convert_hf_to_gguf makes of Hugging Face's architectures: their names, and the order of rows."""

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
