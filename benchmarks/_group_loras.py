"""The baseline of `serve.py`, stock llama-server: a vector with u = 1 is the scales of one LoRA a group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinylora_edge import Basis, MicroVector
from tinylora_edge.formats.gguf import FLOAT32, STRING, write


def write_groups(basis: Basis, directory: Path) -> list[Path]:
    """Write one LoRA a group of a basis with u = 1, (A, B P); return their paths in the order of groups."""
    directory.mkdir(exist_ok=True)
    paths = []
    tying, p = basis.projection.tied
    for group in range(basis.size):
        tensors: dict[str, Any] = {}
        for m in np.flatnonzero(tying == group):
            a, b = basis.factors.leading(basis.modules[m], basis.rank)
            tensors[f"{basis.modules[m]}.lora_a"] = np.ascontiguousarray(a)
            tensors[f"{basis.modules[m]}.lora_b"] = np.ascontiguousarray(b @ p[m, 0])
        metadata = [
            ("general.type", "adapter", STRING),
            ("adapter.type", "lora", STRING),
            ("adapter.lora.alpha", float(basis.rank), FLOAT32),
        ]
        paths.append(directory / f"group-{group:02d}.gguf")
        with paths[-1].open("wb") as file:
            write(file, basis.factors.architecture, metadata, tensors)
    return paths


def scales(basis: Basis, vector: MicroVector) -> list[dict[str, Any]]:
    """Return a vector as `lora` of a request: ids are the positions of the files of `write_groups`."""
    return [{"id": group, "scale": float(value)} for group, value in enumerate(basis.values(vector))]


def server_arguments(paths: Iterable[Path]) -> list[str]:
    """Return what llama-server is started with besides the model, so that no adapter applies by itself."""
    scaled = ",".join(f"{path}:0" for path in paths)
    return ["--lora-init-without-apply", "--lora-scaled", scaled, "--cache-ram", "0"]
