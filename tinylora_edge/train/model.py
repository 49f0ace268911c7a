"""The transformers model that learns: the deployed weights, dequantized, or the original ones."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtraError, TrainError
from ..formats.gguf import read_once

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_libc = ctypes.CDLL(None) if os.name != "nt" else None


def default_dtype() -> str:
    """bf16 where this processor computes in it, else fp32."""
    # Builds without oneDNN, as those for Apple Silicon, do not have the operator at all.
    here = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if torch.cuda.is_available() or here else "fp32"


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Hide transformers' bars and its notes on how a GGUF could stay quantized."""
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # its GGUF reader has a bar that heeds no switch
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_model(source: str | PathLike[str], dtype: str | None = None) -> Any:
    """Load a causal language model for training: frozen, in evaluation mode.

    Args:
        source: a GGUF file, which is dequantized (train what you ship), or a Hugging Face directory.
        dtype: `bf16` or `fp32`; by default `default_dtype()`.

    Raises:
        MissingExtraError: transformers is not installed.
        TrainError: transformers cannot read the model.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("training", "transformers", "train") from None
    source = Path(source)
    kind = dtype or default_dtype()
    if kind not in DTYPES:
        raise TrainError(f"unknown dtype {dtype!r}: choose one of {', '.join(sorted(DTYPES))}")
    location: dict[str, Any] = {"pretrained_model_name_or_path": str(source)}
    if source.is_file():
        location = {
            "pretrained_model_name_or_path": str(source.parent),
            "gguf_file": source.name,
            "quantization_config": transformers.GgufConfig(dequantize=True),
        }
    try:
        with _quiet(transformers.utils.logging), read_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(**location, dtype=DTYPES[kind])
    except (OSError, ValueError, KeyError) as error:
        raise TrainError(
            f"transformers cannot load {source} for training: {error}. "
            "Pass the original weights with --weights DIR"
        ) from None
    # Dequantized already; what is left of the quantizer makes trainers refuse the model.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name) if name in vars(model) else setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    give_back()  # what dequantizing took
    return model.requires_grad_(False).eval()


def give_back() -> None:
    """Give freed memory back, where the C library is glibc.

    It keeps what a thread has freed for that thread, in pieces: a run of 40 steps grew from 1.6 to 2.4 GB.
    """
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
