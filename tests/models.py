"""Small random-weight models of several architectures: as a Hugging Face directory and as a GGUF file.

`write_gguf` is a converter of its own, a page long: the product's way of naming modules and of ordering
rows is checked against it, and it against llama.cpp and torch, whose logits must agree.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
import scipy.linalg
from llama_cpp._utils import suppress_stdout_stderr

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from tinylora_edge import Basis, MicroVector

ARCHITECTURES = ("llama", "qwen2")
VOCABULARY = 256 + 4  # every byte, and the special tokens

_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
_FUSED = {"self_attn.qkv_proj.weight": "attn_qkv.weight", "mlp.gate_up_proj.weight": "ffn_up.weight"}
"""As Phi-3 has them: what is `ffn_up` elsewhere is gate and up here."""
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def tiny_model(
    architecture: str, *, hidden: int = 64, blocks: int = 2, seed: int = 0, random_biases: bool = True
) -> PreTrainedModel:
    """A model with grouped-query attention and untied embeddings, eval mode, float32.

    Its linear weights are noise plus a few strong directions: as in trained models, most of them have
    leading singular values that are apart, and some have nearly equal ones.
    """
    import torch
    import transformers

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": hidden,
        "head_dim": 16,
        "norm_topk_prob": True,  # as llama.cpp has it
    }
    config, kind = {
        "llama": (transformers.LlamaConfig(**common), transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config(**common), transformers.Qwen2ForCausalLM),
        "phi3": (transformers.Phi3Config(**common, pad_token_id=258), transformers.Phi3ForCausalLM),
        "granite": (
            transformers.GraniteConfig(**common, logits_scaling=3.0),
            transformers.GraniteForCausalLM,
        ),
        "qwen3moe": (transformers.Qwen3MoeConfig(**common, **experts), transformers.Qwen3MoeForCausalLM),
    }[architecture]
    model = kind(config).eval().float()
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        values = torch.from_numpy(_random_weight(rng, name, tuple(parameter.shape)))
        parameter.data.copy_(values)
        parameter.requires_grad_(False)
    return model


def _random_weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith(".bias"):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)
    noise = rng.standard_normal(shape)
    if "embed" in name or "lm_head" in name:
        return noise.astype(np.float32)
    n_out, n_in = shape[-2:]
    left, right = rng.standard_normal((*shape[:-1], 3)), rng.standard_normal((*shape[:-2], 3, n_in))
    strength = rng.uniform(1, 4, 3) / np.sqrt(n_out)
    return ((noise + left * strength @ right) / np.sqrt(n_in)).astype(np.float32)


def write_hf(model: PreTrainedModel, path: Path, dtype: str = "float32", **options: Any) -> Path:
    """Write a Hugging Face directory; `max_shard_size="50KB"` makes it a sharded one."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if dtype != "float32":
        model = copy.deepcopy(model).to(getattr(torch, dtype))
    model.save_pretrained(path, **options)
    return path


def gguf_to_hf(reader: gguf.GGUFReader, path: Path) -> Path:
    """Write the Hugging Face directory of a Llama with tied embeddings that is given as F32 GGUF."""
    import torch
    import transformers
    from safetensors.torch import save_file

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tensors["token_embd.weight"]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        dtype="float32",
    )
    config.save_pretrained(path)
    top = {gguf_name: hf_name for hf_name, gguf_name in _TOP.items()}
    layer = {gguf_name: hf_name for hf_name, gguf_name in _LAYER.items()}
    renamed = {}
    for name, data in tensors.items():
        if name in top:
            renamed[top[name]] = torch.from_numpy(np.array(data))
            continue
        _, block, kind = name.split(".", 2)
        rows = np.array(_ordered(config, kind, data, to_gguf=False))
        renamed[f"model.layers.{block}.{layer[kind]}"] = torch.from_numpy(rows)
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    return path


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    change: Callable[[str, NDArray[Any]], NDArray[Any]] = lambda name, array: array,
    architecture: str | None = None,
    metadata: dict[str, str | int] | None = None,
    raw: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a model as F32 GGUF.

    `rename` may drop a tensor (None) or call it otherwise; `change` may alter its values; `raw` gives
    tensors a type that cannot be made here, filled with random bytes.
    """
    config = model.config
    arch = {"qwen3_moe": "qwen3moe"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture or arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if arch == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    _add_vocabulary(writer)
    for name, array in gguf_tensors(model).items():
        renamed = rename(name)
        if raw is not None and name in raw:
            kind = raw[name]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (array.shape[0], array.shape[1] // block * size)
            data = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            writer.add_tensor(name, data, raw_dtype=kind)
        elif renamed is not None:
            writer.add_tensor(renamed, np.ascontiguousarray(change(name, array)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """The weights of a model under GGUF names, rows ordered as convert_hf_to_gguf orders them."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, parameter in model.state_dict().items():
        array = parameter.float().numpy()
        if name in _TOP:
            tensors[_TOP[name]] = array
            continue
        _, _, block, rest = name.split(".", 3)
        if rest == "mlp.experts.gate_up_proj":
            gate, up = np.split(array, 2, axis=1)
            tensors[f"blk.{block}.ffn_gate_exps.weight"] = gate
            tensors[f"blk.{block}.ffn_up_exps.weight"] = up
            continue
        kind = _LAYER.get(rest) or _FUSED[rest]
        tensors[f"blk.{block}.{kind}"] = _ordered(model.config, kind, array, to_gguf=True)
    return tensors


