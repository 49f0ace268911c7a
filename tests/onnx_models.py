"""ONNX forms of the test models, and how to run them with plain ONNX Runtime. Made once a session."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import converter
import gguf
import models
import numpy as np
import onnxruntime as ort
import shared
from numpy.typing import NDArray

from tinylora_edge import Basis, exporters
from tinylora_edge.exporters.onnx import builder, pack
from tinylora_edge.modules import Heads

TOKENS = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]


def write_hf(model: Any, path: Path) -> Path:
    """Write a Hugging Face directory with a tokenizer of bytes, which the builder asks for."""
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    models.write_hf(model, path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = {token: i for i, token in enumerate([*alphabet, *special.values()])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return path


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A GGUF's vocabulary of bytes that transformers reads, too: its one merge makes a token that exists."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    converter.add_tokens(writer, [*alphabet[:255], "\u0120\u0120"])


@cache
def tiny(architecture: str) -> Any:
    """The small random model of an architecture. Never change it."""
    model = models.tiny_model(architecture)
    if architecture == "phi3":  # of 4K context, not of 128K: those have other positions
        model.config.original_max_position_embeddings = model.config.max_position_embeddings
    return model


def tiny_hf(architecture: str) -> Path:
    """The small random model of an architecture as a Hugging Face directory with a tokenizer."""
    return shared.once(f"{architecture}-hf", lambda path: write_hf(tiny(architecture), path))


def graph(source: Path, precision: str, heads: Heads = Heads()) -> Path:  # noqa: B008 - immutable
    """The base graph that is built of a model. Never write to it."""

    def make(path: Path) -> Path:
        path.mkdir()
        if precision != "int8":
            builder.build(source, path, precision, heads)
            return path
        with tempfile.TemporaryDirectory() as folder:
            floats = Path(shutil.copytree(graph(source, "fp32"), Path(folder) / "fp32"))
            pack.pack(floats, path, source if source.is_file() else None, heads)
        return path

    return shared.once(f"{precision}-{hashlib.sha256(bytes(source)).hexdigest()[:16]}", make)


def export(source: Path, output: Path, precision: str = "fp32", **options: Any) -> exporters.ExportReport:
    """`export_onnx` of a model whose graph is built once a session."""

    def build(model: Path, folder: Path, precision: str, heads: Heads) -> dict[str, str]:
        shutil.copytree(graph(model, precision, heads), folder, dirs_exist_ok=True)
        return {"graph": "onnxruntime-genai"}

    with patch.object(exporters.export, "build", build):
        return exporters.export_onnx(source, output, precision=precision, **options)


def options() -> ort.SessionOptions:
    """Of a session on one thread, which is silent."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    return settings


def session(folder: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(folder / "model.onnx"), options(), providers=["CPUExecutionProvider"])


def feeds(
    running: ort.InferenceSession, tokens: list[list[int]], r: NDArray[np.float32] | None = None
) -> dict[str, NDArray[Any]]:
    """Inputs for sequences of one length from their start: ids, mask, positions and an empty cache."""
    ids = np.asarray(tokens, np.int64)
    result: dict[str, NDArray[Any]] = {}
    for value in running.get_inputs():
        if value.name == "input_ids":
            result[value.name] = ids
        elif value.name == "attention_mask":
            result[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            result[value.name] = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        elif value.name.startswith("past_key_values."):
            _, heads, _, width = value.shape
            if isinstance(width, str):  # the builder leaves it open; its configuration has it
                config = json.loads((Path(running._model_path).parent / "genai_config.json").read_text())
                width = config["model"]["decoder"]["head_size"]
            result[value.name] = np.zeros((len(ids), heads, 0, width), np.float32)
    if r is not None:
        result["tinylora_r"] = np.atleast_2d(np.asarray(r, np.float32))
    return result


def row(basis: Basis, v: Any) -> NDArray[np.float32]:
    """R of a vector as a graph takes it: float32 [M P Q], zeros beyond p and q of the basis."""
    (outputs, rank), (p, q) = basis.factors.shape, basis.shape
    return np.pad(basis.R(v), ((0, 0), (0, outputs - p), (0, rank - q))).reshape(-1)


def logits(
    running: ort.InferenceSession, tokens: list[list[int]], r: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Logits of every position: [sequences, tokens, vocabulary]."""
    result: NDArray[np.float32] = running.run(["logits"], feeds(running, tokens, r))[0]
    return result


def greedy(
    running: ort.InferenceSession, tokens: list[int], count: int, r: NDArray[np.float32] | None = None
) -> list[int]:
    """The tokens that greedy decoding appends, with the cache in use."""
    fed = feeds(running, [tokens], r)
    names = [output.name for output in running.get_outputs()]
    result: list[int] = []
    while len(result) < count:
        out = dict(zip(names, running.run(names, fed), strict=True))
        result.append(int(out["logits"][0, -1].argmax()))
        length = fed["attention_mask"].shape[1] + 1 if "attention_mask" in fed else 0
        for name in fed:
            if name.startswith("past_key_values."):
                fed[name] = out[name.replace("past_key_values", "present")]
        fed["input_ids"] = np.array([[result[-1]]], np.int64)
        if "attention_mask" in fed:
            fed["attention_mask"] = np.ones((1, length), np.int64)
        if "position_ids" in fed:
            fed["position_ids"] = np.array([[length - 1]], np.int64)
    return result


def digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file under a directory."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
