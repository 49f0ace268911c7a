"""Vectors in the formats of other programs: a GGUF LoRA, a PEFT LoRA, and a GGUF model.

Both LoRAs are (A, B R), with the vector folded in, of scale 1, and exact. The first is for llama.cpp's
`--lora` and programs that are built on llama.cpp, the second for PEFT, vLLM and SGLang. The model is for
programs that take no adapters, such as Ollama. As in a frame, a vector that lies beneath is not in them.
ONNX Runtime's `.onnx_adapter` is in the core (`formats.onnx_adapter`), since devices write it too.
"""

from __future__ import annotations

from functools import partial
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Basis
from tinylora_edge.errors import ExportError, UnsupportedModelError
from tinylora_edge.factorization import AGREEMENT, fitting_rows
from tinylora_edge.formats.gguf import FLOAT32, STRING, write, write_header
from tinylora_edge.jsonio import write_json
from tinylora_edge.vector import MicroVector
from tinylora_edge.writes import atomic_write

from .export import new_bundle
from .weights.dequantize import FLOAT_BYTES, distance
from .weights.gguf import GGUFWeights
from .weights.hf import HFConfig, HFWeights

_Q8_0 = gguf.GGMLQuantizationType.Q8_0
_OF_THE_FILE = "GGUF.", "split.", gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.ALIGNMENT
"""Beginnings of keys that are not copied from a base: the file's header and its split, and keys that the
writer adds itself."""


def write_gguf_lora(basis: Basis, vector: MicroVector, path: str | PathLike[str]) -> None:
    """Write a stock GGUF LoRA that does what a vector does, atomically; OSError where that fails."""
    r = basis.R(vector)
    tensors: dict[str, NDArray[np.float32] | NDArray[np.float16]] = {}
    for m, module in enumerate(basis.modules):
        a, b = basis.factors.leading(module, basis.shape)
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b @ r[m])
    metadata = [
        ("general.type", "adapter", STRING),
        ("general.name", f"tinylora {basis.id} vector of sequence {vector.sequence}", STRING),
        ("adapter.type", "lora", STRING),
        # Readers that know alpha compute scale * alpha / rank: with this alpha that is scale itself.
        ("adapter.lora.alpha", float(basis.rank), FLOAT32),
    ]
    with atomic_write(path) as file:
        write(file, basis.factors.architecture, metadata, tensors)


def write_peft_lora(
    basis: Basis, vector: MicroVector, directory: str | PathLike[str], model: str | PathLike[str]
) -> None:
    """Write a checkpoint that `PeftModel.from_pretrained` loads.

    `model` is the Hugging Face directory whose names and order of rows PEFT expects.

    Raises:
        ExportError: the directory exists already, or the model is another one or damaged.
        MissingExtraError: safetensors is not installed.
        UnsupportedModelError: no GGUF architecture is known for it, or experts are adapted.
        OSError: a file cannot be written.
    """
    directory, model = Path(directory), Path(model)
    found = HFConfig(model)
    weights = HFWeights(model, found.architecture, found.blocks)
    r = basis.R(vector)
    tensors: dict[str, NDArray[np.float32]] = {}
    names = []
    for m, module in enumerate(basis.modules):
        a, b = basis.factors.leading(module, basis.shape)
        if a.ndim != 2:
            raise UnsupportedModelError(f"{module} has experts, which a PEFT LoRA does not adapt like this")
        name, shape = weights.layers.get(module, ("", ()))
        if name.partition(".")[2][:1].isdigit():  # PEFT would not find the layer, and not say so
            raise ExportError(f"{model} has {name} without a prefix: save it as a causal language model")
        rows, gap = None, inf
        if shape == (len(b), a.shape[1]):
            away = partial(distance, a, matrices=weights.matrices(module))
            rows, gap = fitting_rows(module, b, found.heads, away, back=True)
        if rows is None:
            raise ExportError(
                f"{model} has {shape or 'no layer'} for {module}, which is {len(b)} x {a.shape[1]}, "
                f"{gap:.2g} away from it (at most {AGREEMENT} is accepted): the factors are of another model"
            )
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rows @ r[m]
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
    from safetensors.numpy import save  # installed: it was needed to read the model

    with new_bundle(directory) as folder, atomic_write(folder / "adapter_model.safetensors") as file:
        file.write(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))
        write_json(folder / "adapter_config.json", config)


def write_merged_gguf(
    basis: Basis, vector: MicroVector, base: str | PathLike[str], path: str | PathLike[str]
) -> None:
    """Write a base that fits the factors with W + B R A in place of each W, atomically.

    An adapted weight that is quantized becomes Q8_0, since coarser blocks round away what a vector changes;
    floats keep their type, and all else is the base's. ExportError: the base cannot be read.
    """
    base, weights = Path(base), GGUFWeights(Path(base))
    types = {module: weights.file.tensors[module].type for module in basis.modules}
    kinds = {module: kind if kind.name in FLOAT_BYTES else _Q8_0 for module, kind in types.items()}
    writer = gguf.GGUFWriter(None, weights.file.architecture)
    for field in gguf.GGUFReader(base).fields.values():
        if field.name.startswith(_OF_THE_FILE):
            continue
        value, inner = field.contents(), field.types[-1] if len(field.types) > 1 else None
        if value == []:  # GGUFWriter knows no empty arrays
            continue
        if field.name == gguf.Keys.General.FILE_TYPE and _Q8_0 in kinds.values():
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_key_value(field.name, value, field.types[0], inner)
    for name, tensor in weights.file.tensors.items():
        kind = kinds.get(name, tensor.type)
        size = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(name, size, np.dtype(np.uint8), int(np.prod(size)), kind)
    with atomic_write(path) as file:
        write_header(writer, file)
        r = basis.R(vector)
        for name, tensor in weights.file.tensors.items():
            file.write(bytes(-file.tell() % writer.data_alignment))
            if name not in kinds:
                file.write(weights.file.data(tensor).data)
                continue
            a, b = basis.factors.leading(name, basis.shape)
            b = b @ r[basis.factors.index(name)]
            for expert, matrix in enumerate(weights.matrices(name)):
                delta = b[expert] @ a[expert] if a.ndim == 3 else b @ a
                file.write(gguf.quantize(matrix.rows() + delta, kinds[name]).data)
        file.write(bytes(-file.tell() % writer.data_alignment))
