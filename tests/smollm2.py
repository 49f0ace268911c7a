"""The real model in other forms: as F32 GGUF, and in torch. Made once a session, on first use."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import models
import shared

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ALL_F32, MOSTLY_Q8_0, MOSTLY_Q4_K_M = 0, 7, 15  # llama_ftype

PROMPTS = (
    "The three primary colours are red, yellow and",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
)


def requantized(source: Path, ftype: int) -> Path:
    """The model as another GGUF. F32 holds exactly the values that the Q4_1 file stores."""
    return shared.once(f"SmolLM2-{ftype}.gguf", lambda path: models.quantize_file(source, path, ftype))


def f32_bundle(source: Path) -> Path:
    """A bundle of the model as F32. Never write to it."""
    return shared.once("smollm2-f32", lambda path: shared.export(requantized(source, ALL_F32), path))


@cache
def in_torch(source: Path) -> LlamaForCausalLM:
    """The model in torch, float32. Never change it: see `models.merged`.

    Its logits are compared with llama.cpp's before anything is concluded from them.
    """
    from tinylora_edge.train.adapter import load_model

    return load_model(requantized(source, ALL_F32), "fp32")
