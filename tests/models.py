"""Small random-weight models of several architectures: in torch, as a Hugging Face directory, as GGUF."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
import scipy.linalg
from architectures import VOCABULARY, configuration
from converter import ADDS_ONE, finish, gguf_tensors, merged, to_hf_rows, write_gguf
from llama_cpp._utils import suppress_stdout_stderr

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

__all__ = ["VOCABULARY", "gguf_tensors", "merged", "to_hf_rows", "write_gguf"]  # of others, for tests


def tiny_model(architecture: str, *, hidden: int = 64, blocks: int = 2, seed: int = 0) -> PreTrainedModel:
    """A model with grouped-query attention and untied embeddings, eval mode, float32.

    Its linear weights are noise plus a few strong directions: as in trained models, most of them have
    leading singular values that are apart, and some have nearly equal ones.
    """
    import torch

    config, kind = configuration(architecture, hidden, blocks)
    model = kind(config).eval().float()
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        values = torch.from_numpy(_random_weight(rng, name, tuple(parameter.shape)))
        if config.model_type in ADDS_ONE and name.endswith("norm.weight"):
            values -= 1
        parameter.data.copy_(values)
        parameter.requires_grad_(False)
    return model


def _random_weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) == 1 and name.endswith(".weight"):  # norms
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith(("bias", "sinks")):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)
    noise = rng.standard_normal(shape)
    if "embed" in name or "lm_head" in name:
        return noise.astype(np.float32)
    n_out, n_in = shape[-2:]
    left, right = rng.standard_normal((*shape[:-1], 3)), rng.standard_normal((*shape[:-2], 3, n_in))
    strength = rng.uniform(1, 4, 3) / np.sqrt(n_out)
    return ((noise + left * strength @ right) / np.sqrt(n_in)).astype(np.float32)


def write_hf(model: PreTrainedModel, path: Path, **options: Any) -> Path:
    """Write a Hugging Face directory; `max_shard_size="50KB"` makes it a sharded one."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(path, **options)
    return path


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
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.allow_requantize = True
    parameters.nthread = 2
    with suppress_stdout_stderr(disable=False):
        code = llama_cpp.llama_model_quantize(*map(os.fsencode, (source, target)), ctypes.byref(parameters))
    assert code == 0
    return target


def split_gguf(source: Path, folder: Path, tensors: int, stem: str = "model") -> list[Path]:
    """Write a model anew with so many tensors a file, and return the files in order."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / f"{stem}.gguf", architecture, split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, *items = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=items[-1] if items else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    finish(writer, folder)
    return sorted(folder.glob(f"{stem}-*.gguf"))


def altered(module: str, change: Any) -> Any:
    """A `change` of `write_gguf` for one module."""
    return lambda name, array: change(array.copy()) if name == module else array