@contextmanager
def merged(model: PreTrainedModel, basis: Basis, vector: MicroVector) -> Iterator[PreTrainedModel]:
    """A model with a vector merged into its weights, W' = W + B R A, for one block."""
    import torch

    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    before: dict[str, torch.Tensor] = {}
    for module in basis.modules:
        _, block, kind = module.split(".", 2)
        gate_or_up = kind in ("ffn_gate_exps.weight", "ffn_up_exps.weight")
        rests = (
            ["mlp.experts.gate_up_proj"]
            if gate_or_up
            else [h for h, g in (*_LAYER.items(), *_FUSED.items()) if g == kind]
        )
        name = next(n for n in (f"model.layers.{block}.{rest}" for rest in rests) if n in weights)
        before.setdefault(name, weights[name].clone())
        delta = torch.from_numpy(to_hf_rows(model, module, basis.delta(module, vector)))
        if gate_or_up:  # torch keeps both in one tensor
            half = weights[name].shape[1] // 2
            part = slice(0, half) if kind.startswith("ffn_gate") else slice(half, None)
            weights[name][:, part] += delta
        else:
            weights[name] += delta
    try:
        yield model
    finally:
        for name, value in before.items():
            weights[name].copy_(value)


def to_hf_rows(model: PreTrainedModel, module: str, array: NDArray[Any]) -> NDArray[Any]:
    """Bring the rows of a module's weight from GGUF's order into that of Hugging Face."""
    return np.ascontiguousarray(_ordered(model.config, module.split(".", 2)[2], array, to_gguf=False))


def _ordered(config: PretrainedConfig, kind: str, array: NDArray[Any], *, to_gguf: bool) -> NDArray[Any]:
    heads = {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}
    if config.model_type != "llama" or kind not in heads:
        return array
    half = len(array) // heads[kind] // 2
    split = (2, half) if to_gguf else (half, 2)
    return array.reshape(heads[kind], *split, -1).swapaxes(1, 2).reshape(array.shape)


def top_singular_values(weight: NDArray[Any], count: int = 3) -> NDArray[np.float64]:
    """The largest singular values, from the full spectrum of the smaller Gram matrix in float64."""
    w = weight.astype(np.float64)
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    last = len(gram) - 1
    values = scipy.linalg.eigvalsh(gram, subset_by_index=(last - count + 1, last), overwrite_a=True)
    return np.sqrt(values[::-1])


def torch_logits(model: PreTrainedModel, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of every position: [tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([tokens])).logits
    return result[0].float().numpy()


def torch_greedy(model: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    """The tokens that greedy decoding appends."""
    out = list(tokens)
    for _ in range(count):
        out.append(int(torch_logits(model, out)[-1].argmax()))
    return out[len(tokens) :]


def llama_logits(llm: llama_cpp.Llama, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of every position of a prompt that is evaluated anew: [tokens, vocabulary]."""
    assert llm._logits_all
    llm.reset()
    llm.eval(tokens)
    return llm.scores[: len(tokens)].copy()


def llama_greedy(llm: llama_cpp.Llama, tokens: list[int], count: int) -> list[int]:
    """The tokens that greedy decoding appends, prefix caching included."""
    stream = llm.generate(tokens, temp=0.0)
    result = [next(stream) for _ in range(count)]
    stream.close()
    return result


def quantize_file(source: Path, target: Path, ftype: int) -> Path:
    """Requantize a whole GGUF with llama.cpp."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.allow_requantize = True
    parameters.nthread = 2
    with suppress_stdout_stderr(disable=False):
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(parameters)
        )
    assert code == 0
    return target


def write_lora(
    path: Path, architecture: str, pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]], alpha: float
) -> Path:
    """Write a stock LoRA adapter, as llama.cpp's convert_lora_to_gguf does: module -> (A, B)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, (a, b) in pairs.items():
        writer.add_tensor(f"{module}.lora_a", np.ascontiguousarray(a, np.float32))
        writer.add_tensor(f"{module}.lora_b", np.ascontiguousarray(b, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    # The tokens of ASCII are their bytes, in GPT-2's way of writing those that do not print. The others
    # are given ASCII texts too, so that any random tokens make a text, in a stream and out of it.
    hidden = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174)]
    tokens = [chr(256 + hidden.index(byte) if byte in hidden else byte) for byte in range(128)]
    tokens += [f"~{code:02x}" for code in range(128, 256)]
    special = ["<bos>", "<eos>", "<pad>", "<unk>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + special)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(special))
    writer.add_token_merges(["\u0120 \u0120"])  # llama.cpp wants the key; the pair has no token
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
