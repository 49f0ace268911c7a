"""A converter of its own, a page long, from a transformers model to GGUF.

The product's way of naming modules and of ordering rows is checked against it, and it against llama.cpp and
torch, whose logits must agree. What a tensor becomes is said once, in `_converted`, which only moves values:
run on their numbers instead, it also tells where a module's weight lies in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from tinylora_edge import Basis, MicroVector

_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "gemma3_text": "gemma3",
    "gpt_oss": "gpt-oss",
}
ADDS_ONE = ("gemma2", "gemma3_text")
"""Whose norms multiply with 1 + w."""
_PERMUTED = ("llama", "mistral", "mixtral", "granite")


@cache
def _names(arch: str, blocks: int) -> gguf.TensorNameMap:
    """The table that convert_hf_to_gguf names tensors by; llama.cpp says whether it finds them there."""
    (number,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    return gguf.get_tensor_name_map(number, blocks)


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    change: Callable[[str, NDArray[Any]], NDArray[Any]] = lambda name, array: array,
    architecture: str | None = None,
    metadata: dict[str, str | int] | None = None,
    raw: dict[str, gguf.GGMLQuantizationType] | None = None,
    packed: dict[str, NDArray[np.uint8]] | None = None,
    extra: dict[str, NDArray[Any]] | None = None,
    fuse_experts: bool = False,
) -> Path:
    """Write a model as F32 GGUF.

    `rename` may drop a tensor (None) or call it otherwise; `change` may alter its values; `raw` gives
    tensors a type that cannot be made here, filled with `packed` bytes or random ones; `extra`
    adds tensors; `fuse_experts` keeps gate and up of experts in one, as convert_hf_to_gguf can.
    """
    config = model.config
    arch = _ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture or arch)
    _add_metadata(writer, config, arch)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    _add_vocabulary(writer)
    tensors = gguf_tensors(model)
    if fuse_experts:
        for name in [name for name in tensors if "ffn_gate_exps" in name]:
            parts = tensors.pop(name), tensors.pop(name.replace("gate", "up"))
            tensors[name.replace("gate", "gate_up")] = np.concatenate(parts, axis=1)
    for name, array in tensors.items():
        renamed = rename(name)
        if raw is not None and name in raw:
            kind = raw[name]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (*array.shape[:-1], array.shape[-1] // block * size)
            data = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            data = (packed or {}).get(name, data)
            writer.add_tensor(name, data, raw_dtype=kind)
        elif renamed is not None:
            writer.add_tensor(renamed, np.ascontiguousarray(change(name, array)))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    return finish(writer, path)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    """Write what was added, and return the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """The weights of a model under GGUF names, rows ordered as convert_hf_to_gguf orders them."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        plus_one = model.config.model_type in ADDS_ONE and name.endswith("norm.weight")
        array = parameter.float().numpy() + np.float32(plus_one)
        tensors |= _converted(model.config, name, array)
    return tensors


@contextmanager
def merged(
    model: PreTrainedModel, basis: Basis, vector: MicroVector, modules: Sequence[str] | None = None
) -> Iterator[PreTrainedModel]:
    """A model with a vector merged into its weights, W' = W + B R A, for one block; or in some modules."""
    modules = basis.modules if modules is None else modules
    before: dict[str, torch.Tensor] = {}
    weights = dict(model.named_parameters())
    found = set()
    for name, parameter in weights.items():
        values = parameter.data.numpy()
        for module, part in _converted(model.config, name, values).items():
            if module not in modules:
                continue
            found.add(module)
            before.setdefault(name, parameter.data.clone())
            delta = basis.delta(module, vector)
            if np.shares_memory(part, values):
                part += delta
            else:  # a copy in another order: where it came from
                numbers = np.arange(values.size).reshape(values.shape)
                places = _converted(model.config, name, numbers)[module]
                values.reshape(-1)[places] += delta
    assert found == set(modules)
    try:
        yield model
    finally:
        for name, value in before.items():
            weights[name].data.copy_(value)


def to_hf_rows(model: PreTrainedModel, module: str, array: NDArray[Any]) -> NDArray[Any]:
    """Bring the rows of a module's weight from GGUF's order into that of Hugging Face."""
    return np.ascontiguousarray(ordered(model.config, module.split(".", 2)[2], array, to_gguf=False))


