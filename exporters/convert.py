"""Vectors in the formats of other programs: a GGUF LoRA, and a PEFT LoRA.

Both are (A, B R): rank r, scale 1, the vector folded in, exact. The one is for whatever is built on
llama.cpp: `--lora`, `ADAPTER` in an Ollama Modelfile, LM Studio; the other for PEFT, vLLM, SGLang. ONNX
Runtime's `.onnx_adapter` is in the core (`formats.onnx_adapter`), since devices write it too.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import ExportError, UnsupportedModelError
from ..formats.gguf import FLOAT32, STRING, write
from ..modules import inverse, listed_order, parse
from ..system import atomic_write
from ..vector import MicroVector
from .weights.hf import HFConfig, HFWeights


def write_gguf_lora(basis: Basis, vector: MicroVector, path: str | PathLike[str]) -> None:
    """Write a stock GGUF LoRA that does what a vector does, atomically."""
    r = basis.R(vector)
    tensors: dict[str, NDArray[np.float32] | NDArray[np.float16]] = {}
    for m, module in enumerate(basis.modules):
        a, b = basis.factors.leading(module, basis.rank)
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b @ r[m])
    metadata = [
        ("general.type", "adapter", STRING),
        ("general.name", f"tinylora {basis.id} vector of sequence {vector.sequence}", STRING),
        ("adapter.type", "lora", STRING),
        # Readers that know alpha compute scale * alpha / rank: the scale itself, as where it is left out.
        ("adapter.lora.alpha", float(basis.rank), FLOAT32),
    ]
    try:
        with atomic_write(Path(path)) as file:
            write(file, basis.factors.architecture, metadata, tensors)  # type: ignore[arg-type]
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}") from error


def write_peft_lora(
    basis: Basis, vector: MicroVector, directory: str | PathLike[str], model: str | PathLike[str]
) -> None:
    """Write a checkpoint that `PeftModel.from_pretrained` loads; files of the same names are replaced.

    `model` is the Hugging Face directory whose names and order of rows PEFT wants.

    Raises:
        ExportError: the model is another one or damaged, or a file cannot be written.
        UnsupportedModelError: no GGUF architecture is known for it, or experts are adapted.
    """
    from safetensors.numpy import save

    directory, model = Path(directory), Path(model)
    found = HFConfig(model)
    layers = HFWeights(model, found.architecture, found.blocks).layers
    r = basis.R(vector)
    tensors: dict[str, NDArray[np.float32]] = {}
    names = []
    for m, module in enumerate(basis.modules):
        a, b = basis.factors.leading(module, basis.rank)
        if a.ndim != 2:
            raise UnsupportedModelError(f"{module} has experts, which a PEFT LoRA does not adapt like this")
        name, shape = layers.get(module, ("", ()))
        if shape != (len(b), a.shape[1]):
            what = f"a layer of {shape}" if name else "no layer"
            raise ExportError(
                f"{model} has {what} for {module}, which is {len(b)} x {a.shape[1]}: it is another model "
                "than the factors are of"
            )
        order = inverse(listed_order(found.architecture, parse(module)[1], len(b), found.heads))
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (b @ r[m])[order]
        names.append(name)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "inference_mode": True,
        "r": basis.rank,
        "lora_alpha": basis.rank,  # alpha / r is the scale: 1
        "target_modules": names,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    try:
        directory.mkdir(exist_ok=True)
        for name, data in (
            ("adapter_model.safetensors", save({n: np.ascontiguousarray(t) for n, t in tensors.items()})),
            ("adapter_config.json", (json.dumps(config, indent=2) + "\n").encode()),
        ):
            with atomic_write(directory / name) as file:
                file.write(data)
    except OSError as error:
        raise ExportError(f"{directory} could not be written: {error.strerror or error}") from error
