"""The builder of base graphs: onnxruntime-genai's.

It runs as a process of its own: it puts its folder on sys.path and prints as it likes, and the memory that
torch takes for the weights is free again before the factors go into the graph.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tinylora_edge.errors import ExportError, MissingExtraError, UnsupportedModelError
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.gguf_transformers import read_model, read_once
from tinylora_edge.modules import Heads

from .pack import pack

PRECISIONS = ("fp32", "int8", "int4")
_BUILDER = "onnxruntime_genai.models.builder"
_UNKNOWN = "is not currently supported", "KeyError", "AttributeError"
"""Parts of the builder's last line where it does not know an architecture, or fails on its configuration (as
for Gemma 3 with transformers 5)."""
_PACKAGES = "onnx", "onnx-ir", "onnxruntime-genai", "torch", "transformers"


def check_builder() -> None:
    """Check that what builds a graph is installed; no model is needed."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingExtraError("building an ONNX graph", package, "onnx-export")


def build(model: Path, folder: Path, precision: str, heads: Heads) -> dict[str, Any]:
    """Build the base graph of a model, with its tokenizer and configuration, in an empty folder.

    Quantized weights are in symmetric blocks of 32, and are multiplied at accuracy level 4. `int8`: the
    blocks of a quantized GGUF (see `pack`), or every weight rounded to 8 bits. `int4`: every weight rounded
    to 4 bits by the builder, also those that were quantized before. Returns for the manifest what built the
    `graph`, and with `int8` how many of its `weights` were packed how.

    UnsupportedModelError: the builder does not know the architecture. ExportError: the model cannot be read,
    or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="work-", dir=folder.parent) as name:
        work, source, about = Path(name), model, dict[str, Any]()
        if model.is_file():
            source = work / "hf"
            code = f"import sys; from {__name__} import unpack; unpack(*sys.argv[1:])"
            _run(["-c", code, str(model), str(source)], f"transformers cannot read {model}")
        graph = work / "graph" if precision == "int8" else folder
        made = "fp32" if precision == "int8" else precision
        command = ["-m", _BUILDER, "-i", str(source.absolute()), "-o", str(graph), "-p", made, "-e", "cpu"]
        command += ["-c", str(work / "cache"), "--extra_options", "hf_token=false"]
        _run(command, f"onnxruntime-genai's model builder failed on {model}")
        if precision == "int8":
            about["weights"] = asdict(pack(graph, folder, model if model.is_file() else None, heads))
    return {"graph": f"onnxruntime-genai {version('onnxruntime-genai')}", **about}


def unpack(source: str, target: str) -> None:
    """Write a GGUF model as a Hugging Face directory, float32, with its tokenizer and template.

    An error ends the process, with its message as the last line of stderr.
    """
    import torch
    import transformers

    path = Path(source)
    try:
        dequantize_into(Path(target).parent)
        model = read_model(path, torch.float32)
        with read_once():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model.save_pretrained(target)
        template = GGUFFile(path).get("tokenizer.chat_template")
        if isinstance(template, str) and not tokenizer.chat_template:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(target)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        sys.exit(json.dumps(f"{type(error).__name__}: {error}".splitlines()[0], ensure_ascii=False)[1:-1])


def dequantize_into(folder: Path) -> None:
    """Make transformers dequantize a GGUF block by block in this process, into mapped temporary files.

    So dequantizing takes three times the memory of the largest tensor in float32, and not the memory of the
    whole model.
    """
    import torch
    from transformers import modeling_gguf_pytorch_utils as loader

    load = loader.load_gguf_checkpoint

    def to_file(values: torch.Tensor) -> torch.Tensor:
        with tempfile.TemporaryFile(dir=folder) as file:
            mapped = np.memmap(file, np.float32, "w+", shape=tuple(values.shape))
        return torch.from_numpy(mapped).copy_(values)

    def load_blocks(path: Any, return_tensors: bool = False, **options: Any) -> Any:
        if not return_tensors:
            return load(path, **options)
        reader, tensors = gguf.GGUFReader(path), dict[str, Any]()  # `load` gets the same one: see `read_once`
        for name in [name for name in reader.fields if name.startswith("tokenizer.")]:
            del reader.fields[name]  # `load` would take a second to read them, for each block
        blocks: dict[tuple[str, ...], list[Any]] = {}
        for tensor in reader.tensors:
            blocks.setdefault(tuple(tensor.name.split(".")[:2]), []).append(tensor)
        for reader.tensors in blocks.values():
            tensors |= {k: to_file(v) for k, v in load(path, True, **options)["tensors"].items()}
        return {"tensors": tensors}

    loader.load_gguf_checkpoint = load_blocks


def _run(command: list[str], failure: str) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-P", *command],  # -P: no module is imported from the present folder
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
    if any(word in last for word in _UNKNOWN):
        raise UnsupportedModelError(f"{failure}: {last}. Export it for llama.cpp: --format gguf")
    if done.returncode < 0:
        why = {-9: ", as the system does where memory runs out", -7: ", as it is where the disk is full"}
        last = f"it was ended by signal {-done.returncode}{why.get(done.returncode, '')}"
    raise ExportError(f"{failure}: {last or f'exit code {done.returncode}'}")