def ordered(config: PretrainedConfig, kind: str, array: NDArray[Any], *, to_gguf: bool) -> NDArray[Any]:
    """Rows of q and k in the other order: those that RoPE turns together lie apart, or side by side."""
    heads = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}
    if config.model_type not in _PERMUTED or kind not in heads:
        return array
    count = getattr(config, heads[kind])
    half = len(array) // count // 2
    split = (2, half) if to_gguf else (half, 2)
    return array.reshape(count, *split, -1).swapaxes(1, 2).reshape(array.shape)


def _converted(config: PretrainedConfig, name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What a tensor of a model becomes: GGUF name -> its values there. It moves values, and changes none."""
    if ".mlp.experts." in name:
        block = name.split(".")[2]
        return {f"blk.{block}.{kind}": part for kind, part in _experts(config, name, array).items()}
    arch = _ARCHITECTURES.get(config.model_type, config.model_type)
    found = _names(arch, config.num_hidden_layers).get_name(name, (".weight", ".bias"))
    assert found, name
    if name.endswith("sinks"):
        found += ".weight"
    kind = found.split(".", 2)[-1]
    if kind == "ffn_gate_inp_shexp.weight":
        array = array[0]
    if name.endswith("self_attention.query_key_value.weight"):
        # for each head of k its queries, k and v -> all q, all k, all v
        keys = config.num_kv_heads
        head = config.hidden_size // config.num_attention_heads
        grouped = array.reshape(keys, -1, head, array.shape[1])
        parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
        array = np.concatenate([part.reshape(-1, array.shape[1]) for part in parts])
    return {found: ordered(config, kind, array, to_gguf=True)}


def _experts(config: PretrainedConfig, name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    if config.model_type == "gpt_oss":
        if not name.endswith("bias"):
            array = array.swapaxes(1, 2)  # [experts, in, out] in torch
        gate, up = array[:, ::2], array[:, 1::2]
    else:
        gate, up = array[:, : array.shape[1] // 2], array[:, array.shape[1] // 2 :]
    end = "bias" if name.endswith("bias") else "weight"
    if "gate_up" not in name:
        return {f"ffn_down_exps.{end}": array}
    return {f"ffn_gate_exps.{end}": gate, f"ffn_up_exps.{end}": up}


def _add_metadata(writer: gguf.GGUFWriter, config: PretrainedConfig, arch: str) -> None:
    def has(name: str) -> Any:
        return getattr(config, name, None)

    heads = config.num_attention_heads
    head = has("head_dim") or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(has("intermediate_size") or 4 * config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(has("num_key_value_heads") or config.num_kv_heads)
    if arch == "falcon":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch not in ("falcon", "deepseek2"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1)))
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(whole["rope_type"]))
        writer.add_rope_scaling_factor(whole["factor"])
        writer.add_rope_scaling_orig_ctx_len(whole.get("original_max_position_embeddings", 0))
    if arch == "gemma3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if arch in ("gemma2", "gemma3", "gpt-oss"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "deepseek2":
        writer.add_key_length(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length(config.v_head_dim)
        writer.add_q_lora_rank(0)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_shared_count(config.n_shared_experts)
    if arch == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if (experts := has("num_experts") or has("num_local_experts") or has("n_routed_experts")) is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(has("moe_intermediate_size") or config.intermediate_size)
    if (shared := has("shared_expert_intermediate_size")) is not None:
        writer.add_expert_shared_feed_forward_length(shared)


def _add_vocabulary(writer: gguf.GGUFWriter, third: str = "<pad>") -> None:
    # The tokens of ASCII are their bytes, in GPT-2's way of writing those that do not print. The others
    # are given ASCII texts too, so that any random tokens make a text, in a stream and out of it.
    hidden = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174)]
    tokens = [chr(256 + hidden.index(byte) if byte in hidden else byte) for byte in range(128)]
    tokens += [f"~{code:02x}" for code in range(128, 256)]
    add_tokens(writer, tokens, third)


def add_tokens(writer: gguf.GGUFWriter, tokens: list[str], third: str = "<pad>") -> None:
    """A vocabulary of 256 tokens and the special ones."""
    special = ["<bos>", "<eos>", third, "<unk>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + special)
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(special)
    if third != "<pad>":  # one that texts may spell
        types[258] = gguf.TokenType.USER_DEFINED
    writer.add_token_types(types)
    writer.add_token_merges(["\u0120 \u0120"])  # llama.cpp wants the key; the pair has no token
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
