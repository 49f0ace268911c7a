"""The builder of base graphs: onnxruntime-genai's.

It runs as a process of its own: it puts its folder on sys.path and prints as it likes, and the memory that
torch takes for the weights is free again before the factors go into the graph.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ...errors import ExportError, MissingExtraError, UnsupportedModelError
from ...modules import Heads
from .model import find_model, import_onnx
from .pack import Packed, pack

PRECISIONS = ("fp32", "int8", "int4")
_BUILDER = "onnxruntime_genai.models.builder"
_WORKER = "tinylora_edge.exporters.onnx.worker"
_UNKNOWN = "is not currently supported"  # how the builder says that it does not know an architecture
_PACKAGES = {
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime_genai": "onnxruntime-genai",
    "torch": "torch",
    "transformers": "transformers",
}


@dataclass(frozen=True)
class BaseGraph:
    """A graph that was built, and by whom: `onnxruntime-genai <version>`.

    Attributes:
        packed: what became of its weights in 8 bits; None in the other precisions.
    """

    folder: Path
    made_by: str
    packed: Packed | None = None


def check_graph(graph: Path | None) -> None:
    """Check that the graph to bake is there, or, where there is None, what builds one; no model is needed."""
    import_onnx()
    if graph is not None:
        find_model(graph)
        return
    for module, package in _PACKAGES.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ValueError:  # sys.modules[name] is None: how a missing package is acted out
            found = False
        if not found:
            raise MissingExtraError("building an ONNX graph", package, "onnx-export")


def build(model: Path, work: Path, precision: str, heads: Heads = Heads()) -> BaseGraph:  # noqa: B008
    """Build the base graph of a model, in the existing directory `work`.

    Blocks have 32 weights, are symmetric, and are multiplied at accuracy level 4. `int8`: those of a
    quantized GGUF (see `pack`), or every weight rounded to 8 bits. `int4`: every weight rounded to 4 bits by
    the builder, those that were quantized before a second time.

    Args:
        heads: of the model, as `pack` needs them.

    Raises:
        UnsupportedModelError: the builder does not know the architecture.
        ExportError: the model cannot be read, or the disk is full.
    """
    if precision == "int8":
        built = build(model, work, "fp32")
        folder = work / "packed"
        folder.mkdir()
        packed = pack(built.folder, folder, model if model.is_file() else None, heads)
        shutil.rmtree(built.folder)
        return BaseGraph(folder, built.made_by, packed)
    source = model
    if model.is_file():
        source = work / "hf"
        _run([_WORKER, str(model), str(source)], f"transformers cannot read {model}")
    graph = work / "graph"
    graph.mkdir()
    with tempfile.TemporaryDirectory(dir=work) as cache:
        command = [_BUILDER, "-i", str(source.absolute()), "-o", str(graph), "-p", precision, "-e", "cpu"]
        command += ["-c", cache, "--extra_options", "hf_token=false"]
        _run(command, f"onnxruntime-genai's model builder failed on {model}")
    return BaseGraph(graph, f"onnxruntime-genai {version('onnxruntime-genai')}")


def _run(command: list[str], failure: str) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command],  # -P: nothing that lies in the present folder is run
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    if _UNKNOWN in last:
        raise UnsupportedModelError(f"{failure}: {last}. Pass a graph that you have with --onnx DIR")
    if done.returncode < 0:
        last = f"it was ended by signal {-done.returncode}" + (
            ", as the system does where memory runs out" if done.returncode == -9 else ""
        )
    raise ExportError(f"{failure}: {last or f'exit code {done.returncode}'}")
